package rotate

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
)

// pending is a successor whose rotation is under way.
type pending struct {
	ref         string // of the job
	predecessor string
	secret      keyring.ProvisioningSecret
}

// entry is a pending rotation as it is sealed.
type entry struct {
	Version     int    `json:"version"`
	Ref         string `json:"ref"`
	Predecessor string `json:"predecessor"`
	Secret      string `json:"secret"`
}

const (
	entrySuffix = ".sealed"
	maxEntry    = 4 << 10
)

// store keeps pending rotations, one file for each predecessor, sealed for this node and that key.
type store struct {
	dir, node string
	sealer    *seal.Sealer
	write     func(path string, data []byte) error
}

func (s store) path(predecessor string) string { return filepath.Join(s.dir, predecessor+entrySuffix) }

func (s store) context(predecessor string) []byte {
	return []byte("iapmesh/rotate/v1/" + s.node + "/" + predecessor)
}

func (s store) save(p *pending) error {
	if !plainID(p.predecessor) {
		return fault.New(fault.Internal, "key %.40q: that is no id of a key", p.predecessor)
	}
	plain, err := json.Marshal(entry{Version: 1, Ref: p.ref, Predecessor: p.predecessor, Secret: p.secret.String()})
	if err != nil {
		return fault.New(fault.Internal, "pending rotation of %s: %w", p.predecessor, err)
	}
	sealed, err := s.sealer.Seal(plain, s.context(p.predecessor))
	if err != nil {
		return err
	}
	return s.write(s.path(p.predecessor), sealed)
}

// plainID reports whether an id of a key is one: it becomes a file's name.
func plainID(id string) bool {
	return len(id) == 16 && strings.Trim(id, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

// load reads the pending rotation of a key; nil if there is none.
func (s store) load(predecessor string) (*pending, error) {
	if !plainID(predecessor) {
		return nil, fault.New(fault.Internal, "key %.40q: that is no id of a key", predecessor)
	}
	path := s.path(predecessor)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && info.Size() > maxEntry {
		err = fault.New(fault.Internal, "%d bytes", info.Size())
	}
	var sealed []byte
	if err == nil {
		sealed, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fault.New(fault.Internal, "pending rotation of %s: %w", predecessor, err)
	}
	plain, err := s.sealer.Open(sealed, s.context(predecessor))
	if err != nil {
		return nil, err
	}
	return parseEntry(plain, predecessor)
}

// parseEntry reads what save sealed. Its errors quote nothing.
func parseEntry(plain []byte, predecessor string) (*pending, error) {
	var e entry
	if err := json.Unmarshal(plain, &e); err != nil || e.Version != 1 || e.Predecessor != predecessor {
		return nil, fault.New(fault.Internal, "pending rotation of %s: not understood (version %d)", predecessor, e.Version)
	}
	secret, err := keyring.ParseSecret(e.Secret)
	if err != nil {
		return nil, fault.New(fault.Internal, "pending rotation of %s: %w", predecessor, err)
	}
	return &pending{ref: e.Ref, predecessor: predecessor, secret: secret}, nil
}

func (s store) remove(predecessor string) error {
	if err := os.Remove(s.path(predecessor)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// all yields what is on disk; what cannot be read is left to the job that comes to it.
func (s store) all(yield func(*pending) bool) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		predecessor, ok := strings.CutSuffix(e.Name(), entrySuffix)
		if !ok {
			continue
		}
		if p, err := s.load(predecessor); err == nil && p != nil && !yield(p) {
			return
		}
	}
}

// dropOthers deletes the secrets of jobs that are configured no more.
func (s store) dropOthers(jobs []Job, logger *slog.Logger) {
	for p := range s.all {
		if !slices.ContainsFunc(jobs, func(j Job) bool { return j.Key == p.ref }) {
			s.drop(p, "it is not configured any more", logger)
		}
	}
}

// settle deletes the secrets of a job whose rotation is over, one way or the other.
func (s store) settle(ref string, keys *keyring.Snapshot, logger *slog.Logger) {
	for p := range s.all {
		if p.ref != ref {
			continue
		}
		k, successor := keys.Keys[p.predecessor], keys.Keys[p.secret.ID()]
		switch {
		case k == nil: // the view may be older than the rotation
		case k.Successor == p.secret.ID():
			s.drop(p, "it is complete", logger)
		case k.Successor != "" || k.State == keyring.KeyRevoked:
			s.drop(p, "the key is "+string(k.State), logger)
		case k.Rotator != s.node:
			s.drop(p, "another node rotates the key, or none", logger)
		case successor != nil && successor.State == keyring.KeyRevoked:
			s.drop(p, "the proposal was revoked: "+successor.Reason, logger)
		}
	}
}

func (s store) drop(p *pending, why string, logger *slog.Logger) {
	if err := s.remove(p.predecessor); err != nil {
		logger.Warn("secret of a rotation that is over not deleted", "key", p.predecessor, "error", err)
		return
	}
	logger.Info("secret of a rotation that is over deleted", "key", p.predecessor, "successor", p.secret.ID(), "why", why)
}
