package main

import (
	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/node"
)

func newNodeCommand(c *cli) *cobra.Command {
	var flags nodeFlags
	parent := -1
	cmd := &cobra.Command{
		Use: "node", Short: "Run one node of a mesh",
		Long: `Run one node until it is told to stop (SIGINT, SIGTERM). A node that has not joined a mesh does so first, with a provisioning
key; after that the key is no longer needed on this machine. A key is read from a file, a variable, a file descriptor or a
systemd credential, never from the command line.

A node that was revoked, or removed, ends by itself: with exit status 3 once an aggregator has all that it decided, and with 1 if none
could be reached in 15 s, so that whatever starts it again lets it hand that in.`,
		Example: `  iapmesh node --config /etc/iapmesh/node.yaml
  iapmesh node --name px-1 --region us-east --listen-mesh 10.1.0.1:7443 --listen-gossip 10.1.0.1:7946 \
    --listen-proxy :443 --advertise-proxy 10.1.0.1:443 --tls-cert cert.pem --tls-key key.pem \
    --join 10.0.0.1:7443 --join-key-file /run/iapmesh/key`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := flags.config(c.stdin)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if parent >= 0 {
				if ctx, err = untilEOF(ctx, parent); err != nil {
					return err
				}
			}
			n, err := node.New(ctx, config, newLogger(c.stderr, config.Log))
			if err != nil {
				return err
			}
			return explainJoin(n.Run(ctx))
		},
	}
	flags.register(cmd)
	flags.registerJoin()
	cmd.Flags().IntVar(&parent, "parent-fd", -1, "stop when this pipe `FD` reaches its end, as it does when the parent process is gone")
	return cmd
}
