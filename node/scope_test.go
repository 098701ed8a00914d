package node_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node"
	"github.com/iapmesh/iapmesh/node/nodetest"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// thief holds the whole data directory of a node, its seal included, and signs sessions as the node could.
type thief struct {
	key ed25519.PrivateKey
	kid string
}

func takeOver(t *testing.T, dataDir string) thief {
	t.Helper()
	sealer, err := seal.Open(t.Context(), dataDir, nil)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := os.ReadFile(filepath.Join(dataDir, "keys.sealed"))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := sealer.Open(sealed, []byte("iapmesh/node-keys/v1"))
	if err != nil {
		t.Fatal(err)
	}
	var keys struct {
		Session []byte `json:"session"`
	}
	if err := json.Unmarshal(plain, &keys); err != nil {
		t.Fatal(err)
	}
	key := ed25519.NewKeyFromSeed(keys.Session)
	return thief{key, keyring.SigningKID(keyring.SigningSession, key.Public().(ed25519.PublicKey))}
}

// forge signs a session at a revision, for a subject of group dev/finance, on any host.
func (th thief) forge(t *testing.T, subject string, at *iapmeshv1.Revision) string {
	t.Helper()
	rev := fmt.Sprintf("%d.%d", at.Epoch, at.Index)
	part := func(v any) string {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(data)
	}
	now := time.Now()
	signed := part(map[string]string{"alg": "EdDSA", "typ": "iapmesh-session+jwt", "kid": th.kid, "krev": rev}) + "." + part(map[string]any{
		"iss": "https://" + nodetest.SignInHost, "aud": "session", "iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
		"sub": subject, "email": "bob@example.com", "groups": []string{"dev/finance"}, "sid": "FORGED", "auth_time": now.Unix(), "rev": rev,
	})
	return signed + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(th.key, []byte(signed)))
}

// A node that joined under a key for some routes speaks for those alone, whatever it does: what it signs counts nowhere else, also
// where its whole disk is in wrong hands.
func TestANodesScopeHoldsAfterTheJoin(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west")
	home := mesh.In("eu-west")
	narrow := mesh.AddNodeWith("narrow", nodetest.NodeOptions{Key: mesh.IssueKey("echo-only", func(r *iapmeshv1.IssueKeyRequest) { r.RouteSelector = "echo" })})
	wide := mesh.AddNodeWith("wide", nodetest.NodeOptions{Key: mesh.IssueKey("all", nil)})
	if n := narrow.Node(); n.RouteSelector != "echo" {
		t.Fatalf("its selector is %q", n.RouteSelector)
	}
	bob := home.SignIn("bob@example.com")
	narrow.EventuallyServes(bob)
	if status := narrow.Status("", nodetest.FinanceHost, "/"); status != http.StatusMisdirectedRequest {
		t.Errorf("it answers for a route that it does not serve: %d", status)
	}
	ana := narrow.SignIn("ana@example.com") // an assertion of its own slot, which verifies at its host
	home.Serves(ana, http.StatusOK)

	at := mesh.Status().Revision
	for _, tc := range []struct {
		from          *nodetest.Region
		echo, billing int
	}{
		{narrow, http.StatusOK, http.StatusUnauthorized},
		{wide, http.StatusOK, http.StatusOK}, // so it is the scope that refuses the other
	} {
		forged := takeOver(t, tc.from.DataDir()).forge(t, bob.Subject, at)
		if got := home.Status(forged, nodetest.EchoHost, "/whoami"); got != tc.echo {
			t.Errorf("what %s signed, at echo: %d, want %d", tc.from.Name, got, tc.echo)
		}
		if got := home.Status(forged, nodetest.FinanceHost, "/"); got != tc.billing {
			t.Errorf("what %s signed, at billing: %d, want %d", tc.from.Name, got, tc.billing)
		}
	}

	// A re-binding changes nothing of that: it is to a key of the same routes, or is refused.
	every := mesh.IssueKey("every", nil)
	if err := narrow.AllowRebind(every); err == nil {
		t.Error("an operator may let it bind to a key for every route")
	}
}

// A node that was away for a day and more proves its key and is back; one that was away for a week is not.
func TestANodeThatWasAwayForDaysComesBack(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west")
	a, b := mesh.AddNode("a", "proxy"), mesh.AddNode("b", "proxy")
	mesh.AwaitVoters() // both have confirmed their joins: else they do not lapse, they depart
	becomes := func(name string, want iapmeshv1.NodeState) {
		mesh.Eventually(name+" becomes "+want.String(), func() bool {
			status, err := mesh.TryStatus() // who has no view believes nobody until the leader's certificate is renewed
			for _, n := range status.GetNodes() {
				if n.Node.Name == name+"-1" {
					return err == nil && n.Node.State == want
				}
			}
			return false
		})
	}
	a.Stop()
	b.Stop()
	mesh.Drift(25 * time.Hour) // the leader's clock, too: it has listened all that time
	becomes("a", iapmeshv1.NodeState_NODE_STATE_LAPSED)
	becomes("b", iapmeshv1.NodeState_NODE_STATE_LAPSED)
	a.Start()
	becomes("a", iapmeshv1.NodeState_NODE_STATE_ACTIVE)
	a.AwaitReady()
	mesh.Drift(7 * 24 * time.Hour)
	becomes("b", iapmeshv1.NodeState_NODE_STATE_DEPARTED)
	becomes("a", iapmeshv1.NodeState_NODE_STATE_ACTIVE) // whatever the leader's clock did, it was there
	b.Start()
	var turnedAway *node.TurnedAwayError
	if err := b.Ends(); !errors.As(err, &turnedAway) || turnedAway.State != keyring.NodeDeparted {
		t.Errorf("it ended by %v", err)
	}
}
