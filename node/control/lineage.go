package control

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// The bounds of what a node's report may say of sessions; see node/session's.
const (
	maxMinters   = 100
	newestMinted = 5
)

// Lineage says what descends from a key: its rotation chain, the nodes that joined under each key, and the live sessions that these
// have minted, as every node reports them.
func (c *Controller) Lineage(ref string) (*iapmeshv1.Lineage, error) {
	if _, err := c.mustLead(); err != nil {
		return nil, err
	}
	v, err := c.view()
	if err != nil {
		return nil, err
	}
	key, err := v.Keyring.FindKey(ref)
	if err != nil {
		return nil, err
	}
	live := c.Reports.sessions(v)
	out := &iapmeshv1.Lineage{
		Key: key.ID, MeshId: v.Keyring.Mesh.ID, Revision: state.RevisionProto(v.Revision), At: timestamppb.New(c.Now()), AnsweredBy: c.NodeID,
	}
	var chain []heldSessions
	for _, branch := range v.Keyring.Lineage(key.ID) {
		k := &iapmeshv1.KeyLineage{Key: state.KeyProto(branch.Key)}
		var held []heldSessions
		for _, n := range byRegion(slices.Concat(branch.Nodes, branch.Rebound)) {
			k.Nodes = append(k.Nodes, c.nodeLineage(v, n, live))
			if n.ProvisioningKey == branch.Key.ID {
				held = append(held, live.minted[n.ID]...)
			}
		}
		k.Sessions = live.count(held)
		chain = append(chain, held...)
		out.Keys = append(out.Keys, k)
	}
	out.Sessions = live.count(chain)
	for _, n := range sortedNodes(v) {
		out.Nodes = append(out.Nodes, state.NodeProto(n))
	}
	return out, nil
}

func byRegion(nodes []*keyring.Node) []*keyring.Node {
	return slices.SortedFunc(slices.Values(nodes), func(a, b *keyring.Node) int {
		return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
}

func (c *Controller) nodeLineage(v *state.View, n *keyring.Node, live *liveSessions) *iapmeshv1.NodeLineage {
	held := live.minted[n.ID]
	out := &iapmeshv1.NodeLineage{Node: state.NodeProto(n), Sessions: live.count(held), Newest: newestOf(held)}
	report, ok := c.Reports.Get(n.ID)
	if certified := certifiedAt(n); certified.After(report.At) { // a leader knows what it was told itself: another may have heard the node since
		out.SeenSince = state.Stamp(certified)
	}
	if ok {
		out.LastSeen, out.Served, out.Live = state.Stamp(report.At), report.GetRevision(), c.Reports.Live(n.ID)
	}
	for _, k := range v.Keyring.SigningKeysOf(n.ID) {
		if k.Verifies() {
			out.SigningKeys = append(out.SigningKeys, state.SigningKeyProto(k))
		}
	}
	return out
}

// heldSessions are the live sessions of one minting node, as one node reports them: how many, and some by name.
type heldSessions struct {
	by    string // who reports
	count uint64
	named []*iapmeshv1.LiveSession
}

// liveSessions is what all nodes report now.
type liveSessions struct {
	minted map[string][]heldSessions // by minting node
	silent uint32                    // proxies that may serve and do not report
}

// sessions gathers what live nodes report. What one says of a node that is unknown, or of another key than the one that the record
// names, does not count.
func (r *Reports) sessions(v *state.View) *liveSessions {
	out := &liveSessions{minted: map[string][]heldSessions{}}
	for _, n := range sortedNodes(v) {
		if !n.Trusted() || !n.HasRole(keyring.RoleProxy) {
			continue
		}
		report, ok := r.Get(n.ID)
		if !ok || !r.Live(n.ID) {
			out.silent++
			continue
		}
		for _, m := range report.GetMinted() {
			if minter := v.Keyring.Nodes[m.GetNode()]; minter != nil && minter.ProvisioningKey == m.GetProvisioningKey() {
				out.minted[minter.ID] = append(out.minted[minter.ID], heldSessions{by: n.ID, count: m.GetSessions(), named: m.GetNewest()})
			}
		}
	}
	return out
}

// count bounds how many distinct sessions there are. One that several nodes have seen is known to be one only where they name it:
// at least there are as many as the node with most has, or as are named; at most as many as all have, less what is named twice.
func (l *liveSessions) count(held []heldSessions) *iapmeshv1.SessionCount {
	out := &iapmeshv1.SessionCount{Silent: l.silent}
	distinct := map[string]bool{}
	for _, h := range held {
		out.AtLeast = max(out.AtLeast, h.count)
		out.AtMost += h.count
		for _, s := range h.named {
			if distinct[s.GetSessionId()] {
				out.AtMost--
			}
			distinct[s.GetSessionId()] = true
		}
	}
	out.AtLeast = max(out.AtLeast, uint64(len(distinct)))
	return out
}

// newestOf merges what is named, by who has seen it.
func newestOf(held []heldSessions) []*iapmeshv1.LiveSession {
	merged := map[string]*iapmeshv1.LiveSession{}
	var out []*iapmeshv1.LiveSession
	for _, h := range held {
		for _, s := range h.named {
			have := merged[s.GetSessionId()]
			if have == nil {
				have = &iapmeshv1.LiveSession{
					SessionId: s.GetSessionId(), Subject: s.GetSubject(), AuthTime: s.GetAuthTime(), IssuedAt: s.GetIssuedAt(), SeenAt: s.GetSeenAt(),
					SigningKid: s.GetSigningKid(),
				}
				merged[s.GetSessionId()] = have
				out = append(out, have)
			}
			have.SeenBy = append(have.SeenBy, h.by)
			if s.GetIssuedAt().AsTime().After(have.IssuedAt.AsTime()) {
				have.IssuedAt, have.SigningKid = s.GetIssuedAt(), s.GetSigningKid()
			}
			if s.GetSeenAt().AsTime().After(have.SeenAt.AsTime()) {
				have.SeenAt = s.GetSeenAt()
			}
		}
	}
	slices.SortFunc(out, func(a, b *iapmeshv1.LiveSession) int {
		return cmp.Or(b.IssuedAt.AsTime().Compare(a.IssuedAt.AsTime()), cmp.Compare(a.SessionId, b.SessionId))
	})
	return out[:min(len(out), newestMinted)]
}

// clipMinted keeps of a report what it may say of sessions: a node fills no leader's memory, and no operator's terminal.
func clipMinted(report *iapmeshv1.NodeReport) {
	if report == nil {
		return
	}
	kept := report.Minted[:0]
	for _, m := range report.Minted {
		if len(kept) == maxMinters {
			break
		}
		if m == nil || len(m.Node) > keyring.MaxName || len(m.ProvisioningKey) > keyring.MaxName {
			continue
		}
		named := map[string]bool{}
		newest := m.Newest[:0]
		for _, s := range m.Newest {
			if len(newest) < newestMinted && keyring.ValidSessionID(s.GetSessionId()) == nil && !named[s.GetSessionId()] &&
				len(s.GetSubject()) <= maxSubject && len(s.GetSigningKid()) <= keyring.MaxName {
				named[s.GetSessionId()] = true
				s.SeenBy = nil
				newest = append(newest, s)
			}
		}
		clear(m.Newest[len(newest):])
		m.Newest = newest
		m.Sessions = min(max(m.Sessions, uint64(len(newest))), maxSessions)
		kept = append(kept, m)
	}
	clear(report.Minted[len(kept):])
	report.Minted = kept
}

const (
	maxSubject  = 1 << 10 // bytes; a token's are fewer
	maxSessions = 1 << 32 // on one node
)
