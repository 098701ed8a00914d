package state

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Stamp writes a time; the zero time is nil.
func Stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// Time reads what Stamp wrote.
func Time(s *timestamppb.Timestamp) time.Time {
	if s == nil {
		return time.Time{}
	}
	return s.AsTime()
}

// span writes a time span; none is nil.
func span(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

// RevisionProto writes a revision.
func RevisionProto(r revision.Revision) *iapmeshv1.Revision {
	return &iapmeshv1.Revision{Epoch: r.Epoch, Index: r.Index}
}

// RevisionOf reads one; nil is the zero revision.
func RevisionOf(r *iapmeshv1.Revision) revision.Revision {
	return revision.Revision{Epoch: r.GetEpoch(), Index: r.GetIndex()}
}

// put encodes a record into the entry that a commit takes.
func put(key string, m proto.Message) store.Entry {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("encode %s: %v", key, err)) // our own messages always encode, but for invalid UTF-8, which is validated before
	}
	return store.Entry{Key: key, Value: value}
}

func decode(e store.Entry, m proto.Message) error {
	if err := (proto.UnmarshalOptions{DiscardUnknown: false}).Unmarshal(e.Value, m); err != nil {
		return fault.New(fault.Internal, "decode %s: %w", e.Key, err)
	}
	return nil
}

// PutKey encodes a provisioning key.
func PutKey(k *keyring.Key) store.Entry { return put(KeyPath(k.ID), KeyProto(k)) }

// KeyProto writes a provisioning key as the API shows it.
func KeyProto(k *keyring.Key) *iapmeshv1.ProvisioningKey {
	p := &iapmeshv1.ProvisioningKey{
		Id: k.ID, Name: k.Name, PublicKey: k.PublicKey, Grants: RolesProto(k.Grants), Regions: k.Regions, RouteSelector: k.RouteSelector,
		NotBefore: Stamp(k.NotBefore), ExpiresAt: Stamp(k.ExpiresAt), MaxUses: k.MaxUses, MaxActive: k.MaxActive, Uses: k.Uses,
		State: keyStates.proto(k.State), Predecessor: k.Predecessor, Successor: k.Successor, GraceUntil: Stamp(k.GraceUntil),
		CreatedBy: k.CreatedBy, CreatedAt: Stamp(k.CreatedAt), Reason: k.Reason, Cascade: cascades.proto(k.Cascade), RevokedAt: Stamp(k.RevokedAt),
		NeedsApproval: k.NeedsApproval, ApprovedBy: k.ApprovedBy, ApprovedAt: Stamp(k.ApprovedAt), ApprovalGrace: span(k.ApprovalGrace), RevokedBy: k.RevokedBy,
		RotateEvery: span(k.RotateEvery), RotateGrace: span(k.RotateGrace), Rotator: k.Rotator, RotateRequested: k.RotateRequested, ProposedBy: k.ProposedBy, ScheduledBy: k.ScheduledBy,
	}
	for _, c := range k.SourceCIDRs {
		p.SourceCidrs = append(p.SourceCidrs, c.String())
	}
	for _, u := range k.RecentUses {
		p.RecentUses = append(p.RecentUses, &iapmeshv1.KeyUse{Node: u.Node, Name: u.Name, At: Stamp(u.At)})
	}
	return p
}

// KeyOf reads what KeyProto wrote.
func KeyOf(p *iapmeshv1.ProvisioningKey) (*keyring.Key, error) {
	k := &keyring.Key{
		ID: p.Id, Name: p.Name, PublicKey: p.PublicKey, Grants: RolesOf(p.Grants), Regions: p.Regions, RouteSelector: p.RouteSelector,
		NotBefore: Time(p.NotBefore), ExpiresAt: Time(p.ExpiresAt), MaxUses: p.MaxUses, MaxActive: p.MaxActive, Uses: p.Uses,
		State: keyStates.domain(p.State), Predecessor: p.Predecessor, Successor: p.Successor, GraceUntil: Time(p.GraceUntil),
		CreatedBy: p.CreatedBy, CreatedAt: Time(p.CreatedAt), Reason: p.Reason, Cascade: cascades.domain(p.Cascade), RevokedAt: Time(p.RevokedAt),
		NeedsApproval: p.NeedsApproval, ApprovedBy: p.ApprovedBy, ApprovedAt: Time(p.ApprovedAt), ApprovalGrace: p.ApprovalGrace.AsDuration(),
		RevokedBy:   p.RevokedBy,
		RotateEvery: p.RotateEvery.AsDuration(), RotateGrace: p.RotateGrace.AsDuration(), Rotator: p.Rotator, RotateRequested: p.RotateRequested, ProposedBy: p.ProposedBy, ScheduledBy: p.ScheduledBy,
	}
	if len(k.PublicKey) != ed25519.PublicKeySize {
		return nil, fault.New(fault.Internal, "provisioning key %s: public key of %d bytes", k.ID, len(k.PublicKey))
	}
	for _, c := range p.SourceCidrs {
		prefix, err := netip.ParsePrefix(c)
		if err != nil {
			return nil, fault.New(fault.Internal, "provisioning key %s: source %q: %w", k.ID, c, err)
		}
		k.SourceCIDRs = append(k.SourceCIDRs, prefix)
	}
	for _, u := range p.RecentUses {
		k.RecentUses = append(k.RecentUses, keyring.Use{Node: u.Node, Name: u.Name, At: Time(u.At)})
	}
	return k, nil
}

