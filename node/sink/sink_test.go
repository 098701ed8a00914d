package sink_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/sink"
)

// newSecret is a key as a rotation makes it.
func newSecret(t testing.TB) keyring.ProvisioningSecret {
	t.Helper()
	var pin [32]byte
	rand.Read(pin[:])
	s, err := keyring.GenerateKey(pin, nil)
	must(t, err)
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newSink(t testing.TB, c sink.Config) sink.Sink {
	t.Helper()
	s, err := sink.New(c)
	must(t, err)
	return s
}

// wantError checks an error's kind and text, and that it quotes nothing of the secret.
func wantError(t testing.TB, what string, err error, kind fault.Kind, says string, secret keyring.ProvisioningSecret) {
	t.Helper()
	if !fault.Is(err, kind) || !strings.Contains(fmt.Sprint(err), says) {
		t.Errorf("%s: %v (%v), want %v with %q", what, err, fault.KindOf(err), kind, says)
	}
	if holds(fmt.Sprint(err), secret) {
		t.Errorf("%s: the error holds the secret", what)
	}
}

// holds reports whether a text holds the secret, plain or encoded, or a good part of it.
func holds(text string, secret keyring.ProvisioningSecret) bool {
	whole := secret.String()
	body := whole[len("iapk_")+17:]
	for _, form := range []string{body[:20], body[len(body)-20:], hex.EncodeToString([]byte(whole))[20:], base64.StdEncoding.EncodeToString([]byte(whole))[30:]} {
		if strings.Contains(text, form) {
			return true
		}
	}
	return false
}

// seen is a request as it arrived.
type seen struct {
	method, path string
	header       http.Header
	body         string
}

// server answers by a function, and remembers what was asked.
type server struct {
	*httptest.Server
	mu     sync.Mutex
	seen   []seen                                     // guarded by mu
	answer func(w http.ResponseWriter, n int, r seen) // n counts from 0
}

func serve(t testing.TB, answer func(w http.ResponseWriter, n int, r seen)) *server {
	t.Helper()
	s := &server{answer: answer}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// serveTLS is serve over TLS, with the file that holds its root.
func serveTLS(t testing.TB, answer func(w http.ResponseWriter, n int, r seen)) (*server, string) {
	t.Helper()
	s := &server{answer: answer}
	s.Server = httptest.NewTLSServer(s)
	t.Cleanup(s.Close)
	file := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600))
	return s, file
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	n := len(s.seen)
	got := seen{r.Method, r.URL.RequestURI(), r.Header, string(body)}
	s.seen = append(s.seen, got)
	s.mu.Unlock()
	s.answer(w, n, got)
}

func (s *server) requests() []seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]seen(nil), s.seen...)
}

// onlyInBodies checks that no request carries the secret anywhere but in its body.
func (s *server) onlyInBodies(t testing.TB, secret keyring.ProvisioningSecret) {
	t.Helper()
	for _, r := range s.requests() {
		if holds(r.path, secret) || holds(fmt.Sprint(r.header), secret) {
			t.Errorf("%s %s: the secret is in the address or the header", r.method, r.path)
		}
	}
}

