package docs_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	wholeName  = regexp.MustCompile(`"(iapmesh_[a-z0-9_]+)"`)
	oneSystem  = regexp.MustCompile(`Subsystem: "([a-z_]+)"`)
	partedName = regexp.MustCompile(`Subsystem: "([a-z_]+)", Name: "([a-z_]+)"`)
	helperCall = regexp.MustCompile(`(?:counter|gauge|histogram|gaugeFunc)\((?:"([a-z]+)", )?"([a-z_]+)",`)
	mentioned  = regexp.MustCompile(`\biapmesh_[a-z0-9_]+`)
)

// metricNames are those that the sources of a node make.
func metricNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), "_") || len(d.Name()) > 2 && d.Name()[0] == '.' || d.Name() == "etcdstore"): // not in a node yet
			return fs.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text := string(data)
		for _, m := range wholeName.FindAllStringSubmatch(text, -1) {
			names[m[1]] = true
		}
		if !strings.Contains(text, `Namespace: "iapmesh"`) {
			return nil
		}
		for _, m := range partedName.FindAllStringSubmatch(text, -1) {
			names["iapmesh_"+m[1]+"_"+m[2]] = true
		}
		system := ""
		if m := oneSystem.FindStringSubmatch(text); m != nil {
			system = m[1]
		}
		for _, m := range helperCall.FindAllStringSubmatch(text, -1) {
			if m[1] == "" {
				m[1] = system
			}
			names["iapmesh_"+m[1]+"_"+m[2]] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestMetricsAreExplainedAndNoOthersNamed(t *testing.T) {
	t.Parallel()
	names := metricNames(t)
	if len(names) < 60 {
		t.Fatalf("only %d metrics found: do the patterns still fit?", len(names))
	}
	operating := page(t, "operating.md")
	rows := firstCells(section(t, operating, "## Metrics"))
	for name := range names {
		if !rows[name] {
			t.Errorf("operating.md: no row for %s", name)
		}
	}
	dashboard := page(t, "../deploy/grafana/iapmesh.json")
	if !json.Valid([]byte(dashboard)) {
		t.Error("deploy/grafana/iapmesh.json is no JSON")
	}
	for file, text := range map[string]string{"operating.md": operating, "iapmesh.json": dashboard} {
		for _, name := range mentioned.FindAllString(text, -1) {
			base := name
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				base = strings.TrimSuffix(base, suffix)
			}
			if !names[name] && !names[base] {
				t.Errorf("%s names %s, which no node has", file, name)
			}
		}
	}
}
