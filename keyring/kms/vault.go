package kms

import (
	"context"
	"errors"
	"net/http"
	"net/url"

	"github.com/hashicorp/vault/api"
	"gocloud.dev/secrets"
	"gocloud.dev/secrets/hashivault"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// vaultOpener opens hashivault://KEY[?engine=transit]: a key of Vault's transit engine. The environment says where Vault is and as
// whom to come, as for Vault's own tools: VAULT_ADDR (or VAULT_SERVER_URL), VAULT_TOKEN (or VAULT_SERVER_TOKEN), VAULT_CACERT,
// VAULT_NAMESPACE and so on.
type vaultOpener struct{ Config }

// OpenKeeperURL implements secrets.KeeperURLOpener.
func (o vaultOpener) OpenKeeperURL(ctx context.Context, u *url.URL) (*secrets.Keeper, error) {
	config := api.DefaultConfig() // reads the environment
	if config.Error != nil {
		return nil, fault.New(fault.Invalid, "%s", scrub(config.Error, vaultSecrets()))
	}
	addresses := fromEnvironment("VAULT_SERVER_URL", "VAULT_ADDR", "VAULT_AGENT_ADDR")
	if len(addresses) == 0 {
		return nil, fault.New(fault.Invalid, "VAULT_ADDR is not set")
	}
	config.Address = addresses[0]
	// The driver gives its requests no context: what bounds them is the client.
	config.Timeout, config.MaxRetries = o.Timeout, 0
	client, idle := o.client(ctx, config.HttpClient.Transport)
	config.HttpClient = &http.Client{Transport: client.Transport, CheckRedirect: client.CheckRedirect}
	vault, err := api.NewClient(config)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s", scrub(err, vaultSecrets()))
	}
	if tokens := fromEnvironment("VAULT_SERVER_TOKEN", "VAULT_TOKEN"); len(tokens) > 0 {
		vault.SetToken(tokens[0])
	}
	keeper, err := (&hashivault.URLOpener{Client: vault}).OpenKeeperURL(ctx, u)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s", scrub(err, vaultSecrets()))
	}
	g := &guard{inner: keeper, timeout: o.Timeout, status: vaultStatus, close: idle, secrets: vaultSecrets()}
	return g.keeper(), nil
}

func vaultSecrets() []string { return fromEnvironment("VAULT_SERVER_TOKEN", "VAULT_TOKEN") }

func vaultStatus(err error) (fault.Kind, bool) {
	var answer *api.ResponseError
	if errors.As(err, &answer) {
		return kindOfStatus(answer.StatusCode), true
	}
	return 0, false
}
