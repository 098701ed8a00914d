package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestGuides runs the guides as they are written: every command in a block of shell, in order, against real nodes. What a reader does
// not type (starting nodes, breaking things, looking at what came of it) stands in comments that begin with "run", as lines of a
// testscript; a comment "file PATH" writes the YAML that follows it. Addresses of 10.0.0.0/8 become free ones on loopback, and
// /etc/iapmesh and /var/lib/iapmesh folders of the test.
func TestGuides(t *testing.T) {
	t.Parallel()
	runbooks, err := filepath.Glob("../../docs/runbooks/*.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var scripts []string
	for _, guide := range append(runbooks, "../../docs/keys.md") {
		text, err := os.ReadFile(guide)
		if err != nil {
			t.Fatal(err)
		}
		script, commands := scriptOf(string(text))
		if commands == 0 {
			t.Errorf("%s: has no commands to run", guide)
		}
		name := filepath.Join(dir, strings.TrimSuffix(filepath.Base(guide), ".md")+".txtar")
		if err := os.WriteFile(name, []byte(script), 0o600); err != nil {
			t.Fatal(err)
		}
		scripts = append(scripts, name)
	}
	params := scriptParams(t)
	params.Dir, params.Files = "", scripts
	testscript.Run(t, params)
}

var (
	guidePart    = regexp.MustCompile("(?ms)^<!-- run\n(.*?)^-->$|^```sh\n(.*?)^```$|^<!-- file (\\S+) -->\n```yaml\n(.*?)^```$")
	guideAddress = regexp.MustCompile(`\b10\.\d+\.\d+\.\d+:\d+\b`)
)

// scriptOf turns a guide into a testscript.
func scriptOf(guide string) (script string, commands int) {
	var lines []string
	files := ""
	for _, part := range guidePart.FindAllStringSubmatch(guide, -1) {
		hidden, shell := part[1], strings.ReplaceAll(part[2], "\\\n", " ")
		lines = append(lines, hidden)
		if path := part[3]; path != "" {
			name := fmt.Sprint("file", len(lines))
			lines = append(lines, "expand "+name+" "+path)
			files += "-- " + name + " --\n" + part[4]
		}
		for line := range strings.Lines(shell) {
			line = strings.TrimSpace(line)
			if line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			commands++
			lines = append(lines, "exec sh -ec '"+strings.ReplaceAll(line, "'", "''")+"'")
		}
	}
	script = strings.Join(lines, "\n") + "\n" + files
	addresses := guideAddress.FindAllString(script, -1)
	slices.Sort(addresses)
	var names []string
	for i, address := range slices.Compact(addresses) {
		names = append(names, fmt.Sprint("ADDRESS", i))
		script = regexp.MustCompile(regexp.QuoteMeta(address)+`\b`).ReplaceAllLiteralString(script, "$"+names[i])
	}
	for _, folder := range []string{"/etc/iapmesh", "/var/lib/iapmesh"} {
		script = strings.ReplaceAll(script, folder, "$WORK"+folder)
	}
	head := "mkdir $WORK/etc/iapmesh $WORK/var/lib/iapmesh\n"
	if len(names) > 0 {
		head += "addresses " + strings.Join(names, " ") + "\n"
	}
	return head + script, commands
}

func TestScriptOf(t *testing.T) {
	t.Parallel()
	script, commands := scriptOf("# A guide\n\n```sh\niapmesh key inspect --file /etc/iapmesh/a.key   # offline\niapmesh x 'y' \\\n  --join 10.0.0.1:7443\n```\n\n```text\niapmesh not\n```\n\n" +
		"<!-- run\nstdout 'z'\n-->\n\n<!-- a remark -->\n\n<!-- file /etc/iapmesh/node.yaml -->\n```yaml\nlisten: {mesh: 10.0.0.1:7443}\n```\n")
	want := "mkdir $WORK/etc/iapmesh $WORK/var/lib/iapmesh\naddresses ADDRESS0\n\nexec sh -ec 'iapmesh key inspect --file $WORK/etc/iapmesh/a.key   # offline'\n" +
		"exec sh -ec 'iapmesh x ''y''    --join $ADDRESS0'\nstdout 'z'\n\n\nexpand file5 $WORK/etc/iapmesh/node.yaml\n-- file5 --\nlisten: {mesh: $ADDRESS0}\n"
	if script != want || commands != 2 {
		t.Errorf("%d commands:\n%s\nwant\n%s", commands, script, want)
	}
}
