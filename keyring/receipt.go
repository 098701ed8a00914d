package keyring

import (
	"cmp"
	"encoding/base32"
	"encoding/binary"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
)

// ReceiptState is how far a change has come: open, then live, then everywhere, and never back.
type ReceiptState string

// The states of a receipt.
const (
	ReceiptOpen       ReceiptState = "open"
	ReceiptLive       ReceiptState = "live"       // every live node has it
	ReceiptEverywhere ReceiptState = "everywhere" // every node that had to know has it, or may serve no more
)

// Act is a change that deserves a receipt.
type Act struct {
	Action string // such as key.revoke
	Target string
	By     string
	Reason string
	More   bool // further commits of the same act follow this one
}

// Receipt is the kept account of how a change arrived. It names the nodes that were trusted when the change was made; one that joins
// later serves only by a view that holds its own record, which was committed after the change.
type Receipt struct {
	ID string
	Act
	At          time.Time
	State       ReceiptState
	Revision    revision.Revision // of the change: that of the last of its commits
	CommittedBy time.Time         // the change was committed by then; zero: it is known to the leader alone
	Nodes       []ReceiptNode     // by region, name, id
	LiveAt      time.Time
	EveryAt     time.Time
}

// ReceiptNode is a node that had to know.
type ReceiptNode struct {
	ID, Name, Region string
	AckAt            time.Time // by when it was heard to serve by the change; zero: not heard
	Gone             NodeState // what became of it instead: departed, quarantined, revoked; empty: it is awaited
	GoneAt           time.Time
}

var receiptEncoding = base32.HexEncoding.WithPadding(base32.NoPadding) // keeps the order of bytes

// NewReceiptID makes an id that sorts by its time, to the millisecond: "r-" and 20 characters of 0-9 and a-v.
func NewReceiptID(now time.Time, random io.Reader) (string, error) {
	var b [12]byte
	binary.BigEndian.PutUint64(b[:8], uint64(now.UnixMilli())<<16)
	if _, err := io.ReadFull(random, b[6:]); err != nil {
		return "", fault.New(fault.Internal, "make a receipt's id: %w", err)
	}
	return "r-" + strings.ToLower(receiptEncoding.EncodeToString(b[:])), nil
}

// ValidReceiptID refuses what NewReceiptID does not make.
func ValidReceiptID(id string) error {
	text, ok := strings.CutPrefix(id, "r-")
	raw, err := receiptEncoding.DecodeString(strings.ToUpper(text))
	if !ok || err != nil || len(text) != 20 || len(raw) != 12 || text != strings.ToLower(text) {
		return fault.New(fault.Invalid, "receipt %.40q: want r- and 20 characters of 0-9 and a-v", id)
	}
	return nil
}

// NewReceipt opens the receipt of an act. nodes are all that are known once the act is done; those that are trusted must know.
func NewReceipt(id string, act Act, nodes map[string]*Node, now time.Time) (Receipt, error) {
	for what, text := range map[string]struct {
		s     string
		limit int
	}{"action": {act.Action, 64}, "target": {act.Target, 512}, "by": {act.By, MaxBy}, "reason": {act.Reason, MaxReason}} {
		if err := validText(what, text.s, text.limit); err != nil {
			return Receipt{}, err
		}
	}
	r := Receipt{ID: id, Act: act, At: now, State: ReceiptOpen}
	r.await(nodes)
	return r, nil
}

// ContinueReceipt takes a further commit of the same act into its receipt: its revision becomes that commit's.
func ContinueReceipt(r Receipt, act Act, nodes map[string]*Node) (Receipt, error) {
	if !r.More {
		return Receipt{}, fault.New(fault.Conflict, "receipt %s: its act has ended", r.ID)
	}
	r.More, r.Nodes = act.More, slices.Clone(r.Nodes)
	r.await(nodes)
	return r, nil
}

func (r *Receipt) await(nodes map[string]*Node) {
	named := map[string]bool{}
	for _, n := range r.Nodes {
		named[n.ID] = true
	}
	for _, n := range nodes {
		if n.Trusted() && !named[n.ID] {
			r.Nodes = append(r.Nodes, ReceiptNode{ID: n.ID, Name: n.Name, Region: n.Region})
		}
	}
	slices.SortFunc(r.Nodes, func(a, b ReceiptNode) int {
		return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
}

// Reach says when a node was first heard to serve by a revision.
type Reach struct {
	Revision revision.Revision
	At       time.Time
}

// NodeFact is what the leader knows of a node.
type NodeFact struct {
	State   NodeState
	Since   time.Time // of the state
	HeardAt time.Time // its last report; zero: none to this leader
	Served  revision.Revision
	Reached []Reach // ending with Served; what is older may be forgotten
}

func (f NodeFact) trusted() bool { return (&Node{State: f.State}).Trusted() }

// ReachedBy is by when the node was heard to serve by a revision; false: it does not, by its last report.
func (f NodeFact) ReachedBy(at revision.Revision) (time.Time, bool) {
	if f.HeardAt.IsZero() || f.Served.Before(at) {
		return time.Time{}, false
	}
	i, _ := slices.BinarySearchFunc(f.Reached, at, func(r Reach, at revision.Revision) int { return r.Revision.Compare(at) })
	if i == len(f.Reached) {
		return f.HeardAt, true
	}
	return f.Reached[i].At, true
}

// ReceiptFacts are what the leader knows when it looks at its open receipts.
type ReceiptFacts struct {
	Now            time.Time
	ListeningSince time.Time           // when this leader began to take reports
	Nodes          map[string]NodeFact // every node that has a record
}

// AdvanceReceipt moves a receipt on, if it may move: it is written then, with who has the change and who is gone, and at no other time.
// For its first 15 s a leader cannot tell a silent node from one that has not reached it yet, so that all count as live; and where
// no live node has the change nothing is complete.
func AdvanceReceipt(r Receipt, f ReceiptFacts) (next Receipt, moved bool) {
	if r.More || r.Revision.IsZero() || (r.State != ReceiptOpen && r.State != ReceiptLive) {
		return r, false
	}
	next = r
	if r.State == ReceiptOpen {
		if !liveHave(r.Revision, f) {
			return r, false
		}
		next.State, next.LiveAt = ReceiptLive, latest(f.Now, r.At)
	}
	every := AwaitedBy(r, f) == ""
	if !every && r.State != ReceiptOpen {
		return r, false
	}
	next.Nodes = slices.Clone(r.Nodes)
	for i := range next.Nodes {
		next.Nodes[i] = next.Nodes[i].settle(r.Revision, f)
	}
	if every {
		next.State, next.EveryAt = ReceiptEverywhere, latest(f.Now, next.LiveAt)
	}
	return next, true
}

// AwaitedBy is the first node that a receipt still waits for; empty if there is none.
func AwaitedBy(r Receipt, f ReceiptFacts) (node string) {
	for _, n := range r.Nodes {
		if !n.Settled(r.Revision, f) {
			return n.ID
		}
	}
	return ""
}

// liveHave reports whether every live node serves by the revision, and one does.
func liveHave(at revision.Revision, f ReceiptFacts) bool {
	canTell := f.Now.Sub(f.ListeningSince) >= LiveWithin
	some := false
	for _, n := range f.Nodes {
		if !n.trusted() {
			continue
		}
		live := !n.HeardAt.IsZero() && f.Now.Sub(n.HeardAt) <= LiveWithin
		if _, has := n.ReachedBy(at); has {
			some = some || live
		} else if live || !canTell {
			return false
		}
	}
	return some
}

// Settled reports whether the node is no longer awaited: it has the change, by its last report or by what an earlier leader heard and
// wrote, or it may serve no more.
func (n ReceiptNode) Settled(at revision.Revision, f ReceiptFacts) bool {
	fact := f.Nodes[n.ID]
	if !fact.trusted() {
		return true
	}
	if _, has := fact.ReachedBy(at); has {
		return true
	}
	return !n.AckAt.IsZero() && !fact.HeardAt.After(n.AckAt) // a later report of an older view counts: its disk was set back
}

func (n ReceiptNode) settle(at revision.Revision, f ReceiptFacts) ReceiptNode {
	fact := f.Nodes[n.ID]
	heard, has := fact.ReachedBy(at)
	switch {
	case has && (n.AckAt.IsZero() || heard.Before(n.AckAt)):
		n.AckAt = heard
	case !has && !n.Settled(at, f):
		n.AckAt = time.Time{}
	}
	if n.AckAt.IsZero() && n.Gone == "" && !fact.trusted() {
		n.Gone, n.GoneAt = fact.State, fact.Since
		if n.Gone == "" { // its record is no more
			n.Gone, n.GoneAt = NodeDeparted, f.Now
		}
	} else if fact.trusted() {
		n.Gone, n.GoneAt = "", time.Time{} // it came back
	}
	return n
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// How many receipts are kept, and for how long.
const (
	ReceiptsKept     = 1000
	ReceiptsKeptFor  = 90 * 24 * time.Hour
	ReceiptsMaxBytes = 16 << 20 // of all: in a mesh of thousands each names thousands
)

// KeptReceipt is what pruning needs to know of a receipt.
type KeptReceipt struct {
	ID   string
	At   time.Time
	Open bool
	Size int // bytes
}

// PruneReceipts says which receipts go: all that are over age; and where there are too many still, the oldest that are complete, and
// only after these the oldest that are open.
func PruneReceipts(kept []KeptReceipt, now time.Time) (gone []KeptReceipt) {
	left := map[string]KeptReceipt{}
	bytes := 0
	for _, k := range kept {
		if now.Sub(k.At) >= ReceiptsKeptFor {
			gone = append(gone, k)
			continue
		}
		left[k.ID] = k
		bytes += k.Size
	}
	order := slices.SortedFunc(maps.Values(left), func(a, b KeptReceipt) int {
		return cmp.Or(boolCompare(a.Open, b.Open), a.At.Compare(b.At), cmp.Compare(a.ID, b.ID))
	})
	for _, k := range order {
		if len(left) <= ReceiptsKept && bytes <= ReceiptsMaxBytes {
			break
		}
		delete(left, k.ID)
		bytes -= k.Size
		gone = append(gone, k)
	}
	return gone
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
