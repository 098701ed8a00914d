package session_test

import (
	"crypto/ed25519"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
)

// Whatever rotations are asked for, however long views lag and time takes: a token is accepted by every node from the moment it is
// minted until it is over. Nobody is logged out by a rotation, and nobody is told to wait.
func TestARotationNeverRefusesAToken(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		m := newMesh(t)
		type minted struct {
			token   string
			expires time.Time
		}
		var tokens []minted
		nodes := []string{"eu", "us", "ap"} // eu mints; all verify, each by a view of its own
		views := map[string]*state.View{}
		verifiers := map[string]*session.Verifier{}
		for _, n := range nodes {
			views[n], verifiers[n] = m.view, m.verifier()
		}
		known := map[string]time.Time{} // key → since when eu knows that it signs no more
		hears := func(n string) {
			views[n] = m.view
			for _, k := range m.view.Keyring.SigningKeys {
				if n == "eu" && k.State == keyring.SigningVerifyOnly && known[k.KID].IsZero() {
					known[k.KID] = m.now
				}
			}
		}
		write := func(changed ...keyring.SigningKey) {
			m.commit(func(c *keyring.Contents) {
				for _, k := range changed {
					k.Revision = m.at
					c.SigningKeys[k.KID] = &k
				}
			})
		}
		anyKey := func(state keyring.SigningState) *keyring.SigningKey {
			for _, k := range m.records.SigningKeys {
				if k.Node == "eu" && k.State == state {
					return k
				}
			}
			return nil
		}
		rt.Repeat(map[string]func(*rapid.T){
			"time passes": func(rt *rapid.T) {
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 40).Draw(rt, "minutes")) * time.Minute)
			},
			"a view arrives": func(rt *rapid.T) { hears(rapid.SampledFrom(nodes).Draw(rt, "node")) },
			"sign in": func(rt *rapid.T) {
				token, s, err := m.minter("eu").Mint(views["eu"], session.Grant{Identity: ana()})
				if err != nil {
					rt.Fatalf("eu cannot mint: %v", err)
				}
				tokens = append(tokens, minted{token, s.Expires})
			},
			"announce": func(rt *rapid.T) {
				public, private, err := ed25519.GenerateKey(nil)
				if err != nil {
					rt.Fatal(err)
				}
				k, err := keyring.AnnounceSessionKey(*m.records.Nodes["eu"], public, m.records.SigningKeys, m.now)
				if err != nil {
					return // one is announced already
				}
				write(k)
				if err := m.keys["eu"].Add(private, m.at); err != nil {
					rt.Fatal(err)
				}
			},
			"promote": func(*rapid.T) {
				k := anyKey(keyring.SigningAnnounced)
				if k == nil {
					return
				}
				facts := keyring.PromoteFacts{Now: m.now, ListeningSince: m.now.Add(-time.Hour)}
				for n, v := range views {
					facts.Acks = append(facts.Acks, keyring.Ack{Node: n, Revision: v.Revision, ReportedAt: m.now})
				}
				if !keyring.ReadyToPromote(*k, facts).Ready {
					return
				}
				changed, err := keyring.Promote(*k, m.records.SigningKeys, m.now)
				if err != nil {
					rt.Fatal(err)
				}
				write(changed...)
			},
			"sweep": func(*rapid.T) {
				if k := anyKey(keyring.SigningVerifyOnly); k != nil {
					if swept, over := keyring.SweepSigningKey(*k, known[k.KID], m.now); over {
						write(swept)
					}
				}
			},
			"": func(rt *rapid.T) {
				for i, token := range tokens {
					if m.now.After(token.expires) {
						continue
					}
					for _, n := range nodes {
						if _, err := verifiers[n].Verify(views[n], views[n].Config.Route("billing"), token.token); err != nil {
							rt.Fatalf("token %d, until %s, at %s on %s: %v", i, token.expires, m.now, n, err)
						}
					}
				}
			},
		})
	})
}
