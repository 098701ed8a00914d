package node

import (
	"context"
	"crypto/x509"
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
}

// renewRetry is how long a renewal that was not answered waits; the record is trusted meanwhile, expired or not.
const renewRetry = 30 * time.Second

// Run works until ctx ends.
func (r *renewer) Run(ctx context.Context) error {
	if err := r.confirm(ctx); err != nil {
		return err
	}
	at, hurried := r.now().Add(r.due()), false
	for ctx.Err() == nil {
		changed := r.source.Changed()
		if !hurried && r.outdated() {
			if soon := r.now().Add(r.soon()); soon.Before(at) {
				at = soon
			}
			hurried = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			continue
		case <-time.After(at.Sub(r.now())):
		}
		if err := r.renew(ctx); err != nil && ctx.Err() == nil {
			r.logger.Warn("certificate not renewed", "expires", r.cert.Certificate().Leaf.NotAfter, "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(renewRetry):
			}
			continue
		}
		at, hurried = r.now().Add(r.due()), false
	}
	return nil
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

// confirm tells the mesh that this node got its certificate. A node that the mesh has since turned away cannot go on.
func (r *renewer) confirm(ctx context.Context) error {
	if v := r.source.Load(); v != nil {
		if n := v.Keyring.Nodes[r.nodeID]; n != nil && n.State == keyring.NodeActive {
			return nil
		}
	}
	err := r.link.call(ctx, "confirm", func(ctx context.Context, c iapmeshv1.MeshServiceClient, o ...grpc.CallOption) error {
		_, err := c.Confirm(ctx, &iapmeshv1.ConfirmRequest{}, o...)
		return err
	})
	switch {
	case err == nil || ctx.Err() != nil:
		return nil
	case fault.Is(err, fault.Conflict): // lapsed: the renewal below brings it back
		return r.renew(ctx)
	}
	return err
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
