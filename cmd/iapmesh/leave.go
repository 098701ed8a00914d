package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node"
)

func newLeaveCommand(c *cli) *cobra.Command {
	var file, dir string
	cmd := &cobra.Command{
		Use: "leave", Short: "Let this machine's node, which is stopped, leave its mesh for good",
		Long: `Let the node whose data directory is here leave its mesh for good: it is departed at once, its place under its key is free, and
its name may be given to another. Sessions that it signed stay good until they end. Stop it first. The data directory stays; it
is of no more use, and holds keys: destroy it. Who has left already is told so. The node needs no administrator for this; from
elsewhere: iapmesh revoke node.`,
		Example: `  iapmesh leave --data-dir /var/lib/iapmesh
  iapmesh leave --config /etc/iapmesh/node.yaml --timeout 1m`,
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
			return c.leave(cmd.Context(), config)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "node.yaml `FILE` (- for standard input) that names data_dir and seal")
	cmd.Flags().StringVar(&dir, "data-dir", "", "`DIR` of the node's keys and state (default /var/lib/iapmesh)")
	return cmd
}

// left is what leave prints with -o json.
type left struct {
	Node     string `json:"node"`
	Name     string `json:"name"`
	Mesh     string `json:"mesh"`
	Revision string `json:"revision,omitempty"` // empty: it had left already
}

func (c *cli) leave(ctx context.Context, config node.Config) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	waiting := c.await("the mesh")
	gone, err := node.Leave(ctx, config, node.Env{})
	waiting.stop()
	if fault.Is(err, fault.Unavailable) {
		return hint(err, "Check that control nodes run and can be reached, then repeat; --timeout waits longer.")
	}
	if err != nil {
		return err
	}
	out := left{Node: gone.NodeID, Name: gone.Name, Mesh: gone.MeshID}
	if !gone.Revision.IsZero() {
		out.Revision = gone.Revision.String()
	}
	return c.printValue(out, func(t *table) {
		if out.Revision == "" {
			t.line("node %s (%s) has left mesh %s already", out.Name, out.Node, out.Mesh)
			return
		}
		t.line("node %s (%s) has left mesh %s, at revision %s", out.Name, out.Node, out.Mesh, out.Revision)
	})
}
