package keyring_test

import (
	"crypto/x509"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
)

// authorities is a mesh's CA over several rotations.
type authorities struct {
	t     testing.TB
	known map[string]*keyring.Authority
	keys  keyring.AuthorityKeys
	order []string // serials, as they came to be
	at    time.Time
}

func newAuthorities(t testing.TB) *authorities {
	t.Helper()
	first, key, err := keyring.NewAuthority(nil, now, domain)
	if err != nil {
		t.Fatal(err)
	}
	return &authorities{t, map[string]*keyring.Authority{first.Serial: &first}, keyring.AuthorityKeys{first.Serial: key}, []string{first.Serial}, now}
}

func (as *authorities) take(changed []keyring.Authority, err error) {
	as.t.Helper()
	if err != nil {
		as.t.Fatal(err)
	}
	for _, a := range changed {
		as.known[a.Serial] = &a
	}
}

func (as *authorities) prepare() string {
	as.t.Helper()
	as.at = as.at.Add(time.Hour)
	next, key, err := keyring.NewAuthority(nil, as.at, domain)
	if err != nil {
		as.t.Fatal(err)
	}
	as.keys[next.Serial] = key
	as.order = append(as.order, next.Serial)
	as.take(keyring.PrepareAuthority(as.known, as.keys, next, as.at))
	return next.Serial
}

func (as *authorities) activate(serial string) {
	as.t.Helper()
	as.at = as.at.Add(time.Hour)
	as.take(keyring.ActivateAuthority(as.known, serial, as.at))
}

func (as *authorities) rotate() { as.t.Helper(); as.activate(as.prepare()) }

// leaf is a control node's certificate that the authority issued while it did.
func (as *authorities) leaf(serial string) *x509.Certificate {
	as.t.Helper()
	issuer := *as.known[serial]
	issuer.State = keyring.AuthorityActive
	return ca{issuer, as.keys[serial]}.node(as.t, "n-1", true)
}

// chain is what a node with that certificate presents.
func (as *authorities) chain(leaf *x509.Certificate) []*x509.Certificate {
	as.t.Helper()
	chain := []*x509.Certificate{leaf}
	for _, der := range keyring.NewSnapshot(revision.Revision{}, keyring.Contents{Authorities: as.known}).Chain(leaf) {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			as.t.Fatal(err)
		}
		chain = append(chain, c)
	}
	return chain
}

func (as *authorities) states() string {
	out := ""
	for _, serial := range as.order {
		if a := as.known[serial]; a != nil {
			out += string(a.State) + " "
		}
	}
	return out
}

func TestAnAuthoritysLife(t *testing.T) {
	t.Parallel()
	as := newAuthorities(t)
	first := as.order[0]
	next := as.prepare()
	if got := as.states(); got != "active prepared " {
		t.Fatal(got)
	}
	if a := as.known[next]; !a.ActiveAt.IsZero() || a.CreatedAt != as.at || len(a.CrossCertificates) != 1 || len(as.known[first].CrossCertificates) != 1 {
		t.Errorf("prepared: %+v", a)
	}
	wantRefusal(t, keyring.CanPrepare(as.known), fault.Conflict, "is prepared since")
	as.activate(next)
	if got := as.states(); got != "retired active " || as.known[first].RetiredAt != as.at || as.known[next].ActiveAt != as.at {
		t.Fatalf("%s: retired at %v, active at %v", got, as.known[first].RetiredAt, as.known[next].ActiveAt)
	}
	if _, err := keyring.IssueNode(*as.known[first], as.keys[first], parsedCSR(t, "n-1"), keyring.NodeTemplate{TrustDomain: domain, Region: "r", NodeID: "n-1", Now: now}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a retired authority issues: %v", err)
	}
	as.take(keyring.PruneAuthority(as.known, first))
	delete(as.known, first)
	if left := as.known[next].CrossCertificates; len(left) != 0 {
		t.Errorf("%d cross certificates of an authority that is forgotten", len(left))
	}
}

