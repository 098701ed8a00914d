package policy_test

import (
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/policy"
)

// tuesday is 2026-11-24 09:00 in Paris.
var tuesday = time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)

// items decodes a short form, as a route's allow or deny would be.
func items(t testing.TB, text string) []policy.Item {
	t.Helper()
	var out []policy.Item
	if err := yaml.Unmarshal([]byte(text), &out); err != nil {
		t.Fatalf("decode %s: %v", text, err)
	}
	return out
}

// wiki is a source of one route, in a zone that lies in another, with a short form and a text.
func wiki(t testing.TB, allow, deny, cedar string) policy.Source {
	t.Helper()
	src := policy.Source{
		Routes: []policy.Route{
			{Name: "wiki", Zone: "internal", Sensitivity: 3, Regions: []string{"eu-west"}, Tags: map[string]string{"team": "docs"},
				Allow: items(t, allow), Deny: items(t, deny), File: "mesh.yaml", Line: 7},
			{Name: "other"},
		},
		Zones:     []policy.Zone{{Name: "all"}, {Name: "internal", Parents: []string{"all"}}},
		Schedules: []policy.Schedule{{Name: "office", TimeZone: "Europe/Paris", Days: []string{"mon-fri"}, From: "09:00", To: "18:00"}},
		Regions:   []string{"eu-west", "us-east"},
	}
	if cedar != "" {
		src.Policies = []policy.CedarPolicy{{Name: "text", Cedar: cedar, File: "mesh.yaml", Line: 20}}
	}
	return src
}

func compile(t testing.TB, src policy.Source) *policy.Set {
	t.Helper()
	s, err := policy.Compile(src)
	if err != nil {
		t.Fatalf("compile: %v", err)
	}
	return s
}

// anaReads is a complete request, changed by edits.
func anaReads(edits ...func(*policy.Request)) *policy.Request {
	r := &policy.Request{
		Principal: identity.Identity{Subject: "okta/ana", Email: "Ana@Example.com", Groups: []string{"okta/eng", "okta/all"}, AuthTime: tuesday.Add(-30 * time.Minute), AMR: []string{"pwd", "mfa"}},
		Route:     "wiki", Method: "GET", Host: "wiki.example.com", Path: "/api/x",
		SourceIP: netip.MustParseAddr("10.1.2.3"), Region: "eu-west", Country: "FR", Now: tuesday,
		KeyringAge: 5 * time.Minute, DirectoryAge: time.Minute,
		Device: &policy.Device{Managed: true, Encrypted: true, Posture: 80, OS: "linux", OSVersion: 6, Age: time.Minute},
	}
	for _, edit := range edits {
		edit(r)
	}
	return r
}

type edit = func(*policy.Request)

func path(p string) edit         { return func(r *policy.Request) { r.Path = p } }
func method(m string) edit       { return func(r *policy.Request) { r.Method = m } }
func email(e string) edit        { return func(r *policy.Request) { r.Principal.Email = e } }
func country(c string) edit      { return func(r *policy.Request) { r.Country = c } }
func ip(s string) edit           { return func(r *policy.Request) { r.SourceIP = netip.MustParseAddr(s) } }
func at(t time.Time) edit        { return func(r *policy.Request) { r.Now = t } }
func noDevice(r *policy.Request) { r.Device = nil }
func noMFA(r *policy.Request)    { r.Principal.AMR = []string{"pwd"} }
func tcp(r *policy.Request) {
	r.Method, r.Host, r.Path, r.TCPPort = "", "", "", 5432
}
func anonymous(r *policy.Request) {
	r.Anonymous, r.Principal = true, identity.Identity{}
}

