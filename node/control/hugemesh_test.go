package control_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// A receipt names every node that has to know. In a mesh of thousands, as somebody may make of one with a key that leaked, it is larger
// than a commit: what it would be of is done all the same.
func TestNoMeshIsTooLargeToRevokeIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Tick = time.Hour // the leader cannot bring so large a mesh's audiences in step: it need not try all the while
	sealing, err := seal.GenerateSealingKey()
	must(t, err)
	for first := 0; first < 7500; first += 100 {
		var puts []store.Entry
		for i := first; i < first+100; i++ {
			n := &keyring.Node{
				ID: fmt.Sprintf("n-%016d", i), Name: fmt.Sprintf("%s%05d", strings.Repeat("a", 58), i), Region: strings.Repeat("r", 63), Roles: []keyring.Role{keyring.RoleAggregator},
				PublicKey: public(newKey(t)), SealingPublicKey: sealing.PublicKey(), State: keyring.NodeActive, EnrolledAt: w.clock.now(), StateSince: w.clock.now(),
			}
			puts = append(puts, state.PutNode(n))
		}
		_, err := w.engine.Store.Commit(t.Context(), store.Txn{Puts: puts})
		must(t, err)
	}
	w.start()
	secret := w.issue(nil)
	must(t, fourth(w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: secret.ID()})))
	_, _, err = w.Revoke(t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_USER, Value: "dev/eve", Block: true})
	must(t, err)
	if w.key(secret.ID()).State != keyring.KeyRevoked || w.view().Keyring.Blocked("dev/eve") == nil {
		t.Error("not revoked")
	}
}
