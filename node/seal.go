package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring/kms"
	"github.com/iapmesh/iapmesh/keyring/seal"
)

// Waiting for keepers: the first pause, and the longest.
const (
	firstSealWait = time.Second
	maxSealWait   = 30 * time.Second
)

// SealedDirectory is a data directory and its keepers: those that its node's configuration names, by every service that this program
// knows. A call to a service takes no longer than timeout; 0: the default.
func SealedDirectory(dataDir string, urls []string, timeout time.Duration) seal.Directory {
	return seal.Directory{Path: dataDir, URLs: urls, Openers: kms.Openers(kms.Config{Timeout: timeout})}
}

func (c *Config) sealed() seal.Directory { return SealedDirectory(c.DataDir, c.Seal, 0) }

// newSealed is the directory with the keepers that a new one gets.
func (c *Config) newSealed() seal.Directory {
	d := c.sealed()
	if len(d.URLs) == 0 {
		d.URLs = []string{seal.KeyFileURL(filepath.Join(c.DataDir, "seal.key"))}
	}
	return d
}

func (c *Config) validateSeal() error {
	var errs []error
	if len(c.Seal) > seal.MaxURLs {
		errs = append(errs, fault.New(fault.Invalid, "seal: %d URLs, at most %d", len(c.Seal), seal.MaxURLs))
	}
	d := c.sealed()
	for i, raw := range c.Seal {
		if err := d.ValidURL(raw); err != nil {
			errs = append(errs, fault.New(fault.Invalid, "seal[%d]: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

// awaitIdentity is openIdentity for a node that starts: while the keepers of its seal do not answer, it waits and says so, in the log
// once for each change and on listen.ops. What waiting does not cure ends it.
func awaitIdentity(ctx context.Context, c *Config, logger *slog.Logger) (*identity, error) {
	var (
		state string
		ops   *waitingOps
		pause = firstSealWait
	)
	defer func() { ops.close() }()
	for {
		id, err := openIdentity(ctx, c)
		if !fault.Is(err, fault.Unavailable) || ctx.Err() != nil {
			if err == nil {
				logger.Info("the data directory is open", "keeper", id.sealer.Keeper())
			}
			return id, err
		}
		if now := kinds(err); now != state {
			logger.Warn("the data directory stays closed: waiting for a keeper of its seal", "error", err)
			state = now
		}
		if ops == nil {
			if ops, err = serveWaiting(ctx, c.Listen.Ops, err); err != nil {
				return nil, err
			}
		} else {
			ops.why.Store(&err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, fault.New(fault.Unavailable, "wait for a keeper of the seal: %w", ctx.Err())
		case <-timer.C:
		}
		pause = min(2*pause, maxSealWait)
	}
}

// kinds is the shape of an error: which of several parts are of which kind. Texts differ from one attempt to the next.
func kinds(err error) string {
	var text strings.Builder
	var walk func(error)
	walk = func(err error) {
		var f *fault.Error
		if several, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range several.Unwrap() {
				walk(e)
			}
		} else if errors.As(err, &f) {
			fmt.Fprintf(&text, "%v(", f.Kind)
			walk(errors.Unwrap(f.Err))
			text.WriteString(")")
		}
	}
	walk(err)
	return text.String()
}

// waitingOps is listen.ops of a node that cannot open its data directory yet: it lives, and is not ready.
type waitingOps struct {
	server *http.Server
	ended  chan struct{}
	why    atomic.Pointer[error]
}

func serveWaiting(ctx context.Context, address string, why error) (*waitingOps, error) {
	w := &waitingOps{ended: make(chan struct{})}
	w.why.Store(&why)
	if address == "" {
		close(w.ended)
		return w, nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fault.New(fault.Invalid, "listen.ops: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) { answer(rw, nil) })
	mux.HandleFunc("GET /readyz", func(rw http.ResponseWriter, _ *http.Request) {
		answer(rw, []string{"seal: " + (*w.why.Load()).Error()})
	})
	w.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	go func() {
		defer close(w.ended)
		_ = w.server.Serve(l) // until close, in awaitIdentity
	}()
	return w, nil
}

// close frees the address for the node itself.
func (w *waitingOps) close() {
	if w == nil {
		return
	}
	if w.server != nil {
		w.server.Close()
	}
	<-w.ended
}
