package sink

import (
	"context"
	"errors"
	"maps"
	"net/http"

	"github.com/hashicorp/vault/api"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// vaultField is the field that holds the key where the configuration names none.
const vaultField = "key"

// vault keeps the secret as one field of a secret of a KV version 2 engine. The other fields stay, and a write that somebody else's
// overtook is refused by check-and-set, where the token may read; a token that may only write replaces the whole secret.
type vault struct{ Vault }

// Put implements Sink.
func (v vault) Put(ctx context.Context, secret keyring.ProvisioningSecret) error {
	client, err := v.client()
	if err != nil {
		return fault.New(fault.Invalid, "vault: %w", err)
	}
	field := v.Field
	if field == "" {
		field = vaultField
	}
	kv := client.KVv2(v.Mount)
	data, options := map[string]any{}, []api.KVOption(nil)
	have, err := kv.Get(ctx, v.Path)
	readable := true
	switch {
	case errors.Is(err, api.ErrSecretNotFound):
		options = append(options, api.WithCheckAndSet(0))
	case status(err) == http.StatusForbidden:
		readable = false
	case err != nil:
		return v.failed(err)
	default:
		maps.Copy(data, have.Data)
		if data[field] == secret.String() {
			return nil // an earlier attempt got as far
		}
		if have.VersionMetadata != nil {
			options = append(options, api.WithCheckAndSet(have.VersionMetadata.Version))
		}
	}
	data[field] = secret.String()
	written, err := kv.Put(ctx, v.Path, data, options...)
	if err != nil {
		return v.failed(err)
	}
	if !readable || written.VersionMetadata == nil {
		return nil
	}
	back, err := kv.GetVersion(ctx, v.Path, written.VersionMetadata.Version)
	if err == nil && back.Data[field] != secret.String() {
		err = errReadBack
	}
	if err != nil {
		return v.failed(err)
	}
	return nil
}

// client is made anew each time: the token may have been renewed. What the environment says of Vault is overridden or left out.
func (v vault) client() (*api.Client, error) {
	token, err := v.Token.Read()
	if err != nil {
		return nil, err
	}
	h, err := httpClient(v.CAFile)
	if err != nil {
		return nil, err
	}
	client, err := api.NewClient(&api.Config{Address: v.Address, HttpClient: h, MaxRetries: 2, DisableRedirects: true})
	if err != nil {
		return nil, err
	}
	client.SetToken(token)
	client.ClearNamespace()
	if v.Namespace != "" {
		client.SetNamespace(v.Namespace)
	}
	return client, nil
}

func (v vault) failed(err error) error {
	kind := fault.Unavailable
	if status(err) == http.StatusForbidden {
		kind = fault.Denied
	}
	return fault.New(kind, "vault %s/%s: %w", v.Mount, v.Path, err)
}

// status is the HTTP status by which Vault refused; 0: it did not.
func status(err error) int {
	var refused *api.ResponseError
	if errors.As(err, &refused) {
		return refused.StatusCode
	}
	return 0
}