func TestAFileIsReplacedWhole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "edge.key")
	must(t, os.WriteFile(path, []byte("the old key\n"), 0o644))
	s, secret := newSink(t, sink.Config{File: path}), newSecret(t)
	for range 2 { // the second time, nothing changes
		must(t, s.Put(t.Context(), secret))
	}
	data, err := os.ReadFile(path)
	must(t, err)
	info, err := os.Stat(path)
	must(t, err)
	if string(data) != secret.String()+"\n" || info.Mode().Perm() != 0o600 {
		t.Errorf("%d bytes, mode %o", len(data), info.Mode().Perm())
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestAFileThatCannotBeReplacedStaysAsItIs(t *testing.T) {
	t.Parallel()
	dir, secret := t.TempDir(), newSecret(t)
	must(t, os.Mkdir(filepath.Join(dir, "directory"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "target"), []byte("old"), 0o600))
	must(t, os.Symlink(filepath.Join(dir, "target"), filepath.Join(dir, "link")))
	for name, says := range map[string]string{"directory": "no plain file", "link": "no plain file", "none/edge.key": "no such file"} {
		err := newSink(t, sink.Config{File: filepath.Join(dir, name)}).Put(t.Context(), secret)
		wantError(t, name, err, fault.Unavailable, says, secret)
	}
	if data, _ := os.ReadFile(filepath.Join(dir, "target")); string(data) != "old" {
		t.Error("it was written through a link")
	}
}

// script is a command that runs a shell's text. It is no file that is written first: while another test forks, a child may hold such a
// file open for writing, and nobody can execute it then.
func script(body string, args ...string) []string {
	return append([]string{"/bin/sh", "-c", body, "store-key"}, args...)
}

func TestACommandGetsTheSecretOnItsInputAndNowhereElse(t *testing.T) {
	t.Setenv("IAPMESH_TEST_JOIN_KEY", "iapk_somebody's") // a node may have joined by such a variable
	t.Setenv("IAPMESH_TEST_REGION", "eu-west")
	dir, secret := t.TempDir(), newSecret(t)
	s := newSink(t, sink.Config{Command: script(`
cat > "$1/stdin"
env > "$1/env"
tr '\0' '\n' < /proc/$$/cmdline > "$1/cmdline"
`, dir)})
	must(t, s.Put(t.Context(), secret))
	got := map[string]string{}
	for _, name := range []string{"stdin", "env", "cmdline"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		got[name] = string(data)
	}
	if got["stdin"] != secret.String()+"\n" {
		t.Errorf("standard input has %d bytes", len(got["stdin"]))
	}
	if holds(got["env"], secret) || holds(got["cmdline"], secret) || strings.Contains(got["env"], "iapk_") {
		t.Error("a key is in the environment or among the arguments")
	}
	if !strings.Contains(got["env"], "IAPMESH_TEST_REGION=eu-west") {
		t.Error("the environment is not the node's")
	}
}

func TestWhatACommandPrintsIsNotRepeated(t *testing.T) {
	t.Parallel()
	secret := newSecret(t)
	for name, body := range map[string]string{"plain": "cat; exit 3", "encoded": "base64 >&2; exit 3", "endless": "cat; yes 2>/dev/null | head -c 3000000; exit 3"} {
		err := newSink(t, sink.Config{Command: script(body)}).Put(t.Context(), secret)
		wantError(t, name, err, fault.Unavailable, "exit status 3", secret)
		if len(err.Error()) > 400 {
			t.Errorf("%s: the error has %d bytes", name, len(err.Error()))
		}
	}
}

func TestACommandThatHangsIsEnded(t *testing.T) {
	t.Parallel()
	dir, secret := t.TempDir(), newSecret(t)
	s := newSink(t, sink.Config{Command: script(`
sleep 600 & echo $! > "$1/child"
echo $$ > "$1/ready"
wait
`, dir)})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error, 1)
	go func() { failed <- s.Put(ctx, secret) }()
	read := func(name string) string {
		data, _ := os.ReadFile(filepath.Join(dir, name))
		return strings.TrimSpace(string(data))
	}
	eventually(t, "the command to start", func() bool { return read("ready") != "" && read("child") != "" })
	cancel()
	select {
	case err := <-failed:
		wantError(t, "cancelled", err, fault.Unavailable, "did not end in time", secret)
	case <-time.After(patience):
		t.Fatal("it is still waited for")
	}
	eventually(t, "its child to end", func() bool {
		stat, err := os.ReadFile("/proc/" + read("child") + "/stat")
		return errors.Is(err, os.ErrNotExist) || err == nil && (!strings.Contains(string(stat), "(sleep)") || strings.Contains(string(stat), ") Z ")) // or the number is another's by now
	})
}

