package node

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"path/filepath"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/rotate"
	"github.com/iapmesh/iapmesh/node/sink"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// rotateKeys makes what rotates the keys that this node is configured to rotate; on other nodes there is nothing to make.
func (a *assembly) rotateKeys(context.Context) error {
	if len(a.config.Rotate) == 0 {
		return nil
	}
	var jobs []rotate.Job
	for i, c := range a.config.Rotate {
		s, err := sink.New(c.Sink)
		if err != nil {
			return fmt.Errorf("rotate[%d]: %w", i, err)
		}
		jobs = append(jobs, rotate.Job{Key: c.Key, Kind: c.Sink.Kind(), Sink: s})
	}
	r, err := rotate.New(rotate.Config{
		Node: a.id.public.NodeID, Jobs: jobs, Leader: rotationLeader{a.link}, Keyring: a.keyring, Changed: a.source.Changed,
		Sealer: a.id.sealer, Dir: filepath.Join(a.config.DataDir, rotateDir), WriteFile: writeFile, Now: a.env.Now, Logger: a.logger, Registerer: a.registry,
	})
	if err != nil {
		return err
	}
	a.rotator = r
	a.base = append(a.base, part{"key rotation", r.Run})
	return nil
}

// keyring is the newest view's; nil while there is none.
func (a *assembly) keyring() *keyring.Snapshot {
	if v := a.source.Load(); v != nil {
		return v.Keyring
	}
	return nil
}

// rotationLeader takes rotations to whoever leads.
type rotationLeader struct{ link *link }

// ProposeSuccessor registers a successor's public half.
func (l rotationLeader) ProposeSuccessor(ctx context.Context, key string, public ed25519.PublicKey) error {
	return l.link.call(ctx, "propose a successor", func(ctx context.Context, c iapmeshv1.MeshServiceClient, o ...grpc.CallOption) error {
		_, err := c.ProposeSuccessor(ctx, &iapmeshv1.ProposeSuccessorRequest{KeyId: key, SuccessorPublicKey: public}, o...)
		return err
	})
}

// CompleteRotation makes a successor active.
func (l rotationLeader) CompleteRotation(ctx context.Context, key, successor string) error {
	return l.link.call(ctx, "complete a rotation", func(ctx context.Context, c iapmeshv1.MeshServiceClient, o ...grpc.CallOption) error {
		_, err := c.CompleteRotation(ctx, &iapmeshv1.CompleteRotationRequest{KeyId: key, SuccessorId: successor}, o...)
		return err
	})
}
