package sink

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// killGrace is how long a command that was told to end, or whose children hold its output open, may take.
const killGrace = 5 * time.Second

// command keeps the secret by a program: one line on its standard input. What it prints is counted and dropped, since it may hold the
// secret in a form that nobody can recognize; a program that has something to say logs it by itself.
type command struct{ args []string }

// Put implements Sink.
func (c command) Put(ctx context.Context, secret keyring.ProvisioningSecret) error {
	var out counter
	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	cmd.Stdin = strings.NewReader(secret.String() + "\n")
	cmd.Stdout, cmd.Stderr = &out, &out // one writer, so that one goroutine writes
	cmd.Dir = "/"
	// A provisioning key by which the node itself joined is not the command's business.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.Contains(v, "=iapk_") })
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // its children, too
	cmd.WaitDelay = killGrace
	err := cmd.Run()
	switch exit := (*exec.ExitError)(nil); {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fault.New(fault.Unavailable, "command %s: did not end in time", c.args[0])
	case errors.As(err, &exit):
		return fault.New(fault.Unavailable, "command %s: %s (the %d bytes that it printed are not logged: they may hold the key)", c.args[0], exit.ProcessState, out)
	}
	return fault.New(fault.Unavailable, "command %s: %w", c.args[0], err)
}

// counter counts what is written to it, and keeps nothing.
type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
