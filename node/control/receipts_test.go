package control_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// receipts lists what is kept, newest first.
func (w *world) receipts() []*keyring.Receipt {
	w.t.Helper()
	rs, err := w.ListReceipts(w.t.Context(), control.ReceiptQuery{})
	must(w.t, err)
	return rs
}

// receiptOf is the receipt of what was committed at the revision.
func (w *world) receiptOf(at revision.Revision) *keyring.Receipt {
	w.t.Helper()
	id := w.ReceiptID(at)
	r, _, err := w.GetReceipt(w.t.Context(), id)
	must(w.t, err)
	return r
}

func (w *world) eventuallyReceipt(at revision.Revision, want keyring.ReceiptState) (r *keyring.Receipt) {
	w.t.Helper()
	w.eventually("receipt "+string(want), func() bool { r = w.receiptOf(at); return r.State == want })
	return r
}

// says lets a node report that it serves a revision.
func (w *world) says(j *joiner, at revision.Revision) {
	w.Reports.Set(j.id(), &iapmeshv1.NodeReport{Revision: state.RevisionProto(at)})
}

// committed collects the keys of each commit from now on.
func (w *world) committed() (each func() [][]string) {
	var mu sync.Mutex
	var commits [][]string
	w.engine.setSpoil(func(t store.Txn) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		var keys []string
		for _, e := range t.Puts {
			keys = append(keys, e.Key)
		}
		commits = append(commits, append(keys, t.Deletes...))
		return false, nil
	})
	return func() [][]string {
		mu.Lock()
		defer mu.Unlock()
		out := commits
		commits = nil
		return out
	}
}

