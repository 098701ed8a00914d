package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func newKeyCommand(c *cli) *cobra.Command {
	cmd := group("key", "Provisioning keys: the credentials by which nodes join",
		newKeyIssueCommand(c), newKeyListCommand(c), newKeyShowCommand(c), newKeyInspectCommand(c), newKeyRotateCommand(c), newKeyScheduleCommand(c), newKeyRevokeCommand(c),
		newKeySuspendCommand(c), newKeyResumeCommand(c), newKeyApproveCommand(c), newKeyGenerateCommand(c), newKeyPinCommand(c), newKeyLineageCommand(c))
	cmd.Long = `Provisioning keys are the credentials by which nodes join. The secret half is made here and never sent: the mesh learns the
public half, and what the key may do.`
	return cmd
}

func newKeyIssueCommand(c *cli) *cobra.Command {
	var grants []string
	var ttl time.Duration
	var uses uint32
	var out, public string
	var schedule scheduleFlags
	wait := waitNot
	req := &iapmeshv1.IssueKeyRequest{}
	cmd := &cobra.Command{
		Use: "issue", Short: "Issue a key for new nodes",
		Long: `Issue a key for new nodes. The key is printed once, alone on standard output, or written to --key-out with mode 0600; with
-o json or yaml --key-out is required, so that the record and the secret never share a file.

With --public-key nothing is made here: the key is on the machine that will use it already (iapmesh key generate), and only its
public half comes here.

The name must be none that another key has which may still admit nodes; a successor keeps that of its predecessor.`,
		Example: `  iapmesh key issue --name us-east-proxies --grant proxy --region us-east --max-uses 10 --ttl 72h --key-out us-east.key
  iapmesh key issue --name one-node --grant proxy --cidr 10.1.0.0/16 | vault kv put secret/iapmesh key=-
  iapmesh key issue --name px-1 --grant proxy --public-key 5c0e…`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(required(cmd, "name", "grant"), schedule.check(cmd)); err != nil {
				return err
			}
			schedule.into(req)
			var err error
			if req.Grants, err = parseRoles(grants); err != nil {
				return err
			}
			if cmd.Flags().Changed("max-uses") {
				req.MaxUses = &uses
			}
			if ttl != 0 {
				req.Ttl = durationpb.New(ttl)
			}
			if cmd.Flags().Changed("public-key") { // also where it is empty by mistake: else a key would be made here
				return c.enrolKey(cmd, req, public, wait)
			}
			return c.issueKey(cmd.Context(), req, out, wait)
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Name, "name", "", "`NAME` of the key (required)")
	f.StringSliceVar(&grants, "grant", nil, "`ROLES` that its nodes may take: control, proxy, aggregator (required)")
	f.StringSliceVar(&req.Regions, "region", nil, "`REGIONS` that its nodes may stand in (default: any)")
	f.StringVar(&req.RouteSelector, "selector", "", "`ROUTES` that its nodes may serve: names, prefixes ending in *, tag:KEY=VALUE (default: all)")
	f.StringSliceVar(&req.SourceCidrs, "cidr", nil, "`CIDRS` that its nodes may join from (default: any)")
	f.DurationVar(&ttl, "ttl", 0, "how long nodes may join with it (default 24h)")
	f.Uint32Var(&uses, "max-uses", 1, "how many nodes may join with it; 0: any number")
	f.Uint32Var(&req.MaxActive, "max-active", 0, "how many nodes of it and its successors may be active at once; 0: any number")
	f.BoolVar(&req.NeedsApproval, "needs-approval", false, "let another administrator approve it before it admits anybody, whatever it grants")
	f.StringVar(&public, "public-key", "", "enrol this public half, `HEX|@FILE`, of a key that iapmesh key generate made; @- for standard input")
	f.StringVar(&out, "key-out", "", "write the key to this new `FILE`, mode 0600, instead of printing it")
	schedule.register(cmd)
	wait.flag(cmd, "wait until every live node knows the key")
	return cmd
}

