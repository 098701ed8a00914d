package node

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/iapmesh/iapmesh/cluster/replica"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// openReplica opens what a node that hosts no state follows by.
func (a *assembly) openReplica(context.Context) error {
	introduced := &introductions{assembly: a}
	sources := &sources{assembly: a, introduced: introduced}
	r, err := replica.Open(replica.Config{
		Dir: filepath.Join(a.config.DataDir, replicaDir), Seal: a.id.sealer, MeshID: a.id.public.MeshID, Dial: sources.dial,
		OnPong: func(asked time.Time, at store.Revision, age time.Duration) { a.freshness.Answered(asked, at, age) },
		Logger: a.logger, Registerer: a.registry,
	})
	if err != nil {
		return err
	}
	a.engine = r
	a.base = append(a.base, part{"replica", r.Run}, part{"introductions", introduced.Run})
	return nil
}

// sources picks the control node to follow: those of this region first, the next one after each break.
type sources struct {
	*assembly
	introduced *introductions
	mu         sync.Mutex
	next       int // guarded by mu
}

func (s *sources) dial(context.Context) (iapmeshv1.MeshServiceClient, string, error) {
	known := s.id.controlNodes()
	if v := s.source.Load(); v != nil {
		if c := s.introduced.carrier(v); c != nil {
			client, err := c.link.client(c.node)
			return client, c.node.NodeID, err
		}
		known = nil
		for _, n := range control.Nodes(v, "") {
			known = append(known, controlNode{NodeID: n.NodeId, Region: n.Region, Address: n.Address})
		}
	}
	if len(known) == 0 {
		return nil, "", fault.New(fault.Unavailable, "no control node is known")
	}
	near := slices.Clone(known)
	slices.SortStableFunc(near, func(x, y controlNode) int { return s.distance(x) - s.distance(y) })
	s.mu.Lock()
	pick := near[s.next%len(near)]
	s.next++
	s.mu.Unlock()
	client, err := s.link.client(pick)
	return client, pick.NodeID, err
}

func (s *sources) distance(n controlNode) int {
	if n.Region == s.config.Region {
		return 0
	}
	return 1
}

// newFollowServer makes what streams the state to nodes that follow this one.
func (a *assembly) newFollowServer() (*replica.Server, error) {
	return replica.NewServer(replica.ServerConfig{
		Reader: a.store, MeshID: a.id.public.MeshID, Scope: a.scope, Recheck: a.mayFollow, Own: state.NodePath, Age: a.freshness.Age, Leader: a.store.Leader,
		Logger: a.logger, Registerer: a.registry,
	})
}

// scope says which keys a node may hold: everything but the audiences that it is no member of, their secrets, and the receipts,
// which only a leader reads.
func (a *assembly) scope(ctx context.Context, node string, at store.Revision) (version string, admit func(key string) bool, err error) {
	v, err := a.source.WaitRevision(ctx, at)
	if err != nil {
		return "", nil, err
	}
	var names []string
	for name, audience := range v.Keyring.Audiences {
		if seal.IsMember(*audience, node) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, "\n"), func(key string) bool {
		if strings.HasPrefix(key, state.PrefixReceipt) {
			return false
		}
		if name, ok := strings.CutPrefix(key, state.PrefixAudience); ok {
			return slices.Contains(names, name)
		}
		if secret, ok := strings.CutPrefix(key, state.PrefixSecret); ok {
			i := strings.LastIndexByte(secret, '/') // an audience's name holds slashes, a secret's none
			return i > 0 && slices.Contains(names, secret[:i])
		}
		return true
	}, nil
}

// mayFollow ends the stream of a node that the view of now no longer trusts, or that has lapsed: it has to recover first.
func (a *assembly) mayFollow(node string) error {
	v := a.source.Load()
	if v == nil {
		return fault.New(fault.Unavailable, "this node has no view of the mesh yet")
	}
	if n := v.Keyring.Nodes[node]; n == nil || !n.Trusted() || n.State == keyring.NodeLapsed {
		return fault.New(fault.Denied, "node %s may not follow", node)
	}
	return nil
}
