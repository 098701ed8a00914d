// Package kms opens the keepers of gocloud.dev/secrets that a service holds: awskms://, gcpkms://, azurekeyvault:// and
// hashivault://. keyring/seal has them wrap the data key of a data directory.
//
// Invariants. Nothing of a cloud is touched before a URL of it is opened: no client, no credential, no lookup. Every call ends within
// a timeout, reads a bounded answer, and goes over TLS unless it stays on the machine. No error quotes a credential or what is
// wrapped, and each says by its kind whether waiting may cure it: Unavailable. What is wrapped, by how many, and when to try again
// is for keyring/seal and node.
package kms

import (
	"context"
	"errors"
	"net/http"
	"time"

	"gocloud.dev/gcerrors"
	"gocloud.dev/secrets"
	"gocloud.dev/secrets/awskms"
	"gocloud.dev/secrets/azurekeyvault"
	"gocloud.dev/secrets/gcpkms"
	"gocloud.dev/secrets/hashivault"
	"google.golang.org/api/option"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// maxOutput bounds what a wrap or a data key can be.
const maxOutput = 8 << 10

// callTimeout bounds one call, its retries and the fetching of credentials included.
const callTimeout = 10 * time.Second

// Config is what a test changes. The zero value is the real world.
type Config struct {
	Timeout   time.Duration         // of a call; 0: 10 s
	Transport http.RoundTripper     // to AWS, Azure and Vault; nil: one like http.DefaultTransport
	GCP       []option.ClientOption // in place of the application's default credentials
}

// Openers returns the openers by the scheme of their URLs. It opens nothing.
func Openers(c Config) map[string]secrets.KeeperURLOpener {
	if c.Timeout == 0 {
		c.Timeout = callTimeout
	}
	return map[string]secrets.KeeperURLOpener{
		awskms.Scheme:        awsOpener{c},
		azurekeyvault.Scheme: azureOpener{c},
		gcpkms.Scheme:        gcpOpener{c},
		hashivault.Scheme:    vaultOpener{c},
	}
}

// guard is a driver's keeper that keeps the invariants.
type guard struct {
	inner   *secrets.Keeper
	timeout time.Duration
	status  func(error) (fault.Kind, bool) // of a service's own errors
	secrets []string                       // that no error may hold
	close   func() error                   // of what the opener made; may be nil
}

func (g *guard) keeper() *secrets.Keeper { return secrets.NewKeeper(g) }

// Encrypt implements driver.Keeper.
func (g *guard) Encrypt(ctx context.Context, plaintext []byte) ([]byte, error) {
	return g.call(ctx, g.inner.Encrypt, plaintext, encodings(plaintext))
}

// Decrypt implements driver.Keeper.
func (g *guard) Decrypt(ctx context.Context, ciphertext []byte) ([]byte, error) {
	return g.call(ctx, g.inner.Decrypt, ciphertext, nil)
}

func (g *guard) call(ctx context.Context, do func(context.Context, []byte) ([]byte, error), in []byte, hide []string) (out []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	defer func() {
		// Drivers take the shape of an answer for granted. Whatever stands there in place of the service may be met again later.
		if recover() != nil {
			out, err = nil, fault.New(fault.Unavailable, "it answers what is not understood")
		}
	}()
	if out, err = do(ctx, in); err != nil {
		return nil, g.explain(ctx, err, hide)
	}
	switch {
	case len(out) == 0:
		return nil, fault.New(fault.Unavailable, "it answers what is not understood")
	case len(out) > maxOutput:
		return nil, fault.New(fault.Invalid, "it answers %d bytes, more than %d", len(out), maxOutput)
	}
	return out, nil
}

// Close implements driver.Keeper.
func (g *guard) Close() error {
	err := g.inner.Close()
	if g.close != nil {
		err = errors.Join(err, g.close())
	}
	return err
}

// ErrorAs implements driver.Keeper.
func (g *guard) ErrorAs(err error, target any) bool { return g.inner.ErrorAs(err, target) }

// ErrorCode implements driver.Keeper. The kind is in the error.
func (g *guard) ErrorCode(error) gcerrors.ErrorCode { return gcerrors.Unknown }
