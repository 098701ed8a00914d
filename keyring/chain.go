package keyring

import "crypto/x509"

// MaxChain bounds the certificates that a party sends: its own, those of its issuer's key that the other authorities signed, and the
// roots.
const MaxChain = 1 + (MaxAuthorities - 1) + MaxAuthorities

// IsRoot reports whether a certificate is a CA's that signed itself: what a chain holds to be pinned, and a bundle to be trusted. A
// cross certificate is none.
func IsRoot(c *x509.Certificate) bool {
	return c.IsCA && c.BasicConstraintsValid && c.CheckSignatureFrom(c) == nil
}

// IssuerOf returns the authority that issued a certificate of the mesh's; nil if the mesh does not know it any more.
func (s *Snapshot) IssuerOf(leaf *x509.Certificate) *Authority {
	for _, a := range s.Authorities {
		if a.Signed(leaf) {
			return a
		}
	}
	return nil
}

// Chain is what a node presents behind its certificate, DER: its issuer's key as each other authority signed it, then all roots. So a
// party that knows one root of the mesh, whichever it is, can verify the node.
func (s *Snapshot) Chain(leaf *x509.Certificate) [][]byte {
	var chain [][]byte
	if issuer := s.IssuerOf(leaf); issuer != nil {
		for _, c := range issuer.CrossCertificates {
			chain = append(chain, c.Raw)
		}
	}
	return append(chain, s.RootsDER()...)
}

// RootsDER are the roots of all authorities, the oldest first.
func (s *Snapshot) RootsDER() [][]byte {
	var roots [][]byte
	for _, a := range sortedAuthorities(s.Authorities) {
		roots = append(roots, a.Certificate.Raw)
	}
	return roots
}

// AuthoritiesByAge are all authorities, the oldest first.
func (s *Snapshot) AuthoritiesByAge() []*Authority { return sortedAuthorities(s.Authorities) }