// patience is far longer than anything here takes, and far shorter than what must be ended.
const patience = 2 * time.Minute

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestConfigurations(t *testing.T) {
	t.Parallel()
	vault := sink.Vault{Address: "https://vault.example.com", Mount: "secret", Path: "iapmesh/edge"}
	vault.Token.File = "/run/token"
	change := func(f func(v *sink.Vault)) sink.Config { v := vault; f(&v); return sink.Config{Vault: v} }
	aws := sink.AWS{SecretID: "iapmesh/edge", Region: "eu-west-1"}
	for name, tc := range map[string]struct {
		c    sink.Config
		says string // empty: valid
	}{
		"a file":                {sink.Config{File: "/etc/edge.key"}, ""},
		"a command":             {sink.Config{Command: []string{"/bin/store", "edge"}}, ""},
		"aws":                   {sink.Config{AWS: aws}, ""},
		"gcp":                   {sink.Config{GCP: sink.GCP{Secret: "projects/p/secrets/edge"}}, ""},
		"gcp, regional":         {sink.Config{GCP: sink.GCP{Secret: "projects/p/locations/europe-west1/secrets/edge", Endpoint: "https://secretmanager.europe-west1.rep.googleapis.com"}}, ""},
		"vault":                 {sink.Config{Vault: vault}, ""},
		"none":                  {sink.Config{}, "sink: want exactly one"},
		"two":                   {sink.Config{File: "/etc/edge.key", AWS: aws}, "sink: want exactly one"},
		"a relative file":       {sink.Config{File: "edge.key"}, "sink.file"},
		"a relative command":    {sink.Config{Command: []string{"store"}}, "sink.command"},
		"aws without a secret":  {sink.Config{AWS: sink.AWS{Region: "eu-west-1"}}, "aws_secrets_manager.secret_id"},
		"aws without a region":  {sink.Config{AWS: sink.AWS{SecretID: "x"}}, "aws_secrets_manager.region"},
		"aws in the clear":      {sink.Config{AWS: sink.AWS{SecretID: "x", Region: "r", Endpoint: "http://aws.example.com"}}, "aws_secrets_manager.endpoint"},
		"a gcp version":         {sink.Config{GCP: sink.GCP{Secret: "projects/p/secrets/edge/versions/1"}}, "gcp_secret_manager.secret"},
		"vault in the clear":    {change(func(v *sink.Vault) { v.Address = "http://vault.example.com" }), "vault.address"},
		"vault with a password": {change(func(v *sink.Vault) { v.Address = "https://ana:s3cret@vault.example.com" }), "vault.address"},
		"vault nowhere":         {change(func(v *sink.Vault) { v.Address = "" }), "vault.address"},
		"vault, no mount":       {change(func(v *sink.Vault) { v.Mount = "" }), "vault.mount"},
		"vault, up and away":    {change(func(v *sink.Vault) { v.Path = "../sys/policy" }), "vault.path"},
		"vault, a query":        {change(func(v *sink.Vault) { v.Path = "edge?version=1" }), "vault.path"},
		"vault without token":   {change(func(v *sink.Vault) { v.Token.File = "" }), "vault.token"},
		"vault, token once":     {change(func(v *sink.Vault) { v.Token.File, v.Token.FD = "", 3 }), "vault.token.fd"},
	} {
		err := tc.c.Validate("rotate[0].sink")
		switch {
		case tc.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.says != "" && (err == nil || !strings.HasPrefix(err.Error(), "rotate[0].sink") || !strings.Contains(err.Error(), tc.says)):
			t.Errorf("%s: %v, want %q", name, err, tc.says)
		case err != nil && strings.Contains(err.Error(), "s3cret"):
			t.Errorf("%s: the error quotes a password", name)
		}
		if _, err := sink.New(tc.c); (err == nil) != (tc.says == "") {
			t.Errorf("%s: New says %v", name, err)
		}
	}
}

func TestWhatAMachineLacks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte("x"), mode))
		return path
	}
	vault := func(token, ca string) sink.Config {
		c := sink.Config{Vault: sink.Vault{Address: "https://v", Mount: "m", Path: "p", CAFile: ca}}
		c.Vault.Token.File = token
		return c
	}
	for name, tc := range map[string]struct {
		c    sink.Config
		says string
	}{
		"a file":             {sink.Config{File: filepath.Join(dir, "new.key")}, ""},
		"no directory":       {sink.Config{File: filepath.Join(dir, "none", "new.key")}, "sink.file"},
		"a directory":        {sink.Config{File: dir}, "no plain file"},
		"a command":          {sink.Config{Command: []string{write("run", 0o700)}}, ""},
		"no command":         {sink.Config{Command: []string{filepath.Join(dir, "none")}}, "sink.command"},
		"no executable":      {sink.Config{Command: []string{write("text", 0o600)}}, "permission denied"},
		"a token":            {vault(write("token", 0o600), ""), ""},
		"no token":           {vault(filepath.Join(dir, "none"), ""), "sink.vault.token"},
		"a token for others": {vault(write("open", 0o644), ""), "chmod 600"},
		"no roots":           {vault(write("token2", 0o600), write("ca", 0o600)), "sink.vault.ca_file"},
		"no roots for aws":   {sink.Config{AWS: sink.AWS{SecretID: "x", Region: "r", CAFile: filepath.Join(dir, "none")}}, "aws_secrets_manager.ca_file"},
	} {
		err := tc.c.Check("sink")
		if tc.says == "" && err != nil || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%s: %v, want %q", name, err, tc.says)
		}
	}
}
