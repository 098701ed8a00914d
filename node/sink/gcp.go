package sink

import (
	"context"
	"errors"
	"hash/crc32"
	"net/http"
	"time"

	secretmanager "cloud.google.com/go/secretmanager/apiv1"
	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"github.com/googleapis/gax-go/v2"
	"github.com/googleapis/gax-go/v2/apierror"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
	"google.golang.org/api/option"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// gcp keeps the secret as the newest version of a secret in Google Secret Manager. The secret is an operator's to create, and what
// becomes of old versions is for the secret's own settings.
type gcp struct{ GCP }

// Put implements Sink.
func (g gcp) Put(ctx context.Context, secret keyring.ProvisioningSecret) error {
	client, err := g.client(ctx)
	if err != nil {
		return fault.New(fault.Invalid, "gcp_secret_manager: %w", err)
	}
	defer func() { _ = client.Close() }() // it holds nothing but idle connections
	// Adding a version twice makes two: look first whether an earlier attempt got as far. A role that may not read adds it again.
	if have, err := g.access(ctx, client, g.Secret+"/versions/latest"); err == nil && have == secret.String() {
		return nil
	}
	data := []byte(secret.String())
	sum := checksum(data)
	written, err := client.AddSecretVersion(ctx, &secretmanagerpb.AddSecretVersionRequest{
		Parent: g.Secret, Payload: &secretmanagerpb.SecretPayload{Data: data, DataCrc32C: &sum},
	}, again())
	if err != nil {
		return g.failed(err)
	}
	back, err := g.access(ctx, client, written.Name)
	switch {
	case httpCode(err) == http.StatusForbidden: // a role that may add and not read is a good one
		return nil
	case err == nil && back != secret.String():
		err = errReadBack
	}
	if err != nil {
		return g.failed(err)
	}
	return nil
}

func (g gcp) access(ctx context.Context, client *secretmanager.Client, version string) (string, error) {
	resp, err := client.AccessSecretVersion(ctx, &secretmanagerpb.AccessSecretVersionRequest{Name: version}, again())
	if err != nil {
		return "", err
	}
	p := resp.GetPayload()
	if p.GetDataCrc32C() != checksum(p.GetData()) {
		return "", errReadBack
	}
	return string(p.GetData()), nil
}

// again tries once more, soon, what the server could not do just now: the longer waits are node/rotate's.
func again() gax.CallOption {
	return gax.WithRetry(func() gax.Retryer {
		return gax.OnHTTPCodes(gax.Backoff{Initial: 200 * time.Millisecond, Max: 5 * time.Second, Multiplier: 3},
			http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusTooManyRequests)
	})
}

// checksum is CRC-32C, by which Google finds damage on the way.
func checksum(data []byte) int64 {
	return int64(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
}

func (g gcp) client(ctx context.Context) (*secretmanager.Client, error) {
	found, err := google.FindDefaultCredentials(ctx, "https://www.googleapis.com/auth/cloud-platform")
	if err != nil {
		return nil, err
	}
	h, err := httpClient(g.CAFile)
	if err != nil {
		return nil, err
	}
	h.Transport = &oauth2.Transport{Source: found.TokenSource, Base: h.Transport}
	options := []option.ClientOption{option.WithHTTPClient(h)}
	if g.Endpoint != "" {
		options = append(options, option.WithEndpoint(g.Endpoint))
	}
	return secretmanager.NewRESTClient(ctx, options...)
}

func (g gcp) failed(err error) error {
	switch httpCode(err) {
	case http.StatusNotFound:
		return fault.New(fault.Invalid, "gcp_secret_manager %s: there is no such secret: create it first", g.Secret)
	case http.StatusForbidden:
		return fault.New(fault.Denied, "gcp_secret_manager %s: %w", g.Secret, err)
	}
	return fault.New(fault.Unavailable, "gcp_secret_manager %s: %w", g.Secret, err)
}

// httpCode is the status by which Google refused; 0: it did not.
func httpCode(err error) int {
	var refused *apierror.APIError
	if errors.As(err, &refused) {
		return refused.HTTPCode()
	}
	return 0
}