// enrolKey registers the public half of a key that was made elsewhere: there is no secret to hand over.
func (c *cli) enrolKey(cmd *cobra.Command, req *iapmeshv1.IssueKeyRequest, public string, wait waitFor) error {
	if cmd.Flags().Changed("key-out") {
		return usagef("--key-out goes not with --public-key: the key stays where it was made")
	}
	var err error
	if req.PublicKey, err = c.readPublicKey(public); err != nil {
		return err
	}
	resp, err := unary(cmd.Context(), c, iapmeshv1.NewKeyServiceClient, iapmeshv1.KeyServiceClient.IssueKey, req)
	if fault.Is(err, fault.Conflict) {
		if _, getErr := c.getKey(cmd.Context(), keyring.KeyID(req.PublicKey)); getErr == nil {
			return hint(err, "Look at what is there: iapmesh key show %s", keyring.KeyID(req.PublicKey))
		}
		return nameTaken(err, req.Name)
	}
	if err != nil {
		return err
	}
	c.noteNamesakes(cmd.Context(), resp.Key)
	if resp.Receipt, err = c.awaitReceipt(cmd.Context(), resp.Receipt, wait); err != nil {
		return err
	}
	return c.print(resp, func(t *table) {
		t.line("issued %s", keyLine(resp.Key))
		receiptLines(t, resp.Receipt)
	})
}

func (c *cli) issueKey(ctx context.Context, req *iapmeshv1.IssueKeyRequest, out string, wait waitFor) error {
	secret, file, err := c.newKey(out)
	if err != nil {
		return err
	}
	req.PublicKey = secret.PublicKey()
	resp, err := unary(ctx, c, iapmeshv1.NewKeyServiceClient, iapmeshv1.KeyServiceClient.IssueKey, req)
	if fault.Is(err, fault.Conflict) { // the answer to a first try may have been lost on the way
		if have, getErr := c.getKey(ctx, secret.ID()); getErr == nil {
			resp, err = &iapmeshv1.IssueKeyResponse{Key: have.Key}, nil
		} else {
			err = nameTaken(err, req.Name)
		}
	}
	if err != nil {
		return c.keyRefused(ctx, file, secret, err)
	}
	err = c.handOver(secret, file, resp, func(t *table) {
		t.line("issued %s", keyLine(resp.Key))
		receiptLines(t, resp.Receipt)
	})
	if err == nil { // not before the key is in safe hands: a wait may be interrupted
		c.noteNamesakes(ctx, resp.Key)
		_, err = c.awaitReceipt(ctx, resp.Receipt, wait)
	}
	return err
}

// nameTaken says what to do about a name that a key has already.
func nameTaken(err error, name string) error {
	return hint(err, "A successor keeps the name: iapmesh key rotate %s. Look at what has it: iapmesh key show %s.", name, name)
}

// noteNamesakes says that a new key is not the only one that its name means: one that is used up or expired keeps it. That another lookup
// fails is no reason to say that the key was not issued.
func (c *cli) noteNamesakes(ctx context.Context, k *iapmeshv1.ProvisioningKey) {
	resp, err := unary(ctx, c, iapmeshv1.NewKeyServiceClient, iapmeshv1.KeyServiceClient.ListKeys, &iapmeshv1.ListKeysRequest{})
	if err != nil {
		return
	}
	var others []string
	for _, o := range resp.Keys {
		if o.Name == k.Name && o.Id != k.Id && o.Successor == "" && o.State != iapmeshv1.KeyState_KEY_STATE_REVOKED && o.State != iapmeshv1.KeyState_KEY_STATE_PENDING {
			others = append(others, o.Id)
		}
	}
	if len(others) > 0 {
		fmt.Fprintf(c.stderr, "note: %s is also the name of %s, which is used up or over: call this one %s\n", k.Name, strings.Join(others, ", "), k.Id)
	}
}

// newKey makes a key pinned to the profile's mesh, and what takes it.
func (c *cli) newKey(out string) (keyring.ProvisioningSecret, *secretFile, error) {
	if out == "" && c.output != "table" {
		return keyring.ProvisioningSecret{}, nil, usagef("-o %s needs --key-out FILE", c.output)
	}
	p, err := c.load()
	if err != nil {
		return keyring.ProvisioningSecret{}, nil, err
	}
	root, err := issuingRoot(p)
	if err != nil {
		return keyring.ProvisioningSecret{}, nil, err
	}
	secret, err := keyring.GenerateKey(keyring.Pin(root), rand.Reader)
	if err != nil {
		return keyring.ProvisioningSecret{}, nil, err
	}
	file, err := createSecretFile(out)
	if err != nil {
		return keyring.ProvisioningSecret{}, nil, err
	}
	if err := file.write(secret); err != nil { // before the mesh learns of it: afterwards there would be no second copy
		file.discard()
		return keyring.ProvisioningSecret{}, nil, err
	}
	return secret, file, nil
}

