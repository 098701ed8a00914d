package node

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// renewer confirms a new node's join, renews its certificate at two thirds of its life, and keeps what the node must know before
// its first view: the roots, and where control nodes are.
type renewer struct {
	id     *identity
	cert   *peer.Identity
	link   *link
	source *state.Source
	logger *slog.Logger
	nodeID string
	now    func() time.Time
	told   chan struct{} // room for one: the leader has said that this node has lapsed
}

// hearLapsed takes that this node has lapsed: its own view may not say so, and nobody lets it follow until it has renewed.
func (r *renewer) hearLapsed() {
	select {
	case r.told <- struct{}{}:
	default:
	}
}

// renewRetry is how long a renewal that was not answered waits; the record is trusted meanwhile, expired or not.
const renewRetry = 30 * time.Second

// renewLook is how often the clock is looked at: it goes on while a machine sleeps, and a timer does not.
const renewLook = 10 * time.Second

// confirmRetry is how long a confirmation that was refused waits.
const confirmRetry = 5 * time.Second

// Run works until ctx ends. What is refused, it asks for again: a quarantined node may be released, and one that is turned away for
// good hears that elsewhere.
func (r *renewer) Run(ctx context.Context) error { return r.keep(ctx, r.confirm(ctx)) }

// keep renews whenever it is time to, and not before a moment.
func (r *renewer) keep(ctx context.Context, notBefore time.Time) error {
	due, quiet := r.now().Add(r.due()), time.Time{}
	var hurry time.Time // when to renew because the authority has retired; zero: it has not
	for {
		changed := r.source.Changed()
		switch outdated := r.outdated(); {
		case !outdated:
			hurry = time.Time{}
		case hurry.IsZero():
			hurry = r.now().Add(r.soon())
		}
		at := due
		if r.lapsed() {
			at = r.now() // its key brings it back
		}
		at = later(at, quiet)
		if !hurry.IsZero() && hurry.Before(at) {
			at = hurry
		}
		wait := max(0, later(at, notBefore).Sub(r.now()))
		timer := time.NewTimer(min(wait, renewLook))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
			timer.Stop()
			continue
		case <-r.told:
			timer.Stop()
			due = r.now()
			continue
		case <-timer.C:
		}
		if wait > renewLook {
			continue
		}
		notBefore = r.now().Add(r.attempt(ctx))
		due, quiet = r.now().Add(r.due()), r.now().Add(renewRetry)
	}
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// attempt renews, and returns for how long not to ask again if that was refused.
func (r *renewer) attempt(ctx context.Context) time.Duration {
	err := r.renew(ctx)
	if err == nil || ctx.Err() != nil {
		return 0
	}
	r.logger.Warn("certificate not renewed", "expires", r.cert.Certificate().Leaf.NotAfter, "error", err)
	pause := renewRetry
	if put := (*putOff)(nil); errors.As(err, &put) {
		pause = max(pause, put.after)
	}
	return pause + rand.N(pause/4) //nolint:gosec // jitter, no secret
}

func (r *renewer) lapsed() bool {
	v := r.source.Load()
	if v == nil {
		return false
	}
	n := v.Keyring.Nodes[r.nodeID]
	return n != nil && n.State == keyring.NodeLapsed
}

// outdated reports whether another authority than the one that issued this node's certificate issues now.
func (r *renewer) outdated() bool {
	v := r.source.Load()
	if v == nil {
		return false
	}
	active := v.Keyring.ActiveAuthority()
	return active != nil && !active.Signed(r.cert.Certificate().Leaf)
}

// soon is when a certificate is renewed whose authority has retired: after a time by which the mesh as a whole asks for no more than
// some twenty a second.
func (r *renewer) soon() time.Duration {
	spread := time.Second
	if v := r.source.Load(); v != nil {
		spread = max(spread, time.Duration(len(v.Keyring.Nodes))*50*time.Millisecond)
	}
	return time.Duration(rand.Float64() * float64(spread)) //nolint:gosec // jitter, no secret
}

// confirm tells the mesh that this node got its certificate, until the mesh has heard it. It returns before when not to renew.
func (r *renewer) confirm(ctx context.Context) (notBefore time.Time) {
	for ctx.Err() == nil {
		if v := r.source.Load(); v != nil {
			if n := v.Keyring.Nodes[r.nodeID]; n != nil && n.State == keyring.NodeActive {
				return time.Time{}
			}
		}
		err := r.link.call(ctx, "confirm", func(ctx context.Context, c iapmeshv1.MeshServiceClient, o ...grpc.CallOption) error {
			_, err := c.Confirm(ctx, &iapmeshv1.ConfirmRequest{}, o...)
			return err
		})
		if err == nil || ctx.Err() != nil {
			return time.Time{}
		}
		if fault.Is(err, fault.Conflict) { // lapsed: a renewal brings it back
			return r.now().Add(r.attempt(ctx))
		}
		r.logger.Warn("join not confirmed", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(confirmRetry):
		}
	}
	return time.Time{}
}

// due is when the next renewal is: at two thirds of the certificate's life, give or take a tenth, so that nodes which joined
// together do not ask together.
func (r *renewer) due() time.Duration {
	leaf := r.cert.Certificate().Leaf
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	at := leaf.NotBefore.Add(life * 2 / 3).Add(time.Duration((rand.Float64() - 0.5) * 0.2 * float64(life))) //nolint:gosec // jitter, no secret
	return max(0, at.Sub(r.now()))
}

func (r *renewer) renew(ctx context.Context) error {
	csr, err := keyring.NewCSR(r.id.nodeKey())
	if err != nil {
		return err
	}
	var answer *iapmeshv1.RenewResponse
	ctx, cancel := context.WithTimeout(ctx, renewRetry)
	defer cancel()
	err = r.link.call(ctx, "renew the certificate", func(ctx context.Context, c iapmeshv1.MeshServiceClient, o ...grpc.CallOption) (err error) {
		answer, err = c.Renew(ctx, &iapmeshv1.RenewRequest{Csr: csr}, o...)
		return err
	})
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(answer.Certificate)
	if err != nil {
		return fault.New(fault.Internal, "renew the certificate: what came back: %w", err)
	}
	if !leaf.NotAfter.After(r.now()) {
		return fault.New(fault.Internal, "renew the certificate: what came back is over at %s", leaf.NotAfter)
	}
	var nodes []*iapmeshv1.ControlNode
	v := r.source.Load()
	if v != nil {
		nodes = control.Nodes(v, "")
	}
	if err := r.id.renewed(r.cert, answer.Certificate, answer.Bundle, nodes); err != nil {
		return err
	}
	if v != nil { // which may have brought other authorities while the answer was on its way
		if err := r.id.follow(r.cert, r.source.Load().Keyring); err != nil {
			return err
		}
	}
	r.logger.Info("certificate renewed", "expires", leaf.NotAfter)
	return nil
}
