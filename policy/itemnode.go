package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"

	"github.com/goccy/go-yaml/ast"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// fromYAML turns goccy's tree into ours, at most depth levels deep. Aliases and merge keys are refused: an item must be readable where it stands.
func fromYAML(n ast.Node, depth int) (*node, error) {
	if n == nil || n.GetToken() == nil {
		return &node{kind: kindNull}, nil
	}
	pos := n.GetToken().Position
	out := &node{kind: kindOther}
	if pos != nil {
		out.line, out.col = pos.Line, pos.Column
	}
	if depth < 0 {
		return nil, out.errorf("nested too deep")
	}
	switch v := n.(type) {
	case *ast.AnchorNode:
		return fromYAML(v.Value, depth)
	case *ast.StringNode:
		out.kind, out.text = kindString, v.Value
	case *ast.LiteralNode:
		out.kind, out.text = kindString, v.Value.Value
	case *ast.BoolNode:
		out.kind, out.boolean = kindBool, v.Value
	case *ast.NullNode:
		out.kind = kindNull
	case *ast.IntegerNode:
		switch i := v.Value.(type) {
		case int64:
			out.kind, out.integer = kindInt, i
		case uint64:
			if i < 1<<63 {
				out.kind, out.integer = kindInt, int64(i)
			}
		}
	case *ast.SequenceNode:
		out.kind = kindList
		for _, item := range v.Values {
			child, err := fromYAML(item, depth-1)
			if err != nil {
				return nil, err
			}
			out.items = append(out.items, child)
		}
	case *ast.MappingValueNode:
		return out, out.addYAML(v, depth)
	case *ast.MappingNode:
		out.kind = kindMapping
		for _, pair := range v.Values {
			if err := out.addYAML(pair, depth); err != nil {
				return nil, err
			}
		}
		if len(v.Values) > 0 { // a block mapping's own token is its first colon
			out.line, out.col = out.entries[0].key.line, out.entries[0].key.col
		}
	case *ast.AliasNode, *ast.MergeKeyNode:
		return nil, out.errorf("aliases and merge keys are not allowed in an item")
	}
	return out, nil
}

func (n *node) addYAML(pair *ast.MappingValueNode, depth int) error {
	key, err := fromYAML(pair.Key, depth-1)
	if err != nil {
		return err
	}
	value, err := fromYAML(pair.Value, depth-1)
	if err != nil {
		return err
	}
	if value.line == 0 {
		value.line, value.col = key.line, key.col
	}
	n.kind = kindMapping
	n.entries = append(n.entries, entry{key, value})
	if len(n.entries) == 1 {
		n.line, n.col = key.line, key.col
	}
	return nil
}

// fromJSON parses one JSON value of at most maxText bytes.
func fromJSON(b []byte) (*node, error) {
	if len(b) > maxText {
		return nil, fault.New(fault.Invalid, "item: %d bytes, at most %d", len(b), maxText)
	}
	p := jsonParser{src: b, dec: json.NewDecoder(bytes.NewReader(b))}
	p.dec.UseNumber()
	n, err := p.value(0)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err)
	}
	if _, err := p.dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fault.New(fault.Invalid, "item: more than one JSON value")
	}
	return n, nil
}

type jsonParser struct {
	src []byte
	dec *json.Decoder
}

// place is where the next token begins.
func (p jsonParser) place() (line, col int) {
	at := int(p.dec.InputOffset())
	for at < len(p.src) && bytes.IndexByte([]byte(" \t\r\n,:"), p.src[at]) >= 0 {
		at++
	}
	before := p.src[:at]
	return 1 + bytes.Count(before, []byte{'\n'}), at - bytes.LastIndexByte(before, '\n')
}

func (p jsonParser) value(depth int) (*node, error) {
	out := &node{}
	out.line, out.col = p.place()
	if depth > maxItemDepth {
		return nil, out.errorf("nested too deep")
	}
	tok, err := p.dec.Token()
	if err != nil {
		return nil, out.errorf("%v", err)
	}
	switch v := tok.(type) {
	case nil:
		out.kind = kindNull
	case string:
		out.kind, out.text = kindString, v
	case bool:
		out.kind, out.boolean = kindBool, v
	case json.Number:
		out.kind = kindOther
		if i, err := strconv.ParseInt(v.String(), 10, 64); err == nil {
			out.kind, out.integer = kindInt, i
		}
	case json.Delim:
		out.kind = kindList
		if v == '{' {
			out.kind = kindMapping
		}
		for p.dec.More() {
			child, err := p.value(depth + 1)
			if err != nil {
				return nil, err
			}
			if out.kind == kindList {
				out.items = append(out.items, child)
				continue
			}
			value, err := p.value(depth + 1)
			if err != nil {
				return nil, err
			}
			out.entries = append(out.entries, entry{child, value})
		}
		if _, err := p.dec.Token(); err != nil {
			return nil, out.errorf("%v", err)
		}
	}
	return out, nil
}