// keyRefused takes the key's file away again, unless the mesh has taken the key, or may have: a refusal may be of the second try, and the
// first has succeeded.
func (c *cli) keyRefused(ctx context.Context, file *secretFile, secret keyring.ProvisioningSecret, err error) error {
	if file == nil {
		return err
	}
	if !fault.Is(err, fault.Unavailable) {
		if fault.Is(err, fault.Conflict) {
			if _, getErr := c.getKey(ctx, secret.ID()); getErr == nil {
				return hint(err, "Yet the mesh has taken key %s, by an answer that was lost; its file is kept. Look with: iapmesh key show %s", secret.ID(), secret.ID())
			}
		}
		file.discard()
		return err
	}
	return hint(err, "Whether the mesh took key %s is not known; its file is kept. Look with: iapmesh key show %s", secret.ID(), secret.ID())
}

// issuingRoot is the root that a new key pins: the one that issued the administrator's own certificate.
func issuingRoot(p *profile.Profile) (*x509.Certificate, error) {
	credential, err := p.Credential()
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(credential.Certificate[0])
	if err != nil {
		return nil, fault.New(fault.Invalid, "profile of %s: certificate: %w", p.Name, err)
	}
	for rest := []byte(p.Roots); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, fault.New(fault.Invalid, "profile of %s: no root in it issued its certificate", p.Name)
		}
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fault.New(fault.Invalid, "profile of %s: roots: %w", p.Name, err)
		}
		if leaf.CheckSignatureFrom(root) == nil {
			return root, nil
		}
	}
}

func newKeyListCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the keys, newest first", Example: "  iapmesh key list", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewKeyServiceClient, iapmeshv1.KeyServiceClient.ListKeys, &iapmeshv1.ListKeysRequest{})
			if err != nil {
				return err
			}
			now := time.Now()
			return c.print(resp, func(t *table) {
				t.head("ID", "NAME", "STATE", "GRANTS", "REGIONS", "USES", "EXPIRES", "CREATED", "BY")
				for _, k := range resp.Keys {
					t.row(k.Id, k.Name, keyStateCell(k), rolesText(k.Grants), strings.Join(k.Regions, ","), usesText(k), stampText(k.ExpiresAt, now), stampText(k.CreatedAt, now), k.CreatedBy)
				}
			})
		},
	}
}

func newKeyShowCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "show KEY", Short: "Show one key, by id or name, and the nodes that joined under it", Example: "  iapmesh key show us-east-proxies",
		Args: exactArgs("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			resp, err := c.getKey(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(resp, func(t *table) { keyTable(t, resp) })
		},
	}
}

func (c *cli) getKey(ctx context.Context, ref string) (*iapmeshv1.GetKeyResponse, error) {
	resp, err := unary(ctx, c, iapmeshv1.NewKeyServiceClient, iapmeshv1.KeyServiceClient.GetKey, &iapmeshv1.GetKeyRequest{Key: ref})
	return resp, unknownKey(err)
}

// inspected is what a key says of itself.
type inspected struct {
	ID        string `json:"id"`
	PublicKey string `json:"public_key"` // hex
	Pin       string `json:"pin"`        // hex, of the mesh's root
	Mesh      string `json:"mesh,omitempty"`
	Matches   *bool  `json:"matches_profile,omitempty"` // unset: no profile to compare with
}

func newKeyInspectCommand(c *cli) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "inspect --file FILE", Short: "Check a key that you hold, offline",
		Long: `Check that a key is whole, and say which key of which mesh it is, without asking anybody. Where there is a profile, it also says
whether the key is of that mesh. What the key may do is the mesh's to say: iapmesh key show ID.

The exit status is 0 for a key that is whole, and 1 for one that is damaged, or that is of another mesh than that of the profile which
--profile names.`,
		Example: "  iapmesh key inspect --file bootstrap.key",
		Args:    argsBy("file"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "file"); err != nil {
				return err
			}
			key, err := c.readKey(file)
			if err != nil {
				return err
			}
			pin := key.Pin()
			out := inspected{ID: key.ID(), PublicKey: hex.EncodeToString(key.PublicKey()), Pin: hex.EncodeToString(pin[:])}
			if p, err := c.load(); err == nil {
				matches := pinned(p, pin)
				out.Mesh, out.Matches = p.Mesh, &matches
			} else if c.profileRef != "" {
				return err
			}
			err = c.printValue(out, func(t *table) {
				t.row("id", out.ID)
				t.row("public key", out.PublicKey)
				t.row("pin", out.Pin)
				switch {
				case out.Matches == nil:
				case *out.Matches:
					t.row("mesh", cell{text: out.Mesh + ": the pin is its root's", style: green})
				default:
					t.row("mesh", cell{text: "another than the profile's " + out.Mesh + ": no root of it has this pin", style: yellow})
				}
			})
			if err == nil && c.profileRef != "" && !*out.Matches {
				return errReported
			}
			return err
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "`FILE` that holds the key, mode 0600; - for standard input (required)")
	return cmd
}

