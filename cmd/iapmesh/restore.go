package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/backup"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/internal/snapshotfile"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// restoring is what restore was asked for.
type restoring struct {
	keepers []string
	dryRun  bool
	noTrail bool
	found   bool
	epoch   uint64
	flags   nodeFlags
}

func newSnapshotRestoreCommand(c *cli) *cobra.Command {
	var r restoring
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Restore a snapshot into the running mesh, or found the mesh anew from it",
		Long: `Restore a snapshot of this mesh: its configuration, its provisioning keys, nodes and administrators. Nothing that is refused now is
accepted afterwards: keys, nodes, administrators and users that were revoked since the snapshot stay so, as do those that the audit
trail remembers. All sessions end. Keys are suspended and nodes quarantined, but for the control nodes that vote, and nobody can
sign in or join until an operator has confirmed the list: iapmesh snapshot pending, then confirm. Repeat the same command if it was
interrupted: it goes on.

With --found, where every control node is lost: found the mesh anew in an empty data directory on this machine, from the snapshot
alone, with the node's configuration as for iapmesh init. The mesh keeps its id, its CA and its administrators. Stop the old control
nodes for good: they join anew, empty.`,
		Example: `  iapmesh snapshot restore mesh.snapshot --dry-run
  iapmesh snapshot restore mesh.snapshot
  iapmesh snapshot restore mesh.snapshot --found --config node.yaml`,
		Args: exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.found {
				if r.dryRun {
					return usagef("--dry-run: founding a mesh anew changes nothing but an empty directory: try it in another --data-dir")
				}
				return c.refound(cmd.Context(), args[0], &r)
			}
			if given := r.flags.given(); len(given) > 0 {
				return usagef("--%s goes with --found", given[0])
			}
			if r.epoch != 0 {
				return usagef("--epoch goes with --found")
			}
			return c.restore(cmd.Context(), args[0], &r)
		},
	}
	r.flags.register(cmd)
	cmd.Flags().BoolVar(&r.dryRun, "dry-run", false, "show what would be held back and what stays refused, and write nothing")
	cmd.Flags().BoolVar(&r.noTrail, "without-trail", false, "do not ask the aggregators what was revoked since the snapshot")
	cmd.Flags().BoolVar(&r.found, "found", false, "found the mesh anew in an empty data directory")
	cmd.Flags().Uint64Var(&r.epoch, "epoch", 0, "with --found: the `EPOCH` to begin, if the mesh was restored since the snapshot (default: the next after the snapshot's)")
	keeperURLs(cmd, &r.keepers, "`URL` of a keeper that opens the file; may be repeated")
	return cmd
}

func (c *cli) restore(ctx context.Context, file string, r *restoring) error {
	s, err := c.openSnapshot(ctx, file, r.keepers)
	if err != nil {
		return err
	}
	p, err := c.load()
	if err != nil {
		return err
	}
	client, err := c.connect()
	if err != nil {
		return err
	}
	now, err := backup.Pending(ctx, client)
	if err != nil {
		return err
	}
	statement, err := backup.Statement(s, now, time.Now())
	if err != nil {
		return err
	}
	signature, err := backup.Sign(p, statement)
	if err != nil {
		return err
	}
	question := questionOf(s)
	question.Aggregators = nil // those of the mesh that runs, instead
	if status, err := c.status(ctx); err == nil {
		for _, n := range status.Nodes {
			switch control := hasRole(n.Node, iapmeshv1.Role_ROLE_CONTROL); {
			case !control, trusted(n.Node):
				question.Control[n.Node.Id] = control
			default: // also where the snapshot trusts it still
				delete(question.Control, n.Node.Id)
			}
			if hasRole(n.Node, iapmeshv1.Role_ROLE_AGGREGATOR) && n.Live {
				question.Aggregators = append(question.Aggregators, n.Node.Addresses.GetMesh())
			}
		}
	}
	waiting := c.await("the mesh to be restored")
	resp, err := backup.Restore(ctx, client, backup.Restoring{
		Snapshot: s, Statement: statement, Signature: signature, Remembered: c.remembered(ctx, question, r.noTrail), DryRun: r.dryRun,
	})
	waiting.stop()
	if fault.Is(err, fault.Unavailable) {
		return hint(err, "What was begun is kept, and the mesh stays closed meanwhile: repeat the command with the same file.")
	}
	if err != nil {
		return err
	}
	return c.printStatus(resp.Status, r.dryRun)
}

// remembered asks the trail what was refused since. What cannot be asked is said: the present state counts in any case.
func (c *cli) remembered(ctx context.Context, q control.Question, noTrail bool) []keyring.Denial {
	if noTrail {
		return nil
	}
	if len(q.Aggregators) == 0 && q.Store == "" {
		fmt.Fprintln(c.stderr, "No aggregator is known: what the audit trail remembers as revoked is not taken into account.")
		return nil
	}
	trail := backup.Trail{Aggregators: q.Aggregators, Within: c.timeout, Store: q.Store, Since: q.Since, Writers: q.Control}
	var client *profile.Client
	var unknown error
	if len(q.Aggregators) > 0 {
		if client, unknown = c.connect(); unknown != nil { // the administrator's certificate may have ended while nobody could renew it
			trail.Aggregators = nil
		}
	}
	out, err := backup.Remembered(ctx, client, trail)
	if err = errors.Join(unknown, err); err != nil {
		fmt.Fprintf(c.stderr, "A part of the audit trail was not read (%s): what it remembers as revoked is not taken into account.\n", printable(strings.ReplaceAll(err.Error(), "\n", "; ")))
	}
	return out
}

