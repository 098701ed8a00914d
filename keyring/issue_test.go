package keyring_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

func TestAKeyIsIssuedWithSafeDefaults(t *testing.T) {
	t.Parallel()
	got := issued(t, nil)
	want := keyring.Key{
		ID: keyring.KeyID(public("key")), Name: "edge", PublicKey: public("key"), Grants: []keyring.Role{keyring.RoleProxy},
		NotBefore: now, ExpiresAt: now.Add(24 * time.Hour), MaxUses: 1, State: keyring.KeyActive, CreatedBy: "ana", CreatedAt: now,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestABootstrapKeyGrantsControlAndProxySixteenTimesInADay(t *testing.T) {
	t.Parallel()
	k, err := keyring.IssueKey(keyring.BootstrapRequest(public("key"), "init", now))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]keyring.Role{keyring.RoleControl, keyring.RoleProxy}, k.Grants); diff != "" || k.MaxUses != 16 || k.ExpiresAt != now.Add(24*time.Hour) {
		t.Errorf("%+v", k)
	}
}

func TestAKeyKeepsItsScope(t *testing.T) {
	t.Parallel()
	k := issued(t, func(r *keyring.KeyRequest) {
		r.Regions = []string{"us-east", "eu-west", "us-east"}
		r.SourceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.1.2.3/8"), netip.MustParsePrefix("::ffff:192.0.2.1/120")}
		r.MaxUses, r.MaxActive, r.RouteSelector, r.Pending = ptr(uint32(0)), 3, "team=billing", true
		r.NotBefore, r.TTL = now.Add(time.Hour), 2*time.Hour
	})
	if diff := cmp.Diff([]string{"eu-west", "us-east"}, k.Regions); diff != "" {
		t.Error(diff)
	}
	if k.SourceCIDRs[0].String() != "10.0.0.0/8" || k.SourceCIDRs[1].String() != "192.0.2.0/24" {
		t.Errorf("source CIDRs %v", k.SourceCIDRs)
	}
	if k.MaxUses != 0 || k.MaxActive != 3 || k.State != keyring.KeyPending || k.RouteSelector != "team=billing" {
		t.Errorf("%+v", k)
	}
	if k.NotBefore != now.Add(time.Hour) || k.ExpiresAt != now.Add(3*time.Hour) {
		t.Errorf("valid from %v to %v", k.NotBefore, k.ExpiresAt)
	}
}

func TestIssueNamesTheFieldThatIsWrong(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(r *keyring.KeyRequest)
		says   string
	}{
		"no public key":        {func(r *keyring.KeyRequest) { r.PublicKey = nil }, "public_key"},
		"no name":              {func(r *keyring.KeyRequest) { r.Name = "" }, "name: missing"},
		"a name with a slash":  {func(r *keyring.KeyRequest) { r.Name = "a/b" }, "name"},
		"a name of dots":       {func(r *keyring.KeyRequest) { r.Name = ".." }, "name"},
		"a long name":          {func(r *keyring.KeyRequest) { r.Name = strings.Repeat("a", 64) }, "at most 63"},
		"no grants":            {func(r *keyring.KeyRequest) { r.Grants = nil }, "grants"},
		"an unknown grant":     {func(r *keyring.KeyRequest) { r.Grants = []keyring.Role{"root"} }, "root"},
		"a grant twice":        {func(r *keyring.KeyRequest) { r.Grants = append(r.Grants, r.Grants...) }, "twice"},
		"a region in capitals": {func(r *keyring.KeyRequest) { r.Regions = []string{"EU"} }, "region"},
		"a region with a dot":  {func(r *keyring.KeyRequest) { r.Regions = []string{"eu.west"} }, "region"},
		"too many regions":     {func(r *keyring.KeyRequest) { r.Regions = make([]string, 65) }, "regions"},
		"no CIDR":              {func(r *keyring.KeyRequest) { r.SourceCIDRs = make([]netip.Prefix, 1) }, "source_cidrs"},
		"too many CIDRs":       {func(r *keyring.KeyRequest) { r.SourceCIDRs = make([]netip.Prefix, 65) }, "source_cidrs"},
		"a CIDR over both": {func(r *keyring.KeyRequest) {
			r.SourceCIDRs = []netip.Prefix{netip.MustParsePrefix("::ffff:0.0.0.0/90")}
		}, "apart"},
		"a negative ttl":        {func(r *keyring.KeyRequest) { r.TTL = -1 }, "ttl"},
		"a ttl without end":     {func(r *keyring.KeyRequest) { r.TTL = 400 * 24 * time.Hour }, "ttl"},
		"over before it begins": {func(r *keyring.KeyRequest) { r.NotBefore = now.Add(-48 * time.Hour) }, "before it is issued"},
		"far ahead":             {func(r *keyring.KeyRequest) { r.NotBefore = now.Add(9000 * time.Hour) }, "not_before"},
		"no time":               {func(r *keyring.KeyRequest) { r.Now = time.Time{} }, "now"},
		"the reserved selector": {func(r *keyring.KeyRequest) { r.RouteSelector = "_" }, "selector"},
		"a selector with slash": {func(r *keyring.KeyRequest) { r.RouteSelector = "a/b" }, "selector"},
		"a forged log line":     {func(r *keyring.KeyRequest) { r.By = "ana\nlevel=INFO" }, "created_by"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := keyring.KeyRequest{PublicKey: public("key"), Name: "edge", Grants: []keyring.Role{keyring.RoleProxy}, Now: now}
			tc.change(&r)
			_, err := keyring.IssueKey(r)
			wantRefusal(t, err, fault.Invalid, tc.says)
		})
	}
}
