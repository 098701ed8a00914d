package keyring_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/iapmesh/iapmesh/keyring"
)

// Whatever is done to a key, in whatever order: no path leaves revoked, uses never exceed the maximum, and each edge that is taken is
// one of PROTOCOLS.md.
func TestWhateverIsDoneToAKey(t *testing.T) {
	t.Parallel()
	allowed := map[keyring.KeyState][]keyring.KeyState{
		// Activate and resume pass through active to what time makes of it at once.
		keyring.KeyPending:   {keyring.KeyActive, keyring.KeyExpired, keyring.KeyExhausted, keyring.KeyRevoked},
		keyring.KeyActive:    {keyring.KeySuspended, keyring.KeyExhausted, keyring.KeyExpired, keyring.KeyRetiring, keyring.KeyRetired, keyring.KeyRevoked},
		keyring.KeySuspended: {keyring.KeyActive, keyring.KeyExpired, keyring.KeyExhausted, keyring.KeyRevoked},
		keyring.KeyExhausted: {keyring.KeyActive, keyring.KeyExpired, keyring.KeyRetiring, keyring.KeyRetired, keyring.KeyRevoked},
		keyring.KeyExpired:   {keyring.KeyRetiring, keyring.KeyRetired, keyring.KeyRevoked},
		keyring.KeyRetiring:  {keyring.KeyRetired, keyring.KeyRevoked},
		keyring.KeyRetired:   {keyring.KeyRevoked},
		keyring.KeyRevoked:   {},
	}
	rapid.Check(t, func(rt *rapid.T) {
		at := now
		maxUses := rapid.Uint32Range(0, 4).Draw(rt, "max uses")
		k := issued(t, func(r *keyring.KeyRequest) {
			r.MaxUses, r.Pending, r.NeedsApproval = &maxUses, rapid.Bool().Draw(rt, "pending"), rapid.Bool().Draw(rt, "needs approval")
		})
		first, before := k, k
		var joined []string
		step := func(do func() (keyring.Key, error)) func(*rapid.T) {
			return func(*rapid.T) {
				before = k
				if after, err := do(); err == nil {
					k = after
				} else if after.State != before.State || after.Uses != before.Uses {
					rt.Fatalf("an error (%v) moved the key from %s to %s", err, before.State, after.State)
				}
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"time passes": func(rt *rapid.T) {
				at = at.Add(time.Duration(rapid.IntRange(0, 20).Draw(rt, "hours")) * time.Hour)
			},
			"join": step(func() (keyring.Key, error) {
				node := fmt.Sprint("n-", len(joined))
				after, err := keyring.AdmitJoin(k, facts(func(f *keyring.JoinFacts) { f.Now, f.Node = at, node }))
				if err == nil {
					joined = append(joined, node)
					if before.State != keyring.KeyActive && before.State != keyring.KeyRetiring {
						rt.Fatalf("a %s key admitted a node", before.State)
					}
				}
				return after, err
			}),
			"unconfirmed": step(func() (keyring.Key, error) {
				if len(joined) == 0 {
					return k, nil
				}
				node := joined[0]
				joined = joined[1:]
				return keyring.ReturnUse(k, node, at), nil
			}),
			"activate": step(func() (keyring.Key, error) { return keyring.ActivateKey(k, at) }),
			"approve": step(func() (keyring.Key, error) {
				after, _, err := keyring.ApproveKey(k, keyring.ApproveRequest{By: rapid.SampledFrom([]string{"ana", "ben"}).Draw(rt, "by"), Now: at})
				return after, err
			}),
			"suspend": step(func() (keyring.Key, error) { return keyring.SuspendKey(k, "") }),
			"resume":  step(func() (keyring.Key, error) { return keyring.ResumeKey(k, nil, at) }),
			"sweep":   step(func() (keyring.Key, error) { after, _ := keyring.SweepKey(k, at); return after, nil }),
			"rotate": step(func() (keyring.Key, error) {
				grace := time.Duration(rapid.IntRange(0, 30).Draw(rt, "grace")) * time.Hour
				after, _, err := keyring.RotateKey(k, keyring.RotateRequest{SuccessorPublicKey: public("next"), Grace: grace, Now: at})
				return after, err
			}),
			"revoke": step(func() (keyring.Key, error) {
				cascade := rapid.SampledFrom([]keyring.Cascade{keyring.CascadeKeep, keyring.CascadeQuarantine, keyring.CascadeKill}).Draw(rt, "cascade")
				after, _, err := keyring.RevokeKey(k, nil, keyring.RevokeRequest{Cascade: cascade, Now: at})
				return after, err
			}),
			"": func(rt *rapid.T) {
				if k.State != before.State && !slices.Contains(allowed[before.State], k.State) {
					rt.Fatalf("%s → %s", before.State, k.State)
				}
				if k.MaxUses != 0 && k.Uses > k.MaxUses {
					rt.Fatalf("%d uses of %d", k.Uses, k.MaxUses)
				}
				if len(joined) != int(k.Uses) {
					rt.Fatalf("%d uses for %d joins", k.Uses, len(joined))
				}
				if k.NeedsApproval && k.State != keyring.KeyPending && k.State != keyring.KeyRevoked && k.ApprovedBy != "ben" {
					rt.Fatalf("it is %s, approved by %q, and ana asked for it", k.State, k.ApprovedBy)
				}
				if k.ID != first.ID || k.MaxUses != first.MaxUses || k.ExpiresAt != first.ExpiresAt {
					rt.Fatal("its identity or scope changed")
				}
			},
		})
	})
}

