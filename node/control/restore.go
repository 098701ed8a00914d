package control

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// RestoreInput is a snapshot that an administrator wants back, and his word for it.
type RestoreInput struct {
	Statement  keyring.RestorationStatement
	Signature  []byte
	Revision   revision.Revision // of the snapshot
	Audiences  []*iapmeshv1.AudienceWrap
	OpeningKey []byte // private
	Entries    []store.Entry
	Remembered []keyring.Denial // what the trail remembers
	DryRun     bool
}

// maxRemembered bounds what a caller remembers.
const maxRemembered = 100_000

// finishTimeout bounds how long one attempt to write a restoration takes.
const finishTimeout = 10 * time.Minute

// restoring is a restoration while it is written.
type restoring struct {
	RestoreInput
	snapshot *state.View
	opening  seal.SealingKey
}

// Restore takes a snapshot back into the mesh that it is of: the record that closes the mesh first, then whatever differs, commit by
// commit, each decided on what is there then, then the new epoch, and at last the word that all is there and awaits an operator.
// The same snapshot again goes on where it ended, or says how it went; another one is a Conflict until the first is confirmed.
func (c *Controller) Restore(ctx context.Context, by string, in RestoreInput) (*iapmeshv1.RestorationStatus, revision.Revision, error) {
	var none revision.Revision
	term, err := c.mustLead()
	if err != nil {
		return nil, none, err
	}
	if !c.restores.TryLock() {
		return nil, none, fault.New(fault.Unavailable, "restore: a restoration is being written just now")
	}
	defer c.restores.Unlock()
	if c.Epochs == nil {
		return nil, none, fault.New(fault.Unavailable, "restore: this engine cannot begin another epoch")
	}
	if err := c.catchUp(ctx, store.Term(term)); err != nil {
		return nil, none, err
	}
	r, err := newRestoring(in)
	if err != nil {
		return nil, none, err
	}
	v, err := c.view()
	if err != nil {
		return nil, none, err
	}
	record, err := c.beginRestoration(ctx, v, by, r)
	if err != nil {
		return nil, none, err
	}
	if in.DryRun {
		status, err := c.dryRun(v, r, record)
		return status, v.Revision, err
	}
	if record.Phase == keyring.RestorationRunning {
		// The mesh is closed: as long as this node leads it goes on, whether or not somebody still waits.
		finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout)
		defer cancel()
		if err := c.finishRestoration(finish, r, record); err != nil {
			return nil, none, err
		}
	}
	if v, err = c.view(); err != nil {
		return nil, none, err
	}
	return RestorationStatus(v), v.Revision, nil
}

func newRestoring(in RestoreInput) (*restoring, error) {
	if len(in.Remembered) > maxRemembered {
		return nil, fault.New(fault.Invalid, "restore: %d denials are remembered, at most %d", len(in.Remembered), maxRemembered)
	}
	r := &restoring{RestoreInput: in}
	var err error
	if r.snapshot, err = state.Build(in.Entries, in.Revision); err != nil {
		return nil, fault.New(fault.Invalid, "restore: the snapshot: %w", err)
	}
	if mesh := r.snapshot.Keyring.Mesh.ID; mesh == "" || mesh != in.Statement.Mesh || in.Revision != in.Statement.SnapshotRevision {
		return nil, fault.New(fault.Conflict, "restore: the snapshot is of mesh %.80q at %s, the statement of %.80q at %s", mesh, in.Revision, in.Statement.Mesh, in.Statement.SnapshotRevision)
	}
	if in.Statement.Kind != keyring.RestoreSnapshot || in.Statement.Carrier != "" {
		return nil, fault.New(fault.Invalid, "restore: the statement is to %s, by a new engine: %t", in.Statement.Kind, in.Statement.Carrier != "")
	}
	if r.opening, err = seal.ParseSealingKey(in.OpeningKey); err != nil {
		return nil, fault.New(fault.Invalid, "restore: opening key: %w", err)
	}
	return r, nil
}

func (r *restoring) facts(v *state.View, record *keyring.Restoration, t *tx) keyring.RestoreFacts {
	return keyring.RestoreFacts{Present: &v.Keyring.Contents, Snapshot: &r.snapshot.Keyring.Contents, Denials: r.Remembered, Restoration: record, Now: t.Now}
}

