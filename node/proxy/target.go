package proxy

import (
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/resource"
)

const maxPath = 8 << 10

// Forms of a path that are refused unless the route permits them, by the names of Route.AllowPaths.
const (
	formEncodedSlash = 1 << iota
	formDoubleSlash
	formSemicolon
)

// target is a request's path in the readings that an application may have of it.
type target struct {
	raw     string // as it came, without the query: what is forwarded
	path    string // decoded, parameters and empty segments folded away: what is evaluated and recorded
	literal string // with %2F and parameters kept, for an application that does not fold them; evaluated too unless empty
	forms   uint8
}

// parseTarget reads the path of a request line. Whatever two parsers could read differently is refused: what has passed means
// the same decoded once, decoded twice and cleaned, but for the forms that a route may permit.
func parseTarget(uri string) (target, error) {
	raw, _, _ := strings.Cut(uri, "?")
	switch {
	case !strings.HasPrefix(raw, "/"):
		return target{}, fault.New(fault.Invalid, "request target: want an absolute path")
	case len(raw) > maxPath:
		return target{}, fault.New(fault.Invalid, "path: %d bytes, at most %d", len(raw), maxPath)
	case strings.Contains(uri, "#"):
		return target{}, fault.New(fault.Invalid, "request target: holds a fragment")
	}
	plain := true
	for i := range len(raw) {
		switch c := raw[i]; {
		case c <= ' ' || c >= 0x7f || c == '\\':
			return target{}, fault.New(fault.Invalid, "path: holds the byte %#02x", c)
		case c == '%' || c == ';' || c == '/' && i > 0 && raw[i-1] == '/' || c == '.' && i > 0 && raw[i-1] == '/':
			plain = false
		}
	}
	if plain {
		return target{raw: raw, path: raw}, nil
	}
	if strings.HasPrefix(raw, "//") {
		// Forwarded by url.URL.RawPath (see setURL), which takes valid encodings alone.
		if path, err := url.PathUnescape(raw); err != nil || (&url.URL{Path: path, RawPath: raw}).EscapedPath() != raw {
			return target{}, fault.New(fault.Invalid, "path: not encoded as RFC 3986 wants it")
		}
	}
	return fold(raw)
}

// fold decodes once, refuses what could be decoded or cleaned again, and takes both readings.
func fold(raw string) (target, error) {
	t := target{raw: raw}
	folded, literal := make([]byte, 0, len(raw)), make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c != '%' {
			folded, literal = append(folded, c), append(literal, c)
			continue
		}
		if i+2 >= len(raw) || !hexDigit(raw[i+1]) || !hexDigit(raw[i+2]) {
			return target{}, fault.New(fault.Invalid, "path: holds a %% that encodes nothing")
		}
		c = unhex(raw[i+1])<<4 | unhex(raw[i+2])
		i += 2
		switch {
		case c < ' ' || c == 0x7f || c == '\\' || c == '.':
			return target{}, fault.New(fault.Invalid, "path: holds the byte %#02x, encoded", c)
		case c == '/':
			t.forms |= formEncodedSlash
			literal = append(literal, "%2F"...)
		default:
			literal = append(literal, c)
		}
		folded = append(folded, c)
	}
	if !utf8.Valid(folded) {
		return target{}, fault.New(fault.Invalid, "path: is no UTF-8")
	}
	for i := 0; i+2 < len(folded); i++ {
		if folded[i] == '%' && hexDigit(folded[i+1]) && hexDigit(folded[i+2]) {
			return target{}, fault.New(fault.Invalid, "path: is encoded twice")
		}
	}
	var forms uint8
	var err error
	if t.path, forms, err = segments(string(folded), true); err != nil {
		return target{}, err
	}
	t.forms |= forms
	if t.forms == 0 {
		return t, nil
	}
	if t.literal, forms, err = segments(string(literal), false); err != nil {
		return target{}, err
	}
	t.forms |= forms
	if t.literal == t.path {
		t.literal = ""
	}
	return t, nil
}

// segments drops empty segments and, if it cuts, parameters; it refuses dot segments, with parameters too.
func segments(path string, cut bool) (string, uint8, error) {
	var forms uint8
	var b strings.Builder
	b.Grow(len(path))
	rest := path[1:]
	for {
		whole, after, more := strings.Cut(rest, "/")
		name, _, parameters := strings.Cut(whole, ";")
		switch {
		case name == "." || name == "..":
			return "", 0, fault.New(fault.Invalid, "path: holds a dot segment")
		case parameters && name == "":
			return "", 0, fault.New(fault.Invalid, "path: holds a segment of parameters alone")
		case whole == "" && more:
			forms |= formDoubleSlash
			rest = after
			continue
		}
		if parameters {
			forms |= formSemicolon
		}
		if !cut {
			name = whole
		}
		b.WriteByte('/')
		b.WriteString(name)
		if !more {
			return b.String(), forms, nil
		}
		rest = after
	}
}

// refusedBy says which form of the path the route does not permit; empty if all are.
func (t target) refusedBy(r *resource.Route) string {
	switch {
	case t.forms == 0:
		return ""
	case t.forms&formEncodedSlash != 0 && !r.Permits("encoded_slash"):
		return "an encoded slash"
	case t.forms&formDoubleSlash != 0 && !r.Permits("double_slash"):
		return "an empty segment"
	case t.forms&formSemicolon != 0 && !r.Permits("semicolon"):
		return "a semicolon"
	}
	return ""
}

// hostOf returns the host that a request is for, in lower case, without port and final dot.
func hostOf(r *http.Request) (string, error) {
	for _, h := range r.Header["Host"] { // HTTP/2 keeps a Host beside :authority
		if !strings.EqualFold(h, r.Host) {
			return "", fault.New(fault.Invalid, "Host and :authority differ")
		}
	}
	host := r.Host
	if strings.HasPrefix(host, "[") {
		address, _, ok := strings.Cut(host[1:], "]")
		if _, err := netip.ParseAddr(address); !ok || err != nil {
			return "", fault.New(fault.Invalid, "Host: not a host name")
		}
		return strings.ToLower(address), nil
	}
	host, port, _ := strings.Cut(host, ":")
	if len(port) > 5 || strings.Trim(port, "0123456789") != "" {
		return "", fault.New(fault.Invalid, "Host: not a port")
	}
	host = strings.TrimSuffix(host, ".")
	if host == "" || len(host) > 253 {
		return "", fault.New(fault.Invalid, "Host: is required")
	}
	for i := range len(host) {
		if c := host[i]; !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_') {
			return "", fault.New(fault.Invalid, "Host: not a host name")
		}
	}
	return strings.ToLower(host), nil
}

func hexDigit(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	}
	return c - '0'
}
