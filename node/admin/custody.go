package admin

import (
	"context"
	"maps"
	"slices"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

type custody struct {
	iapmeshv1.UnimplementedCustodyServiceServer
	Services
}

// RotateAuthority implements CustodyService.
func (s *custody) RotateAuthority(ctx context.Context, _ *iapmeshv1.RotateAuthorityRequest) (*iapmeshv1.RotateAuthorityResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	serial, _, err := c.RotateAuthority(ctx, by)
	if err != nil {
		return nil, err
	}
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	a := v.Keyring.Authorities[serial]
	if a == nil {
		return nil, fault.New(fault.Unavailable, "authority %s is made, but this node's view does not have it yet", serial)
	}
	return &iapmeshv1.RotateAuthorityResponse{Authority: authorityStatus(c, v, a)}, nil
}

// ListAuthorities implements CustodyService.
func (s *custody) ListAuthorities(ctx context.Context, _ *iapmeshv1.ListAuthoritiesRequest) (*iapmeshv1.ListAuthoritiesResponse, error) {
	_, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	out := &iapmeshv1.ListAuthoritiesResponse{NextRotation: state.Stamp(control.NextAuthority(v))}
	for _, a := range v.Keyring.AuthoritiesByAge() {
		out.Authorities = append(out.Authorities, authorityStatus(c, v, a))
	}
	return out, nil
}

func authorityStatus(c *control.Controller, v *state.View, a *keyring.Authority) *iapmeshv1.AuthorityStatus {
	pin := keyring.Pin(a.Certificate)
	out := &iapmeshv1.AuthorityStatus{
		Authority: state.AuthorityProto(a), Pin: pin[:], ExpiresAt: state.Stamp(a.Certificate.NotAfter), Receipt: c.Reports.Receipt(a.Revision, v),
	}
	for _, h := range keyring.Holds(*a, v.Keyring.Contents, c.Now()) {
		out.Holds = append(out.Holds, &iapmeshv1.AuthorityHold{Kind: h.Kind, Id: h.ID, Name: h.Name, Until: state.Stamp(h.Until)})
	}
	return out
}

// ListAudiences implements CustodyService. The leader answers: it is a member of all, and so sees all.
func (s *custody) ListAudiences(ctx context.Context, _ *iapmeshv1.ListAudiencesRequest) (*iapmeshv1.ListAudiencesResponse, error) {
	if _, _, err := s.leader(ctx); err != nil {
		return nil, err
	}
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	out := &iapmeshv1.ListAudiencesResponse{}
	for _, name := range slices.Sorted(maps.Keys(v.Keyring.Audiences)) {
		out.Audiences = append(out.Audiences, audienceStatus(v, v.Keyring.Audiences[name]))
	}
	return out, nil
}

func audienceStatus(v *state.View, a *keyring.Audience) *iapmeshv1.AudienceStatus {
	out := &iapmeshv1.AudienceStatus{
		Name: a.Name, Version: a.Version, RotatedAt: state.Stamp(a.RotatedAt), NextRotation: state.Stamp(control.NextAudienceKey(v, a)),
	}
	for _, w := range a.Wraps {
		out.Members = append(out.Members, w.Node)
	}
	for _, s := range v.Keyring.Secrets {
		if s.Audience == a.Name {
			out.Secrets = append(out.Secrets, s.Name)
		}
	}
	slices.Sort(out.Members)
	slices.Sort(out.Secrets)
	return out
}

// RotateAudience implements CustodyService.
func (s *custody) RotateAudience(ctx context.Context, req *iapmeshv1.RotateAudienceRequest) (*iapmeshv1.RotateAudienceResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	at, err := c.RotateAudience(ctx, by, req.Name)
	if err != nil {
		return nil, err
	}
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	a := v.Keyring.Audiences[req.Name]
	if a == nil {
		return nil, fault.New(fault.NotFound, "no audience %s", req.Name)
	}
	return &iapmeshv1.RotateAudienceResponse{Audience: audienceStatus(v, a), Receipt: s.receipt(c, at)}, nil
}

// GetGossipRing implements CustodyService.
func (s *custody) GetGossipRing(ctx context.Context, _ *iapmeshv1.GetGossipRingRequest) (*iapmeshv1.GetGossipRingResponse, error) {
	_, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	ring := v.Keyring.GossipRing
	return &iapmeshv1.GetGossipRingResponse{
		Ring: state.GossipRingProto(ring), Receipt: c.Reports.Receipt(ring.Revision, v), NextRotation: state.Stamp(control.NextGossipKey(v)),
	}, nil
}

// RotateGossipKey implements CustodyService.
func (s *custody) RotateGossipKey(ctx context.Context, _ *iapmeshv1.RotateGossipKeyRequest) (*iapmeshv1.RotateGossipKeyResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	at, err := c.RotateGossipKey(ctx, by)
	if err != nil {
		return nil, err
	}
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.RotateGossipKeyResponse{Ring: state.GossipRingProto(v.Keyring.GossipRing), Receipt: s.receipt(c, at)}, nil
}
