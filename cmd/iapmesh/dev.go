package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/dev/mesh"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// devFlags are those that all of dev's commands know.
type devFlags struct {
	config mesh.Config
}

func newDevCommand(c *cli) *cobra.Command {
	var f devFlags
	cmd := group("dev", "Run a development mesh of three regions on this machine",
		newDevHostsCommand(c),
		newDevTrustCommand(c, &f),
	)
	cmd.Long = `Run a whole mesh on this machine until Ctrl-C: three regions, each a node in a process of its own, an OpenID provider with
users, and two applications behind the mesh. It says how to sign in and what to try, and writes dev.json for scripts.
Without --data-dir everything is removed at the end, but for the development CA, which is trusted once.`
	cmd.Example = `  iapmesh dev
  iapmesh dev --data-dir ~/mesh --base-port 27443
  iapmesh dev trust`
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("no command %q: want none, hosts or trust", args[0])
		}
		var err error
		if f.config.Binary, err = os.Executable(); err != nil {
			return fault.New(fault.Internal, "find this program: %w", err)
		}
		if err := f.findCA(); err != nil {
			return err
		}
		f.config.Out, f.config.Log, f.config.Color = c.stdout, c.stderr, terminal(c.stdout)
		m, err := mesh.New(f.config)
		if err != nil {
			return err
		}
		// A terminal that is closed ends it as Ctrl-C does.
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP)
		defer stop()
		return m.Run(ctx)
	}
	cmd.Flags().StringVar(&f.config.DataDir, "data-dir", "", "`DIR` in which the mesh goes on where it was (default: a temporary one)")
	cmd.Flags().IntVar(&f.config.BasePort, "base-port", 0, "`PORT` of the first region's API, from which all others are counted (default 17443)")
	cmd.Flags().StringVar(&f.config.LogLevel, "log-level", "", "`LEVEL` of the nodes' logs: debug, info, warn or error (default info)")
	cmd.PersistentFlags().StringVar(&f.config.CADir, "ca-dir", "", "`DIR` of the development CA (default: iapmesh/dev-ca in the user's configuration)")
	return cmd
}

func (f *devFlags) findCA() error {
	if f.config.CADir != "" {
		return nil
	}
	var err error
	f.config.CADir, err = mesh.CADir()
	return err
}
