package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/backup"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/internal/snapshotfile"
	"github.com/iapmesh/iapmesh/node"
)

func newSnapshotCommand(c *cli) *cobra.Command {
	return group("snapshot", "Back the mesh's state up, and restore it: what was revoked stays revoked",
		newSnapshotSaveCommand(c), newSnapshotInspectCommand(c), newSnapshotRestoreCommand(c), newSnapshotPendingCommand(c), newSnapshotConfirmCommand(c))
}

// keeperURLs registers --seal.
func keeperURLs(cmd *cobra.Command, into *[]string, usage string) {
	cmd.Flags().StringArrayVar(into, "seal", nil, usage)
}

// checkKeepers refuses what would put a key into the command line, where others can read it.
func checkKeepers(keepers []string) error {
	for _, k := range keepers {
		if strings.HasPrefix(k, "base64key://") {
			return usagef("--seal base64key://: a key is no argument; put its 32 bytes into a file of mode 0600 and name that: file://…")
		}
	}
	return nil
}

// defaultKeeper is the key file beside the profile.
func (c *cli) defaultKeeper() (url, path string, err error) {
	path, err = profile.Path(c.profileRef)
	if err != nil {
		return "", "", err
	}
	if path, err = filepath.Abs(strings.TrimSuffix(path, ".json") + ".snapshot-key"); err != nil {
		return "", "", fault.New(fault.Invalid, "snapshot key: %w", err)
	}
	return "file://" + path, path, nil
}

func newSnapshotSaveCommand(c *cli) *cobra.Command {
	var out string
	var keepers []string
	cmd := &cobra.Command{
		Use: "save", Short: "Save the whole state of the mesh into a sealed file",
		Long: `Save the state of the mesh at one revision: keys, nodes, administrators, revocations, configuration, secrets, and what opens them, so
that the mesh can be founded anew from it where every control node is lost. The file, mode 0600, is sealed by the keepers that
--seal names (file://, or a KMS as in node.yaml); each of them opens it. The default is a key file beside the profile, made on first
use. Keep the key apart from the files: whoever has both has the mesh's CA.`,
		Example: "  iapmesh snapshot save --out mesh-2026-11-25.snapshot\n  iapmesh snapshot save --out mesh.snapshot --seal file:///mnt/vault/snapshot.key",
		Args:    argsBy("out"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "out"); err != nil {
				return err
			}
			return c.saveSnapshot(cmd.Context(), out, keepers)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "write the snapshot into this new `FILE` (required)")
	keeperURLs(cmd, &keepers, "`URL` of a keeper of the file's key; may be repeated (default: a key file beside the profile)")
	return cmd
}

// snapshotInfo is what save and inspect print with -o json.
type snapshotInfo struct {
	File        string         `json:"file"`
	SHA256      string         `json:"sha256"`
	Mesh        string         `json:"mesh"`
	TrustDomain string         `json:"trust_domain"`
	Revision    string         `json:"revision"`
	TakenAt     time.Time      `json:"taken_at"`
	By          string         `json:"by"`
	Records     int            `json:"records"`
	Kinds       map[string]int `json:"kinds"`
	Whole       bool           `json:"whole"`
	Keepers     []string       `json:"keepers,omitempty"`
}

func infoOf(file string, s *snapshotfile.Snapshot) snapshotInfo {
	out := snapshotInfo{
		File: file, SHA256: hex.EncodeToString(s.Digest[:]), Mesh: s.Mesh, TrustDomain: s.TrustDomain, Revision: s.Revision.String(), TakenAt: s.TakenAt.UTC(),
		By: s.By, Records: len(s.Entries), Kinds: map[string]int{}, Whole: true,
	}
	for _, e := range s.Entries {
		kind, _, _ := strings.Cut(e.Key, "/")
		out.Kinds[kind]++
	}
	return out
}

func (i snapshotInfo) table(t *table) {
	t.row("file", i.File)
	t.row("sha256", i.SHA256)
	t.row("mesh", i.Mesh+" ("+i.TrustDomain+")")
	t.row("revision", i.Revision)
	t.row("taken", i.TakenAt.Format(time.RFC3339)+" by "+i.By)
	t.row("whole", cell{text: "yes", style: green})
	t.row("records", i.Records)
	for _, kind := range slices.Sorted(maps.Keys(i.Kinds)) {
		t.row("  "+kind, i.Kinds[kind])
	}
}

func (c *cli) saveSnapshot(ctx context.Context, out string, keepers []string) error {
	if err := checkKeepers(keepers); err != nil {
		return err
	}
	if _, err := os.Lstat(out); err == nil {
		return hint(fault.New(fault.Conflict, "%s is there already", out), "A snapshot is never overwritten: name another file.")
	}
	client, err := c.connect()
	if err != nil {
		return err
	}
	if len(keepers) == 0 {
		url, path, err := c.defaultKeeper()
		if err != nil {
			return err
		}
		if _, err := os.Lstat(path); os.IsNotExist(err) {
			fmt.Fprintf(c.stderr, "A new key file opens this snapshot and the next ones: %s\nKeep a copy of it apart from the snapshots: without it they open nowhere.\n", path)
		}
		keepers = []string{url}
	}
	waiting := c.await("the snapshot")
	s, err := backup.Save(ctx, client)
	waiting.stop()
	if err != nil {
		return err
	}
	if err := snapshotfile.Create(ctx, out, node.SealedDirectory("", keepers, c.timeout), s); err != nil {
		return err
	}
	info := infoOf(out, s)
	info.Keepers = keepers
	return c.printValue(info, info.table)
}

func newSnapshotInspectCommand(c *cli) *cobra.Command {
	var keepers []string
	cmd := &cobra.Command{
		Use: "inspect FILE", Short: "Prove on this machine that a snapshot is whole, and say what it is of",
		Long: `Open a snapshot by its key and prove all of it, without a mesh: every chunk, its order, its end, and the digest of its records. Exit
status 1 if anything was changed, is missing, or opens by no key that is here.`,
		Example: "  iapmesh snapshot inspect mesh.snapshot\n  iapmesh snapshot inspect mesh.snapshot --seal file:///mnt/vault/snapshot.key -o json",
		Args:    exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.openSnapshot(cmd.Context(), args[0], keepers)
			if err != nil {
				return err
			}
			info := infoOf(args[0], s)
			return c.printValue(info, info.table)
		},
	}
	keeperURLs(cmd, &keepers, "`URL` of a keeper that opens the file; may be repeated (default: those that it names, and the key file beside the profile)")
	return cmd
}

func (c *cli) openSnapshot(ctx context.Context, file string, keepers []string) (*snapshotfile.Snapshot, error) {
	if err := checkKeepers(keepers); err != nil {
		return nil, err
	}
	if url, path, err := c.defaultKeeper(); err == nil {
		if _, err := os.Lstat(path); err == nil {
			keepers = append(keepers, url)
		}
	}
	s, err := snapshotfile.Open(ctx, file, node.SealedDirectory("", keepers, c.timeout))
	switch {
	case fault.Is(err, fault.Unavailable):
		return nil, hint(err, "Name where its key is now with --seal.")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return nil, err
	case err != nil:
		return nil, hint(err, "Nothing of it is used. Take another copy of the file.")
	}
	return s, nil
}
