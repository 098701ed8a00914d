// Package sink hands a provisioning key's secret to where it is kept: a file, a command, a secret manager. That is its one job; when,
// and what becomes of the key, is for node/rotate.
//
// Invariants. Put returns nil only once the secret is kept; where the sink can be read, it was read back. Putting the same secret again
// changes nothing that matters. The secret goes to the sink alone: it is in no argument, no environment, no log line and no error, also
// where whoever answers quotes it. A sink is this node's own configuration and is never replicated.
package sink

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// timeout bounds one Put.
const timeout = time.Minute

// A Sink is where a key's secret is kept.
type Sink interface {
	// Put stores the secret. Invalid and Denied: somebody must change something first; else it may be tried again.
	Put(ctx context.Context, secret keyring.ProvisioningSecret) error
}

// Kind is what a sink is, as metrics and logs name it.
type Kind string

// The kinds of sinks.
const (
	KindFile    Kind = "file"
	KindCommand Kind = "command"
	KindAWS     Kind = "aws_secrets_manager"
	KindGCP     Kind = "gcp_secret_manager"
	KindVault   Kind = "vault"
)

// New makes the sink that a configuration, which is valid, describes.
func New(c Config) (Sink, error) {
	if err := c.Validate("sink"); err != nil {
		return nil, err
	}
	var s Sink
	switch c.Kind() {
	case KindFile:
		s = file{c.File}
	case KindCommand:
		s = command{c.Command}
	case KindAWS:
		s = aws{c.AWS}
	case KindGCP:
		s = gcp{c.GCP}
	default:
		s = vault{c.Vault}
	}
	return careful{s}, nil
}

// careful bounds the time of a sink, and keeps the secret out of its errors.
type careful struct{ sink Sink }

// Put implements Sink.
func (c careful) Put(ctx context.Context, secret keyring.ProvisioningSecret) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return redact(c.sink.Put(ctx, secret), secret)
}

// redact replaces an error that quotes the secret: whole, in part, or in an encoding that the way to a sink uses.
func redact(err error, secret keyring.ProvisioningSecret) error {
	if err == nil {
		return nil
	}
	text, whole := err.Error(), secret.String()
	_, body, _ := strings.Cut(strings.TrimPrefix(whole, "iapk_"), "_") // the id before it is public
	for _, form := range []string{body, hex.EncodeToString([]byte(whole)), base64.StdEncoding.EncodeToString([]byte(whole)), string(secret.PrivateKey().Seed())} {
		for i := 0; i+fragment <= len(form); i++ {
			if strings.Contains(text, form[i:i+fragment]) {
				return fault.New(fault.KindOf(err), "the error is withheld: it quotes the key")
			}
		}
	}
	return err
}

// fragment is how many characters of a secret in a row may be in no error.
const fragment = 12

// errReadBack is what a sink says that gave something else back.
var errReadBack = errors.New("what was read back is not what was written")
