package control_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// sees lets a node report sessions: so many of each minter, the newest by name.
func (w *world) sees(by *joiner, minted ...*iapmeshv1.MintedSessions) {
	v := w.view()
	w.Reports.Set(by.id(), &iapmeshv1.NodeReport{Revision: state.RevisionProto(v.Revision), Minted: minted})
}

// of is what a node would report of the sessions that another minted: count, and some of them as id@seconds.
func (w *world) of(minter *joiner, count uint64, named ...string) *iapmeshv1.MintedSessions {
	m := &iapmeshv1.MintedSessions{ProvisioningKey: minter.secret.ID(), Node: minter.id(), Sessions: count}
	for _, name := range named {
		id, at, _ := strings.Cut(name, "@")
		seconds, err := time.ParseDuration(at + "s")
		must(w.t, err)
		issued := timestamppb.New(w.clock.now().Add(-time.Hour).Add(seconds))
		m.Newest = append(m.Newest, &iapmeshv1.LiveSession{SessionId: id, Subject: "dev/" + id, IssuedAt: issued, SeenAt: issued})
	}
	return m
}

func countText(c *iapmeshv1.SessionCount) string {
	text := fmt.Sprint(c.AtLeast)
	if c.AtMost != c.AtLeast {
		text += fmt.Sprint("-", c.AtMost)
	}
	if c.Silent > 0 {
		text += fmt.Sprintf(" (%d silent)", c.Silent)
	}
	return text
}

// tree writes a lineage as text: a line a key, a line a node.
func tree(l *iapmeshv1.Lineage, names map[string]string) string {
	var lines []string
	for _, k := range l.Keys {
		lines = append(lines, fmt.Sprintf("%s %s: %s", names[k.Key.Id], strings.ToLower(strings.TrimPrefix(k.Key.State.String(), "KEY_STATE_")), countText(k.Sessions)))
		for _, n := range k.Nodes {
			line := fmt.Sprintf("  %s/%s bound to %s, live %v, %d keys: %s", n.Node.Region, n.Node.Name, names[n.Node.BoundKey], n.Live, len(n.SigningKeys), countText(n.Sessions))
			for _, s := range n.Newest {
				line += fmt.Sprintf(" %s by %d", s.SessionId, len(s.SeenBy))
			}
			lines = append(lines, line)
		}
	}
	return strings.Join(append(lines, "in all: "+countText(l.Sessions)), "\n")
}

func TestALineageIsTheTreeUnderTheChainOfAKey(t *testing.T) {
	t.Parallel()
	w := start(t)
	secret := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.Name = "fleet" })
	one := w.joined(secret, "web-1", "eu-west")
	next, err := keyring.GenerateKey(w.pin, nil)
	must(t, err)
	_, _, _, err = w.RotateKey(t.Context(), "admin/ana", &iapmeshv1.RotateKeyRequest{Key: "fleet", SuccessorPublicKey: next.PublicKey(), Grace: durationpb.New(time.Hour)})
	must(t, err)
	two, other := w.joined(next, "web-2", "us-east"), w.joined(w.issue(nil), "other", "us-east")
	names := map[string]string{secret.ID(): "first", next.ID(): "second"}

	w.sees(w.founder, w.of(one, 7, "a@9", "b@8", "c@7", "d@6", "e@5"), w.of(two, 1, "z@1"))
	w.sees(one, w.of(one, 2, "b@8", "f@4"), w.of(other, 3, "y@1"),
		&iapmeshv1.MintedSessions{ProvisioningKey: next.ID(), Node: one.id(), Sessions: 1000}, // it is not that key's node
		&iapmeshv1.MintedSessions{ProvisioningKey: next.ID(), Node: "n-unknown", Sessions: 1000})
	w.sees(two, w.of(two, 2, "z@1", "x@2"))
	// "other" is silent.
	want := `first retiring: 7-8 (1 silent)
  eu-west/web-1 bound to first, live true, 1 keys: 7-8 (1 silent) a by 1 b by 2 c by 1 d by 1 e by 1
second active: 2 (1 silent)
  us-east/web-2 bound to second, live true, 1 keys: 2 (1 silent) x by 1 z by 2
in all: 8-10 (1 silent)`
	for _, ref := range []string{secret.ID(), next.ID(), "fleet"} {
		l, err := w.Lineage(ref)
		must(t, err)
		if diff := cmp.Diff(want, tree(l, names)); diff != "" {
			t.Errorf("lineage of %s: %s", ref, diff)
		}
		if len(l.Nodes) != 4 || !slices.ContainsFunc(l.Nodes, func(n *iapmeshv1.Node) bool { return n.Id == other.id() && len(n.PublicKey) == 32 }) {
			t.Errorf("%d nodes with their keys, want all four", len(l.Nodes))
		}
	}
	// Who was silent for too long is silent, and what it said counts no more.
	w.sees(other)
	w.clock.advance(keyring.LiveWithin + time.Second)
	w.sees(two, w.of(two, 2, "z@1", "x@2"))
	l, err := w.Lineage("fleet")
	must(t, err)
	if got := countText(l.Sessions); got != "2 (3 silent)" || l.Keys[0].Nodes[0].Live || l.Keys[0].Nodes[0].LastSeen == nil {
		t.Errorf("after a while: %s, web-1 %+v", got, l.Keys[0].Nodes[0])
	}
	_, err = w.Lineage("nobody's")
	wantKind(t, "unknown key", err, fault.NotFound, "no key has this id or name")
}

