package resource

import (
	"errors"
	"fmt"
	"strings"

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
	if d := depth(data); d > 64 {
		return nil, fault.New(fault.Invalid, "%s: nested %d deep, at most 64", file, d)
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

// depth estimates how deeply flow collections and indents nest, before a recursive parser sees the text.
func depth(data []byte) int {
	deepest, flow := 0, 0
	for _, b := range data {
		switch b {
		case '[', '{', '(':
			flow++
			deepest = max(deepest, flow)
		case ']', '}', ')':
			flow = max(0, flow-1)
		case '\n':
			// Flow collections may span lines; block nesting costs an indent each and is bounded by MaxFile's lines.
		}
	}
	return deepest
}
