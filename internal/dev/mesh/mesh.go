// Package mesh runs a whole development mesh on one machine: three regions, each a node in a process of its own, and in the
// calling process what stands around a mesh: the OpenID provider and the applications.
//
// The nodes are the real thing: the same binary, founded, joined by a bootstrap key over the handshake, configured through the
// administrators' API. They end when this process does, however it ends: each holds one end of a pipe. A node that is killed
// leaves the others as they are. With a data directory of its own, a mesh goes on where it was.
//
// It leaves flags, colours of the terminal and signals to cmd/iapmesh.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/iapmesh/iapmesh/internal/dev/ca"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
)

// TrustDomain is that of every development mesh: by it, a profile is known to be one's.
const TrustDomain = "iapmesh.localhost"

// The hosts that every region serves.
const (
	EchoHost    = "echo.localhost"
	BillingHost = "billing.localhost"
	SignInHost  = "auth.localhost"
)

// Hosts lists the names that a browser visits.
func Hosts() []string { return []string{EchoHost, BillingHost, SignInHost} }

// regions are the mesh's, in the order of their ports.
var regions = [...]string{"eu-west", "us-east", "ap-south"}

const (
	readyWithin = 90 * time.Second
	endWithin   = 15 * time.Second
)

// Config says where a development mesh lives.
type Config struct {
	DataDir  string // empty: a temporary directory, removed at the end
	BasePort int    // 0: the data directory's own, or DefaultBasePort
	Binary   string // iapmesh; what starts the nodes
	CADir    string // of the development CA, which outlives the mesh; see CADir
	LogLevel string // of the nodes; what their node.yaml says if empty
	Out      io.Writer
	Log      io.Writer // of the nodes, and of what goes wrong
	Color    bool
}

// CADir is where the development CA lies unless somebody says otherwise: one per user, so that it needs to be trusted once.
func CADir() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fault.New(fault.Invalid, "development CA: %w", err)
	}
	return filepath.Join(dir, "iapmesh", "dev-ca"), nil
}

// Mesh is a development mesh, not yet running.
type Mesh struct {
	config    Config
	logger    *slog.Logger
	dir       string
	temporary bool
	kept      kept
	ports     ports
	authority *ca.Authority
	leafCert  string // file
	leafKey   string
	processes []*process
	services  *services
	api       *profile.Client
	profile   *profile.Profile
	plain     *http.Client // for the ops listeners
}

// New checks the configuration; it touches nothing.
func New(c Config) (*Mesh, error) {
	if c.Binary == "" || c.CADir == "" || c.Out == nil || c.Log == nil {
		return nil, fault.New(fault.Internal, "development mesh: Binary, CADir, Out and Log are required")
	}
	if c.BasePort != 0 {
		if err := ports(c.BasePort).validate(); err != nil {
			return nil, err
		}
	}
	logger := slog.New(slog.NewTextHandler(&lines{out: c.Log, prefix: label("dev", c.Color)}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return &Mesh{config: c, logger: logger, plain: &http.Client{Timeout: tryWithin}}, nil
}

// Run starts the mesh, says how to use it once it is ready, and ends it when ctx does.
func (m *Mesh) Run(ctx context.Context) (err error) {
	started := time.Now()
	if err := m.prepare(); err != nil {
		return err
	}
	if m.temporary {
		defer func() { err = errors.Join(err, m.forgetDefault(), os.RemoveAll(m.dir)) }()
	}
	if m.services, err = m.startServices(); err != nil {
		return err
	}
	defer m.services.stop()
	ready, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	if err := m.found(ready); err != nil {
		return ended(ctx, err)
	}
	defer m.stop()
	if err := m.startNodes(ctx); err != nil {
		return err
	}
	if m.api, err = m.profile.Dial(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.api.Close()) }()
	m.api.Patience = time.Nanosecond // poll tries again, and looks after the nodes meanwhile
	if err := m.bring(ready); err != nil {
		return ended(ctx, fmt.Errorf("bring the mesh up: %w", err))
	}
	profileNote := m.becomeDefault()
	described, err := m.describe()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(m.path(descriptFile))) }() // nobody is there any more
	m.summary(described, time.Since(started), profileNote)
	return m.watch(ctx)
}

// ended is nil if the user ended the start.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// watch says when a node ends by itself, until ctx ends. The rest of the mesh goes on: that is what it is for.
func (m *Mesh) watch(ctx context.Context) error {
	gone := make(chan *process)
	for _, p := range m.processes {
		go func() {
			select {
			case <-p.done:
				select {
				case gone <- p:
				case <-ctx.Done():
				}
			case <-ctx.Done():
			}
		}()
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-m.services.failed:
			return err
		case p := <-gone:
			fmt.Fprintf(m.config.Out, "\n%s has ended (%s). The others go on. Start it again with:\n  %s\n\n", p.region, p.outcome(), m.command("node", "--config", p.file))
		}
	}
}

// stop ends the nodes as Ctrl-C would, and kills those that do not end.
func (m *Mesh) stop() {
	deadline := time.NewTimer(endWithin)
	defer deadline.Stop()
	for _, p := range m.processes {
		p.end()
	}
	for _, p := range m.processes {
		select {
		case <-p.done:
		case <-deadline.C:
			m.logger.Warn("node killed: it did not end", "region", p.region)
			p.kill()
			<-p.done
			deadline.Reset(0)
		}
	}
}
