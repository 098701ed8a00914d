package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/resource"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

const fileUsage = "`FILE` or directory of mesh.yaml documents, - for standard input; may be repeated (required)"

func newApplyCommand(c *cli) *cobra.Command {
	var files []string
	wait := waitNot
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Make resources part of the configuration: all or nothing",
		Long: `Make the resources of files part of the configuration: all or nothing. What the files do not name stays as it is.
Where a document is preceded by "# base: HASH", as "iapmesh get -o yaml" writes it, and somebody has changed that resource since,
nothing is applied.`,
		Example: "  iapmesh diff -f mesh.yaml && iapmesh apply -f mesh.yaml --wait\n  iapmesh get all -o yaml > mesh.yaml",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "filename"); err != nil {
				return err
			}
			resp, err := c.apply(cmd.Context(), files, false)
			if err != nil {
				return err
			}
			if resp.Receipt, err = c.awaitReceipt(cmd.Context(), resp.Receipt, wait); err != nil {
				return err
			}
			return c.printChanges(resp, func(t *table) {
				changeRows(t, resp.Changes)
				receiptLines(t, resp.Receipt)
			})
		},
	}
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, fileUsage)
	wait.flag(cmd, "wait until every live node has it")
	return cmd
}

func newDiffCommand(c *cli) *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use: "diff -f FILE", Short: "Show what apply would change",
		Long:    "Validate the files against the configuration in force, as apply does, and show what would change. The exit status is 0 either way.",
		Example: "  iapmesh diff -f mesh.yaml",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "filename"); err != nil {
				return err
			}
			resp, err := c.apply(cmd.Context(), files, true)
			if err != nil {
				return err
			}
			if c.output != "table" {
				return c.printChanges(resp, nil)
			}
			return c.printDiff(resp.Changes)
		},
	}
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, fileUsage)
	return cmd
}

func (c *cli) apply(ctx context.Context, files []string, dryRun bool) (*iapmeshv1.ApplyResponse, error) {
	req := &iapmeshv1.ApplyRequest{DryRun: dryRun, Base: map[string][]byte{}}
	docs, bases, err := c.readResources(files)
	if err != nil {
		return nil, err
	}
	for _, d := range docs {
		ref := d.Ref()
		req.Resources = append(req.Resources, &iapmeshv1.Resource{Kind: ref.Kind, Name: ref.Name, Spec: d.JSON, Source: d.Source})
	}
	for ref, hash := range bases {
		req.Base[ref.String()] = hash
	}
	resp, err := unary(ctx, c, iapmeshv1.NewConfigServiceClient, iapmeshv1.ConfigServiceClient.Apply, req)
	if fault.Is(err, fault.Conflict) && len(bases) > 0 {
		return nil, hint(err, "Nothing was applied. Merge with what is there now; then put its new \"# base:\" line above your document, or take the line away to replace it regardless.")
	}
	if fault.Is(err, fault.Invalid) {
		return nil, hint(err, "Nothing was applied.")
	}
	return resp, err
}

// readResources reads files, and those of directories, and the bases that they name.
func (c *cli) readResources(names []string) ([]resource.Document, map[resource.Ref][]byte, error) {
	var docs []resource.Document
	bases := map[resource.Ref][]byte{}
	for _, name := range names {
		files := []string{name}
		if info, err := os.Stat(name); err == nil && info.IsDir() {
			if files, err = yamlFiles(name); err != nil {
				return nil, nil, err
			}
		}
		for _, file := range files {
			data, err := c.readInput(file, resource.MaxFile)
			if err != nil {
				return nil, nil, err
			}
			title := file
			if file == "-" {
				title = "standard input"
			}
			read, err := resource.Parse(title, data)
			if err != nil {
				return nil, nil, err
			}
			if err := addBases(bases, title, data, read); err != nil {
				return nil, nil, err
			}
			docs = append(docs, read...)
		}
	}
	return docs, bases, nil
}