func TestEachRotationAndRevocationLeavesAReceiptInItsCommit(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.joined(w.boot, "web-1", "us-east")
	w.eventually("audiences in step", func() bool { return w.opens(w.founder, keyring.AudienceGossip) })
	kid := w.view().Keyring.ActiveSessionKey(w.founder.id()).KID
	fleet, next := newKey(t), newKey(t)
	fleetID := keyring.KeyID(public(fleet))
	bob := newKey(t)
	csr, err := keyring.NewCSR(bob)
	must(t, err)
	_, _, err = w.IssueAdmin(t.Context(), "admin/ana", &iapmeshv1.IssueAdminRequest{Name: "bob", Csr: csr})
	must(t, err)
	revoke := func(target iapmeshv1.RevokeTarget, value string) func() error {
		return func() error { return second(w.revoke(target, value, false)) }
	}
	commits := w.committed()
	for _, tc := range []struct {
		action, target, beside string // beside: what lies in the same commit
		do                     func() error
	}{
		{"key.issue", fleetID, state.KeyPath(fleetID), func() error {
			return second2(w.IssueKey(t.Context(), "admin/ana", &iapmeshv1.IssueKeyRequest{PublicKey: public(fleet), Name: "fleet", Grants: []iapmeshv1.Role{iapmeshv1.Role_ROLE_PROXY}}))
		}},
		{"key.rotate", fleetID, state.KeyPath(fleetID), func() error {
			_, _, _, err := w.RotateKey(t.Context(), "admin/ana", &iapmeshv1.RotateKeyRequest{Key: "fleet", SuccessorPublicKey: public(next)})
			return err
		}},
		{"key.revoke", fleetID, state.KeyPath(fleetID), func() error {
			_, _, _, err := w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: fleetID, Reason: "test"})
			return err
		}},
		{"signing-key.rotate", "session of founder", state.SigningKeyPath(kid), func() error {
			return second2(w.RotateSigningKeys(t.Context(), "admin/ana", &iapmeshv1.RotateSigningKeysRequest{Kind: iapmeshv1.SigningKeyKind_SIGNING_KEY_KIND_SESSION, Node: "founder"}))
		}},
		{"revoke.session", "sid-1", "revocation/session/sid-1", revoke(session, "sid-1")},
		{"revoke.user", "okta/ana", "revocation/subject/okta/ana", revoke(user, "okta/ana")},
		{"revoke.signing_key", kid, state.SigningKeyPath(kid), revoke(signing, kid)},
		{"revoke.node", "", "node/", revoke(onNode, "web-1")},
		{"revocation.lift", "okta/ana", "revocation/subject/okta/ana", func() error { return second(w.Lift(t.Context(), "admin/ana", keyring.RevokeSubject, "okta/ana")) }},
		{"admin.revoke", "bob", state.AdminPath(keyring.AdminID(public(bob))), func() error { return second2(w.RevokeAdmin(t.Context(), "admin/ana", "bob", "test")) }},
	} {
		commits()
		must(t, tc.do())
		r := w.receipts()[0]
		if r.Action != tc.action || !strings.Contains(r.Target, tc.target) || r.By != "admin/ana" || r.State != keyring.ReceiptOpen || r.More {
			t.Errorf("%s: the newest receipt is %+v", tc.action, r)
		}
		beside := false
		for _, keys := range commits() {
			all := strings.Join(keys, "\n")
			if strings.Contains(all, state.ReceiptPath(r.ID)) {
				beside = strings.Contains(all, tc.beside)
			}
		}
		if !beside {
			t.Errorf("%s: %s is not in the commit of the change", tc.action, state.ReceiptPath(r.ID))
		}
		if w.ReceiptID(r.Revision) != r.ID {
			t.Errorf("%s: revision %s leads to %q", tc.action, r.Revision, w.ReceiptID(r.Revision))
		}
		if kind := w.trail.with(audit.KindRevocation, "receipt", r.ID); strings.HasPrefix(tc.action, "revoke.") && len(kind) != 1 {
			t.Errorf("%s: %d records name the receipt", tc.action, len(kind))
		}
	}
	if named := w.receipts()[0].Nodes; len(named) != 1 || named[0].ID != w.founder.id() {
		t.Errorf("after web-1 is revoked, %+v have to know", named)
	}
	before := len(w.receipts())
	must(t, second(w.EndSession(t.Context(), w.founder.id(), "sid-2", "okta/ana")))
	if _, err := w.revoke(onNode, "founder", false); err == nil {
		t.Error("the leader was revoked")
	}
	must(t, second2(w.RevokeAdmin(t.Context(), "admin/ana", keyring.AdminID(public(bob)), ""))) // is revoked already
	if n := len(w.receipts()); n != before {
		t.Errorf("%d receipts of a sign-out, of what was refused, and of what changed nothing", n-before)
	}
}

