package control

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Revoke refuses a session, a user, a node or a signing key from the returned revision on.
func (c *Controller) Revoke(ctx context.Context, by string, req *iapmeshv1.RevokeRequest) (resolved string, at revision.Revision, err error) {
	if req.Block && req.Target != iapmeshv1.RevokeTarget_REVOKE_TARGET_USER {
		return "", at, fault.New(fault.Invalid, "block: only a user's sign-ins can be blocked")
	}
	changed := true
	act := keyring.Act{Action: "revoke." + strings.ToLower(strings.TrimPrefix(req.Target.String(), "REVOKE_TARGET_")), Target: req.Value, By: by, Reason: req.Reason}
	switch req.Target {
	case iapmeshv1.RevokeTarget_REVOKE_TARGET_SESSION:
		resolved = req.Value
		at, err = c.refuse(ctx, keyring.RevocationRequest{Kind: keyring.RevokeSession, Value: req.Value, Reason: req.Reason, By: by}, &act)
	case iapmeshv1.RevokeTarget_REVOKE_TARGET_USER:
		resolved = req.Value
		at, err = c.refuse(ctx, keyring.RevocationRequest{Kind: keyring.RevokeSubject, Value: req.Value, Block: req.Block, Reason: req.Reason, By: by}, &act)
	case iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE:
		resolved, at, changed, err = c.revokeNode(ctx, act)
	case iapmeshv1.RevokeTarget_REVOKE_TARGET_SIGNING_KEY:
		resolved = req.Value
		at, changed, err = c.revokeSigningKey(ctx, act)
	default:
		return "", at, fault.New(fault.Invalid, "target: want session, user, node or signing-key")
	}
	if err != nil || !changed {
		return resolved, at, err
	}
	c.record(ctx, audit.KindRevocation, by, map[string]string{
		"action": act.Action, "value": resolved, "reason": req.Reason, "block": boolWord(req.Block), "revision": at.String(), "receipt": c.ReceiptID(at),
	})
	return resolved, at, nil
}

// EndSession revokes one session at its user's sign-out, on the word of the node that he signed out at.
func (c *Controller) EndSession(ctx context.Context, node, session, subject string) (revision.Revision, error) {
	v, err := c.view()
	if err != nil {
		return revision.Revision{}, err
	}
	if n := v.Keyring.Nodes[node]; n == nil || !n.Trusted() || !n.HasRole(keyring.RoleProxy) {
		return revision.Revision{}, fault.New(fault.Denied, "node %s is no proxy: nobody signs out there", node)
	}
	if !c.signOuts.allow(node, c.Now()) {
		return revision.Revision{}, fault.New(fault.Unavailable, "node %s ends too many sessions: try again", node)
	}
	at, err := c.refuse(ctx, keyring.RevocationRequest{Kind: keyring.RevokeSession, Value: session, Reason: "signed out", By: "node/" + node}, nil) // users sign out all day: no receipt
	if err == nil {
		c.record(ctx, audit.KindRevocation, "node/"+node, map[string]string{"action": "revoke.session", "value": session, "user": subject, "reason": "signed out", "revision": at.String()})
	}
	return at, err
}

// refuse writes a revocation, and the receipt of the act where there is one.
func (c *Controller) refuse(ctx context.Context, req keyring.RevocationRequest, act *keyring.Act) (revision.Revision, error) {
	return c.updateAmongOthers(ctx, "revoke "+string(req.Kind)+" "+req.Value, func(t *tx) error {
		req.Now = t.Now
		r, err := keyring.NewRevocation(req)
		if err != nil {
			return err
		}
		old, err := t.revocation(r.Kind, r.Value)
		if err != nil {
			return err
		}
		if old != nil {
			r = keyring.MergeRevocation(*old, r)
		}
		t.act = act
		t.put(state.PutRevocation(&r)) // again, at a later revision, if it stands already: sessions since then are refused, too
		return nil
	})
}

// revocation reads and guards a revocation; nil if there is none. One that cannot be read blocks, as every view has it.
func (t *tx) revocation(kind keyring.RevocationKind, value string) (*keyring.Revocation, error) {
	e, err := t.get(state.RevocationPath(kind, value))
	if err != nil || e == nil {
		return nil, err
	}
	var p iapmeshv1.Revocation
	if err := proto.Unmarshal(e.Value, &p); err != nil {
		return &keyring.Revocation{Kind: kind, Value: value, Block: kind == keyring.RevokeSubject}, nil // said above
	}
	return state.RevocationOf(&p, e.Revision), nil
}

// The bounds of the sessions that one node may end: what a stolen proxy could sign out in a minute.
const (
	signOutsPerSecond = 20
	signOutBurst      = 200
)

// signOuts bounds how often each node ends sessions. It remembers enrolled nodes alone.
type signOuts struct {
	mu    sync.Mutex
	nodes map[string]*rate.Limiter // guarded by mu
}

func (s *signOuts) allow(node string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes == nil {
		s.nodes = map[string]*rate.Limiter{}
	}
	if s.nodes[node] == nil {
		s.nodes[node] = rate.NewLimiter(signOutsPerSecond, signOutBurst)
	}
	return s.nodes[node].AllowN(now, 1)
}

