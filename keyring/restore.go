package keyring

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// DenialKind is what a Denial refuses.
type DenialKind string

// The kinds of denials.
const (
	DenyKey        DenialKind = "key"         // a provisioning key
	DenyNode       DenialKind = "node"        //
	DenyAdmin      DenialKind = "admin"       //
	DenySigningKey DenialKind = "signing-key" //
	DenySession    DenialKind = "session"     //
	DenySubject    DenialKind = "user"        //
)

// Denial is one thing that is refused, as somebody remembers it: the present state, the audit trail or a node.
type Denial struct {
	Kind   DenialKind
	Value  string // id; <idp>/<subject>
	State  string // keys: revoked or suspended; nodes: revoked, departed or quarantined; empty: revoked
	Block  bool   // users: new sign-ins, too
	Reason string
	By     string
	At     time.Time
	Source string // who remembers it: state, trail, node/<id>
}

// Where a denial is known from.
const (
	FromState = "state"
	FromTrail = "trail"
)

// RestoreFacts are what a restoration is decided on.
type RestoreFacts struct {
	Present        *Contents // nil: nothing is left of it
	Snapshot       *Contents
	Denials        []Denial     // remembered elsewhere
	Restoration    *Restoration // its statement and signer; Kept: control nodes that stay trusted
	ControlDeparts bool         // the logs of the other control nodes are of another history: they must join anew
	DenyOnly       bool         // add the denials to the present state, which is the snapshot too, and hold nothing back
	Now            time.Time
}

// Restored is what a restoration makes of the records that say who may do what. Authorities, audiences and secrets are no part of it.
type Restored struct {
	Contents
	List    RestoreList
	Refused []Denial // what the snapshot accepts and stays refused, and what it does not know
}

// PlanRestore merges a snapshot into the present state, so that nothing that is refused now is accepted afterwards, and nothing that
// was refused when the snapshot was taken either, but for a key that was pending then: of two records of the same thing, the stricter
// state counts. What could be accepted again is held back, and listed: keys suspended, nodes quarantined, until an operator confirms the
// list. What the snapshot does not know is held back without being listed; an administrator whom it does not know, but for the one who
// signed, is revoked.
//
// It is its own fixed point: what it made, merged again, stays as it is.
func PlanRestore(f RestoreFacts) Restored {
	present := f.Present
	if present == nil {
		present = &Contents{}
	}
	m := &merger{RestoreFacts: f, present: present, denied: map[DenialKind]map[string]Denial{}}
	for _, d := range f.Denials {
		if m.denied[d.Kind] == nil {
			m.denied[d.Kind] = map[string]Denial{}
		}
		if have, known := m.denied[d.Kind][d.Value]; !known || strictness(d) > strictness(have) {
			m.denied[d.Kind][d.Value] = d
		}
	}
	m.out.Mesh = f.Snapshot.Mesh
	if f.Present != nil {
		m.out.Mesh = f.Present.Mesh
	}
	m.keys()
	m.nodes()
	m.admins()
	m.signingKeys()
	m.revocations()
	m.sort()
	return m.out
}

type merger struct {
	RestoreFacts
	present *Contents
	denied  map[DenialKind]map[string]Denial
	out     Restored
}

// strictness orders what a denial makes of a key, a node or a user.
func strictness(d Denial) int {
	weaker := slices.Index([]string{string(NodeQuarantined), string(KeySuspended), string(NodeDeparted)}, d.State)
	switch {
	case d.Block:
		return 4
	case weaker < 0: // revoked
		return 3
	}
	return weaker
}

func keyRank(s KeyState) int {
	return slices.Index([]KeyState{KeyActive, KeyRetiring, KeyPending, KeySuspended, KeyExhausted, KeyExpired, KeyRetired, KeyRevoked}, s)
}

func nodeRank(s NodeState) int {
	return max(0, slices.Index([]NodeState{NodeActive, NodeQuarantined, NodeDeparted, NodeRevoked}, s)) // enrolled and lapsed as active
}

// refused notes that what the snapshot accepts stays refused.
func (m *merger) refused(d Denial) { m.out.Refused = append(m.out.Refused, d) }

