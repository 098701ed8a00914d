package fault

import (
	"context"
	"errors"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Code maps a kind to its gRPC code.
func (k Kind) Code() codes.Code {
	switch k {
	case Invalid:
		return codes.InvalidArgument
	case Unauthenticated:
		return codes.Unauthenticated
	case Denied:
		return codes.PermissionDenied
	case NotFound:
		return codes.NotFound
	case Conflict:
		return codes.Aborted
	case Exhausted:
		return codes.ResourceExhausted
	case Unavailable:
		return codes.Unavailable
	}
	return codes.Internal
}

// HTTPStatus maps a kind to its HTTP status.
func (k Kind) HTTPStatus() int {
	switch k {
	case Invalid:
		return http.StatusBadRequest
	case Unauthenticated:
		return http.StatusUnauthorized
	case Denied:
		return http.StatusForbidden
	case NotFound:
		return http.StatusNotFound
	case Conflict:
		return http.StatusConflict
	case Exhausted:
		return http.StatusTooManyRequests
	case Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// FromCode is the inverse of Code; what gRPC alone knows is folded into the nearest kind.
func FromCode(c codes.Code) Kind {
	switch c {
	case codes.InvalidArgument, codes.OutOfRange, codes.FailedPrecondition:
		return Invalid
	case codes.Unauthenticated:
		return Unauthenticated
	case codes.PermissionDenied:
		return Denied
	case codes.NotFound:
		return NotFound
	case codes.Aborted, codes.AlreadyExists:
		return Conflict
	case codes.ResourceExhausted:
		return Exhausted
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return Unavailable
	}
	return Internal
}

// ToStatus turns an error into a gRPC status error: the kind's code and the error's text. A status error passes unchanged.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	var carried *Error
	if _, ok := status.FromError(err); ok && !errors.As(err, &carried) {
		return err
	}
	return status.Error(KindOf(err).Code(), err.Error())
}

// FromStatus turns a gRPC status error back into an error of a kind, with the server's text and no "rpc error:" before it.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	return New(FromCode(s.Code()), "%s", s.Message())
}

// UnaryServer is the interceptor that gives every unary answer its code.
func UnaryServer(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	return resp, ToStatus(err)
}

// StreamServer is the same for streams.
func StreamServer(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return ToStatus(handler(srv, ss))
}
