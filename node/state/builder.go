package state

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// builder makes each View from the one before it and a change. Maps of a published view are never written: a kind that a change
// touches is cloned first, once.
type builder struct {
	contents    keyring.Contents
	manifest    *iapmeshv1.Manifest
	manifestErr error                        // why the manifest is not understood
	manifestAt  revision.Revision            // when it was last written
	blobs       map[string]resource.Document // by path
	config      *resource.Configuration
	configErr   error // why the newest manifest is not in force
	regions     []string
	problems    []error
}

func (b *builder) takeProblems() []error {
	p := b.problems
	b.problems = nil
	return p
}

// apply returns the next view, and why the manifest is not in force, if it is not.
func (b *builder) apply(c store.Change) (*View, error) {
	if c.Reset {
		*b = builder{config: b.config}
	}
	b.contents = cloneTouched(b.contents, c.Entries)
	recompile := c.Reset || b.config == nil
	for _, e := range c.Entries {
		// A blob alone changes nothing: it is written before the manifest that names it.
		if e.Key == PathManifest || (strings.HasPrefix(e.Key, PrefixBlob) && b.configErr != nil) {
			recompile = true
		}
		if err := b.record(e); err != nil {
			b.problems = append(b.problems, err)
		}
	}
	if regions := knownRegions(b.contents.Nodes); !slices.Equal(regions, b.regions) {
		b.regions, recompile = regions, true
	}
	if recompile {
		b.recompile()
	}
	return &View{Revision: c.Revision, Keyring: keyring.NewSnapshot(c.Revision, b.contents), Config: b.config, ManifestRevision: b.manifestAt}, b.configErr
}

// recompile puts the manifest in force, or says in configErr why the configuration before it stays.
func (b *builder) recompile() {
	var config *resource.Configuration
	if config, b.configErr = b.compile(); b.configErr == nil {
		b.config = config
	} else if b.config == nil {
		b.config, _ = resource.Compile(nil, b.regions) // the empty configuration: every request is refused
	}
}

func knownRegions(nodes map[string]*keyring.Node) []string {
	set := map[string]bool{}
	for _, n := range nodes {
		set[n.Region] = true
	}
	return slices.Sorted(maps.Keys(set))
}

// compile compiles the manifest's resources.
func (b *builder) compile() (*resource.Configuration, error) {
	if b.manifestErr != nil {
		return nil, b.manifestErr
	}
	docs, err := documents(b.manifest, b.blobs)
	if err != nil {
		return nil, err
	}
	return resource.Compile(docs, b.regions)
}

func documents(m *iapmeshv1.Manifest, blobs map[string]resource.Document) ([]resource.Document, error) {
	docs := make([]resource.Document, 0, len(m.GetEntries()))
	for _, e := range m.GetEntries() {
		if len(e.Hash) != 32 {
			return nil, fault.New(fault.Internal, "manifest: %s/%s: hash of %d bytes", e.Kind, e.Name, len(e.Hash))
		}
		doc, ok := blobs[BlobPath([32]byte(e.Hash))]
		if !ok {
			return nil, fault.New(fault.Internal, "manifest: %s/%s: its blob is missing or not understood", e.Kind, e.Name)
		}
		if ref := doc.Ref(); ref.Kind != e.Kind || ref.Name != e.Name {
			return nil, fault.New(fault.Internal, "manifest: %s/%s: its blob is %s", e.Kind, e.Name, ref)
		}
		docs = append(docs, doc)
	}
	return docs, nil
}

// cloneTouched clones the maps that entries will change.
func cloneTouched(c keyring.Contents, entries []store.Entry) keyring.Contents {
	touched := map[string]bool{}
	for _, e := range entries {
		kind, _, _ := strings.Cut(e.Key, "/")
		touched[kind+"/"] = true
	}
	c.Keys = cloneIf(touched[PrefixKey], c.Keys)
	c.Nodes = cloneIf(touched[PrefixNode], c.Nodes)
	c.Admins = cloneIf(touched[PrefixAdmin], c.Admins)
	c.SigningKeys = cloneIf(touched[PrefixSigningKey], c.SigningKeys)
	c.Authorities = cloneIf(touched[PrefixAuthority], c.Authorities)
	c.Audiences = cloneIf(touched[PrefixAudience], c.Audiences)
	c.Secrets = cloneIf(touched[PrefixSecret], c.Secrets)
	c.Receipts = cloneIf(touched[PrefixReceipt], c.Receipts)
	if touched[PrefixRevocation] {
		revocations := map[keyring.RevocationKind]map[string]*keyring.Revocation{keyring.RevokeSession: {}, keyring.RevokeSubject: {}}
		for kind, values := range c.Revocations {
			revocations[kind] = maps.Clone(values)
		}
		c.Revocations = revocations
	}
	return c
}

func cloneIf[V any](touched bool, m map[string]V) map[string]V {
	switch {
	case !touched:
		return m
	case m == nil:
		return map[string]V{}
	}
	return maps.Clone(m)
}

