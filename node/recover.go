package node

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/iapmesh/iapmesh/cluster/raftstore"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/internal/snapshotfile"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Sign signs a statement in an administrator's name.
type Sign func(*keyring.RestorationStatement) (signature []byte, err error)

// Question is what a survivor asks of others.
type Question = control.Question

// RecoverConfig says which survivor recovers its mesh. Of Config, DataDir and Seal count.
type RecoverConfig struct {
	Config
	Sign       Sign
	Epoch      uint64           // to begin; 0: the next
	Remembered []keyring.Denial // what is known as refused from elsewhere

	// Ask asks others what was refused since, beside Remembered; nil: nobody is asked.
	Ask    func(context.Context, control.Question) []keyring.Denial
	Logger *slog.Logger
	Now    func() time.Time // nil: time.Now
}

// Recovered is what became of the mesh.
type Recovered struct {
	MeshID, NodeID string
	Address        string // mesh address of the node that carries on
	Before         string // where the old engine's directory lies now; empty after a restore into an empty directory
	Status         *iapmeshv1.RestorationStatus
}

// What recover makes beside the engine's directory.
const (
	recoveringDir = raftDir + ".recovering"
	beforeDir     = raftDir + ".before-recovery-"
)

// Recover founds a mesh anew from one control node that survived, stopped, after the quorum was lost for good: with all that it knew as
// committed, as its only voter, in a later epoch. The others depart; what could be accepted again awaits an operator. The engine is
// built aside and takes the old one's place when it is whole; the old one is kept. Conflict: the node still runs.
func Recover(ctx context.Context, c RecoverConfig) (*Recovered, error) {
	defaults(&c.Logger, &c.Now)
	if _, err := os.Stat(filepath.Join(c.DataDir, identityFile)); errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Invalid, "%s holds no node: nothing to recover", c.DataDir)
	}
	id, err := readIdentity(ctx, &Config{DataDir: c.DataDir, Seal: c.Seal})
	if err != nil {
		return nil, err
	}
	if !id.enrolled() || !id.holds(keyring.RoleControl) {
		return nil, fault.New(fault.Invalid, "%s holds no control node: only one of those has the state", c.DataDir)
	}
	unlock, err := stopped(c.DataDir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := finishSwap(c.DataDir); err != nil {
		return nil, err
	}
	entries, at, err := readEngine(ctx, &c, id)
	if err != nil {
		return nil, err
	}
	r := &control.Refounding{Entries: entries, Revision: at, Remembered: c.Remembered, Now: c.Now().UTC().Truncate(time.Millisecond), Survivor: id.public.NodeID}
	if c.Ask != nil {
		question, err := r.Question()
		if err != nil {
			return nil, err
		}
		if store := filepath.Join(c.DataDir, collectDir); isDir(store) {
			question.Store = store
		}
		r.Remembered = slices.Concat(c.Remembered, c.Ask(ctx, question))
	}
	if r.Statement, r.Signature, err = signRecovery(&c, id, entries, at); err != nil {
		return nil, err
	}
	plan, err := r.Plan()
	if err != nil {
		return nil, err
	}
	address := plan.Address(id.public.NodeID)
	if address == "" {
		return nil, fault.New(fault.Internal, "node %s: the state does not say where it is reached", id.public.NodeID)
	}
	aside := filepath.Join(c.DataDir, recoveringDir)
	if err := os.RemoveAll(aside); err != nil { // of an attempt that did not end
		return nil, fault.New(fault.Internal, "recover: %w", err)
	}
	if err := newEngineOf(ctx, engineOf{dir: aside, id: id, address: address, logger: c.Logger}, plan); err != nil {
		return nil, err
	}
	before := filepath.Join(c.DataDir, beforeDir+strconv.FormatUint(r.Statement.NewEpoch, 10))
	if err := swap(c.DataDir, before); err != nil {
		return nil, err
	}
	id.public.ControlNodes = []controlNode{{NodeID: id.public.NodeID, Region: id.public.Region, Address: address}}
	if err := id.save(); err != nil {
		return nil, err
	}
	return &Recovered{MeshID: id.public.MeshID, NodeID: id.public.NodeID, Address: address, Before: before, Status: plan.Status}, nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func defaults(logger **slog.Logger, now *func() time.Time) {
	if *logger == nil {
		*logger = slog.New(slog.DiscardHandler)
	}
	if *now == nil {
		*now = time.Now
	}
}

func (id *identity) holds(role keyring.Role) bool {
	for _, r := range id.public.Roles {
		if r == string(role) {
			return true
		}
	}
	return false
}

// readEngine reads what the survivor knows as committed, without taking part in anything.
func readEngine(ctx context.Context, c *RecoverConfig, id *identity) ([]store.Entry, revision.Revision, error) {
	dir := filepath.Join(c.DataDir, raftDir)
	if _, err := os.Stat(dir); err != nil {
		return nil, revision.Revision{}, fault.New(fault.Invalid, "recover: %w", err)
	}
	engine, err := raftstore.Open(raftstore.Config{Dir: dir, NodeID: id.public.NodeID, Transport: newAlone("recovering"), Seal: id.sealer, Logger: c.Logger})
	if err != nil {
		return nil, revision.Revision{}, err
	}
	entries, at, err := engine.List(ctx, "")
	if err = errors.Join(err, engine.Close()); err != nil {
		return nil, revision.Revision{}, err
	}
	if len(entries) == 0 {
		return nil, revision.Revision{}, fault.New(fault.Invalid, "recover: this node's state is empty: it never followed its mesh")
	}
	return entries, at, nil
}

func signRecovery(c *RecoverConfig, id *identity, entries []store.Entry, at revision.Revision) (s keyring.RestorationStatement, signature []byte, err error) {
	sum := snapshotfile.NewSum()
	for _, e := range entries {
		sum.Add(e)
	}
	digest, now := sum.Digest(), c.Now().UTC().Truncate(time.Millisecond)
	s = keyring.RestorationStatement{
		Mesh: id.public.MeshID, Kind: keyring.RestoreSurvivor, OldEpoch: at.Epoch, NewEpoch: max(c.Epoch, at.Epoch+1), Digest: digest[:],
		SnapshotRevision: at, SnapshotTime: now, Time: now, Nonce: random(16), Carrier: id.public.NodeID,
	}
	signature, err = c.Sign(&s)
	return s, signature, err
}

// engineOf is where an engine of one member is made.
type engineOf struct {
	dir     string
	id      *identity
	node    string // default: the identity's
	address string
	logger  *slog.Logger
}

// newEngineOf makes an engine of one member that holds a state, and stops it.
func newEngineOf(ctx context.Context, e engineOf, plan *control.Refounded) error {
	if e.node == "" {
		e.node = e.id.public.NodeID
	}
	engine, err := raftstore.Open(raftstore.Config{
		Dir: e.dir, NodeID: e.node, Transport: newAlone(e.address), Seal: e.id.sealer, Bootstrap: true, Logger: e.logger,
	})
	if err != nil {
		return err
	}
	return leadOnce(ctx, engine, 10*time.Minute, func(ctx context.Context) error { return plan.Write(ctx, engine) })
}

// swap puts the new engine in the old one's place. Between the two renames there is none: finishSwap ends what was begun.
func swap(dataDir, before string) error {
	if _, err := os.Lstat(before); !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Conflict, "recover: %s is there already", before)
	}
	current, aside := filepath.Join(dataDir, raftDir), filepath.Join(dataDir, recoveringDir)
	if err := os.Rename(current, before); err != nil {
		return fault.New(fault.Internal, "recover: %w", err)
	}
	if err := errors.Join(os.Rename(aside, current), syncDir(dataDir)); err != nil {
		return fault.New(fault.Internal, "recover: the engine is whole in %s and did not come to %s: %w", aside, current, err)
	}
	return nil
}

// finishSwap ends a recovery that died between the renames: the engine that was built is whole, or the old one would be in its place.
func finishSwap(dataDir string) error {
	current, aside := filepath.Join(dataDir, raftDir), filepath.Join(dataDir, recoveringDir)
	if _, err := os.Lstat(current); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := os.Lstat(aside); err != nil {
		return nil
	}
	if err := errors.Join(os.Rename(aside, current), syncDir(dataDir)); err != nil {
		return fault.New(fault.Internal, "recover: %w", err)
	}
	return fault.New(fault.Conflict, "recover: the recovery before was complete but for its last step, which is done now: start the node")
}
