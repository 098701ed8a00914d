package enroll

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	meshpeer "github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Request is what a node joins with. Its join id and private keys are on its disk before it asks, so that an answer that was
// lost is asked for again and gets the same node.
type Request struct {
	Addresses  []string // control nodes, host:port; tried in turn
	Secret     keyring.ProvisioningSecret
	JoinID     [16]byte
	NodeKey    ed25519.PrivateKey
	SessionKey ed25519.PrivateKey
	SealingKey []byte // public half, HPKE
	Name       string
	Region     string
	Roles      []iapmeshv1.Role
	Advertise  *iapmeshv1.Addresses
	Pinned     func(pin [32]byte) meshpeer.Pinned // nil: the real network
	Logger     *slog.Logger
	RetryEvery time.Duration // between rounds over the addresses; default 1 s
}

// Enrollment is what a node needs to begin.
type Enrollment struct {
	NodeID       string
	Certificate  tls.Certificate     // leaf, then cross certificates, then roots
	Bundle       []*x509.Certificate // the roots
	ControlNodes []*iapmeshv1.ControlNode
	MeshID       string
	TrustDomain  string
	Revision     revision.Revision
}

// Join asks until it is admitted, refused, or ctx ends. A refusal is final; Unavailable (nobody answers, nobody leads, too many ask)
// is not.
func Join(ctx context.Context, r Request) (*Enrollment, error) {
	body, err := r.body()
	if err != nil {
		return nil, err
	}
	var e *Enrollment
	err = r.ask(ctx, "join", func(ctx context.Context, addr string) error {
		var err error
		e, err = r.attempt(ctx, addr, body)
		return err
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// ask makes attempts at one address after the other, round after round, until one gets an answer that is not Unavailable or ctx ends.
func (r *Request) ask(ctx context.Context, what string, attempt func(ctx context.Context, addr string) error) error {
	if len(r.Addresses) == 0 {
		return fault.New(fault.Invalid, "%s: no address of a control node is given", what)
	}
	if r.RetryEvery == 0 {
		r.RetryEvery = time.Second
	}
	addresses := slices.Clone(r.Addresses)
	for round := 1; ; round++ {
		var unreachable []error
		for i := 0; i < len(addresses); i++ { // it grows where a node that is no control node says where those are
			addr := addresses[i]
			err := attempt(ctx, addr)
			if errors.Is(err, keyring.ErrNoControlNode) {
				var found []string
				if found, err = r.locate(ctx, addr); err == nil {
					addresses = extend(addresses, found)
					err = fault.New(fault.Unavailable, "it is no control node, and named %d", len(found))
				}
			}
			switch {
			case err == nil:
				return nil
			case !fault.Is(err, fault.Unavailable):
				return fmt.Errorf("%s by %s: %w", what, addr, err)
			}
			unreachable = append(unreachable, fmt.Errorf("%s: %w", addr, err))
		}
		r.Logger.Info("no control node has answered yet", "asked_to", what, "round", round, "error", errors.Join(unreachable...))
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "%s: gave up: %w", what, errors.Join(append(unreachable, context.Cause(ctx))...))
		case <-time.After(r.RetryEvery):
		}
	}
}

// maxAddresses bounds where a joiner lets itself be sent.
const maxAddresses = 32

func extend(addresses, found []string) []string {
	for _, addr := range found {
		if !slices.Contains(addresses, addr) && len(addresses) < maxAddresses {
			addresses = append(addresses, addr)
		}
	}
	return addresses
}

// locate asks a node that is no control node where those are. It is believed for that alone: whoever answers there has to prove
// itself under the pin.
func (r *Request) locate(ctx context.Context, addr string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	pinned := r.pinned()
	pinned.AnyNode = true
	conn, err := pinned.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	client, err := grpc.NewClient("passthrough:///"+addr, conn.DialOptions()...)
	if err != nil {
		return nil, fault.New(fault.Internal, "locate: %w", err)
	}
	defer client.Close()
	resp, err := iapmeshv1.NewEnrollServiceClient(client).Locate(ctx, &iapmeshv1.LocateRequest{})
	if err != nil {
		return nil, fault.FromStatus(err)
	}
	var found []string
	for _, n := range resp.ControlNodes {
		found = append(found, n.Address)
	}
	return found, nil
}

func (r *Request) pinned() meshpeer.Pinned {
	if r.Pinned != nil {
		return r.Pinned(r.Secret.Pin())
	}
	return meshpeer.Pinned{Pin: r.Secret.Pin()}
}

func (r *Request) body() ([]byte, error) {
	csr, err := keyring.NewCSR(r.NodeKey)
	if err != nil {
		return nil, err
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(&iapmeshv1.JoinBody{
		Version: 1, JoinId: r.JoinID[:], KeyId: r.Secret.ID(), Csr: csr,
		SessionPublicKey: r.SessionKey.Public().(ed25519.PublicKey), SealingPublicKey: r.SealingKey,
		Name: r.Name, Region: r.Region, Roles: r.Roles, Addresses: r.Advertise,
	})
}

func (r *Request) attempt(ctx context.Context, addr string, body []byte) (*Enrollment, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	conn, err := r.pinned().Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ekm, err := exportKeyingMaterial(conn.ConnectionState())
	if err != nil {
		return nil, err
	}
	req := &iapmeshv1.JoinRequest{Body: body}
	for _, s := range []struct {
		signer keyring.JoinSigner
		key    ed25519.PrivateKey
		into   *[]byte
	}{
		{keyring.SignerProvisioning, r.Secret.PrivateKey(), &req.ProvisioningSignature},
		{keyring.SignerNode, r.NodeKey, &req.NodeSignature},
		{keyring.SignerSession, r.SessionKey, &req.SessionSignature},
	} {
		if *s.into, err = keyring.SignJoin(s.signer, s.key, ekm, body); err != nil {
			return nil, err
		}
	}
	client, err := grpc.NewClient("passthrough:///"+addr, conn.DialOptions()...)
	if err != nil {
		return nil, fault.New(fault.Internal, "join: %w", err)
	}
	defer client.Close()
	resp, err := iapmeshv1.NewEnrollServiceClient(client).Join(ctx, req)
	if err != nil {
		return nil, fault.FromStatus(err)
	}
	return r.accept(resp)
}

// accept checks that the answer is for this node's key and under the pinned root: a certificate for another key would be
// somebody else's node.
func (r *Request) accept(resp *iapmeshv1.JoinResponse) (*Enrollment, error) {
	leaf, err := x509.ParseCertificate(resp.Certificate)
	if err != nil {
		return nil, fault.New(fault.Internal, "join: the certificate that came back: %w", err)
	}
	if !r.NodeKey.Public().(ed25519.PublicKey).Equal(leaf.PublicKey) {
		return nil, fault.New(fault.Internal, "join: the certificate that came back is for another key")
	}
	e := &Enrollment{
		NodeID: resp.NodeId, MeshID: resp.MeshId, TrustDomain: resp.TrustDomain, ControlNodes: resp.ControlNodes,
		Revision:    revision.Revision{Epoch: resp.Revision.GetEpoch(), Index: resp.Revision.GetIndex()},
		Certificate: tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: r.NodeKey, Leaf: leaf},
	}
	if len(resp.Bundle) >= keyring.MaxChain {
		return nil, fault.New(fault.Internal, "join: %d certificates came back, at most %d", len(resp.Bundle)+1, keyring.MaxChain)
	}
	pinned := false
	for _, der := range resp.Bundle {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fault.New(fault.Internal, "join: a root that came back: %w", err)
		}
		e.Certificate.Certificate = append(e.Certificate.Certificate, cert.Raw)
		if !keyring.IsRoot(cert) {
			continue // a cross certificate, to be presented
		}
		pinned = pinned || keyring.Pin(cert) == r.Secret.Pin()
		e.Bundle = append(e.Bundle, cert)
	}
	if !pinned {
		return nil, fault.New(fault.Internal, "join: the roots that came back do not hold the pinned one")
	}
	id, err := keyring.ParseID(leaf)
	if err != nil {
		return nil, err
	}
	if id.Node != e.NodeID || id.TrustDomain != e.TrustDomain {
		return nil, fault.New(fault.Internal, "join: the certificate names %s in %s, the answer %s in %s", id.Node, id.TrustDomain, e.NodeID, e.TrustDomain)
	}
	return e, nil
}
