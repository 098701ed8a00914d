// Command iapmesh is the one binary of the mesh: a node, the development mesh, and the command line of administrators. Each
// command has a file of its own; root.go lists them. The command line holds no state but the profile (internal/profile), and
// what it prints with -o json are messages of proto/iapmesh/v1 as they came.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run runs one command line and returns its exit status: 0 ok, 1 failed, 2 usage, 3 a node that need not be started again.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	stderr = redactor{stderr}
	c := newCLI(stdin, stdout, stderr)
	root := newRootCommand(c)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := noSecrets(root, args)
	if err == nil {
		cmd, err = root.ExecuteContextC(ctx)
	}
	c.close()
	return c.explain(ctx, cmd, err)
}
