package kms

import (
	"context"
	"errors"
	"net/url"
	"os"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"gocloud.dev/secrets"
	"gocloud.dev/secrets/azurekeyvault"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// azureOpener opens azurekeyvault://VAULT.vault.azure.net/keys/NAME/VERSION[?algorithm=RSA-OAEP-256]. The version is required: the
// service decrypts by the newest one if none is named, so the next rotation of the key would close the directory. Credentials are
// those of the environment, a workload identity, or else the machine's managed identity; no developer's tools are run.
type azureOpener struct{ Config }

// OpenKeeperURL implements secrets.KeeperURLOpener.
func (o azureOpener) OpenKeeperURL(ctx context.Context, u *url.URL) (*secrets.Keeper, error) {
	if parts := strings.Split(strings.Trim(u.Path, "/"), "/"); len(parts) != 3 || parts[0] != "keys" {
		return nil, fault.New(fault.Invalid, "want azurekeyvault://VAULT.vault.azure.net/keys/NAME/VERSION: without the version, it would not open after the key's next rotation")
	}
	client, idle := o.client(ctx, nil)
	options := policy.ClientOptions{Transport: client, Retry: policy.RetryOptions{MaxRetries: -1}}
	var credential azcore.TokenCredential
	opener := &azurekeyvault.URLOpener{ClientMaker: func(vault string) (_ *azkeys.Client, err error) {
		if credential, err = azureCredential(options); err != nil {
			return nil, err
		}
		return azkeys.NewClient(vault, credential, &azkeys.ClientOptions{ClientOptions: options})
	}}
	keeper, err := opener.OpenKeeperURL(ctx, u)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s", scrub(err, azureSecrets()))
	}
	g := &guard{inner: keeper, timeout: o.Timeout, status: azureStatus, close: idle, secrets: azureSecrets()}
	return g.keeper(), nil
}

func azureSecrets() []string {
	return fromEnvironment("AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PASSWORD")
}

// azureCredential is the first that the environment configures.
func azureCredential(options policy.ClientOptions) (azcore.TokenCredential, error) {
	if c, err := azidentity.NewEnvironmentCredential(&azidentity.EnvironmentCredentialOptions{ClientOptions: options}); err == nil {
		return c, nil
	}
	if c, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{ClientOptions: options}); err == nil {
		return c, nil
	}
	managed := azidentity.ManagedIdentityCredentialOptions{ClientOptions: options}
	if id := os.Getenv("AZURE_CLIENT_ID"); id != "" {
		managed.ID = azidentity.ClientID(id)
	}
	return azidentity.NewManagedIdentityCredential(&managed)
}

func azureStatus(err error) (fault.Kind, bool) {
	var answer *azcore.ResponseError
	if errors.As(err, &answer) {
		return kindOfStatus(answer.StatusCode), true
	}
	var auth *azidentity.AuthenticationFailedError
	if errors.As(err, &auth) && auth.RawResponse != nil {
		if kind := kindOfStatus(auth.RawResponse.StatusCode); kind != fault.Invalid {
			return kind, true
		}
		return fault.Denied, true // Entra answers 400 to a credential that it does not take
	}
	return 0, false
}
