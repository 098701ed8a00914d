package policy

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Item is one line of the short form: who (exactly one of the first seven keys in an allow, at most one in a deny) and under
// which circumstances. Keys intersect; the values inside a key are alternatives. It decodes strictly from YAML and JSON,
// whatever the options of the decoder, and encodes to what it decodes from.
type Item struct {
	Groups        []string // groups: <idp>/<group>
	Users         []string // users: <idp>/<subject>
	Emails        []string // emails: ana@example.com, compared without ASCII case
	Domains       []string // domains: example.com, the e-mail's whole domain
	Services      []string // services
	Authenticated bool     // authenticated: true; anyone who proved who they are
	Anyone        bool     // anyone: true; no sign-in

	Methods      []string      // methods: read, write, or verbs; "read" alone is legal
	Paths        []string      // paths: /x/ is /x and all below, =/x is exactly /x
	IPs          []string      // ips: addresses and prefixes
	Countries    []string      // countries: ISO 3166-1 alpha-2
	CountriesNot []string      // countries_not
	Device       *DeviceRule   // device
	MFA          time.Duration // mfa: the second factor is at most this old; allow only
	Hours        []string      // hours: names of schedules
	Until        time.Time     // until: RFC 3339, seconds optional; the item ends then

	Line int // where the YAML had it; 0: unknown. Not content: neither encoded nor hashed
}

// DeviceRule is the short form's device key. Minimums and maximums are legal in allow only.
type DeviceRule struct {
	Managed   *bool         // managed
	Encrypted *bool         // encrypted
	Posture   int64         // posture: at least
	OS        []string      // os: one of
	OSVersion int64         // os_version: at least
	MaxAge    time.Duration // max_age: reported at most this long ago
}

// UnmarshalYAML decodes a mapping node; errors carry line and column of the document.
func (it *Item) UnmarshalYAML(n ast.Node) error {
	doc, err := fromYAML(n, maxItemDepth)
	if err != nil {
		return err
	}
	return decodeItem(doc, it)
}

// UnmarshalJSON decodes an object; errors carry line and column inside it.
func (it *Item) UnmarshalJSON(b []byte) error {
	doc, err := fromJSON(b)
	if err != nil {
		return err
	}
	if err := decodeItem(doc, it); err != nil {
		return err
	}
	it.Line = 0 // a place inside a JSON value is none in a file
	return nil
}

// MarshalJSON encodes the canonical form: keys that hold nothing are left out, times are UTC.
func (it Item) MarshalJSON() ([]byte, error) { return json.Marshal(it.document()) }

// MarshalYAML encodes the same form.
func (it Item) MarshalYAML() (any, error) { return it.document(), nil }

// itemDocument is an Item as it is written.
type itemDocument struct {
	Groups        []string        `json:"groups,omitempty" yaml:"groups,omitempty"`
	Users         []string        `json:"users,omitempty" yaml:"users,omitempty"`
	Emails        []string        `json:"emails,omitempty" yaml:"emails,omitempty"`
	Domains       []string        `json:"domains,omitempty" yaml:"domains,omitempty"`
	Services      []string        `json:"services,omitempty" yaml:"services,omitempty"`
	Authenticated bool            `json:"authenticated,omitempty" yaml:"authenticated,omitempty"`
	Anyone        bool            `json:"anyone,omitempty" yaml:"anyone,omitempty"`
	Methods       []string        `json:"methods,omitempty" yaml:"methods,omitempty"`
	Paths         []string        `json:"paths,omitempty" yaml:"paths,omitempty"`
	IPs           []string        `json:"ips,omitempty" yaml:"ips,omitempty"`
	Countries     []string        `json:"countries,omitempty" yaml:"countries,omitempty"`
	CountriesNot  []string        `json:"countries_not,omitempty" yaml:"countries_not,omitempty"`
	Device        *deviceDocument `json:"device,omitempty" yaml:"device,omitempty"`
	MFA           string          `json:"mfa,omitempty" yaml:"mfa,omitempty"`
	Hours         []string        `json:"hours,omitempty" yaml:"hours,omitempty"`
	Until         string          `json:"until,omitempty" yaml:"until,omitempty"`
}

type deviceDocument struct {
	Managed   *bool    `json:"managed,omitempty" yaml:"managed,omitempty"`
	Encrypted *bool    `json:"encrypted,omitempty" yaml:"encrypted,omitempty"`
	Posture   int64    `json:"posture,omitempty" yaml:"posture,omitempty"`
	OS        []string `json:"os,omitempty" yaml:"os,omitempty"`
	OSVersion int64    `json:"os_version,omitempty" yaml:"os_version,omitempty"`
	MaxAge    string   `json:"max_age,omitempty" yaml:"max_age,omitempty"`
}

func (it Item) document() itemDocument {
	d := itemDocument{
		Groups: it.Groups, Users: it.Users, Emails: it.Emails, Domains: it.Domains, Services: it.Services,
		Authenticated: it.Authenticated, Anyone: it.Anyone,
		Methods: it.Methods, Paths: it.Paths, IPs: it.IPs, Countries: it.Countries, CountriesNot: it.CountriesNot,
		MFA: formatDuration(it.MFA), Hours: it.Hours,
	}
	if !it.Until.IsZero() {
		d.Until = it.Until.UTC().Format(time.RFC3339Nano)
	}
	if r := it.Device; r != nil {
		d.Device = &deviceDocument{Managed: r.Managed, Encrypted: r.Encrypted, Posture: r.Posture, OS: r.OS, OSVersion: r.OSVersion, MaxAge: formatDuration(r.MaxAge)}
	}
	return d
}

// formatDuration writes 1h, not 1h0m0s; zero is empty.
func formatDuration(d time.Duration) string {
	if d == 0 {
		return ""
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// parseDuration reads Go's durations and whole days: 90s, 1h30m, 7d. It must be positive and of whole milliseconds, which is
// as fine as Cedar's durations are.
func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, dayErr := strconv.ParseUint(days, 10, 16)
		d, err = time.Duration(n)*24*time.Hour, dayErr
	}
	switch {
	case err != nil:
		return 0, fault.New(fault.Invalid, "%.40q is no duration: write 90s, 1h30m or 7d", s)
	case d <= 0 || d%time.Millisecond != 0:
		return 0, fault.New(fault.Invalid, "duration %.40q: must be positive, in whole milliseconds", s)
	}
	return d, nil
}

// parseInstant reads RFC 3339; seconds may be left out, the zone may not.
func parseInstant(s string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04Z07:00"} {
		if t, err := time.Parse(layout, s); err == nil {
			if y := t.Year(); y < 1970 || y > 9999 {
				break
			}
			return t.UTC(), nil
		}
	}
	return time.Time{}, fault.New(fault.Invalid, "%.40q is no time: write 2026-12-31T00:00Z", s)
}
