package control

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// MaxResources bounds one manifest.
const MaxResources = 5000

// Applied is what Apply did, or would do.
type Applied struct {
	Changes  []*iapmeshv1.ResourceChange
	Revision store.Revision
	Digest   [32]byte
}

// Apply makes resources part of the configuration, all or none: it compiles the whole that would result, writes the blobs, then
// flips the manifest by one guarded commit. With a dry run it only says what would change.
func (c *Controller) Apply(ctx context.Context, by string, req *iapmeshv1.ApplyRequest) (*Applied, error) {
	docs := make(map[resource.Ref]resource.Document, len(req.Resources))
	var errs []error
	for _, r := range req.Resources {
		ref := resource.Ref{Kind: r.Kind, Name: r.Name}
		doc, err := resource.FromJSON(ref, r.Spec, r.Source)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if _, twice := docs[ref]; twice {
			errs = append(errs, fault.New(fault.Invalid, "%s: is there twice", ref))
		}
		docs[ref] = doc
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fault.Wrap(fault.Invalid, err)
	}
	return c.change(ctx, by, docs, nil, req.Base, req.DryRun)
}

// Delete takes a resource out of the configuration.
func (c *Controller) Delete(ctx context.Context, by string, ref resource.Ref) (*Applied, error) {
	return c.change(ctx, by, nil, []resource.Ref{ref}, nil, false)
}