func TestAReceiptIsWrittenWhenEveryLiveNodeHasItAndWhenAllHave(t *testing.T) {
	t.Parallel()
	w := start(t)
	live, dead := w.joined(w.boot, "live", "eu-west"), w.joined(w.boot, "dead", "us-east")
	w.clock.advance(keyring.LiveWithin + time.Second)
	at, err := w.revoke(user, "okta/ana", true)
	must(t, err)
	commits := w.committed()
	for i := range 50 { // reports alone write nothing
		w.says(live, revision.Revision{Epoch: at.Epoch, Index: at.Index - 1})
		w.says(w.founder, revision.Revision{Epoch: at.Epoch, Index: at.Index + uint64(i)})
	}
	w.settled()
	if r := w.receiptOf(at); r.State != keyring.ReceiptOpen || r.Revision != at || len(r.Nodes) != 3 {
		t.Errorf("before live has it: %+v", r)
	}
	w.clock.advance(time.Second)
	w.says(live, at)
	r := w.eventuallyReceipt(at, keyring.ReceiptLive)
	if r.Revision != at || r.LiveAt.Sub(r.At) != time.Second || r.CommittedBy.Before(r.At) || !r.EveryAt.IsZero() {
		t.Errorf("live: %+v", r)
	}
	_, now, err := w.GetReceipt(t.Context(), r.ID)
	must(t, err)
	if !now.Complete || now.Everywhere || now.Id != r.ID || len(now.Lagging) != 1 || now.Lagging[0].NodeId != dead.id() || state.RevisionOf(now.Revision) != at {
		t.Errorf("live: %+v", now)
	}
	w.clock.advance(time.Hour)
	w.says(dead, w.view().Revision)
	r = w.eventuallyReceipt(at, keyring.ReceiptEverywhere)
	if r.Revision != at || r.EveryAt.Sub(r.LiveAt) != time.Hour {
		t.Errorf("everywhere: %+v", r)
	}
	for _, n := range r.Nodes {
		if n.AckAt.IsZero() || (n.ID == dead.id()) != n.AckAt.Equal(r.EveryAt) {
			t.Errorf("%s acknowledged at %v", n.Name, n.AckAt)
		}
	}
	if len(w.view().Keyring.Receipts) != 0 {
		t.Error("the view keeps a receipt that is complete")
	}
	writes := 0
	for _, keys := range commits() {
		if strings.Contains(strings.Join(keys, " "), state.PrefixReceipt) {
			writes++
		}
	}
	if writes != 2 {
		t.Errorf("%d writes, want one for the live nodes and one for all", writes)
	}
	for _, s := range []string{"live", "everywhere"} {
		w.eventually("a record of "+s, func() bool { return len(w.trail.with(audit.KindRevocation, "state", s)) > 0 }) // written after the commit
		if rs := w.trail.with(audit.KindRevocation, "state", s); len(rs) != 1 || rs[0].Detail["action"] != "receipt.complete" || rs[0].Detail["receipt"] != r.ID {
			t.Errorf("records of %s: %+v", s, rs)
		}
	}
}

func TestWhoIsGoneIsNotAwaited(t *testing.T) {
	t.Parallel()
	w := start(t)
	dead := w.joined(w.boot, "dead", "us-east")
	w.clock.advance(keyring.LiveWithin + time.Second)
	at, err := w.revoke(session, "sid-1", false)
	must(t, err)
	w.says(w.founder, at)
	w.eventuallyReceipt(at, keyring.ReceiptLive)
	must(t, second(w.revoke(onNode, "dead", false)))
	r := w.eventuallyReceipt(at, keyring.ReceiptEverywhere)
	for _, n := range r.Nodes {
		if (n.ID == dead.id()) != (n.Gone == keyring.NodeRevoked && !n.GoneAt.IsZero() && n.AckAt.IsZero()) {
			t.Errorf("%+v", n)
		}
	}
}

