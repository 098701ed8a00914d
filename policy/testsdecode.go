package policy

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	maxTestsText  = 1 << 20
	maxTestsDepth = 6 // tests → test → request → device → field, and one to spare
)

// ParseTests reads one YAML document of tests, of at most 1 MiB.
func ParseTests(b []byte) (Tests, error) {
	if len(b) > maxTestsText {
		return Tests{}, fault.New(fault.Invalid, "tests: %d bytes, at most %d", len(b), maxTestsText)
	}
	depth := 0
	for _, c := range b { // the parser recurses; brackets in strings count too
		switch c {
		case '[', '{':
			depth++
		case ']', '}':
			depth--
		}
		if depth > maxNesting {
			return Tests{}, fault.New(fault.Invalid, "tests: nested deeper than %d", maxNesting)
		}
	}
	var t Tests
	if err := yaml.NewDecoder(bytes.NewReader(b)).Decode(&t); err != nil {
		return Tests{}, fault.New(fault.Invalid, "tests: %w", err)
	}
	return t, nil
}

// UnmarshalYAML decodes a mapping node; errors carry line and column of the document.
func (t *Tests) UnmarshalYAML(n ast.Node) error {
	doc, err := fromYAML(n, maxTestsDepth)
	if err != nil {
		return err
	}
	out := Tests{}
	err = decodeMapping(doc, "tests", fields{
		"users": func(n *node) error {
			out.Users = map[string]TestUser{}
			users := fields{}
			for _, e := range n.entries {
				users[e.key.text] = func(n *node) error {
					u, err := decodeTestUser(n)
					out.Users[e.key.text] = u
					return err
				}
			}
			return decodeMapping(n, "users", users)
		},
		"tests": eachOf(&out.Tests, decodeTest),
		"never": eachOf(&out.Never, decodeNever),
	})
	if err != nil {
		return fault.Wrap(fault.Invalid, err)
	}
	*t = out
	return nil
}

func decodeTestUser(n *node) (TestUser, error) {
	var u TestUser
	err := decodeMapping(n, "user", fields{
		"subject":   text(&u.Subject),
		"email":     text(&u.Email),
		"groups":    stringList(&u.Groups, false),
		"amr":       stringList(&u.AMR, false),
		"suspended": onlyTrue(&u.Suspended),
	})
	return u, err
}

func decodeTest(n *node) (Test, error) {
	t := Test{Line: n.line}
	err := decodeMapping(n, "test", fields{
		"name":    text(&t.Name),
		"request": func(n *node) (err error) { t.Request, err = decodeTestRequest(n); return err },
		"expect":  text(&t.Expect),
		"by":      stringList(&t.By, false),
	})
	switch {
	case err != nil:
		return t, err
	case t.Name == "":
		return t, n.errorf("test: no name")
	case t.Expect != "allow" && t.Expect != "deny":
		return t, n.errorf("test %q: expect: allow or expect: deny", t.Name)
	case t.Request.Method == "" && t.Request.TCP == "":
		return t, n.errorf("test %q: request: what? Write GET: https://ROUTE/path or tcp: ROUTE:PORT", t.Name)
	}
	return t, nil
}

func decodeTestRequest(n *node) (TestRequest, error) {
	var r TestRequest
	known := fields{
		"user":          text(&r.User),
		"anonymous":     onlyTrue(&r.Anonymous),
		"tcp":           text(&r.TCP),
		"route":         text(&r.Route),
		"sni":           text(&r.SNI),
		"ip":            scalar(&r.IP, netip.ParseAddr),
		"at":            scalar(&r.At, parseTestTime),
		"region":        text(&r.Region),
		"country":       text(&r.Country),
		"mtls":          onlyTrue(&r.MTLS),
		"device":        func(n *node) (err error) { r.Device, err = decodeTestDevice(n); return err },
		"auth_age":      scalar(&r.AuthAge, parseDuration),
		"keyring_age":   scalar(&r.KeyringAge, parseDuration),
		"directory_age": scalar(&r.DirectoryAge, parseDuration),
	}
	for _, verb := range slices.Concat(actionNames[:7], otherMethods[:]) {
		known[verb] = func(n *node) error {
			if r.Method != "" {
				return n.errorf("%s and %s: one a request", r.Method, verb)
			}
			r.Method = verb
			return text(&r.URL)(n)
		}
	}
	if err := decodeMapping(n, "request", known); err != nil {
		return r, err
	}
	if r.Method != "" && r.TCP != "" {
		return r, n.errorf("%s and tcp: one a request", r.Method)
	}
	return r, nil
}

