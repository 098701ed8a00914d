package control

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// GetReceipt returns a receipt that is kept, and who lags now.
func (c *Controller) GetReceipt(ctx context.Context, id string) (*keyring.Receipt, *iapmeshv1.Receipt, error) {
	if _, err := c.mustLead(); err != nil {
		return nil, nil, err
	}
	v, err := c.view()
	if err != nil {
		return nil, nil, err
	}
	r, err := c.keptReceipt(ctx, id, v)
	if err != nil {
		return nil, nil, err
	}
	return r, c.receiptNow(r, v), nil
}

// keptReceipt is an open receipt of the view, or a complete one of the store.
func (c *Controller) keptReceipt(ctx context.Context, id string, v *state.View) (*keyring.Receipt, error) {
	if r := v.Keyring.Receipts[id]; r != nil {
		return r, nil
	}
	if err := keyring.ValidReceiptID(id); err != nil {
		return nil, err
	}
	e, err := c.Store.Get(ctx, state.ReceiptPath(id))
	if fault.Is(err, fault.NotFound) {
		return nil, fault.New(fault.NotFound, "no receipt %s: receipts are kept for 90 days, and at most %d and %d MiB of them", id, keyring.ReceiptsKept, keyring.ReceiptsMaxBytes>>20)
	}
	if err != nil {
		return nil, err
	}
	return receiptOf(e)
}

// receiptNow is a kept receipt as it stands: complete is what is written; who lags is what the nodes last said, unless an earlier
// leader heard and wrote better.
func (c *Controller) receiptNow(r *keyring.Receipt, v *state.View) *iapmeshv1.Receipt {
	out := &iapmeshv1.Receipt{Revision: state.RevisionProto(r.Revision)}
	named := map[string]keyring.ReceiptNode{}
	for _, n := range r.Nodes {
		if named[n.ID] = n; r.State == keyring.ReceiptEverywhere && !n.AckAt.IsZero() {
			out.Acknowledged = append(out.Acknowledged, &iapmeshv1.Acknowledgement{NodeId: n.ID, Name: n.Name, Region: n.Region, At: state.Stamp(n.AckAt)})
		}
	}
	if r.State != keyring.ReceiptEverywhere {
		committed := r.CommittedBy
		if committed.IsZero() {
			committed = c.knownCommitted(r.Revision, v)
		}
		out = c.receiptAt(r.Revision, v, committed)
		facts := c.receiptFacts(v, c.Now())
		out.Lagging = slices.DeleteFunc(out.Lagging, func(l *iapmeshv1.Laggard) bool {
			n, ok := named[l.NodeId]
			if ok = ok && n.Settled(r.Revision, facts); ok {
				out.Acknowledged = append(out.Acknowledged, &iapmeshv1.Acknowledgement{NodeId: n.ID, Name: n.Name, Region: n.Region, At: state.Stamp(n.AckAt)})
			}
			return ok
		})
	}
	out.Id, out.Unfinished = r.ID, r.More
	out.Complete, out.Everywhere = r.State != keyring.ReceiptOpen, r.State == keyring.ReceiptEverywhere
	return out
}

// ReceiptQuery selects receipts.
type ReceiptQuery struct {
	Target string // part of the target, or the name of a key or node
	Since  time.Time
	Limit  int // 0: 100
}

const (
	defaultReceipts = 100
	maxTarget       = 512
)

// ListReceipts returns the receipts that are kept, newest first.
func (c *Controller) ListReceipts(ctx context.Context, q ReceiptQuery) ([]*keyring.Receipt, error) {
	if q.Limit == 0 {
		q.Limit = defaultReceipts
	}
	if q.Limit < 0 || q.Limit > keyring.ReceiptsKept || len(q.Target) > maxTarget {
		return nil, fault.New(fault.Invalid, "receipts: want a limit of 1 to %d, and a target of at most %d bytes", keyring.ReceiptsKept, maxTarget)
	}
	if _, err := c.mustLead(); err != nil {
		return nil, err
	}
	v, err := c.view()
	if err != nil {
		return nil, err
	}
	entries, _, err := c.Store.List(ctx, state.PrefixReceipt)
	if err != nil {
		return nil, err
	}
	targets := targetsCalled(v, q.Target)
	var out []*keyring.Receipt
	for _, e := range entries {
		r, err := receiptOf(e)
		if err != nil {
			c.Logger.Error("receipt not understood", "error", err)
			continue
		}
		if !r.At.Before(q.Since) && slices.ContainsFunc(targets, func(t string) bool { return strings.Contains(r.Target, t) }) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b *keyring.Receipt) int { return cmp.Or(b.At.Compare(a.At), b.Revision.Compare(a.Revision)) })
	return out[:min(len(out), q.Limit)], nil
}

// targetsCalled is what a person may mean: the text itself, and the ids of keys, nodes and administrators of that name.
func targetsCalled(v *state.View, text string) []string {
	out := []string{text}
	for _, k := range v.Keyring.Keys {
		if k.Name == text {
			out = append(out, k.ID)
		}
	}
	for _, n := range v.Keyring.Nodes {
		if n.Name == text {
			out = append(out, n.ID)
		}
	}
	return out
}

// ReceiptWatch says what to watch: a revision, by what nodes report; or a kept receipt, by what is written of it.
type ReceiptWatch struct {
	Revision   revision.Revision
	ID         string
	Everywhere bool // go on until every trusted node has it, silent ones too
}

// WatchReceipt calls send with the receipt of a revision, again whenever it changes, until it is complete or ctx ends.
func (c *Controller) WatchReceipt(ctx context.Context, at revision.Revision, send func(*iapmeshv1.Receipt) error) error {
	return c.FollowReceipt(ctx, ReceiptWatch{Revision: at}, send)
}

// FollowReceipt is WatchReceipt, also for a receipt that is kept.
func (c *Controller) FollowReceipt(ctx context.Context, w ReceiptWatch, send func(*iapmeshv1.Receipt) error) error {
	ticker := time.NewTicker(c.Tick)
	defer ticker.Stop()
	for {
		reported, changed := c.Reports.Changed(), c.Source.Changed()
		if _, err := c.mustLead(); err != nil {
			return err
		}
		v, err := c.view()
		if err != nil {
			return err
		}
		var receipt *iapmeshv1.Receipt
		if w.ID == "" {
			receipt = c.Receipt(w.Revision, v)
		} else {
			r, err := c.keptReceipt(ctx, w.ID, v)
			if err != nil {
				return err
			}
			receipt = c.receiptNow(r, v)
		}
		if err := send(receipt); err != nil || receipt.Everywhere || receipt.Complete && !w.Everywhere {
			return err
		}
		select {
		case <-reported:
		case <-changed:
		case <-ticker.C: // nodes also stop being live
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