func (m *merger) keys() {
	m.out.Keys = map[string]*Key{}
	for id := range both(m.present.Keys, m.Snapshot.Keys) {
		p, s := m.present.Keys[id], m.Snapshot.Keys[id]
		k := *cmp.Or(p, s)
		source := FromState
		if p != nil && s != nil {
			k.Uses = max(p.Uses, s.Uses)
			if keyRank(s.State) > keyRank(p.State) && s.State != KeyPending { // it was activated since, which is no denial taken back
				k.State, k.Reason, k.Cascade, k.RevokedAt = s.State, s.Reason, s.Cascade, s.RevokedAt
			}
		}
		if d, ok := m.denied[DenyKey][id]; ok {
			switch {
			case k.State == KeyRevoked:
			case d.State == string(KeySuspended) && (admits(k.State) || k.State == KeySuspended && k.Reason == m.Restoration.Reason()):
				k.State, k.Reason, source = KeySuspended, d.Reason, d.Source
			case d.State != string(KeySuspended):
				k.State, k.Cascade, k.RevokedAt, k.Reason, source = KeyRevoked, CascadeKeep, m.when(d), d.Reason, d.Source
			}
		}
		if s != nil && (keyRank(k.State) > keyRank(s.State) || m.DenyOnly && k.Reason != s.Reason) && (k.State == KeyRevoked || k.State == KeySuspended && k.Reason != m.Restoration.Reason()) {
			m.refused(Denial{Kind: DenyKey, Value: id, State: string(k.State), Reason: k.Reason, Source: source})
		}
		successor := s == nil && k.Scheduled() && k.succeedable() // it admits nobody, but its rotator would make one that does
		if (admits(k.State) || successor) && !m.DenyOnly {
			held := HeldKey{ID: id, State: k.State}
			k.State, k.Reason = KeySuspended, m.Restoration.Reason()
			if s != nil {
				m.out.List.Keys = append(m.out.List.Keys, held)
			} else {
				k.Reason = m.Restoration.Unlisted()
				m.refused(Denial{Kind: DenyKey, Value: id, State: string(k.State), Reason: k.Reason, Source: FromState})
			}
		}
		m.out.Keys[id] = &k
	}
}

// when is a remembered time, never later than now.
func (m *merger) when(d Denial) time.Time {
	if d.At.IsZero() || d.At.After(m.Now) {
		return m.Now
	}
	return d.At
}

func (m *merger) nodes() {
	m.out.Nodes = map[string]*Node{}
	for id := range both(m.present.Nodes, m.Snapshot.Nodes) {
		p, s := m.present.Nodes[id], m.Snapshot.Nodes[id]
		n := *cmp.Or(p, s)
		source := FromState
		if p != nil && s != nil && nodeRank(s.State) > nodeRank(p.State) {
			n.State, n.Reason, n.StateSince = s.State, s.Reason, s.StateSince
		}
		if d, ok := m.denied[DenyNode][id]; ok && !(p != nil && p.Trusted() && slices.Contains(m.Restoration.Kept, id)) { // what is only remembered ends no quorum
			state := NodeRevoked
			if d.State == string(NodeQuarantined) || d.State == string(NodeDeparted) {
				state = NodeState(d.State)
			}
			if nodeRank(state) > nodeRank(n.State) || state == NodeQuarantined && m.Restoration.holds(&n) {
				n, source = n.to(state, d.Reason, m.when(d)), d.Source
			}
		}
		if s != nil && (s.Trusted() || m.DenyOnly && (nodeRank(n.State) > nodeRank(s.State) || n.Reason != s.Reason)) && !n.Trusted() && n.Reason != m.Restoration.Reason() {
			m.refused(Denial{Kind: DenyNode, Value: id, State: string(n.State), Reason: n.Reason, Source: source})
		}
		kept := slices.Contains(m.Restoration.Kept, id)
		switch {
		case m.ControlDeparts && !kept && n.HasRole(RoleControl) && (n.Trusted() || n.State == NodeQuarantined):
			n = n.to(NodeDeparted, ReasonLeftBehind, m.Now)
		case n.Trusted() && !kept && !m.DenyOnly:
			if s != nil {
				m.out.List.Nodes = append(m.out.List.Nodes, HeldNode{ID: id, State: n.State})
				n = n.to(NodeQuarantined, m.Restoration.Reason(), m.Now)
			} else {
				n = n.to(NodeQuarantined, m.Restoration.Unlisted(), m.Now)
				m.refused(Denial{Kind: DenyNode, Value: id, State: string(n.State), Reason: n.Reason, Source: FromState})
			}
		}
		m.out.Nodes[id] = &n
	}
}

func (m *merger) admins() {
	m.out.Admins = map[string]*Admin{}
	for id := range both(m.present.Admins, m.Snapshot.Admins) {
		p, s := m.present.Admins[id], m.Snapshot.Admins[id]
		a := *cmp.Or(p, s)
		source := FromState
		revoke := func(at time.Time, reason string) {
			if a.RevokedAt.IsZero() {
				a.RevokedAt, a.Reason = at, reason
			}
		}
		if s != nil && !s.RevokedAt.IsZero() {
			revoke(s.RevokedAt, s.Reason)
		}
		if s == nil && id != m.Restoration.By && a.RevokedAt.IsZero() {
			revoke(m.Now, m.Restoration.Unlisted())
			m.refused(Denial{Kind: DenyAdmin, Value: id, Reason: a.Reason, Source: FromState})
		}
		if d, ok := m.denied[DenyAdmin][id]; ok && a.RevokedAt.IsZero() && !(m.DenyOnly && id == m.Restoration.By) { // somebody must be left to confirm
			source = d.Source
			revoke(m.when(d), d.Reason)
		}
		if s != nil && s.RevokedAt.IsZero() && !a.RevokedAt.IsZero() {
			m.refused(Denial{Kind: DenyAdmin, Value: id, Reason: a.Reason, Source: source})
		}
		if a.RevokedAt.IsZero() {
			m.out.List.Admins = append(m.out.List.Admins, id)
		}
		m.out.Admins[id] = &a
	}
}

