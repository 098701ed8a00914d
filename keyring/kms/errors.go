package kms

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"os"
	"strings"

	"github.com/iapmesh/iapmesh/internal/fault"
)

const maxErrorText = 400

// explain gives a driver's error a kind and a text that may be logged. What nobody says to be final is taken to pass: no credentials
// yet, no route yet, no answer.
func (g *guard) explain(ctx context.Context, err error, hide []string) error {
	kind := fault.Unavailable
	var own *fault.Error
	if errors.As(err, &own) {
		kind = own.Kind
	} else if k, ok := g.status(err); ok {
		kind = k
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fault.New(fault.Unavailable, "no answer within %v: %s", g.timeout, scrub(err, g.secrets, hide))
	}
	return fault.New(kind, "%s", scrub(err, g.secrets, hide))
}

// scrub is an error's text on one line, cut to a length, without what must not be logged: services and what stands before them are
// free to repeat what they were sent.
func scrub(err error, secrets ...[]string) string {
	var several interface{ Unwrap() []error } // gocloud.dev's own, which puts a code before the driver's error
	if errors.As(err, &several) {
		if inner := several.Unwrap(); len(inner) > 0 && inner[0] != nil {
			err = inner[0]
		}
	}
	text := err.Error()
	for _, list := range secrets {
		for _, s := range list {
			text = strings.ReplaceAll(text, s, "(withheld)")
		}
	}
	text = strings.ToValidUTF8(strings.Join(strings.Fields(text), " "), "?")
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "") + "…"
	}
	return text
}

// fromEnvironment are credentials that an SDK takes from these variables.
func fromEnvironment(names ...string) []string {
	var out []string
	for _, name := range names {
		if value := strings.TrimSpace(os.Getenv(name)); value != "" {
			out = append(out, value)
		}
	}
	return out
}

// encodings are the ways in which a request may carry bytes.
func encodings(b []byte) []string {
	return []string{
		string(b), hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)),
		base64.StdEncoding.EncodeToString(b), base64.RawStdEncoding.EncodeToString(b),
		base64.URLEncoding.EncodeToString(b), base64.RawURLEncoding.EncodeToString(b),
	}
}

// kindOfStatus is what an HTTP status says about trying again.
func kindOfStatus(status int) fault.Kind {
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return fault.Denied
	case status == http.StatusNotFound:
		return fault.NotFound
	case status == http.StatusRequestTimeout, status == http.StatusTooManyRequests, status >= http.StatusInternalServerError, status < 400:
		return fault.Unavailable
	case status == 472, status == 473: // a Vault that stands by
		return fault.Unavailable
	}
	return fault.Invalid
}