// A leader that has just begun has heard nobody: that a node was there is known by its certificate.
func TestWhenANodeWasSeenIsKnownToEveryLeader(t *testing.T) {
	t.Parallel()
	w := start(t)
	joined := w.clock.now()
	j := w.joined(w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.Name = "fleet" }), "web-1", "eu-west")
	seen := func() string {
		l, err := w.Lineage("fleet")
		must(t, err)
		text := func(ts *timestamppb.Timestamp) string {
			if ts == nil {
				return "-"
			}
			return ts.AsTime().Sub(joined).String()
		}
		n := l.Keys[0].Nodes[0]
		return text(n.LastSeen) + " " + text(n.SeenSince)
	}
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"it has joined, and never reported", func() {}, "- 0s"},
		{"it reports", func() { w.clock.advance(time.Minute); w.sees(j) }, "1m0s -"},
		{"it renews", func() { w.clock.advance(time.Minute); must(t, second(w.Renew(t.Context(), j.id(), j.body.Csr))) }, "1m0s 2m0s"},
	} {
		step.do()
		w.eventually(step.name+": "+step.want, func() bool { return seen() == step.want })
	}
}

// A node that lies costs no memory and cannot name what is not there.
func TestWhatAReportSaysOfSessionsIsBounded(t *testing.T) {
	t.Parallel()
	w := start(t)
	j := w.joined(w.boot, "web-1", "eu-west")
	bad := w.of(j, 1<<60, "ok@1", "ok@2", "a@1", "b@1", "c@1", "d@1", "e@1")
	bad.Newest = append(bad.Newest, nil)
	bad.Newest[2].SessionId = "../../x"
	bad.Newest[3].Subject = strings.Repeat("x", 5000)
	many := []*iapmeshv1.MintedSessions{nil, {Node: strings.Repeat("n", 5000)}, bad}
	for range 500 {
		many = append(many, w.of(j, 1))
	}
	w.sees(j, many...)
	report, _ := w.Reports.Get(j.id())
	if len(report.Minted) != 100 || report.Minted[0].Sessions != 1<<32 || len(report.Minted[0].Newest) != 4 {
		t.Errorf("%d minters, the first %v", len(report.Minted), report.Minted[0])
	}
}

