package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/keyring"
)

// redactor is where all goes that a process says beside its output: errors, findings of a check, the log. No provisioning key stands in
// it, wherever it came from: a configuration, a variable, an answer.
type redactor struct{ w io.Writer }

// Write writes p whole, or with each key hidden: whoever writes, writes lines.
func (r redactor) Write(p []byte) (int, error) {
	text := string(p)
	if hidden := keyring.Redact(text); hidden != text {
		if _, err := io.WriteString(r.w, hidden); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	return r.w.Write(p)
}

// noSecrets refuses a command line that holds a provisioning key, or a piece of one, before anything of it is understood, said or sent.
func noSecrets(root *cobra.Command, args []string) (*cobra.Command, error) {
	id, found := keyring.FindSecret(strings.Join(args, "\n"))
	if !found {
		return nil, nil
	}
	cmd, _, _ := root.Find(args) // whatever it cannot find, it says how far it came
	which, revoke := "", "Revoke it; iapmesh key list shows its id."
	if id != "" {
		which, revoke = " "+id, "Revoke it: iapmesh key revoke "+id+" --cascade keep."
	}
	instead := "Elsewhere a key goes by its id or name."
	if flag := keyFileFlag(cmd); flag != "" {
		instead = fmt.Sprintf("The key itself is read from a file (mode 0600): --%s FILE. %s", flag, instead)
	}
	return cmd, usageError{hint(fmt.Errorf("the command line holds provisioning key%s itself, or a part of it: it is now in your shell's history, and other users of this machine could read it", which),
		"%s %s", revoke, instead)}
}

// keyFileFlag is the flag by which a command reads a key from a file; empty if it reads none.
func keyFileFlag(cmd *cobra.Command) string {
	flags := []string{"with-key-file", "join-key-file"}
	if cmd.Name() == "inspect" {
		flags = append(flags, "file")
	}
	i := slices.IndexFunc(flags, func(name string) bool { return cmd.Flags().Lookup(name) != nil })
	if i < 0 {
		return ""
	}
	return flags[i]
}
