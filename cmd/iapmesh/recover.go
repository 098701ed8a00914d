package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/backup"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node"
	"github.com/iapmesh/iapmesh/node/control"
)

func newRecoverCommand(c *cli) *cobra.Command {
	var file, dir string
	var epoch uint64
	var noTrail bool
	cmd := &cobra.Command{
		Use: "recover", Short: "Found the mesh anew from this machine's control node, after the quorum was lost for good",
		Long: `Found the mesh anew from one control node that survived, where so many others are lost for good that nothing can be committed any
more. Stop the node first, and stop what is left of the other control nodes for good: they join anew, empty. The node keeps all
that it knew as committed, becomes the only voter, and begins another epoch: all sessions end, keys are suspended, other nodes
quarantined, until an operator has confirmed the list. The old log is kept beside the new one. What aggregators remember as revoked
since the last that this node knows stays revoked: those that answer, and this node itself if it was one.

Where several survived, recover from the one whose revision is the highest (iapmesh_raft_applied_index in its last metrics): what
only another one knew is lost.`,
		Example: `  iapmesh recover --data-dir /var/lib/iapmesh
  iapmesh recover --config /etc/iapmesh/node.yaml --profile prod`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config := node.DefaultConfig()
			if file != "" {
				var err error
				if config, err = readConfig(file, c.stdin); err != nil {
					return err
				}
			}
			if dir != "" {
				config.DataDir = dir
			}
			return c.recover(cmd.Context(), config, epoch, noTrail)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "node.yaml `FILE` (- for standard input) that names data_dir and seal")
	cmd.Flags().StringVar(&dir, "data-dir", "", "`DIR` of the node's keys and state (default /var/lib/iapmesh)")
	cmd.Flags().Uint64Var(&epoch, "epoch", 0, "the `EPOCH` to begin (default: the next one that this node does not know)")
	cmd.Flags().BoolVar(&noTrail, "without-trail", false, "do not ask the aggregators what was revoked since")
	return cmd
}

func (c *cli) recover(ctx context.Context, config node.Config, epoch uint64, noTrail bool) error {
	p, err := c.load()
	if err != nil {
		return err
	}
	waiting := c.await("the mesh to be recovered")
	made, err := node.Recover(ctx, node.RecoverConfig{
		Config: config, Epoch: epoch, Sign: func(s *keyring.RestorationStatement) ([]byte, error) { return backup.Sign(p, s) },
		Ask: func(ctx context.Context, q control.Question) []keyring.Denial {
			return c.remembered(ctx, q, noTrail)
		},
		Logger: newLogger(c.stderr, node.Log{Level: "error", Format: config.Log.Format}),
	})
	waiting.stop()
	if fault.Is(err, fault.Denied) {
		return hint(err, "The profile must be that of an administrator whom this node knows as one who counts.")
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stderr, "Mesh %s is recovered: node %s at %s is its only control node. The old log is in %s.\n", made.MeshID, made.NodeID, made.Address, made.Before)
	fmt.Fprintln(c.stderr, `Next:
  1. Keep the other old control nodes stopped; empty their data directories.
  2. Run "iapmesh node" here as before.
  3. Read the list, and confirm it: iapmesh snapshot pending, then iapmesh snapshot confirm.
  4. Issue a key (iapmesh key issue --name control --grant control) and join two new control nodes by it.`)
	made.Status.ListDigest = nil // nobody has told yet what he remembers
	return c.printStatus(made.Status, false)
}
