package iapmesh_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const maxLines = 500

// source is one parsed .go file.
type source struct {
	path, dir string
	lines     int
	generated bool
	test      bool
	file      *ast.File
	fset      *token.FileSet
}

// tree is the module's packages by directory, nested modules left out.
type tree map[string][]source

// rule is one habit; check returns its findings, ready to print.
type rule struct {
	name  string
	check func(tree) []string
}

var rules = []rule{
	{"imports", checkImports},
	{"package names", checkNames},
	{"package comments", checkComments},
	{"file length", checkLength},
	{"no init", checkInit},
	{"no sleep", checkSleep},
}

// readTree parses every .go file, whatever its build tags.
func readTree(fsys fs.FS) (tree, error) {
	found := tree{}
	err := fs.WalkDir(fsys, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return enter(fsys, name)
		}
		dir := path.Dir(name)
		if path.Ext(name) != ".go" {
			return nil
		}
		src, err := readSource(fsys, name)
		if err != nil {
			return err
		}
		found[dir] = append(found[dir], src)
		return nil
	})
	return found, err
}

// enter returns SkipDir for what the go tool does not take for a package of this module.
func enter(fsys fs.FS, dir string) error {
	base := path.Base(dir)
	if dir == "." {
		return nil
	}
	if base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
		return fs.SkipDir
	}
	if _, err := fs.Stat(fsys, path.Join(dir, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

func readSource(fsys fs.FS, name string) (source, error) {
	content, err := fs.ReadFile(fsys, name)
	if err != nil {
		return source{}, err
	}
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, content, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return source{}, err
	}
	return source{
		path:      name,
		dir:       path.Dir(name),
		lines:     bytes.Count(content, []byte("\n")),
		generated: ast.IsGenerated(file),
		test:      strings.HasSuffix(name, "_test.go"),
		file:      file,
		fset:      fset,
	}, nil
}

// all yields the files in a stable order.
func (t tree) all(yield func(source) bool) {
	for _, dir := range slices.Sorted(maps.Keys(t)) {
		for _, src := range t[dir] {
			if !yield(src) {
				return
			}
		}
	}
}

func (s source) at(pos token.Pos) string {
	return fmt.Sprintf("%s:%d", s.path, s.fset.Position(pos).Line)
}

func checkImports(t tree) []string {
	var findings []string
	for _, dir := range slices.Sorted(maps.Keys(t)) {
		row, ok := mayImport[dir]
		if !ok {
			findings = append(findings, dir+": has no row in the table of arch_test.go")
			continue
		}
		for _, src := range t[dir] {
			allowed := slices.Concat(row, anyFrom)
			if src.test {
				allowed = slices.Concat(allowed, testsFrom, below(dir), []string{dir})
			}
			for _, imp := range src.file.Imports {
				target, ours := ownPackage(imp)
				if ours && !matches(allowed, target) {
					findings = append(findings, fmt.Sprintf("%s: %s may not import %s by the table of arch_test.go", src.at(imp.Pos()), dir, target))
				}
			}
		}
	}
	return findings
}

// ownPackage is the import's path within this module.
func ownPackage(imp *ast.ImportSpec) (string, bool) {
	name, err := strconv.Unquote(imp.Path.Value)
	if err != nil {
		return "", false
	}
	if name == module {
		return ".", true
	}
	return strings.CutPrefix(name, module+"/")
}

// below lists all that dir reaches by the table.
func below(dir string) []string {
	reached := map[string]bool{}
	var visit func(string)
	visit = func(name string) {
		if reached[name] {
			return
		}
		reached[name] = true
		for _, next := range mayImport[name] {
			visit(next)
		}
	}
	visit(dir)
	return slices.Sorted(maps.Keys(reached))
}

func matches(allowed []string, target string) bool {
	return slices.ContainsFunc(allowed, func(pattern string) bool {
		if root, ok := strings.CutSuffix(pattern, "/..."); ok {
			return target == root || strings.HasPrefix(target, root+"/")
		}
		return target == pattern
	})
}

func checkNames(t tree) []string {
	var findings []string
	for _, dir := range slices.Sorted(maps.Keys(t)) {
		for element := range strings.SplitSeq(dir, "/") {
			switch element {
			case "util", "utils", "common", "helper", "helpers", "misc":
				findings = append(findings, fmt.Sprintf("%s: %q says nothing of a package's job", dir, element))
			}
		}
	}
	return findings
}

// checkComments asks for a package comment outside the tests, or inside where there is nothing else. A package that is
// generated as a whole is explained in what it is generated from.
func checkComments(t tree) []string {
	var findings []string
	for _, dir := range slices.Sorted(maps.Keys(t)) {
		files := t[dir]
		if code := slices.DeleteFunc(slices.Clone(files), func(s source) bool { return s.test }); len(code) > 0 {
			files = code
		}
		if !slices.ContainsFunc(files, func(s source) bool { return !s.generated }) {
			continue
		}
		if !slices.ContainsFunc(files, func(s source) bool { return strings.TrimSpace(s.file.Doc.Text()) != "" }) {
			findings = append(findings, dir+": no file has a package comment (its one job, its invariants, what it leaves to others)")
		}
	}
	return findings
}

func checkLength(t tree) []string {
	var findings []string
	for src := range t.all {
		if !src.generated && src.lines > maxLines {
			findings = append(findings, fmt.Sprintf("%s: %d lines, more than %d: split it, one concept a file", src.path, src.lines, maxLines))
		}
	}
	return findings
}

func checkInit(t tree) []string {
	var findings []string
	for src := range t.all {
		for _, decl := range src.file.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if ok && fn.Recv == nil && fn.Name.Name == "init" && !src.generated {
				findings = append(findings, src.at(fn.Pos())+": func init runs before main can decide anything; use a constructor")
			}
		}
	}
	return findings
}

