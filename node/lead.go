package node

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// lead makes what a control node does while it leads; on other nodes there is nothing to make.
func (a *assembly) lead(context.Context) error {
	if a.store == nil {
		return nil
	}
	a.control = control.New(control.Config{
		NodeID: a.id.public.NodeID, Store: a.store, Source: a.source, Secrets: a.member, Voters: members{a.store}, Epochs: a.store, Leader: a.store.Leader,
		Trail: a.trail, Logger: a.logger, Registerer: a.registry, Now: a.env.Now, PromoteAfter: time.Duration(a.config.Control.PromoteAfter),
	})
	a.base = append(a.base, part{"leader", a.control.Run})
	return nil
}

// relayJoin takes a join to the leader: to this node's own control, if it leads.
func (a *assembly) relayJoin(ctx context.Context, req *iapmeshv1.RelayJoinRequest) (resp *iapmeshv1.JoinResponse, err error) {
	var refused error
	err = a.link.call(ctx, "join", func(ctx context.Context, c iapmeshv1.MeshServiceClient, o ...grpc.CallOption) error {
		var trailer metadata.MD
		var err error
		resp, err = c.RelayJoin(ctx, req, append(o, grpc.Trailer(&trailer))...)
		if err != nil && len(trailer.Get(control.DecidedTrailer)) > 0 {
			refused = fmt.Errorf("join: %w", fault.FromStatus(err))
			return nil
		}
		return err
	})
	if refused != nil {
		return nil, refused
	}
	return resp, err
}

// relayRevokeByHolder does the same for a revocation by whoever holds the key.
func (a *assembly) relayRevokeByHolder(ctx context.Context, req *iapmeshv1.RelayRevokeByHolderRequest) (resp *iapmeshv1.RevokeByHolderResponse, err error) {
	err = a.link.call(ctx, "revoke", func(ctx context.Context, c iapmeshv1.MeshServiceClient, o ...grpc.CallOption) error {
		resp, err = c.RelayRevokeByHolder(ctx, req, o...)
		return err
	})
	return resp, err
}

// callerNode says which node calls, by its certificate and the record of now.
func callerNode(ctx context.Context) (string, error) {
	who, err := peer.FromContext(ctx)
	if err != nil {
		return "", err
	}
	if who.Node == nil {
		return "", fault.New(fault.Denied, "%s is no node", who.Name())
	}
	return who.Node.ID, nil
}

// callerSource says from where a call comes.
func callerSource(ctx context.Context) (netip.Addr, error) {
	who, err := peer.FromContext(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	addr, err := netip.ParseAddrPort(who.RemoteAddr.String())
	if err != nil {
		return netip.Addr{}, fault.New(fault.Internal, "the caller's address: %w", err)
	}
	return addr.Addr().Unmap(), nil
}

// callerAdmin says which administrator calls.
func callerAdmin(ctx context.Context) (name string, source netip.Addr, err error) {
	who, err := peer.FromContext(ctx)
	if err != nil {
		return "", netip.Addr{}, err
	}
	if who.Admin == nil {
		return "", netip.Addr{}, fault.New(fault.Denied, "%s is no administrator", who.Name())
	}
	if addr, err := netip.ParseAddrPort(who.RemoteAddr.String()); err == nil {
		source = addr.Addr().Unmap()
	}
	return "admin/" + who.Admin.Name, source, nil
}

// announcer publishes this node's next session key at the leader.
type announcer struct{ link *link }

var _ session.Announcer = announcer{}

// AnnounceSigningKey implements session.Announcer.
func (n announcer) AnnounceSigningKey(ctx context.Context, kid string, pub ed25519.PublicKey, proof []byte) (at revision.Revision, err error) {
	err = n.link.call(ctx, "announce a session key", func(ctx context.Context, c iapmeshv1.MeshServiceClient, o ...grpc.CallOption) error {
		resp, err := c.AnnounceSigningKey(ctx, &iapmeshv1.AnnounceSigningKeyRequest{Kid: kid, PublicKey: pub, Proof: proof}, o...)
		at = state.RevisionOf(resp.GetRevision())
		return err
	})
	return at, err
}

// EndSession revokes a session at its user's sign-out.
func (n announcer) EndSession(ctx context.Context, sessionID, subject string) error {
	return n.link.call(ctx, "end a session", func(ctx context.Context, c iapmeshv1.MeshServiceClient, o ...grpc.CallOption) error {
		_, err := c.EndSession(ctx, &iapmeshv1.EndSessionRequest{SessionId: sessionID, Subject: subject}, o...)
		return err
	})
}
