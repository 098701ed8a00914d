package node

import (
	"context"
	"crypto/ed25519"
	"log/slog"

	"github.com/iapmesh/iapmesh/node/state"
)

// RotationLeader is the leader as rotation sees it, asked by the identity in a data directory.
func RotationLeader(ctx context.Context, dataDir string) (interface {
	ProposeSuccessor(ctx context.Context, key string, public ed25519.PublicKey) error
	CompleteRotation(ctx context.Context, key, successor string) error
}, error) {
	id, err := readIdentity(ctx, &Config{DataDir: dataDir})
	if err != nil {
		return nil, err
	}
	dialer, err := id.dialer(Env{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	nobody := func() (id, address string) { return "", "" }
	return rotationLeader{&link{dialer: dialer, source: new(state.Source), known: id.public.ControlNodes, hint: nobody, logger: slog.New(slog.DiscardHandler)}}, nil
}