// Whatever is done to a node: no path leaves revoked, none brings a departed one back, the parent never changes, and from quarantine
// only an operator's release or a revocation leads out.
func TestWhateverIsDoneToANode(t *testing.T) {
	t.Parallel()
	from, to, err := keyring.RotateKey(issued(t, nil), keyring.RotateRequest{SuccessorPublicKey: public("next"), Grace: time.Hour, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		at := now
		n := enrolled(t, from, "a")
		before, released := n, false
		step := func(do func() (keyring.Node, error)) func(*rapid.T) {
			return func(*rapid.T) {
				before, released = n, false
				if after, err := do(); err == nil {
					n = after
				}
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"time passes": func(rt *rapid.T) {
				at = at.Add(time.Duration(rapid.IntRange(0, 48).Draw(rt, "hours")) * time.Hour)
			},
			"confirm":    step(func() (keyring.Node, error) { return keyring.ConfirmNode(n, at) }),
			"recover":    step(func() (keyring.Node, error) { return keyring.RecoverNode(n, at) }),
			"depart":     step(func() (keyring.Node, error) { return keyring.DepartNode(n, "", at) }),
			"quarantine": step(func() (keyring.Node, error) { return keyring.QuarantineNode(n, "", at) }),
			"release": step(func() (keyring.Node, error) {
				after, err := keyring.ReleaseNode(n, at)
				released = err == nil
				return after, err
			}),
			"revoke": step(func() (keyring.Node, error) { return keyring.RevokeNode(n, "", at) }),
			"rebind": step(func() (keyring.Node, error) { return keyring.RebindNode(n, from, to, keyring.RebindFacts{}) }),
			"word":   step(func() (keyring.Node, error) { return keyring.AllowRebind(n, to, keyring.RebindFacts{}) }),
			"sweep":  step(func() (keyring.Node, error) { after, _, _ := keyring.SweepNode(n, now, at); return after, nil }),
			"key revoked": step(func() (keyring.Node, error) {
				_, changed, err := keyring.RevokeKey(from, []*keyring.Node{&n}, keyring.RevokeRequest{Cascade: keyring.CascadeQuarantine, Now: at})
				if len(changed) == 0 {
					return n, err
				}
				return changed[0], err
			}),
			"": func(rt *rapid.T) {
				switch moved := n.State != before.State; {
				case moved && before.State == keyring.NodeRevoked:
					rt.Fatalf("revoked → %s", n.State)
				case moved && before.State == keyring.NodeDeparted && n.State != keyring.NodeRevoked:
					rt.Fatalf("departed → %s", n.State)
				case moved && before.State == keyring.NodeQuarantined && n.State != keyring.NodeRevoked && !released:
					rt.Fatalf("quarantined → %s without a release", n.State)
				}
				if n.ProvisioningKey != from.ID {
					rt.Fatal("the parent changed")
				}
			},
		})
	})
}

// Whatever is done to a node's session keys: at most one is active, at most one announced, and nothing revives a revoked one.
func TestWhateverIsDoneToSessionKeys(t *testing.T) {
	t.Parallel()
	n := in(enrolled(t, issued(t, nil), "a"), keyring.NodeActive)
	rapid.Check(t, func(rt *rapid.T) {
		at := now
		keys := map[string]*keyring.SigningKey{}
		revoked := map[string]bool{}
		pick := func(rt *rapid.T) *keyring.SigningKey {
			return keys[keyring.SigningKID(keyring.SigningSession, public(fmt.Sprint("s", rapid.IntRange(0, 4).Draw(rt, "key"))))]
		}
		on := func(do func(k keyring.SigningKey) ([]keyring.SigningKey, error)) func(*rapid.T) {
			return func(rt *rapid.T) {
				k := pick(rt)
				if k == nil {
					return
				}
				changed, err := do(*k)
				if err != nil {
					return
				}
				for _, c := range changed {
					keys[c.KID] = &c
				}
			}
		}
		one := func(k keyring.SigningKey, err error) ([]keyring.SigningKey, error) {
			return []keyring.SigningKey{k}, err
		}
		rt.Repeat(map[string]func(*rapid.T){
			"announce": func(rt *rapid.T) {
				k, err := keyring.AnnounceSessionKey(n, public(fmt.Sprint("s", rapid.IntRange(0, 4).Draw(rt, "key"))), keys, at)
				if err == nil {
					keys[k.KID] = &k
				}
			},
			"time passes": func(*rapid.T) { at = at.Add(40 * time.Minute) },
			"promote":     on(func(k keyring.SigningKey) ([]keyring.SigningKey, error) { return keyring.Promote(k, keys, at) }),
			"stop":        on(func(k keyring.SigningKey) ([]keyring.SigningKey, error) { return one(keyring.StopSigning(k, at)) }),
			"sweep": on(func(k keyring.SigningKey) ([]keyring.SigningKey, error) {
				after, _ := keyring.SweepSigningKey(k, k.StateSince, at)
				return one(after, nil)
			}),
			"destroy": on(func(k keyring.SigningKey) ([]keyring.SigningKey, error) { return one(keyring.DestroySigningKey(k, at)) }),
			"revoke": on(func(k keyring.SigningKey) ([]keyring.SigningKey, error) {
				after, err := keyring.RevokeSigningKey(k, "", at)
				if err == nil {
					revoked[k.KID] = true
				}
				return one(after, err)
			}),
			"": func(rt *rapid.T) {
				count := map[keyring.SigningState]int{}
				for _, k := range keys {
					count[k.State]++
					if revoked[k.KID] && k.State != keyring.SigningRevoked {
						rt.Fatalf("revoked → %s", k.State)
					}
				}
				if count[keyring.SigningActive] > 1 || count[keyring.SigningAnnounced] > 1 {
					rt.Fatalf("%d active, %d announced", count[keyring.SigningActive], count[keyring.SigningAnnounced])
				}
			},
		})
	})
}
