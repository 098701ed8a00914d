package main

import (
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/iapmesh/iapmesh/internal/profile"
)

// cli is what all commands share: where they read and write, and the global flags.
type cli struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	profileRef string
	output     string
	timeout    time.Duration
	patience   time.Duration // of --wait: --timeout, if it was given; else 0

	profile *profile.Profile // loaded once it is needed
	client  *profile.Client
}

func newCLI(stdin io.Reader, stdout, stderr io.Writer) *cli {
	return &cli{stdin: stdin, stdout: stdout, stderr: stderr}
}

func (c *cli) close() {
	if c.client != nil {
		_ = c.client.Close() // nothing is lost with it
	}
}

func newRootCommand(c *cli) *cobra.Command {
	root := group("iapmesh", "Run and administer an identity-aware proxy mesh",
		newInitCommand(c),
		newNodeCommand(c),
		newLeaveCommand(c),
		newDevCommand(c),
		newCheckCommand(c),
		newStatusCommand(c),
		newMembersCommand(c),
		newControlCommand(c),
		newSealCommand(c),
		newNodesCommand(c),
		newKeyCommand(c),
		newSigningKeyCommand(c),
		newCACommand(c),
		newAudienceCommand(c),
		newGossipCommand(c),
		newRevokeCommand(c),
		newRevocationsCommand(c),
		newReceiptCommand(c),
		newApplyCommand(c),
		newDiffCommand(c),
		newGetCommand(c),
		newDeleteCommand(c),
		newSecretCommand(c),
		newPolicyCommand(c),
		newAuditCommand(c),
		newAdminCommand(c),
		newSnapshotCommand(c),
		newRecoverCommand(c),
		newVersionCommand(c),
	)
	root.Long = `iapmesh is an identity-aware proxy mesh: nodes in every region verify who calls, decide by one policy, and record it.

Found a mesh with "iapmesh init", run its nodes with "iapmesh node", and administer it with the other commands. They read who
you are and which mesh you mean from a profile: --profile, IAPMESH_PROFILE, or the one named default.`
	root.Example = `  iapmesh init --name ctl-1 --region eu-west --listen-mesh 10.0.0.1:7443 --trust-domain mesh.example.com
  iapmesh status
  iapmesh apply -f mesh.yaml`
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	f := root.PersistentFlags()
	f.StringVar(&c.profileRef, "profile", "", "profile `FILE|NAME`: which mesh, and as whom (default $IAPMESH_PROFILE, then \"default\")")
	f.StringVarP(&c.output, "output", "o", "table", "`FORMAT` of the output: table, json or yaml")
	f.DurationVar(&c.timeout, "timeout", 10*time.Second, "how long to wait for an answer")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		switch c.output {
		case "table", "json", "yaml":
		default:
			return usagef("-o %.40q: want table, json or yaml", c.output)
		}
		if c.timeout <= 0 {
			return usagef("--timeout %v: want a time above zero", c.timeout)
		}
		if cmd.Flags().Changed("timeout") {
			c.patience = c.timeout
		}
		return nil
	}
	return root
}

// group is a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short,
		Args: cobra.ArbitraryArgs, // else cobra answers for the root in words of its own
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				cmd.SetOut(cmd.ErrOrStderr())
				_ = cmd.Help() // to where the error goes
				return usagef("name a command of %s", cmd.CommandPath())
			}
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return usagef("no command %q: did you mean %q?", args[0], near[0])
			}
			return usagef("no command %q", args[0])
		},
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.AddCommand(commands...)
	return cmd
}

// terminal reports whether w is one that may be coloured and overwritten.
func terminal(w io.Writer) bool {
	if r, ok := w.(redactor); ok {
		w = r.w
	}
	f, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}