// record applies one entry. What is not understood is left out, which refuses what it would have allowed.
func (b *builder) record(e store.Entry) error {
	if e.Key == PathManifest {
		b.manifest, b.manifestErr, b.manifestAt = &iapmeshv1.Manifest{}, nil, e.Revision
		if !e.Deleted {
			b.manifestErr = decode(e, b.manifest)
		}
		return b.manifestErr
	}
	kind, rest, nested := strings.Cut(e.Key, "/")
	if !nested {
		return nil
	}
	switch kind + "/" {
	case PrefixKey:
		return record(b.contents.Keys, rest, e, KeyOf, (*iapmeshv1.ProvisioningKey).GetId)
	case PrefixNode:
		return record(b.contents.Nodes, rest, e, NodeOf, (*iapmeshv1.Node).GetId)
	case PrefixAdmin:
		return record(b.contents.Admins, rest, e, adminOf, (*iapmeshv1.Admin).GetId)
	case PrefixAuthority:
		return record(b.contents.Authorities, rest, e, func(p *iapmeshv1.Authority) (*keyring.Authority, error) { return AuthorityOf(p, e.Revision) },
			(*iapmeshv1.Authority).GetSerial)
	case PrefixAudience:
		return record(b.contents.Audiences, rest, e, sure(AudienceOf), (*iapmeshv1.Audience).GetName)
	case PrefixSecret:
		return record(b.contents.Secrets, rest, e, sure(SecretOf), func(p *iapmeshv1.Secret) string { return p.Audience + "/" + p.Name })
	case PrefixSigningKey:
		return record(b.contents.SigningKeys, rest, e, func(p *iapmeshv1.SigningKey) (*keyring.SigningKey, error) { return SigningKeyOf(p, e.Revision), nil },
			(*iapmeshv1.SigningKey).GetKid)
	case PrefixRevocation:
		return b.revocation(rest, e)
	case PrefixReceipt:
		return b.receipt(rest, e)
	case PrefixBlob:
		return b.blob(e)
	case "meta/":
		return b.meta(e)
	}
	return nil // a kind that a newer version knows
}

// message is a pointer to a protobuf struct.
type message[T any] interface {
	*T
	proto.Message
}

func sure[P, D any](f func(P) D) func(P) (D, error) { return func(p P) (D, error) { return f(p), nil } }

func record[T any, P message[T], D any](into map[string]D, id string, e store.Entry, convert func(P) (D, error), named func(P) string) error {
	delete(into, id) // an entry that cannot be read refuses what it would have allowed
	if e.Deleted {
		return nil
	}
	p := P(new(T))
	if err := decode(e, p); err != nil {
		return err
	}
	if name := named(p); name != id {
		return fault.New(fault.Internal, "decode %s: the record is %.80q's", e.Key, name)
	}
	d, err := convert(p)
	if err != nil {
		return fmt.Errorf("decode %s: %w", e.Key, err)
	}
	into[id] = d
	return nil
}

func (b *builder) revocation(rest string, e store.Entry) error {
	kind, value, _ := strings.Cut(rest, "/")
	values := b.contents.Revocations[keyring.RevocationKind(kind)]
	if values == nil {
		return fault.New(fault.Internal, "revocation of unknown kind %q", kind)
	}
	if e.Deleted {
		delete(values, value)
		return nil
	}
	var p iapmeshv1.Revocation
	if err := decode(e, &p); err != nil {
		// A revocation that cannot be read still refuses: by its path, for every session.
		values[value] = &keyring.Revocation{Kind: keyring.RevocationKind(kind), Value: value, Block: true, Revision: e.Revision}
		return err
	}
	r := RevocationOf(&p, e.Revision)
	r.Kind, r.Value = keyring.RevocationKind(kind), value // what the path says counts: a record in disagreement still refuses
	values[value] = r
	return nil
}

// receipt keeps those that are not complete: the leader waits for them. All others are history, which lies in the store alone.
func (b *builder) receipt(id string, e store.Entry) error {
	err := record(b.contents.Receipts, id, e, func(p *iapmeshv1.ReceiptRecord) (*keyring.Receipt, error) { return ReceiptOf(p, e.Revision), nil },
		(*iapmeshv1.ReceiptRecord).GetId)
	if r := b.contents.Receipts[id]; r != nil && r.State == keyring.ReceiptEverywhere {
		delete(b.contents.Receipts, id)
	}
	return err
}

func (b *builder) blob(e store.Entry) error {
	if b.blobs == nil {
		b.blobs = map[string]resource.Document{}
	}
	delete(b.blobs, e.Key)
	if e.Deleted {
		return nil
	}
	var p iapmeshv1.Resource
	if err := decode(e, &p); err != nil {
		return err
	}
	doc, err := resource.FromJSON(resource.Ref{Kind: p.Kind, Name: p.Name}, p.Spec, p.Source)
	if err != nil {
		return fmt.Errorf("decode %s: %w", e.Key, err)
	}
	if BlobPath(doc.Hash) != e.Key {
		return fault.New(fault.Internal, "%s holds %s, whose hash is %x", e.Key, doc.Ref(), doc.Hash)
	}
	b.blobs[e.Key] = doc
	return nil
}

func (b *builder) meta(e store.Entry) error {
	if e.Key == PathGossipRing {
		var p iapmeshv1.GossipRing
		b.contents.GossipRing = keyring.GossipRing{}
		if e.Deleted {
			return nil
		}
		if err := decode(e, &p); err != nil {
			return err
		}
		b.contents.GossipRing = GossipRingOf(&p, e.Revision)
		return nil
	}
	if e.Key == PathRestoration {
		return b.restoration(e)
	}
	if e.Key != PathMesh || e.Deleted {
		return nil
	}
	var p iapmeshv1.Mesh
	if err := decode(e, &p); err != nil {
		return err
	}
	b.contents.Mesh = keyring.Mesh{ID: p.Id, TrustDomain: p.TrustDomain, FoundedAt: Time(p.FoundedAt)}
	return nil
}
