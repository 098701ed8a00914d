package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node"
)

// founding is what init was asked for, beside the node's configuration.
type founding struct {
	flags       nodeFlags
	trustDomain string
	admin       string
	keyFile     string
	profileOut  string
	grants      []string
}

func newInitCommand(c *cli) *cobra.Command {
	var f founding
	cmd := &cobra.Command{
		Use: "init", Short: "Found a mesh: its CA, its first control node, an administrator and a bootstrap key",
		Long: `Found a mesh in an empty data directory. The bootstrap key (16 joins within 24 hours) is printed once, or written to
--bootstrap-key-file with mode 0600; the administrator's profile goes to --profile-out. Neither is kept anywhere else.
Then run the node with the same flags or file: iapmesh node.`,
		Example: `  iapmesh init --name ctl-1 --region eu-west --listen-mesh 10.0.0.1:7443 --listen-gossip 10.0.0.1:7946 \
    --trust-domain mesh.example.com --bootstrap-key-file bootstrap.key
  iapmesh init --config node.yaml --trust-domain mesh.example.com --profile-out prod`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "trust-domain"); err != nil {
				return err
			}
			return c.init(cmd.Context(), &f)
		},
	}
	f.flags.register(cmd)
	cmd.Flags().StringVar(&f.flags.over.Advertise.Mesh, "mesh-address", "", "the same as --advertise-mesh")
	f.flags.override["mesh-address"] = f.flags.override["advertise-mesh"]
	cmd.Flags().StringVar(&f.trustDomain, "trust-domain", "", "`DOMAIN` of the mesh's SPIFFE IDs, such as mesh.example.com (required)")
	cmd.Flags().StringVar(&f.admin, "admin", "admin", "`NAME` of the first administrator")
	cmd.Flags().StringVar(&f.keyFile, "bootstrap-key-file", "", "write the bootstrap key to this new `FILE`, mode 0600, instead of printing it")
	cmd.Flags().StringVar(&f.profileOut, "profile-out", "", "`FILE|NAME` of the administrator's new profile (default: --profile, then \"default\")")
	cmd.Flags().StringSliceVar(&f.grants, "bootstrap-grants", nil, "`ROLES` that the bootstrap key grants (default control,proxy)")
	return cmd
}

// founded is what init prints with -o json.
type founded struct {
	Mesh         string `json:"mesh"`
	TrustDomain  string `json:"trust_domain"`
	Node         string `json:"node"`
	Key          string `json:"key"`
	BootstrapKey string `json:"bootstrap_key,omitempty"` // unless it went to a file
	KeyFile      string `json:"bootstrap_key_file,omitempty"`
	Profile      string `json:"profile"`
}

func (c *cli) init(ctx context.Context, f *founding) error {
	config, err := f.flags.config(c.stdin)
	if err != nil {
		return err
	}
	if !f.flags.flags.Changed("roles") && f.flags.file == "" {
		config.Roles = []string{string(keyring.RoleControl)}
	}
	var grants []keyring.Role
	for _, g := range f.grants {
		if _, err := parseRole(g); err != nil {
			return err
		}
		grants = append(grants, keyring.Role(g))
	}
	if f.profileOut == "" {
		f.profileOut = c.profileRef
	}
	// What takes the secrets is made first: a mesh whose keys were lost would be no use.
	path, err := freeProfile(f.profileOut)
	if err != nil {
		return err
	}
	keyFile, err := createSecretFile(f.keyFile)
	if err != nil {
		return err
	}
	waiting := c.await("the mesh to be founded")
	made, err := node.Init(ctx, node.InitConfig{
		Config: config, TrustDomain: f.trustDomain, Admin: f.admin, Grants: grants, Logger: newLogger(c.stderr, node.Log{Level: "error", Format: config.Log.Format}),
	})
	waiting.stop()
	if err != nil {
		keyFile.discard()
		if fault.Is(err, fault.Conflict) {
			return hint(err, "To found another mesh, name an empty --data-dir; to run this node: iapmesh node.")
		}
		return err
	}
	errKey := keyFile.write(made.Bootstrap)
	_, errProfile := made.Profile.Save(path)
	if err := errors.Join(errKey, errProfile); err != nil {
		return hint(err, "The mesh was founded, but what it handed over is lost: remove %s and found it again.", config.DataDir)
	}
	out := founded{Mesh: made.MeshID, TrustDomain: f.trustDomain, Node: made.NodeID, Key: made.Key.ID, KeyFile: f.keyFile, Profile: path}
	if f.keyFile == "" {
		out.BootstrapKey = made.Bootstrap.String()
	}
	if c.output != "table" {
		data, err := json.Marshal(out)
		if err != nil {
			return fault.New(fault.Internal, "encode output: %w", err)
		}
		return c.printJSON(data)
	}
	fmt.Fprintf(c.stderr, "Mesh %s (%s) is founded; this is its node %s.\n", out.Mesh, out.TrustDomain, out.Node)
	fmt.Fprintf(c.stderr, "Administrator %s: profile %s\n", f.admin, path)
	fmt.Fprintf(c.stderr, "Bootstrap key %s: %s, %d uses, until %s\n", made.Key.ID, strings.Join(words(made.Key.Grants), ","), made.Key.MaxUses, made.Key.ExpiresAt.Format("2006-01-02 15:04 MST"))
	if f.keyFile != "" {
		fmt.Fprintf(c.stderr, "  in %s\n", f.keyFile)
	} else {
		fmt.Fprintln(c.stdout, out.BootstrapKey)
		fmt.Fprintln(c.stderr, "It is not shown again. Keep it in a secret manager, or a file of mode 0600.")
	}
	fmt.Fprintln(c.stderr, "Next: run \"iapmesh node\" with the same --config or flags.")
	return nil
}

// freeProfile is where a new profile may be written.
func freeProfile(ref string) (string, error) {
	path, err := profile.Path(ref)
	if err != nil {
		return "", err
	}
	if _, err := os.Lstat(path); err == nil {
		return "", hint(fault.New(fault.Conflict, "profile %s is there already", path), "Name another one with --profile-out; this one may be the only way into its mesh.")
	}
	return path, nil
}

func words[S ~string](in []S) []string {
	out := make([]string, 0, len(in))
	for _, s := range in {
		out = append(out, string(s))
	}
	return out
}
