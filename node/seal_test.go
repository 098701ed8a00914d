package node_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node"
	"github.com/iapmesh/iapmesh/node/nodetest"
)

// transit is Vault's transit engine as far as a seal needs it: it gives back what it was given for a ciphertext that it made.
type transit struct {
	mu     sync.Mutex
	status int // what it answers instead; 0: it works
	calls  int
	held   []string
}

func (v *transit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.calls++
	var in struct{ Plaintext, Ciphertext string }
	if v.status != 0 || json.NewDecoder(r.Body).Decode(&in) != nil {
		w.WriteHeader(max(v.status, http.StatusBadRequest))
		fmt.Fprint(w, `{"errors":["Vault is sealed"]}`)
		return
	}
	data := map[string]string{}
	var i int
	switch _, err := fmt.Sscanf(in.Ciphertext, "vault:v1:%d", &i); {
	case r.URL.Path == "/v1/transit/encrypt/mesh":
		data["ciphertext"] = fmt.Sprintf("vault:v1:%d", len(v.held))
		v.held = append(v.held, in.Plaintext)
	case err == nil && i < len(v.held):
		data["plaintext"] = v.held[i]
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"data": data})
}

func (v *transit) answer(status int) (calls int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.status = status
	return v.calls
}

func (v *transit) called() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.calls
}

// logbook is a log that a test reads while it is written.
type logbook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logbook) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline, tick := time.After(nodetest.Patience), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("it did not come to be that %s", what)
		case <-tick.C:
		}
	}
}

// founder is a control node that Vault seals.
func founder(t *testing.T) (*transit, node.Config) {
	t.Helper()
	vault := new(transit)
	server := httptest.NewServer(vault)
	t.Cleanup(server.Close)
	t.Setenv("VAULT_ADDR", server.URL)
	t.Setenv("VAULT_TOKEN", "hvs.test")
	c := node.DefaultConfig()
	next := nodetest.Addresses(t)
	c.Name, c.Region, c.Roles, c.DataDir = "ctl-1", "eu-west", []string{"control"}, filepath.Join(t.TempDir(), "ctl-1")
	c.Listen.Mesh, c.Listen.Ops, c.Seal = next(), next(), []string{"hashivault://mesh"}
	return vault, c
}

func TestANodeWaitsForTheServiceThatSealsIt(t *testing.T) {
	vault, c := founder(t)
	vault.answer(http.StatusServiceUnavailable)
	if _, err := node.Init(t.Context(), node.InitConfig{Config: c, TrustDomain: "mesh.test", Admin: "ana"}); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("founding a mesh does not wait, it fails: %v", err)
	}
	vault.answer(0)
	if _, err := node.Init(t.Context(), node.InitConfig{Config: c, TrustDomain: "mesh.test", Admin: "ana"}); err != nil {
		t.Fatal(err)
	}

	before := vault.answer(http.StatusServiceUnavailable)
	log := new(logbook)
	opened := make(chan error, 1)
	go func() {
		_, err := node.NewIn(t.Context(), c, node.Env{Logger: slog.New(slog.NewTextHandler(log, nil))})
		opened <- err
	}()
	eventually(t, "it lives and is not ready, and says why", func() bool {
		return probe(t, c, "/healthz") == `200 {"status":"ok"}` && strings.Contains(probe(t, c, "/readyz"), "hashivault://mesh")
	})
	eventually(t, "it has tried three times", func() bool { return vault.called() >= before+3 })
	if n := log.count("waiting for a keeper"); n != 1 {
		t.Errorf("it says so %d times", n)
	}
	vault.answer(0)
	if err := <-opened; err != nil {
		t.Fatalf("it does not open once the service is there: %v", err)
	}
	if log.count("keeper=hashivault://mesh") != 1 {
		t.Error("it does not say who opened it")
	}
	if got := probe(t, c, "/healthz"); !strings.Contains(got, "refused") {
		t.Errorf("the address is not free for the node: %s", got)
	}
}

func probe(t *testing.T, c node.Config, path string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+c.Listen.Ops+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	_, _ = body.ReadFrom(resp.Body)
	return fmt.Sprint(resp.StatusCode, " ", strings.TrimSpace(body.String()))
}

func TestAnotherKeeperOpensWhereTheServiceDoesNot(t *testing.T) {
	vault, c := founder(t)
	key := seal.KeyFileURL(filepath.Join(t.TempDir(), "recovery.key"))
	c.Seal = append(c.Seal, key)
	if _, err := node.Init(t.Context(), node.InitConfig{Config: c, TrustDomain: "mesh.test", Admin: "ana"}); err != nil {
		t.Fatal(err)
	}
	vault.answer(http.StatusServiceUnavailable)
	log := new(logbook)
	if _, err := node.NewIn(t.Context(), c, node.Env{Logger: slog.New(slog.NewTextHandler(log, nil))}); err != nil || log.count("keeper="+key) != 1 {
		t.Errorf("%v", err)
	}
}

func TestWaitingEndsWhereItDoesNotHelp(t *testing.T) {
	vault, c := founder(t)
	if _, err := node.Init(t.Context(), node.InitConfig{Config: c, TrustDomain: "mesh.test", Admin: "ana"}); err != nil {
		t.Fatal(err)
	}
	before := vault.answer(http.StatusForbidden)
	if _, err := node.NewIn(t.Context(), c, node.Env{}); !fault.Is(err, fault.Invalid) || vault.called() != before+1 {
		t.Errorf("a service that refuses: %d attempts, %v", vault.called()-before, err)
	}
	vault.answer(http.StatusServiceUnavailable)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := node.NewIn(ctx, c, node.Env{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a node that is stopped while it waits: %v", err)
	}
}
