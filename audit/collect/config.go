package collect

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// Config says where an aggregator stores, as whom it countersigns, and how it knows nodes.
type Config struct {
	Dir  string
	Mesh string
	Node string // the aggregator's own name
	// Signer countersigns what was stored.
	Signer audit.Signer
	// Peer returns the node that the connection of a Ship stream has authenticated.
	Peer func(ctx context.Context) (node string, err error)
	// NodeKey returns a node's public key, also of a node that has left.
	NodeKey func(node string) (ed25519.PublicKey, error)
	// Trusted reports whether a node may write what it likes; of others little is taken (remainder.go). nil: all may.
	Trusted func(node string) bool

	SegmentBytes int64 // a file is ended once it is longer; 64 MiB if zero
	MaxPending   int   // bytes of a run that may wait for a checkpoint; 256 MiB if zero

	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: metrics are not registered
	Now        func() time.Time      // time.Now if nil
}

func (c *Config) fill() {
	if c.SegmentBytes == 0 {
		c.SegmentBytes = 64 << 20
	}
	if c.MaxPending == 0 {
		c.MaxPending = 256 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
}

// Validate reports all that is wrong with the configuration.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, text string) {
		if !ok {
			errs = append(errs, fault.New(fault.Invalid, "aggregator: %s", text))
		}
	}
	check(c.Dir != "", "dir: empty")
	check(audit.CheckName(c.Mesh) == nil, "mesh: no name")
	check(audit.CheckName(c.Node) == nil, "node: no name")
	check(c.Signer != nil, "signer: none")
	check(c.Peer != nil, "peer: none")
	check(c.NodeKey != nil, "node_key: none")
	check(c.SegmentBytes >= 0 && c.MaxPending >= 0, "sizes: negative")
	return errors.Join(errs...)
}