// PutNode encodes a node.
func PutNode(n *keyring.Node) store.Entry { return put(NodePath(n.ID), NodeProto(n)) }

// NodeProto writes a node as the API shows it.
func NodeProto(n *keyring.Node) *iapmeshv1.Node {
	return &iapmeshv1.Node{
		Id: n.ID, Name: n.Name, Region: n.Region, Roles: RolesProto(n.Roles), RouteSelector: n.RouteSelector, Addresses: AddressesProto(n.Addresses),
		PublicKey: n.PublicKey, SealingPublicKey: n.SealingPublicKey, ProvisioningKey: n.ProvisioningKey, BoundKey: n.BoundKey,
		State: nodeStates.proto(n.State), JoinId: n.JoinID, EnrolledAt: Stamp(n.EnrolledAt), StateSince: Stamp(n.StateSince),
		CertificateExpiresAt: Stamp(n.CertExpiresAt), Reason: n.Reason, SessionPublicKey: n.SessionPublicKey, RebindTo: n.RebindTo,
	}
}

// NodeOf reads what NodeProto wrote.
func NodeOf(p *iapmeshv1.Node) (*keyring.Node, error) {
	if len(p.PublicKey) != ed25519.PublicKeySize {
		return nil, fault.New(fault.Internal, "node %s: public key of %d bytes", p.Id, len(p.PublicKey))
	}
	return &keyring.Node{
		ID: p.Id, Name: p.Name, Region: p.Region, Roles: RolesOf(p.Roles), RouteSelector: p.RouteSelector, Addresses: AddressesOf(p.Addresses),
		PublicKey: p.PublicKey, SealingPublicKey: p.SealingPublicKey, ProvisioningKey: p.ProvisioningKey, BoundKey: p.BoundKey,
		State: nodeStates.domain(p.State), JoinID: p.JoinId, EnrolledAt: Time(p.EnrolledAt), StateSince: Time(p.StateSince),
		CertExpiresAt: Time(p.CertificateExpiresAt), Reason: p.Reason, SessionPublicKey: p.SessionPublicKey, RebindTo: p.RebindTo,
	}, nil
}

// AddressesProto writes addresses.
func AddressesProto(a keyring.Addresses) *iapmeshv1.Addresses {
	return &iapmeshv1.Addresses{Mesh: a.Mesh, Gossip: a.Gossip, Proxy: a.Proxy}
}

// AddressesOf reads them.
func AddressesOf(a *iapmeshv1.Addresses) keyring.Addresses {
	return keyring.Addresses{Mesh: a.GetMesh(), Gossip: a.GetGossip(), Proxy: a.GetProxy()}
}

// PutAdmin encodes an administrator.
func PutAdmin(a *keyring.Admin) store.Entry { return put(AdminPath(a.ID), AdminProto(a)) }

// AdminProto writes an administrator as the API shows it.
func AdminProto(a *keyring.Admin) *iapmeshv1.Admin {
	return &iapmeshv1.Admin{
		Id: a.ID, Name: a.Name, PublicKey: a.PublicKey, CreatedAt: Stamp(a.CreatedAt), ExpiresAt: Stamp(a.ExpiresAt),
		RevokedAt: Stamp(a.RevokedAt), Reason: a.Reason,
	}
}

// AdminOf reads what AdminProto wrote.
func AdminOf(p *iapmeshv1.Admin) *keyring.Admin {
	return &keyring.Admin{
		ID: p.Id, Name: p.Name, PublicKey: p.PublicKey, CreatedAt: Time(p.CreatedAt), ExpiresAt: Time(p.ExpiresAt),
		RevokedAt: Time(p.RevokedAt), Reason: p.Reason,
	}
}

func adminOf(p *iapmeshv1.Admin) (*keyring.Admin, error) {
	if len(p.PublicKey) != ed25519.PublicKeySize {
		return nil, fault.New(fault.Internal, "administrator %s: public key of %d bytes", p.Id, len(p.PublicKey))
	}
	return AdminOf(p), nil
}

// PutSigningKey encodes a signing key.
func PutSigningKey(k *keyring.SigningKey) store.Entry {
	return put(SigningKeyPath(k.KID), SigningKeyProto(k))
}