// beginRestoration commits the record that closes the mesh, unless it stands already; a dry run commits nothing.
func (c *Controller) beginRestoration(ctx context.Context, v *state.View, by string, r *restoring) (*keyring.Restoration, error) {
	kept, err := c.carriers(ctx, v)
	if err != nil {
		return nil, err
	}
	var record *keyring.Restoration
	begun := false
	at, err := c.update(ctx, "restore", func(t *tx) error {
		contents := &t.View.Keyring.Contents
		s := &r.Statement
		old, err := t.get(state.PathRestoration)
		if err != nil {
			return err
		}
		admin := signer(contents, by, s, r.Signature)
		begun = false
		if record = contents.Unconfirmed(); record != nil {
			if !bytes.Equal(record.Statement.Digest, s.Digest) || record.Statement.Kind != s.Kind {
				return fault.New(fault.Conflict, "restore: the restoration of another snapshot (%s) is %s: finish it first", hex.EncodeToString(record.Statement.Digest), strings.ReplaceAll(string(record.Phase), "_", " "))
			}
			// It goes on under the epochs that it began with, on the word of whoever signs now.
			if s.OldEpoch != record.Statement.OldEpoch || s.NewEpoch != record.Statement.NewEpoch || s.Mesh != contents.Mesh.ID {
				return fault.New(fault.Conflict, "restore: it began from epoch %d to %d; sign for these", record.Statement.OldEpoch, record.Statement.NewEpoch)
			}
			return s.VerifySigner(admin, r.Signature, t.Now)
		}
		if err := s.Verify(contents.Mesh.ID, t.View.Revision.Epoch, admin, r.Signature, t.Now); err != nil {
			return err
		}
		record = &keyring.Restoration{
			Statement: *s, By: admin.ID, ByName: admin.Name, Signature: r.Signature, Phase: keyring.RestorationRunning,
			SessionsFrom: revision.Revision{Epoch: s.NewEpoch}, Kept: kept,
		}
		plan := keyring.PlanRestore(r.facts(t.View, record, t))
		if err := plan.Admins[admin.ID].Check(t.Now); err != nil {
			return fmt.Errorf("restore: you would be refused afterwards: let another administrator do it: %w", err)
		}
		record.List, record.Refused = plan.List, clip(plan.Refused)
		if r.DryRun {
			return nil
		}
		if old != nil && contents.Restoration != nil {
			past := state.PastRestorationPath(contents.Restoration.Statement.NewEpoch)
			if _, err := t.get(past); err != nil {
				return err
			}
			t.put(store.Entry{Key: past, Value: old.Value})
		}
		t.put(state.PutRestoration(record))
		begun = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !r.DryRun && record.Phase == keyring.RestorationRunning { // an attempt that goes on, too: the one before may have died before it was recorded
		c.Logger.Warn("mesh closed: a snapshot is being restored", "by", by, "resumed", !begun, "snapshot", hex.EncodeToString(r.Statement.Digest), "of_revision", r.Revision.String(), "revision", at.String())
		c.record(ctx, audit.KindAdmin, by, map[string]string{
			"action": "snapshot.restore", "snapshot": hex.EncodeToString(r.Statement.Digest), "of_revision": r.Revision.String(),
			"epoch": strconv.FormatUint(r.Statement.NewEpoch, 10), "revision": at.String(), "resumed": boolWord(!begun),
		})
	}
	return record, nil
}

// signer is the administrator who calls and has signed; nil if he has not.
func signer(c *keyring.Contents, by string, s *keyring.RestorationStatement, signature []byte) *keyring.Admin {
	for _, a := range c.Admins {
		if "admin/"+a.Name == by && a.RevokedAt.IsZero() && s.VerifySignature(a.PublicKey, signature) == nil {
			return a
		}
	}
	return nil
}

// carriers are the control nodes that vote now and are trusted: without them nothing could be committed.
func (c *Controller) carriers(ctx context.Context, v *state.View) ([]string, error) {
	kept := []string{c.NodeID}
	if c.Voters == nil { // an external engine needs none but who leads
		return kept, nil
	}
	servers, err := c.Voters.Servers(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range servers {
		if n := v.Keyring.Nodes[s.ID]; s.Voter && n != nil && n.Trusted() && n.HasRole(keyring.RoleControl) && s.ID != c.NodeID {
			kept = append(kept, s.ID)
		}
	}
	slices.Sort(kept)
	return kept, nil
}

// finishRestoration writes what differs until nothing does, begins the epoch, and hands over to an operator. The epoch begins last, so
// that every follower still hears, change by change, that the mesh is closed and that it is quarantined.
func (c *Controller) finishRestoration(ctx context.Context, r *restoring, record *keyring.Restoration) error {
	for _, step := range []func(context.Context, *restoring, *keyring.Restoration) (more bool, err error){
		c.restoreRecords, c.restoreBlobs, c.restoreSecrets, c.restoreManifest,
		c.restoreRecords, // what others wrote meanwhile
	} {
		for more := true; more; {
			var err error
			if more, err = step(ctx, r, record); err != nil {
				return err
			}
		}
	}
	v, err := c.view()
	if err != nil {
		return err
	}
	if v.Revision.Epoch < record.Statement.NewEpoch {
		at, err := c.Epochs.AdvanceEpoch(ctx, record.Statement.NewEpoch)
		if err != nil {
			return fmt.Errorf("restore: begin epoch %d: %w", record.Statement.NewEpoch, err)
		}
		c.show(ctx, "begin epoch", at)
	}
	_, err = c.update(ctx, "restore", func(t *tx) error {
		now, err := t.restoration()
		if err != nil {
			return err
		}
		if now.Phase == keyring.RestorationRunning {
			now.Phase = keyring.RestorationAwaiting
			t.put(state.PutRestoration(now))
		}
		return nil
	})
	if err == nil {
		c.Logger.Warn("snapshot restored: it awaits an operator's confirmation", "epoch", record.Statement.NewEpoch)
	}
	return err
}

// restoration reads and guards the last restoration.
func (t *tx) restoration() (*keyring.Restoration, error) {
	return read(t, state.PathRestoration, "restoration", func(p *iapmeshv1.Restoration) (*keyring.Restoration, error) { return state.RestorationOf(p), nil })
}

// restoreRecords writes one commit of the records that differ from what the restoration makes of the state of now.
func (c *Controller) restoreRecords(ctx context.Context, r *restoring, _ *keyring.Restoration) (more bool, err error) {
	_, err = c.update(ctx, "restore records", func(t *tx) error {
		record, err := t.restoration()
		if err != nil {
			return err
		}
		contents := &t.View.Keyring.Contents
		plan := keyring.PlanRestore(r.facts(t.View, record, t))
		writes := recordWrites(contents, &plan)
		batch := firstBatch(writes)
		for _, e := range batch {
			have, err := t.get(e.Key)
			if err != nil {
				return err
			}
			if have != nil && !understood(contents, e.Key) {
				return fault.New(fault.Internal, "restore: %s lies there and is not understood", e.Key)
			}
			t.put(e)
		}
		more = len(writes) > len(batch)
		return nil
	})
	return more, err
}

// understood reports whether a record that lies there is one of the view's: else what it refuses is not known.
func understood(c *keyring.Contents, key string) bool {
	kind, id, _ := strings.Cut(key, "/")
	switch kind + "/" {
	case state.PrefixKey:
		return c.Keys[id] != nil
	case state.PrefixNode:
		return c.Nodes[id] != nil
	case state.PrefixAdmin:
		return c.Admins[id] != nil
	case state.PrefixSigningKey:
		return c.SigningKeys[id] != nil
	}
	return true // a revocation that cannot be read is one that blocks
}

// restoreBlobs writes the resources of the snapshot's manifest that are missing. They are named by their hash: none is in anybody's way.
func (c *Controller) restoreBlobs(ctx context.Context, r *restoring, _ *keyring.Restoration) (more bool, err error) {
	var missing []store.Entry
	for _, e := range r.Entries {
		if !strings.HasPrefix(e.Key, state.PrefixBlob) {
			continue
		}
		if have, err := c.Store.Get(ctx, e.Key); err == nil && bytes.Equal(have.Value, e.Value) {
			continue
		} else if err != nil && !fault.Is(err, fault.NotFound) {
			return false, err
		}
		missing = append(missing, e)
	}
	batch := firstBatch(missing)
	if len(batch) == 0 {
		return false, nil
	}
	_, err = c.update(ctx, "restore resources", func(t *tx) error {
		for _, e := range batch {
			t.put(store.Entry{Key: e.Key, Value: e.Value})
		}
		return nil
	})
	return len(missing) > len(batch), err
}

// restoreSecrets seals anew what the proxies held and the present state lacks, such as an identity provider's client secret. What the
// present has is never replaced: a secret that was changed since was changed for a reason. CA, gossip and hand-off keys are the present's.
func (c *Controller) restoreSecrets(ctx context.Context, r *restoring, _ *keyring.Restoration) (more bool, err error) {
	var old *seal.AudienceKey
	for _, s := range r.snapshot.Keyring.Secrets {
		if s.Audience != keyring.AudienceProxies || !keyring.IsUserSecret(s.Name) {
			continue
		}
		if v, err := c.view(); err != nil || v.Keyring.Secrets[s.Audience+"/"+s.Name] != nil {
			if err != nil {
				return false, err
			}
			continue
		}
		if old == nil {
			key, err := r.audienceKey(s.Audience, s.Version)
			if err != nil {
				return false, err
			}
			old = &key
		}
		if _, err := c.update(ctx, "restore secret "+s.Name, func(t *tx) error {
			if have, err := t.get(state.SecretPath(s.Audience, s.Name)); err != nil || have != nil {
				return err
			}
			a, err := t.audience(s.Audience)
			if err != nil {
				return err
			}
			key, err := c.Secrets.Audience(a)
			if err != nil {
				return err
			}
			resealed, err := seal.Reseal(*old, key, *s, t.Now)
			if err != nil {
				return err
			}
			t.put(state.PutSecret(&resealed))
			return nil
		}); err != nil {
			return false, err
		}
	}
	return false, nil
}

func (r *restoring) audienceKey(name string, version uint32) (seal.AudienceKey, error) {
	for _, w := range r.Audiences {
		if w.GetName() == name && w.GetVersion() == version {
			return seal.OpenFromSnapshot(r.opening, name, version, w.GetWrapped())
		}
	}
	return seal.AudienceKey{}, fault.New(fault.Invalid, "restore: the snapshot does not open audience %s, version %d", name, version)
}

// restoreManifest puts the snapshot's configuration in force, all at once.
func (c *Controller) restoreManifest(ctx context.Context, r *restoring, _ *keyring.Restoration) (more bool, err error) {
	var value []byte
	if i := slices.IndexFunc(r.Entries, func(e store.Entry) bool { return e.Key == state.PathManifest }); i >= 0 {
		value = r.Entries[i].Value
	}
	_, err = c.update(ctx, "restore configuration", func(t *tx) error {
		have, err := t.get(state.PathManifest)
		switch {
		case err != nil:
			return err
		case value == nil && have != nil:
			t.del(state.PathManifest)
		case value != nil && (have == nil || !bytes.Equal(have.Value, value)):
			t.put(store.Entry{Key: state.PathManifest, Value: value})
		}
		return nil
	})
	return false, err
}

// dryRun says what restoring would do, and writes nothing.
func (c *Controller) dryRun(v *state.View, r *restoring, record *keyring.Restoration) (*iapmeshv1.RestorationStatus, error) {
	plan := keyring.PlanRestore(r.facts(v, record, &tx{Now: c.now()}))
	after := v.Keyring.Contents
	after.Keys, after.Nodes, after.Admins, after.Revocations, after.Restoration = plan.Keys, plan.Nodes, plan.Admins, plan.Revocations, record
	status := statusOf(&after, v.Revision)
	status.ListDigest = nil // there is nothing to confirm yet
	status.Writes = uint64(len(recordWrites(&v.Keyring.Contents, &plan)))
	return proto.CloneOf(status), nil
}