func (c *Controller) change(ctx context.Context, by string, set map[resource.Ref]resource.Document, remove []resource.Ref, base map[string][]byte, dryRun bool) (*Applied, error) {
	applied := &Applied{}
	decide := func(t *tx) (map[resource.Ref]resource.Document, error) {
		*applied = Applied{}
		m, err := t.manifest()
		if err != nil {
			return nil, err
		}
		old, err := c.documents(t, m)
		if err != nil {
			return nil, err
		}
		if err := checkBase(old, base); err != nil {
			return nil, err
		}
		next := maps.Clone(old)
		maps.Copy(next, set)
		for _, ref := range remove {
			if _, ok := next[ref]; !ok {
				return nil, fault.New(fault.NotFound, "no %s", ref)
			}
			delete(next, ref)
		}
		if len(next) > MaxResources {
			return nil, fault.New(fault.Exhausted, "%d resources, at most %d", len(next), MaxResources)
		}
		compiled, err := resource.Compile(slices.Collect(maps.Values(next)), knownRegions(t.View))
		if err != nil {
			return nil, err
		}
		applied.Changes, applied.Digest = changes(old, next, set), compiled.Digest
		return next, nil
	}
	// Decided once without writing anything: what is refused leaves no blobs behind.
	at, err := c.update(ctx, "apply the configuration", func(t *tx) error {
		_, err := decide(t)
		return err
	})
	if err == nil && !dryRun && applied.changed() {
		if err := c.putBlobs(ctx, set); err != nil {
			return nil, err
		}
		at, err = c.update(ctx, "apply the configuration", func(t *tx) error {
			next, err := decide(t)
			if err == nil && applied.changed() {
				t.put(state.PutManifest(manifestOf(next, by, t)))
			}
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	applied.Revision = at
	if !dryRun {
		c.record(ctx, audit.KindAdmin, by, map[string]string{"action": "apply", "manifest": hex.EncodeToString(applied.Digest[:]), "changes": summary(applied.Changes)})
	}
	return applied, nil
}

func (a *Applied) changed() bool {
	return slices.ContainsFunc(a.Changes, func(ch *iapmeshv1.ResourceChange) bool { return ch.Action != "unchanged" })
}

// putBlobs writes the resources first, each under its hash: they are content, so writing one twice changes nothing.
func (c *Controller) putBlobs(ctx context.Context, set map[resource.Ref]resource.Document) error {
	batch := []store.Entry{}
	size := 0
	flush := func() error {
		_, err := c.update(ctx, "store resources", func(t *tx) error {
			for _, e := range batch {
				have, err := t.get(e.Key)
				if err != nil {
					return err
				}
				if have == nil {
					t.put(e)
				}
			}
			return nil
		})
		batch, size = batch[:0], 0
		return err
	}
	for _, ref := range slices.SortedFunc(maps.Keys(set), compareRefs) {
		d := set[ref]
		e := state.PutBlob(d.Hash, &iapmeshv1.Resource{Kind: ref.Kind, Name: ref.Name, Spec: d.JSON, Source: d.Source})
		if len(batch) == store.MaxOps || (len(batch) > 0 && size+len(e.Value) > store.MaxBytes/2) {
			if err := flush(); err != nil {
				return err
			}
		}
		batch, size = append(batch, e), size+len(e.Value)+len(e.Key)
	}
	return flush()
}

// documents reads what the manifest lists. Blobs never change, so they need no guard: the manifest's is enough.
func (c *Controller) documents(t *tx, m *iapmeshv1.Manifest) (map[resource.Ref]resource.Document, error) {
	docs := make(map[resource.Ref]resource.Document, len(m.Entries))
	for _, e := range m.Entries {
		if len(e.Hash) != 32 {
			return nil, fault.New(fault.Internal, "manifest: %s/%s: hash of %d bytes", e.Kind, e.Name, len(e.Hash))
		}
		entry, err := t.store.Get(t.ctx, state.BlobPath([32]byte(e.Hash)))
		if err != nil {
			return nil, err
		}
		var p iapmeshv1.Resource
		if err := proto.Unmarshal(entry.Value, &p); err != nil {
			return nil, fault.New(fault.Internal, "decode %s: %w", entry.Key, err)
		}
		doc, err := resource.FromJSON(resource.Ref{Kind: e.Kind, Name: e.Name}, p.Spec, p.Source)
		if err != nil {
			return nil, err
		}
		docs[doc.Ref()] = doc
	}
	return docs, nil
}

// Resources returns the resources in force, all or those of a kind or of one name.
func (c *Controller) Resources(ctx context.Context, kind, name string) (*iapmeshv1.GetResourcesResponse, error) {
	v, err := c.view()
	if err != nil {
		return nil, err
	}
	t := newTx(ctx, c.Store, v, c.Now())
	m, err := t.manifest()
	if err != nil {
		return nil, err
	}
	docs, err := c.documents(t, m)
	if err != nil {
		return nil, err
	}
	hashes := map[resource.Ref][32]byte{}
	out := &iapmeshv1.GetResourcesResponse{Hashes: map[string][]byte{}, Manifest: m}
	for _, ref := range slices.SortedFunc(maps.Keys(docs), compareRefs) {
		d := docs[ref]
		hashes[ref] = d.Hash
		if (kind == "" || kind == ref.Kind) && (name == "" || name == ref.Name) {
			out.Resources = append(out.Resources, &iapmeshv1.Resource{Kind: ref.Kind, Name: ref.Name, Spec: d.JSON, Source: d.Source})
			out.Hashes[ref.String()] = d.Hash[:]
		}
	}
	digest := resource.Digest(hashes)
	out.ManifestDigest = digest[:]
	if len(out.Resources) == 0 && name != "" {
		return nil, fault.New(fault.NotFound, "no %s/%s", kind, name)
	}
	return out, nil
}

func checkBase(old map[resource.Ref]resource.Document, base map[string][]byte) error {
	for ref, read := range base {
		kind, name, _ := strings.Cut(ref, "/")
		have, ok := old[resource.Ref{Kind: kind, Name: name}]
		if (!ok && len(read) > 0) || (ok && !bytes.Equal(have.Hash[:], read)) {
			return fault.New(fault.Conflict, "%s: somebody changed it since you read it: look at it again (iapmesh get %s %s)", ref, kind, name)
		}
	}
	return nil
}

func changes(old, next, set map[resource.Ref]resource.Document) []*iapmeshv1.ResourceChange {
	var out []*iapmeshv1.ResourceChange
	for ref := range set {
		before, had := old[ref]
		ch := &iapmeshv1.ResourceChange{Kind: ref.Kind, Name: ref.Name, Action: "create", After: next[ref].JSON}
		if had {
			ch.Action, ch.Before = "update", before.JSON
			if before.Hash == next[ref].Hash {
				ch.Action = "unchanged"
			}
		}
		out = append(out, ch)
	}
	for ref, before := range old {
		if _, kept := next[ref]; !kept {
			out = append(out, &iapmeshv1.ResourceChange{Kind: ref.Kind, Name: ref.Name, Action: "delete", Before: before.JSON})
		}
	}
	slices.SortFunc(out, func(a, b *iapmeshv1.ResourceChange) int {
		return strings.Compare(a.Kind+"/"+a.Name, b.Kind+"/"+b.Name)
	})
	return out
}

func summary(changes []*iapmeshv1.ResourceChange) string {
	var parts []string
	for _, ch := range changes {
		if ch.Action != "unchanged" {
			parts = append(parts, ch.Action+" "+ch.Kind+"/"+ch.Name)
		}
	}
	return strings.Join(parts, ", ")
}

func manifestOf(docs map[resource.Ref]resource.Document, by string, t *tx) *iapmeshv1.Manifest {
	m := &iapmeshv1.Manifest{By: by, At: state.Stamp(t.Now)}
	for _, ref := range slices.SortedFunc(maps.Keys(docs), compareRefs) {
		d := docs[ref]
		m.Entries = append(m.Entries, &iapmeshv1.ManifestEntry{Kind: ref.Kind, Name: ref.Name, Hash: d.Hash[:]})
	}
	return m
}

func compareRefs(a, b resource.Ref) int { return strings.Compare(a.String(), b.String()) }

func knownRegions(v *state.View) []string {
	set := map[string]bool{}
	for _, n := range v.Keyring.Nodes {
		set[n.Region] = true
	}
	return slices.Sorted(maps.Keys(set))
}
