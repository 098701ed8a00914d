package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/policy"
)

func newPolicyCommand(c *cli) *cobra.Command {
	cmd := group("policy", "Try policies, without a mesh", newPolicyTestCommand(c), newPolicyExplainCommand(c))
	cmd.Long = "Try the policies of a mesh.yaml as a node would decide by them, on this machine and without a mesh."
	return cmd
}

const regionsUsage = "`REGIONS` of the mesh, beside those that the file names"

// compile reads and compiles mesh.yaml files as the mesh would.
func (c *cli) compile(files, regions []string) (*resource.Configuration, error) {
	docs, _, err := c.readResources(files)
	if err != nil {
		return nil, err
	}
	return resource.Compile(docs, regions)
}

// tested is a test's outcome as -o json prints it.
type tested struct {
	Name    string `json:"name"`
	Line    int    `json:"line"`
	Pass    bool   `json:"pass"`
	Problem string `json:"problem,omitempty"`
}

func newPolicyTestCommand(c *cli) *cobra.Command {
	var files, regions []string
	var tests string
	cmd := &cobra.Command{
		Use: "test -f FILE -t TESTS", Short: "Hold policies against their tests",
		Example: "  iapmesh policy test -f mesh.yaml -t tests.yaml",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "filename", "tests"); err != nil {
				return err
			}
			config, err := c.compile(files, regions)
			if err != nil {
				return err
			}
			text, err := c.readInput(tests, resource.MaxFile)
			if err != nil {
				return err
			}
			parsed, err := policy.ParseTests(text)
			if err != nil {
				return fmt.Errorf("%s: %w", tests, err)
			}
			return c.reportTests(tests, config.Policy.RunTests(parsed))
		},
	}
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, fileUsage)
	cmd.Flags().StringVarP(&tests, "tests", "t", "", "`FILE` of tests (required)")
	cmd.Flags().StringSliceVar(&regions, "region", nil, regionsUsage)
	return cmd
}

func (c *cli) reportTests(file string, results []policy.TestResult) error {
	out := []tested{}
	failed := 0
	for _, r := range results {
		out = append(out, tested{r.Name, r.Line, r.Pass, r.Problem})
		if !r.Pass {
			failed++
		}
	}
	err := c.printValue(out, func(t *table) {
		for _, r := range out {
			if !r.Pass {
				t.line("%s %s:%d: %s: %s", t.paint(red, "FAIL"), file, r.Line, r.Name, r.Problem)
			}
		}
		t.line("%d of %d passed", len(out)-failed, len(out))
	})
	if err == nil && failed > 0 {
		return errReported
	}
	return err
}

// question is a request as explain's flags say it.
type question struct {
	subject, email, method, url, ip, at, region string
	groups, amr                                 []string
	authAge, keyringAge                         time.Duration
}

func newPolicyExplainCommand(c *cli) *cobra.Command {
	var files []string
	var q question
	cmd := &cobra.Command{
		Use: "explain -f FILE --url URL", Short: "Explain how a request would be decided, policy by policy",
		Example: "  iapmesh policy explain -f mesh.yaml --url https://billing.example.com/invoices --method POST --subject okta/ana --group okta/finance",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "filename", "url"); err != nil {
				return err
			}
			regions := []string{"local"} // where neither a flag nor a file names one
			if q.region != "" {
				regions[0] = q.region
			}
			config, err := c.compile(files, regions)
			if err != nil {
				return err
			}
			request, err := q.request(config, regions[0])
			if err != nil {
				return err
			}
			why, err := config.Policy.Explain(request)
			if err != nil {
				return err
			}
			return c.printExplanation(request, why)
		},
	}
	f := cmd.Flags()
	f.StringSliceVarP(&files, "filename", "f", nil, fileUsage)
	f.StringVar(&q.url, "url", "", "`URL` that is asked for (required)")
	f.StringVar(&q.method, "method", "GET", "`METHOD` of the request")
	f.StringVar(&q.subject, "subject", "", "`IDP/SUBJECT` that asks (default: nobody)")
	f.StringVar(&q.email, "email", "", "`ADDRESS` of who asks")
	f.StringSliceVar(&q.groups, "group", nil, "`IDP/GROUP` of who asks; may be repeated")
	f.StringSliceVar(&q.amr, "amr", nil, "`HOW` they signed in (RFC 8176), such as mfa")
	f.DurationVar(&q.authAge, "auth-age", 0, "how long ago they signed in")
	f.DurationVar(&q.keyringAge, "keyring-age", 0, "how old the node's view is")
	f.StringVar(&q.ip, "ip", "192.0.2.1", "`ADDRESS` that the request comes from")
	f.StringVar(&q.region, "region", "", "`REGION` that serves it (default: the route's first, or the mesh's)")
	f.StringVar(&q.at, "at", "", "`TIME` of the request, RFC 3339 (default: now)")
	return cmd
}

