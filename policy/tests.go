package policy

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/identity"
)

// Tests are a policy's own tests: requests with the answer that each must get, and invariants that no request may break.
// They decode strictly from YAML, see [ParseTests].
type Tests struct {
	Users map[string]TestUser
	Tests []Test
	Never []Never
}

// TestUser is a user of tests. Subject defaults to the provider of the first group and the user's name: okta/ana.
type TestUser struct {
	Subject   string
	Email     string
	Groups    []string
	AMR       []string
	Suspended bool
}

// Test is one request and its expected answer.
type Test struct {
	Name    string
	Request TestRequest
	Expect  string   // allow or deny
	By      []string // exactly the policies that determine it; empty: not checked
	Line    int
}

// TestRequest is a request as a test writes it. What is left out has a fixed value, so that a test never depends on when or
// where it runs: noon UTC of Monday 2026-01-05, 192.0.2.1, the first region, fresh keyring and directory, a sign-in just now.
type TestRequest struct {
	User         string // a key of Users; empty: Anonymous must be true
	Anonymous    bool
	Method, URL  string // GET: https://grafana/api/x; the URL's host is the route, unless Route says otherwise
	TCP          string // tcp: ROUTE:PORT
	Route        string
	SNI          string
	IP           netip.Addr
	At           time.Time // RFC 3339, or "2026-11-24T09:00 Europe/Paris"
	Region       string
	Country      string
	MTLS         bool
	Device       *Device
	AuthAge      time.Duration
	KeyringAge   time.Duration
	DirectoryAge time.Duration
}

// Never is an invariant: no request that fits it may be allowed. It is tried on the requests of all tests, and on every user
// and nobody at every route with a read, a write and a connection, each bent to fit: a search, not a proof.
type Never struct {
	User         string
	Anonymous    bool
	Route        string
	Methods      []string // read, write or verbs
	Path         string
	IP           netip.Addr
	Region       string
	Country      string
	AuthAge      time.Duration // ">24h": any older; the next older age is tried
	KeyringAge   time.Duration
	DirectoryAge time.Duration
	Line         int
	Text         string // as written, for messages
}

// TestResult is the outcome of one test or invariant.
type TestResult struct {
	Name    string
	Line    int
	Pass    bool
	Problem string // what was expected, and what came; empty if Pass
	Got     Decision
}

// maxNeverRequests bounds what one invariant is tried on.
const maxNeverRequests = 20_000

// RunTests tries every test and invariant.
func (s *Set) RunTests(t Tests) []TestResult {
	var out []TestResult
	for _, test := range t.Tests {
		out = append(out, s.runTest(t, test))
	}
	var bases []Request
	if len(t.Never) > 0 {
		bases = s.neverBases(t)
	}
	for i, never := range t.Never {
		out = append(out, s.runNever(t, fmt.Sprintf("never[%d] %s", i, never.Text), never, bases))
	}
	return out
}

func (s *Set) runTest(t Tests, test Test) TestResult {
	res := TestResult{Name: test.Name, Line: test.Line}
	r, err := s.testRequest(t, test.Request)
	if err != nil {
		res.Problem = err.Error()
		return res
	}
	res.Got = s.Decide(&r)
	got := "deny"
	if res.Got.Allow {
		got = "allow"
	}
	switch {
	case got != test.Expect:
		res.Problem = fmt.Sprintf("want %s, got %s: %s", test.Expect, got, res.Got.Reason)
	case len(test.By) > 0 && !slices.Equal(sorted(test.By), res.Got.Policies):
		res.Problem = fmt.Sprintf("want %s by %s, got it by [%s]: %s", test.Expect, test.By, strings.Join(res.Got.Policies, " "), res.Got.Reason)
	default:
		res.Pass = true
	}
	return res
}

// testRequest fills in what a test leaves out.
func (s *Set) testRequest(t Tests, in TestRequest) (Request, error) {
	r := Request{
		Anonymous: in.Anonymous, Route: in.Route, Method: in.Method, SNI: in.SNI, SourceIP: in.IP, Region: in.Region, Country: in.Country,
		MTLS: in.MTLS, Device: in.Device, Now: in.At, KeyringAge: in.KeyringAge, DirectoryAge: in.DirectoryAge,
	}
	if !r.SourceIP.IsValid() {
		r.SourceIP = netip.AddrFrom4([4]byte{192, 0, 2, 1})
	}
	if r.Now.IsZero() {
		r.Now = time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)
	}
	if r.Region == "" {
		r.Region = s.firstRegion()
	}
	if in.TCP != "" {
		host, port, _ := strings.Cut(in.TCP, ":")
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || host == "" {
			return r, fault.New(fault.Invalid, "tcp %.60q: want ROUTE:PORT", in.TCP)
		}
		r.TCPPort = int(n)
		if r.Route == "" {
			r.Route = host
		}
	} else {
		u, err := url.Parse(in.URL)
		if err != nil || u.Host == "" {
			return r, fault.New(fault.Invalid, "%.80q: want a URL such as https://grafana/api/x", in.URL)
		}
		r.Host, r.Path = u.Hostname(), u.Path
		if r.Path == "" {
			r.Path = "/"
		}
		if r.Route == "" {
			r.Route = r.Host
		}
	}
	if _, ok := s.routes[r.Route]; !ok {
		return r, fault.New(fault.Invalid, "no route %.60q%s", r.Route, suggest(r.Route, sortedKeys(s.routes)))
	}
	if in.Anonymous == (in.User != "") {
		return r, fault.New(fault.Invalid, "write user: NAME or anonymous: true")
	}
	return r, s.become(&r, t, in.User, in.AuthAge)
}

