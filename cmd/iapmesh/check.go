package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node"
)

func newCheckCommand(c *cli) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "check --config FILE", Short: "Check a node.yaml, and say all that is wrong with it",
		Example: "  iapmesh check --config /etc/iapmesh/node.yaml",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "config"); err != nil {
				return err
			}
			problems, config, err := c.check(file)
			if err != nil {
				return err
			}
			if len(problems) == 0 {
				if problems = c.checkSeal(cmd.Context(), file, config); len(problems) == 0 {
					fmt.Fprintf(c.stdout, "%s: OK\n", file)
					return nil
				}
			}
			for _, p := range problems {
				fmt.Fprintln(c.stderr, p)
			}
			return fmt.Errorf("%s: %d problems", file, len(problems))
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "node.yaml `FILE`; - for standard input (required)")
	return cmd
}

// check returns every problem of a node.yaml with its place, and what it says. The error says that there is nothing to check.
func (c *cli) check(name string) ([]string, node.Config, error) {
	config := node.DefaultConfig()
	data, err := c.readInput(name, node.MaxConfig)
	if err != nil {
		return nil, config, err
	}
	tree, err := parser.ParseBytes(data, 0)
	if err != nil {
		return []string{name + ": " + yaml.FormatError(err, false, true)}, config, nil
	}
	var problems []problem
	if len(tree.Docs) > 1 {
		problems = append(problems, problem{line: tree.Docs[1].GetToken().Position.Line, text: "a second document: node.yaml is one"})
	}
	var body ast.Node
	if len(tree.Docs) > 0 {
		body = tree.Docs[0].Body
	}
	problems = append(problems, unknownFields(body, reflect.TypeFor[node.Config](), "")...)
	if body != nil {
		if err := yaml.NodeToValue(body, &config); err != nil { // not strict: what is unknown is listed above
			problems = append(problems, problem{text: yaml.FormatError(err, false, true)})
			return format(name, problems), config, nil // of values that were not read, nothing more can be said
		}
	}
	found := flatten(config.Validate())
	if len(found) == 0 {
		found = flatten(config.Check())
	}
	for _, err := range found {
		problems = append(problems, problem{line: lineOf(body, err.Error()), text: err.Error()})
	}
	return format(name, problems), config, nil
}

// checkSeal says whether the data directory opens: to standard output, and what keeps the node from starting as a problem. A directory
// that is not sealed yet, or is not for this user to read, is none: the file may be for another machine.
func (c *cli) checkSeal(ctx context.Context, file string, config node.Config) (problems []string) {
	wraps, err := c.sealWraps(ctx, config.DataDir, config.Seal)
	switch {
	case fault.Is(err, fault.NotFound), fault.Is(err, fault.Denied):
		fmt.Fprintf(c.stdout, "%s: seal: not tried: %v\n", file, err)
		return nil
	case err != nil:
		return []string{fmt.Sprintf("%s: seal: %v", file, err)}
	}
	opens := false
	for _, w := range wraps {
		opens = opens || w.Opens
	}
	for _, w := range wraps {
		switch {
		case w.Opens:
			fmt.Fprintf(c.stdout, "%s: seal: %s opens %s\n", file, w.Keeper, config.DataDir)
		case opens:
			fmt.Fprintf(c.stdout, "%s: seal: %s does not open %s now: %s\n", file, w.Keeper, config.DataDir, w.Error)
		default:
			problems = append(problems, fmt.Sprintf("%s: seal: %s does not open %s now: %s", file, w.Keeper, config.DataDir, w.Error))
		}
	}
	return problems
}

type problem struct {
	line int // 0: of no one line
	text string
}

func format(name string, problems []problem) []string {
	slices.SortStableFunc(problems, func(a, b problem) int { return a.line - b.line })
	var out []string
	for _, p := range problems {
		if p.line > 0 {
			out = append(out, fmt.Sprintf("%s:%d: %s", name, p.line, p.text))
		} else {
			out = append(out, fmt.Sprintf("%s: %s", name, p.text))
		}
	}
	return out
}

// unknownFields lists the keys of a mapping that a struct has no field for.
func unknownFields(n ast.Node, t reflect.Type, path string) []problem {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var out []problem
	switch n := n.(type) {
	case *ast.SequenceNode:
		if t.Kind() == reflect.Slice {
			for i, v := range n.Values {
				out = append(out, unknownFields(v, t.Elem(), fmt.Sprintf("%s[%d]", path, i))...)
			}
		}
	case *ast.MappingNode:
		if t.Kind() != reflect.Struct {
			return nil
		}
		fields := map[string]reflect.Type{}
		for f := range t.Fields() {
			if name, _, _ := strings.Cut(f.Tag.Get("yaml"), ","); name != "" {
				fields[name] = f.Type
			}
		}
		for _, v := range n.Values {
			key := v.Key.GetToken()
			at := strings.TrimPrefix(path+"."+key.Value, ".")
			if field, ok := fields[key.Value]; ok {
				out = append(out, unknownFields(v.Value, field, at)...)
			} else {
				out = append(out, problem{line: key.Position.Line, text: fmt.Sprintf("%.80s: there is no such field", at)})
			}
		}
	}
	return out
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		var out []error
		for _, e := range joined.Unwrap() {
			out = append(out, flatten(e)...)
		}
		return out
	}
	return []error{err}
}

// lineOf finds the line of the field that a problem begins with; the nearest that is there, if it is left out.
func lineOf(body ast.Node, text string) int {
	field, _, _ := strings.Cut(text, " ")
	line := 0
	for part := range strings.SplitSeq(strings.TrimSuffix(field, ":"), ".") {
		part, index, _ := strings.Cut(part, "[")
		m, ok := body.(*ast.MappingNode)
		if !ok {
			return line
		}
		i := slices.IndexFunc(m.Values, func(v *ast.MappingValueNode) bool { return v.Key.GetToken().Value == part })
		if i < 0 {
			return line
		}
		line, body = m.Values[i].Key.GetToken().Position.Line, m.Values[i].Value
		if list, ok := body.(*ast.SequenceNode); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(index, "]"))
			if err != nil || n >= len(list.Values) {
				return line
			}
			line, body = list.Values[n].GetToken().Position.Line, list.Values[n]
		}
	}
	return line
}

// readInput reads a file that an argument names, - for standard input, up to a size.
func (c *cli) readInput(name string, limit int) ([]byte, error) {
	r := c.stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fault.New(fault.Invalid, "read %s: %w", name, err)
		}
		defer f.Close()
		r = f
	}
	data, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, fault.New(fault.Invalid, "read %s: %w", name, err)
	}
	if len(data) > limit {
		return nil, fault.New(fault.Invalid, "%s: more than %d bytes", name, limit)
	}
	return data, nil
}
