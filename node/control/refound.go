package control

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Refounding is a mesh that begins anew in an engine of one member, because the engine before is lost: from a survivor's own state, or
// from a snapshot, with a new control node. The other control nodes depart: their logs are of another history.
type Refounding struct {
	Entries    []store.Entry // of the survivor or of the snapshot
	Revision   revision.Revision
	Statement  keyring.RestorationStatement
	Signature  []byte
	Remembered []keyring.Denial
	Now        time.Time

	Survivor string   // node id; empty: from a snapshot
	Founder  *Founder // from a snapshot: the new control node
}

// Founder is a control node that did not exist when the snapshot was taken.
type Founder struct {
	Node       *keyring.Node // but for its provisioning key
	OpeningKey seal.SealingKey
	Audiences  []*iapmeshv1.AudienceWrap
}

// Refounded is the state that the new engine begins with.
type Refounded struct {
	Entries []store.Entry
	Status  *iapmeshv1.RestorationStatus
	view    *state.View
}

// Address is where a node is reached for the mesh; empty if the state does not say.
func (r *Refounded) Address(node string) string {
	if n := r.view.Keyring.Nodes[node]; n != nil {
		return n.Addresses.Mesh
	}
	return ""
}

// Chain is what a node presents behind its certificate, DER.
func (r *Refounded) Chain(leaf *x509.Certificate) [][]byte { return r.view.Keyring.Chain(leaf) }

// Plan makes the state, and refuses, as Conflict, Denied or Invalid, what no administrator of it has signed.
func (r *Refounding) Plan() (*Refounded, error) {
	view, err := state.Build(r.Entries, r.Revision)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the state that is left: %w", err)
	}
	before := &view.Keyring.Contents
	var admin *keyring.Admin
	for _, a := range before.Admins {
		if a.RevokedAt.IsZero() && r.Statement.VerifySignature(a.PublicKey, r.Signature) == nil {
			admin = a
		}
	}
	if err := r.Statement.Verify(before.Mesh.ID, r.Revision.Epoch, admin, r.Signature, r.Now); err != nil {
		return nil, err
	}
	carrier := r.Survivor
	if r.Founder != nil {
		carrier = r.Founder.Node.ID
	}
	if r.Statement.Carrier != carrier || carrier == "" {
		return nil, fault.New(fault.Conflict, "signed for control node %q, not for %q", r.Statement.Carrier, carrier)
	}
	record := &keyring.Restoration{
		Statement: r.Statement, By: admin.ID, ByName: admin.Name, Signature: r.Signature, Phase: keyring.RestorationAwaiting,
		SessionsFrom: revision.Revision{Epoch: r.Statement.NewEpoch},
	}
	facts := keyring.RestoreFacts{Snapshot: before.Unheld(), Denials: r.Remembered, Restoration: record, ControlDeparts: true, Now: r.Now}
	if r.Survivor != "" {
		if n := before.Nodes[r.Survivor]; n == nil || !n.Trusted() || !n.HasRole(keyring.RoleControl) {
			return nil, fault.New(fault.Denied, "node %s is no control node that its own state trusts: another one must recover the mesh", r.Survivor)
		}
		record.Kept, facts.Present = []string{r.Survivor}, facts.Snapshot
	}
	plan := keyring.PlanRestore(facts)
	if err := plan.Admins[admin.ID].Check(r.Now); err != nil {
		return nil, fmt.Errorf("you would be refused afterwards: let another administrator do it: %w", err)
	}
	record.List, record.Refused = plan.List, clip(plan.Refused)

	out := map[string]store.Entry{}
	for _, e := range r.Entries {
		out[e.Key] = store.Entry{Key: e.Key, Value: e.Value}
	}
	if e, ok := out[state.PathRestoration]; ok && before.Restoration != nil {
		past := state.PastRestorationPath(before.Restoration.Statement.NewEpoch)
		out[past] = store.Entry{Key: past, Value: e.Value}
	}
	for _, e := range recordWrites(before, &plan) {
		out[e.Key] = e
	}
	if r.Founder != nil {
		added, err := r.founder(before, &plan.Contents, record)
		if err != nil {
			return nil, err
		}
		for _, e := range added {
			out[e.Key] = e
		}
	}
	e := state.PutRestoration(record)
	out[e.Key] = e
	made := slices.SortedFunc(maps.Values(out), func(a, b store.Entry) int { return strings.Compare(a.Key, b.Key) })
	after, err := state.Build(made, revision.Revision{Epoch: r.Statement.NewEpoch, Index: 1})
	if err != nil {
		return nil, err
	}
	return &Refounded{Entries: made, Status: RestorationStatus(after), view: after}, nil
}

// Question is what to ask of others that the state that is left does not know.
type Question struct {
	Aggregators []string        // their addresses
	Store       string          // where a survivor that was an aggregator has its trails; empty: it was none
	Since       time.Time       // the latest time that the state holds
	Control     map[string]bool // of each node that it knows, whether that is a control node
}

// Question says whom to ask.
func (r *Refounding) Question() (q Question, err error) {
	view, err := state.Build(r.Entries, r.Revision)
	if err != nil {
		return q, fault.New(fault.Invalid, "the state that is left: %w", err)
	}
	q.Since, q.Control = latestTime(view), Writers(view)
	for _, n := range sortedNodes(view) {
		if n.Trusted() && n.HasRole(keyring.RoleAggregator) && n.Addresses.Mesh != "" && n.ID != r.Survivor { // which is stopped
			q.Aggregators = append(q.Aggregators, n.Addresses.Mesh)
		}
	}
	return q, nil
}

// Writers says of the nodes whether they are control nodes. A control node that is trusted no more is left out: it may have been taken over,
// and what nobody is known to have written makes a mesh refuse more, and never less.
func Writers(v *state.View) map[string]bool {
	out := make(map[string]bool, len(v.Keyring.Nodes))
	for id, n := range v.Keyring.Nodes {
		if control := n.HasRole(keyring.RoleControl); !control || n.Trusted() {
			out[id] = control
		}
	}
	return out
}

// founder are the records of the new control node: it, the key that it counts under and that nobody holds, its session key, and its
// wrap of every audience's key. The old wraps stay: the leader sees in them who has gone, and rotates.
func (r *Refounding) founder(before, plan *keyring.Contents, record *keyring.Restoration) ([]store.Entry, error) {
	n := *r.Founder.Node
	for _, other := range plan.Nodes {
		switch {
		case other.ID == n.ID:
			return nil, fault.New(fault.Conflict, "node %s is in the snapshot already", n.ID)
		case other.Name == n.Name && other.State == keyring.NodeQuarantined:
			return nil, fault.New(fault.Conflict, "name %q is node %s's, which may be released: give the new control node another", n.Name, other.ID)
		}
	}
	authority, _, err := r.Authority()
	if err != nil {
		return nil, err
	}
	secret, err := keyring.GenerateKey(keyring.Pin(authority.Certificate), nil)
	if err != nil {
		return nil, err
	}
	uses := uint32(1)
	key, err := keyring.IssueKey(keyring.KeyRequest{
		PublicKey: secret.PublicKey(), Name: fmt.Sprintf("restored-%d", r.Statement.NewEpoch), Grants: n.Roles, MaxUses: &uses, By: "admin/" + record.ByName, Now: r.Now,
	})
	if err != nil {
		return nil, err
	}
	key.State, key.Uses, key.Reason = keyring.KeyRetired, 1, "lineage of the control node that the restore founded; nobody holds it"
	n.ProvisioningKey, n.BoundKey = key.ID, key.ID
	out := []store.Entry{state.PutNode(&n), state.PutKey(&key)}
	if n.HasRole(keyring.RoleProxy) {
		signing, err := keyring.AnnounceSessionKey(n, n.SessionPublicKey, plan.SigningKeys, r.Now)
		if err != nil {
			return nil, err
		}
		out = append(out, state.PutSigningKey(&signing))
	}
	for _, a := range before.Audiences {
		opened, err := r.audienceKey(a.Name, a.Version)
		if err != nil {
			return nil, err
		}
		with, err := seal.AddMember(*a, opened, n.ID, n.SealingPublicKey)
		if err != nil {
			return nil, err
		}
		out = append(out, state.PutAudience(&with))
	}
	record.Kept = []string{n.ID}
	return out, nil
}

func (r *Refounding) audienceKey(name string, version uint32) (seal.AudienceKey, error) {
	for _, w := range r.Founder.Audiences {
		if w.GetName() == name && w.GetVersion() == version {
			return seal.OpenFromSnapshot(r.Founder.OpeningKey, name, version, w.GetWrapped())
		}
	}
	return seal.AudienceKey{}, fault.New(fault.Invalid, "the snapshot does not open audience %s, version %d", name, version)
}

// Authority is the snapshot's active authority and its private key, opened by the snapshot's opening key.
func (r *Refounding) Authority() (*keyring.Authority, ed25519.PrivateKey, error) {
	view, err := state.Build(r.Entries, r.Revision)
	if err != nil {
		return nil, nil, fault.New(fault.Invalid, "the snapshot: %w", err)
	}
	a := view.Keyring.ActiveAuthority()
	if a == nil {
		return nil, nil, fault.New(fault.Invalid, "the snapshot holds no active authority")
	}
	secret := view.Keyring.Secrets[keyring.AudienceControl+"/"+caSecret(a.Serial)]
	if secret == nil {
		return nil, nil, fault.New(fault.Invalid, "the snapshot holds no private key of authority %s", a.Serial)
	}
	key, err := r.audienceKey(keyring.AudienceControl, secret.Version)
	if err != nil {
		return nil, nil, err
	}
	seed, err := seal.OpenSecret(key, *secret)
	if err != nil {
		return nil, nil, err
	}
	if len(seed) != ed25519.SeedSize {
		return nil, nil, fault.New(fault.Invalid, "authority %s: private key of %d bytes", a.Serial, len(seed))
	}
	private := ed25519.NewKeyFromSeed(seed)
	if !bytes.Equal(private.Public().(ed25519.PublicKey), a.Certificate.PublicKey.(ed25519.PublicKey)) {
		return nil, nil, fault.New(fault.Invalid, "authority %s: its private key is another's", a.Serial)
	}
	return a, private, nil
}

// newEngine is an empty engine that leads itself.
type newEngine interface {
	store.Store
	epochs
}

// Write writes the state into an empty engine, under its epoch. The engine is nobody's before all of it stands.
func (r *Refounded) Write(ctx context.Context, s newEngine) error {
	if _, err := s.Get(ctx, state.PathMesh); !fault.Is(err, fault.NotFound) {
		return fault.New(fault.Conflict, "the engine is not empty (%v)", err)
	}
	if _, err := s.AdvanceEpoch(ctx, r.Status.Restoration.Statement.NewEpoch); err != nil {
		return fmt.Errorf("begin the epoch: %w", err)
	}
	for rest := r.Entries; len(rest) > 0; {
		batch := firstBatch(rest)
		if _, err := s.Commit(ctx, store.Txn{Puts: batch}); err != nil {
			return fmt.Errorf("write the state: %w", err)
		}
		rest = rest[len(batch):]
	}
	return nil
}
