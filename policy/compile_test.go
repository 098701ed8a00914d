package policy_test

import (
	"strings"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/policy"
)

const anywhere = `permit (principal, action, resource)`

func TestCompileRefuses(t *testing.T) {
	t.Parallel()
	text := func(cedar string) func(*policy.Source) {
		return func(s *policy.Source) {
			s.Policies = []policy.CedarPolicy{{Name: "text", Cedar: cedar, File: "mesh.yaml", Line: 20}}
		}
	}
	allow := func(it policy.Item) func(*policy.Source) {
		return func(s *policy.Source) { s.Routes[0].Allow = []policy.Item{it} }
	}
	deny := func(it policy.Item) func(*policy.Source) {
		return func(s *policy.Source) { s.Routes[0].Deny = []policy.Item{it} }
	}
	managed := true
	for name, tc := range map[string]struct {
		edit func(*policy.Source)
		want []string // all must be in the message
	}{
		"parse error":           {text("@id(\"a\")\npermit (principal, action, resource) wen { true };"), []string{"mesh.yaml:20: policy text", "wen"}},
		"no id":                 {text(anywhere + ";"), []string{"mesh.yaml:20:1", "needs an id"}},
		"same id in one text":   {text(`@id("a") ` + anywhere + ";\n" + `@id("a") ` + anywhere + ";"), []string{"mesh.yaml:21:1", `id "a" is taken: mesh.yaml:20:1`}},
		"id of a short form":    {text(`@id("wiki#0") ` + anywhere + ";"), []string{`id "wiki#0" is taken: mesh.yaml:1`}},
		"no policy":             {text("// nothing"), []string{"holds no policy"}},
		"unknown attribute":     {text(`@id("a") ` + anywhere + ` when { context.session.contry == "FR" };`), []string{"contry", `did you mean "country"?`}},
		"optional attribute":    {text(`@id("a") ` + anywhere + ` when { context.session.country == "FR" };`), []string{"optional attribute"}},
		"unknown entity type":   {text(`@id("a") permit (principal is Usr, action, resource);`), []string{"unrecognized entity type `Usr`", `did you mean "User"?`}},
		"unknown action":        {text(`@id("a") permit (principal, action == Action::"get", resource);`), []string{`Action::"get"`}},
		"type error":            {text(`@id("a") ` + anywhere + ` when { context.session.mtls == "yes" };`), []string{"a: "}},
		"http context in tcp":   {text(`@id("a") ` + anywhere + ` when { context.http.path == "/" };`), []string{"http"}},
		"unknown route":         {text(`@id("a") permit (principal, action, resource == Route::"wikki");`), []string{`no route "wikki"`, `did you mean "wiki"?`}},
		"unknown zone":          {text(`@id("a") permit (principal, action, resource in Zone::"internl");`), []string{`no zone "internl"`, `did you mean "internal"?`}},
		"unknown zone within":   {text(`@id("a") ` + anywhere + ` when { resource in Zone::"internl" };`), []string{`no zone "internl"`}},
		"unknown region":        {text(`@id("a") ` + anywhere + ` when { context.session.region == Region::"eu-wst" };`), []string{`no region "eu-wst"`, `did you mean "eu-west"?`}},
		"unknown anonymous":     {text(`@id("a") permit (principal == Anonymous::"nobody", action, resource);`), []string{`no anonymous "nobody"`}},
		"unknown schedule":      {text(`@id("a") ` + anywhere + ` when { context.time.active.contains("ofice") };`), []string{`no schedule "ofice"`, `did you mean "office"?`}},
		"group sans provider":   {text(`@id("a") permit (principal in Group::"eng", action, resource);`), []string{`group "eng"`, "okta/eng"}},
		"user by e-mail":        {text(`@id("a") ` + anywhere + ` when { principal == User::"ana@example.com" };`), []string{"emails"}},
		"constant condition":    {text(`@id("a") ` + anywhere + ` when { 1 < 2 };`), []string{"depends on nothing"}},
		"like without star":     {text(`@id("a") ` + anywhere + ` when { principal has email && principal.email like "ana\*" };`), []string{"has no *"}},
		"too long":              {text(`@id("a") ` + anywhere + ";" + strings.Repeat(" ", 64<<10)), []string{"at most 65536"}},
		"0.4 MB of parentheses": {text(`@id("a") ` + anywhere + " when { " + strings.Repeat("(", 400_000)), []string{"at most 65536"}},
		"parentheses":           {text(`@id("a") ` + anywhere + " when { " + strings.Repeat("(", 64) + "principal is User" + strings.Repeat(")", 64) + "};"), []string{"nested deeper than 64"}},
		"ifs":                   {text(`@id("a") ` + anywhere + " when { " + strings.Repeat("if principal is User then ", 65) + "true"), []string{"nested deeper than 64"}},
		"nots":                  {text(`@id("a") ` + anywhere + " when { !!! ! ! principal is User };"), []string{"in a row"}},
		"too many terms":        {text(`@id("a") ` + anywhere + " when { principal is User" + strings.Repeat("||principal is User", 3000) + "};"), []string{"terms"}},
		"no UTF-8":              {text("@id(\"a\xff\") " + anywhere + ";"), []string{"UTF-8"}},

		"allow without who":        {allow(policy.Item{Methods: []string{"read"}, Line: 9}), []string{"mesh.yaml:9: route wiki: allow[0]", "must say who", "anyone: true"}},
		"two whos":                 {allow(policy.Item{Groups: []string{"okta/eng"}, Domains: []string{"example.com"}}), []string{"groups and domains", "read as either"}},
		"two whos in a deny":       {deny(policy.Item{Groups: []string{"okta/eng"}, Anyone: true}), []string{"deny[0]", "groups and anyone"}},
		"group of no provider":     {allow(policy.Item{Groups: []string{"eng"}}), []string{`group "eng"`}},
		"user of no provider":      {allow(policy.Item{Users: []string{"ana@example.com"}}), []string{"use emails"}},
		"e-mail with two @":        {allow(policy.Item{Emails: []string{"ana@evil.com@example.com"}}), []string{"is not an e-mail address"}},
		"domain with @":            {allow(policy.Item{Domains: []string{"@example.com"}}), []string{"is not a domain"}},
		"domain glob":              {allow(policy.Item{Domains: []string{"*.example.com"}}), []string{"is not a domain"}},
		"method":                   {allow(policy.Item{Anyone: true, Methods: []string{"GTE"}}), []string{`method "GTE"`, `did you mean "GET"?`}},
		"path glob":                {allow(policy.Item{Anyone: true, Paths: []string{"/admin*"}}), []string{"no globs"}},
		"path neither":             {allow(policy.Item{Anyone: true, Paths: []string{"/admin"}}), []string{`"/admin/"`, `"=/admin"`}},
		"path with dots":           {allow(policy.Item{Anyone: true, Paths: []string{"/a/../b/"}}), []string{"dot segment"}},
		"path that is relative":    {allow(policy.Item{Anyone: true, Paths: []string{"api/"}}), []string{"not absolute"}},
		"ip":                       {allow(policy.Item{Anyone: true, IPs: []string{"10.0.0"}}), []string{"no address or prefix"}},
		"ip with host bits":        {allow(policy.Item{Anyone: true, IPs: []string{"10.1.2.3/8"}}), []string{`did you mean "10.0.0.0/8"?`}},
		"ip mapped":                {allow(policy.Item{Anyone: true, IPs: []string{"::ffff:10.0.0.0/104"}}), []string{"unmapped"}},
		"country":                  {allow(policy.Item{Anyone: true, Countries: []string{"France"}}), []string{"two capital letters"}},
		"hours":                    {allow(policy.Item{Anyone: true, Hours: []string{"ofice"}}), []string{`no schedule "ofice"`, `did you mean "office"?`}},
		"mfa in a deny":            {deny(policy.Item{MFA: time.Hour}), []string{"mfa", "allow only"}},
		"posture in a deny":        {deny(policy.Item{Device: &policy.DeviceRule{Managed: &managed, Posture: 3}}), []string{"device.posture"}},
		"device that says nothing": {allow(policy.Item{Anyone: true, Device: &policy.DeviceRule{}}), []string{"says nothing"}},
		"text in no encoding":      {allow(policy.Item{Anyone: true, Device: &policy.DeviceRule{OS: []string{"\xff"}}}), []string{"not plain text"}},
		"control characters":       {allow(policy.Item{Groups: []string{"okta/a\nb"}}), []string{"not plain text"}},

		"tag in no encoding":   {func(s *policy.Source) { s.Routes[0].Tags = map[string]string{"a": "\xff"} }, []string{"no UTF-8"}},
		"route twice":          {func(s *policy.Source) { s.Routes = append(s.Routes, s.Routes[0]) }, []string{"route wiki: is there twice"}},
		"route without name":   {func(s *policy.Source) { s.Routes[0].Name = "" }, []string{"name: empty"}},
		"route's zone":         {func(s *policy.Source) { s.Routes[0].Zone = "internl" }, []string{`no zone "internl"`, `did you mean "internal"?`}},
		"route's region":       {func(s *policy.Source) { s.Routes[0].Regions = []string{"eu"} }, []string{`no region "eu"`}},
		"zone's parent":        {func(s *policy.Source) { s.Zones[0].Parents = []string{"none"} }, []string{`no zone "none"`}},
		"zones in a ring":      {func(s *policy.Source) { s.Zones[0].Parents = []string{"internal"} }, []string{"zone all: lies in itself"}},
		"zone twice":           {func(s *policy.Source) { s.Zones = append(s.Zones, s.Zones[0]) }, []string{"zone all: is there twice"}},
		"policy twice":         {func(s *policy.Source) { text("// a")(s); s.Policies = append(s.Policies, s.Policies[0]) }, []string{"policy text: is there twice"}},
		"time zone":            {func(s *policy.Source) { s.Schedules[0].TimeZone = "Europe/Pari" }, []string{`time zone "Europe/Pari" is not known`}},
		"no time zone":         {func(s *policy.Source) { s.Schedules[0].TimeZone = "" }, []string{"name one"}},
		"day":                  {func(s *policy.Source) { s.Schedules[0].Days = []string{"monday"} }, []string{`day "monday"`}},
		"hour":                 {func(s *policy.Source) { s.Schedules[0].To = "6pm" }, []string{`"6pm" is no time of day`}},
		"from alone":           {func(s *policy.Source) { s.Schedules[0].To = "" }, []string{"go together"}},
		"from and to the same": {func(s *policy.Source) { s.Schedules[0].To = "09:00" }, []string{"are the same"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src := wiki(t, `[{anyone: true}]`, `[]`, "")
			tc.edit(&src)
			_, err := policy.Compile(src)
			if err == nil {
				t.Fatal("compiles")
			}
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("kind %v", fault.KindOf(err))
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
		})
	}
}

