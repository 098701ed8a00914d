package keyring_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

func facts(change func(f *keyring.JoinFacts)) keyring.JoinFacts {
	f := keyring.JoinFacts{
		Now: now, Node: "n-1", Name: "edge-1", Roles: []keyring.Role{keyring.RoleProxy}, Region: "eu-west",
		SourceIP: netip.MustParseAddr("10.1.2.3"),
	}
	if change != nil {
		change(&f)
	}
	return f
}

func TestAJoinConsumesAUse(t *testing.T) {
	t.Parallel()
	k := issued(t, func(r *keyring.KeyRequest) { r.MaxUses = ptr(uint32(2)) })
	once, err := keyring.AdmitJoin(k, facts(nil))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]keyring.Use{{Node: "n-1", Name: "edge-1", At: now}}, once.RecentUses); diff != "" || once.Uses != 1 || once.State != keyring.KeyActive {
		t.Errorf("after one of two uses: %+v", once)
	}
	twice, err := keyring.AdmitJoin(once, facts(nil))
	if err != nil || twice.Uses != 2 || twice.State != keyring.KeyExhausted {
		t.Errorf("after two of two uses: %+v, %v", twice, err)
	}
	if k.Uses != 0 || len(k.RecentUses) != 0 || len(once.RecentUses) != 1 {
		t.Error("a state that went in was changed")
	}
}

func TestAdmitJoinNamesTheRuleThatRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		key   func(r *keyring.KeyRequest)
		state func(k *keyring.Key)
		join  func(f *keyring.JoinFacts)
		kind  fault.Kind // Internal: admitted
		says  string
	}{
		"all holds":                        {},
		"pending":                          {key: func(r *keyring.KeyRequest) { r.Pending = true }, kind: fault.Denied, says: "pending"},
		"suspended":                        {state: func(k *keyring.Key) { k.State = keyring.KeySuspended }, kind: fault.Denied, says: "suspended"},
		"expired":                          {state: func(k *keyring.Key) { k.State = keyring.KeyExpired }, kind: fault.Denied, says: "expired at 2026-11-24T12:00:00Z"},
		"retired":                          {state: func(k *keyring.Key) { k.State, k.Successor = keyring.KeyRetired, "next" }, kind: fault.Denied, says: "successor next"},
		"revoked":                          {state: func(k *keyring.Key) { k.State, k.RevokedAt = keyring.KeyRevoked, now }, kind: fault.Denied, says: "revoked at 2026-11-23"},
		"unknown state":                    {state: func(k *keyring.Key) { k.State = "" }, kind: fault.Denied, says: "unknown state"},
		"in its grace":                     {state: func(k *keyring.Key) { k.State, k.GraceUntil = keyring.KeyRetiring, now }},
		"grace is over":                    {state: func(k *keyring.Key) { k.State, k.GraceUntil = keyring.KeyRetiring, now.Add(-time.Minute) }, kind: fault.Denied, says: "grace"},
		"used up in it":                    {state: func(k *keyring.Key) { k.State, k.GraceUntil, k.Uses = keyring.KeyRetiring, now, 1 }, kind: fault.Exhausted, says: "1 of 1"},
		"a minute early":                   {join: func(f *keyring.JoinFacts) { f.Now = now.Add(-time.Minute) }},
		"too early":                        {join: func(f *keyring.JoinFacts) { f.Now = now.Add(-61 * time.Second) }, kind: fault.Denied, says: "not_before"},
		"a second less than a minute late": {join: func(f *keyring.JoinFacts) { f.Now = now.Add(24*time.Hour + 59*time.Second) }},
		"a minute late":                    {join: func(f *keyring.JoinFacts) { f.Now = now.Add(24*time.Hour + time.Minute) }, kind: fault.Denied, says: "expired at"},
		"no expiry":                        {state: func(k *keyring.Key) { k.ExpiresAt = time.Time{} }, kind: fault.Denied, says: "expired"},
		"no role":                          {join: func(f *keyring.JoinFacts) { f.Roles = nil }, kind: fault.Invalid, says: "roles"},
		"role of nobody":                   {join: func(f *keyring.JoinFacts) { f.Roles = []keyring.Role{"root"} }, kind: fault.Invalid, says: "root"},
		"role not granted": {join: func(f *keyring.JoinFacts) { f.Roles = []keyring.Role{keyring.RoleProxy, keyring.RoleControl} },
			kind: fault.Denied, says: "grants: role control"},
		"region listed":           {key: func(r *keyring.KeyRequest) { r.Regions = []string{"us-east", "eu-west"} }},
		"region not listed":       {key: func(r *keyring.KeyRequest) { r.Regions = []string{"us-east"} }, kind: fault.Denied, says: "regions: eu-west"},
		"no region":               {join: func(f *keyring.JoinFacts) { f.Region = "" }, kind: fault.Invalid, says: "region"},
		"address in range":        {key: cidr("10.0.0.0/8")},
		"mapped address in range": {key: cidr("10.0.0.0/8"), join: from("::ffff:10.1.2.3")},
		"address with a zone":     {key: cidr("fe80::/10"), join: from("fe80::1%eth0")},
		"address out of range":    {key: cidr("192.0.2.0/24"), kind: fault.Denied, says: "source_cidrs: 10.1.2.3"},
		"no address":              {key: cidr("0.0.0.0/0"), join: func(f *keyring.JoinFacts) { f.SourceIP = netip.Addr{} }, kind: fault.Denied, says: "source_cidrs"},
		"a place left":            {key: active(3), join: func(f *keyring.JoinFacts) { f.ActiveNodes = 2 }},
		"no place left":           {key: active(3), join: func(f *keyring.JoinFacts) { f.ActiveNodes = 3 }, kind: fault.Exhausted, says: "max_active: 3 nodes of 3"},
		"a count that cannot be":  {key: active(3), join: func(f *keyring.JoinFacts) { f.ActiveNodes = -1 }, kind: fault.Exhausted, says: "max_active"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := issued(t, tc.key)
			if tc.state != nil {
				tc.state(&k)
			}
			after, err := keyring.AdmitJoin(k, facts(tc.join))
			if tc.says == "" {
				if err != nil || after.Uses != k.Uses+1 {
					t.Errorf("refused: %v", err)
				}
				return
			}
			wantRefusal(t, err, tc.kind, tc.says)
			if diff := cmp.Diff(k, after, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("a refusal changed the key: %s", diff)
			}
		})
	}
}

