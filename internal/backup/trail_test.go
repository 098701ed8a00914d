package backup_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/backup"
	"github.com/iapmesh/iapmesh/keyring"
)

func TestWhatTheTrailRemembers(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_700_000_000, 0).UTC()
	record := func(minutes int, detail map[string]string) audit.Record {
		return audit.Record{Time: at.Add(time.Duration(minutes) * time.Minute), Node: "n-control", Actor: audit.Actor{Subject: "admin/ana"}, Detail: detail}
	}
	type brief struct {
		Kind         keyring.DenialKind
		Value, State string
		Block        bool
	}
	for name, tc := range map[string]struct {
		records []audit.Record
		want    []brief
	}{
		"nothing":       {nil, nil},
		"no revocation": {[]audit.Record{record(0, map[string]string{"action": "key.issue", "key": "k"}), record(1, nil)}, nil},
		"one of each": {[]audit.Record{
			record(1, map[string]string{"action": "revoke.user", "value": "dev/eve", "block": "yes"}),
			record(2, map[string]string{"action": "revoke.node", "value": "n-1"}), record(3, map[string]string{"action": "revoke.signing_key", "value": "s-1"}),
			record(4, map[string]string{"action": "admin.revoke", "id": "u-1", "name": "bob"}), record(5, map[string]string{"action": "key.revoke", "key": "k-1", "cascade": "keep", "nodes": ""}),
		}, []brief{
			{keyring.DenyAdmin, "u-1", "", false}, {keyring.DenyKey, "k-1", "", false}, {keyring.DenyNode, "n-1", "", false},
			{keyring.DenySigningKey, "s-1", "", false}, {keyring.DenySubject, "dev/eve", "", true},
		}},
		"lifted": {[]audit.Record{
			record(0, map[string]string{"action": "revoke.user", "value": "dev/eve", "block": "yes"}), record(1, map[string]string{"action": "revocation.lift", "kind": "subject", "value": "dev/eve"}),
		}, nil},
		"revoked again, and told out of order": {[]audit.Record{
			record(2, map[string]string{"action": "revoke.user", "value": "dev/eve", "block": "yes"}), record(1, map[string]string{"action": "revocation.lift", "kind": "subject", "value": "dev/eve"}),
			record(0, map[string]string{"action": "revoke.user", "value": "dev/eve", "block": "yes"}),
		}, []brief{{keyring.DenySubject, "dev/eve", "", true}}},
		"sessions alone, which no restoration takes back": {[]audit.Record{
			record(0, map[string]string{"action": "revoke.session", "value": "sid"}), record(1, map[string]string{"action": "revoke.user", "value": "dev/eve", "block": "no"}),
		}, nil},
		"a block stays": {[]audit.Record{
			record(0, map[string]string{"action": "revoke.user", "value": "dev/eve", "block": "yes"}), record(1, map[string]string{"action": "revoke.user", "value": "dev/eve", "block": "no"}),
		}, []brief{{keyring.DenySubject, "dev/eve", "", true}}},
		"cascades": {[]audit.Record{
			record(0, map[string]string{"action": "revoke.node", "value": "n-2"}),
			record(1, map[string]string{"action": "key.revoke", "key": "k-1", "cascade": "quarantine", "nodes": "n-1 n-2"}),
			record(2, map[string]string{"action": "key.revoke", "key": "k-2", "cascade": "kill", "nodes": "n-3"}),
			record(3, map[string]string{"action": "key.revoke", "key": "k-3", "cascade": "keep", "nodes": "n-4"}),
		}, []brief{
			{keyring.DenyKey, "k-1", "", false}, {keyring.DenyKey, "k-2", "", false}, {keyring.DenyKey, "k-3", "", false},
			{keyring.DenyNode, "n-1", "quarantined", false}, {keyring.DenyNode, "n-2", "", false}, {keyring.DenyNode, "n-3", "", false},
		}},
		"for a time": {[]audit.Record{
			record(0, map[string]string{"action": "key.suspend", "key": "k-1"}), record(1, map[string]string{"action": "key.suspend", "key": "k-2"}),
			record(2, map[string]string{"action": "key.resume", "key": "k-2"}), record(3, map[string]string{"action": "node.quarantine", "node": "n-1"}),
			record(4, map[string]string{"action": "node.quarantine", "node": "n-2"}), record(5, map[string]string{"action": "node.release", "node": "n-2"}),
			record(6, map[string]string{"action": "node.remove", "node": "n-3"}),
		}, []brief{{keyring.DenyKey, "k-1", "suspended", false}, {keyring.DenyNode, "n-1", "quarantined", false}, {keyring.DenyNode, "n-3", "departed", false}}},
		"released after a cascade": {[]audit.Record{
			record(0, map[string]string{"action": "key.revoke", "key": "k-1", "cascade": "quarantine", "nodes": "n-1 n-2"}), record(1, map[string]string{"action": "node.release", "node": "n-1"}),
		}, []brief{{keyring.DenyKey, "k-1", "", false}, {keyring.DenyNode, "n-2", "quarantined", false}}},
		"revoked stays revoked": {[]audit.Record{
			record(0, map[string]string{"action": "key.revoke", "key": "k-1", "cascade": "keep"}), record(1, map[string]string{"action": "key.suspend", "key": "k-1"}), record(2, map[string]string{"action": "key.resume", "key": "k-1"}),
			record(0, map[string]string{"action": "revoke.node", "value": "n-1"}), record(1, map[string]string{"action": "node.quarantine", "node": "n-1"}), record(2, map[string]string{"action": "node.release", "node": "n-1"}),
		}, []brief{{keyring.DenyKey, "k-1", "", false}, {keyring.DenyNode, "n-1", "", false}}},
		"suspended, then revoked": {[]audit.Record{
			record(0, map[string]string{"action": "key.suspend", "key": "k-1"}), record(1, map[string]string{"action": "key.revoke", "key": "k-1", "cascade": "keep"}),
		}, []brief{{keyring.DenyKey, "k-1", "", false}}},
		"keys that were suspended, or had a successor": {[]audit.Record{
			record(0, map[string]string{"action": "key.suspend", "key": "k-1"}),
			record(0, map[string]string{"action": "key.suspend", "key": "k-2"}), record(1, map[string]string{"action": "key.resume", "key": "k-2"}),
			record(0, map[string]string{"action": "key.revoke", "key": "k-3"}), record(1, map[string]string{"action": "key.resume", "key": "k-3"}), record(2, map[string]string{"action": "key.suspend", "key": "k-3"}),
			record(0, map[string]string{"action": "key.rotate", "key": "k-4", "successor": "k-5"}),
			record(0, map[string]string{"action": "key.rotate", "key": "k-6", "successor": "k-7", "state": "pending"}),
			record(0, map[string]string{"action": "key.rotate", "key": "k-8", "successor": "k-9", "state": "pending"}), record(1, map[string]string{"action": "key.approve", "key": "k-9", "predecessor": "k-8"}),
			record(1, map[string]string{"action": "key.approve", "key": "k-first"}), record(0, map[string]string{"action": "key.close-proposal", "key": "k-p"}),
		}, []brief{
			{keyring.DenyKey, "k-1", "suspended", false}, {keyring.DenyKey, "k-3", "", false}, {keyring.DenyKey, "k-4", "suspended", false},
			{keyring.DenyKey, "k-8", "suspended", false}, {keyring.DenyKey, "k-p", "", false},
		}},
		"nodes that were quarantined, or removed": {[]audit.Record{
			record(0, map[string]string{"action": "node.quarantine", "node": "n-1"}),
			record(0, map[string]string{"action": "node.quarantine", "node": "n-2"}), record(1, map[string]string{"action": "node.release", "node": "n-2"}),
			record(0, map[string]string{"action": "key.revoke", "key": "k-1", "cascade": "quarantine", "nodes": "n-3"}), record(1, map[string]string{"action": "node.release", "node": "n-3"}),
			record(0, map[string]string{"action": "revoke.node", "value": "n-4"}), record(1, map[string]string{"action": "node.quarantine", "node": "n-4"}),
			record(0, map[string]string{"action": "node.remove", "node": "n-5"}),
		}, []brief{
			{keyring.DenyKey, "k-1", "", false}, {keyring.DenyNode, "n-1", "quarantined", false}, {keyring.DenyNode, "n-4", "", false}, {keyring.DenyNode, "n-5", "departed", false},
		}},
		"held back when a restoration was confirmed": {[]audit.Record{
			record(0, map[string]string{"action": "snapshot.confirm", "except": "abcdefgh n-1"}),
		}, []brief{{keyring.DenyKey, "abcdefgh", "suspended", false}, {keyring.DenyNode, "n-1", "quarantined", false}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []brief
			for _, d := range backup.FromRecords(tc.records, backup.Writers{"n-control": true}) {
				if d.Source != keyring.FromTrail || d.By != "admin/ana" || d.At.IsZero() {
					t.Errorf("%s %s: source %s, by %s, at %s", d.Kind, d.Value, d.Source, d.By, d.At)
				}
				got = append(got, brief{d.Kind, d.Value, d.State, d.Block})
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// A control node that was put out may still hand in a trail, in which it dates what it likes as it likes: it takes nothing back by that.
func TestAControlNodeThatWasPutOutTakesNothingBack(t *testing.T) {
	t.Parallel()
	said := func(second int64, node, action, key, value string) audit.Record {
		return audit.Record{Time: time.Unix(1_700_000_000+second, 0).UTC(), Node: node, Detail: map[string]string{"action": action, key: value, "kind": string(keyring.RevokeSubject), "block": "yes"}}
	}
	var got []string
	for _, d := range backup.FromRecords([]audit.Record{
		said(1, "n-control", "revoke.user", "value", "dev/eve"), said(2, "n-control", "revoke.user", "value", "dev/ana"), said(3, "n-control", "key.suspend", "key", "k-1"),
		said(4, "n-taken", "revocation.lift", "value", "dev/eve"), said(4, "n-taken", "key.resume", "key", "k-1"), said(5, "n-control", "revocation.lift", "value", "dev/ana"),
		said(6, "n-taken", "revoke.user", "value", "dev/mallory"), // it led when this was done
		said(7, "n-control", "node.quarantine", "node", "n-taken"), said(8, "n-taken", "node.release", "node", "n-taken"),
	}, backup.Writers{"n-control": true, "n-taken": true}) {
		got = append(got, string(d.Kind)+" "+d.Value)
	}
	if diff := cmp.Diff([]string{"key k-1", "node n-taken", "user dev/eve", "user dev/mallory"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A proxy that was taken over writes what it likes into its own trail. It takes nothing back by that, and revokes nobody.
func TestOnlyControlNodesAreBelievedOfRevocations(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_700_000_000, 0).UTC()
	said := func(node, action, key, value string) audit.Record {
		at = at.Add(time.Second)
		return audit.Record{Time: at, Node: node, Detail: map[string]string{"action": action, key: value, "kind": string(keyring.RevokeSubject), "block": "yes"}}
	}
	records := []audit.Record{
		said("n-control", "revoke.user", "value", "dev/eve"), said("n-control", "key.suspend", "key", "k-1"), said("n-control", "node.quarantine", "node", "n-1"),
	}
	for _, forger := range []string{"n-proxy", "n-unknown"} {
		records = append(records, said(forger, "revocation.lift", "value", "dev/eve"), said(forger, "key.resume", "key", "k-1"), said(forger, "node.release", "node", "n-1"))
	}
	records = append(records, said("n-proxy", "admin.revoke", "id", "u-1"), said("n-unknown", "key.revoke", "key", "k-2"))
	var got []string
	for _, d := range backup.FromRecords(records, backup.Writers{"n-control": true, "n-proxy": false}) {
		got = append(got, string(d.Kind)+" "+d.Value)
	}
	if diff := cmp.Diff([]string{"key k-1", "key k-2", "node n-1", "user dev/eve"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
