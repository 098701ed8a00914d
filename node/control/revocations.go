package control

import (
	"context"
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
	act := keyring.Act{Action: "revoke." + strings.ToLower(strings.TrimPrefix(req.Target.String(), "REVOKE_TARGET_")), Target: req.Value, By: by, Reason: req.Reason}
	switch req.Target {
	case iapmeshv1.RevokeTarget_REVOKE_TARGET_SESSION:
		resolved = req.Value
		at, err = c.refuse(ctx, keyring.RevocationRequest{Kind: keyring.RevokeSession, Value: req.Value, Reason: req.Reason, By: by}, &act)
	case iapmeshv1.RevokeTarget_REVOKE_TARGET_USER:
		resolved = req.Value
		at, err = c.refuse(ctx, keyring.RevocationRequest{Kind: keyring.RevokeSubject, Value: req.Value, Block: req.Block, Reason: req.Reason, By: by}, &act)
	case iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE:
		resolved, at, err = c.revokeNode(ctx, act)
	case iapmeshv1.RevokeTarget_REVOKE_TARGET_SIGNING_KEY:
		resolved = req.Value
		at, err = c.revokeSigningKey(ctx, act)
	default:
		return "", at, fault.New(fault.Invalid, "target: want session, user, node or signing-key")
	}
	if err != nil {
		return "", at, err
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
	if v.Keyring.Nodes[ref] != nil {
		return ref, nil
	}
	found := ""
	for _, n := range v.Keyring.Nodes {
		if n.Name != ref || (found != "" && !n.Trusted()) {
			continue
		}
		if found != "" && v.Keyring.Nodes[found].Trusted() {
			return "", fault.New(fault.Invalid, "name %q is borne by several nodes: use an id", ref)
		}
		found = n.ID
	}
	if found == "" {
		return "", fault.New(fault.NotFound, "no node %.80q", ref)
	}
	return found, nil
}

func (c *Controller) revokeNode(ctx context.Context, act keyring.Act) (string, revision.Revision, error) {
	for {
		var id string
		var all bool
		at, err := c.update(ctx, "revoke node "+act.Target, func(t *tx) error {
			var err error
			if id, err = FindNode(t.View, act.Target); err != nil {
				return err
			}
			n, err := t.node(id)
			if err != nil {
				return err
			}
			if err := c.mayRevokeNode(t, id); err != nil {
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
		if err != nil || all {
			return id, at, err
		}
	}
}

// revokeSigningKeysOf revokes a node's own session keys: nothing that it signed counts any more.
func (c *Controller) revokeSigningKeysOf(t *tx, nodeID, reason string) error {
	for _, k := range t.View.Keyring.SigningKeys {
		if k.Node != nodeID || !k.Verifies() {
			continue
		}
		fresh, err := t.signingKey(k.KID)
		if err != nil {
			return err
		}
		revoked, err := keyring.RevokeSigningKey(*fresh, reason, t.Now)
		if err != nil {
			return err
		}
		t.put(state.PutSigningKey(&revoked))
	}
	return nil
}

func (c *Controller) revokeSigningKey(ctx context.Context, act keyring.Act) (revision.Revision, error) {
	kid := act.Target
	return c.update(ctx, "revoke signing key "+kid, func(t *tx) error {
		k, err := t.signingKey(kid)
		if err != nil {
			return err
		}
		revoked, err := keyring.RevokeSigningKey(*k, act.Reason, t.Now)
		if err != nil {
			return err
		}
		t.act = &act
		t.put(state.PutSigningKey(&revoked))
		return nil // its holder, or the leader for an assertion key, sees the slot empty and announces the next
	})
}