func yamlFiles(dir string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if ext := filepath.Ext(path); err == nil && !d.IsDir() && (ext == ".yaml" || ext == ".yml") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return nil, fault.New(fault.Invalid, "read %s: %w", dir, err)
	}
	if len(files) == 0 {
		return nil, fault.New(fault.Invalid, "%s: holds no .yaml or .yml file", dir)
	}
	return files, nil
}

const basePrefix = "# base: "

// addBases finds the comment that stands above a document and below the one before it.
func addBases(bases map[resource.Ref][]byte, file string, data []byte, docs []resource.Document) error {
	begins := make([]int, len(docs)) // lines, rising as Parse goes through the file
	for i, d := range docs {
		_, line, _ := strings.Cut(strings.TrimPrefix(d.Source, file), ":")
		begins[i], _ = strconv.Atoi(line)
	}
	n := 0
	for line := range bytes.Lines(data) {
		n++
		text, ok := strings.CutPrefix(strings.TrimRight(string(line), " \r\n"), basePrefix)
		if !ok {
			continue
		}
		hash, err := hex.DecodeString(text)
		if err != nil || len(hash) != 32 {
			return fault.New(fault.Invalid, "%s:%d: base: want 64 hexadecimal digits, as \"iapmesh get -o yaml\" writes them", file, n)
		}
		if i := slices.IndexFunc(begins, func(begin int) bool { return begin > n }); i >= 0 {
			bases[docs[i].Ref()] = hash
		}
	}
	return nil
}

// change is a ResourceChange with its specs as they are.
type change struct {
	Kind   string          `json:"kind"`
	Name   string          `json:"name"`
	Action string          `json:"action"`
	Before json.RawMessage `json:"before,omitempty"`
	After  json.RawMessage `json:"after,omitempty"`
}

func (c *cli) printChanges(resp *iapmeshv1.ApplyResponse, table func(*table)) error {
	out := struct {
		Changes        []change        `json:"changes"`
		ManifestDigest string          `json:"manifest_digest"`
		Receipt        json.RawMessage `json:"receipt,omitempty"`
	}{Changes: []change{}, ManifestDigest: hex.EncodeToString(resp.ManifestDigest)}
	for _, ch := range resp.Changes {
		out.Changes = append(out.Changes, change{ch.Kind, ch.Name, ch.Action, ch.Before, ch.After})
	}
	if resp.Receipt != nil {
		var err error
		if out.Receipt, err = messageJSON(resp.Receipt); err != nil {
			return err
		}
	}
	return c.printValue(out, table)
}

func changeRows(t *table, changes []*iapmeshv1.ResourceChange) {
	unchanged := 0
	for _, ch := range changes {
		style := green
		switch ch.Action {
		case "unchanged":
			unchanged++
			continue
		case "update":
			style = yellow
		case "delete":
			style = red
		}
		t.row(cell{text: ch.Action, style: style}, ch.Kind+"/"+ch.Name)
	}
	if unchanged > 0 {
		t.line("%d unchanged", unchanged)
	}
}

// printDiff shows changes as a unified diff of YAML.
func (c *cli) printDiff(changes []*iapmeshv1.ResourceChange) error {
	paint := painter(terminal(c.stdout))
	for _, ch := range changes {
		before, err := specYAML(ch.Before)
		if err != nil {
			return err
		}
		after, err := specYAML(ch.After)
		if err != nil {
			return err
		}
		title := ch.Kind + "/" + ch.Name
		for line := range bytes.Lines(diff.Diff("in force: "+title, before, "new: "+title, after)) {
			text := strings.TrimSuffix(string(line), "\n")
			style := plain
			switch {
			case strings.HasPrefix(text, "diff "):
				continue
			case strings.HasPrefix(text, "---"), strings.HasPrefix(text, "+++"):
				style = bold
			case strings.HasPrefix(text, "@@"):
				style = cyan
			case strings.HasPrefix(text, "-"):
				style = red
			case strings.HasPrefix(text, "+"):
				style = green
			}
			if _, err := fmt.Fprintln(c.stdout, paint(style, text)); err != nil {
				return err
			}
		}
	}
	return nil
}

func specYAML(spec []byte) ([]byte, error) {
	if len(spec) == 0 {
		return nil, nil
	}
	return yamlOf(spec)
}
