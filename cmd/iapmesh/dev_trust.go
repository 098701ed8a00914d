package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/dev/ca"
	"github.com/iapmesh/iapmesh/internal/fault"
)

func newDevTrustCommand(c *cli, f *devFlags) *cobra.Command {
	var printOnly bool
	cmd := &cobra.Command{
		Use: "trust", Short: "Make this machine and its browsers trust the development CA",
		Long: `Install the development CA, which can speak for localhost, its subdomains and the loopback addresses and for nothing else, where this
machine's programs and Chromium look. With --print, say what would be done and print the certificate.`,
		Example: "  iapmesh dev trust --print",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.findCA(); err != nil {
				return err
			}
			authority, err := ca.Open(f.config.CADir)
			if err != nil {
				return err
			}
			home, err := os.UserHomeDir()
			if err != nil {
				return fault.New(fault.Invalid, "find trust stores: %w", err)
			}
			steps := trustSteps(runtime.GOOS, home, authority.CertFile())
			if printOnly {
				for _, s := range steps {
					fmt.Fprintf(c.stdout, "# %s\n%s\n", s.what, s.line())
				}
				_, err := c.stdout.Write(authority.CertPEM())
				return err
			}
			var errs []error
			for _, s := range steps {
				errs = append(errs, c.trust(cmd.Context(), s))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&printOnly, "print", false, "change nothing: print the commands and the certificate")
	return cmd
}

// trustStep puts the certificate into one trust store.
type trustStep struct {
	what     string
	commands [][]string
	optional bool // skipped where its program is not there
}

func (s trustStep) line() string {
	var lines []string
	for _, words := range s.commands {
		lines = append(lines, strings.Join(words, " "))
	}
	return strings.Join(lines, " && ")
}

func trustSteps(goos, home, cert string) []trustStep {
	name := "iapmesh-" + strings.TrimSuffix(filepath.Base(cert), ".pem")
	if goos == "darwin" {
		return []trustStep{{what: "the login keychain", commands: [][]string{
			{"security", "add-trusted-cert", "-r", "trustRoot", "-k", filepath.Join(home, "Library/Keychains/login.keychain-db"), cert},
		}}}
	}
	nss := filepath.Join(home, ".pki", "nssdb")
	return []trustStep{
		{what: "the system's trust store", commands: [][]string{
			{"cp", cert, "/usr/local/share/ca-certificates/" + name + ".crt"},
			{"update-ca-certificates"},
		}},
		{what: "Chromium's trust store (NSS)", optional: true, commands: [][]string{
			{"mkdir", "-p", nss},
			{"certutil", "-d", "sql:" + nss, "-A", "-t", "C,,", "-n", name, "-i", cert},
		}},
	}
}

// trust does one step and says so; what lacks permission is handed to the user as a line.
func (c *cli) trust(ctx context.Context, s trustStep) error {
	for _, words := range s.commands {
		if _, err := exec.LookPath(words[0]); err != nil {
			if s.optional {
				fmt.Fprintf(c.stdout, "skipped  %s: %s is not installed\n", s.what, words[0])
				return nil
			}
			return hint(fault.New(fault.Unavailable, "%s: %w", s.what, err), "Install the certificate by hand: iapmesh dev trust --print")
		}
		if out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
			return hint(fault.New(fault.Denied, "%s: %s: %w: %s", s.what, words[0], err, strings.TrimSpace(string(out))), "Do it with more rights: sudo sh -c '%s'", s.line())
		}
	}
	fmt.Fprintf(c.stdout, "trusted  %s\n", s.what)
	return nil
}