func TestShortForm(t *testing.T) {
	t.Parallel()
	const everyone = `[{anyone: true}]`
	for name, tc := range map[string]struct {
		allow, deny string
		edit        edit
		want        bool
	}{
		"group":                                {allow: `[{groups: [okta/eng]}]`, want: true},
		"one of several groups":                {allow: `[{groups: [okta/ops, okta/eng]}]`, want: true},
		"another group":                        {allow: `[{groups: [okta/ops]}]`},
		"no items":                             {allow: `[]`},
		"user":                                 {allow: `[{users: [okta/ana]}]`, want: true},
		"one of several users":                 {allow: `[{users: [okta/bob, okta/ana]}]`, want: true},
		"another user":                         {allow: `[{users: [okta/bob]}]`},
		"e-mail without case":                  {allow: `[{emails: [ana@example.COM]}]`, want: true},
		"domain":                               {allow: `[{domains: [example.com]}]`, want: true},
		"subdomain is another domain":          {allow: `[{domains: [example.com]}]`, edit: email("ana@sub.example.com")},
		"e-mail with two @ has no domain":      {allow: `[{domains: [example.com]}]`, edit: email("ana@evil.com@example.com")},
		"e-mail with two @ is none":            {allow: `[{emails: [ana@example.com]}]`, edit: email("x@evil.com@example.com")},
		"Kelvin sign is not k":                 {allow: `[{domains: [kelvin.com]}]`, edit: email("ana@\u212Aelvin.com")},
		"authenticated":                        {allow: `[{authenticated: true}]`, want: true},
		"authenticated is not anonymous":       {allow: `[{authenticated: true}]`, edit: anonymous},
		"anyone":                               {allow: everyone, edit: anonymous, want: true},
		"read":                                 {allow: `[{anyone: true, methods: read}]`, edit: method("HEAD"), want: true},
		"read is not POST":                     {allow: `[{anyone: true, methods: read}]`, edit: method("POST")},
		"unknown method is a write":            {allow: `[{anyone: true, methods: write}]`, edit: method("BREW"), want: true},
		"lower case get is not GET":            {allow: `[{anyone: true, methods: read}]`, edit: method("get")},
		"verbs":                                {allow: `[{anyone: true, methods: [GET, POST]}]`, edit: method("POST"), want: true},
		"other verbs":                          {allow: `[{anyone: true, methods: [GET, POST]}]`, edit: method("PUT")},
		"registered verb":                      {allow: `[{anyone: true, methods: [GET, PROPFIND]}]`, edit: method("PROPFIND"), want: true},
		"verb beside a registered one":         {allow: `[{anyone: true, methods: [GET, PROPFIND]}]`, want: true},
		"not the other registered verb":        {allow: `[{anyone: true, methods: [GET, PROPFIND]}]`, edit: method("MKCOL")},
		"below":                                {allow: `[{anyone: true, paths: [/api/]}]`, want: true},
		"itself":                               {allow: `[{anyone: true, paths: [/api/]}]`, edit: path("/api"), want: true},
		"with its slash":                       {allow: `[{anyone: true, paths: [/api/]}]`, edit: path("/api/"), want: true},
		"admin is not administrator":           {allow: `[{anyone: true, paths: [/admin/]}]`, edit: path("/administrator")},
		"deny admin":                           {allow: everyone, deny: `[{paths: [/admin/]}]`, edit: path("/admin/x")},
		"deny admin leaves administrator":      {allow: everyone, deny: `[{paths: [/admin/]}]`, edit: path("/administrator"), want: true},
		"exact":                                {allow: `[{anyone: true, paths: [=/healthz]}]`, edit: path("/healthz"), want: true},
		"exact is not below":                   {allow: `[{anyone: true, paths: [=/healthz]}]`, edit: path("/healthz/x")},
		"one of several paths":                 {allow: `[{anyone: true, paths: [/a/, /b/, =/c, =/d]}]`, edit: path("/d"), want: true},
		"everything":                           {allow: `[{anyone: true, paths: [/]}]`, want: true},
		"range":                                {allow: `[{anyone: true, ips: [192.168.0.0/16, 10.0.0.0/8]}]`, want: true},
		"outside":                              {allow: `[{anyone: true, ips: [10.0.0.0/8]}]`, edit: ip("11.0.0.1")},
		"mapped address is in range":           {allow: `[{anyone: true, ips: [10.0.0.0/8]}]`, edit: ip("::ffff:10.1.2.3"), want: true},
		"mapped address cannot escape a deny":  {allow: everyone, deny: `[{ips: [10.0.0.0/8]}]`, edit: ip("::ffff:10.1.2.3")},
		"zone of an address does not matter":   {allow: everyone, deny: `[{ips: ["fe80::/10"]}]`, edit: ip("fe80::1%eth0")},
		"country":                              {allow: `[{anyone: true, countries: [FR]}]`, want: true},
		"unknown country is not allowed":       {allow: `[{anyone: true, countries: [FR]}]`, edit: country("")},
		"unknown country is denied":            {allow: everyone, deny: `[{countries: [KP]}]`, edit: country("")},
		"country that is not denied":           {allow: everyone, deny: `[{countries: [KP]}]`, want: true},
		"denied unless in":                     {allow: everyone, deny: `[{countries_not: [FR, DE]}]`, want: true},
		"denied unless in, elsewhere":          {allow: everyone, deny: `[{countries_not: [FR, DE]}]`, edit: country("US")},
		"denied unless in, unknown":            {allow: everyone, deny: `[{countries_not: [FR, DE]}]`, edit: country("fr")},
		"managed device":                       {allow: `[{anyone: true, device: {managed: true, encrypted: true, posture: 80, os: [linux], os_version: 6, max_age: 1h}}]`, want: true},
		"device below posture":                 {allow: `[{anyone: true, device: {posture: 81}}]`},
		"no device":                            {allow: `[{anyone: true, device: {managed: true}}]`, edit: noDevice},
		"unmanaged denied":                     {allow: everyone, deny: `[{device: {managed: false}}]`, want: true},
		"unmanaged denied, no device":          {allow: everyone, deny: `[{device: {managed: false}}]`, edit: noDevice},
		"fresh second factor":                  {allow: `[{anyone: true, mfa: 1h}]`, want: true},
		"stale second factor":                  {allow: `[{anyone: true, mfa: 10m}]`},
		"no second factor":                     {allow: `[{anyone: true, mfa: 1h}]`, edit: noMFA},
		"in hours":                             {allow: `[{anyone: true, hours: office}]`, want: true},
		"before hours":                         {allow: `[{anyone: true, hours: office}]`, edit: at(tuesday.Add(-time.Minute))},
		"saturday":                             {allow: `[{anyone: true, hours: office}]`, edit: at(tuesday.AddDate(0, 0, 4))},
		"before the end":                       {allow: `[{anyone: true, until: "2026-11-24T08:01Z"}]`, want: true},
		"at the end":                           {allow: `[{anyone: true, until: "2026-11-24T08:00Z"}]`},
		"keys intersect":                       {allow: `[{groups: [okta/eng], methods: write, paths: [/api/]}]`},
		"deny overrides":                       {allow: everyone, deny: `[{groups: [okta/eng]}]`},
		"deny for those without domain":        {allow: everyone, deny: `[{domains: [evil.com]}]`, edit: email("")},
		"deny of a domain spares others":       {allow: everyone, deny: `[{domains: [evil.com]}]`, want: true},
		"tcp by who":                           {allow: `[{groups: [okta/eng]}]`, edit: tcp, want: true},
		"tcp is no method":                     {allow: `[{groups: [okta/eng], methods: [read, write]}]`, edit: tcp},
		"tcp has no path":                      {allow: `[{groups: [okta/eng], paths: [/]}]`, edit: tcp},
		"services are later, and never a user": {allow: `[{services: [ci]}]`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			deny := tc.deny
			if deny == "" {
				deny = "[]"
			}
			r := anaReads()
			if tc.edit != nil {
				tc.edit(r)
			}
			got := compile(t, wiki(t, tc.allow, deny, "")).Decide(r)
			if got.Allow != tc.want || len(got.Errors) > 0 || strings.HasPrefix(got.Reason, "refused") {
				t.Errorf("got %+v, want allow %v", got, tc.want)
			}
		})
	}
}

