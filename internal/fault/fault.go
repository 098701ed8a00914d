// Package fault holds the closed set of error kinds that iapmesh knows, and maps them, once, to gRPC codes and to HTTP
// statuses. An error that crosses a boundary carries a kind; one that carries none is Internal.
package fault

import (
	"context"
	"errors"
	"fmt"
)

// Kind says what a caller can do about an error.
type Kind uint8

// The kinds. Internal is the zero value, so that a forgotten kind is never mistaken for a milder one.
const (
	Internal        Kind = iota // a defect of ours, or of what we stand on
	Invalid                     // the request is wrong, and will be wrong again
	Unauthenticated             // who asks is not proved
	Denied                      // who asks is known, and may not
	NotFound                    // what is asked for is not there
	Conflict                    // somebody else changed it first: read again, decide again
	Exhausted                   // a limit is reached
	Unavailable                 // not now: try again, perhaps elsewhere
)

// Kinds lists every kind.
func Kinds() []Kind {
	return []Kind{Internal, Invalid, Unauthenticated, Denied, NotFound, Conflict, Exhausted, Unavailable}
}

func (k Kind) String() string {
	switch k {
	case Internal:
		return "internal"
	case Invalid:
		return "invalid"
	case Unauthenticated:
		return "unauthenticated"
	case Denied:
		return "denied"
	case NotFound:
		return "not found"
	case Conflict:
		return "conflict"
	case Exhausted:
		return "exhausted"
	case Unavailable:
		return "unavailable"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Error is an error of a kind. Its text is meant for the caller: it names no secret.
type Error struct {
	Kind Kind
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// New makes an error of a kind; format and args as in fmt.Errorf, %w included.
func New(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Err: fmt.Errorf(format, args...)}
}

// Wrap gives err a kind, whatever kind it had. A nil err stays nil.
func Wrap(kind Kind, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: kind, Err: err}
}

// KindOf returns the outermost kind in err's chain. An error without a kind is Internal, except a context's: Unavailable.
func KindOf(err error) Kind {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return Unavailable
	}
	return Internal
}

// Is reports whether err is of the kind. No kind matches a nil error.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }
