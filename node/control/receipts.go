package control

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// receipt makes the commit leave a receipt of the act, to be kept. The caller may add a reason, and say that more commits of the act
// follow: they leave one receipt together, which bears the revision of the last, also where a later call ends what one began.
func (t *tx) receipt(action, target, by string) *keyring.Act {
	t.act = &keyring.Act{Action: action, Target: target, By: by}
	return t.act
}

// putReceipt adds the receipt that the decision asked for, once all else is decided: the nodes that have to know are those that are
// trusted after the commit. What writes nothing deserves none.
func (c *Controller) putReceipt(t *tx) error {
	if t.act == nil {
		return nil
	}
	nodes, err := t.nodesAfter()
	if err != nil {
		return err
	}
	begun, err := t.begunReceipt()
	if err != nil {
		return err
	}
	var r keyring.Receipt
	switch {
	case begun != nil:
		r, err = keyring.ContinueReceipt(*begun, *t.act, nodes)
	case len(t.puts)+len(t.deletes) == 0:
		return nil
	default:
		var id string
		if id, err = keyring.NewReceiptID(t.Now, c.Random); err == nil {
			r, err = keyring.NewReceipt(id, *t.act, nodes, t.Now)
		}
	}
	if err != nil {
		return err
	}
	e := state.PutReceipt(&r)
	if len(e.Value) > maxReceipt || t.size()+len(e.Key)+len(e.Value) > store.MaxBytes {
		// It names every node. Whoever lets thousands join by a key that leaked must not keep it from being revoked by that.
		c.Logger.Error("the mesh is too large for a receipt of what is done: none is kept", "action", t.act.Action, "target", t.act.Target, "nodes", len(r.Nodes))
		return nil
	}
	t.put(e)
	t.receiptID = r.ID
	return nil
}

// maxReceipt bounds a receipt when it is opened: it grows by when each node had the change, and has to fit into a commit then.
const maxReceipt = store.MaxBytes / 2

// begunReceipt is the receipt of the same act whose last commit has not come: it is read, and guards the commit.
func (t *tx) begunReceipt() (*keyring.Receipt, error) {
	for id, r := range t.View.Keyring.Receipts {
		if r.More && r.Action == t.act.Action && r.Target == t.act.Target {
			return t.receiptRecord(id)
		}
	}
	return nil, nil
}

func (t *tx) receiptRecord(id string) (*keyring.Receipt, error) {
	path := state.ReceiptPath(id)
	return read(t, path, "receipt "+id, func(p *iapmeshv1.ReceiptRecord) (*keyring.Receipt, error) {
		return state.ReceiptOf(p, t.guards[path]), nil
	})
}

// nodesAfter are the nodes as the commit leaves them.
func (t *tx) nodesAfter() (map[string]*keyring.Node, error) {
	nodes := maps.Clone(t.View.Keyring.Nodes)
	for key, e := range t.puts {
		if !strings.HasPrefix(key, state.PrefixNode) {
			continue
		}
		var p iapmeshv1.Node
		if err := proto.Unmarshal(e.Value, &p); err != nil {
			return nil, fault.New(fault.Internal, "decode %s: %w", key, err)
		}
		n, err := state.NodeOf(&p)
		if err != nil {
			return nil, err
		}
		nodes[n.ID] = n
	}
	return nodes, nil
}

// commits remembers, of what was committed lately, by when this leader knew it committed, and under which receipt. A revision that
// it does not remember is known from the moment that it is asked about.
type commits struct {
	mu    sync.Mutex
	known map[revision.Revision]commit // guarded by mu
	order []revision.Revision          // oldest first; guarded by mu
	fresh int                          // receipts written since the last pruning; guarded by mu
}

type commit struct {
	by      time.Time // zero: this leader's view does not hold it yet
	receipt string
}

const maxCommits = 4 * keyring.ReceiptsKept

// know takes note that a revision is committed and in the view now, and returns since when that is known. Zero: it is not in the view yet.
func (k *commits) know(at revision.Revision, now time.Time, receipt string) time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	have, ok := k.known[at]
	if have.by.IsZero() {
		have.by = now
	}
	if have.receipt == "" && receipt != "" {
		have.receipt = receipt
		k.fresh++
	}
	if k.known == nil {
		k.known = map[revision.Revision]commit{}
	}
	if k.known[at] = have; !ok {
		k.order = append(k.order, at)
	}
	if len(k.order) > maxCommits {
		delete(k.known, k.order[0])
		k.order = slices.Clone(k.order[1:])
	}
	return have.by
}

