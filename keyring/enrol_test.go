package keyring_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

func TestANodeIsEnrolledUnderItsKey(t *testing.T) {
	t.Parallel()
	k := issued(t, func(r *keyring.KeyRequest) { r.RouteSelector = "team=billing" })
	n := enrolled(t, k, "edge-1")
	if n.State != keyring.NodeEnrolled || n.ProvisioningKey != k.ID || n.BoundKey != k.ID || n.RouteSelector != "team=billing" {
		t.Errorf("%+v", n)
	}
	if !regexp.MustCompile(`^n-[a-z2-7]{16}$`).MatchString(n.ID) || n.ID != keyring.NodeID(n.PublicKey) || n.ID == "n-"+keyring.KeyID(n.PublicKey) {
		t.Errorf("id %s", n.ID)
	}
	if err := keyring.ValidName("node id", n.ID); err != nil {
		t.Error(err)
	}
}

func TestEnrolNodeNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(r *keyring.EnrolRequest)
		says   string
	}{
		"name":             {func(r *keyring.EnrolRequest) { r.Name = "Edge 1" }, "node name"},
		"region":           {func(r *keyring.EnrolRequest) { r.Region = "../x" }, "region"},
		"roles":            {func(r *keyring.EnrolRequest) { r.Roles = nil }, "roles"},
		"node key":         {func(r *keyring.EnrolRequest) { r.PublicKey = nil }, "node key"},
		"session key":      {func(r *keyring.EnrolRequest) { r.SessionPublicKey = nil }, "session key"},
		"sealing key":      {func(r *keyring.EnrolRequest) { r.SealingPublicKey = nil }, "sealing key"},
		"join id":          {func(r *keyring.EnrolRequest) { r.JoinID = "ABCDEF0123456789" }, "join id"},
		"long address":     {func(r *keyring.EnrolRequest) { r.Addresses.Mesh = strings.Repeat("a", 300) }, "address"},
		"broken address":   {func(r *keyring.EnrolRequest) { r.Addresses.Proxy = "\xff:1" }, "address"},
		"one key for two":  {func(r *keyring.EnrolRequest) { r.SessionPublicKey = r.PublicKey }, "three different"},
		"provisioning key": {func(r *keyring.EnrolRequest) { r.PublicKey = public("key") }, "three different"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := enrolRequest("a", keyring.RoleProxy)
			tc.change(&r)
			_, err := keyring.EnrolNode(issued(t, nil), r)
			wantRefusal(t, err, fault.Invalid, tc.says)
		})
	}
}

func TestARepeatedJoinIsAnsweredAgain(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(k *keyring.Key, n *keyring.Node, id *keyring.JoinIdentity)
		kind   fault.Kind // Internal: answered
		says   string
	}{
		"as it was":             {func(*keyring.Key, *keyring.Node, *keyring.JoinIdentity) {}, fault.Internal, ""},
		"key used up meanwhile": {func(k *keyring.Key, _ *keyring.Node, _ *keyring.JoinIdentity) { k.State = keyring.KeyExhausted }, fault.Internal, ""},
		"key expired meanwhile": {func(k *keyring.Key, _ *keyring.Node, _ *keyring.JoinIdentity) { k.State = keyring.KeyExpired }, fault.Internal, ""},
		"confirmed meanwhile":   {func(_ *keyring.Key, n *keyring.Node, _ *keyring.JoinIdentity) { n.State = keyring.NodeActive }, fault.Internal, ""},
		"key revoked meanwhile": {func(k *keyring.Key, _ *keyring.Node, _ *keyring.JoinIdentity) { k.State = keyring.KeyRevoked }, fault.Denied, "revoked"},
		"never confirmed":       {func(_ *keyring.Key, n *keyring.Node, _ *keyring.JoinIdentity) { n.State = keyring.NodeDeparted }, fault.Denied, "departed"},
		"node revoked":          {func(_ *keyring.Key, n *keyring.Node, _ *keyring.JoinIdentity) { n.State = keyring.NodeRevoked }, fault.Denied, "revoked"},
		"another join id":       {func(_ *keyring.Key, _ *keyring.Node, id *keyring.JoinIdentity) { id.JoinID = "00" }, fault.Conflict, "begin anew"},
		"another provisioning":  {func(_ *keyring.Key, _ *keyring.Node, id *keyring.JoinIdentity) { id.Key = "x" }, fault.Conflict, "begin anew"},
		"another node key":      {func(_ *keyring.Key, _ *keyring.Node, id *keyring.JoinIdentity) { id.NodeKey = public("x") }, fault.Conflict, "begin anew"},
		"another session key":   {func(_ *keyring.Key, _ *keyring.Node, id *keyring.JoinIdentity) { id.SessionKey = public("x") }, fault.Conflict, "begin anew"},
		"the wrong key record":  {func(k *keyring.Key, _ *keyring.Node, _ *keyring.JoinIdentity) { k.ID = "x" }, fault.Conflict, "begin anew"},
	} {
		k := issued(t, nil)
		n := enrolled(t, k, "a")
		id := keyring.JoinIdentity{JoinID: n.JoinID, Key: k.ID, NodeKey: n.PublicKey, SessionKey: n.SessionPublicKey}
		tc.change(&k, &n, &id)
		err := keyring.ResumeJoin(k, n, id)
		if tc.kind == fault.Internal {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		wantRefusal(t, err, tc.kind, tc.says)
	}
}