// signingKeys are the present ones, whose private halves are where they are now; a snapshot's that the present does not know stay
// unknown. Old sessions are refused by the fence, whatever signed them.
func (m *merger) signingKeys() {
	m.out.SigningKeys = map[string]*SigningKey{}
	base := m.present.SigningKeys
	if m.Present == nil {
		base = m.Snapshot.SigningKeys
	}
	for kid, have := range base {
		k := *have
		revoke := func(at time.Time, reason string) {
			if k.State != SigningRevoked {
				k = k.to(SigningRevoked, at)
				k.Reason = reason
			}
		}
		if s := m.Snapshot.SigningKeys[kid]; s != nil && s.State == SigningRevoked {
			revoke(s.StateSince, s.Reason)
		}
		if d, ok := m.denied[DenySigningKey][kid]; ok && k.State != SigningRevoked {
			revoke(m.when(d), d.Reason)
			m.refused(Denial{Kind: DenySigningKey, Value: kid, Reason: d.Reason, Source: d.Source})
		}
		if n := m.out.Nodes[k.Node]; k.Kind == SigningSession && k.Verifies() {
			switch {
			case n == nil || n.State == NodeRevoked:
				revoke(m.Now, "node revoked")
			case n.State == NodeDeparted && k.State != SigningVerifyOnly:
				k = stopSigning(k, m.Now)
			}
		}
		m.out.SigningKeys[kid] = &k
	}
}

// revocations are those of both, and the remembered ones.
func (m *merger) revocations() {
	m.out.Revocations = map[RevocationKind]map[string]*Revocation{RevokeSession: {}, RevokeSubject: {}}
	add := func(r Revocation) {
		if have := m.out.Revocations[r.Kind][r.Value]; have != nil {
			r = stricter(*have, r)
		}
		m.out.Revocations[r.Kind][r.Value] = &r
	}
	for _, c := range []*Contents{m.present, m.Snapshot} {
		for _, values := range c.Revocations {
			for _, r := range values {
				if !r.Over(m.Now) || c == m.present {
					add(*r)
				}
			}
		}
	}
	for _, d := range m.Denials {
		kind, ok := map[DenialKind]RevocationKind{DenySession: RevokeSession, DenySubject: RevokeSubject}[d.Kind]
		if !ok || d.Value == "" {
			continue
		}
		r := Revocation{Kind: kind, Value: d.Value, Block: d.Block && kind == RevokeSubject, Reason: d.Reason, By: d.By, At: m.when(d)}
		if !r.Block {
			r.ExpiresAt = r.At.Add(MaxSession + Skew)
		}
		if have := m.out.Revocations[kind][d.Value]; !r.Over(m.Now) && (have == nil || !covers(have, &r)) {
			add(r)
			m.refused(Denial{Kind: d.Kind, Value: d.Value, Block: r.Block, Reason: d.Reason, Source: d.Source})
		}
	}
	for value, r := range m.present.Revocations[RevokeSubject] {
		if s := m.Snapshot.Revocations[RevokeSubject][value]; s == nil || r.Block && !s.Block {
			m.refused(Denial{Kind: DenySubject, Value: value, Block: r.Block, Reason: r.Reason, Source: FromState})
		}
	}
}

// covers reports whether a refuses all that b does, for as long.
func covers(a, b *Revocation) bool {
	return (a.Block || !b.Block) && (a.ExpiresAt.IsZero() || !b.ExpiresAt.IsZero() && !a.ExpiresAt.Before(b.ExpiresAt))
}

// stricter is the revocation that refuses what either of two does. The first's word stays if it says all.
func stricter(a, b Revocation) Revocation {
	if covers(&a, &b) {
		return a
	}
	if covers(&b, &a) {
		return b
	}
	a.Block, a.ExpiresAt = a.Block || b.Block, time.Time{} // one blocks for a time, the other longer: both, until it is lifted
	return a
}

func (m *merger) sort() {
	slices.SortFunc(m.out.List.Keys, func(a, b HeldKey) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(m.out.List.Nodes, func(a, b HeldNode) int { return cmp.Compare(a.ID, b.ID) })
	slices.Sort(m.out.List.Admins)
	slices.SortFunc(m.out.Refused, func(a, b Denial) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Value, b.Value)) })
}

// both are the ids of two maps.
func both[V any](a, b map[string]V) map[string]bool {
	out := make(map[string]bool, len(a))
	for id := range maps.Keys(a) {
		out[id] = true
	}
	for id := range maps.Keys(b) {
		out[id] = true
	}
	return out
}