func (c *cli) refound(ctx context.Context, file string, r *restoring) error {
	config, err := r.flags.config(c.stdin)
	if err != nil {
		return err
	}
	if !r.flags.flags.Changed("roles") && r.flags.file == "" {
		config.Roles = []string{string(keyring.RoleControl)}
	}
	s, err := c.openSnapshot(ctx, file, r.keepers)
	if err != nil {
		return err
	}
	p, err := c.load()
	if err != nil {
		return err
	}
	waiting := c.await("the mesh to be founded anew")
	made, err := node.Refound(ctx, node.RefoundConfig{
		Config: config, Snapshot: s, Sign: func(st *keyring.RestorationStatement) ([]byte, error) { return backup.Sign(p, st) }, Epoch: r.epoch,
		Remembered: c.remembered(ctx, questionOf(s), r.noTrail), Logger: newLogger(c.stderr, node.Log{Level: "error", Format: config.Log.Format}),
	})
	waiting.stop()
	if err != nil {
		return err
	}
	moved := *p
	moved.ControlNodes = []string{made.Address}
	path, err := moved.Save(c.profileRef)
	if err != nil {
		return hint(err, "The mesh is founded anew; put %s into control_nodes of your profile.", made.Address)
	}
	fmt.Fprintf(c.stderr, "Mesh %s is founded anew in %s; this is its node %s. Profile %s now names %s alone.\n", made.MeshID, config.DataDir, made.NodeID, path, made.Address)
	fmt.Fprintln(c.stderr, "Next: run \"iapmesh node\" with the same --config or flags, then \"iapmesh snapshot pending\".")
	made.Status.ListDigest = nil // nobody has told yet what he remembers
	return c.printStatus(made.Status, false)
}

// questionOf is what to ask of whom the snapshot knows: they may be all that is left.
func questionOf(s *snapshotfile.Snapshot) control.Question {
	out := control.Question{Since: s.TakenAt, Control: map[string]bool{}}
	view, err := state.Build(s.Entries, s.Revision)
	if err != nil {
		return out // said by whoever needs it
	}
	out.Control = control.Writers(view)
	for _, n := range view.Keyring.Nodes {
		if n.Trusted() && n.HasRole(keyring.RoleAggregator) && n.Addresses.Mesh != "" {
			out.Aggregators = append(out.Aggregators, n.Addresses.Mesh)
		}
	}
	return out
}

func newSnapshotPendingCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "pending", Short: "Show what a restore holds back until an operator confirms it",
		Long: `Show the list that an operator confirms after a restore or a recovery: the keys that would admit nodes again, the nodes that would be
released, and the administrators who count. Below it stands what stays refused although the snapshot, or the survivor's state, knows
nothing of that, and how much is revoked in all. Read it, keep back what you do not know (--except), and confirm the list by its digest.`,
		Example: "  iapmesh snapshot pending\n  iapmesh snapshot pending -o json",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewSnapshotServiceClient, iapmeshv1.SnapshotServiceClient.GetRestoration, &iapmeshv1.GetRestorationRequest{})
			if err != nil {
				return err
			}
			return c.printStatus(resp.Status, false)
		},
	}
}

func newSnapshotConfirmCommand(c *cli) *cobra.Command {
	var list string
	var except []string
	var unheard bool
	cmd := &cobra.Command{
		Use: "confirm --list DIGEST", Short: "Confirm the list of a restore: give back what it holds, and open the mesh",
		Long: `Confirm the list that "iapmesh snapshot pending" shows, by its digest: if the list is another by now, nothing happens, and you read it
again. Its keys are what the snapshot says (expired ones stay expired), its nodes are released, and users can sign in. Exceptions
stay suspended or quarantined. Where the mesh was founded anew, a node may be the only one that knows of a revocation: it tells within
seconds of reaching the mesh, and is not released before, unless --unheard says so.`,
		Example: "  iapmesh snapshot confirm --list 5f2c9a1e…\n  iapmesh snapshot confirm --list 5f2c9a1e… --except bootstrap --except px-7",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "list"); err != nil {
				return err
			}
			digest, err := parseDigest(list)
			if err != nil {
				return err
			}
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewSnapshotServiceClient, iapmeshv1.SnapshotServiceClient.ConfirmRestoration,
				&iapmeshv1.ConfirmRestorationRequest{ListDigest: digest, Except: except, Unheard: unheard})
			if fault.Is(err, fault.Conflict) {
				return hint(err, "Read the list again: iapmesh snapshot pending. A node that will not come back is kept back by --except.")
			}
			if err != nil {
				return err
			}
			return c.print(resp, func(t *table) {
				t.line("the restoration under epoch %d is confirmed: the mesh is open", resp.Status.Restoration.Statement.GetNewEpoch())
				if held := resp.Status.Restoration.Except; len(held) > 0 {
					t.line("held back: %s", strings.Join(held, " "))
				}
				receiptLines(t, resp.Receipt)
			})
		},
	}
	cmd.Flags().StringVar(&list, "list", "", "`DIGEST` of the list that you have read (required)")
	cmd.Flags().BoolVar(&unheard, "unheard", false, "release nodes, too, that have not told what they remember as revoked")
	cmd.Flags().StringArrayVar(&except, "except", nil, "`KEY|NODE`, by id or name, that stays held back; may be repeated")
	return cmd
}