func TestADryRunSaysWhatARevocationEnds(t *testing.T) {
	t.Parallel()
	w := start(t)
	must(t, second(w.Apply(t.Context(), "admin/ana", apply(t, lineageYAML))))
	secret := w.issue(nil)
	bystander, j := w.joined(w.boot, "bystander", "eu-west"), w.joined(secret, "web-1", "us-east")
	w.everybodyReports()
	w.sees(w.founder, w.of(j, 2, "a@1", "b@2"), w.of(bystander, 1, "c@1"))
	w.eventually("assertion key of us-east", func() bool { return w.view().Keyring.ActiveAssertionKey("us-east", "") != nil })
	for cascade, want := range map[iapmeshv1.Cascade]string{
		iapmeshv1.Cascade_CASCADE_KEEP:       "nodes [] keys 0 sessions 0 lost []",
		iapmeshv1.Cascade_CASCADE_QUARANTINE: "nodes [web-1 quarantined] keys 1 sessions 2 lost [billing/us-east]",
		iapmeshv1.Cascade_CASCADE_KILL:       "nodes [web-1 revoked] keys 2 sessions 2 lost [billing/us-east]", // and the assertion key that it could open
	} {
		before := w.key(secret.ID())
		key, blast, err := w.PreviewKeyRevocation(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: secret.ID(), Cascade: cascade})
		must(t, err)
		if got := blastText(blast); got != want || blast.Refusal != "" || key.State != keyring.KeyRevoked || w.key(secret.ID()) != before || w.node(j).State != keyring.NodeActive {
			t.Errorf("%s: %s, want %s; refused %q, key %s, in fact %s", cascade, got, want, blast.Refusal, key.State, w.key(secret.ID()).State)
		}
	}
	byNode, err := w.PreviewNodeRevocation(t.Context(), "web-1")
	must(t, err)
	if got, want := blastText(byNode), "nodes [web-1 revoked] keys 2 sessions 2 lost [billing/us-east]"; got != want {
		t.Errorf("by node: %s, want %s", got, want)
	}
	// What the mesh could not do is said, with all that it would have ended.
	_, blast, err := w.PreviewKeyRevocation(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: w.boot.ID(), Cascade: iapmeshv1.Cascade_CASCADE_KILL})
	must(t, err)
	if got := blastText(blast); !strings.Contains(blast.Refusal, "leads") || !strings.Contains(got, "founder revoked") || !strings.Contains(got, "billing/eu-west") {
		t.Errorf("kill all: refused %q, %s", blast.Refusal, got)
	}
	_, _, err = w.PreviewKeyRevocation(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: "none", Cascade: iapmeshv1.Cascade_CASCADE_KILL})
	wantKind(t, "an unknown key", err, fault.NotFound, "")
	if byNode, err = w.PreviewNodeRevocation(t.Context(), "founder"); err != nil || !strings.Contains(byNode.Refusal, "leads") {
		t.Errorf("the leader itself: %v, %v", byNode, err)
	}
	// What is ended is told by what was there before.
	survey, err := w.Survey()
	must(t, err)
	_, affected, _, err := w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: secret.ID(), Cascade: iapmeshv1.Cascade_CASCADE_KILL})
	must(t, err)
	w.sees(w.founder)
	if got, want := blastText(survey.Blast(affected)), "nodes [web-1 revoked] keys 2 sessions 2 lost [billing/us-east]"; got != want {
		t.Errorf("what happened: %s, want %s", got, want)
	}
}

func blastText(b *iapmeshv1.BlastRadius) string {
	var nodes, lost []string
	for _, n := range b.Nodes {
		nodes = append(nodes, n.Node.Name+" "+strings.ToLower(strings.TrimPrefix(n.Node.State.String(), "NODE_STATE_")))
	}
	for _, r := range b.Routes {
		lost = append(lost, r.Route+"/"+r.Region)
	}
	return fmt.Sprintf("nodes %v keys %d sessions %s lost %v", nodes, len(b.SigningKeys), countText(b.Sessions), lost)
}

const lineageYAML = `
kind: Settings
name: mesh
issuer: https://auth.example.com
sign_in_host: auth.example.com
---
kind: IdentityProvider
name: okta
oidc: {issuer: https://example.okta.com, client_id: iapmesh}
---
kind: Route
name: billing
hosts: [billing.example.com]
upstreams: [{url: http://10.0.0.5:8080}]
identity_providers: [okta]
allow: [{groups: [okta/finance]}]
`

// A cascade that would cost the quorum is shown with all that it would end, and as refused.
func TestADryRunSaysThatQuorumWouldBeLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	voters := &electorate{members: map[string]control.Voter{w.founder.id(): {ID: w.founder.id(), Voter: true}}}
	w.Voters = voters
	w.start()
	secret := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.Grants = []iapmeshv1.Role{iapmeshv1.Role_ROLE_CONTROL} })
	for _, name := range []string{"control-2", "control-3"} {
		j := w.joined(secret, name, "us-east", iapmeshv1.Role_ROLE_CONTROL)
		w.eventually("a follower", func() bool { member, _ := voters.votes(j); return member }) // by now the leader's view knows it: else it would put it out again
		must(t, voters.AddVoter(t.Context(), j.id(), ""))
	}
	_, blast, err := w.PreviewKeyRevocation(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: secret.ID(), Cascade: iapmeshv1.Cascade_CASCADE_KILL})
	must(t, err)
	if !strings.Contains(blast.Refusal, "take 2 of 3 control nodes and leave 1 live, where 2 are needed") || len(blast.Nodes) != 2 {
		t.Errorf("refused %q, %s", blast.Refusal, blastText(blast))
	}
	w.everybodyReports()
	one, err := w.PreviewNodeRevocation(t.Context(), "control-2")
	must(t, err)
	if one.Refusal != "" || len(one.Nodes) != 1 {
		t.Errorf("one of three: refused %q, %s", one.Refusal, blastText(one))
	}
}
