package keyring

import (
	"slices"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// AwaitsApproval reports whether the key waits for a second administrator: Pending with NeedsApproval, as opposed to what is
// pending for another reason.
func (k *Key) AwaitsApproval() bool {
	return k.State == KeyPending && k.NeedsApproval && k.ApprovedAt.IsZero()
}

// awaitedApproval says for what a key waits.
func awaitedApproval(k *Key) string {
	return "it awaits the approval of another administrator than " + k.CreatedBy
}

// ApproveRequest is a second administrator's word for a key.
type ApproveRequest struct {
	Predecessor *Key // of a successor: the key that it is to succeed
	By          string
	Now         time.Time
}

// ApproveKey activates a key that awaits an approval. By whoever issued it, or named the rotator that made it: Denied. What awaits none, or whose time was over before
// anybody approved it, is a Conflict. A successor takes over with that: the returned predecessor begins its grace. It has stood as it was
// until now, so that it may have been suspended, revoked or rotated otherwise; then it has no place to give up, and that is a Conflict.
// A rotator's proposal stays pending: it takes over once its secret is kept (CompleteRotation).
func ApproveKey(k Key, r ApproveRequest) (approved Key, predecessor *Key, err error) {
	switch {
	case !k.AwaitsApproval():
		return k, nil, fault.New(fault.Conflict, "key %s: approve: it awaits no approval: it is %s", k.ID, k.State)
	case r.By == "" || r.By == k.CreatedBy:
		return k, nil, fault.New(fault.Denied, "key %s: %s asked for it: it takes another administrator to approve it", k.ID, k.CreatedBy)
	case k.Proposed() && r.By == k.ScheduledBy:
		return k, nil, fault.New(fault.Denied, "key %s: %s named node %s, which made it: it takes another administrator to approve it", k.ID, r.By, k.ProposedBy)
	case over(k.ExpiresAt, r.Now):
		return k, nil, fault.New(fault.Conflict, "key %s: approve: its time was over at %s: issue another", k.ID, stamp(k.ExpiresAt))
	}
	if err := validText("approved_by", r.By, MaxBy); err != nil {
		return k, nil, err
	}
	if k.Proposed() {
		k.ApprovedBy, k.ApprovedAt = r.By, r.Now
		return k, nil, nil
	}
	if k.Predecessor != "" {
		p := r.Predecessor
		switch {
		case p == nil || p.ID != k.Predecessor:
			return k, nil, fault.New(fault.Internal, "key %s: approve: without its predecessor %s", k.ID, k.Predecessor)
		case !p.succeedable():
			return k, nil, fault.New(fault.Conflict, "key %s: approve: key %s, which it is to succeed, is %s meanwhile", k.ID, p.ID, p.State)
		}
		retired := retire(*p, &k, k.ApprovalGrace, r.Now)
		predecessor = &retired
	}
	approved = k
	approved.ApprovedBy, approved.ApprovedAt = r.By, r.Now
	approved, err = ActivateKey(approved, r.Now)
	if err != nil {
		return k, nil, err
	}
	return approved, predecessor, nil
}

// FindAwaiting returns the key that awaits an approval and has that id or name, or is to succeed the key that has. NotFound if
// there is no such key, Conflict if none of it awaits an approval, or Invalid if more than one does.
func (s *Snapshot) FindAwaiting(ref string) (*Key, error) {
	var known *Key
	var awaiting []*Key
	for _, k := range s.Keys {
		if ref == "" || k.ID != ref && k.Name != ref && k.Predecessor != ref {
			continue
		}
		known = k
		if k.AwaitsApproval() {
			awaiting = append(awaiting, k)
		}
	}
	switch {
	case known == nil:
		return nil, fault.New(fault.NotFound, "key %.80q: no key has this id or name", ref)
	case len(awaiting) == 0:
		return nil, fault.New(fault.Conflict, "key %.80q: it awaits no approval", ref)
	case len(awaiting) > 1:
		return nil, ambiguous("key", ref, "keys await approval under it", awaiting, func(k *Key) string { return k.ID })
	}
	return awaiting[0], nil
}

// SuccessorAwaiting returns the key that is to succeed another once it is approved; nil if there is none.
func (s *Snapshot) SuccessorAwaiting(id string) *Key {
	var found []*Key
	for _, k := range s.Keys {
		if id != "" && k.Predecessor == id && k.AwaitsApproval() {
			found = append(found, k)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return slices.MinFunc(found, func(a, b *Key) int { return compareID(a.ID, b.ID) })
}