func TestANewLeaderGoesOnWithOpenReceipts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stop := w.lead(w.Controller)
	early, late := w.joined(w.boot, "early", "eu-west"), w.joined(w.boot, "late", "us-east")
	w.clock.advance(keyring.LiveWithin + time.Second)
	w.everybodyReports(late) // the leader waits for both of those who live
	at, err := w.revoke(session, "sid-1", false)
	must(t, err)
	w.says(w.founder, at)
	w.says(early, at)
	r := w.eventuallyReceipt(at, keyring.ReceiptLive)
	acked := r.LiveAt
	stop()

	config, registry := w.Config, prometheus.NewRegistry()
	config.Registerer = registry
	w.Controller = control.New(config) // it has heard nobody
	defer w.lead(w.Controller)()
	w.says(w.founder, at)
	if now := w.Receipt(at, w.view()); now.Complete {
		t.Errorf("a leader that has just begun to listen says that every live node has it: %+v", now)
	}
	w.clock.advance(time.Minute)
	w.says(w.founder, at)
	if now := w.Receipt(at, w.view()); !now.Complete || now.Everywhere {
		t.Errorf("a minute later: %+v", now)
	}
	wantMetrics := func(open, oldest, everywhere float64) {
		t.Helper()
		families, err := registry.Gather()
		must(t, err)
		got := map[string]float64{}
		for _, f := range families {
			m := f.GetMetric()[0]
			got[f.GetName()] = m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
		if diff := cmp.Diff(map[string]float64{
			"iapmesh_receipts_open": open, "iapmesh_receipts_oldest_open_seconds": oldest, "iapmesh_receipt_everywhere_seconds": everywhere,
		}, got); diff != "" {
			t.Error(diff)
		}
	}
	wantMetrics(1, 60, 0)
	if _, now, err := w.GetReceipt(t.Context(), r.ID); err != nil || !now.Complete || len(now.Acknowledged) != 2 || len(now.Lagging) != 1 {
		t.Errorf("the new leader forgets what is written: %+v, %v", now, err)
	}
	w.says(w.founder, w.view().Revision)
	w.says(late, w.view().Revision) // early stays silent: what it said to the first leader is written
	w.eventually("completion", func() bool { return w.receipts()[0].State == keyring.ReceiptEverywhere })
	w.eventually("the record of it", func() bool { return len(w.trail.with(audit.KindRevocation, "state", "everywhere")) == 1 })
	wantMetrics(0, 0, 1)
	for _, n := range w.receipts()[0].Nodes {
		if n.Name == "early" && !n.AckAt.Equal(acked) {
			t.Errorf("early acknowledged at %v, want %v", n.AckAt, acked)
		}
	}
}

func TestACascadeOfSeveralCommitsHasOneReceipt(t *testing.T) {
	t.Parallel()
	w := start(t)
	secret := w.issue(nil)
	const nodes = 45
	for i := range nodes {
		must(t, second(w.Join(t.Context(), newJoiner(t, secret, fmt.Sprintf("web-%d", i), "us-east").attempt())))
	}
	w.clock.advance(keyring.LiveWithin + time.Second)
	// The second commit of the cascade fails: what began is told apart, and the same call again ends it.
	parts := 0
	w.engine.setSpoil(func(txn store.Txn) (bool, error) {
		for _, e := range txn.Puts {
			if e.Key == state.KeyPath(secret.ID()) {
				if parts++; parts == 2 {
					return false, fault.Wrap(fault.Unavailable, errors.New("spoilt"))
				}
			}
		}
		return false, nil
	})
	req := &iapmeshv1.RevokeKeyRequest{Key: secret.ID(), Cascade: iapmeshv1.Cascade_CASCADE_KILL}
	_, _, _, err := w.RevokeKey(t.Context(), "admin/ana", req)
	wantKind(t, "the second part", err, fault.Unavailable, "do it again")
	begun := w.receipts()[0]
	if begun.Action != "key.revoke" || !begun.More {
		t.Fatalf("after the first part: %+v", begun)
	}
	w.everybodyReports()
	if _, now, err := w.GetReceipt(t.Context(), begun.ID); err != nil || now.Complete || !now.Unfinished {
		t.Errorf("unfinished: %+v, %v", now, err)
	}
	_, _, at, err := w.RevokeKey(t.Context(), "admin/ana", req)
	must(t, err)
	r := w.receipts()[0]
	if r.ID != begun.ID || r.More || r.Revision != at {
		t.Errorf("after the last part, at %s: %+v", at, r)
	}
	w.everybodyReports()
	r = w.eventuallyReceipt(at, keyring.ReceiptEverywhere)
	if r.Revision != at {
		t.Errorf("revision %s, want that of the last commit, %s", r.Revision, at)
	}
}

