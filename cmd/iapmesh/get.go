package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/resource"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// fetched is a resource as get prints it.
type fetched struct {
	Kind   string          `json:"kind"`
	Name   string          `json:"name"`
	Hash   string          `json:"hash"` // hex: the base of a change
	Source string          `json:"source,omitempty"`
	Spec   json.RawMessage `json:"spec"`
}

func newGetCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "get KIND [NAME]", Short: "Show resources of the configuration in force",
		Long: fmt.Sprintf(`Show resources of the configuration in force. KIND is all or one of %s.
-o yaml prints a mesh.yaml that apply takes; the "# base:" lines in it keep apply from overwriting what somebody changes meanwhile.`, strings.Join(resource.Kinds(), ", ")),
		Example: "  iapmesh get routes\n  iapmesh get route billing -o yaml",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return nil
			}
			return exactArgs("KIND", "NAME")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &iapmeshv1.GetResourcesRequest{}
			if args[0] != "all" {
				var err error
				if req.Kind, err = resource.CanonicalKind(args[0]); err != nil {
					return usageError{err}
				}
			} else if len(args) > 1 {
				return usagef("all has no NAME")
			}
			if len(args) > 1 {
				req.Name = args[1]
			}
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewConfigServiceClient, iapmeshv1.ConfigServiceClient.GetResources, req)
			if err != nil {
				return err
			}
			return c.printResources(resp)
		},
	}
}

func (c *cli) printResources(resp *iapmeshv1.GetResourcesResponse) error {
	out := struct {
		Resources      []fetched `json:"resources"`
		ManifestDigest string    `json:"manifest_digest"`
	}{Resources: []fetched{}, ManifestDigest: hex.EncodeToString(resp.ManifestDigest)}
	for _, r := range resp.Resources {
		hash := hex.EncodeToString(resp.Hashes[r.Kind+"/"+r.Name])
		out.Resources = append(out.Resources, fetched{r.Kind, r.Name, hash, r.Source, r.Spec})
	}
	if c.output == "yaml" {
		for i, r := range out.Resources {
			text, err := yamlOf(r.Spec)
			if err != nil {
				return err
			}
			separator := ""
			if i > 0 {
				separator = "---\n"
			}
			if _, err := fmt.Fprintf(c.stdout, "%s%s%s\n%s", separator, basePrefix, r.Hash, text); err != nil {
				return err
			}
		}
		return nil
	}
	return c.printValue(out, func(t *table) {
		t.head("KIND", "NAME", "HASH", "SOURCE")
		for _, r := range out.Resources {
			t.row(r.Kind, r.Name, r.Hash[:min(12, len(r.Hash))], r.Source)
		}
	})
}

func newDeleteCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "delete KIND NAME", Short: "Take a resource out of the configuration",
		Long:    "Take a resource out of the configuration. One that others refer to is refused, with who does.",
		Example: "  iapmesh delete route billing",
		Args:    exactArgs("KIND", "NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, err := resource.CanonicalKind(args[0])
			if err != nil {
				return usageError{err}
			}
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewConfigServiceClient, iapmeshv1.ConfigServiceClient.DeleteResource, &iapmeshv1.DeleteResourceRequest{Kind: kind, Name: args[1]})
			if fault.Is(err, fault.NotFound) {
				return hint(err, "iapmesh get %s lists what is there.", args[0])
			}
			if err != nil {
				return err
			}
			return c.print(resp, func(t *table) {
				t.line("deleted %s/%s", kind, args[1])
				receiptLines(t, resp.Receipt)
			})
		},
	}
}
