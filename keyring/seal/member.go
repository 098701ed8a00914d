package seal

import (
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// Member opens, for one node, the secrets of the audiences that it is a member of.
type Member struct {
	Node string
	Key  SealingKey
}

// Audience opens the key of an audience. Denied: the node is no member.
func (m Member) Audience(a *keyring.Audience) (AudienceKey, error) {
	return OpenAudience(*a, m.Node, m.Key)
}

// Open opens one secret as a snapshot holds it. NotFound: there is none of that name, or its audience is not in this snapshot.
func (m Member) Open(s *keyring.Snapshot, audience, name string) ([]byte, error) {
	a, secret := s.Audiences[audience], s.Secrets[audience+"/"+name]
	if a == nil || secret == nil {
		return nil, fault.New(fault.NotFound, "no secret %s/%s", audience, name)
	}
	key, err := m.Audience(a)
	if err != nil {
		return nil, err
	}
	return OpenSecret(key, *secret)
}
