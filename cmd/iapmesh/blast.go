package main

import (
	"context"
	"fmt"

	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// previewNode says what the revocation of a node would end.
func (c *cli) previewNode(ctx context.Context, ref string) error {
	req := &iapmeshv1.PreviewNodeRevocationRequest{Node: ref}
	resp, err := unary(ctx, c, iapmeshv1.NewLineageServiceClient, iapmeshv1.LineageServiceClient.PreviewNodeRevocation, req)
	if err != nil {
		return err
	}
	err = c.print(resp, func(t *table) {
		t.line("dry run, nothing changed: would revoke node %s", printable(ref))
		blastLines(t, nil, resp.Blast, true)
	})
	return refusedFirst(err, resp.Blast)
}

// refusedFirst fails a dry run whose output has said that the mesh would refuse.
func refusedFirst(err error, blast *iapmeshv1.BlastRadius) error {
	if err == nil && blast.GetRefusal() != "" {
		return errReported
	}
	return err
}

// blastLines says what a revocation ends or, in a dry run, would end: the tree under the key with what becomes of each node, and then what
// goes with them.
func blastLines(t *table, l *iapmeshv1.Lineage, b *iapmeshv1.BlastRadius, dryRun bool) {
	if b == nil {
		return
	}
	names := map[string]string{}
	for _, n := range l.GetNodes() {
		names[n.Id] = n.Name
	}
	if l != nil {
		d := newLineageTree(l)
		d.becoming, d.revoked = map[string]iapmeshv1.NodeState{}, l.Key
		for _, n := range b.Nodes {
			d.becoming[n.Node.Id] = n.Node.State
		}
		t.tree(d.root())
	}
	ends := "what ended:"
	if dryRun {
		ends = "what would end:"
	}
	root := &branch{cells: []cell{{text: ends}}}
	for _, n := range b.Nodes {
		names[n.Node.Id] = n.Node.Name
		if l == nil {
			root.add(cell{text: "node"}, cell{text: n.Node.Name, style: bold}, cell{text: "(" + n.Node.Region + ")"}, cell{text: rolesText(n.Node.Roles) + ","},
				cell{text: enumText(n.Before, "NODE_STATE_") + " → " + enumText(n.Node.State, "NODE_STATE_"), style: red}, cell{text: n.Node.Id, style: dim})
		}
	}
	for _, k := range b.SigningKeys {
		whose := "assertions in " + k.Region
		if k.Kind == iapmeshv1.SigningKeyKind_SIGNING_KEY_KIND_SESSION {
			whose = "sessions of " + names[k.Node]
		}
		root.add(cell{text: "signing key"}, cell{text: k.Kid, style: bold}, cell{text: "(" + whose + "):"}, cell{text: enumText(k.State, "SIGNING_KEY_STATE_") + " → revoked", style: red})
	}
	for _, r := range b.Routes {
		root.add(cell{text: "route"}, cell{text: r.Route, style: bold}, cell{text: "has no proxy left in " + r.Region, style: red})
	}
	if b.Sessions.GetAtMost() > 0 {
		root.add(cell{text: liveText(b.Sessions), style: red})
	}
	if n := b.Sessions.GetSilent(); n > 0 && len(b.Nodes)+len(b.SigningKeys) > 0 {
		root.add(cell{text: fmt.Sprintf("and the sessions that only proxies have seen that do not report: %d of them", n), style: yellow})
	}
	if len(root.children) == 0 {
		root.add(cell{text: nothingElse(l != nil, len(b.Nodes) > 0)})
	}
	t.tree(root)
	if b.Refusal != "" {
		t.line("%s", t.paint(red, "REFUSED: the mesh would not commit this: "+printable(b.Refusal)))
	}
}

// nothingElse says that nothing ends with a key, or with the nodes that change, which the tree of a key shows.
func nothingElse(ofKey, nodes bool) string {
	switch {
	case !ofKey: // whose change would stand there
		return "nothing: the node is revoked already"
	case nodes:
		return "nothing besides these nodes: no signing key, no live session, no route"
	}
	return "nothing but the key: its nodes and their sessions stay"
}