func TestAuthoritiesRefuse(t *testing.T) {
	t.Parallel()
	as := newAuthorities(t)
	first, second := as.order[0], as.prepare()
	_, err := keyring.ActivateAuthority(as.known, first, now)
	wantRefusal(t, err, fault.Conflict, "it is active")
	_, err = keyring.ActivateAuthority(as.known, "none", now)
	wantRefusal(t, err, fault.NotFound, "none")
	for serial, says := range map[string]string{first: "it is active", second: "it is prepared"} {
		_, err = keyring.PruneAuthority(as.known, serial)
		wantRefusal(t, err, fault.Conflict, says)
	}
	_, err = keyring.PruneAuthority(as.known, "none")
	wantRefusal(t, err, fault.NotFound, "none")
	as.activate(second)
	if _, err := keyring.ActivateAuthority(as.known, first, now); !fault.Is(err, fault.Conflict) {
		t.Errorf("a retired authority comes back: %v", err)
	}
	for len(as.known) < keyring.MaxAuthorities {
		as.rotate()
	}
	wantRefusal(t, keyring.CanPrepare(as.known), fault.Exhausted, "at most 4")
	wantRefusal(t, keyring.CanPrepare(nil), fault.Internal, "no active authority")

	again, _, err := keyring.NewAuthority(nil, now, domain)
	if err != nil {
		t.Fatal(err)
	}
	fresh := newAuthorities(t)
	if _, err := keyring.PrepareAuthority(fresh.known, fresh.keys, again, now); !fault.Is(err, fault.Invalid) {
		t.Errorf("without its private key: %v", err)
	}
	fresh.known[again.Serial] = &again
	if _, err := keyring.PrepareAuthority(fresh.known, fresh.keys, again, now); !fault.Is(err, fault.Conflict) {
		t.Errorf("one that is known: %v", err)
	}
}

// Whichever root somebody pins, and whichever authority issued: at each step of as many rotations as a mesh can remember.
func TestEveryPinVerifiesEveryLeafAtEveryMoment(t *testing.T) {
	t.Parallel()
	as := newAuthorities(t)
	check := func(when string) {
		t.Helper()
		for i, issuer := range as.order {
			if as.known[issuer] == nil || as.known[issuer].State == keyring.AuthorityPrepared {
				continue // has issued nothing
			}
			leaf := as.leaf(issuer)
			chain := as.chain(leaf)
			if len(chain) > keyring.MaxChain {
				t.Errorf("%s: a chain of %d, at most %d", when, len(chain), keyring.MaxChain)
			}
			for j, pinned := range as.order {
				if as.known[pinned] == nil {
					continue
				}
				what := fmt.Sprintf("%s: leaf of authority %d, pin of %d", when, i, j)
				pin := keyring.Pin(as.known[pinned].Certificate)
				if id, err := keyring.VerifyPinned(chain, pin, as.at); err != nil || id.Node != "n-1" {
					t.Errorf("%s: %v, %v", what, id, err)
				}
				// The same as a profile does it, with one root in its pool.
				roots, between := x509.NewCertPool(), x509.NewCertPool()
				roots.AddCert(as.known[pinned].Certificate)
				for _, c := range chain[1:] {
					between.AddCert(c)
				}
				if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: as.at}); err != nil {
					t.Errorf("%s, as a profile: %v", what, err)
				}
			}
		}
	}
	check("founded")
	for n := 1; n < keyring.MaxAuthorities; n++ {
		next := as.prepare()
		check(fmt.Sprintf("rotation %d prepared", n))
		as.activate(next)
		check(fmt.Sprintf("rotation %d done", n))
	}
	first := as.order[0]
	pin := keyring.Pin(as.known[first].Certificate)
	as.take(keyring.PruneAuthority(as.known, first))
	delete(as.known, first)
	check("the first is forgotten")
	if _, err := keyring.VerifyPinned(as.chain(as.leaf(as.order[1])), pin, as.at); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("the pin of an authority that is forgotten: %v", err)
	}
	as.rotate()
	check("a rotation after that")
}

