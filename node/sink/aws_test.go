package sink_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/sink"
)

// secretsManager is one secret of AWS Secrets Manager, by its JSON 1.1 protocol.
type secretsManager struct {
	versions map[string]string // by id
	refuse   map[string]string // error code, by operation
	busy     int
	spoil    bool
}

func (m *secretsManager) serve(w http.ResponseWriter, _ int, r seen) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	operation := strings.TrimPrefix(r.header.Get("X-Amz-Target"), "secretsmanager.")
	refuse := func(status int, code, message string) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": code, "Message": message})
	}
	auth := r.header.Get("Authorization")
	switch {
	case m.busy > 0:
		m.busy--
		refuse(http.StatusInternalServerError, "InternalServiceError", "try again")
		return
	case !strings.HasPrefix(auth, "AWS4-HMAC-SHA256 Credential=AKIDTEST/") || !strings.Contains(auth, "/eu-west-1/secretsmanager/aws4_request"):
		refuse(http.StatusBadRequest, "IncompleteSignatureException", "no signature")
		return
	case m.refuse[operation] != "":
		refuse(http.StatusBadRequest, m.refuse[operation], "refused: "+r.body)
		return
	}
	var req struct {
		SecretID     string `json:"SecretId"`
		SecretString string
		Token        string `json:"ClientRequestToken"`
		VersionID    string `json:"VersionId"`
	}
	if err := json.Unmarshal([]byte(r.body), &req); err != nil || req.SecretID != "iapmesh/edge" {
		refuse(http.StatusBadRequest, "InvalidRequestException", "no such request")
		return
	}
	answer := map[string]any{"ARN": "arn:aws:secretsmanager:eu-west-1:1:secret:iapmesh/edge-a", "Name": req.SecretID, "VersionStages": []string{"AWSCURRENT"}}
	switch operation {
	case "PutSecretValue":
		if have, ok := m.versions[req.Token]; ok && have != req.SecretString {
			refuse(http.StatusBadRequest, "ResourceExistsException", "another value")
			return
		}
		if n := len(req.Token); n < 32 || n > 64 {
			refuse(http.StatusBadRequest, "InvalidParameterException", "ClientRequestToken")
			return
		}
		m.versions[req.Token] = req.SecretString
		answer["VersionId"] = req.Token
	case "GetSecretValue":
		answer["VersionId"], answer["SecretString"] = req.VersionID, m.versions[req.VersionID]
		if m.spoil {
			answer["SecretString"] = "another"
		}
	default:
		refuse(http.StatusBadRequest, "UnknownOperationException", operation)
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// awsEnvironment gives the SDK credentials, and nothing of the machine's own.
func awsEnvironment(t *testing.T) {
	t.Helper()
	none := filepath.Join(t.TempDir(), "none")
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "AKIDTEST", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "", "AWS_CONFIG_FILE": none,
		"AWS_SHARED_CREDENTIALS_FILE": none, "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "us-east-2",
	} {
		t.Setenv(name, value)
	}
}

func TestAWSSecretsManagerKeepsAKey(t *testing.T) {
	awsEnvironment(t)
	for name, m := range map[string]*secretsManager{
		"and gives it back":              {},
		"after a moment":                 {busy: 1},
		"for a role that may write only": {refuse: map[string]string{"GetSecretValue": "AccessDeniedException"}},
	} {
		t.Run(name, func(t *testing.T) {
			m.versions = map[string]string{}
			s, ca := serveTLS(t, m.serve)
			secret := newSecret(t)
			store := newSink(t, sink.Config{AWS: sink.AWS{SecretID: "iapmesh/edge", Region: "eu-west-1", Endpoint: s.URL, CAFile: ca}})
			for range 2 { // an answer may have been lost
				must(t, store.Put(t.Context(), secret))
			}
			if len(m.versions) != 1 {
				t.Errorf("%d versions of one key", len(m.versions))
			}
			for _, v := range m.versions {
				if v != secret.String() {
					t.Error("it keeps another thing")
				}
			}
			s.onlyInBodies(t, secret)
		})
	}
}

func TestAWSSecretsManagerThatDoesNotKeepAKey(t *testing.T) {
	awsEnvironment(t)
	for name, tc := range map[string]struct {
		m    *secretsManager
		kind fault.Kind
		says string
	}{
		"no such secret":           {&secretsManager{refuse: map[string]string{"PutSecretValue": "ResourceNotFoundException"}}, fault.Invalid, "create it first"},
		"no permission":            {&secretsManager{refuse: map[string]string{"PutSecretValue": "AccessDeniedException"}}, fault.Denied, "withheld: it quotes the key"},
		"busy":                     {&secretsManager{busy: 100}, fault.Unavailable, "InternalServiceError"},
		"another thing comes back": {&secretsManager{spoil: true}, fault.Unavailable, "read back"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.m.versions = map[string]string{}
			s, secret := serve(t, tc.m.serve), newSecret(t)
			err := newSink(t, sink.Config{AWS: sink.AWS{SecretID: "iapmesh/edge", Region: "eu-west-1", Endpoint: s.URL}}).Put(t.Context(), secret)
			wantError(t, name, err, tc.kind, tc.says, secret)
		})
	}
	t.Run("no credentials", func(t *testing.T) {
		t.Setenv("AWS_ACCESS_KEY_ID", "")
		t.Setenv("AWS_SECRET_ACCESS_KEY", "")
		s, secret := serve(t, (&secretsManager{}).serve), newSecret(t)
		err := newSink(t, sink.Config{AWS: sink.AWS{SecretID: "iapmesh/edge", Region: "eu-west-1", Endpoint: s.URL}}).Put(t.Context(), secret)
		wantError(t, "no credentials", err, fault.Unavailable, "credentials", secret)
		if holds(fmt.Sprint(s.requests()), secret) {
			t.Error("the secret was sent without a signature")
		}
	})
}