func cidr(p string) func(r *keyring.KeyRequest) {
	return func(r *keyring.KeyRequest) { r.SourceCIDRs = []netip.Prefix{netip.MustParsePrefix(p)} }
}

func active(n uint32) func(r *keyring.KeyRequest) {
	return func(r *keyring.KeyRequest) { r.MaxActive = n }
}

func from(ip string) func(f *keyring.JoinFacts) {
	return func(f *keyring.JoinFacts) { f.SourceIP = netip.MustParseAddr(ip) }
}

func TestExhaustedSaysByWhomAndWhen(t *testing.T) {
	t.Parallel()
	k, err := keyring.AdmitJoin(issued(t, nil), facts(nil))
	if err != nil {
		t.Fatal(err)
	}
	_, err = keyring.AdmitJoin(k, facts(func(f *keyring.JoinFacts) { f.Now = now.Add(time.Hour) }))
	wantRefusal(t, err, fault.Exhausted, "exhausted: 1 of 1 uses, last by n-1 (edge-1) at 2026-11-23T12:00:00Z")
}

func TestAnUnlimitedKeyRemembersItsLastUses(t *testing.T) {
	t.Parallel()
	k := issued(t, func(r *keyring.KeyRequest) { r.MaxUses = ptr(uint32(0)) })
	for i := range 100 {
		var err error
		if k, err = keyring.AdmitJoin(k, facts(func(f *keyring.JoinFacts) { f.Node = fmt.Sprint("n-", i) })); err != nil {
			t.Fatal(err)
		}
	}
	if k.Uses != 100 || len(k.RecentUses) != keyring.MaxRecentUses || k.RecentUses[63].Node != "n-99" || k.RecentUses[0].Node != "n-36" {
		t.Errorf("%d uses, remembers %d", k.Uses, len(k.RecentUses))
	}
}

func TestAnUnconfirmedJoinGivesItsUseBack(t *testing.T) {
	t.Parallel()
	used, err := keyring.AdmitJoin(issued(t, nil), facts(nil))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		state keyring.KeyState
		at    time.Time
		want  keyring.KeyState
	}{
		"an exhausted key is active again":    {keyring.KeyExhausted, now, keyring.KeyActive},
		"an exhausted key may be past expiry": {keyring.KeyExhausted, now.Add(48 * time.Hour), keyring.KeyExpired},
		"a revoked key stays revoked":         {keyring.KeyRevoked, now, keyring.KeyRevoked},
		"a retired key stays retired":         {keyring.KeyRetired, now, keyring.KeyRetired},
	} {
		k := used
		k.State = tc.state
		if got := keyring.ReturnUse(k, "n-1", tc.at); got.State != tc.want || got.Uses != 0 || len(got.RecentUses) != 0 {
			t.Errorf("%s: %s with %d uses, %v", name, got.State, got.Uses, got.RecentUses)
		}
	}
	if len(used.RecentUses) != 1 {
		t.Error("the key that went in was changed")
	}
	if none := keyring.ReturnUse(issued(t, nil), "n-1", now); none.Uses != 0 || none.State != keyring.KeyActive {
		t.Errorf("a use that never was is given back: %d", none.Uses)
	}
}
