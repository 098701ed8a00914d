package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// lineageTree draws what descends from a key.
type lineageTree struct {
	lineage  *iapmeshv1.Lineage
	now      time.Time
	names    map[string]*iapmeshv1.Node     // by id
	becoming map[string]iapmeshv1.NodeState // by id, of nodes that change
	revoked  string                         // id of the key that is revoked
	activity []audit.KeyActivity            // nil: nobody was asked
}

func newLineageTree(l *iapmeshv1.Lineage) *lineageTree {
	d := &lineageTree{lineage: l, now: l.At.AsTime(), names: map[string]*iapmeshv1.Node{}}
	for _, n := range l.Nodes {
		d.names[n.Id] = n
	}
	return d
}

func (d *lineageTree) root() *branch {
	asked := d.lineage.Key
	for _, k := range d.lineage.Keys {
		if k.Key.Id == asked {
			asked = k.Key.Name + " (" + asked + ")"
		}
	}
	root := &branch{cells: []cell{{text: "lineage of key", style: plain}, {text: asked, style: bold},
		{text: fmt.Sprintf("at revision %s, as %s sees it", revisionText(d.lineage.Revision), d.nodeName(d.lineage.AnsweredBy)), style: dim}}}
	for keys := d.lineage.Keys; len(keys) > 0; {
		n := 0 // keys of a long chain that nothing came of
		for n < len(keys)-1 && d.idle(keys[n]) {
			n++
		}
		if n < fewIdle {
			d.key(root, keys[0])
			keys = keys[1:]
			continue
		}
		root.add(cell{text: fmt.Sprintf("%d keys, %s to %s, under which no node has joined", n, keys[0].Key.Id, keys[n-1].Key.Id), style: dim})
		keys = keys[n:]
	}
	return root
}

// fewIdle is how many keys without nodes are still drawn one by one: a key that is rotated each day has hundreds of predecessors.
const fewIdle = 3

// idle reports whether there is nothing to say of a key.
func (d *lineageTree) idle(k *iapmeshv1.KeyLineage) bool {
	return len(k.Nodes) == 0 && k.Key.Id != d.lineage.Key && !slices.ContainsFunc(d.activity, func(a audit.KeyActivity) bool {
		return a.Key == k.Key.Id && (len(a.Decisions) > 0 || a.SignIns+a.SignInsRefused > 0)
	})
}

func (d *lineageTree) nodeName(id string) string {
	if n := d.names[id]; n != nil {
		return n.Name
	}
	return id
}

func (d *lineageTree) key(root *branch, k *iapmeshv1.KeyLineage) {
	text := "uses " + usesText(k.Key)
	if k.Key.State == iapmeshv1.KeyState_KEY_STATE_RETIRING && k.Key.GraceUntil != nil {
		text += ", admits until " + clockText(k.Key.GraceUntil.AsTime())
	}
	if k.Key.RevokedAt != nil {
		text += ", revoked " + stampText(k.Key.RevokedAt, d.now)
	}
	if k.Key.Reason != "" {
		text += ": " + k.Key.Reason
	}
	state := keyStateCell(k.Key)
	if k.Key.Id == d.revoked && k.Key.State != iapmeshv1.KeyState_KEY_STATE_REVOKED {
		state = cell{text: state.text + " → revoked", style: red}
	}
	b := root.add(cell{text: "key"}, cell{text: k.Key.Id, style: bold}, cell{text: k.Key.Name}, state, cell{text: text, style: dim})
	if k.Key.Id == d.lineage.Key && len(d.lineage.Keys) > 1 {
		b.cells[0].style, b.cells[2].style = bold, bold
	}
	for _, n := range k.Nodes {
		d.node(b, k.Key, n)
	}
	if len(k.Nodes) == 0 {
		b.add(cell{text: "no node has joined under it", style: dim})
	}
	for _, a := range d.activity {
		if a.Key == k.Key.Id {
			activityBranches(b, a)
		}
	}
}

func (d *lineageTree) node(b *branch, key *iapmeshv1.ProvisioningKey, n *iapmeshv1.NodeLineage) {
	state := nodeStateCell(n.Node.State, n.Live)
	if after, ok := d.becoming[n.Node.Id]; ok && after != n.Node.State {
		state = cell{text: state.text + " → " + enumText(after, "NODE_STATE_"), style: red}
	}
	seen := cell{text: "not heard", style: yellow}
	switch {
	case n.Live:
		seen = cell{text: "seen " + stampText(n.LastSeen, d.now), style: dim}
	case n.SeenSince != nil: // by its certificate: this leader has heard nothing since
		seen = cell{text: "last seen " + stampText(n.SeenSince, d.now) + " or later", style: yellow}
	case n.LastSeen != nil:
		seen = cell{text: "last seen " + stampText(n.LastSeen, d.now), style: yellow}
	}
	cells := []cell{{text: "node"}, {text: n.Node.Name, style: bold}, {text: "(" + n.Node.Region + ")"}, {text: rolesText(n.Node.Roles) + ","}, state, {text: n.Node.Id, style: dim}, seen}
	child := b.add(cells...)
	if n.Node.ProvisioningKey != key.Id {
		child.add(cell{text: "joined under key " + n.Node.ProvisioningKey + ", and is bound to this one", style: yellow})
	} else if n.Node.BoundKey != key.Id {
		child.add(cell{text: "bound to key " + n.Node.BoundKey + " now", style: dim})
	}
	var papers []cell
	if left := untilCell(n.Node.CertificateExpiresAt.AsTime(), d.now); left.text != "" {
		papers = append(papers, cell{text: "certificate " + left.text, style: cmp.Or(left.style, dim)})
	}
	if len(n.SigningKeys) > 0 {
		var kids []string
		for _, k := range n.SigningKeys {
			kids = append(kids, k.Kid+" "+enumText(k.State, "SIGNING_KEY_STATE_"))
		}
		papers = append(papers, cell{text: "signs with " + strings.Join(kids, ", "), style: dim})
	}
	if len(papers) > 0 {
		child.add(papers...)
	}
	if n.Sessions.GetAtMost() == 0 {
		return
	}
	sessions := child.addf("%s that it minted, the newest:", liveText(n.Sessions))
	for _, s := range n.Newest {
		sessions.add(d.sessionCells(s)...)
	}
}

