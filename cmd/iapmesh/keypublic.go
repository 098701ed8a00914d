package main

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

const maxPublicInput = 64 << 10 // of files that hold a certificate or a public key

// generated is what key generate says of a new key.
type generated struct {
	ID        string `json:"id"`
	PublicKey string `json:"public_key"` // hex
	Pin       string `json:"pin"`        // hex, of the mesh's root
	File      string `json:"file"`       // that holds the secret half
}

func newKeyGenerateCommand(c *cli) *cobra.Command {
	var pin, root, out string
	cmd := &cobra.Command{
		Use: "generate --key-out FILE", Short: "Make a key on the machine that will use it; an administrator enrols the public half",
		Long: `Make a key on the machine that will use it, so that no secret is ever copied. The key goes into --key-out, mode 0600; on standard
output come its id and its public half, which are no secret. An administrator enrols them: iapmesh key issue --public-key. Until then
the key admits nobody.

The key pins the root of its mesh: --pin, which an administrator learns by iapmesh key pin, or --root, the root's certificate. On a
machine that has a profile, neither is needed.`,
		Example: `  iapmesh key generate --pin 3f5c… --key-out /etc/iapmesh/join.key
  ssh px-1 iapmesh key generate --pin 3f5c… --key-out join.key | iapmesh key issue --name px-1 --grant proxy --public-key @-`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "key-out"); err != nil {
				return err
			}
			for name, value := range map[string]string{"pin": pin, "root": root} {
				if value == "" && cmd.Flags().Changed(name) { // else the profile's mesh would be taken for the one that was meant
					return usagef("--%s: is empty", name)
				}
			}
			p, err := c.choosePin(pin, root)
			if err != nil {
				return err
			}
			secret, err := keyring.GenerateKey(p, rand.Reader)
			if err != nil {
				return err
			}
			file, err := createSecretFile(out)
			if err != nil {
				return err
			}
			if err := file.write(secret); err != nil {
				file.discard()
				return err
			}
			return c.showGenerated(secret, out)
		},
	}
	cmd.Flags().StringVar(&pin, "pin", "", "`HEX` of the mesh's pin: SHA-256 of its root's public key")
	cmd.Flags().StringVar(&root, "root", "", "`FILE` that holds the mesh's root certificate, PEM, instead of --pin")
	cmd.Flags().StringVar(&out, "key-out", "", "write the key to this new `FILE`, mode 0600 (required)")
	return cmd
}

func (c *cli) showGenerated(secret keyring.ProvisioningSecret, file string) error {
	if c.output != "table" {
		pin := secret.Pin()
		return c.printValue(generated{
			ID: secret.ID(), PublicKey: hex.EncodeToString(secret.PublicKey()), Pin: hex.EncodeToString(pin[:]), File: file,
		}, nil)
	}
	if _, err := fmt.Fprintln(c.stdout, keyring.PublicKeyText(secret.PublicKey())); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.stderr, "The key is in %s, and stays there. Its id and public half are above; an administrator enrols them:\n"+
		"  iapmesh key issue --name NAME --grant proxy --public-key %x\n", file, secret.PublicKey())
	return err
}

func newKeyPinCommand(c *cli) *cobra.Command {
	var root string
	cmd := &cobra.Command{
		Use: "pin", Short: "Print the mesh's pin, for iapmesh key generate",
		Long: `Print the pin of the profile's mesh, or of a root certificate: SHA-256 of its public key, in hex. It is no secret, but hand it out by
a way that nobody can tamper with: a machine trusts whoever proves to be of the mesh with that pin.`,
		Example: "  iapmesh key pin\n  iapmesh key pin --root mesh-root.pem",
		Args:    exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			pin, err := c.choosePin("", root)
			if err != nil {
				return err
			}
			text := hex.EncodeToString(pin[:])
			return c.printValue(map[string]string{"pin": text}, func(t *table) { t.line("%s", text) })
		},
	}
	cmd.Flags().StringVar(&root, "root", "", "`FILE` that holds the root certificate, PEM, instead of the profile's")
	return cmd
}

// choosePin is the pin that is given, that of a certificate, or that of the profile's mesh.
func (c *cli) choosePin(pin, root string) ([32]byte, error) {
	switch {
	case pin != "" && root != "":
		return [32]byte{}, usagef("--pin and --root: one of them")
	case pin != "":
		raw, err := hex.DecodeString(pin)
		if err != nil || len(raw) != 32 {
			return [32]byte{}, usagef("--pin: want 64 hex digits, as iapmesh key pin prints them")
		}
		return [32]byte(raw), nil
	case root != "":
		return c.pinOfFile(root)
	}
	p, err := c.load()
	if err != nil {
		return [32]byte{}, hint(err, "Without a profile, name the mesh by --pin or --root; an administrator learns the pin by: iapmesh key pin")
	}
	issuer, err := issuingRoot(p)
	if err != nil {
		return [32]byte{}, err
	}
	return keyring.Pin(issuer), nil
}

func (c *cli) pinOfFile(name string) ([32]byte, error) {
	data, err := c.readInput(name, maxPublicInput)
	if err != nil {
		return [32]byte{}, err
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" || strings.TrimSpace(string(rest)) != "" {
		return [32]byte{}, fault.New(fault.Invalid, "%s: want one certificate, PEM", name)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return [32]byte{}, fault.New(fault.Invalid, "%s: %w", name, err)
	}
	if !cert.IsCA || cert.CheckSignatureFrom(cert) != nil {
		return [32]byte{}, fault.New(fault.Invalid, "%s: is no root: keys pin the root alone", name)
	}
	return keyring.Pin(cert), nil
}

// readPublicKey reads the public half of a key: itself, or from a file after @.
func (c *cli) readPublicKey(value string) ([]byte, error) {
	name, isFile := strings.CutPrefix(value, "@")
	if isFile {
		data, err := c.readInput(name, maxPublicInput)
		if err != nil {
			return nil, err
		}
		value = string(data)
	}
	pub, err := keyring.ParsePublicKey(value)
	if err != nil {
		return nil, hint(fmt.Errorf("--public-key: %w", err), "iapmesh key generate prints it, on the machine that holds the key.")
	}
	return pub, nil
}
