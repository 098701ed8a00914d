// Package iapmesh_test holds the rules of the whole module that a compiler does not: who may import whom, and the few
// habits of CONTRIBUTING.md that a program can check. It needs nothing but the source, so `make test` runs it everywhere.
package iapmesh_test

import (
	"os"
	"testing"
)

const module = "github.com/iapmesh/iapmesh"

// The two that nearly everything uses.
const (
	fault = "internal/fault"
	proto = "proto/iapmesh/v1"
)

// mayImport is the table: the packages of this module that a package's code may import directly, beside anyFrom.
// A package without a row fails. To add one, give it a row where it stands in the order, below what uses it; to widen a row,
// ask first whether the import points down: the domain knows nothing of engines, wires or servers.
// "x/..." stands for x and everything below it.
var mayImport = map[string][]string{
	// The domain: no I/O.
	"internal/fault":      {},
	"internal/identity":   {fault},
	"internal/revision":   {fault},
	"internal/credential": {fault},
	proto:                 {},
	"keyring":             {fault, "internal/identity"},
	"keyring/seal":        {"keyring", fault},
	"policy":              {fault, "internal/identity"},
	"audit":               {fault, "internal/identity"},

	// Adapters: disks, wires, engines.
	"keyring/kms":           {fault},
	"audit/spool":           {"audit", proto, fault},
	"audit/collect":         {"audit", "audit/spool", proto, fault},
	"cluster/store":         {fault},
	"cluster/storetest":     {"cluster/store", fault},
	"cluster/statemap":      {"cluster/store", fault},
	"cluster/peer":          {"keyring", fault},
	"cluster/raftstore":     {"cluster/store", "cluster/statemap", "cluster/peer", "keyring/seal", proto, fault},
	"cluster/etcdstore":     {"cluster/store", "cluster/statemap", "cluster/peer", "keyring/seal", proto, fault},
	"cluster/replica":       {"cluster/store", "cluster/statemap", "cluster/peer", "keyring/seal", proto, fault},
	"cluster/gossip":        {fault, proto},
	"cluster/enroll":        {"keyring", "keyring/seal", "cluster/peer", proto, fault},
	"internal/dev":          {"internal/dev/...", proto, fault},
	"internal/profile":      {"cluster/peer", fault},
	"internal/snapshotfile": {"cluster/store", "keyring/seal", fault},
	"internal/backup":       {"internal/profile", "internal/snapshotfile", "keyring", "node/state", "audit", "audit/collect", proto, fault},
	"internal/dev/ca":       {fault},
	"internal/dev/page":     {fault},
	"internal/dev/app":      {"internal/dev/...", proto, fault},
	"internal/dev/idp":      {"internal/dev/...", proto, fault},
	"node/page":             {},
	"node/resource":         {"policy", fault, "internal/identity"},
	"node/state":            {proto, "cluster/store", "keyring", "policy", "node/resource", fault},
	"node/session":          {"node/state", "node/resource", "keyring", "internal/identity", fault},
	"node/login":            {"node/page", "node/session", "node/state", "node/resource", "keyring", "keyring/seal", "policy", "audit", "internal/identity", fault},
	"node/proxy":            {"node/page", "node/session", "node/assertion", "node/state", "node/resource", "policy", "audit", "audit/spool", "internal/identity", fault},
	"node/tunnel":           {"node/session", "node/state", "node/resource", "policy", "audit", "audit/spool", "internal/identity", fault},
	"node/assertion":        {"node/state", "node/resource", "keyring", "keyring/seal", "internal/identity", fault},
	"node/control":          {proto, "node/state", "node/resource", "cluster/store", "keyring", "keyring/seal", "audit", fault},
	"node/sink":             {"keyring", "internal/credential", fault},
	"node/rotate":           {"keyring", "keyring/seal", "node/sink", fault},
	"node/admin":            {"node/control", "node/state", "node/resource", "internal/snapshotfile", "cluster/store", "keyring", proto, fault},
	"node/console":          {"node/control", "node/state", "node/resource", "audit/collect", proto, fault},

	// The whole.
	"node": {
		fault, proto, "internal/profile", "internal/snapshotfile", "internal/identity", "keyring", "keyring/kms", "keyring/seal", "policy", "audit", "audit/spool", "audit/collect",
		"cluster/store", "cluster/peer", "cluster/raftstore", "cluster/etcdstore", "cluster/replica", "cluster/gossip", "cluster/enroll",
		"node/resource", "node/state", "node/session", "node/assertion", "node/login", "node/proxy", "node/tunnel", "node/control", "node/admin", "node/console",
		"internal/credential", "node/sink", "node/rotate",
	},
	"node/nodetest":     {"node", "node/resource", "node/sink", "keyring", "internal/profile", "internal/backup", "internal/snapshotfile", "internal/dev/...", proto, fault},
	"internal/dev/mesh": {"node", "node/resource", "keyring", "internal/profile", "internal/dev/...", proto, fault}, // its nodes run as processes of their own
	// Beside the node, what the command line does by itself, offline: keys, policies, and verifying a trail with public keys alone.
	"cmd/iapmesh": {
		"node", "node/control", "node/resource", "node/state", "keyring", "policy", "audit", "audit/collect",
		"cluster/enroll", // a key that was found is revoked without a profile, and so without any other client
		"internal/profile", "internal/snapshotfile", "internal/backup", "internal/identity", "internal/dev/...", proto, fault,
	},
	"e2e":  {"internal/profile", "internal/dev/...", proto, fault}, // it drives the binary, as a user does
	"docs": {"node", "node/resource", "policy", fault},             // its tests hold the guides against the code
	".":    {},
}

// anyFrom may be imported by every package: the one type that names a state of the mesh.
var anyFrom = []string{"internal/revision"}

// testsFrom may be imported by every test, beside what its package imports and all that lies below that.
var testsFrom = []string{fault, proto, "internal/identity", "internal/dev/...", "cluster/storetest", "cluster/raftstore", "node/nodetest"}

func TestArchitecture(t *testing.T) {
	t.Parallel()
	tree, err := readTree(os.DirFS("."))
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range rules {
		t.Run(rule.name, func(t *testing.T) {
			t.Parallel()
			for _, finding := range rule.check(tree) {
				t.Error(finding)
			}
		})
	}
}
