package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// print writes a message as -o says; table writes it for people.
func (c *cli) print(m proto.Message, table func(*table)) error {
	if c.output == "table" {
		t := c.newTable()
		table(t)
		return t.flush(c.stdout)
	}
	data, err := messageJSON(m)
	if err != nil {
		return err
	}
	return c.printJSON(data)
}

// printValue is print for what is no message of the API.
func (c *cli) printValue(v any, table func(*table)) error {
	if c.output == "table" {
		return c.print(nil, table)
	}
	data, err := json.Marshal(v)
	if err != nil {
		return fault.New(fault.Internal, "encode output: %w", err)
	}
	return c.printJSON(data)
}

// printLine writes one of a series: JSON on one line, or a YAML document.
func (c *cli) printLine(m proto.Message) error {
	data, err := messageJSON(m)
	if err != nil {
		return err
	}
	return c.printJSONLine(data)
}

func (c *cli) printJSONLine(data []byte) error {
	if c.output == "yaml" {
		if _, err := fmt.Fprintln(c.stdout, "---"); err != nil {
			return err
		}
		return c.printJSON(data)
	}
	_, err := c.stdout.Write(append(data, '\n'))
	return err
}

func (c *cli) printJSON(data []byte) error {
	var out bytes.Buffer
	if c.output == "yaml" {
		text, err := yamlOf(data)
		if err != nil {
			return err
		}
		out.Write(text)
	} else {
		if err := json.Indent(&out, data, "", "  "); err != nil {
			return fault.New(fault.Internal, "encode output: %w", err)
		}
		out.WriteByte('\n')
	}
	_, err := c.stdout.Write(out.Bytes())
	return err
}

// messageJSON is a message as scripts see it: names as in the .proto file, what is unset left out, no white space.
func messageJSON(m proto.Message) ([]byte, error) {
	data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fault.New(fault.Internal, "encode output: %w", err)
	}
	var out bytes.Buffer
	if err := json.Compact(&out, data); err != nil { // protojson varies its white space on purpose
		return nil, fault.New(fault.Internal, "encode output: %w", err)
	}
	return out.Bytes(), nil
}

// yamlOf turns JSON into YAML; the order of fields stays.
func yamlOf(data []byte) ([]byte, error) {
	var v any
	if err := yaml.UnmarshalWithOptions(data, &v, yaml.UseOrderedMap()); err != nil {
		return nil, fault.New(fault.Internal, "encode output: %w", err)
	}
	out, err := yaml.MarshalWithOptions(v, yaml.UseLiteralStyleIfMultiline(true), yaml.IndentSequence(true))
	if err != nil {
		return nil, fault.New(fault.Internal, "encode output: %w", err)
	}
	return out, nil
}

// Styles of text on a terminal.
type style string

const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
	cyan   style = "36"
)

// painter colours text where colour is on.
func painter(on bool) func(style, string) string {
	return func(s style, text string) string {
		if !on || s == plain || text == "" {
			return text
		}
		return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
	}
}

// table is rows of aligned columns, with lines between them.
type table struct {
	paint func(style, string) string
	rows  [][]cell // a row of one cell and no column is a line
}

type cell struct {
	text  string
	style style
	line  bool
}

func (c *cli) newTable() *table { return &table{paint: painter(terminal(c.stdout))} }

// line adds a line as it is; it begins a new block of columns.
func (t *table) line(format string, args ...any) {
	t.rows = append(t.rows, []cell{{text: fmt.Sprintf(format, args...), line: true}})
}

func (t *table) head(columns ...string) {
	row := make([]cell, len(columns))
	for i, c := range columns {
		row[i] = cell{text: c, style: dim}
	}
	t.rows = append(t.rows, row)
}

// row adds a row: strings, or cells where one is to be coloured.
func (t *table) row(columns ...any) {
	row := make([]cell, len(columns))
	for i, c := range columns {
		switch c := c.(type) {
		case cell:
			row[i] = c
		default:
			row[i] = cell{text: fmt.Sprint(c)}
		}
		if row[i].text == "" {
			row[i].text = "-"
		}
	}
	t.rows = append(t.rows, row)
}

func (t *table) flush(w io.Writer) error {
	var widths []int
	for _, row := range t.rows {
		for i, c := range row {
			if c.line {
				break
			}
			for len(widths) <= i {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	var out strings.Builder
	for _, row := range t.rows {
		for i, c := range row {
			out.WriteString(t.paint(c.style, c.text))
			if i < len(row)-1 {
				out.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
			}
		}
		out.WriteByte('\n')
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func revisionText(r *iapmeshv1.Revision) string {
	if r == nil {
		return "-"
	}
	return revision.Revision{Epoch: r.Epoch, Index: r.Index}.String()
}

// enumText is an enum's value as the command line writes it: ROLE_CONTROL is control, SIGNING_KEY_STATE_VERIFY_ONLY verify-only.
func enumText(value fmt.Stringer, prefix string) string {
	text := strings.ToLower(strings.TrimPrefix(value.String(), prefix))
	if text == "unspecified" {
		return "-"
	}
	return strings.ReplaceAll(text, "_", "-")
}

func rolesText(roles []iapmeshv1.Role) string {
	var words []string
	for _, r := range roles {
		words = append(words, enumText(r, "ROLE_"))
	}
	return strings.Join(words, ",")
}

// stampText is a time for people: how long ago, or until when.
func stampText(s *timestamppb.Timestamp, now time.Time) string {
	if s == nil {
		return "-"
	}
	if d := now.Sub(s.AsTime()); d >= 0 {
		return spanText(d) + " ago"
	}
	return "in " + spanText(s.AsTime().Sub(now))
}

// spanText is a span in its largest unit.
func spanText(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}
