package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node"
)

// usageError is a command line that cannot be understood: exit status 2.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// hintedError knows better than its kind what to do about it.
type hintedError struct {
	err  error
	hint string
}

func (e hintedError) Error() string { return e.err.Error() }
func (e hintedError) Unwrap() error { return e.err }

func hint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return hintedError{err, fmt.Sprintf(format, args...)}
}

// errReported fails a command whose output has said why.
var errReported = errors.New("reported")

// explain prints what was being done, why not, and what to do, and returns the exit status.
func (c *cli) explain(ctx context.Context, cmd *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	if errors.Is(err, errReported) {
		return 1
	}
	paint := painter(terminal(c.stderr))
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(c.stderr, "%s %s: %v\n", paint(red, "error:"), cmd.CommandPath(), err)
		var h hintedError
		if errors.As(err, &h) {
			fmt.Fprintln(c.stderr, h.hint)
		} else {
			fmt.Fprintf(c.stderr, "Run \"%s --help\".\n", cmd.CommandPath())
		}
		return 2
	}
	if ctx.Err() != nil {
		fmt.Fprintf(c.stderr, "%s: interrupted\n", cmd.CommandPath())
		return 1
	}
	fmt.Fprintf(c.stderr, "%s %s: %s\n", paint(red, "error:"), cmd.CommandPath(), strings.TrimRight(err.Error(), "\n"))
	if h := c.remedy(err); h != "" {
		fmt.Fprintln(c.stderr, h)
	}
	var turnedAway *node.TurnedAwayError
	if errors.As(err, &turnedAway) && turnedAway.HandedIn {
		return 3 // for a supervisor: deploy/systemd/iapmesh.service lets it rest
	}
	return 1
}

// remedy says what to do about an error.
func (c *cli) remedy(err error) string {
	var h hintedError
	if errors.As(err, &h) {
		return h.hint
	}
	if c.client == nil {
		return "" // it never came to ask the mesh, and the error names what is wrong
	}
	switch fault.KindOf(err) {
	case fault.Unavailable:
		if strings.Contains(err.Error(), "tls: bad certificate") { // all that the node says of one that it refuses
			return fmt.Sprintf("%s refuses this profile: it was revoked (another administrator's iapmesh admin list shows it), or is of another mesh.", strings.Join(c.profile.ControlNodes, ", "))
		}
		return fmt.Sprintf("Asked: %s. Check that control nodes run there and can be reached, then repeat; --timeout waits longer.", strings.Join(c.profile.ControlNodes, ", "))
	case fault.Unauthenticated:
		return "The profile and the mesh do not know each other: name another with --profile, or have an administrator make you a new one."
	case fault.Conflict:
		return "Somebody else was first: look at what is there now, then decide again."
	case fault.Internal:
		return "That is a defect: the log of the node that leads says more (iapmesh status shows which)."
	}
	return ""
}

// exactArgs wants these arguments.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef("%s is missing", names[len(args)])
		case len(args) > len(names):
			return usagef("unexpected argument %q", args[len(names)])
		}
		return nil
	}
}

// argsBy is exactArgs of a command that takes none, for what people give as one: it says by which flag it is given.
func argsBy(flag string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("unexpected argument %q: did you mean --%s %s?", args[0], flag, args[0])
		}
		return nil
	}
}

// required refuses a command line that lacks a flag.
func required(cmd *cobra.Command, flags ...string) error {
	for _, name := range flags {
		if f := cmd.Flags().Lookup(name); f == nil || f.Value.String() == "" || f.Value.String() == "[]" {
			return usagef("--%s is required", name)
		}
	}
	return nil
}
