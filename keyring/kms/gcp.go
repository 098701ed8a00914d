package kms

import (
	"context"
	"net/url"

	cloudkms "cloud.google.com/go/kms/apiv1"
	"gocloud.dev/secrets"
	"gocloud.dev/secrets/gcpkms"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// gcpOpener opens gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K. Credentials are the application's default ones.
type gcpOpener struct{ Config }

// OpenKeeperURL implements secrets.KeeperURLOpener.
func (o gcpOpener) OpenKeeperURL(ctx context.Context, u *url.URL) (*secrets.Keeper, error) {
	// Whatever fetches tokens keeps the context that it was made with, so this one lasts as long as the keeper.
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	client, err := cloudkms.NewKeyManagementClient(ctx, append(o.GCP, option.WithGRPCDialOption(grpc.WithDefaultCallOptions(
		grpc.MaxCallRecvMsgSize(maxAnswer))))...)
	if err != nil {
		cancel()
		return nil, fault.New(fault.Unavailable, "%s", scrub(err)) // no credentials, perhaps not yet
	}
	keeper, err := (&gcpkms.URLOpener{Client: client}).OpenKeeperURL(ctx, u)
	if err != nil {
		cancel()
		_ = client.Close() // it has not connected
		return nil, fault.New(fault.Invalid, "%s", scrub(err))
	}
	g := &guard{inner: keeper, timeout: o.Timeout, status: gcpStatus, close: func() error {
		defer cancel()
		return client.Close()
	}}
	return g.keeper(), nil
}

func gcpStatus(err error) (fault.Kind, bool) {
	s, ok := status.FromError(err)
	if !ok {
		return 0, false
	}
	switch s.Code() {
	case codes.PermissionDenied, codes.Unauthenticated:
		return fault.Denied, true
	case codes.NotFound:
		return fault.NotFound, true
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented: // FailedPrecondition: a key that is disabled
		return fault.Invalid, true
	}
	return fault.Unavailable, true
}
