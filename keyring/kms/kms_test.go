package kms_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"gocloud.dev/secrets"
	"google.golang.org/grpc/codes"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring/kms"
)

// cloud is a service and how to reach it.
type cloud struct {
	*service
	config kms.Config
	url    string
	other  string // a key that is not there
	denied func() // from now on it takes no credentials
	secret string // no error may show it
}

// patience is how long a call may take where a test is not about that: a busy machine may stop for a while.
const patience = 5 * time.Minute

// clouds starts each service and sets the environment that its SDK reads.
func clouds(t *testing.T) map[string]*cloud {
	t.Helper()
	for _, name := range []string{ // of whoever runs the test
		"VAULT_SERVER_URL", "VAULT_SERVER_TOKEN", "VAULT_AGENT_ADDR", "VAULT_NAMESPACE", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL",
		"AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST", "HTTPS_PROXY", "HTTP_PROXY",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
	v, a, g, z := newVault(t), newAWS(t), newGCP(t), newAzure(t)
	t.Setenv("VAULT_ADDR", v.url)
	t.Setenv("VAULT_TOKEN", v.token)
	t.Setenv("AWS_ACCESS_KEY_ID", a.id)
	t.Setenv("AWS_SECRET_ACCESS_KEY", a.secret)
	t.Setenv("AZURE_TENANT_ID", azureTenant)
	t.Setenv("AZURE_CLIENT_ID", azureClient)
	t.Setenv("AZURE_CLIENT_SECRET", z.secret)
	awsURL := func(key string) string {
		return "awskms://" + key + "?region=" + a.region + "&context_mesh=test&endpoint=" + url.QueryEscape(a.url)
	}
	return map[string]*cloud{
		"vault": {&v.service, kms.Config{Timeout: patience}, "hashivault://mesh", "hashivault://nobody", func() { v.token = "another" }, v.token},
		"aws":   {&a.service, kms.Config{Timeout: patience}, awsURL("alias/mesh"), awsURL("alias/nobody"), func() { a.secret = "another" }, a.secret},
		"gcp": {&g.service, kms.Config{Timeout: patience, GCP: g.options}, "gcpkms://" + gcpKey, "gcpkms://" + gcpKey + "x",
			func() { g.code.Store(uint32(codes.PermissionDenied)) }, "nothing secret"},
		"azure": {&z.service, kms.Config{Timeout: patience, Transport: z.transport}, azureURL, strings.Replace(azureURL, "/keys/mesh/", "/keys/nobody/", 1),
			func() { z.secret = "another" }, z.secret},
	}
}

func open(t *testing.T, c kms.Config, raw string) (*secrets.Keeper, error) {
	t.Helper()
	mux := new(secrets.URLMux)
	for scheme, opener := range kms.Openers(c) {
		mux.RegisterKeeper(scheme, opener)
	}
	k, err := mux.OpenKeeper(t.Context(), raw)
	if err == nil {
		t.Cleanup(func() {
			if err := k.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return k, err
}

func mustOpen(t *testing.T, c kms.Config, raw string) *secrets.Keeper {
	t.Helper()
	k, err := open(t, c, raw)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestEachServiceWrapsAndUnwraps(t *testing.T) {
	key := bytes.Repeat([]byte{1, 2, 3, 4}, 8)
	for name, c := range clouds(t) {
		t.Run(name, func(t *testing.T) {
			wrapped, err := mustOpen(t, c.config, c.url).Encrypt(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(wrapped, key) || c.calls.Load() == 0 {
				t.Fatalf("wrapped %x by %d calls", wrapped, c.calls.Load())
			}
			got, err := mustOpen(t, c.config, c.url).Decrypt(t.Context(), wrapped)
			if err != nil || !bytes.Equal(got, key) {
				t.Fatalf("unwrapped %x: %v", got, err)
			}
			damaged := bytes.Clone(wrapped)
			damaged[len(damaged)-3] ^= 1
			if _, err := mustOpen(t, c.config, c.url).Decrypt(t.Context(), damaged); !fault.Is(err, fault.Invalid) {
				t.Errorf("a damaged wrap: %v: %v", fault.KindOf(err), err)
			}
		})
	}
}

func TestAnEncryptionContextIsPartOfTheWrap(t *testing.T) {
	c := clouds(t)["aws"]
	wrapped, err := mustOpen(t, c.config, c.url).Encrypt(t.Context(), make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Replace(c.url, "context_mesh=test", "context_mesh=other", 1)
	if _, err := mustOpen(t, c.config, other).Decrypt(t.Context(), wrapped); !fault.Is(err, fault.Invalid) {
		t.Errorf("it opens in another context: %v", err)
	}
}

func TestErrorsSayWhetherWaitingHelps(t *testing.T) {
	key := []byte("0123456789abcdefSECRETDATAKEY_32")
	for name, c := range clouds(t) {
		t.Run(name, func(t *testing.T) {
			wrapped, err := mustOpen(t, c.config, c.url).Encrypt(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			calls := func() []error {
				k := mustOpen(t, c.config, c.url)
				_, errEncrypt := k.Encrypt(t.Context(), key)
				_, errDecrypt := k.Decrypt(t.Context(), wrapped)
				return []error{errEncrypt, errDecrypt}
			}
			want := func(what string, kind fault.Kind, errs ...error) {
				t.Helper()
				for _, err := range errs {
					if !fault.Is(err, kind) {
						t.Errorf("%s: %v, want %v: %v", what, fault.KindOf(err), kind, err)
						continue
					}
					text := err.Error()
					for _, secret := range []string{c.secret, string(key), base64.StdEncoding.EncodeToString(key), base64.RawURLEncoding.EncodeToString(key), hex.EncodeToString(key)} {
						if strings.Contains(text, secret) {
							t.Errorf("%s: the error quotes %s: %s", what, secret, text)
						}
					}
					if len(text) > 1000 || strings.Contains(text, "\n") {
						t.Errorf("%s: the error is long: %q", what, text)
					}
				}
			}
			if name != "gcp" { // which has no bodies of its own
				echo := string(key) + base64.StdEncoding.EncodeToString(key) + base64.RawURLEncoding.EncodeToString(key) + hex.EncodeToString(key)
				c.broken.Store(&answer{http.StatusServiceUnavailable, `{"errors":["Vault is sealed"]}`})
				want("it is down", fault.Unavailable, calls()...)
				c.broken.Store(&answer{http.StatusBadGateway, c.secret + echo + strings.Repeat("<p>", 100_000)})
				want("something before it repeats the request", fault.Unavailable, calls()[0])
				c.broken.Store(&answer{http.StatusOK, `{"data":{},"value":7}`})
				want("it answers something else", fault.Unavailable, calls()[1])
				c.broken.Store(&answer{http.StatusOK, strings.Repeat(" ", 2<<20) + "{}"})
				want("it answers without end", fault.Unavailable, calls()...)
				c.broken.Store(&answer{http.StatusFound, "elsewhere"})
				want("it sends on", fault.Unavailable, calls()[1])
				c.broken.Store(nil)
			}
			c.hang.Store(true)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			long, short := c.config, c.config
			long.Timeout, short.Timeout = time.Hour, 200*time.Millisecond
			before, held := c.calls.Load(), make(chan error, 1)
			k := mustOpenIn(ctx, t, long, c.url)
			go func() {
				_, err := k.Decrypt(ctx, wrapped)
				held <- err
			}()
			for tick := time.NewTicker(time.Millisecond); c.calls.Load() == before && len(held) == 0; {
				<-tick.C
			}
			_, err = mustOpen(t, short, c.url).Decrypt(t.Context(), wrapped)
			want("it hangs", fault.Unavailable, err)
			if len(held) != 0 {
				t.Errorf("who waits for an hour came back before who waits for 200 ms: %v", <-held)
			}
			cancel()
			want("the node is stopped meanwhile", fault.Unavailable, <-held)
			c.hang.Store(false)
			_, err = mustOpen(t, c.config, c.other).Encrypt(t.Context(), key)
			if !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Invalid) {
				t.Errorf("another key: %v: %v", fault.KindOf(err), err)
			}
			c.denied()
			want("it does not know who comes", fault.Denied, calls()...)
		})
	}
}

func mustOpenIn(ctx context.Context, t *testing.T, c kms.Config, raw string) *secrets.Keeper {
	t.Helper()
	mux := new(secrets.URLMux)
	for scheme, opener := range kms.Openers(c) {
		mux.RegisterKeeper(scheme, opener)
	}
	k, err := mux.OpenKeeper(ctx, raw)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

func TestAServiceThatIsNotThereIsWaitedFor(t *testing.T) {
	all := clouds(t)
	t.Setenv("VAULT_ADDR", "http://127.0.0.1:1")
	nobody := roundTripper(func(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") })
	for name, raw := range map[string]string{
		"vault": "hashivault://mesh", "aws": "awskms://alias/mesh?region=eu-west-1", "azure": azureURL,
	} {
		config := kms.Config{Timeout: patience}
		if name != "vault" {
			config.Transport = nobody
		}
		if _, err := mustOpen(t, config, raw).Decrypt(t.Context(), []byte("x")); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s: %v: %v", name, fault.KindOf(err), err)
		}
	}
	all["gcp"].hang.Store(true)
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestURLsThatCannotBeRightAreRefused(t *testing.T) {
	all := clouds(t)
	for name, tc := range map[string]struct{ url, says string }{
		"aws without a region":            {"awskms://alias/mesh", "region"},
		"aws with an unknown parameter":   {"awskms://alias/mesh?region=eu-west-1&colour=blue", "colour"},
		"aws with a parameter twice":      {"awskms://alias/mesh?region=eu-west-1&region=us-east-1", "region"},
		"azure without a version":         {"azurekeyvault://mesh.vault.azure.net/keys/mesh", "VERSION"},
		"azure on another host":           {"azurekeyvault://mesh.example.com/keys/mesh/1", "invalid keyID"},
		"vault with an unknown parameter": {"hashivault://mesh?colour=blue", "colour"},
		"gcp with an unknown parameter":   {"gcpkms://" + gcpKey + "?colour=blue", "colour"},
	} {
		if _, err := open(t, kms.Config{GCP: all["gcp"].config.GCP}, tc.url); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Setenv("VAULT_ADDR", "")
	if _, err := open(t, kms.Config{}, "hashivault://mesh"); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "VAULT_ADDR") {
		t.Errorf("vault nowhere: %v", err)
	}
}

func TestADataKeyLeavesTheMachineByTLSAlone(t *testing.T) {
	clouds(t)
	sent := false
	spy := roundTripper(func(*http.Request) (*http.Response, error) {
		sent = true
		return nil, errors.New("sent")
	})
	t.Setenv("VAULT_ADDR", "http://vault.example.com:8200")
	for name, raw := range map[string]string{
		"vault": "hashivault://mesh", "aws": "awskms://alias/mesh?region=eu-west-1&endpoint=" + url.QueryEscape("http://kms.example.com"),
	} {
		_, err := mustOpen(t, kms.Config{Timeout: patience, Transport: spy}, raw).Encrypt(t.Context(), make([]byte, 32))
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "https") || sent {
			t.Errorf("%s: sent %v: %v", name, sent, err)
		}
	}
}

func TestNothingIsAskedBeforeAURLIsOpened(t *testing.T) {
	all := clouds(t)
	for _, c := range all {
		kms.Openers(c.config)
	}
	for name, c := range all {
		if c.calls.Load() != 0 {
			t.Errorf("%s was asked", name)
		}
	}
}