// checkSleep lets time.Sleep pass only in a test function that itself uses testing/synctest, where it takes no time.
func checkSleep(t tree) []string {
	var findings []string
	for src := range t.all {
		for _, decl := range src.file.Decls {
			if src.test && len(uses(decl, importName(src.file, "testing/synctest"), "Test", "Wait")) > 0 {
				continue
			}
			for _, pos := range uses(decl, importName(src.file, "time"), "Sleep") {
				findings = append(findings, src.at(pos)+": time.Sleep outside testing/synctest; wait on a channel or poll a condition with a deadline")
			}
		}
	}
	return findings
}

// importName is what the file calls the package, or "" if it does not import it.
func importName(file *ast.File, pkg string) string {
	for _, imp := range file.Imports {
		if imp.Path.Value != strconv.Quote(pkg) {
			continue
		}
		if imp.Name != nil {
			return imp.Name.Name
		}
		return path.Base(pkg)
	}
	return ""
}

// uses finds pkg.name, for any of names, below node.
func uses(node ast.Node, pkg string, names ...string) []token.Pos {
	var found []token.Pos
	ast.Inspect(node, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok && slices.Contains(names, sel.Sel.Name) {
			if x, ok := sel.X.(*ast.Ident); ok && pkg != "" && x.Name == pkg {
				found = append(found, sel.Pos())
			}
		}
		return true
	})
	return found
}

// TestRulesFind plants one violation at a time: a rule that finds nothing would otherwise look like a clean tree.
func TestRulesFind(t *testing.T) {
	t.Parallel()
	const doc = "// Package p has one job.\n"
	long := doc + "package p\n" + strings.Repeat("\n", maxLines)
	tests := map[string]struct {
		rule, file, content string
		want                int
	}{
		"upward import":            {"imports", "keyring/a.go", doc + `package p; import _ "` + module + `/node"`, 1},
		"downward import":          {"imports", "keyring/a.go", doc + `package p; import _ "` + module + `/internal/fault"`, 0},
		"revision anywhere":        {"imports", "policy/a.go", doc + `package p; import _ "` + module + `/internal/revision"`, 0},
		"subtree":                  {"imports", "cmd/iapmesh/a.go", doc + `package p; import _ "` + module + `/internal/dev/idp"`, 0},
		"test reaches below":       {"imports", "node/admin/a_test.go", doc + `package p; import _ "` + module + `/keyring/seal"`, 0},
		"test reaches above":       {"imports", "keyring/a_test.go", doc + `package p; import _ "` + module + `/cluster/gossip"`, 1},
		"code uses test harness":   {"imports", "node/admin/a.go", doc + `package p; import _ "` + module + `/node/nodetest"`, 1},
		"package without row":      {"imports", "stray/a.go", doc + "package p", 1},
		"util":                     {"package names", "node/util/a.go", doc + "package p", 1},
		"no comment":               {"package comments", "keyring/a.go", "package p", 1},
		"generated as a whole":     {"package comments", "keyring/a.go", "// Code generated by x. DO NOT EDIT.\n\npackage p", 0},
		"too long":                 {"file length", "keyring/a.go", long, 1},
		"long test":                {"file length", "keyring/a_test.go", long, 1},
		"long but generated":       {"file length", "keyring/a.go", "// Code generated by x. DO NOT EDIT.\n\n" + long, 0},
		"init":                     {"no init", "keyring/a.go", doc + "package p\nfunc init() {}", 1},
		"method called init":       {"no init", "keyring/a.go", doc + "package p\nfunc (T) init() {}", 0},
		"sleep":                    {"no sleep", "keyring/a.go", doc + `package p; import "time"; func f() { time.Sleep(1) }`, 1},
		"sleep under another name": {"no sleep", "keyring/a.go", doc + `package p; import clock "time"; var f = clock.Sleep`, 1},
		"sleep in synctest":        {"no sleep", "keyring/a_test.go", doc + `package p; import ("testing/synctest"; "time"); func f() { synctest.Test(nil, func() { time.Sleep(1) }) }`, 0},
		"sleep beside synctest":    {"no sleep", "keyring/a_test.go", doc + `package p; import ("testing/synctest"; "time"); func f() { synctest.Wait() }; func g() { time.Sleep(1) }`, 1},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			found, err := readTree(fstest.MapFS{tc.file: {Data: []byte(tc.content)}})
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(rules, func(r rule) bool { return r.name == tc.rule })
			if got := rules[i].check(found); len(got) != tc.want {
				t.Errorf("%d findings, want %d: %q", len(got), tc.want, got)
			}
		})
	}
}
