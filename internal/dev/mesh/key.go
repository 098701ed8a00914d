package mesh

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// keepBootstrapKey sees to it that the printed line which adds a node works: a mesh that goes on after days has a bootstrap key that
// expired, or one that somebody rotated. Then it issues another, as `iapmesh key issue` does.
func (m *Mesh) keepBootstrapKey(ctx context.Context) error {
	text, err := os.ReadFile(m.path(keyFile))
	if err != nil {
		return fault.New(fault.Invalid, "bootstrap key: %w", err)
	}
	secret, err := keyring.ParseSecret(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("bootstrap key %s: %w", m.path(keyFile), err)
	}
	var admits bool
	err = m.write(ctx, "look the bootstrap key up", func(ctx context.Context, c grpc.ClientConnInterface, opts ...grpc.CallOption) error {
		r, err := iapmeshv1.NewKeyServiceClient(c).GetKey(ctx, &iapmeshv1.GetKeyRequest{Key: secret.ID()}, opts...)
		k := r.GetKey()
		admits = k.GetState() == iapmeshv1.KeyState_KEY_STATE_ACTIVE && time.Until(k.GetExpiresAt().AsTime()) > time.Minute
		return err
	})
	if err != nil || admits {
		return err
	}
	return m.issueBootstrapKey(ctx)
}

func (m *Mesh) issueBootstrapKey(ctx context.Context) error {
	block, _ := pem.Decode([]byte(m.profile.Roots))
	if block == nil {
		return fault.New(fault.Invalid, "profile %s: roots: no PEM certificate", m.path(profileFile))
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fault.New(fault.Invalid, "profile %s: roots: %w", m.path(profileFile), err)
	}
	var secret keyring.ProvisioningSecret
	uses := uint32(keyring.BootstrapUses)
	err = m.write(ctx, "issue another bootstrap key", func(ctx context.Context, c grpc.ClientConnInterface, opts ...grpc.CallOption) error {
		var err error
		if secret, err = keyring.GenerateKey(keyring.Pin(root), nil); err != nil { // anew in each try: one whose answer was lost may be there
			return err
		}
		_, err = iapmeshv1.NewKeyServiceClient(c).IssueKey(ctx, &iapmeshv1.IssueKeyRequest{
			PublicKey: secret.PublicKey(), Name: "dev-" + secret.ID()[:6], MaxUses: &uses,
			Grants: []iapmeshv1.Role{iapmeshv1.Role_ROLE_CONTROL, iapmeshv1.Role_ROLE_PROXY},
		}, opts...)
		return err
	})
	if err != nil {
		return err
	}
	return m.writeFile(keyFile, []byte(secret.String()+"\n"))
}
