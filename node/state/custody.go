package state

import (
	"crypto/x509"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

var ringPhases = table[keyring.RingPhase, iapmeshv1.GossipRingPhase]{
	keyring.RingSteady: iapmeshv1.GossipRingPhase_GOSSIP_RING_PHASE_STEADY, keyring.RingInstall: iapmeshv1.GossipRingPhase_GOSSIP_RING_PHASE_INSTALL,
	keyring.RingUse: iapmeshv1.GossipRingPhase_GOSSIP_RING_PHASE_USE,
}

// PutAuthority encodes an authority.
func PutAuthority(a *keyring.Authority) store.Entry {
	return put(AuthorityPath(a.Serial), AuthorityProto(a))
}

// AuthorityProto writes an authority as the API shows it.
func AuthorityProto(a *keyring.Authority) *iapmeshv1.Authority {
	p := &iapmeshv1.Authority{
		Serial: a.Serial, Certificate: a.Certificate.Raw, State: authorityStates.proto(a.State),
		CreatedAt: Stamp(a.CreatedAt), ActiveAt: Stamp(a.ActiveAt), RetiredAt: Stamp(a.RetiredAt),
	}
	for _, c := range a.CrossCertificates {
		p.CrossCertificates = append(p.CrossCertificates, c.Raw)
	}
	return p
}

// AuthorityOf reads what AuthorityProto wrote, last written at the revision.
func AuthorityOf(p *iapmeshv1.Authority, at revision.Revision) (*keyring.Authority, error) {
	cert, err := x509.ParseCertificate(p.Certificate)
	if err != nil {
		return nil, fault.New(fault.Internal, "authority %s: %w", p.Serial, err)
	}
	a := &keyring.Authority{
		Serial: p.Serial, Certificate: cert, State: authorityStates.domain(p.State),
		CreatedAt: Time(p.CreatedAt), ActiveAt: Time(p.ActiveAt), RetiredAt: Time(p.RetiredAt), Revision: at,
	}
	for _, der := range p.CrossCertificates {
		cross, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fault.New(fault.Internal, "authority %s: cross certificate: %w", p.Serial, err)
		}
		a.CrossCertificates = append(a.CrossCertificates, cross)
	}
	return a, nil
}

// PutGossipRing encodes how far the ring of gossip keys is.
func PutGossipRing(r keyring.GossipRing) store.Entry { return put(PathGossipRing, GossipRingProto(r)) }

// GossipRingProto writes it as the API shows it.
func GossipRingProto(r keyring.GossipRing) *iapmeshv1.GossipRing {
	return &iapmeshv1.GossipRing{Phase: ringPhases.proto(r.Phase), Since: Stamp(r.Since), BegunAt: Stamp(r.BegunAt)}
}

// GossipRingOf reads what GossipRingProto wrote, last written at the revision.
func GossipRingOf(p *iapmeshv1.GossipRing, at revision.Revision) keyring.GossipRing {
	return keyring.GossipRing{Phase: ringPhases.domain(p.Phase), Since: Time(p.Since), BegunAt: Time(p.BegunAt), Revision: at}
}
