package state_test

import (
	"crypto/ed25519"
	"net/netip"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// filler gives every field of a record a value of its own, so that a field which a codec forgets is seen.
type filler struct{ n int }

// words are the values of fields that are enumerations.
var words = map[reflect.Type]string{
	reflect.TypeFor[keyring.Role]():           string(keyring.RoleAggregator),
	reflect.TypeFor[keyring.KeyState]():       string(keyring.KeyRetiring),
	reflect.TypeFor[keyring.Cascade]():        string(keyring.CascadeQuarantine),
	reflect.TypeFor[keyring.NodeState]():      string(keyring.NodeLapsed),
	reflect.TypeFor[keyring.SigningKind]():    string(keyring.SigningAssertion),
	reflect.TypeFor[keyring.SigningState]():   string(keyring.SigningVerifyOnly),
	reflect.TypeFor[keyring.RevocationKind](): string(keyring.RevokeSubject),

	reflect.TypeFor[keyring.RestorationKind]():  string(keyring.RestoreSurvivor),
	reflect.TypeFor[keyring.RestorationPhase](): string(keyring.RestorationAwaiting),
}

func (f *filler) fill(t *testing.T, v reflect.Value) {
	t.Helper()
	f.n++
	switch v.Type() {
	case reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Unix(1_700_000_000+int64(f.n), int64(f.n)*1000).UTC()))
		return
	case reflect.TypeFor[ed25519.PublicKey]():
		key := make(ed25519.PublicKey, ed25519.PublicKeySize)
		key[0] = byte(f.n)
		v.Set(reflect.ValueOf(key))
		return
	case reflect.TypeFor[netip.Prefix]():
		v.Set(reflect.ValueOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(f.n), 0, 0}), 16)))
		return
	case reflect.TypeFor[revision.Revision]():
		v.Set(reflect.ValueOf(revision.Revision{Epoch: 3, Index: uint64(f.n)}))
		return
	case reflect.TypeFor[time.Duration]():
		v.SetInt(int64(f.n) * int64(time.Second))
		return
	case reflect.TypeFor[[]byte]():
		v.SetBytes([]byte("bytes " + strconv.Itoa(f.n)))
		return
	}
	switch v.Kind() {
	case reflect.String:
		if word, ok := words[v.Type()]; ok {
			v.SetString(word)
			return
		}
		v.SetString("text-" + strconv.Itoa(f.n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(f.n))
	case reflect.Int64: // a time.Duration
		v.SetInt(int64(f.n))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		f.fill(t, v.Index(0))
		f.fill(t, v.Index(1))
	case reflect.Struct:
		for i := range v.NumField() {
			f.fill(t, v.Field(i))
		}
	default:
		t.Fatalf("no value for a %s", v.Type())
	}
}

func filled[T any](t *testing.T) *T {
	t.Helper()
	v := new(T)
	new(filler).fill(t, reflect.ValueOf(v).Elem())
	return v
}

func unmarshal[M proto.Message](t *testing.T, e store.Entry, m M) M {
	t.Helper()
	if err := proto.Unmarshal(e.Value, m); err != nil {
		t.Fatal(err)
	}
	return m
}

func sameRecord(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("%s lost something (-before +after):\n%s", what, diff)
	}
}

func TestNoRecordLosesAField(t *testing.T) {
	t.Parallel()
	key := filled[keyring.Key](t)
	gotKey, err := state.KeyOf(unmarshal(t, state.PutKey(key), &iapmeshv1.ProvisioningKey{}))
	if err != nil {
		t.Fatal(err)
	}
	sameRecord(t, "key", gotKey, key)

	node := filled[keyring.Node](t)
	gotNode, err := state.NodeOf(unmarshal(t, state.PutNode(node), &iapmeshv1.Node{}))
	if err != nil {
		t.Fatal(err)
	}
	sameRecord(t, "node", gotNode, node)

	admin := filled[keyring.Admin](t)
	sameRecord(t, "admin", state.AdminOf(unmarshal(t, state.PutAdmin(admin), &iapmeshv1.Admin{})), admin)

	signing := filled[keyring.SigningKey](t)
	sameRecord(t, "signing key", state.SigningKeyOf(unmarshal(t, state.PutSigningKey(signing), &iapmeshv1.SigningKey{}), signing.Revision), signing)

	revocation := filled[keyring.Revocation](t)
	sameRecord(t, "revocation", state.RevocationOf(unmarshal(t, state.PutRevocation(revocation), &iapmeshv1.Revocation{}), revocation.Revision), revocation)

	audience := filled[keyring.Audience](t)
	sameRecord(t, "audience", state.AudienceOf(unmarshal(t, state.PutAudience(audience), &iapmeshv1.Audience{})), audience)

	receipt := filled[keyring.Receipt](t)
	receipt.State = keyring.ReceiptLive
	sameRecord(t, "receipt", state.ReceiptOf(unmarshal(t, state.PutReceipt(receipt), &iapmeshv1.ReceiptRecord{}), revision.Revision{}), receipt)
	receipt.State, receipt.Revision, receipt.CommittedBy = keyring.ReceiptOpen, revision.Revision{Epoch: 2, Index: 9}, time.Time{}
	sameRecord(t, "open receipt, whose revision is its entry's", state.ReceiptOf(unmarshal(t, state.PutReceipt(receipt), &iapmeshv1.ReceiptRecord{}), receipt.Revision), receipt)

	secret := filled[keyring.Secret](t)
	sameRecord(t, "secret", state.SecretOf(unmarshal(t, state.PutSecret(secret), &iapmeshv1.Secret{})), secret)
}

