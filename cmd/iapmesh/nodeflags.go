package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node"
)

// nodeFlags are the flags that say what a node.yaml says; those that are given come on top of the file.
type nodeFlags struct {
	file     string
	over     node.Config
	cert     node.CertificateFiles
	flags    *pflag.FlagSet
	override map[string]func(*node.Config)
}

func (n *nodeFlags) register(cmd *cobra.Command) {
	n.flags, n.override = cmd.Flags(), map[string]func(*node.Config){}
	n.flags.StringVar(&n.file, "config", "", "node.yaml `FILE` (- for standard input); other flags come on top of it")
	text := func(name, usage string, of func(*node.Config) *string) {
		n.flags.StringVar(of(&n.over), name, "", usage)
		n.override[name] = func(c *node.Config) { *of(c) = *of(&n.over) }
	}
	text("name", "`NAME` of the node", func(c *node.Config) *string { return &c.Name })
	text("region", "`REGION` that the node stands in", func(c *node.Config) *string { return &c.Region })
	text("data-dir", "`DIR` of the node's keys and state (default /var/lib/iapmesh)", func(c *node.Config) *string { return &c.DataDir })
	text("listen-mesh", "`HOST:PORT` for other nodes and administrators", func(c *node.Config) *string { return &c.Listen.Mesh })
	text("listen-gossip", "`HOST:PORT` (TCP and UDP) for gossip", func(c *node.Config) *string { return &c.Listen.Gossip })
	text("listen-proxy", "`HOST:PORT` for users (HTTPS)", func(c *node.Config) *string { return &c.Listen.Proxy })
	text("listen-ops", "`HOST:PORT` for health and metrics, on loopback", func(c *node.Config) *string { return &c.Listen.Ops })
	text("advertise-mesh", "`HOST:PORT` where others reach --listen-mesh", func(c *node.Config) *string { return &c.Advertise.Mesh })
	text("advertise-gossip", "`HOST:PORT` where others reach --listen-gossip", func(c *node.Config) *string { return &c.Advertise.Gossip })
	text("advertise-proxy", "`HOST:PORT` where users reach --listen-proxy", func(c *node.Config) *string { return &c.Advertise.Proxy })
	text("log-level", "`LEVEL`: debug, info, warn or error (default info)", func(c *node.Config) *string { return &c.Log.Level })
	text("log-format", "`FORMAT`: text or json (default text)", func(c *node.Config) *string { return &c.Log.Format })
	n.flags.StringSliceVar(&n.over.Roles, "roles", nil, "`ROLES`: control, proxy, aggregator")
	n.override["roles"] = func(c *node.Config) { c.Roles = n.over.Roles }
	n.flags.StringVar(&n.cert.CertFile, "tls-cert", "", "PEM `FILE` with the certificate that users see, and its chain")
	n.flags.StringVar(&n.cert.KeyFile, "tls-key", "", "PEM `FILE` with its key")
	certificate := func(c *node.Config) { c.TLS.Certificates = []node.CertificateFiles{n.cert} }
	n.override["tls-cert"], n.override["tls-key"] = certificate, certificate
}

// given are the flags of a node that were given.
func (n *nodeFlags) given() []string {
	var out []string
	n.flags.Visit(func(f *pflag.Flag) {
		if n.override[f.Name] != nil || f.Name == "config" {
			out = append(out, f.Name)
		}
	})
	return out
}

// registerJoin adds the flags of a node that joins.
func (n *nodeFlags) registerJoin() {
	n.flags.StringSliceVar(&n.over.Join.Addresses, "join", nil, "`HOST:PORT` of a control node to join at; may be repeated")
	n.override["join"] = func(c *node.Config) { c.Join.Addresses = n.over.Join.Addresses }
	key := func(c *node.Config) { c.Join.Key = n.over.Join.Key }
	n.flags.StringVar(&n.over.Join.Key.File, "join-key-file", "", "`FILE` (mode 0600) with the provisioning key")
	n.flags.StringVar(&n.over.Join.Key.Env, "join-key-env", "", "`VARIABLE` with the provisioning key")
	n.flags.IntVar(&n.over.Join.Key.FD, "join-key-fd", 0, "file descriptor `N` to read the provisioning key from")
	n.flags.StringVar(&n.over.Join.Key.Credential, "join-key-credential", "", "`NAME` of the systemd credential with the provisioning key")
	for _, name := range []string{"join-key-file", "join-key-env", "join-key-fd", "join-key-credential"} {
		n.override[name] = key
	}
	n.flags.DurationVar((*time.Duration)(&n.over.Join.Timeout), "join-timeout", 0, "give up to join after this time (default: never)")
	n.override["join-timeout"] = func(c *node.Config) { c.Join.Timeout = n.over.Join.Timeout }
}

// config is the file with the flags on top; it is not validated.
func (n *nodeFlags) config(stdin io.Reader) (node.Config, error) {
	c := node.DefaultConfig()
	if n.file != "" {
		var err error
		if c, err = readConfig(n.file, stdin); err != nil {
			return c, err
		}
	}
	n.flags.Visit(func(f *pflag.Flag) {
		if set := n.override[f.Name]; set != nil {
			set(&c)
		}
	})
	if c.DataDir != "" {
		dir, err := filepath.Abs(c.DataDir)
		if err != nil {
			return c, fault.New(fault.Invalid, "data_dir: %w", err)
		}
		c.DataDir = dir
	}
	return c, nil
}

// readConfig reads a node.yaml by name.
func readConfig(name string, stdin io.Reader) (node.Config, error) {
	if name == "-" {
		return node.ReadConfig("standard input", stdin)
	}
	f, err := os.Open(name)
	if err != nil {
		return node.Config{}, fault.New(fault.Invalid, "read the configuration: %w", err)
	}
	defer f.Close()
	return node.ReadConfig(name, f)
}

// newLogger logs to w as the configuration says.
func newLogger(w io.Writer, c node.Log) *slog.Logger {
	var level slog.Level
	if c.Level != "" {
		_ = level.UnmarshalText([]byte(c.Level)) // Validate has seen it
	}
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// untilEOF returns a context that ends when the pipe does: with the process that holds its other end.
func untilEOF(ctx context.Context, fd int) (context.Context, error) {
	f := os.NewFile(uintptr(fd), "parent")
	if f == nil {
		return nil, usagef("--parent-fd %d: not open", fd)
	}
	if _, err := f.Stat(); err != nil {
		return nil, usagef("--parent-fd %d: %v", fd, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, f) // whatever ends it, the parent is gone
	}()
	return ctx, nil
}
