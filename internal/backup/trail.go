package backup

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/collect"
	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// memory is what records say is refused, by what it is.
type memory map[string]keyring.Denial

// deny takes a denial, unless it is one for a time and the thing is revoked: revoked stays revoked.
func (m memory) deny(d keyring.Denial) {
	id := string(d.Kind) + " " + d.Value
	if have, known := m[id]; d.Value == "" || known && have.State == "" && d.State != "" {
		return
	}
	m[id] = d
}

func (m memory) lift(kind keyring.DenialKind, value string) { delete(m, string(kind)+" "+value) }

// end takes back a denial that was for a time, in that state.
func (m memory) end(kind keyring.DenialKind, value, state string) {
	if m[string(kind)+" "+value].State == state {
		m.lift(kind, value)
	}
}

// takesBack reports whether an action makes the mesh refuse less.
func takesBack(action string) bool {
	return slices.Contains([]string{"revocation.lift", "key.resume", "node.release"}, action)
}

// see takes one record, in the order in which they were written. What ended sessions alone is not remembered: a restoration refuses every
// session of before it, and each sign-out leaves such a record.
func (m memory) see(r audit.Record) {
	d := r.Detail
	denial := keyring.Denial{Value: d["value"], Reason: d["reason"], By: r.Actor.Subject, At: r.Time, Source: keyring.FromTrail}
	as := func(kind keyring.DenialKind, value string) keyring.Denial {
		out := denial
		out.Kind, out.Value = kind, value
		return out
	}
	switch d["action"] {
	case "revoke.user":
		if out := as(keyring.DenySubject, d["value"]); d["block"] == "yes" { // it stays until it is lifted
			out.Block = true
			m.deny(out)
		}
	case "revoke.node":
		m.deny(as(keyring.DenyNode, d["value"]))
	case "revoke.signing_key":
		m.deny(as(keyring.DenySigningKey, d["value"]))
	case "key.revoke":
		m.deny(as(keyring.DenyKey, d["key"]))
		m.cascade(as, d)
	case "key.suspend", "key.resume", "key.rotate", "key.approve", "key.close-proposal":
		m.key(as, d)
	case "node.quarantine", "node.release", "node.remove", "node.leave", "node.depart":
		m.node(as, d)
	case "snapshot.confirm":
		m.heldBack(as, d)
	case "admin.revoke":
		m.deny(as(keyring.DenyAdmin, d["id"]))
	case "revocation.lift":
		if d["kind"] == string(keyring.RevokeSubject) {
			m.lift(keyring.DenySubject, d["value"])
		}
	}
}

// key is what was done to a key, short of revoking it. One that gave its place up to a successor admits nobody for long: the grace that
// may be left of it is not worth to be remembered.
func (m memory) key(as func(keyring.DenialKind, string) keyring.Denial, d map[string]string) {
	out := as(keyring.DenyKey, d["key"])
	out.State = string(keyring.KeySuspended)
	switch d["action"] {
	case "key.suspend":
	case "key.resume":
		m.end(keyring.DenyKey, out.Value, out.State)
		return
	case "key.close-proposal":
		out.State = ""
	case "key.rotate":
		if d["state"] == string(keyring.KeyPending) { // its successor awaits an approval first
			return
		}
		out.Reason = "rotated to " + d["successor"]
	case "key.approve":
		out.Value, out.Reason = d["predecessor"], "rotated to "+d["key"]
	}
	m.deny(out)
}

// node is what an operator did to a node, short of revoking it.
func (m memory) node(as func(keyring.DenialKind, string) keyring.Denial, d map[string]string) {
	out := as(keyring.DenyNode, d["node"])
	switch d["action"] {
	case "node.quarantine":
		out.State = string(keyring.NodeQuarantined)
	case "node.remove", "node.leave", "node.depart":
		out.State = string(keyring.NodeDeparted)
	case "node.release":
		m.end(keyring.DenyNode, out.Value, string(keyring.NodeQuarantined))
		return
	}
	m.deny(out)
}

// heldBack is what an operator excepted when he confirmed a restoration.
func (m memory) heldBack(as func(keyring.DenialKind, string) keyring.Denial, d map[string]string) {
	for _, id := range strings.Fields(d["except"]) {
		out := as(keyring.DenyKey, id)
		out.State, out.Reason = string(keyring.KeySuspended), "held back when a restoration was confirmed"
		if strings.HasPrefix(id, "n-") {
			out.Kind, out.State = keyring.DenyNode, string(keyring.NodeQuarantined)
		}
		m.deny(out)
	}
}