// become makes the request a user's; nobody's if name is empty.
func (s *Set) become(r *Request, t Tests, name string, authAge time.Duration) error {
	if name == "" {
		r.Principal, r.Anonymous, r.Suspended = identity.Identity{}, true, false
		return nil
	}
	u, ok := t.Users[name]
	if !ok {
		return fault.New(fault.Invalid, "no user %.60q%s", name, suggest(name, sortedKeys(t.Users)))
	}
	id := identity.Identity{Subject: u.Subject, Email: u.Email, Groups: u.Groups, AMR: u.AMR, AuthTime: r.Now.Add(-authAge)}
	if id.Subject == "" {
		provider := "test"
		if len(u.Groups) > 0 {
			provider, _, _ = strings.Cut(u.Groups[0], "/")
		}
		id.Subject = provider + "/" + name
	}
	if err := id.Validate(); err != nil {
		return fmt.Errorf("user %s: %w", name, err)
	}
	r.Principal, r.Anonymous, r.Suspended = id, false, u.Suspended
	return nil
}

func (s *Set) firstRegion() string {
	if regions := sortedKeys(s.regions); len(regions) > 0 {
		return regions[0]
	}
	return noRegion
}

// neverBases are the requests that invariants are tried on.
func (s *Set) neverBases(t Tests) []Request {
	var out []Request
	for _, test := range t.Tests {
		if r, err := s.testRequest(t, test.Request); err == nil {
			out = append(out, r)
		}
	}
	who := append([]string{""}, sortedKeys(t.Users)...)
	for _, name := range sortedKeys(s.routes) {
		for _, user := range who {
			for _, in := range []TestRequest{{Method: "GET", URL: "https://host.invalid/"}, {Method: "POST", URL: "https://host.invalid/"}, {TCP: "host.invalid:1"}} {
				in.User, in.Anonymous, in.Route = user, user == "", name
				if r, err := s.testRequest(t, in); err == nil {
					out = append(out, r)
				}
				if len(out) >= maxNeverRequests {
					return out
				}
			}
		}
	}
	return out
}

func (s *Set) runNever(t Tests, name string, n Never, bases []Request) TestResult {
	res := TestResult{Name: name, Line: n.Line, Pass: true}
	if n.Route != "" && s.routes[n.Route] == nil {
		return TestResult{Name: name, Line: n.Line, Problem: fmt.Sprintf("no route %.60q%s", n.Route, suggest(n.Route, sortedKeys(s.routes)))}
	}
	for _, base := range bases {
		for _, r := range n.bend(base) {
			if n.User != "" || n.Anonymous {
				if err := s.become(&r, t, n.User, n.AuthAge); err != nil {
					return TestResult{Name: name, Line: n.Line, Problem: err.Error()}
				}
			} else if n.AuthAge > 0 && !r.Anonymous {
				r.Principal.AuthTime = r.Now.Add(-n.AuthAge)
			}
			if d := s.Decide(&r); d.Allow {
				who := r.Principal.Subject
				if r.Anonymous {
					who = "nobody"
				}
				res.Pass, res.Got = false, d
				res.Problem = fmt.Sprintf("allowed for %s at route %s (%s %s): %s", who, r.Route, actionNames[actionNumber(r.Method)], r.Path, d.Reason)
				return res
			}
		}
	}
	return res
}

// bend returns the request changed to fit the invariant, once per method; nothing if it cannot fit.
func (n Never) bend(r Request) []Request {
	if n.Route != "" {
		r.Route = n.Route
	}
	if r.Method == "" && (len(n.Methods) > 0 || n.Path != "") {
		return nil
	}
	if n.Path != "" {
		r.Path = n.Path
	}
	if n.IP.IsValid() {
		r.SourceIP = n.IP
	}
	if n.Region != "" {
		r.Region = n.Region
	}
	if n.Country != "" {
		r.Country = n.Country
	}
	if n.KeyringAge > 0 {
		r.KeyringAge = n.KeyringAge
	}
	if n.DirectoryAge > 0 {
		r.DirectoryAge = n.DirectoryAge
	}
	if len(n.Methods) == 0 {
		return []Request{r}
	}
	var out []Request
	for _, m := range n.Methods {
		verbs := []string{m}
		switch m {
		case "read":
			verbs = []string{"GET", "HEAD", "OPTIONS"}
		case "write":
			verbs = []string{"POST", "PUT", "PATCH", "DELETE", "OTHER"}
		}
		for _, verb := range verbs {
			r.Method = verb
			out = append(out, r)
		}
	}
	return out
}
