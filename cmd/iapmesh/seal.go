package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node"
)

func newSealCommand(c *cli) *cobra.Command {
	return group("seal", "See and change which keepers open a node's data directory",
		newSealShowCommand(c),
		newSealRotateCommand(c),
	)
}

// sealFlags name a data directory: that of a node.yaml, or itself.
type sealFlags struct {
	config, dataDir string
}

func (f *sealFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.config, "config", "", "node.yaml `FILE` of the node; - for standard input")
	cmd.Flags().StringVar(&f.dataDir, "data-dir", "", "`DIR` of the node's keys and state, instead of --config")
}

// directory returns the data directory and the keepers that its node.yaml names.
func (f *sealFlags) directory(c *cli) (dir string, urls []string, err error) {
	switch {
	case (f.config == "") == (f.dataDir == ""):
		return "", nil, usagef("want --config or --data-dir")
	case f.dataDir != "":
		dir = f.dataDir
	default:
		config, err := readConfig(f.config, c.stdin)
		if err != nil {
			return "", nil, err
		}
		dir, urls = config.DataDir, config.Seal
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", nil, fault.New(fault.Invalid, "data directory: %w", err)
	}
	return dir, urls, nil
}

// wrapView is one wrap as seal show prints it.
type wrapView struct {
	Keeper string `json:"keeper"`
	Opens  bool   `json:"opens"`
	Error  string `json:"error,omitempty"`
}

func newSealShowCommand(c *cli) *cobra.Command {
	var flags sealFlags
	cmd := &cobra.Command{
		Use: "show {--config FILE | --data-dir DIR}", Short: "List the keepers that wrap the data key, and try each",
		Long: `List the keepers that wrap the data key of a node's data directory, and say which of them open it now. Run it as the node's
user, with the node's environment, on its machine: it is that which counts when the node starts next. It fails if none opens.`,
		Example: `  iapmesh seal show --config /etc/iapmesh/node.yaml`,
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, urls, err := flags.directory(c)
			if err != nil {
				return err
			}
			return c.sealShow(cmd.Context(), dir, urls)
		},
	}
	flags.register(cmd)
	return cmd
}

func (c *cli) sealShow(ctx context.Context, dir string, urls []string) error {
	wraps, err := c.sealWraps(ctx, dir, urls)
	if err != nil {
		return err
	}
	out := struct {
		DataDir string     `json:"data_dir"`
		Wraps   []wrapView `json:"wraps"`
	}{dir, wraps}
	if err := c.printValue(out, func(t *table) {
		t.head("KEEPER", "OPENS", "WHY NOT")
		for _, w := range wraps {
			opens := cell{text: "yes", style: green}
			if !w.Opens {
				opens = cell{text: "no", style: red}
			}
			t.row(w.Keeper, opens, w.Error)
		}
	}); err != nil {
		return err
	}
	for _, w := range wraps {
		if w.Opens {
			return nil
		}
	}
	return errReported
}

func (c *cli) sealWraps(ctx context.Context, dir string, urls []string) ([]wrapView, error) {
	wraps, err := node.SealedDirectory(dir, urls, c.timeout).Wraps(ctx)
	if err != nil {
		return nil, err
	}
	var out []wrapView
	for _, w := range wraps {
		v := wrapView{Keeper: w.URL, Opens: w.Err == nil}
		if w.Err != nil {
			v.Error = strings.Join(strings.Fields(w.Err.Error()), " ")
		}
		out = append(out, v)
	}
	return out, nil
}

func newSealRotateCommand(c *cli) *cobra.Command {
	var (
		flags sealFlags
		to    []string
	)
	cmd := &cobra.Command{
		Use: "rotate {--config FILE | --data-dir DIR} [--to URL]…", Short: "Wrap the data key anew, while the node runs",
		Long: `Wrap the data key of a node's data directory anew, by exactly the keepers given: those of --to, or else of node.yaml, or else
those that wrap it now. A key file that wraps it now gets a new key in its place. The node goes on, running or not: the data key
itself stays. Each new wrap is proved to open before an old one goes; if anything fails, or the power does, the old ones open.

Afterwards make "seal" in node.yaml the same list. A copy of the old seal.json together with the old key still opens the data key:
to shut out who has both, let the node leave and join anew with an empty data directory.`,
		Example: `  iapmesh seal rotate --config /etc/iapmesh/node.yaml
  iapmesh seal rotate --config /etc/iapmesh/node.yaml --to 'awskms://alias/iapmesh?region=eu-west-1' --to file:///mnt/recovery/seal.key`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, urls, err := flags.directory(c)
			if err != nil {
				return err
			}
			return c.sealRotate(cmd.Context(), dir, urls, to)
		},
	}
	flags.register(cmd)
	cmd.Flags().StringArrayVar(&to, "to", nil, "`URL` of a keeper: file://, awskms://, gcpkms://, azurekeyvault://, hashivault://; may be repeated")
	return cmd
}

// rotatedView is what seal rotate prints.
type rotatedView struct {
	DataDir  string   `json:"data_dir"`
	OpenedBy string   `json:"opened_by"`
	Wraps    []string `json:"wraps"`
	Dropped  []string `json:"dropped,omitempty"`
	Replaced []string `json:"replaced_key_files,omitempty"`
	Removed  []string `json:"removed_key_files,omitempty"`
	Left     []string `json:"left_key_files,omitempty"`
}

func (c *cli) sealRotate(ctx context.Context, dir string, urls, to []string) error {
	for _, raw := range to {
		if strings.HasPrefix(raw, "base64key:") { // arguments are for all to see
			return usagef("--to base64key://…: a key is no argument: name it in node.yaml's seal, and rotate without --to")
		}
	}
	r, err := node.SealedDirectory(dir, urls, c.timeout).Rotate(ctx, to)
	if r == nil {
		if fault.Is(err, fault.Unavailable) {
			return hint(err, "Every keeper must answer for a rotation; the wraps of before still hold. Repeat it; --timeout waits longer.")
		}
		return err
	}
	out := rotatedView{DataDir: dir, OpenedBy: r.Opened, Wraps: r.Wraps, Dropped: r.Dropped, Replaced: r.Replaced, Removed: r.Removed, Left: r.Left}
	if c.output != "table" {
		if errPrint := c.printValue(out, nil); errPrint != nil {
			return errPrint
		}
		return err
	}
	list := func(what string, items []string) {
		for _, item := range items {
			fmt.Fprintf(c.stdout, "%s %s\n", what, item)
		}
	}
	list("wrapped by:", out.Wraps)
	list("no longer by:", out.Dropped)
	list("new key in:", out.Replaced)
	list("removed:", out.Removed)
	list("no longer needed here:", out.Left)
	return err
}
