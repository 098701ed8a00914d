package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// kind of a node, in words for messages.
type kind string

const (
	kindString  kind = "a string"
	kindBool    kind = "true or false"
	kindInt     kind = "a whole number"
	kindNull    kind = "nothing"
	kindList    kind = "a list"
	kindMapping kind = "a mapping"
	kindOther   kind = "something else"
)

// node is a decoded YAML or JSON value with its place, so that one strict decoder serves both.
type node struct {
	kind      kind
	text      string
	boolean   bool
	integer   int64
	items     []*node
	entries   []entry
	line, col int
}

type entry struct{ key, value *node }

func (n *node) errorf(format string, args ...any) error {
	return fault.New(fault.Invalid, "line %d, column %d: %s", n.line, n.col, fmt.Sprintf(format, args...))
}

// maxItemDepth bounds the nesting of an item's document: the deepest legal one is item → device → os → name.
const maxItemDepth = 4

// fields maps each legal key to what takes its value.
type fields map[string]func(value *node) error

// decodeMapping hands each value to its field. All problems come at once.
func decodeMapping(n *node, what string, known fields) error {
	if n.kind != kindMapping {
		return n.errorf("%s: want a mapping, not %s", what, n.kind)
	}
	var problems []error
	seen := map[string]bool{}
	for _, e := range n.entries {
		key := e.key.text
		take, ok := known[key]
		switch {
		case e.key.kind != kindString:
			problems = append(problems, e.key.errorf("%s: a key must be a string", what))
		case !ok:
			problems = append(problems, e.key.errorf("%s: unknown key %.60q%s", what, key, suggest(key, sortedKeys(known))))
		case seen[key]:
			problems = append(problems, e.key.errorf("%s: key %q is there twice", what, key))
		default:
			seen[key] = true
			if err := take(e.value); err != nil {
				problems = append(problems, fmt.Errorf("%w (key %q)", err, key))
			}
		}
	}
	return errors.Join(problems...)
}

func decodeItem(n *node, out *Item) error {
	it := Item{Line: n.line}
	err := decodeMapping(n, "item", fields{
		"groups":        stringList(&it.Groups, false),
		"users":         stringList(&it.Users, false),
		"emails":        stringList(&it.Emails, false),
		"domains":       stringList(&it.Domains, false),
		"services":      stringList(&it.Services, false),
		"authenticated": onlyTrue(&it.Authenticated),
		"anyone":        onlyTrue(&it.Anyone),
		"methods":       stringList(&it.Methods, true),
		"paths":         stringList(&it.Paths, false),
		"ips":           stringList(&it.IPs, false),
		"countries":     stringList(&it.Countries, false),
		"countries_not": stringList(&it.CountriesNot, false),
		"device": func(n *node) error {
			it.Device = &DeviceRule{}
			return decodeDevice(n, it.Device)
		},
		"mfa":   scalar(&it.MFA, parseDuration),
		"hours": stringList(&it.Hours, true),
		"until": scalar(&it.Until, parseInstant),
	})
	if err != nil {
		return fault.Wrap(fault.Invalid, err)
	}
	*out = it
	return nil
}

func decodeDevice(n *node, r *DeviceRule) error {
	if n.kind == kindMapping && len(n.entries) == 0 {
		return n.errorf("an empty mapping says nothing: leave the key out")
	}
	return decodeMapping(n, "device", fields{
		"managed":    boolean(&r.Managed),
		"encrypted":  boolean(&r.Encrypted),
		"posture":    positive(&r.Posture),
		"os":         stringList(&r.OS, true),
		"os_version": positive(&r.OSVersion),
		"max_age":    scalar(&r.MaxAge, parseDuration),
	})
}

// stringList takes a list of strings or, where single is legal, one string. An empty list is an error: it would read as
// "nobody" to one and as "no condition" to another.
func stringList(out *[]string, single bool) func(*node) error {
	return func(n *node) error {
		if n.kind == kindString && single {
			n = &node{kind: kindList, items: []*node{n}, line: n.line, col: n.col}
		}
		if n.kind != kindList {
			return n.errorf("want a list of strings, not %s", n.kind)
		}
		if len(n.items) == 0 {
			return n.errorf("an empty list says nothing: leave the key out")
		}
		list := make([]string, 0, len(n.items))
		for _, v := range n.items {
			switch {
			case v.kind != kindString:
				return v.errorf("want a string, not %s: put it in quotes", v.kind)
			case v.text == "":
				return v.errorf("empty string")
			case slices.Contains(list, v.text):
				return v.errorf("%.60q is there twice", v.text)
			}
			list = append(list, v.text)
		}
		*out = list
		return nil
	}
}

func onlyTrue(out *bool) func(*node) error {
	return func(n *node) error {
		if n.kind != kindBool || !n.boolean {
			return n.errorf("only true is legal: leave the key out otherwise")
		}
		*out = true
		return nil
	}
}

func boolean(out **bool) func(*node) error {
	return func(n *node) error {
		if n.kind != kindBool {
			return n.errorf("want true or false, not %s", n.kind)
		}
		*out = &n.boolean
		return nil
	}
}

func positive(out *int64) func(*node) error {
	return func(n *node) error {
		if n.kind != kindInt || n.integer <= 0 {
			return n.errorf("want a whole number above zero")
		}
		*out = n.integer
		return nil
	}
}

func scalar[T any](out *T, parse func(string) (T, error)) func(*node) error {
	return func(n *node) error {
		if n.kind != kindString {
			return n.errorf("want a string, not %s", n.kind)
		}
		v, err := parse(n.text)
		if err != nil {
			return n.errorf("%v", err)
		}
		*out = v
		return nil
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// suggest names the nearest known word or, where none is near, the few there are.
func suggest(word string, known []string) string {
	best, distance := "", (len(word)+1)/2+1 // at most half of it wrong
	if len(word) <= 64 {
		for _, k := range known {
			if d := editDistance(word, k); d < distance {
				best, distance = k, d
			}
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf(": did you mean %q?", best)
	case len(known) > 0 && len(known) <= 20:
		return ": known are " + strings.Join(known, ", ")
	}
	return ""
}

// editDistance is Levenshtein's, by bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
