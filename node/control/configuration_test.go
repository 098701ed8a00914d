package control_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// apply asks for resources as a person writes them.
func apply(t testing.TB, yaml string) *iapmeshv1.ApplyRequest {
	t.Helper()
	docs, err := resource.Parse("mesh.yaml", []byte(yaml))
	must(t, err)
	req := &iapmeshv1.ApplyRequest{}
	for _, d := range docs {
		req.Resources = append(req.Resources, &iapmeshv1.Resource{Kind: d.Ref().Kind, Name: d.Ref().Name, Spec: d.JSON, Source: d.Source})
	}
	return req
}

func zones(names ...string) string {
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "---\nkind: Zone\nname: %s\n", n)
	}
	return b.String()
}

// actions are what an apply did, in order.
func actions(changes []*iapmeshv1.ResourceChange) []string {
	var out []string
	for _, c := range changes {
		out = append(out, c.Action+" "+c.Kind+"/"+c.Name)
	}
	return out
}

func wantActions(t *testing.T, what string, changes []*iapmeshv1.ResourceChange, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, actions(changes)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func (w *world) blobs() int {
	w.t.Helper()
	entries, _, err := w.engine.List(w.t.Context(), state.PrefixBlob)
	must(w.t, err)
	return len(entries)
}

const app = "---\nkind: Route\nname: app\nhosts: [app.example.com]\nzone: inner\nupstreams: [{url: 'http://127.0.0.1:1'}]\nallow: [{anyone: true}]\n"

func TestApplyAndDelete(t *testing.T) {
	t.Parallel()
	w := start(t)
	req := apply(t, zones("inner")+app)
	req.DryRun = true
	before := w.view().Revision
	dry, err := w.Apply(t.Context(), "admin/ana", req)
	must(t, err)
	wantActions(t, "dry run", dry.Changes, "create Route/app", "create Zone/inner")
	if w.view().Revision != before || w.blobs() != 0 || len(w.trail.with(audit.KindAdmin, "action", "apply")) != 0 {
		t.Error("a dry run wrote something")
	}
	req.DryRun = false
	done, err := w.Apply(t.Context(), "admin/ana", req)
	must(t, err)
	v := w.view()
	if done.Digest != dry.Digest || v.Config.Digest != done.Digest || v.Config.Match("app.example.com", "/") == nil || w.source.Problem() != "" || after(done.Revision, v.Revision) {
		t.Errorf("applied %x at %v, the view has %x at %v", done.Digest, done.Revision, v.Config.Digest, v.Revision)
	}
	if rs := w.trail.with(audit.KindAdmin, "changes", "create Route/app, create Zone/inner"); len(rs) != 1 || rs[0].Actor.Subject != "admin/ana" {
		t.Errorf("records: %+v", rs)
	}

	at := w.view().Revision
	same, err := w.Apply(t.Context(), "admin/ana", req)
	must(t, err)
	wantActions(t, "again", same.Changes, "unchanged Route/app", "unchanged Zone/inner")
	if w.view().Revision != at {
		t.Error("what is unchanged was written")
	}

	_, err = w.Delete(t.Context(), "admin/ana", resource.Ref{Kind: "Zone", Name: "inner"})
	wantKind(t, "delete what is needed", err, fault.Invalid, "inner")
	_, err = w.Delete(t.Context(), "admin/ana", resource.Ref{Kind: "Zone", Name: "none"})
	wantKind(t, "delete nothing", err, fault.NotFound, "no Zone/none")
	gone, err := w.Delete(t.Context(), "admin/ana", resource.Ref{Kind: "Route", Name: "app"})
	must(t, err)
	wantActions(t, "delete", gone.Changes, "delete Route/app")
	if w.view().Config.Match("app.example.com", "/") != nil {
		t.Error("the route is still served")
	}
}

func TestARefusedApplyWritesNothing(t *testing.T) {
	t.Parallel()
	w := start(t)
	must(t, second(w.Apply(t.Context(), "admin/ana", apply(t, zones("inner")))))
	read, err := w.Resources(t.Context(), "Zone", "inner")
	must(t, err)
	twice := apply(t, zones("a"))
	twice.Resources = append(twice.Resources, twice.Resources[0])
	stale := apply(t, "kind: Zone\nname: inner\nparents: [outer]\n"+zones("outer"))
	stale.Base = map[string][]byte{"Zone/inner": make([]byte, 32)}
	appeared := apply(t, zones("new"))
	appeared.Base = map[string][]byte{"Zone/new": read.Hashes["Zone/inner"]}
	unexpected := apply(t, zones("b"))
	unexpected.Base = map[string][]byte{"Zone/inner": nil} // read as absent
	many := &iapmeshv1.ApplyRequest{}
	for i := range 5000 {
		many.Resources = append(many.Resources, &iapmeshv1.Resource{Kind: "Zone", Name: fmt.Sprintf("z-%d", i), Spec: fmt.Appendf(nil, `{"kind":"Zone","name":"z-%d"}`, i)})
	}
	for what, tc := range map[string]struct {
		req  *iapmeshv1.ApplyRequest
		kind fault.Kind
		says string
	}{
		"a route without its zone": {apply(t, strings.ReplaceAll(app, "zone: inner", "zone: elsewhere")), fault.Invalid, "elsewhere"},
		"two wrong at once":        {&iapmeshv1.ApplyRequest{Resources: []*iapmeshv1.Resource{{Kind: "Zone", Name: "x", Spec: []byte("{")}, {Kind: "Zome", Name: "y"}}}, fault.Invalid, "Zome"},
		"the same twice":           {twice, fault.Invalid, "Zone/a: is there twice"},
		"one changed meanwhile":    {stale, fault.Conflict, "somebody changed it"},
		"one that is gone":         {appeared, fault.Conflict, "somebody changed it"},
		"one that has come":        {unexpected, fault.Conflict, "somebody changed it"},
		"more than there may be":   {many, fault.Exhausted, "5001 resources"},
	} {
		at, blobs := w.view().Revision, w.blobs()
		_, err := w.Apply(t.Context(), "admin/ana", tc.req)
		wantKind(t, what, err, tc.kind, tc.says)
		if w.view().Revision != at || w.blobs() != blobs {
			t.Errorf("%s: something was written", what)
		}
	}
	good := apply(t, "kind: Zone\nname: inner\nparents: [outer]\n"+zones("outer"))
	good.Base = read.Hashes
	must(t, second(w.Apply(t.Context(), "admin/ana", good)))
}

// More resources than one commit takes become one configuration at once, or not at all.
func TestALargeApplyIsOneConfiguration(t *testing.T) {
	t.Parallel()
	w := start(t)
	const n = 450
	req := &iapmeshv1.ApplyRequest{}
	for i := range n {
		req.Resources = append(req.Resources, &iapmeshv1.Resource{Kind: "Zone", Name: fmt.Sprintf("z-%d", i), Spec: fmt.Appendf(nil, `{"kind":"Zone","name":"z-%d"}`, i)})
	}
	w.engine.setSpoil(func(txn store.Txn) (bool, error) {
		for _, e := range txn.Puts {
			if e.Key == state.PathManifest {
				return false, fault.New(fault.Unavailable, "the last commit does not come through")
			}
		}
		return false, nil
	})
	empty := w.view().Config.Digest
	_, err := w.Apply(t.Context(), "admin/ana", req)
	wantKind(t, "the manifest's commit fails", err, fault.Unavailable, "the last commit")
	if w.view().Config.Digest != empty || w.blobs() != n {
		t.Errorf("configuration %x, %d blobs", w.view().Config.Digest, w.blobs())
	}
	w.engine.setSpoil(nil)
	done, err := w.Apply(t.Context(), "admin/ana", req)
	must(t, err)
	got, err := w.Resources(t.Context(), "", "")
	must(t, err)
	if len(got.Resources) != n || len(got.Hashes) != n || string(got.ManifestDigest) != string(done.Digest[:]) {
		t.Errorf("%d resources", len(got.Resources))
	}
	_, err = w.Resources(t.Context(), "Zone", "none")
	wantKind(t, "one that is not there", err, fault.NotFound, "no Zone/none")
}

// Two who apply at once both get what they asked for.
func TestRacingApplies(t *testing.T) {
	t.Parallel()
	w := start(t)
	errs := make(chan error, 6)
	for i := range cap(errs) {
		req := apply(t, zones(fmt.Sprintf("z-%d", i)))
		go func() { errs <- second(w.Apply(t.Context(), "admin/ana", req)) }()
	}
	for range cap(errs) {
		must(t, <-errs)
	}
	got, err := w.Resources(t.Context(), "Zone", "")
	must(t, err)
	if len(got.Resources) != cap(errs) {
		t.Errorf("%d of %d are there", len(got.Resources), cap(errs))
	}
}

// What was set is nowhere in what the API answers.
func TestASecretIsNeverReadBack(t *testing.T) {
	t.Parallel()
	w := start(t)
	const canary = "canary-5f1e"
	must(t, second(w.SetSecret(t.Context(), "admin/ana", "okta", []byte(canary))))
	status, err := w.Status(t.Context())
	must(t, err)
	resources, err := w.Resources(t.Context(), "", "")
	must(t, err)
	entries, _, err := w.engine.List(t.Context(), "")
	must(t, err)
	var stored strings.Builder
	for _, e := range entries {
		stored.WriteString(e.Key)
		stored.Write(e.Value)
	}
	for _, text := range []string{status.String(), resources.String(), stored.String(), fmt.Sprintf("%+v", w.trail.with(audit.KindAdmin, "name", "okta")[0])} {
		if strings.Contains(text, canary) {
			t.Errorf("it is in %.200s", text)
		}
	}
}

// A commit that this node's term no longer covers says who leads.
func TestALostLead(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.engine.setSpoil(func(store.Txn) (bool, error) { return false, fault.New(fault.Conflict, "another term") })
	_, err := w.Apply(t.Context(), "admin/ana", apply(t, zones("a")))
	wantKind(t, "conflicts without end", err, fault.Unavailable, "try again")
	w.engine.setSpoil(func(store.Txn) (bool, error) { return false, errors.New("the disk") })
	_, err = w.Apply(t.Context(), "admin/ana", apply(t, zones("a")))
	wantKind(t, "an engine that fails", err, fault.Internal, "the disk")
}
