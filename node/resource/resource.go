// Package resource holds the kinds of mesh.yaml: it parses them strictly, validates each and all together, and compiles a whole
// set into one immutable Configuration, the routing table and the policies included. It does no I/O and reads no clock.
//
// What travels and is hashed is a resource's canonical JSON; YAML is only how people write it.
package resource

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// MaxSpec bounds one resource's canonical JSON, and MaxFile one mesh.yaml.
const (
	MaxSpec = 256 << 10
	MaxFile = 8 << 20
)

// Ref names a resource.
type Ref struct{ Kind, Name string }

func (r Ref) String() string { return r.Kind + "/" + r.Name }

// Spec is one resource of any kind.
type Spec interface {
	Ref() Ref
	validate() error // the resource alone; all problems at once
	setSource(file string, line int)
}

// Document is a resource as it was read: its spec, its canonical JSON, the hash of that, and where it stood.
type Document struct {
	Spec   Spec
	JSON   []byte
	Hash   [32]byte
	Source string // file:line
}

// Ref names the document's resource.
func (d Document) Ref() Ref { return d.Spec.Ref() }

// kinds makes an empty spec of each kind.
func newSpec(kind string) (Spec, error) {
	switch kind {
	case "Route":
		return &Route{}, nil
	case "IdentityProvider":
		return &IdentityProvider{}, nil
	case "Policy":
		return &Policy{}, nil
	case "Schedule":
		return &Schedule{}, nil
	case "Zone":
		return &Zone{}, nil
	case "Service":
		return &Service{}, nil
	case "Settings":
		return &Settings{}, nil
	}
	return nil, fault.New(fault.Invalid, "kind %.40q: want one of %s%s", kind, strings.Join(Kinds(), ", "), nearest(kind, Kinds()))
}

// Kinds lists the kinds of resources.
func Kinds() []string {
	return []string{"IdentityProvider", "Policy", "Route", "Schedule", "Service", "Settings", "Zone"}
}

// CanonicalKind resolves what a person types ("route", "routes", "IdentityProvider") to a kind.
func CanonicalKind(s string) (string, error) {
	for _, k := range Kinds() {
		if l := strings.ToLower(s); l == strings.ToLower(k) || l == strings.ToLower(k)+"s" || (k == "Policy" && l == "policies") {
			return k, nil
		}
	}
	_, err := newSpec(s)
	return "", err
}

// NewDocument validates a spec and encodes it.
func NewDocument(s Spec, source string) (Document, error) {
	if err := s.validate(); err != nil {
		return Document{}, fmt.Errorf("%s: %w", s.Ref(), err)
	}
	body, err := json.Marshal(s)
	if err != nil {
		return Document{}, fault.New(fault.Invalid, "%s: %w", s.Ref(), err)
	}
	if len(body) > MaxSpec {
		return Document{}, fault.New(fault.Invalid, "%s: %d bytes, at most %d", s.Ref(), len(body), MaxSpec)
	}
	return Document{Spec: s, JSON: body, Hash: HashOf(s.Ref(), body), Source: source}, nil
}

// HashOf is the hash by which a manifest names a resource: SHA-256 over kind, name and canonical JSON.
func HashOf(ref Ref, spec []byte) [32]byte {
	h := sha256.New()
	fmt.Fprintf(h, "iapmesh/resource/v1\n%s\n%s\n", ref.Kind, ref.Name)
	h.Write(spec)
	return [32]byte(h.Sum(nil))
}

// FromJSON decodes a resource from its canonical JSON, strictly, and validates it again: what the state holds is not trusted
// more than what a person wrote.
func FromJSON(ref Ref, spec []byte, source string) (Document, error) {
	if len(spec) > MaxSpec {
		return Document{}, fault.New(fault.Invalid, "%s: %d bytes, at most %d", ref, len(spec), MaxSpec)
	}
	s, err := newSpec(ref.Kind)
	if err != nil {
		return Document{}, err
	}
	dec := json.NewDecoder(strings.NewReader(string(spec)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(s); err != nil {
		return Document{}, fault.New(fault.Invalid, "%s: %w", ref, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return Document{}, fault.New(fault.Invalid, "%s: more follows after its spec", ref)
	}
	if s.Ref() != ref {
		return Document{}, fault.New(fault.Invalid, "%s: its spec says %s", ref, s.Ref())
	}
	if file, line, ok := strings.Cut(source, ":"); ok {
		n, _ := strconv.Atoi(line) // a source without a line is only less helpful
		s.setSource(file, n)
	}
	return NewDocument(s, source)
}

var nameRule = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// validHead checks what every resource begins with. The kind is part of what is hashed, so that it has one spelling.
func validHead(ref Ref, kind string) error {
	if kind != ref.Kind {
		return fault.New(fault.Invalid, "kind %.40q: want %s", kind, ref.Kind)
	}
	return validName(ref.Name)
}

func validName(name string) error {
	if !nameRule.MatchString(name) {
		return fault.New(fault.Invalid, "name %.80q: want 1 to 63 of a-z, 0-9, - and ., beginning and ending with a letter or digit", name)
	}
	return nil
}

// Duration is a time span, written as Go writes it ("30s", "12h"). Zero is unset.
type Duration time.Duration

// MarshalText writes it as Go does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads; negative spans are refused.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v < 0 {
		return fault.New(fault.Invalid, "duration %.40q: want such as 30s, 5m or 12h", b)
	}
	*d = Duration(v)
	return nil
}

// nearest suggests the known word closest to what was written, or nothing.
func nearest(got string, known []string) string {
	best, dist := "", 4
	for _, k := range known {
		if d := distance(strings.ToLower(got), strings.ToLower(k)); d < dist {
			best, dist = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// distance is Levenshtein's.
func distance(a, b string) int {
	if len(a) > 40 || len(b) > 40 {
		return 40
	}
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range len(a) {
		diag := prev[0]
		prev[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost = 1 + min(diag, prev[j], prev[j+1])
			}
			diag, prev[j+1] = prev[j+1], cost
		}
	}
	return prev[len(b)]
}

// Digest is the manifest's content hash: over the sorted references and hashes of its resources.
func Digest(hashes map[Ref][32]byte) [32]byte {
	refs := slices.SortedFunc(maps.Keys(hashes), func(a, b Ref) int { return strings.Compare(a.String(), b.String()) })
	h := sha256.New()
	h.Write([]byte("iapmesh/manifest/v1\n"))
	for _, r := range refs {
		fmt.Fprintf(h, "%s %s %x\n", r.Kind, r.Name, hashes[r])
	}
	return [32]byte(h.Sum(nil))
}