func decodeTestDevice(n *node) (*Device, error) {
	var managed, encrypted *bool
	d := &Device{}
	err := decodeMapping(n, "device", fields{
		"managed":    boolean(&managed),
		"encrypted":  boolean(&encrypted),
		"posture":    positive(&d.Posture),
		"os":         text(&d.OS),
		"os_version": positive(&d.OSVersion),
		"age":        scalar(&d.Age, parseDuration),
	})
	d.Managed, d.Encrypted = managed != nil && *managed, encrypted != nil && *encrypted
	return d, err
}

func decodeNever(n *node) (Never, error) {
	v := Never{Line: n.line}
	allow := false
	err := decodeMapping(n, "never", fields{
		"allow":         onlyTrue(&allow),
		"user":          text(&v.User),
		"anonymous":     onlyTrue(&v.Anonymous),
		"route":         text(&v.Route),
		"methods":       stringList(&v.Methods, true),
		"path":          text(&v.Path),
		"ip":            scalar(&v.IP, netip.ParseAddr),
		"region":        text(&v.Region),
		"country":       text(&v.Country),
		"auth_age":      scalar(&v.AuthAge, parseOlder),
		"keyring_age":   scalar(&v.KeyringAge, parseOlder),
		"directory_age": scalar(&v.DirectoryAge, parseOlder),
	})
	for _, m := range v.Methods {
		if known := append([]string{"read", "write"}, actionNames[:7]...); err == nil && !slices.Contains(known, m) && !slices.Contains(otherMethods[:], m) {
			err = n.errorf("never: method %.40q is not known%s", m, suggest(m, known))
		}
	}
	var words []string
	for _, e := range n.entries {
		if e.value.kind == kindString && e.key.text != "allow" {
			words = append(words, e.key.text+" "+e.value.text)
		}
	}
	v.Text = strings.Join(words, ", ")
	if err == nil && !allow {
		err = n.errorf("never: say allow: true, what it is that may never be")
	}
	if err == nil && v.Anonymous && v.User != "" {
		err = n.errorf("never: anonymous or a user, not both")
	}
	if err == nil && len(n.entries) == 1 {
		err = n.errorf("never: no condition: it would forbid everything")
	}
	return v, err
}

// parseOlder reads ">24h" as the shortest duration that is longer: Cedar counts milliseconds.
func parseOlder(s string) (time.Duration, error) {
	limit, ok := strings.CutPrefix(s, ">")
	if !ok {
		return 0, fault.New(fault.Invalid, "%.40q: write >24h", s)
	}
	d, err := parseDuration(strings.TrimSpace(limit))
	return d + time.Millisecond, err
}

// parseTestTime reads RFC 3339, or a wall-clock time and a zone: 2026-11-24T09:00 Europe/Paris.
func parseTestTime(s string) (time.Time, error) {
	wall, zone, ok := strings.Cut(s, " ")
	if !ok {
		return parseInstant(s)
	}
	loc, err := time.LoadLocation(zone)
	if err != nil || zone == "Local" {
		return time.Time{}, fault.New(fault.Invalid, "%.60q: time zone is not known", s)
	}
	for _, layout := range []string{"2006-01-02T15:04", "2006-01-02T15:04:05"} {
		if t, err := time.ParseInLocation(layout, wall, loc); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fault.New(fault.Invalid, "%.60q is no time: write 2026-11-24T09:00 Europe/Paris", s)
}

func text(out *string) func(*node) error {
	return scalar(out, func(s string) (string, error) {
		if s == "" {
			return "", fault.New(fault.Invalid, "empty string")
		}
		return s, nil
	})
}

func eachOf[T any](out *[]T, decode func(*node) (T, error)) func(*node) error {
	return func(n *node) error {
		if n.kind != kindList {
			return n.errorf("want a list, not %s", n.kind)
		}
		for i, item := range n.items {
			v, err := decode(item)
			if err != nil {
				return fmt.Errorf("[%d]: %w", i, err)
			}
			*out = append(*out, v)
		}
		return nil
	}
}