// A cross certificate leads from a root to another's leaves, and to nothing else.
func TestACrossCertificateIsNoRootAndSignsNoAuthority(t *testing.T) {
	t.Parallel()
	as := newAuthorities(t)
	as.rotate()
	second := as.known[as.order[1]]
	cross := second.CrossCertificates[0]
	if keyring.IsRoot(cross) || !keyring.IsRoot(second.Certificate) {
		t.Error("a cross certificate counts as a root, or a root does not")
	}
	if _, err := keyring.VerifyPinned([]*x509.Certificate{as.leaf(second.Serial), cross}, keyring.Pin(cross), as.at); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("pinned to a cross certificate: %v", err)
	}
	// Whoever holds only the second's key makes an authority of his own: the first's pin does not follow him there.
	rogue, rogueKey, err := keyring.NewAuthority(nil, as.at, domain)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := keyring.CrossSign(*second, as.keys[second.Serial], rogue, as.at)
	if err != nil {
		t.Fatal(err)
	}
	leaf := ca{rogue, rogueKey}.node(t, "n-1", true)
	chain := []*x509.Certificate{leaf, forged, cross, as.known[as.order[0]].Certificate}
	if _, err := keyring.VerifyPinned(chain, keyring.Pin(as.known[as.order[0]].Certificate), as.at); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("two cross certificates in a row: %v", err)
	}
}