func TestCompileNamesAllProblemsAtOnceAndEachOnce(t *testing.T) {
	t.Parallel()
	src := wiki(t, `[{anyone: true, countries: [fr]}, {methods: [GTE], paths: ["/x*"]}]`, `[]`,
		`@id("a") permit (principal, action in Action::"http", resource) when { context.session.contry == "FR" };`)
	_, err := policy.Compile(src)
	if err == nil {
		t.Fatal("compiles")
	}
	for _, want := range []string{`country "fr"`, "must say who", `method "GTE"`, "no globs", "contry"} {
		if n := strings.Count(err.Error(), want); n != 1 {
			t.Errorf("%q is there %d times in:\n%v", want, n, err)
		}
	}
}

func TestCapsReadCedar(t *testing.T) {
	t.Parallel()
	// Brackets and words in strings and comments do not count; 64 levels are legal.
	cedar := `// ` + strings.Repeat("(", 100) + `
@id("a") @note("` + strings.Repeat(`(\"if `, 100) + `")
permit (principal, action, resource) when { ` + strings.Repeat("(", 63) + `principal is User` + strings.Repeat(")", 63) + ` };`
	compile(t, wiki(t, `[]`, `[]`, cedar))
}

func TestDigestIsOfContent(t *testing.T) {
	t.Parallel()
	const cedar = `@id("a") permit (principal, action, resource == Route::"other");`
	base := func() policy.Source { return wiki(t, `[{groups: [okta/eng]}]`, `[{countries: [KP]}]`, cedar) }
	want := compile(t, base()).Digest()
	for name, tc := range map[string]struct {
		edit func(*policy.Source)
		same bool
	}{
		"order of routes": {func(s *policy.Source) { s.Routes[0], s.Routes[1] = s.Routes[1], s.Routes[0] }, true},
		"places": {func(s *policy.Source) {
			s.Routes[0].File, s.Routes[0].Line, s.Policies[0].Line, s.Routes[0].Allow[0].Line = "x", 1, 2, 3
		}, true},
		"order of zones":  {func(s *policy.Source) { s.Zones[0], s.Zones[1] = s.Zones[1], s.Zones[0] }, true},
		"a group":         {func(s *policy.Source) { s.Routes[0].Allow[0].Groups = []string{"okta/ops"} }, false},
		"deny to nothing": {func(s *policy.Source) { s.Routes[0].Deny = nil }, false},
		"a tag":           {func(s *policy.Source) { s.Routes[0].Tags = map[string]string{"team": "x"} }, false},
		"sensitivity":     {func(s *policy.Source) { s.Routes[0].Sensitivity = 4 }, false},
		"a schedule":      {func(s *policy.Source) { s.Schedules[0].To = "19:00" }, false},
		"a text":          {func(s *policy.Source) { s.Policies[0].Cedar += " " }, false},
		"a region":        {func(s *policy.Source) { s.Regions = append(s.Regions, "ap-south") }, false},
	} {
		src := base()
		tc.edit(&src)
		if got := compile(t, src).Digest(); (got == want) != tc.same {
			t.Errorf("%s: same digest is %v", name, got == want)
		}
	}
}