func (q *question) request(config *resource.Configuration, otherwise string) (*policy.Request, error) {
	u, err := url.Parse(q.url)
	if err != nil || u.Host == "" {
		return nil, usagef("--url %.80q: want one such as https://billing.example.com/invoices", q.url)
	}
	ip, err := netip.ParseAddr(q.ip)
	if err != nil {
		return nil, usagef("--ip %.60q: want an address", q.ip)
	}
	now := time.Now()
	if q.at != "" {
		if now, err = time.Parse(time.RFC3339, q.at); err != nil {
			return nil, usagef("--at %.40q: want a time such as 2026-11-24T09:00:00Z", q.at)
		}
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	host := strings.ToLower(u.Hostname())
	route := config.Match(host, path)
	if route == nil {
		return nil, fmt.Errorf("no route has host %s and path %s: a node would answer 404", host, path)
	}
	region := q.region
	if region == "" {
		region = cmp.Or(firstRegion(config, route), otherwise)
	}
	r := &policy.Request{
		Anonymous: q.subject == "", Route: route.Name, Method: q.method, Host: host, Path: path,
		SourceIP: ip, Region: region, Now: now, KeyringAge: q.keyringAge,
	}
	if q.subject != "" {
		r.Principal = identity.Identity{Subject: q.subject, Email: q.email, Groups: q.groups, AMR: q.amr, AuthTime: now.Add(-q.authAge)}
		if err := r.Principal.Validate(); err != nil {
			return nil, usageError{err}
		}
	} else if len(q.groups) > 0 || q.email != "" {
		return nil, usagef("--group and --email need --subject")
	}
	return r, nil
}

// firstRegion is where a request is served unless somebody says so: where the application stands, or where the mesh does.
func firstRegion(config *resource.Configuration, route *resource.Route) string {
	for _, u := range route.Upstreams {
		if u.Region != "" {
			return u.Region
		}
	}
	if config.Settings != nil && len(config.Settings.Regions) > 0 {
		return config.Settings.Regions[0]
	}
	return ""
}

// explained is an explanation as -o json prints it.
type explained struct {
	Route    string         `json:"route"`
	Allow    bool           `json:"allow"`
	Reason   string         `json:"reason"`
	Policies []string       `json:"policies"`
	Errors   []string       `json:"errors,omitempty"`
	Checks   []explainCheck `json:"checks"`
}

type explainCheck struct {
	Policy  string   `json:"policy"`
	Source  string   `json:"source,omitempty"`
	Effect  string   `json:"effect"`
	Applies bool     `json:"applies"`
	Failed  []string `json:"failed,omitempty"`
}

func (c *cli) printExplanation(r *policy.Request, why policy.Explanation) error {
	out := explained{Route: r.Route, Allow: why.Decision.Allow, Reason: why.Decision.Reason, Policies: why.Decision.Policies, Errors: why.Decision.Errors, Checks: []explainCheck{}}
	for _, check := range why.Checks {
		effect := "permit"
		if check.Policy.Forbid {
			effect = "forbid"
		}
		out.Checks = append(out.Checks, explainCheck{check.Policy.ID, check.Policy.Source, effect, check.Applies, check.Failed})
	}
	return c.printValue(out, func(t *table) {
		verdict := t.paint(red, "deny")
		if out.Allow {
			verdict = t.paint(green, "allow")
		}
		t.line("%s on route %s: %s", verdict, out.Route, out.Reason)
		for _, check := range out.Checks {
			applies := "applies"
			if !check.Applies {
				applies = "fails at " + strings.Join(check.Failed, "; ")
			}
			t.row(check.Effect, check.Policy, check.Source, applies)
		}
		for _, problem := range out.Errors {
			t.line("error: %s", problem)
		}
	})
}
