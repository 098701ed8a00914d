package control

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/hex"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

const joinVersion = 1

// errJoin is the whole answer until the provisioning key's signature has verified: whoever cannot sign learns nothing, not even
// whether the key exists.
var errJoin = fault.New(fault.Unauthenticated, "join: unauthenticated: the key is unknown here, or the signature is not for this connection "+
	"(a load balancer that terminates TLS between you and the mesh breaks it)")

// JoinAttempt is a join as the control node that terminated TLS saw it.
type JoinAttempt struct {
	Request *iapmeshv1.JoinRequest
	EKM     [32]byte
	Source  netip.Addr
}

// joiner is an attempt whose signatures have verified.
type joiner struct {
	body    *iapmeshv1.JoinBody
	csr     *x509.CertificateRequest
	nodeKey ed25519.PublicKey // the request's
	source  netip.Addr
}

// Join verifies an attempt and enrols its node, or says which rule refuses it. A refusal writes nothing to the state. The same
// join id with the same keys gets the same node again.
func (c *Controller) Join(ctx context.Context, a JoinAttempt) (*iapmeshv1.JoinResponse, error) {
	term, err := c.mustLead()
	if err != nil {
		return nil, err
	}
	if err := c.catchUp(ctx, store.Term(term)); err != nil { // else a key that was issued just now could be unknown here
		return nil, err
	}
	key, j, err := c.authenticate(a)
	if err != nil {
		c.refused(ctx, a, key, err)
		return nil, err
	}
	answer, err := c.enrol(ctx, j)
	if err != nil {
		c.refused(ctx, a, key, err)
		return nil, err
	}
	return answer, nil
}

func (c *Controller) refused(ctx context.Context, a JoinAttempt, key string, err error) {
	c.Logger.Warn("join refused", "source", a.Source.String(), "key", key, "error", err)
	if key == "" || fault.Is(err, fault.Unavailable) {
		return // nothing was decided; and unauthenticated attempts are counted by whoever terminated TLS: a flood must not fill the trail
	}
	c.record(ctx, audit.KindJoin, "key/"+key, map[string]string{"decision": "refused", "source": a.Source.String(), "reason": err.Error()})
}

// authenticate verifies the three signatures over the exact bytes and this connection. The key's id is returned once its signature
// has verified, also with an error.
func (c *Controller) authenticate(a JoinAttempt) (string, *joiner, error) {
	body := a.Request.GetBody()
	if len(body) == 0 || len(body) > keyring.MaxJoinBody {
		return "", nil, errJoin
	}
	b := &iapmeshv1.JoinBody{}
	if err := proto.Unmarshal(body, b); err != nil || b.Version != joinVersion {
		return "", nil, errJoin
	}
	v, err := c.view()
	if err != nil {
		return "", nil, err
	}
	key := v.Keyring.Keys[b.KeyId]
	if key == nil {
		return "", nil, errJoin
	}
	if err := keyring.VerifyJoin(keyring.SignerProvisioning, key.PublicKey, a.EKM, body, a.Request.ProvisioningSignature); err != nil {
		return "", nil, errJoin
	}
	csr, err := keyring.ParseCSR(b.Csr)
	if err != nil {
		return key.ID, nil, err
	}
	if len(b.JoinId) != 16 || len(b.SessionPublicKey) != ed25519.PublicKeySize {
		return key.ID, nil, fault.New(fault.Invalid, "join: join id of %d bytes, want 16; session key of %d, want %d", len(b.JoinId), len(b.SessionPublicKey), ed25519.PublicKeySize)
	}
	nodeKey := csr.PublicKey.(ed25519.PublicKey) // ParseCSR takes no other
	if err := keyring.VerifyJoin(keyring.SignerNode, nodeKey, a.EKM, body, a.Request.NodeSignature); err != nil {
		return key.ID, nil, err
	}
	if err := keyring.VerifyJoin(keyring.SignerSession, b.SessionPublicKey, a.EKM, body, a.Request.SessionSignature); err != nil {
		return key.ID, nil, err
	}
	return key.ID, &joiner{body: b, csr: csr, nodeKey: nodeKey, source: a.Source.Unmap()}, nil
}

// enrol decides uses, expiry and state inside one guarded commit.
func (c *Controller) enrol(ctx context.Context, j *joiner) (*iapmeshv1.JoinResponse, error) {
	v, err := c.view()
	if err != nil {
		return nil, err
	}
	if _, _, err := c.authority(v); err != nil { // before anything is written for a node that would get no certificate
		return nil, err
	}
	var node keyring.Node
	resumed := false
	at, err := c.update(ctx, "join", func(t *tx) error {
		if err := t.View.Keyring.Closed(); err != nil {
			return err
		}
		key, err := t.key(j.body.KeyId)
		if err != nil {
			return err
		}
		id := keyring.NodeID(j.nodeKey)
		known, err := t.node(id)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if other := t.View.Keyring.NodeByJoinID(hex.EncodeToString(j.body.JoinId)); known == nil && other != nil {
			known = other // another node's join id: ResumeJoin refuses it
		}
		if known != nil {
			node, resumed, t.certain = *known, true, true
			if err := keyring.ResumeJoin(*key, *known, keyring.JoinIdentity{
				JoinID: hex.EncodeToString(j.body.JoinId), Key: key.ID, NodeKey: j.nodeKey, SessionKey: j.body.SessionPublicKey,
			}); err != nil {
				return err
			}
			if !bytes.Equal(known.SealingPublicKey, j.body.SealingPublicKey) {
				return fault.New(fault.Conflict, "join: the sealing key is another than that of the first attempt; begin anew, with a new id and new keys")
			}
			return nil
		}
		resumed = false
		if err := t.unusedKeys(j); err != nil {
			return err
		}
		if node, err = c.admit(t, key, j); err != nil {
			return err
		}
		t.put(state.PutNode(&node))
		if err := c.firstSessionKey(t, &node); err != nil {
			return err
		}
		return c.enlist(t, &node)
	})
	if err != nil {
		return nil, err
	}
	cert, err := c.certify(&node, j.csr)
	if err != nil {
		return nil, err
	}
	c.record(ctx, audit.KindJoin, "key/"+j.body.KeyId, map[string]string{
		"decision": "admitted", "node": node.ID, "name": node.Name, "region": node.Region, "source": j.source.String(), "resumed": boolWord(resumed),
	})
	c.Logger.Info("node joined", "node", node.ID, "name", node.Name, "region", node.Region, "key", j.body.KeyId, "resumed", resumed)
	return c.welcome(&node, cert, at)
}