func TestReceiptsAreKeptForAWhile(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.settled() // a leader prunes when it begins, and looks again an hour later
	term, _ := w.Leading()
	const many = keyring.ReceiptsKept + 120
	var puts []store.Entry
	for i := range many {
		now := w.clock.now().Add(time.Duration(i-many) * time.Second)
		id, err := keyring.NewReceiptID(now, w.Random)
		must(t, err)
		r, err := keyring.NewReceipt(id, keyring.Act{Action: "revoke.session", Target: fmt.Sprintf("sid-%d.", i)}, nil, now)
		must(t, err)
		r.State, r.Revision = keyring.ReceiptEverywhere, revision.Revision{Epoch: 1, Index: 1}
		if puts = append(puts, state.PutReceipt(&r)); len(puts) == store.MaxOps || i == many-1 {
			must(t, second(w.engine.Commit(t.Context(), store.Txn{Term: term, Puts: puts})))
			puts = nil
		}
	}
	all := func() int {
		entries, _, err := w.engine.List(t.Context(), state.PrefixReceipt)
		must(t, err)
		return len(entries)
	}
	w.clock.advance(time.Hour) // that it looks
	w.eventually("pruning", func() bool { return all() == keyring.ReceiptsKept })
	list := func(q control.ReceiptQuery) int {
		rs, err := w.ListReceipts(t.Context(), q)
		must(t, err)
		return len(rs)
	}
	if list(control.ReceiptQuery{Target: "sid-119."}) != 0 || list(control.ReceiptQuery{Target: "sid-120."}) != 1 {
		t.Error("not the oldest were pruned")
	}
	if n := list(control.ReceiptQuery{Since: w.clock.now().Add(-time.Hour - 10*time.Second)}); n != 10 {
		t.Errorf("%d since then", n)
	}
	if n := list(control.ReceiptQuery{Limit: 7}); n != 7 {
		t.Errorf("%d, want the limit", n)
	}
	w.eventually("a record of each commit that pruned", func() bool { return len(w.trail.with(audit.KindAdmin, "action", "receipt.prune")) == 3 })
	_, err := w.ListReceipts(t.Context(), control.ReceiptQuery{Limit: keyring.ReceiptsKept + 1})
	wantKind(t, "too many", err, fault.Invalid, "limit")
	_, _, err = w.GetReceipt(t.Context(), "r-00000000000000000000")
	wantKind(t, "none", err, fault.NotFound, "90 days")
	_, _, err = w.GetReceipt(t.Context(), "../admin/x")
	wantKind(t, "no id", err, fault.Invalid, "want r-")
}

func TestFollowingAKeptReceipt(t *testing.T) {
	t.Parallel()
	w := start(t)
	dead := w.joined(w.boot, "dead", "us-east")
	w.clock.advance(keyring.LiveWithin + time.Second)
	at, err := w.revoke(session, "sid-1", false)
	must(t, err)
	follow := func(everywhere bool) (last *iapmeshv1.Receipt, done chan error) {
		last, done = &iapmeshv1.Receipt{}, make(chan error, 1)
		go func() {
			var got *iapmeshv1.Receipt
			err := w.FollowReceipt(t.Context(), control.ReceiptWatch{ID: w.ReceiptID(at), Everywhere: everywhere}, func(r *iapmeshv1.Receipt) error { got = r; return nil })
			last.Complete, last.Everywhere = got.GetComplete(), got.GetEverywhere()
			done <- err
		}()
		return last, done
	}
	live, liveDone := follow(false)
	all, allDone := follow(true)
	w.says(w.founder, at)
	must(t, <-liveDone)
	if !live.Complete || live.Everywhere || w.receiptOf(at).State != keyring.ReceiptLive {
		t.Errorf("%+v: it ends before the completion is written", live)
	}
	select {
	case err := <-allDone:
		t.Fatalf("it ends before dead has it: %v", err)
	default:
	}
	w.says(dead, at)
	must(t, <-allDone)
	if !all.Everywhere || w.receiptOf(at).State != keyring.ReceiptEverywhere {
		t.Errorf("%+v", all)
	}
	err = w.FollowReceipt(t.Context(), control.ReceiptWatch{ID: "r-00000000000000000000"}, func(*iapmeshv1.Receipt) error { return nil })
	wantKind(t, "none", err, fault.NotFound, "")
}