func (k *commits) receipt(at revision.Revision) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.known[at].receipt
}

// takeFresh returns how many receipts were written since it was last told to begin anew.
func (k *commits) takeFresh(begin bool) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.fresh
	if begin {
		k.fresh = 0
	}
	return n
}

// rememberReceipt takes note of what was just committed, if it left a receipt.
func (c *Controller) rememberReceipt(at revision.Revision, id string) {
	if id == "" {
		return
	}
	var now time.Time
	if !c.Source.Revision().Before(at) {
		now = c.Now()
	}
	c.commits.know(at, now, id)
}

// ReceiptID is the id of the receipt of what this leader committed at the revision, for records and answers; empty: none is known.
func (c *Controller) ReceiptID(at revision.Revision) string { return c.commits.receipt(at) }

// receiptFacts are what the leader knows of the nodes.
func (c *Controller) receiptFacts(v *state.View, now time.Time) keyring.ReceiptFacts {
	_, since := c.Leading()
	f := keyring.ReceiptFacts{Now: now, ListeningSince: since, Nodes: make(map[string]keyring.NodeFact, len(v.Keyring.Nodes))}
	for id, n := range v.Keyring.Nodes {
		f.Nodes[id] = c.nodeFact(n)
	}
	return f
}

func (c *Controller) nodeFact(n *keyring.Node) keyring.NodeFact {
	report, _ := c.Reports.Get(n.ID)
	return keyring.NodeFact{State: n.State, Since: n.StateSince, HeardAt: report.At, Served: state.RevisionOf(report.GetRevision()), Reached: report.reached}
}

// stillAwaits reports whether a receipt that every live node has waits for the node that it waited for when it was last looked at. A
// region that stays away keeps receipts open for days, and each report of any node is a reason to look: so most are left after one node.
func (c *Controller) stillAwaits(r *keyring.Receipt, v *state.View) bool {
	i := slices.IndexFunc(r.Nodes, func(n keyring.ReceiptNode) bool { return n.ID == c.awaited[r.ID] })
	if r.State != keyring.ReceiptLive || i < 0 {
		return false
	}
	n := v.Keyring.Nodes[r.Nodes[i].ID]
	return n != nil && !r.Nodes[i].Settled(r.Revision, keyring.ReceiptFacts{Nodes: map[string]keyring.NodeFact{n.ID: c.nodeFact(n)}})
}

// What one commit of receipts that move may hold: a receipt names every node.
const (
	receiptBatch      = 50
	receiptBatchNodes = 4000
)

// completeReceipts moves the open receipts on: one write when every live node has the change, and one when all have. Those that move
// at the same time are written together.
func (c *Controller) completeReceipts(ctx context.Context, v *state.View) error {
	var errs []error
	var look []*keyring.Receipt
	for _, id := range slices.Sorted(maps.Keys(v.Keyring.Receipts)) {
		if r := v.Keyring.Receipts[id]; !c.stillAwaits(r, v) {
			look = append(look, r)
		}
	}
	maps.DeleteFunc(c.awaited, func(id, _ string) bool { return v.Keyring.Receipts[id] == nil })
	if len(look) > 0 {
		facts := c.receiptFacts(v, c.now())
		var batch []string
		nodes := 0
		flush := func() {
			if len(batch) > 0 {
				errs = append(errs, c.moveReceipts(ctx, batch))
			}
			batch, nodes = nil, 0
		}
		for _, r := range look {
			c.commits.know(r.Revision, c.Now(), r.ID)
			if _, moves := keyring.AdvanceReceipt(*r, facts); !moves {
				c.awaited[r.ID] = keyring.AwaitedBy(*r, facts)
				continue
			}
			if len(batch) == receiptBatch || nodes+len(r.Nodes) > receiptBatchNodes {
				flush()
			}
			batch, nodes = append(batch, r.ID), nodes+len(r.Nodes)
		}
		flush()
	}
	return errors.Join(append(errs, c.pruneReceipts(ctx))...)
}

