package keyring

import "strings"

// SecretHandoff names the secret of audience proxies from which nodes derive the keys that protect sign-ins in progress and
// hand-off tickets: 32 bytes, made by the leader.
const SecretHandoff = "handoff"

// UserSecret is under which name an operator's secret, such as an identity provider's client secret, lies in audience proxies:
// apart from those that the leader makes.
func UserSecret(name string) string { return userSecret + name }

const userSecret = "user-"

// IsUserSecret reports whether a secret of audience proxies is an operator's.
func IsUserSecret(name string) bool { return strings.HasPrefix(name, userSecret) }

// SecretGossipRing names the secret of audience gossip: 32-byte keys, one after another, of which the first encrypts.
const SecretGossipRing = "ring"