func TestReasons(t *testing.T) {
	t.Parallel()
	src := wiki(t, `[{groups: [okta/all]}, {groups: [okta/eng]}]`, `[{methods: write}]`, `
@id("zone") permit (principal in Group::"okta/eng", action, resource in Zone::"all");
@id("anywhere") permit (principal, action == Action::"PUT", resource is Route) when { resource.sensitivity > 9 };
@id("overflow") forbid (principal, action == Action::"DELETE", resource) when { resource.sensitivity * 9223372036854775807 > 0 };
@id("bad-permit") permit (principal, action in Action::"read", resource) when { resource.sensitivity * 9223372036854775807 > 0 };`)
	src.Zones[0].Deny = items(t, `[{paths: [/secret/]}]`)
	s := compile(t, src)
	const overflow = `: integer overflow`
	for name, tc := range map[string]struct {
		edit edit
		want policy.Decision
	}{
		"allowed, and a permit that errs is only noted": {func(*policy.Request) {}, policy.Decision{Allow: true, Policies: []string{"wiki#0", "wiki#1", "zone"}, Reason: "allowed by wiki#0"}},
		"forbidden":              {method("PUT"), policy.Decision{Policies: []string{"wiki!0"}, Reason: "forbidden by wiki!0"}},
		"forbidden by its zone":  {path("/secret/x"), policy.Decision{Policies: []string{"zone:all!0"}, Reason: "forbidden by zone:all!0"}},
		"a forbid that errs":     {method("DELETE"), policy.Decision{Policies: []string{"overflow", "wiki!0"}, Reason: "policy error in overflow"}},
		"a route outside of all": {func(r *policy.Request) { r.Route = "other" }, policy.Decision{Reason: "default deny"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := s.Decide(anaReads(tc.edit))
			for _, e := range got.Errors {
				if !strings.Contains(e, "overflow") {
					t.Errorf("error %q, want %q", e, overflow)
				}
			}
			if name == "a forbid that errs" && len(got.Errors) != 1 {
				t.Errorf("errors %q, want one", got.Errors)
			}
			got.Errors = nil
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestAForbidThatErrsOverridesAPermit(t *testing.T) {
	t.Parallel()
	s := compile(t, wiki(t, `[{anyone: true}]`, `[]`,
		`@id("overflow") forbid (principal, action, resource) when { resource.sensitivity * 9223372036854775807 > 0 };`))
	got := s.Decide(anaReads())
	if got.Allow || !cmp.Equal(got.Policies, []string{"overflow"}) || len(got.Errors) != 1 {
		t.Errorf("got %+v", got)
	}
}

func TestIncompleteRequestsAreRefused(t *testing.T) {
	t.Parallel()
	s := compile(t, wiki(t, `[{anyone: true}]`, `[]`, ""))
	for name, edit := range map[string]edit{
		"unknown route":             func(r *policy.Request) { r.Route = "wikis" },
		"no route":                  func(r *policy.Request) { r.Route = "" },
		"no subject":                func(r *policy.Request) { r.Principal.Subject = "" },
		"subject without provider":  func(r *policy.Request) { r.Principal.Subject = "ana" },
		"group of another provider": func(r *policy.Request) { r.Principal.Groups = []string{"evil/eng"} },
		"anonymous with a subject":  func(r *policy.Request) { r.Anonymous = true },
		"suspended":                 func(r *policy.Request) { r.Suspended = true },
		"no time":                   func(r *policy.Request) { r.Now = time.Time{} },
		"no address":                func(r *policy.Request) { r.SourceIP = netip.Addr{} },
		"no region":                 func(r *policy.Request) { r.Region = "" },
		"unknown region":            func(r *policy.Request) { r.Region = "mars" },
		"no method":                 method(""),
		"method and port":           func(r *policy.Request) { r.TCPPort = 1 },
		"port out of range":         func(r *policy.Request) { tcp(r); r.TCPPort = 65536 },
		"no host":                   func(r *policy.Request) { r.Host = "" },
		"no path":                   path(""),
		"relative path":             path("api"),
		"dot segments":              path("/public/../admin"),
		"empty segment":             path("//admin"),
		"backslash":                 path(`/public\admin`),
		"too many segments":         path(strings.Repeat("/a", 1000)),
	} {
		got := s.Decide(anaReads(edit))
		if got.Allow || !strings.HasPrefix(got.Reason, "refused: ") {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	if got := (*policy.Set)(nil).Decide(anaReads()); got.Allow {
		t.Errorf("no set: got %+v", got)
	}
	if got := s.Decide(nil); got.Allow {
		t.Errorf("no request: got %+v", got)
	}
	if got := s.Decide(anaReads()); !got.Allow {
		t.Errorf("a complete request: got %+v", got)
	}
}

func TestDecideIsSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	s := compile(t, wiki(t, `[{groups: [okta/eng], hours: office, device: {managed: true}}]`, `[{countries_not: [FR]}]`, ""))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				if d := s.Decide(anaReads()); !d.Allow {
					t.Errorf("got %+v", d)
					return
				}
			}
		})
	}
	wg.Wait()
}