func (c *Controller) moveReceipts(ctx context.Context, ids []string) error {
	var moved []keyring.Receipt
	_, err := c.updateAmongOthers(ctx, "complete receipts", func(t *tx) error {
		moved = nil
		facts := c.receiptFacts(t.View, t.Now)
		for _, id := range ids {
			r, err := t.receiptRecord(id)
			if fault.Is(err, fault.NotFound) {
				continue // pruned meanwhile
			}
			if err != nil {
				return err
			}
			next, moves := keyring.AdvanceReceipt(*r, facts)
			if !moves {
				continue
			}
			if next.CommittedBy.IsZero() {
				next.CommittedBy = c.commits.know(r.Revision, c.Now(), id)
			}
			t.put(state.PutReceipt(&next))
			moved = append(moved, next)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i := range moved {
		c.receiptMoved(ctx, &moved[i])
	}
	return nil
}

func (c *Controller) receiptMoved(ctx context.Context, r *keyring.Receipt) {
	kind, at := audit.KindRevocation, r.LiveAt
	if strings.HasSuffix(r.Action, ".rotate") {
		kind = audit.KindRotation
	}
	if r.State == keyring.ReceiptEverywhere {
		at = r.EveryAt
		c.metrics.everywhere.Observe(at.Sub(r.At).Seconds())
	}
	p := state.ReceiptSummary(r)
	c.Logger.Info("receipt complete", "receipt", r.ID, "of", r.Action, "state", string(r.State), "after", at.Sub(r.At))
	c.record(ctx, kind, "leader", map[string]string{
		"action": "receipt.complete", "receipt": r.ID, "of": r.Action, "target": r.Target, "revision": r.Revision.String(), "state": string(r.State),
		"at": at.Format(time.RFC3339Nano), "nodes": strconv.Itoa(len(r.Nodes)), "acknowledged": strconv.Itoa(int(p.Acknowledged)), "gone": strconv.Itoa(int(p.Gone)),
	})
}

// Pruning reads every receipt: now and then, and whenever many have come.
const (
	pruneReceiptsEvery = time.Hour
	pruneReceiptsAfter = 50
)

// pruneReceipts deletes the receipts that are not kept any longer.
func (c *Controller) pruneReceipts(ctx context.Context) error {
	term, _ := c.Leading()
	if c.prunedIn == term && c.Now().Sub(c.receiptsPruned) < pruneReceiptsEvery && c.commits.takeFresh(false) < pruneReceiptsAfter {
		return nil
	}
	entries, _, err := c.Store.List(ctx, state.PrefixReceipt)
	if err != nil {
		return err
	}
	c.receiptsPruned, c.prunedIn = c.Now(), term
	c.commits.takeFresh(true)
	kept := make([]keyring.KeptReceipt, 0, len(entries))
	for _, e := range entries {
		k := keyring.KeptReceipt{ID: strings.TrimPrefix(e.Key, state.PrefixReceipt), Size: len(e.Value)}
		if r, err := receiptOf(e); err == nil { // one that cannot be read goes as if it were the oldest
			k.At, k.Open = r.At, r.State != keyring.ReceiptEverywhere
		}
		kept = append(kept, k)
	}
	for batch := range slices.Chunk(keyring.PruneReceipts(kept, c.now()), pruneBatch) {
		if err := c.dropReceipts(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

func (c *Controller) dropReceipts(ctx context.Context, batch []keyring.KeptReceipt) error {
	_, err := c.updateAmongOthers(ctx, "prune receipts", func(t *tx) error {
		for _, k := range batch {
			if e, err := t.get(state.ReceiptPath(k.ID)); err != nil {
				return err
			} else if e != nil {
				t.del(state.ReceiptPath(k.ID))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var open []string
	for _, k := range batch {
		if k.Open {
			open = append(open, k.ID)
		}
	}
	detail := map[string]string{"action": "receipt.prune", "receipts": strconv.Itoa(len(batch)), "first": batch[0].ID, "last": batch[len(batch)-1].ID}
	if len(open) > 0 {
		c.Logger.Warn("receipts dropped before every node had the change", "receipts", open)
		detail["open"] = strings.Join(open, " ")
	}
	c.record(ctx, audit.KindAdmin, "leader", detail)
	return nil
}

func receiptOf(e store.Entry) (*keyring.Receipt, error) {
	var p iapmeshv1.ReceiptRecord
	if err := proto.Unmarshal(e.Value, &p); err != nil {
		return nil, fault.New(fault.Internal, "decode %s: %w", e.Key, err)
	}
	return state.ReceiptOf(&p, e.Revision), nil
}
