package sink_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/sink"
)

// kv is a KV version 2 engine with one secret, as Vault's API documentation has it.
type kv struct {
	versions []map[string]any
	mayRead  bool
	mayWrite bool
	race     bool // somebody else writes before each write
	busy     int  // so many answers are 503 first
	spoil    bool // what is read back is another thing
}

func (k *kv) serve(w http.ResponseWriter, _ int, r seen) {
	refuse := func(code int, why ...string) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": append([]string{}, why...)})
	}
	if k.busy > 0 {
		k.busy--
		refuse(http.StatusServiceUnavailable, "Vault is sealed")
		return
	}
	if r.header.Get("X-Vault-Token") != "s.token" || r.header.Get("X-Vault-Request") != "true" || !strings.HasPrefix(r.path, "/v1/secret/data/iapmesh/edge") {
		refuse(http.StatusForbidden, "permission denied")
		return
	}
	meta := func() map[string]any {
		return map[string]any{"version": len(k.versions), "created_time": "2026-11-25T12:00:00Z", "deletion_time": "", "destroyed": false}
	}
	switch r.method {
	case http.MethodGet:
		switch {
		case !k.mayRead:
			refuse(http.StatusForbidden, "1 error occurred:\n\t* permission denied\n\n")
		case len(k.versions) == 0:
			refuse(http.StatusNotFound)
		default:
			data := k.versions[len(k.versions)-1]
			if k.spoil {
				data = map[string]any{"key": "another"}
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"data": data, "metadata": meta()}})
		}
	case http.MethodPut, http.MethodPost:
		var req struct {
			Data    map[string]any
			Options struct{ CAS *int }
		}
		if err := json.Unmarshal([]byte(r.body), &req); err != nil {
			refuse(http.StatusBadRequest, "no JSON: "+r.body)
			return
		}
		if k.race {
			k.versions = append(k.versions, map[string]any{"other": "theirs"})
		}
		switch {
		case !k.mayWrite:
			refuse(http.StatusForbidden, "permission denied for "+r.body) // it quotes what it was sent
		case req.Options.CAS != nil && *req.Options.CAS != len(k.versions):
			refuse(http.StatusBadRequest, "check-and-set parameter did not match the current version")
		default:
			k.versions = append(k.versions, req.Data)
			_ = json.NewEncoder(w).Encode(map[string]any{"data": meta()})
		}
	default:
		refuse(http.StatusMethodNotAllowed, "unsupported operation")
	}
}

func vaultConfig(t testing.TB, address string) sink.Config {
	t.Helper()
	token := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(token, []byte("s.token\n"), 0o600))
	c := sink.Config{Vault: sink.Vault{Address: address, Mount: "secret", Path: "iapmesh/edge"}}
	c.Vault.Token.File = token
	return c
}

func TestVaultKeepsAKey(t *testing.T) {
	t.Setenv("VAULT_TOKEN", "s.another") // the environment's Vault is another one
	t.Setenv("VAULT_NAMESPACE", "elsewhere")
	t.Setenv("VAULT_ADDR", "http://127.0.0.1:1")
	for name, tc := range map[string]struct {
		engine   kv
		versions int
		other    bool // a field beside ours stays
	}{
		"for the first time":          {kv{mayRead: true, mayWrite: true}, 1, false},
		"beside another field":        {kv{mayRead: true, mayWrite: true, versions: []map[string]any{{"other": "ours", "key": "old"}}}, 2, true},
		"by a token that only writes": {kv{mayWrite: true, versions: []map[string]any{{"key": "old"}}}, 2, false},
		"after a moment":              {kv{mayRead: true, mayWrite: true, busy: 1}, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			engine := tc.engine
			s, ca := serveTLS(t, engine.serve)
			c := vaultConfig(t, s.URL)
			c.Vault.CAFile = ca
			secret := newSecret(t)
			must(t, newSink(t, c).Put(t.Context(), secret))
			last := engine.versions[len(engine.versions)-1]
			if last["key"] != secret.String() || (last["other"] == "ours") != tc.other || len(engine.versions) != tc.versions {
				t.Errorf("%d versions, the last with %d fields", len(engine.versions), len(last))
			}
			s.onlyInBodies(t, secret)
			for _, r := range s.requests() {
				if r.header.Get("X-Vault-Namespace") != "" {
					t.Error("the environment's namespace was used")
				}
			}
			if !tc.engine.mayRead {
				return
			}
			must(t, newSink(t, c).Put(t.Context(), secret))
			if len(engine.versions) != tc.versions {
				t.Error("the same key again made another version")
			}
		})
	}
}

func TestVaultUnderANamespaceAndField(t *testing.T) {
	t.Parallel()
	engine := kv{mayRead: true, mayWrite: true}
	s := serve(t, engine.serve)
	c := vaultConfig(t, s.URL)
	c.Vault.Namespace, c.Vault.Field = "team", "provisioning_key"
	secret := newSecret(t)
	must(t, newSink(t, c).Put(t.Context(), secret))
	if engine.versions[0]["provisioning_key"] != secret.String() || s.requests()[0].header.Get("X-Vault-Namespace") != "team" {
		t.Errorf("namespace %q", s.requests()[0].header.Get("X-Vault-Namespace"))
	}
}

func TestVaultThatDoesNotKeepAKey(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		engine kv
		kind   fault.Kind
		says   string
	}{
		"no permission":            {kv{mayRead: true}, fault.Denied, "withheld: it quotes the key"},
		"somebody else was faster": {kv{mayRead: true, mayWrite: true, race: true}, fault.Unavailable, "did not match"},
		"sealed":                   {kv{mayRead: true, mayWrite: true, busy: 100}, fault.Unavailable, "sealed"},
		"another thing comes back": {kv{mayRead: true, mayWrite: true, spoil: true}, fault.Unavailable, "read back"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			engine, secret := tc.engine, newSecret(t)
			s := serve(t, engine.serve)
			err := newSink(t, vaultConfig(t, s.URL)).Put(t.Context(), secret)
			wantError(t, name, err, tc.kind, tc.says, secret)
		})
	}
	secret := newSecret(t)
	s, _ := serveTLS(t, (&kv{mayRead: true, mayWrite: true}).serve)
	wantError(t, "a server that nobody vouches for", newSink(t, vaultConfig(t, s.URL)).Put(t.Context(), secret), fault.Unavailable, "certificate", secret)
	if n := len(s.requests()); n != 0 {
		t.Errorf("it was asked %d times", n)
	}
	away := serve(t, (&kv{mayRead: true, mayWrite: true}).serve)
	redirect := serve(t, func(w http.ResponseWriter, _ int, r seen) {
		w.Header().Set("Location", away.URL+r.path)
		w.WriteHeader(http.StatusTemporaryRedirect)
	})
	if err := newSink(t, vaultConfig(t, redirect.URL)).Put(t.Context(), secret); err == nil {
		t.Error("a redirect was taken for success")
	}
	for _, r := range away.requests() {
		if holds(fmt.Sprint(r), secret) {
			t.Error("the secret followed a redirect")
		}
	}
}
