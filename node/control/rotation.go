package control

import (
	"context"
	"errors"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// schedule sets a key's schedule; its rotator is a node's id or name. No period and no rotator: no schedule.
func (t *tx) schedule(k keyring.Key, by string, s keyring.Schedule) (keyring.Key, error) {
	rotator := s.Rotator
	s.By = by
	var node *keyring.Node
	if rotator != "" {
		var err error
		if s.Rotator, err = FindNode(t.View, rotator); err != nil {
			return k, err
		}
		if node, err = t.node(s.Rotator); err != nil {
			return k, err
		}
	}
	return keyring.ScheduleKey(k, s, node)
}

func scheduleOf(every, grace *durationpb.Duration, rotator string) keyring.Schedule {
	return keyring.Schedule{Every: every.AsDuration(), Grace: grace.AsDuration(), Rotator: rotator}
}

// ScheduleKey sets how often a key is rotated, and by which node, or takes its schedule away.
func (c *Controller) ScheduleKey(ctx context.Context, by string, req *iapmeshv1.ScheduleKeyRequest) (*keyring.Key, revision.Revision, error) {
	var scheduled keyring.Key
	at, err := c.update(ctx, "schedule key", func(t *tx) error {
		k, err := t.findKey(req.Key)
		if err != nil {
			return err
		}
		if scheduled, err = t.schedule(*k, by, scheduleOf(req.RotateEvery, req.RotateGrace, req.Rotator)); err != nil {
			return err
		}
		t.put(state.PutKey(&scheduled))
		return nil
	})
	if err != nil {
		return nil, at, err
	}
	c.record(ctx, audit.KindAdmin, by, map[string]string{
		"action": "key.schedule", "key": scheduled.ID, "name": scheduled.Name, "every": scheduled.RotateEvery.String(),
		"grace": scheduled.RotateGrace.String(), "rotator": scheduled.Rotator,
	})
	return &scheduled, at, nil
}

// RequestKeyRotation asks a key's rotator for a successor now.
func (c *Controller) RequestKeyRotation(ctx context.Context, by string, req *iapmeshv1.RequestKeyRotationRequest) (*keyring.Key, revision.Revision, error) {
	var asked keyring.Key
	at, err := c.update(ctx, "rotate key", func(t *tx) error {
		k, err := t.findKey(req.Key)
		if err != nil {
			return err
		}
		if asked, err = keyring.RequestKeyRotation(*k); err != nil {
			return err
		}
		if !k.RotateRequested {
			t.put(state.PutKey(&asked))
		}
		return nil
	})
	if err != nil {
		return nil, at, err
	}
	c.record(ctx, audit.KindRotation, by, map[string]string{"action": "key.rotate-request", "key": asked.ID, "rotator": asked.Rotator})
	return &asked, at, nil
}

// ProposeSuccessor registers the successor that a key's rotator has made. nodeID is who asks, by its certificate.
func (c *Controller) ProposeSuccessor(ctx context.Context, nodeID string, req *iapmeshv1.ProposeSuccessorRequest) (revision.Revision, error) {
	var before, proposed keyring.Key
	var replaced *keyring.Key
	isNew := false
	at, err := c.update(ctx, "propose a successor of key "+req.KeyId, func(t *tx) error {
		if err := t.rotates(); err != nil {
			return err
		}
		k, err := t.key(req.KeyId)
		if err != nil {
			return err
		}
		node, err := t.node(nodeID)
		if err != nil {
			return err
		}
		var open *keyring.Key
		if known := t.View.Keyring.OpenProposal(k.ID); known != nil {
			if open, err = t.key(known.ID); err != nil {
				return err
			}
		}
		before = *k
		approval, err := t.needsApproval(k.Grants)
		if err != nil {
			return err
		}
		proposed, replaced, err = keyring.ProposeSuccessor(*k, keyring.ProposalRequest{
			SuccessorPublicKey: req.SuccessorPublicKey, By: *node, Open: open, NeedsApproval: approval || k.NeedsApproval, Now: t.Now,
		})
		if err != nil {
			return err
		}
		if isNew = open == nil || replaced != nil; !isNew {
			return nil
		}
		if err := t.unusedKey(&proposed); err != nil {
			return err
		}
		t.put(state.PutKey(&proposed))
		if replaced != nil {
			t.put(state.PutKey(replaced))
		}
		return nil
	})
	if err != nil || !isNew {
		return at, errors.Join(err, awaited(&proposed))
	}
	detail := map[string]string{"action": "key.propose", "key": before.ID, "successor": proposed.ID}
	if replaced != nil {
		detail["replaced"] = replaced.ID
	}
	c.record(ctx, audit.KindRotation, "node/"+nodeID, detail)
	c.Logger.Info("key rotation proposed", "key", before.ID, "name", before.Name, "successor", proposed.ID, "rotator", nodeID)
	return at, awaited(&proposed)
}

// awaited keeps a rotator from having a secret stored that may never be approved: until then its proposal is registered, and refused.
func awaited(proposed *keyring.Key) error {
	if !proposed.AwaitsApproval() {
		return nil
	}
	return fault.New(fault.Denied, "the successor awaits an administrator: iapmesh key approve %s", proposed.ID)
}

// CompleteRotation makes a proposed successor active and retires its predecessor, once its rotator says that the secret is kept.
func (c *Controller) CompleteRotation(ctx context.Context, nodeID string, req *iapmeshv1.CompleteRotationRequest) (revision.Revision, error) {
	var before, after keyring.Key
	isNew := false
	at, err := c.update(ctx, "complete the rotation of key "+req.KeyId, func(t *tx) error {
		if err := t.rotates(); err != nil {
			return err
		}
		k, err := t.key(req.KeyId)
		if err != nil {
			return err
		}
		successor, err := t.key(req.SuccessorId)
		if err != nil {
			return err
		}
		node, err := t.node(nodeID)
		if err != nil {
			return err
		}
		if before, after, err = keyring.CompleteRotation(*k, *successor, keyring.CompletionRequest{By: *node, Now: t.Now}); err != nil {
			return err
		}
		if isNew = successor.State != after.State; !isNew {
			return nil
		}
		t.put(state.PutKey(&before))
		t.put(state.PutKey(&after))
		t.receipt("key.rotate", before.ID, "node/"+nodeID)
		return nil
	})
	if err != nil || !isNew {
		return at, err
	}
	c.record(ctx, audit.KindRotation, "node/"+nodeID, map[string]string{"action": "key.rotate", "key": before.ID, "successor": after.ID, "receipt": c.ReceiptID(at)})
	c.Logger.Info("key rotated", "key", before.ID, "name", before.Name, "successor", after.ID, "rotator", nodeID, "grace_until", before.GraceUntil)
	return at, nil
}

// rotates refuses a rotator while a restoration is unconfirmed: a successor that comes now would be in no list that an operator reads.
func (t *tx) rotates() error {
	if err := t.View.Keyring.Closed(); err != nil {
		return fault.New(fault.Conflict, "%w", err)
	}
	return nil
}

// closeProposals revokes the proposals that nobody can complete any more.
func (c *Controller) closeProposals(ctx context.Context, v *state.View) error {
	var errs []error
	for _, k := range v.Keyring.Keys {
		if _, changed := keyring.SweepProposal(*k, v.Keyring.Keys[k.Predecessor], c.now()); changed {
			errs = append(errs, c.closeProposal(ctx, k.ID))
		}
	}
	return errors.Join(errs...)
}

func (c *Controller) closeProposal(ctx context.Context, id string) error {
	var closed keyring.Key
	changed := false
	_, err := c.update(ctx, "close proposal "+id, func(t *tx) error {
		k, err := t.key(id)
		if err != nil {
			return err
		}
		predecessor, err := t.key(k.Predecessor)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if closed, changed = keyring.SweepProposal(*k, predecessor, t.Now); changed {
			t.put(state.PutKey(&closed))
		}
		return nil
	})
	if err != nil || !changed {
		return err
	}
	c.Logger.Info("proposed key closed", "key", closed.ID, "predecessor", closed.Predecessor, "reason", closed.Reason)
	c.record(ctx, audit.KindRotation, "leader", map[string]string{"action": "key.close-proposal", "key": closed.ID, "predecessor": closed.Predecessor, "reason": closed.Reason})
	return nil
}