// cascade is what a key's revocation did to the nodes under it.
func (m memory) cascade(as func(keyring.DenialKind, string) keyring.Denial, d map[string]string) {
	for _, node := range strings.Fields(d["nodes"]) {
		out := as(keyring.DenyNode, node)
		out.Reason = "key " + d["key"] + " revoked"
		switch keyring.Cascade(d["cascade"]) {
		case keyring.CascadeKill:
		case keyring.CascadeQuarantine:
			out.State = string(keyring.NodeQuarantined)
		default:
			continue
		}
		m.deny(out)
	}
}

// Writers says of the nodes that are known whether they are control nodes.
type Writers map[string]bool

// FromRecords is what records, whatever their order, say is still refused. Only control nodes write such records: what any other is known
// to have written is its own invention, and who is not known may make the mesh refuse more, but not less. Nor may one that was put out in
// the meantime: it may hand in its trail after that, and dates what it writes as it likes.
func FromRecords(records []audit.Record, by Writers) []keyring.Denial {
	slices.SortStableFunc(records, func(a, b audit.Record) int { return a.Time.Compare(b.Time) })
	denied, m := memory{}, memory{}
	for _, r := range records {
		if control, known := by[r.Node]; (control || !known) && !takesBack(r.Detail["action"]) {
			denied.see(r)
		}
	}
	for _, r := range records {
		control, known := by[r.Node]
		_, putOut := denied[string(keyring.DenyNode)+" "+r.Node]
		if known && !control || (!known || putOut) && takesBack(r.Detail["action"]) {
			continue
		}
		m.see(r)
	}
	return slices.SortedFunc(maps.Values(m), func(a, b keyring.Denial) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Value, b.Value))
	})
}

// trailSkew is how much earlier than the snapshot the trail is read: clocks differ.
const trailSkew = 5 * time.Minute

// Trail is where to read, and what.
type Trail struct {
	Aggregators []string      // their addresses
	Within      time.Duration // for so long they are asked; 0: as long as it takes
	Store       string        // directory of an aggregator's store on this machine, whose node is stopped; empty: there is none
	Since       time.Time
	Writers     Writers
}

// Remembered is what the trails remember as refused. An aggregator that does not answer is one that is not asked, and a store that cannot
// be read to its end tells what it told: the error is in errs.
func Remembered(ctx context.Context, client *profile.Client, t Trail) (out []keyring.Denial, errs error) {
	var records []audit.Record
	take := func(node string, r audit.Record) {
		r.Node = node // who shipped it, as the aggregator knows by the connection
		records = append(records, r)
	}
	from, kinds := t.Since.Add(-trailSkew), []audit.Kind{audit.KindRevocation, audit.KindAdmin, audit.KindRotation}
	asking := ctx
	if t.Within > 0 {
		var cancel context.CancelFunc
		asking, cancel = context.WithTimeout(ctx, t.Within)
		defer cancel()
	}
	for _, address := range t.Aggregators {
		for _, kind := range kinds {
			errs = errors.Join(errs, askTrail(asking, client, address, &iapmeshv1.QueryRequest{Kind: string(kind), From: timestamppb.New(from)}, take))
		}
	}
	if t.Store != "" {
		for _, kind := range kinds {
			for e, err := range collect.ReadStore(ctx, t.Store, collect.Filter{Kind: kind, From: from}) {
				if err != nil {
					errs = errors.Join(errs, err)
					continue
				}
				take(e.ID.Node, e.Record)
			}
		}
	}
	return FromRecords(records, t.Writers), errs
}

func askTrail(ctx context.Context, client *profile.Client, address string, req *iapmeshv1.QueryRequest, take func(node string, r audit.Record)) error {
	return client.CallNode(ctx, address, func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		stream, err := iapmeshv1.NewAuditServiceClient(conn).Query(ctx, req, o...)
		if err != nil {
			return err
		}
		for {
			resp, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if r, err := audit.Decode(resp.Record); err == nil { // one that is not understood remembers nothing
				node, _, _ := strings.Cut(resp.Id, "/")
				take(node, r)
			}
		}
	})
}