// Lift takes a revocation back: sessions minted before it count again unless they are over, and a blocked user may sign in.
func (c *Controller) Lift(ctx context.Context, by string, kind keyring.RevocationKind, value string) (revision.Revision, error) {
	at, err := c.update(ctx, "lift the revocation of "+string(kind)+" "+value, func(t *tx) error {
		path := state.RevocationPath(kind, value)
		have, err := t.get(path)
		if err != nil {
			return err
		}
		if have == nil {
			return fault.New(fault.NotFound, "no revocation of %s %.80q", kind, value)
		}
		t.del(path)
		t.receipt("revocation.lift", value, by)
		return nil
	})
	if err == nil {
		c.record(ctx, audit.KindAdmin, by, map[string]string{"action": "revocation.lift", "kind": string(kind), "value": value, "receipt": c.ReceiptID(at)})
	}
	return at, err
}

// FindNode resolves what a person types, an id or a name, to a node's id.
func FindNode(v *state.View, ref string) (string, error) {
	n, err := v.Keyring.FindNode(ref)
	if err != nil {
		return "", err
	}
	return n.ID, nil
}

// revokeNode returns, of a node that is revoked already, the revision at which that was written, and nothing changes.
func (c *Controller) revokeNode(ctx context.Context, act keyring.Act) (id string, at revision.Revision, changed bool, err error) {
	for {
		var all bool
		var before revision.Revision // at which it was revoked already; zero: it was not
		at, err = c.update(ctx, "revoke node "+act.Target, func(t *tx) error {
			var err error
			before = revision.Revision{}
			if id, err = FindNode(t.View, act.Target); err != nil {
				return err
			}
			n, err := t.node(id)
			if err != nil {
				return err
			}
			if n.State == keyring.NodeRevoked {
				before = t.guards[state.NodePath(id)]
				return nil
			}
			if err := c.mayRevokeNode(t, n); err != nil {
				return err
			}
			revoked, err := keyring.RevokeNode(*n, act.Reason, t.Now)
			if err != nil {
				return err
			}
			if all, err = c.distrust(t, n); err != nil || !all {
				return err
			}
			t.put(state.PutNode(&revoked))
			t.receipt(act.Action, id, act.By).Reason = act.Reason
			return c.revokeSigningKeysOf(t, id, "node revoked")
		})
		switch {
		case err != nil:
			return id, at, false, err
		case !before.IsZero():
			return id, before, false, nil
		case all:
			return id, at, true, nil
		}
	}
}

// revokeSigningKeysOf revokes a node's own session keys: nothing that it signed counts any more. It does not count with the node's new
// state alone already, so that what this commit has no room for is left to the leader (sweepSigningKeys).
func (c *Controller) revokeSigningKeysOf(t *tx, nodeID, reason string) error {
	_, _, err := t.silence(t.View.Keyring.SigningKeysOf(nodeID), reason)
	return err
}

// verifying reports whether a session key of a node still verifies.
func verifying(v *state.View, nodeID string) bool {
	return slices.ContainsFunc(v.Keyring.SigningKeysOf(nodeID), (*keyring.SigningKey).Verifies)
}

// sweepSigningKeys revokes session keys that their nodes' commits had no room for. While a restoration is unconfirmed, nodes are quarantined
// that may come back as they were.
func (c *Controller) sweepSigningKeys(ctx context.Context, v *state.View) error {
	if v.Keyring.Unconfirmed() != nil {
		return nil
	}
	left := map[string]*keyring.Node{}
	for _, k := range v.Keyring.SigningKeys {
		n := v.Keyring.Nodes[k.Node]
		if n == nil || k.Kind != keyring.SigningSession || !k.Verifies() {
			continue
		}
		if n.State == keyring.NodeRevoked || n.State == keyring.NodeQuarantined || n.State == keyring.NodeDeparted && n.Reason == keyring.ReasonUnconfirmed {
			left[n.ID] = n
		}
	}
	var errs []error
	for id, n := range left {
		_, err := c.update(ctx, "revoke signing keys of "+id, func(t *tx) error {
			now, err := t.node(id)
			if err != nil || now.State != n.State {
				return err
			}
			return c.revokeSigningKeysOf(t, id, "node "+string(n.State))
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// revokeSigningKey is revokeNode for a signing key.
func (c *Controller) revokeSigningKey(ctx context.Context, act keyring.Act) (at revision.Revision, changed bool, err error) {
	kid := act.Target
	var before revision.Revision
	at, err = c.update(ctx, "revoke signing key "+kid, func(t *tx) error {
		before = revision.Revision{}
		k, err := t.signingKey(kid)
		if err != nil {
			return err
		}
		if k.State == keyring.SigningRevoked {
			before = k.Revision
			return nil
		}
		revoked, err := keyring.RevokeSigningKey(*k, act.Reason, t.Now)
		if err != nil {
			return err
		}
		t.act = &act
		t.put(state.PutSigningKey(&revoked))
		return nil // its holder, or the leader for an assertion key, sees the slot empty and announces the next
	})
	if !before.IsZero() {
		at = before
	}
	return at, before.IsZero(), err
}
