package enroll

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	meshpeer "github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// RevokeByHolder decides on such a request: on the leader itself, or by relaying it there.
type RevokeByHolder func(ctx context.Context, req *iapmeshv1.RelayRevokeByHolderRequest) (*iapmeshv1.RevokeByHolderResponse, error)

// Revocation is what whoever holds a key revokes it with.
type Revocation struct {
	Addresses  []string // nodes, host:port; tried in turn
	Secret     keyring.ProvisioningSecret
	Reason     string
	Pinned     func(pin [32]byte) meshpeer.Pinned // nil: the real network
	Logger     *slog.Logger
	RetryEvery time.Duration // between rounds over the addresses; default 1 s
}

// Revoke asks until the key is revoked, the request is refused, or ctx ends. That it was revoked before is no error.
func Revoke(ctx context.Context, v Revocation) (*iapmeshv1.RevokeByHolderResponse, error) {
	body, err := keyring.HolderRevocation{Key: v.Secret.ID(), Reason: v.Reason}.Body()
	if err != nil {
		return nil, err
	}
	r := Request{Addresses: v.Addresses, Secret: v.Secret, Pinned: v.Pinned, Logger: v.Logger, RetryEvery: v.RetryEvery}
	var resp *iapmeshv1.RevokeByHolderResponse
	err = r.ask(ctx, "revoke", func(ctx context.Context, addr string) error {
		var err error
		resp, err = r.revoke(ctx, addr, body)
		return err
	})
	if err != nil {
		return nil, err
	}
	if resp.KeyId != v.Secret.ID() {
		return nil, fault.New(fault.Internal, "revoke: the answer is for another key")
	}
	return resp, nil
}

func (r *Request) revoke(ctx context.Context, addr string, body []byte) (*iapmeshv1.RevokeByHolderResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	conn, err := r.pinned().Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ekm, err := exportKeyingMaterial(conn.ConnectionState())
	if err != nil {
		return nil, err
	}
	req := &iapmeshv1.RevokeByHolderRequest{Body: body}
	if req.Signature, err = keyring.SignRevocation(r.Secret.PrivateKey(), ekm, body); err != nil {
		return nil, err
	}
	client, err := grpc.NewClient("passthrough:///"+addr, conn.DialOptions()...)
	if err != nil {
		return nil, fault.New(fault.Internal, "revoke: %w", err)
	}
	defer client.Close()
	resp, err := iapmeshv1.NewEnrollServiceClient(client).RevokeByHolder(ctx, req)
	if err != nil {
		return nil, fault.FromStatus(err)
	}
	return resp, nil
}

// RevokeByHolder implements EnrollService.
func (s *Server) RevokeByHolder(ctx context.Context, req *iapmeshv1.RevokeByHolderRequest) (*iapmeshv1.RevokeByHolderResponse, error) {
	resp, err := s.revokeByHolder(ctx, req)
	result := "revoked"
	switch {
	case err != nil:
		result = fault.KindOf(err).String()
	case resp.Already:
		result = "already"
	}
	s.revocations.WithLabelValues(result).Inc()
	return resp, err
}

func (s *Server) revokeByHolder(ctx context.Context, req *iapmeshv1.RevokeByHolderRequest) (*iapmeshv1.RevokeByHolderResponse, error) {
	if s.Revoke == nil {
		return nil, fault.New(fault.Denied, "revoke: this node is no control node: ask it where those are (Locate)")
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	source, ekm, err := s.caller(ctx, "revoke")
	if err != nil {
		return nil, err
	}
	// As with joins: for the rate limit alone, and nothing is believed before the leader has verified the signature. Whoever proves the key
	// waits for nobody, nor for another who holds it and would rather have it live.
	asked, err := keyring.ParseHolderRevocation(req.Body)
	if err != nil {
		return nil, fault.New(fault.Unauthenticated, "revoke: unauthenticated: the body is no request to revoke a key")
	}
	proved := s.proves(asked.Key, func(key ed25519.PublicKey) error { return keyring.VerifyRevocation(key, ekm, req.Body, req.Signature) })
	if !proved && !s.holders.allow(asked.Key) {
		return nil, fault.New(fault.Unavailable, "revoke: too many attempts: wait a few seconds")
	}
	leave, err := s.place(ctx, "revoke")
	if err != nil {
		return nil, err
	}
	defer leave()
	resp, err := s.Revoke(ctx, &iapmeshv1.RelayRevokeByHolderRequest{Revocation: req, ExportedKeyingMaterial: ekm[:], SourceAddress: source.String()})
	if err != nil {
		s.logger.Info("revocation by a holder refused", "source", source.String(), "key", asked.Key, "error", err)
	}
	return resp, err
}
