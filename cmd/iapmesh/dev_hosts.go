package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/dev/mesh"
)

func newDevHostsCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "hosts", Short: "Print entries for /etc/hosts, for programs that do not know *.localhost",
		Long:    `Print entries for /etc/hosts. Browsers and curl take every name under localhost for this machine; some other programs ask DNS.`,
		Example: `  iapmesh dev hosts | sudo tee -a /etc/hosts`,
		Args:    exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(c.stdout, "127.0.0.1 %s # iapmesh dev\n", strings.Join(mesh.Hosts(), " "))
			return err
		},
	}
}
