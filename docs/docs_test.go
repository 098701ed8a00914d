// Package docs_test holds the guides against the code: examples parse, tables are complete.
package docs_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/node"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/policy"
)

func page(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

var yamlBlock = regexp.MustCompile("(?ms)^ *```yaml\n(.*?)^ *```$")

func TestExamplesParse(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range append(pages, "../README.md") {
		var docs []resource.Document
		for i, m := range yamlBlock.FindAllStringSubmatch(page(t, name), -1) {
			found++
			at := fmt.Sprintf("%s, example %d", name, i+1)
			switch text := m[1]; {
			case strings.HasPrefix(text, "# node.yaml\n"):
				c, err := node.ReadConfig(at, strings.NewReader(text))
				if err == nil {
					err = c.Validate()
				}
				if err != nil {
					t.Errorf("%s: %v", at, err)
				}
			default:
				parsed, err := resource.Parse(at, []byte(text))
				if err != nil {
					t.Errorf("%v", err)
				}
				docs = append(docs, parsed...)
			}
		}
		if _, err := resource.Compile(docs, nil); err != nil { // a page's resources stand together
			t.Errorf("%s: %v", name, err)
		}
	}
	if found < 6 {
		t.Errorf("only %d examples were found: does the pattern still fit?", found)
	}
}

func TestEveryFieldOfNodeYAMLIsExplained(t *testing.T) {
	t.Parallel()
	rows := firstCells(section(t, page(t, "configuration.md"), "## node.yaml"))
	for _, field := range yamlPaths(reflect.TypeFor[node.Config](), "") {
		if !rows[field] {
			t.Errorf("configuration.md, node.yaml: no row for %s", field)
		}
	}
}

func TestEveryFieldOfEachKindIsExplained(t *testing.T) {
	t.Parallel()
	text := page(t, "configuration.md")
	specs := map[string]reflect.Type{
		"IdentityProvider": reflect.TypeFor[resource.IdentityProvider](), "Policy": reflect.TypeFor[resource.Policy](),
		"Route": reflect.TypeFor[resource.Route](), "Schedule": reflect.TypeFor[resource.Schedule](),
		"Service": reflect.TypeFor[resource.Service](), "Settings": reflect.TypeFor[resource.Settings](), "Zone": reflect.TypeFor[resource.Zone](),
	}
	if got := slices.Sorted(maps.Keys(specs)); !slices.Equal(got, resource.Kinds()) {
		t.Fatalf("this test knows the kinds %v, the mesh %v", got, resource.Kinds())
	}
	for kind, spec := range specs {
		rows := firstCells(section(t, text, "### "+kind))
		for _, field := range yamlPaths(spec, "") {
			if !rows[field] {
				t.Errorf("configuration.md, %s: no row for %s", kind, field)
			}
		}
	}
}

func TestEveryKeyOfAnItemIsExplained(t *testing.T) {
	t.Parallel()
	var item policy.Item
	fill(reflect.ValueOf(&item).Elem())
	body, err := json.Marshal(item)
	if err != nil {
		t.Fatal(err)
	}
	var keys map[string]any
	if err := json.Unmarshal(body, &keys); err != nil {
		t.Fatal(err)
	}
	text := section(t, page(t, "configuration.md"), "#### Items of allow and deny")
	names := slices.Collect(maps.Keys(keys))
	device, ok := keys["device"].(map[string]any)
	if !ok || len(keys) < 16 {
		t.Fatalf("an item with all its keys has only %v", names)
	}
	for _, key := range slices.AppendSeq(names, maps.Keys(device)) {
		if !strings.Contains(text, "`"+key+"`") {
			t.Errorf("configuration.md, items: %s is not explained", key)
		}
	}
}

var fence = regexp.MustCompile("(?ms)^ *```.*?^ *```$") // a comment in an example begins like a heading

// section is a page from a heading to the next of its rank or above.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, rest, ok := strings.Cut(fence.ReplaceAllString(text, ""), "\n"+heading+"\n")
	if !ok {
		t.Fatalf("no heading %q", heading)
	}
	rank := strings.Count(strings.Fields(heading)[0], "#")
	end := regexp.MustCompile(fmt.Sprintf(`(?m)^#{1,%d} `, rank)).FindStringIndex(rest)
	if end == nil {
		return rest
	}
	return rest[:end[0]]
}

var code = regexp.MustCompile("`([^`]+)`")

// firstCells are the words in code that begin the rows of a section's tables.
func firstCells(text string) map[string]bool {
	out := map[string]bool{}
	for line := range strings.Lines(text) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			for _, m := range code.FindAllStringSubmatch(cells[1], -1) {
				out[m[1]] = true
			}
		}
	}
	return out
}

// yamlPaths are the leaves that YAML can set in a struct: "listen.mesh", "upstreams[].url", and the lists on the way.
func yamlPaths(t reflect.Type, at string) []string {
	switch {
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct && t.Elem() != reflect.TypeFor[policy.Item]():
		return append([]string{at}, yamlPaths(t.Elem(), at+"[]")...)
	case t.Kind() != reflect.Struct:
		return []string{at}
	}
	var out []string
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name != "" && name != "-" {
			out = append(out, yamlPaths(f.Type, strings.TrimPrefix(at+"."+name, "."))...)
		}
	}
	return out
}

// fill sets every field of a struct to something.
func fill(v reflect.Value) {
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Unix(1e9, 0)))
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case v.Kind() == reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case v.Kind() == reflect.String:
		v.SetString("x")
	case v.Kind() == reflect.Bool:
		v.SetBool(true)
	case v.CanInt():
		v.SetInt(int64(time.Second))
	}
}