func TestSchedules(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		schedule policy.Schedule
		at       string
		want     bool
	}{
		"all day, every day":              {policy.Schedule{TimeZone: "UTC"}, "2026-11-24T08:00:00Z", true},
		"night, before midnight":          {policy.Schedule{TimeZone: "UTC", Days: []string{"tue"}, From: "22:00", To: "06:00"}, "2026-11-24T23:00:00Z", true},
		"night, after midnight":           {policy.Schedule{TimeZone: "UTC", Days: []string{"tue"}, From: "22:00", To: "06:00"}, "2026-11-25T05:59:59Z", true},
		"night, its end":                  {policy.Schedule{TimeZone: "UTC", Days: []string{"tue"}, From: "22:00", To: "06:00"}, "2026-11-25T06:00:00Z", false},
		"night that began the day before": {policy.Schedule{TimeZone: "UTC", Days: []string{"tue"}, From: "22:00", To: "06:00"}, "2026-11-24T05:00:00Z", false},
		"range past the week's end":       {policy.Schedule{TimeZone: "UTC", Days: []string{"sat-mon"}}, "2026-11-23T08:00:00Z", true},
		"outside that range":              {policy.Schedule{TimeZone: "UTC", Days: []string{"sat-mon"}}, "2026-11-24T08:00:00Z", false},
		"until midnight":                  {policy.Schedule{TimeZone: "UTC", From: "18:00", To: "24:00"}, "2026-11-24T23:59:59Z", true},
		"summer time":                     {policy.Schedule{TimeZone: "Europe/Paris", From: "09:00", To: "10:00"}, "2026-07-01T07:30:00Z", true},
		"winter time":                     {policy.Schedule{TimeZone: "Europe/Paris", From: "09:00", To: "10:00"}, "2026-11-24T07:30:00Z", false},
		"day of the zone, not of UTC":     {policy.Schedule{TimeZone: "Asia/Tokyo", Days: []string{"wed"}}, "2026-11-24T16:00:00Z", true},
	} {
		now, err := time.Parse(time.RFC3339, tc.at)
		if err != nil {
			t.Fatal(err)
		}
		src := wiki(t, `[]`, `[]`, "")
		tc.schedule.Name = "office"
		src.Schedules = []policy.Schedule{tc.schedule}
		src.Routes[0].Allow = items(t, `[{anyone: true, hours: office}]`)
		if got := compile(t, src).Decide(anaReads(at(now))); got.Allow != tc.want {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

func FuzzCompileCedar(f *testing.F) {
	for _, seed := range []string{
		``, `@id("a") permit (principal, action, resource);`,
		`@id("a") forbid (principal in Group::"okta/eng", action in [Action::"read", Action::"tcp"], resource in Zone::"all") unless { context.time.active.contains("office") };`,
		`@id("a") permit (principal, action in Action::"http", resource is Route in Zone::"all") when { context.http.under.containsAny(["/a", "/b"]) && principal has domain && principal.domain like "*.example.com" };`,
		`@id("a") permit (principal, action, resource) when { if context.session has device then context.session.device.posture > 3 else resource.hasTag("x") && resource.getTag("x") == "y" };`,
		`@id("a") permit (principal, action, resource) when { context.session.ip.isInRange(ip("10.0.0.0/8")) && context.time.now < datetime("2026-12-31") && context.session.authAge <= duration("1h") };`,
		"@id(\"a\") permit (principal, action, resource) when { ((((((!!-1))))))[\"x\"] };", `@id("(((") // "`, "\x00", `"\"`, `/`,
	} {
		f.Add(seed)
	}
	base := wiki(f, `[{anyone: true}]`, `[]`, "")
	f.Fuzz(func(t *testing.T, text string) {
		src := base
		src.Policies = []policy.CedarPolicy{{Name: "text", Cedar: text}}
		s, err := policy.Compile(src)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("kind %v: %v", fault.KindOf(err), err)
			}
			return
		}
		for _, r := range []*policy.Request{anaReads(), anaReads(anonymous), anaReads(tcp), anaReads(noDevice, country(""))} {
			d := s.Decide(r)
			if strings.HasPrefix(d.Reason, "refused") || d.Reason == "policy error" || d.Allow && len(d.Policies) == 0 {
				t.Fatalf("%q: %+v", text, d)
			}
		}
	})
}
