package admin

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

type keys struct {
	iapmeshv1.UnimplementedKeyServiceServer
	Services
}

// IssueKey implements KeyService.
func (s *keys) IssueKey(ctx context.Context, req *iapmeshv1.IssueKeyRequest) (*iapmeshv1.IssueKeyResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	key, at, err := c.IssueKey(ctx, by, req)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.IssueKeyResponse{Key: state.KeyProto(key), Receipt: s.receipt(c, at)}, nil
}

// ListKeys implements KeyService.
func (s *keys) ListKeys(ctx context.Context, _ *iapmeshv1.ListKeysRequest) (*iapmeshv1.ListKeysResponse, error) {
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	out := &iapmeshv1.ListKeysResponse{}
	for _, k := range control.Keys(v) {
		out.Keys = append(out.Keys, state.KeyProto(k))
	}
	return out, nil
}

// GetKey implements KeyService.
func (s *keys) GetKey(ctx context.Context, req *iapmeshv1.GetKeyRequest) (*iapmeshv1.GetKeyResponse, error) {
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	key, err := v.Keyring.FindKey(req.Key)
	if err != nil {
		return nil, err
	}
	out := &iapmeshv1.GetKeyResponse{Key: state.KeyProto(key)}
	for _, n := range v.Keyring.NodesUnder(key.ID) {
		out.Nodes = append(out.Nodes, state.NodeProto(n))
	}
	return out, nil
}

// RotateKey implements KeyService.
func (s *keys) RotateKey(ctx context.Context, req *iapmeshv1.RotateKeyRequest) (*iapmeshv1.RotateKeyResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	before, after, at, err := c.RotateKey(ctx, by, req)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.RotateKeyResponse{Predecessor: state.KeyProto(before), Successor: state.KeyProto(after), Receipt: s.receipt(c, at)}, nil
}

// RevokeKey implements KeyService.
func (s *keys) RevokeKey(ctx context.Context, req *iapmeshv1.RevokeKeyRequest) (*iapmeshv1.RevokeKeyResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	if req.DryRun {
		return s.dryRun(ctx, c, by, req)
	}
	before, err := c.Survey()
	if err != nil {
		return nil, err
	}
	tree, err := c.Lineage(req.Key)
	if err != nil {
		return nil, err
	}
	key, affected, at, err := c.RevokeKey(ctx, by, req)
	if err != nil {
		return nil, err
	}
	out := &iapmeshv1.RevokeKeyResponse{Key: state.KeyProto(key), Receipt: s.receipt(c, at)}
	for i := range affected {
		out.Affected = append(out.Affected, state.NodeProto(&affected[i]))
	}
	out.Lineage, out.Blast = tree, before.KeyBlast(key, affected)
	return out, nil
}

// SuspendKey implements KeyService.
func (s *keys) SuspendKey(ctx context.Context, req *iapmeshv1.SuspendKeyRequest) (*iapmeshv1.SuspendKeyResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	key, at, err := c.SuspendKey(ctx, by, req.Key, req.Reason)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.SuspendKeyResponse{Key: state.KeyProto(key), Receipt: s.receipt(c, at)}, nil
}

// ResumeKey implements KeyService.
func (s *keys) ResumeKey(ctx context.Context, req *iapmeshv1.ResumeKeyRequest) (*iapmeshv1.ResumeKeyResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	key, at, err := c.ResumeKey(ctx, by, req.Key)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.ResumeKeyResponse{Key: state.KeyProto(key), Receipt: s.receipt(c, at)}, nil
}

// ApproveKey implements KeyService.
func (s *keys) ApproveKey(ctx context.Context, req *iapmeshv1.ApproveKeyRequest) (*iapmeshv1.ApproveKeyResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	key, predecessor, at, err := c.ApproveKey(ctx, by, req.Key)
	if err != nil {
		return nil, err
	}
	out := &iapmeshv1.ApproveKeyResponse{Key: state.KeyProto(key), Receipt: s.receipt(c, at)}
	if predecessor != nil {
		out.Predecessor = state.KeyProto(predecessor)
	}
	return out, nil
}

// ListSigningKeys implements KeyService: each key with who holds it in its view.
func (s *keys) ListSigningKeys(ctx context.Context, _ *iapmeshv1.ListSigningKeysRequest) (*iapmeshv1.ListSigningKeysResponse, error) {
	_, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	out := &iapmeshv1.ListSigningKeysResponse{}
	for _, k := range slices.SortedFunc(maps.Values(v.Keyring.SigningKeys), bySlot) {
		out.Keys = append(out.Keys, &iapmeshv1.SigningKeyStatus{
			Key: state.SigningKeyProto(k), Receipt: c.Reports.Receipt(k.Revision, v), Revision: state.RevisionProto(k.Revision),
		})
	}
	return out, nil
}

func bySlot(a, b *keyring.SigningKey) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Region, b.Region), cmp.Compare(a.Node, b.Node), b.AnnouncedAt.Compare(a.AnnouncedAt), cmp.Compare(a.KID, b.KID))
}

// RotateSigningKeys implements KeyService.
func (s *keys) RotateSigningKeys(ctx context.Context, req *iapmeshv1.RotateSigningKeysRequest) (*iapmeshv1.RotateSigningKeysResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	kids, at, err := c.RotateSigningKeys(ctx, by, req)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.RotateSigningKeysResponse{Rotating: kids, Receipt: s.receipt(c, at)}, nil
}
