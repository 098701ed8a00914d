package sink_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/sink"
)

const gcpName = "projects/p/secrets/edge"

// gcpSecrets is one secret of Google Secret Manager, by its REST API.
type gcpSecrets struct {
	versions []string
	refuse   map[string]int // status, by addVersion and access
	busy     int
	spoil    bool
	damage   bool // the checksum that comes back is another
}

func (g *gcpSecrets) serve(w http.ResponseWriter, _ int, r seen) {
	w.Header().Set("Content-Type", "application/json")
	refuse := func(code int, status, message string) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": code, "message": message, "status": status}})
	}
	path, _, _ := strings.Cut(strings.TrimPrefix(r.path, "/v1/"), "?")
	name, verb, _ := strings.Cut(path, ":")
	switch {
	case g.busy > 0:
		g.busy--
		refuse(http.StatusServiceUnavailable, "UNAVAILABLE", "try again")
	case r.header.Get("Authorization") != "Bearer test-token":
		refuse(http.StatusUnauthorized, "UNAUTHENTICATED", "no token")
	case g.refuse[verb] != 0:
		refuse(g.refuse[verb], "REFUSED", "refused: "+r.body)
	case verb == "addVersion" && r.method == http.MethodPost && name == gcpName:
		var req struct {
			Payload struct{ Data, DataCrc32C string }
		}
		err := json.Unmarshal([]byte(r.body), &req)
		data, decodeErr := base64.StdEncoding.DecodeString(req.Payload.Data)
		if err != nil || decodeErr != nil || req.Payload.DataCrc32C != castagnoli(data) {
			refuse(http.StatusBadRequest, "INVALID_ARGUMENT", "damaged")
			return
		}
		g.versions = append(g.versions, string(data))
		_ = json.NewEncoder(w).Encode(map[string]string{"name": fmt.Sprintf("%s/versions/%d", gcpName, len(g.versions)), "state": "ENABLED"})
	case verb == "access" && r.method == http.MethodGet && strings.HasPrefix(name, gcpName+"/versions/"):
		n, err := strconv.Atoi(strings.TrimPrefix(name, gcpName+"/versions/"))
		if err != nil {
			n = len(g.versions) // latest
		}
		if n == 0 {
			refuse(http.StatusNotFound, "NOT_FOUND", "no version")
			return
		}
		data := g.versions[n-1]
		if g.spoil {
			data = "another"
		}
		sum := castagnoli([]byte(data))
		if g.damage {
			sum = "1"
		}
		_ = json.NewEncoder(w).Encode(map[string]any{
			"name": fmt.Sprintf("%s/versions/%d", gcpName, n), "payload": map[string]string{"data": base64.StdEncoding.EncodeToString([]byte(data)), "dataCrc32c": sum},
		})
	default:
		refuse(http.StatusNotFound, "NOT_FOUND", r.method+" "+r.path)
	}
}

func castagnoli(data []byte) string {
	return strconv.FormatUint(uint64(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))), 10)
}

// gcpEnvironment gives the SDK a service account whose tokens come from a server of the test.
func gcpEnvironment(t *testing.T) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	tokens := serve(t, func(w http.ResponseWriter, _ int, _ seen) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": "test-token", "token_type": "Bearer", "expires_in": 3600})
	})
	account, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "p", "private_key_id": "1", "client_email": "rotator@p.iam.gserviceaccount.com", "client_id": "1",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "token_uri": tokens.URL,
	})
	must(t, err)
	file := filepath.Join(t.TempDir(), "account.json")
	must(t, os.WriteFile(file, account, 0o600))
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", file)
}

func TestGoogleSecretManagerKeepsAKey(t *testing.T) {
	gcpEnvironment(t)
	for name, tc := range map[string]struct {
		g    gcpSecrets
		want int // versions, after putting the key twice
	}{
		"for the first time":           {gcpSecrets{}, 1},
		"after others":                 {gcpSecrets{versions: []string{"old"}}, 2},
		"after a moment":               {gcpSecrets{busy: 1}, 1},
		"for a role that may add only": {gcpSecrets{refuse: map[string]int{"access": http.StatusForbidden}}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			g := tc.g
			s, ca := serveTLS(t, g.serve)
			secret := newSecret(t)
			store := newSink(t, sink.Config{GCP: sink.GCP{Secret: gcpName, Endpoint: s.URL, CAFile: ca}})
			for range 2 {
				must(t, store.Put(t.Context(), secret))
			}
			if len(g.versions) != tc.want || g.versions[len(g.versions)-1] != secret.String() {
				t.Errorf("%d versions, want %d, the last the key", len(g.versions), tc.want)
			}
			s.onlyInBodies(t, secret)
		})
	}
}

func TestGoogleSecretManagerThatDoesNotKeepAKey(t *testing.T) {
	gcpEnvironment(t)
	for name, tc := range map[string]struct {
		g    gcpSecrets
		kind fault.Kind
		says string
	}{
		"no such secret":           {gcpSecrets{refuse: map[string]int{"addVersion": http.StatusNotFound}}, fault.Invalid, "create it first"},
		"no permission":            {gcpSecrets{refuse: map[string]int{"addVersion": http.StatusForbidden}}, fault.Denied, "withheld: it quotes the key"},
		"another thing comes back": {gcpSecrets{spoil: true}, fault.Unavailable, "read back"},
		"it comes back damaged":    {gcpSecrets{damage: true}, fault.Unavailable, "read back"},
	} {
		t.Run(name, func(t *testing.T) {
			g, secret := tc.g, newSecret(t)
			s := serve(t, g.serve)
			err := newSink(t, sink.Config{GCP: sink.GCP{Secret: gcpName, Endpoint: s.URL}}).Put(t.Context(), secret)
			wantError(t, name, err, tc.kind, tc.says, secret)
		})
	}
	t.Run("no credentials", func(t *testing.T) {
		t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", filepath.Join(t.TempDir(), "none"))
		secret := newSecret(t)
		err := newSink(t, sink.Config{GCP: sink.GCP{Secret: gcpName, Endpoint: "http://127.0.0.1:1"}}).Put(t.Context(), secret)
		wantError(t, "no credentials", err, fault.Invalid, "GOOGLE_APPLICATION_CREDENTIALS", secret)
	})
}