func (d *lineageTree) sessionCells(s *iapmeshv1.LiveSession) []cell {
	var regions []string
	for _, id := range s.SeenBy {
		if n := d.names[id]; n != nil && !slices.Contains(regions, n.Region) {
			regions = append(regions, n.Region)
		}
	}
	text := "minted " + stampText(s.IssuedAt, d.now)
	if s.AuthTime != nil {
		text = "signed in " + stampText(s.AuthTime, d.now)
	}
	return []cell{{text: s.SessionId}, {text: s.Subject, style: bold}, {text: text}, {text: "seen " + stampText(s.SeenAt, d.now) + " in " + strings.Join(regions, ", "), style: dim}}
}

// liveText is a number of live sessions, as far as it is known.
func liveText(c *iapmeshv1.SessionCount) string {
	if low, high := c.GetAtLeast(), c.GetAtMost(); low != high {
		return fmt.Sprintf("%d to %d live sessions", low, high)
	}
	return plural(c.GetAtLeast(), "live session")
}

// liveLines says what the numbers of live sessions mean.
func (d *lineageTree) liveLines(t *table) {
	c := d.lineage.Sessions
	t.line("%s in all, seen within the last minutes.", liveText(c))
	if c.GetAtLeast() != c.GetAtMost() {
		t.line("Nodes name only the newest: one that two nodes have seen may be counted twice.")
	}
	if n := c.GetSilent(); n > 0 {
		t.line("%s", t.paint(yellow, fmt.Sprintf("Proxies that do not report: %d. Sessions that they alone have seen are not among these.", n)))
	}
}

// activityBranches hangs on a key what the trail says of it: a line a route.
func activityBranches(b *branch, a audit.KeyActivity) {
	type routeCount struct{ all, allowed, denied, serving, minting, both uint64 }
	var order []string
	routes := map[string]*routeCount{}
	all := uint64(0)
	for _, d := range a.Decisions {
		name := "route " + d.Route
		if d.Others {
			name = "further routes"
		}
		r := routes[name]
		if r == nil {
			r = &routeCount{}
			routes[name] = r
			order = append(order, name)
		}
		all += d.Records
		r.all += d.Records
		switch d.Decision {
		case audit.Allow:
			r.allowed += d.Records
		case audit.Deny:
			r.denied += d.Records
		}
		switch d.By {
		case audit.ByServing:
			r.serving += d.Records
		case audit.ByMinting:
			r.minting += d.Records
		case audit.ByBoth:
			r.both += d.Records
		}
	}
	decisions := b.add(cell{text: plural(all, "decision")})
	for _, name := range order {
		r := routes[name]
		if r.allowed+r.denied == 0 {
			decisions.addf("%s: %d", name, r.all)
			continue
		}
		decisions.add(cell{text: name + ":"}, cell{text: fmt.Sprintf("%d allowed,", r.allowed)}, cell{text: fmt.Sprintf("%d denied", r.denied)},
			cell{text: byText(r.both, r.serving, r.minting), style: dim})
	}
	more := ""
	if a.MoreSubjects {
		more = "at least "
	}
	refused := ""
	if a.SignInsRefused > 0 {
		refused = fmt.Sprintf(", %d refused", a.SignInsRefused)
	}
	users := b.addf("%s%s; %s%s", plural(a.SignIns, "sign-in"), refused, more, plural(uint64(len(a.Subjects)), "user"))
	for chunk := range slices.Chunk(a.Subjects[:min(len(a.Subjects), 9)], 3) {
		users.add(cell{text: strings.Join(chunk, "  "), style: dim})
	}
	if n := len(a.Subjects) - 9; n > 0 {
		users.add(cell{text: fmt.Sprintf("and %d more: -o json names them", n), style: dim})
	}
}

// byText says how decisions stand on the key: whether its nodes served them, minted their sessions, or both.
func byText(both, serving, minting uint64) string {
	var parts []string
	for _, p := range []struct {
		n    uint64
		text string
	}{{both, "served and minted"}, {serving, "served only"}, {minting, "minted only"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.text))
		}
	}
	return "(" + strings.Join(parts, ", ") + ")"
}

func plural(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// clockText is a moment, to the second.
func clockText(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }
