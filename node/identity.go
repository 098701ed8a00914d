package node

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
)

// identity is who this node is, as its data directory holds it: what is public in node.json, its private keys sealed beside it.
// It is written before the node first asks to join, so that an answer that was lost is asked for again.
type identity struct {
	dir    string
	sealer *seal.Sealer
	mu     sync.Mutex     // while the node runs, guards what of public changes: the certificate, its chain, the control nodes
	public publicIdentity // the rest of it is fixed from the join on
	keys   privateKeys
}

// publicIdentity is node.json.
type publicIdentity struct {
	Version      int           `json:"version"`
	Name         string        `json:"name"`
	Region       string        `json:"region"`
	Roles        []string      `json:"roles"`
	JoinID       []byte        `json:"join_id"`
	Founder      bool          `json:"founder,omitempty"` // init made it: it begins the engine
	NodeID       string        `json:"node_id,omitempty"` // empty until it has enrolled
	MeshID       string        `json:"mesh_id,omitempty"`
	TrustDomain  string        `json:"trust_domain,omitempty"`
	Certificate  []byte        `json:"certificate,omitempty"` // DER
	Bundle       [][]byte      `json:"bundle,omitempty"`      // behind the certificate: cross certificates, roots; DER
	ControlNodes []controlNode `json:"control_nodes,omitempty"`
	FirstKey     firstKey      `json:"first_session_key"`
}

type controlNode struct {
	NodeID  string `json:"node_id"`
	Region  string `json:"region"`
	Address string `json:"address"`
}

// firstKey is at which revision the mesh holds the session key of the join.
type firstKey struct {
	Epoch uint64 `json:"epoch"`
	Index uint64 `json:"index"`
}

// privateKeys are sealed in keys.sealed.
type privateKeys struct {
	Node    []byte `json:"node"`    // Ed25519 seed: the certificate's
	Session []byte `json:"session"` // Ed25519 seed: the first session key
	Sealing []byte `json:"sealing"` // HPKE private key
}

const (
	identityFile = "node.json"
	keysFile     = "keys.sealed"
	keysContext  = "iapmesh/node-keys/v1"
)

// openIdentity reads the identity in a data directory, or makes a new one, with its seal, if there is none.
func openIdentity(ctx context.Context, c *Config) (*identity, error) {
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return nil, fault.New(fault.Invalid, "data_dir: %w", err)
	}
	_, err := os.Stat(filepath.Join(c.DataDir, identityFile))
	switch {
	case err == nil:
		return readIdentity(ctx, c)
	case errors.Is(err, fs.ErrNotExist):
		return newIdentity(ctx, c)
	}
	return nil, fault.New(fault.Invalid, "data_dir: %w", err)
}

func newIdentity(ctx context.Context, c *Config) (*identity, error) {
	sealer, err := c.newSealed().Create(ctx)
	if fault.Is(err, fault.Conflict) {
		sealer, err = c.sealed().Open(ctx) // an attempt that ended between the seal and the identity
	}
	if err != nil {
		return nil, err
	}
	id := &identity{dir: c.DataDir, sealer: sealer}
	id.public = publicIdentity{Version: 1, Name: c.Name, Region: c.Region, Roles: c.Roles, JoinID: random(16)}
	sealing, err := seal.GenerateSealingKey()
	if err != nil {
		return nil, err
	}
	private, err := sealing.Bytes()
	if err != nil {
		return nil, err
	}
	id.keys = privateKeys{Node: random(ed25519.SeedSize), Session: random(ed25519.SeedSize), Sealing: private}
	return id, id.save()
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails, since Go 1.24
	return b
}

func readIdentity(ctx context.Context, c *Config) (*identity, error) {
	dir := c.DataDir
	sealer, err := c.sealed().Open(ctx)
	if err != nil {
		return nil, err
	}
	id := &identity{dir: dir, sealer: sealer}
	raw, err := os.ReadFile(filepath.Join(dir, identityFile))
	if err != nil {
		return nil, fault.New(fault.Internal, "identity: %w", err)
	}
	if err := json.Unmarshal(raw, &id.public); err != nil || id.public.Version != 1 {
		return nil, fault.New(fault.Internal, "identity: %s is not understood (version %d): %v", identityFile, id.public.Version, err)
	}
	sealed, err := os.ReadFile(filepath.Join(dir, keysFile))
	if err != nil {
		return nil, fault.New(fault.Internal, "identity: %w", err)
	}
	opened, err := sealer.Open(sealed, []byte(keysContext))
	if err != nil {
		return nil, fmt.Errorf("identity: %s: %w", filepath.Join(dir, keysFile), err)
	}
	if err := json.Unmarshal(opened, &id.keys); err != nil {
		return nil, fault.New(fault.Internal, "identity: %s: %w", keysFile, err)
	}
	if len(id.keys.Node) != ed25519.SeedSize || len(id.keys.Session) != ed25519.SeedSize {
		return nil, fault.New(fault.Internal, "identity: %s holds keys of the wrong size", keysFile)
	}
	return id, nil
}

// save writes both files, the keys first: an identity never names keys that are not there.
func (id *identity) save() error {
	plain, err := json.Marshal(id.keys)
	if err != nil {
		return fault.New(fault.Internal, "identity: %w", err)
	}
	sealed, err := id.sealer.Seal(plain, []byte(keysContext))
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(id.dir, keysFile), sealed); err != nil {
		return err
	}
	public, err := json.MarshalIndent(id.public, "", "  ")
	if err != nil {
		return fault.New(fault.Internal, "identity: %w", err)
	}
	return writeFile(filepath.Join(id.dir, identityFile), public)
}

// writeFile replaces a file atomically and durably, mode 0600.
func writeFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return fault.New(fault.Internal, "write %s: %w", path, err)
	}
	defer os.Remove(f.Name()) // after the rename there is nothing to remove
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fault.New(fault.Internal, "write %s: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (id *identity) nodeKey() ed25519.PrivateKey    { return ed25519.NewKeyFromSeed(id.keys.Node) }
func (id *identity) sessionKey() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(id.keys.Session) }

func (id *identity) enrolled() bool { return id.public.NodeID != "" && len(id.public.Certificate) > 0 }

// member opens secrets as this node.
func (id *identity) member() (seal.Member, error) {
	key, err := seal.ParseSealingKey(id.keys.Sealing)
	if err != nil {
		return seal.Member{}, err
	}
	return seal.Member{Node: id.public.NodeID, Key: key}, nil
}

// matches refuses to go on with a data directory under another name, region or role than it enrolled with: the mesh knows those.
func (id *identity) matches(c *Config) error {
	for _, f := range []struct{ field, config, enrolled string }{
		{"name", c.Name, id.public.Name}, {"region", c.Region, id.public.Region},
	} {
		if f.config != f.enrolled {
			return fault.New(fault.Invalid, "%s %q: this data directory enrolled as %q: use that, or a new data_dir to join anew", f.field, f.config, f.enrolled)
		}
	}
	// A role that it did not enrol with, nobody would believe it.
	for _, r := range slices.Concat(id.public.Roles, c.Roles) {
		if !c.HasRole(keyring.Role(r)) || !slices.Contains(id.public.Roles, r) {
			return fault.New(fault.Invalid, "roles %v: this data directory enrolled with %v: use those, or a new data_dir to join anew", c.Roles, id.public.Roles)
		}
	}
	return nil
}
