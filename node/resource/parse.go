package resource

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Parse reads the documents of one mesh.yaml, strictly: an unknown field is an error with its line and column. It returns all
// problems at once; file is only named in them.
func Parse(file string, data []byte) ([]Document, error) {
	if len(data) > MaxFile {
		return nil, fault.New(fault.Invalid, "%s: %d bytes, at most %d", file, len(data), MaxFile)
	}
	if !utf8.Valid(data) {
		return nil, fault.New(fault.Invalid, "%s: not UTF-8", file)
	}
	if d := depth(data); d > maxDepth {
		return nil, fault.New(fault.Invalid, "%s: nested %d deep, at most %d", file, d, maxDepth)
	}
	tree, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: %s", file, yaml.FormatError(err, false, true))
	}
	var docs []Document
	var errs []error
	seen := map[Ref]string{}
	for _, d := range tree.Docs {
		if d.Body == nil || d.Body.Type() == ast.NullType || d.Body.Type() == ast.CommentType {
			continue
		}
		doc, err := parseOne(file, d.Body)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if first, twice := seen[doc.Ref()]; twice {
			errs = append(errs, fault.New(fault.Invalid, "%s: %s stands already at %s", doc.Source, doc.Ref(), first))
			continue
		}
		seen[doc.Ref()] = doc.Source
		docs = append(docs, doc)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fault.Wrap(fault.Invalid, err)
	}
	if len(docs) == 0 {
		return nil, fault.New(fault.Invalid, "%s: holds no resource", file)
	}
	return docs, nil
}

func parseOne(file string, body ast.Node) (Document, error) {
	line := body.GetToken().Position.Line
	if m, ok := body.(*ast.MappingNode); ok && len(m.Values) > 0 { // the mapping's own token is its first colon's
		line = m.Values[0].Key.GetToken().Position.Line
	}
	source := fmt.Sprintf("%s:%d", file, line)
	if err := refuseAliases(file, body); err != nil {
		return Document{}, err
	}
	var head struct {
		Kind string `yaml:"kind"`
	}
	if err := yaml.NodeToValue(body, &head); err != nil {
		return Document{}, fault.New(fault.Invalid, "%s: %s", source, yaml.FormatError(err, false, true))
	}
	if head.Kind == "" {
		return Document{}, fault.New(fault.Invalid, "%s: kind is missing: want one of %s", source, strings.Join(Kinds(), ", "))
	}
	spec, err := newSpec(head.Kind)
	if err != nil {
		return Document{}, fmt.Errorf("%s: %w", source, err)
	}
	if err := yaml.NodeToValue(body, spec, yaml.Strict()); err != nil {
		return Document{}, fault.New(fault.Invalid, "%s: %s: %s", source, head.Kind, yaml.FormatError(err, false, true))
	}
	spec.setSource(file, line)
	doc, err := NewDocument(spec, source)
	if err != nil {
		return Document{}, fmt.Errorf("%s: %w", source, err)
	}
	return doc, nil
}

// maxDepth bounds how deeply a file may nest: the parser below recurses, and a stack overflow cannot be recovered.
const maxDepth = 64

// depth estimates, without recursion and in one pass, how deeply a file nests before a recursive parser sees it: by brackets
// (those of text, too), by indentation, and by indicators that follow each other, as in "- - - x" or "!a !b x".
func depth(data []byte) int {
	deepest, flow, run := 0, 0, 0
	var indents []int // of the lines that the current one lies in
	for line := range bytes.Lines(data) {
		text := bytes.TrimLeft(line, " ")
		if first := bytes.TrimSpace(text); len(first) > 0 && first[0] != '#' {
			indent := len(line) - len(text)
			for len(indents) > 0 && indents[len(indents)-1] >= indent {
				indents = indents[:len(indents)-1]
			}
			indents = append(indents, indent)
		}
		for word := range bytes.FieldsSeq(text) {
			if word[0] == '!' || word[0] == '&' || (len(word) == 1 && (word[0] == '-' || word[0] == '?')) {
				run++
			} else {
				run = 0
			}
			deepest = max(deepest, run)
		}
		for _, b := range text {
			switch b {
			case '[', '{', '(':
				flow++
			case ']', '}', ')':
				flow = max(0, flow-1)
			}
			deepest = max(deepest, flow)
		}
		deepest = max(deepest, len(indents))
	}
	return deepest
}

// noAliases refuses anchors, aliases and merge keys: a few lines of them can stand for gigabytes, and what a reviewer reads is
// then not what applies.
type noAliases struct{ found ast.Node }

// Visit implements ast.Visitor.
func (v *noAliases) Visit(n ast.Node) ast.Visitor {
	switch n.Type() {
	case ast.AnchorType, ast.AliasType, ast.MergeKeyType:
		if v.found == nil {
			v.found = n
		}
		return nil
	}
	return v
}

func refuseAliases(file string, body ast.Node) error {
	v := &noAliases{}
	ast.Walk(v, body)
	if v.found == nil {
		return nil
	}
	at := v.found.GetToken().Position
	return fault.New(fault.Invalid, "%s:%d:%d: anchors, aliases and merge keys are not allowed: write it out", file, at.Line, at.Column)
}
