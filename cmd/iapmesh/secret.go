package main

import (
	"bytes"

	"github.com/spf13/cobra"

	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

const maxSecret = 64 << 10

func newSecretCommand(c *cli) *cobra.Command {
	return group("secret", "Secrets that resources refer to by name", newSecretSetCommand(c))
}

func newSecretSetCommand(c *cli) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "set NAME --file FILE", Short: "Set a secret; it is never read back",
		Long:    "Set a secret, such as an identity provider's client secret, from a file or standard input. One newline at its end is not part of it.",
		Example: "  iapmesh secret set okta-client --file okta-client.txt\n  vault kv get -field=secret okta | iapmesh secret set okta-client --file -",
		Args:    exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := required(cmd, "file"); err != nil {
				return err
			}
			value, err := c.readInput(file, maxSecret)
			if err != nil {
				return err
			}
			value = bytes.TrimSuffix(bytes.TrimSuffix(value, []byte("\n")), []byte("\r"))
			if len(value) == 0 {
				return usagef("--file %s: is empty", file)
			}
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewConfigServiceClient, iapmeshv1.ConfigServiceClient.SetSecret, &iapmeshv1.SetSecretRequest{Name: args[0], Value: value})
			if err != nil {
				return err
			}
			return c.print(resp, func(t *table) {
				t.line("set secret %s", args[0])
				receiptLines(t, resp.Receipt)
			})
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "`FILE` that holds the secret; - for standard input (required)")
	return cmd
}