// SigningKeyProto writes a signing key as the API shows it.
func SigningKeyProto(k *keyring.SigningKey) *iapmeshv1.SigningKey {
	return &iapmeshv1.SigningKey{
		Kid: k.KID, Kind: signingKinds.proto(k.Kind), Node: k.Node, Region: k.Region, RouteSelector: k.RouteSelector, PublicKey: k.PublicKey,
		State: signingStates.proto(k.State), AnnouncedAt: Stamp(k.AnnouncedAt), ActiveAt: Stamp(k.ActiveAt), RetireAt: Stamp(k.RetireAt),
		StateSince: Stamp(k.StateSince), RotateRequested: k.RotateRequested, Reason: k.Reason, ProvisioningKey: k.ProvisioningKey,
	}
}

// SigningKeyOf reads what SigningKeyProto wrote, last written at the revision.
func SigningKeyOf(p *iapmeshv1.SigningKey, at revision.Revision) *keyring.SigningKey {
	return &keyring.SigningKey{
		KID: p.Kid, Kind: signingKinds.domain(p.Kind), Node: p.Node, Region: p.Region, RouteSelector: p.RouteSelector, PublicKey: p.PublicKey,
		State: signingStates.domain(p.State), AnnouncedAt: Time(p.AnnouncedAt), ActiveAt: Time(p.ActiveAt), RetireAt: Time(p.RetireAt),
		StateSince: Time(p.StateSince), RotateRequested: p.RotateRequested, Reason: p.Reason, ProvisioningKey: p.ProvisioningKey, Revision: at,
	}
}

// PutRevocation encodes a revocation.
func PutRevocation(r *keyring.Revocation) store.Entry {
	return put(RevocationPath(r.Kind, r.Value), RevocationProto(r))
}

// RevocationProto writes a revocation as the API shows it.
func RevocationProto(r *keyring.Revocation) *iapmeshv1.Revocation {
	return &iapmeshv1.Revocation{
		Kind: revocationKinds.proto(r.Kind), Value: r.Value, Block: r.Block, Reason: r.Reason, By: r.By, At: Stamp(r.At), ExpiresAt: Stamp(r.ExpiresAt),
	}
}

// RevocationOf reads what RevocationProto wrote, last written at the revision.
func RevocationOf(p *iapmeshv1.Revocation, at revision.Revision) *keyring.Revocation {
	return &keyring.Revocation{
		Kind: revocationKinds.domain(p.Kind), Value: p.Value, Block: p.Block, Reason: p.Reason, By: p.By, At: Time(p.At),
		ExpiresAt: Time(p.ExpiresAt), Revision: at,
	}
}

// PutAudience encodes an audience.
func PutAudience(a *keyring.Audience) store.Entry { return put(AudiencePath(a.Name), AudienceProto(a)) }

// AudienceProto writes an audience as a join's answer carries it.
func AudienceProto(a *keyring.Audience) *iapmeshv1.Audience {
	p := &iapmeshv1.Audience{Name: a.Name, Version: a.Version, RotatedAt: Stamp(a.RotatedAt)}
	for _, w := range a.Wraps {
		p.Wraps = append(p.Wraps, &iapmeshv1.Wrap{Node: w.Node, Encapsulated: w.Encapsulated, Ciphertext: w.Ciphertext})
	}
	return p
}

// AudienceOf reads what AudienceProto wrote.
func AudienceOf(p *iapmeshv1.Audience) *keyring.Audience {
	a := &keyring.Audience{Name: p.Name, Version: p.Version, RotatedAt: Time(p.RotatedAt)}
	for _, w := range p.Wraps {
		a.Wraps = append(a.Wraps, keyring.Wrap{Node: w.Node, Encapsulated: w.Encapsulated, Ciphertext: w.Ciphertext})
	}
	return a
}

// PutSecret encodes a secret, which is ciphertext already.
func PutSecret(s *keyring.Secret) store.Entry {
	return put(SecretPath(s.Audience, s.Name), &iapmeshv1.Secret{
		Audience: s.Audience, Name: s.Name, Version: s.Version, Ciphertext: s.Ciphertext, At: Stamp(s.At),
	})
}

// SecretOf reads what PutSecret wrote.
func SecretOf(p *iapmeshv1.Secret) *keyring.Secret {
	return &keyring.Secret{Audience: p.Audience, Name: p.Name, Version: p.Version, Ciphertext: p.Ciphertext, At: Time(p.At)}
}

// PutMesh encodes what never changes.
func PutMesh(m keyring.Mesh) store.Entry {
	return put(PathMesh, &iapmeshv1.Mesh{Id: m.ID, TrustDomain: m.TrustDomain, FoundedAt: Stamp(m.FoundedAt)})
}

// PutManifest encodes the manifest.
func PutManifest(m *iapmeshv1.Manifest) store.Entry { return put(PathManifest, m) }

// PutBlob encodes a resource under its hash.
func PutBlob(hash [32]byte, r *iapmeshv1.Resource) store.Entry { return put(BlobPath(hash), r) }