// parseDigest reads a digest as pending prints it, or as it stands in its JSON.
func parseDigest(s string) ([]byte, error) {
	if b, err := hex.DecodeString(s); err == nil && len(b) == 32 {
		return b, nil
	}
	if b, err := base64.StdEncoding.DecodeString(s); err == nil && len(b) == 32 {
		return b, nil
	}
	return nil, usagef("--list: want the digest that \"iapmesh snapshot pending\" shows, 64 hexadecimal digits")
}

// printStatus shows a restoration.
func (c *cli) printStatus(s *iapmeshv1.RestorationStatus, dryRun bool) error {
	return c.print(s, func(t *table) {
		r := s.Restoration
		if r == nil {
			t.line("mesh %s was never restored: nothing awaits confirmation", s.MeshId)
			return
		}
		now := time.Now()
		what := enumText(r.Phase, "RESTORATION_PHASE_")
		if dryRun {
			what = fmt.Sprintf("dry run: nothing was written; %d records would change, and configuration", s.Writes)
		}
		t.line("mesh %s, epoch %d: %s", s.MeshId, r.Statement.GetNewEpoch(), what)
		t.line("%s of revision %s, taken %s, signed by %s", enumText(r.Statement.GetKind(), "RESTORATION_KIND_"), revisionText(r.Statement.GetSnapshotRevision()),
			stampText(r.Statement.GetSnapshotTime(), now), r.ByName)
		if r.Phase == iapmeshv1.RestorationPhase_RESTORATION_PHASE_CONFIRMED {
			t.line("confirmed by %s; held back: %s", r.ConfirmedBy, strings.Join(r.Except, " "))
			return
		}
		pendingTable(t, s, now)
		if len(s.Unheard) > 0 {
			t.line("")
			t.line("Not heard yet: %s. What such a node alone remembers as revoked is not refused yet: wait, or keep it back.", strings.Join(unheardNames(s), ", "))
		}
		if len(s.ListDigest) > 0 {
			t.line("")
			t.line("If that is right:  iapmesh snapshot confirm --list %s", hex.EncodeToString(s.ListDigest))
		}
	})
}

// unheardNames are the nodes of the list that have not told what they remember.
func unheardNames(s *iapmeshv1.RestorationStatus) []string {
	var out []string
	for _, n := range s.Nodes {
		if slices.Contains(s.Unheard, n.Id) {
			out = append(out, n.Name)
		}
	}
	return out
}

func pendingTable(t *table, s *iapmeshv1.RestorationStatus, now time.Time) {
	t.line("")
	t.line("To be confirmed:")
	t.head("", "ID", "NAME", "BECOMES", "DETAIL")
	for _, k := range s.Keys {
		t.row("key", k.Id, k.Name, enumText(k.State, "KEY_STATE_"), fmt.Sprintf("grants %s, expires %s, uses %s", rolesText(k.Grants), stampText(k.ExpiresAt, now), usesText(k)))
	}
	for _, n := range s.Nodes {
		t.row("node", n.Id, n.Name, enumText(n.State, "NODE_STATE_"), rolesText(n.Roles)+" in "+n.Region)
	}
	for _, a := range s.Admins {
		t.row("admin", a.Id, a.Name, adminStateCell(a, now), "expires "+stampText(a.ExpiresAt, now))
	}
	refusedTable(t, s)
	if r := s.Revoked; r.GetKeys()+r.GetNodes()+r.GetAdmins()+r.GetUsers() > 0 {
		t.line("")
		t.line("Revoked in all, and stays so: %s, %s, %s, %s.", plural(uint64(r.Keys), "key"), plural(uint64(r.Nodes), "node"),
			plural(uint64(r.Users), "blocked user"), plural(uint64(r.Admins), "administrator"))
	}
}

func refusedTable(t *table, s *iapmeshv1.RestorationStatus) {
	if len(s.Refused) == 0 {
		return
	}
	t.line("")
	t.line("Stays refused, although the snapshot does not say so:")
	t.head("", "WHAT", "HOW", "KNOWN FROM", "REASON")
	for _, d := range s.Refused {
		how := d.State
		switch {
		case how == "" && d.Block:
			how = "blocked"
		case how == "":
			how = "revoked"
		}
		t.row(d.Kind, printable(d.Value), how, d.Source, printable(d.Reason))
	}
}