// unusedKeys refuses a node or session key that the mesh knows in another part already: whoever holds it would be two parties, and
// what one signs could be taken for the other's. A node key that is a node's already is ResumeJoin's to refuse.
func (t *tx) unusedKeys(j *joiner) error {
	session := ed25519.PublicKey(j.body.SessionPublicKey)
	for _, taken := range []struct{ path, what string }{
		{state.AdminPath(keyring.AdminID(j.nodeKey)), "node key: it is an administrator's"},
		{state.KeyPath(keyring.KeyID(j.nodeKey)), "node key: it is a provisioning key"},
		{state.SigningKeyPath(keyring.SigningKID(keyring.SigningSession, j.nodeKey)), "node key: it is a session key"},
		{state.AdminPath(keyring.AdminID(session)), "session key: it is an administrator's"},
		{state.KeyPath(keyring.KeyID(session)), "session key: it is a provisioning key"},
		{state.NodePath(keyring.NodeID(session)), "session key: it is a node's"},
		{state.SigningKeyPath(keyring.SigningKID(keyring.SigningSession, session)), "session key: it is another node's"},
	} {
		have, err := t.get(taken.path)
		if err != nil {
			return err
		}
		if have != nil {
			return fault.New(fault.Conflict, "join: %s already; begin anew, with new keys", taken.what)
		}
	}
	return nil
}

func (c *Controller) admit(t *tx, key *keyring.Key, j *joiner) (keyring.Node, error) {
	b := j.body
	admitted, err := keyring.AdmitJoin(*key, keyring.JoinFacts{
		Now: t.Now, Node: keyring.NodeID(j.nodeKey), Name: b.Name, Roles: state.RolesOf(b.Roles), Region: b.Region, SourceIP: j.source,
		ActiveNodes: t.View.Keyring.CountActive(key.ID, ""),
	})
	if err != nil {
		return keyring.Node{}, err
	}
	node, err := keyring.EnrolNode(admitted, keyring.EnrolRequest{
		JoinID: hex.EncodeToString(b.JoinId), Name: b.Name, Region: b.Region, Roles: state.RolesOf(b.Roles), Addresses: state.AddressesOf(b.Addresses),
		PublicKey: j.nodeKey, SealingPublicKey: b.SealingPublicKey, SessionPublicKey: b.SessionPublicKey,
		CertExpiresAt: t.Now.Add(keyring.NodeCertLife), Now: t.Now,
	})
	if err != nil {
		return keyring.Node{}, err
	}
	if err := uniqueName(t.View, &node); err != nil {
		return keyring.Node{}, err
	}
	t.put(state.PutKey(&admitted))
	return node, nil
}

// uniqueName keeps names, which people type, apart: a node that is gone gives its name back.
func uniqueName(v *state.View, n *keyring.Node) error {
	for _, other := range v.Keyring.Nodes {
		if other.Name == n.Name && other.ID != n.ID && other.Trusted() {
			return fault.New(fault.Conflict, "name %q is node %s's in %s: give this one another, or let that one leave", n.Name, other.ID, other.Region)
		}
	}
	return nil
}

func (c *Controller) firstSessionKey(t *tx, n *keyring.Node) error {
	if !n.HasRole(keyring.RoleProxy) {
		return nil
	}
	key, err := keyring.AnnounceSessionKey(*n, n.SessionPublicKey, t.View.Keyring.SigningKeys, t.Now)
	if err != nil {
		return err
	}
	if _, err := t.get(state.SigningKeyPath(key.KID)); err != nil { // guards that it is not there yet
		return err
	}
	t.put(state.PutSigningKey(&key))
	return nil
}

func (c *Controller) welcome(n *keyring.Node, cert *x509.Certificate, at revision.Revision) (*iapmeshv1.JoinResponse, error) {
	v, err := c.view()
	if err != nil {
		return nil, err
	}
	out := &iapmeshv1.JoinResponse{
		NodeId: n.ID, Certificate: cert.Raw, Bundle: v.Keyring.Chain(cert), Revision: state.RevisionProto(at),
		ControlNodes: Nodes(v, c.NodeID), MeshId: v.Keyring.Mesh.ID, TrustDomain: v.Keyring.Mesh.TrustDomain,
	}
	return out, nil
}

// Nodes lists where control nodes are reached, the first one first.
func Nodes(v *state.View, first string) []*iapmeshv1.ControlNode {
	var out []*iapmeshv1.ControlNode
	for _, n := range sortedNodes(v) {
		if n.Trusted() && n.HasRole(keyring.RoleControl) && n.Addresses.Mesh != "" {
			out = append(out, &iapmeshv1.ControlNode{NodeId: n.ID, Region: n.Region, Address: n.Addresses.Mesh})
		}
	}
	slices.SortStableFunc(out, func(a, b *iapmeshv1.ControlNode) int {
		return boolInt(b.NodeId == first) - boolInt(a.NodeId == first)
	})
	return out
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func boolWord(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
