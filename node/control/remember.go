package control

import (
	"context"
	"fmt"
	"strconv"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Remember takes what a node remembers as refused and the restored state lacks: while no operator has confirmed the restoration, and
// only to refuse more. The node may be one that is quarantined or has departed by it; it proves its node key on this connection. The
// administrator who signed the restoration is refused on nobody's word: somebody must be left to confirm.
func (c *Controller) Remember(ctx context.Context, req *iapmeshv1.RememberRequest, ekm [32]byte) (*iapmeshv1.RememberResponse, error) {
	if _, err := c.mustLead(); err != nil {
		return nil, err
	}
	if len(req.Body) > keyring.MaxRemembered {
		return nil, fault.New(fault.Invalid, "remember: %d bytes, at most %d", len(req.Body), keyring.MaxRemembered)
	}
	body := &iapmeshv1.RememberBody{}
	if err := proto.Unmarshal(req.Body, body); err != nil {
		return nil, fault.New(fault.Invalid, "remember: it is not understood")
	}
	v, err := c.view()
	if err != nil {
		return nil, err
	}
	if err := tells(&v.Keyring.Contents, body, req, ekm); err != nil { // before anything waits for a stranger
		return nil, err
	}
	if c.recalled.add(body, 0) >= c.MaxRecalled {
		c.Logger.Error("a node remembers more than one may: look what it told, and at the node", "node", body.NodeId, "records", c.MaxRecalled)
		return nil, fault.New(fault.Exhausted, "remember: node %s has told of %d records: no more of it is taken before the confirmation", body.NodeId, c.MaxRecalled)
	}
	denials := state.DenialsOf(body.Denials)
	for i := range denials {
		if err := checkRemembered(&denials[i]); err != nil {
			return nil, err
		}
		denials[i].Source = "node/" + body.NodeId
	}
	for more := true; more; {
		if more, err = c.rememberBatch(ctx, body, req, ekm, denials); err != nil {
			return nil, err
		}
	}
	if body.Last {
		c.recalled.heard(body)
	}
	if v, err = c.view(); err != nil {
		return nil, err
	}
	return &iapmeshv1.RememberResponse{Revision: state.RevisionProto(v.Revision)}, nil
}

// rememberBatch writes one commit of what the denials change.
func (c *Controller) rememberBatch(ctx context.Context, body *iapmeshv1.RememberBody, req *iapmeshv1.RememberRequest, ekm [32]byte, denials []keyring.Denial) (more bool, err error) {
	writes := 0
	at, err := c.update(ctx, "remember denials", func(t *tx) error {
		contents := &t.View.Keyring.Contents
		if err := tells(contents, body, req, ekm); err != nil {
			return err
		}
		r, err := t.restoration()
		if err != nil {
			return err
		}
		plan := keyring.PlanRestore(keyring.RestoreFacts{Present: contents, Snapshot: contents, Denials: denials, Restoration: r, DenyOnly: true, Now: t.Now})
		all := recordWrites(contents, &plan)
		batch := firstBatch(all)
		writes, more = len(batch), len(all) > len(batch)
		if writes == 0 {
			return nil
		}
		for _, e := range batch {
			if _, err := t.get(e.Key); err != nil {
				return err
			}
			t.put(e)
		}
		for _, d := range plan.Refused {
			if d.Source != keyring.FromState {
				r.Refused = append(r.Refused, d)
			}
		}
		r.Refused = clip(r.Refused)
		t.put(state.PutRestoration(r))
		return nil
	})
	if err == nil && writes > 0 {
		c.recalled.add(body, writes)
		c.Logger.Warn("a node remembers what the restored state did not refuse", "node", body.NodeId, "records", writes, "revision", at.String())
		c.record(ctx, audit.KindRevocation, "node/"+body.NodeId, map[string]string{"action": "snapshot.remember", "records": strconv.Itoa(writes), "revision": at.String()})
	}
	return more, err
}

// tells refuses whoever does not prove to be the node that it says, or has nothing to tell now. It is decided again with the commit.
func tells(contents *keyring.Contents, body *iapmeshv1.RememberBody, req *iapmeshv1.RememberRequest, ekm [32]byte) error {
	n := contents.Nodes[body.NodeId]
	if n == nil || n.State == keyring.NodeRevoked {
		return fault.New(fault.Denied, "remember: no node %.64q that may speak", body.NodeId)
	}
	if err := keyring.VerifyRemember(n.PublicKey, ekm, req.Body, req.Signature); err != nil {
		return err
	}
	if r := contents.Unconfirmed(); r == nil || r.Statement.NewEpoch != body.Epoch {
		return fault.New(fault.Conflict, "remember: no restoration under epoch %d awaits an operator", body.Epoch)
	}
	return nil
}

// recalled counts, by node and epoch: a node that was stolen must not fill the state while the mesh waits for an operator. Who has told
// all is kept here, too: nodes say it again and again, to whoever leads.
type recalled struct {
	mu      sync.Mutex
	records map[recaller]int  // guarded by mu
	all     map[recaller]bool // guarded by mu
}

type recaller struct {
	node  string
	epoch uint64
}

func (r *recalled) add(by *iapmeshv1.RememberBody, records int) (all int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.records == nil {
		r.records = map[recaller]int{}
	}
	k := recaller{by.NodeId, by.Epoch}
	r.records[k] += records
	return r.records[k]
}

func (r *recalled) heard(by *iapmeshv1.RememberBody) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = map[recaller]bool{}
	}
	r.all[recaller{by.NodeId, by.Epoch}] = true
}

// unheard are those nodes of a list that may remember more than the state does, and have not told it: where the mesh runs on they have
// followed the state all along.
func (r *recalled) unheard(of *keyring.Restoration, nodes []keyring.HeldNode) []string {
	if of.Statement.Carrier == "" {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, n := range nodes {
		if !r.all[recaller{n.ID, of.Statement.NewEpoch}] {
			out = append(out, n.ID)
		}
	}
	return out
}

// checkRemembered bounds what a node says; a record of it lies in the state afterwards.
func checkRemembered(d *keyring.Denial) error {
	if len(d.Value) == 0 || len(d.Value) > 512 {
		return fault.New(fault.Invalid, "remember: a value of %d bytes, want 1 to 512", len(d.Value))
	}
	if d.Kind == keyring.DenySession || d.Kind == keyring.DenySubject {
		kind := keyring.RevokeSession
		if d.Kind == keyring.DenySubject {
			kind = keyring.RevokeSubject
		}
		at := d.At
		if at.IsZero() {
			return fault.New(fault.Invalid, "remember: a revocation without its time")
		}
		if _, err := keyring.NewRevocation(keyring.RevocationRequest{Kind: kind, Value: d.Value, Block: d.Block && kind == keyring.RevokeSubject, Reason: d.Reason, By: d.By, Now: at}); err != nil {
			return fmt.Errorf("remember: %w", err)
		}
	}
	if len(d.Reason) > keyring.MaxReason || len(d.By) > keyring.MaxBy {
		return fault.New(fault.Invalid, "remember: a reason of %d bytes, at most %d", len(d.Reason), keyring.MaxReason)
	}
	return nil
}