// A zero record stays zero: no time becomes 1970, no state becomes the first of its list.
func TestZeroStaysZero(t *testing.T) {
	t.Parallel()
	public := make(ed25519.PublicKey, ed25519.PublicKeySize)
	key, err := state.KeyOf(state.KeyProto(&keyring.Key{PublicKey: public}))
	if err != nil || !key.NotBefore.IsZero() || !key.GraceUntil.IsZero() || key.State != "" || key.Cascade != "" || len(key.Grants) != 0 {
		t.Errorf("key: %+v, %v", key, err)
	}
	if r := state.RevocationOf(state.RevocationProto(&keyring.Revocation{}), revision.Revision{}); !r.ExpiresAt.IsZero() {
		t.Errorf("revocation: %+v: it would be pruned", r)
	}
}

// A word that this version does not know becomes the empty one, which no lifecycle accepts.
func TestUnknownWordsAreNoWords(t *testing.T) {
	t.Parallel()
	if s := state.NodeStateOf(99); s != "" || (&keyring.Node{State: s}).Trusted() {
		t.Errorf("node state %q", s)
	}
	if s := state.SigningStateOf(99); s != "" || (&keyring.SigningKey{State: s}).Verifies() {
		t.Errorf("signing state %q", s)
	}
	if r := state.RolesOf([]iapmeshv1.Role{99, iapmeshv1.Role_ROLE_PROXY}); len(r) != 1 || r[0] != keyring.RoleProxy {
		t.Errorf("roles %v", r)
	}
	for _, s := range []keyring.KeyState{state.KeyStateOf(0), state.KeyStateOf(99)} {
		if s != "" {
			t.Errorf("key state %q", s)
		}
	}
}

func TestRecordsThatCannotBeTrustedAreRefused(t *testing.T) {
	t.Parallel()
	if _, err := state.KeyOf(&iapmeshv1.ProvisioningKey{PublicKey: make([]byte, 31)}); err == nil {
		t.Error("a key with a public half of 31 bytes")
	}
	if _, err := state.KeyOf(&iapmeshv1.ProvisioningKey{PublicKey: make([]byte, 32), SourceCidrs: []string{"10.0.0.0/99"}}); err == nil {
		t.Error("a key whose source range is not understood would admit from everywhere")
	}
	if _, err := state.NodeOf(&iapmeshv1.Node{}); err == nil {
		t.Error("a node without a key")
	}
}

// authority is a real root: what the view's certificate pool takes.
func authority(t testing.TB) *keyring.Authority {
	t.Helper()
	a, _, err := keyring.NewAuthority(nil, time.Unix(1_700_000_000, 0).UTC(), "mesh.test")
	if err != nil {
		t.Fatal(err)
	}
	return &a
}

func TestAuthorityComesBack(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_700_000_000, 0).UTC()
	first, firstKey, err := keyring.NewAuthority(nil, at, "mesh.test")
	if err != nil {
		t.Fatal(err)
	}
	next, nextKey, err := keyring.NewAuthority(nil, at, "mesh.test")
	if err != nil {
		t.Fatal(err)
	}
	changed, err := keyring.PrepareAuthority(map[string]*keyring.Authority{first.Serial: &first}, keyring.AuthorityKeys{first.Serial: firstKey, next.Serial: nextKey}, next, at)
	if err != nil {
		t.Fatal(err)
	}
	a := &changed[0]
	a.RetiredAt, a.Revision = at.Add(time.Hour), revision.Revision{Epoch: 3, Index: 4}
	got, err := state.AuthorityOf(unmarshal(t, state.PutAuthority(a), &iapmeshv1.Authority{}), a.Revision)
	if err != nil || !got.Certificate.Equal(a.Certificate) || len(got.CrossCertificates) != 1 || !got.CrossCertificates[0].Equal(a.CrossCertificates[0]) {
		t.Fatalf("authority: %+v, %v", got, err)
	}
	sameRecord(t, "authority", bare(got), bare(a))

	for name, p := range map[string]*iapmeshv1.Authority{
		"a certificate":       {Serial: "1", Certificate: []byte("x")},
		"a cross certificate": {Serial: "1", Certificate: first.Certificate.Raw, CrossCertificates: [][]byte{{1}}},
	} {
		if _, err := state.AuthorityOf(p, revision.Revision{}); err == nil {
			t.Errorf("%s that is none", name)
		}
	}
}

// bare is an authority without its certificates, which compare by themselves.
func bare(a *keyring.Authority) keyring.Authority {
	b := *a
	b.Certificate, b.CrossCertificates = nil, nil
	return b
}

func TestTheGossipRingComesBack(t *testing.T) {
	t.Parallel()
	for _, phase := range []keyring.RingPhase{keyring.RingSteady, keyring.RingInstall, keyring.RingUse} {
		ring := filled[keyring.GossipRing](t)
		ring.Phase = phase
		got := state.GossipRingOf(unmarshal(t, state.PutGossipRing(*ring), &iapmeshv1.GossipRing{}), ring.Revision)
		sameRecord(t, "ring", got, *ring)
	}
}
