package main

import (
	"runtime"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/node"
)

func newVersionCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this binary", Example: "  iapmesh version -o json",
		Args: exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version string `json:"version"`
				Go      string `json:"go"`
				OS      string `json:"os"`
				Arch    string `json:"arch"`
			}{node.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH}
			return c.printValue(v, func(t *table) { t.line("iapmesh %s (%s, %s/%s)", v.Version, v.Go, v.OS, v.Arch) })
		},
	}
}