func TestReadyToActivate(t *testing.T) {
	t.Parallel()
	at, before := revision.Revision{Epoch: 1, Index: 9}, revision.Revision{Epoch: 1, Index: 8}
	long := now.Add(-time.Hour)
	a := keyring.Authority{State: keyring.AuthorityPrepared, Revision: at}
	ack := func(node string, r revision.Revision, since time.Duration) keyring.Ack {
		return keyring.Ack{Node: node, Revision: r, ReportedAt: now.Add(-since)}
	}
	for name, tc := range map[string]struct {
		state   keyring.AuthorityState
		acks    []keyring.Ack
		ready   bool
		waiting []string
		lagging []string
	}{
		"everybody":          {keyring.AuthorityPrepared, []keyring.Ack{ack("a", at, 0), ack("b", at, time.Second)}, true, nil, nil},
		"one behind":         {keyring.AuthorityPrepared, []keyring.Ack{ack("a", at, 0), ack("b", before, 0)}, false, []string{"b"}, nil},
		"the one is silent":  {keyring.AuthorityPrepared, []keyring.Ack{ack("a", at, 0), ack("b", before, time.Minute)}, true, nil, []string{"b"}},
		"nobody":             {keyring.AuthorityPrepared, nil, false, nil, nil},
		"all silent":         {keyring.AuthorityPrepared, []keyring.Ack{ack("a", at, time.Minute)}, false, nil, []string{"a"}},
		"active already":     {keyring.AuthorityActive, []keyring.Ack{ack("a", at, 0)}, false, nil, nil},
		"retired in between": {keyring.AuthorityRetired, []keyring.Ack{ack("a", at, 0)}, false, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := a
			a.State = tc.state
			got := keyring.ReadyToActivate(a, keyring.PromoteFacts{Now: now, ListeningSince: long, Acks: tc.acks})
			if got.Ready != tc.ready || !slices.Equal(got.Waiting, tc.waiting) || !slices.Equal(got.Lagging, tc.lagging) {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestWhatHangsOnARetiredAuthority(t *testing.T) {
	t.Parallel()
	as := newAuthorities(t)
	as.rotate()
	first := as.known[as.order[0]]
	retired := first.RetiredAt
	day := 24 * time.Hour
	admin := func(issued time.Time) map[string]*keyring.Admin {
		return map[string]*keyring.Admin{"u-1": {ID: "u-1", Name: "ana", ExpiresAt: issued.Add(keyring.AdminLife)}}
	}
	key := func(by string, created time.Time, adjust func(*keyring.Key)) map[string]*keyring.Key {
		k := &keyring.Key{ID: "k1", Name: "web", State: keyring.KeyActive, CreatedBy: by, CreatedAt: created, ExpiresAt: created.Add(300 * day)}
		if adjust != nil {
			adjust(k)
		}
		return map[string]*keyring.Key{"k1": k}
	}
	node := func(issued time.Time, state keyring.NodeState) map[string]*keyring.Node {
		return map[string]*keyring.Node{"n-1": {ID: "n-1", Name: "px", State: state, CertExpiresAt: issued.Add(keyring.NodeCertLife)}}
	}
	for name, tc := range map[string]struct {
		c    keyring.Contents
		at   time.Time
		want string
	}{
		"nothing":                                    {keyring.Contents{}, retired, ""},
		"a node that has not renewed":                {keyring.Contents{Nodes: node(retired.Add(-time.Hour), keyring.NodeActive)}, retired, "node px"},
		"a node that has":                            {keyring.Contents{Nodes: node(retired.Add(time.Hour), keyring.NodeActive)}, retired.Add(time.Hour), ""},
		"a node whose certificate is over":           {keyring.Contents{Nodes: node(retired.Add(-time.Hour), keyring.NodeActive)}, retired.Add(day), ""},
		"a node that is revoked":                     {keyring.Contents{Nodes: node(retired.Add(-time.Hour), keyring.NodeRevoked)}, retired, ""},
		"a renewal as it retired":                    {keyring.Contents{Nodes: node(retired.Add(time.Second), keyring.NodeActive)}, retired.Add(time.Second), "node px"},
		"an administrator":                           {keyring.Contents{Admins: admin(retired.Add(-time.Hour))}, retired.Add(89 * day), "admin ana"},
		"an administrator who has renewed":           {keyring.Contents{Admins: admin(retired.Add(time.Hour))}, retired.Add(2 * time.Hour), ""},
		"an administrator whose time is over":        {keyring.Contents{Admins: admin(retired.Add(-time.Hour))}, retired.Add(91 * day), ""},
		"a key made while it issued":                 {keyring.Contents{Keys: key("init", retired.Add(-time.Hour), nil)}, retired.Add(200 * day), "key web"},
		"such a key that is over":                    {keyring.Contents{Keys: key("init", retired.Add(-time.Hour), nil)}, retired.Add(300 * day), ""},
		"such a key that is revoked":                 {keyring.Contents{Keys: key("init", retired.Add(-time.Hour), func(k *keyring.Key) { k.State = keyring.KeyRevoked })}, retired, ""},
		"such a key that is suspended":               {keyring.Contents{Keys: key("init", retired.Add(-time.Hour), func(k *keyring.Key) { k.State = keyring.KeySuspended })}, retired, "key web"},
		"a key by one who has not renewed":           {keyring.Contents{Admins: admin(retired.Add(-time.Hour)), Keys: key("admin/ana", retired.Add(20*day), nil)}, retired.Add(95 * day), "key web"},
		"a key by one who had renewed":               {keyring.Contents{Admins: admin(retired.Add(10 * day)), Keys: key("admin/ana", retired.Add(20*day), nil)}, retired.Add(95 * day), ""},
		"a key by one who renewed afterwards":        {keyring.Contents{Admins: admin(retired.Add(30 * day)), Keys: key("admin/ana", retired.Add(20*day), nil)}, retired.Add(95 * day), "key web"},
		"a key when all its certificates were over":  {keyring.Contents{Keys: key("admin/ana", retired.Add(91*day), nil)}, retired.Add(92 * day), ""},
		"a key by one of whom nothing is known":      {keyring.Contents{Keys: key("admin/bob", retired.Add(20*day), nil)}, retired.Add(95 * day), "key web"},
		"anything, once the root itself has expired": {keyring.Contents{Keys: key("init", retired, func(k *keyring.Key) { k.ExpiresAt = time.Time{} })}, now.Add(keyring.AuthorityLife + time.Hour), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := ""
			for _, h := range keyring.Holds(*first, tc.c, tc.at) {
				got += h.Kind + " " + h.Name
			}
			if got != tc.want {
				t.Errorf("kept by %q, want %q", got, tc.want)
			}
		})
	}
	for _, state := range []keyring.AuthorityState{keyring.AuthorityActive, keyring.AuthorityPrepared} {
		a := *first
		a.State = state
		if holds := keyring.Holds(a, keyring.Contents{Nodes: node(retired.Add(-time.Hour), keyring.NodeActive)}, retired); holds != nil {
			t.Errorf("%s: %v: nothing hangs on what is not retired", state, holds)
		}
	}
}

// What a later authority issued does not hang on an earlier one, nor the other way round.
func TestAuthoritiesAreForgottenEachByItself(t *testing.T) {
	t.Parallel()
	as := newAuthorities(t)
	as.rotate()
	as.rotate()
	second := as.known[as.order[1]]
	c := keyring.Contents{Admins: map[string]*keyring.Admin{"u-1": {ID: "u-1", Name: "ana", ExpiresAt: second.ActiveAt.Add(10*time.Minute + keyring.AdminLife)}}}
	for i, want := range []int{0, 1, 0} {
		if holds := keyring.Holds(*as.known[as.order[i]], c, as.at); len(holds) != want {
			t.Errorf("authority %d is kept by %v", i, holds)
		}
	}
}
