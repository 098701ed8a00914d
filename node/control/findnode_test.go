package control_test

import (
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// The name of a node that was put out is given away anew: an act by name is never upon whoever comes first in the records.
func TestAnActByNameIsUponWhomItMeans(t *testing.T) {
	t.Parallel()
	w := start(t)
	var left []*joiner
	for range 3 {
		j := w.joined(w.boot, "px", "us-east")
		must(t, second(w.Leave(t.Context(), j.id())))
		left = append(left, j)
	}
	says := "3 nodes have this name, each departed; give the id: n-"
	_, err := w.revoke(onNode, "px", false)
	wantKind(t, "revoke one of three that have left", err, fault.Invalid, says)
	_, err = w.PreviewNodeRevocation(t.Context(), "px")
	wantKind(t, "its dry run", err, fault.Invalid, says)
	_, err = w.NodeStatus(t.Context(), "px")
	wantKind(t, "show it", err, fault.Invalid, says)
	for what, err := range map[string]error{
		"remove":     errOf(w.RemoveNode(t.Context(), "admin/ana", "px", "")),
		"quarantine": errOf(w.QuarantineNode(t.Context(), "admin/ana", "px", "odd")),
		"release":    errOf(w.ReleaseNode(t.Context(), "admin/ana", "px", "")),
	} {
		wantKind(t, what, err, fault.Invalid, says)
	}

	held := w.joined(w.boot, "px", "us-east")
	must(t, errOf(w.QuarantineNode(t.Context(), "admin/ana", "px", "odd")))
	must(t, errOf(w.ReleaseNode(t.Context(), "admin/ana", "px", "examined")))
	must(t, errOf(w.QuarantineNode(t.Context(), "admin/ana", "px", "odd")))
	now := w.joined(w.boot, "px", "us-east")
	must(t, second(w.revoke(onNode, "px", false)))
	if w.node(now).State != keyring.NodeRevoked || w.node(held).State != keyring.NodeQuarantined {
		t.Errorf("the one that was trusted is %s, the quarantined one %s", w.node(now).State, w.node(held).State)
	}
	must(t, second(w.revoke(onNode, left[1].id(), false)))
	for i, want := range []keyring.NodeState{keyring.NodeDeparted, keyring.NodeRevoked, keyring.NodeDeparted} {
		if n := w.node(left[i]); n.State != want {
			t.Errorf("of those who left, the %d. is %s, want %s", i+1, n.State, want)
		}
	}
}