// pinned reports whether one of the profile's roots has the pin.
func pinned(p *profile.Profile, pin [32]byte) bool {
	for rest := []byte(p.Roots); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return false
		}
		if root, err := x509.ParseCertificate(block.Bytes); err == nil && keyring.Pin(root) == pin {
			return true
		}
	}
}

func keyLine(k *iapmeshv1.ProvisioningKey) string {
	line := fmt.Sprintf("key %s (%s): grants %s, uses %s, until %s", k.Id, k.Name, rolesText(k.Grants), usesText(k), k.ExpiresAt.AsTime().Format("2006-01-02 15:04 MST"))
	if awaitsApproval(k) {
		line += "\nIt admits nobody before another administrator than " + k.CreatedBy + " approves it: iapmesh key approve " + k.Id
	}
	return line
}

func usesText(k *iapmeshv1.ProvisioningKey) string {
	if k.MaxUses == 0 {
		return fmt.Sprintf("%d, no limit", k.Uses)
	}
	return fmt.Sprintf("%d/%d", k.Uses, k.MaxUses)
}

// keyStateCell is a key's state. One whose time is over admits nobody, also before the leader has written that down.
func keyStateCell(k *iapmeshv1.ProvisioningKey) cell {
	out := cell{text: enumText(k.State, "KEY_STATE_")}
	if k.State == iapmeshv1.KeyState_KEY_STATE_ACTIVE && k.ExpiresAt != nil && time.Now().After(k.ExpiresAt.AsTime().Add(keyring.Skew)) {
		return cell{text: "expired", style: dim}
	}
	if awaitsApproval(k) {
		return cell{text: "pending approval", style: yellow}
	}
	switch k.State {
	case iapmeshv1.KeyState_KEY_STATE_ACTIVE:
		out.style = green
	case iapmeshv1.KeyState_KEY_STATE_REVOKED:
		out.style = red
	case iapmeshv1.KeyState_KEY_STATE_RETIRING, iapmeshv1.KeyState_KEY_STATE_SUSPENDED:
		out.style = yellow
	default:
		out.style = dim
	}
	return out
}

func keyTable(t *table, resp *iapmeshv1.GetKeyResponse) {
	k := resp.Key
	now := time.Now()
	t.row("id", k.Id)
	t.row("name", k.Name)
	t.row("state", keyStateCell(k))
	t.row("grants", rolesText(k.Grants))
	for _, optional := range [][2]string{
		{"regions", strings.Join(k.Regions, ", ")}, {"routes", k.RouteSelector}, {"from", strings.Join(k.SourceCidrs, ", ")},
		{"predecessor", k.Predecessor}, {"successor", k.Successor}, {"reason", k.Reason}, {"rotation", scheduleText(k)}, {"made by", k.ProposedBy},
	} {
		if optional[1] != "" {
			t.row(optional[0], optional[1])
		}
	}
	t.row("uses", usesText(k))
	if k.MaxActive > 0 {
		t.row("active at once", k.MaxActive)
	}
	t.row("created", stampText(k.CreatedAt, now)+" by "+k.CreatedBy)
	switch {
	case awaitsApproval(k):
		t.row("approval", cell{text: "awaited, by another administrator than " + k.CreatedBy, style: yellow})
	case k.ApprovedAt != nil:
		t.row("approval", stampText(k.ApprovedAt, now)+" by "+k.ApprovedBy)
	}
	if awaitsApproval(k) && k.Predecessor != "" {
		t.row("grace of "+k.Predecessor, spanText(k.ApprovalGrace.AsDuration())+" from the approval on")
	}
	t.row("expires", stampText(k.ExpiresAt, now))
	if k.GraceUntil != nil {
		t.row("grace", stampText(k.GraceUntil, now))
	}
	if k.RevokedAt != nil {
		t.row("revoked", stampText(k.RevokedAt, now)+revokedBy(k)+", cascade "+enumText(k.Cascade, "CASCADE_"))
	}
	if len(resp.Nodes) > 0 {
		t.line("")
		nodeRows(t, resp.Nodes)
	}
}
