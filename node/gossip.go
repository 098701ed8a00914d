package node

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/iapmesh/iapmesh/cluster/gossip"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
)

// talk lets the node take part in gossip, where it listens for it.
func (a *assembly) talk(context.Context) error {
	if a.config.Listen.Gossip == "" {
		return nil
	}
	a.front = append(a.front, part{"gossip", a.runGossip})
	return nil
}

// runGossip waits for a view that holds the ring, then takes part until ctx ends.
func (a *assembly) runGossip(ctx context.Context) error {
	v, err := a.source.Wait(ctx, func(v *state.View) bool { return a.gossipKeys(v) != nil })
	if err != nil {
		return nil // ctx ended before there was a ring
	}
	listener, packets, err := gossip.Listen(a.config.Listen.Gossip)
	if err != nil {
		return err
	}
	mesh, err := gossip.New(gossip.Config{
		MeshID: a.id.public.MeshID, WAN: a.config.HasRole(keyring.RoleControl), Listener: listener, PacketConn: packets,
		Self: gossip.Self{
			NodeID: a.id.public.NodeID, Region: a.config.Region, Roles: state.RolesProto(a.config.roles()),
			MeshAddr: a.addresses.Mesh, ProxyAddr: a.addresses.Proxy, Version: Version(),
		},
		Advertise: a.addresses.Gossip, Keys: a.gossipKeys(v), Seeds: a.gossipSeeds, NetDial: a.env.NetDial, Logger: a.logger, Registerer: a.registry,
		LeaveTimeout: 2 * time.Second, // enough for a good-bye; where everybody stops at once, nobody is left to hear it
	})
	if err != nil {
		return err
	}
	a.gossip.Store(mesh)
	a.turnGossipKeys(a.source.Load()) // the ring may have turned since v
	return mesh.Run(ctx)
}

// gossipKeys are the ring's keys in a view; nil if this node cannot open it yet.
func (a *assembly) gossipKeys(v *state.View) [][]byte {
	ring, err := a.member.Open(v.Keyring, keyring.AudienceGossip, keyring.SecretGossipRing)
	var keys [][]byte
	if err == nil {
		keys, err = keyring.ParseRing(ring)
	}
	if err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Denied) { // no member yet: a later view says otherwise
		a.logger.Warn("ring of gossip keys not opened", "error", err)
	}
	return keys
}

// ringInUse is which ring this node gossips by.
type ringInUse struct {
	mu         sync.Mutex
	ciphertext []byte // guarded by mu
}

// turnGossipKeys follows the ring of each view, before the view counts as served: the next step waits for that.
func (a *assembly) turnGossipKeys(v *state.View) {
	mesh := a.gossip.Load()
	if mesh == nil {
		return
	}
	a.ring.mu.Lock()
	defer a.ring.mu.Unlock()
	secret := v.Keyring.Secrets[keyring.AudienceGossip+"/"+keyring.SecretGossipRing]
	if secret == nil || bytes.Equal(secret.Ciphertext, a.ring.ciphertext) {
		return
	}
	keys := a.gossipKeys(v)
	if keys == nil {
		return
	}
	if err := mesh.SetKeys(keys); err != nil {
		a.logger.Error("gossip keys not turned", "error", err)
		return
	}
	a.ring.ciphertext = secret.Ciphertext
}

// gossipSeeds are the addresses of a pool's nodes, by the view.
func (a *assembly) gossipSeeds(pool string) []string {
	v := a.source.Load()
	if v == nil {
		return nil
	}
	var seeds []string
	for _, n := range v.Keyring.Nodes {
		if n.ID == a.id.public.NodeID || !n.Trusted() || n.Addresses.Gossip == "" {
			continue
		}
		if (pool == gossip.PoolRegion && n.Region == a.config.Region) || (pool == gossip.PoolWAN && n.HasRole(keyring.RoleControl)) {
			seeds = append(seeds, n.Addresses.Gossip)
		}
	}
	return seeds
}
