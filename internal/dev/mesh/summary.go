package mesh

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// summary says what runs and what to try. It stands on one screen.
func (m *Mesh) summary(d *Description, took time.Duration, profileNote string) {
	var b strings.Builder
	bold, dim, link := m.style("1"), m.style("2"), m.style("36")
	fmt.Fprintf(&b, "\n%s in %.1f s: three regions, one sign-in.\n\n", bold("The mesh is ready"), took.Seconds())
	for i, r := range d.Regions {
		fmt.Fprintf(&b, "  %-8s  %s   %s   %s\n", r.Name, link(fmt.Sprintf("https://%s:%d/", EchoHost, m.ports.proxy(i))),
			link(fmt.Sprintf("https://%s:%d/", BillingHost, m.ports.proxy(i))), dim(fmt.Sprintf("pid %d, api %s, metrics http://%s/metrics", r.PID, r.API, r.Ops)))
	}
	b.WriteString("\n")
	for _, u := range d.Provider.Users {
		groups := strings.Join(u.Groups, ", ")
		if groups == "" {
			groups = "no group"
		}
		fmt.Fprintf(&b, "  %-20s  password %s  %s\n", u.Username, bold(u.Password), dim(groups))
	}
	fmt.Fprintf(&b, "\n  %s\n", dim("dev.json: "+m.path(descriptFile)+"   mesh.yaml: "+d.MeshYAML))
	fmt.Fprintf(&b, "\n%s\n", bold("Try"))
	ana := d.Provider.Users[0]
	if profileNote != "" {
		fmt.Fprintf(&b, "  %s\n", profileNote)
	}
	for _, t := range []struct{ what, line string }{
		{"trust the certificates (or accept them in the browser)", m.command("dev", "trust", "--ca-dir", m.config.CADir)},
		{"sign in as ana in eu-west, then open us-east: no second sign-in", ""},
		{"who is there", m.command("status")},
		{"rotate the keys that sign, everywhere", m.command("signing-key", "rotate")},
		{"refuse " + ana.Username + " everywhere, open streams included", m.command("revoke", "user", providerName+"/"+ana.Subject, "--block", "--wait")},
		{"let " + ana.Username + " in again", m.command("revocations", "lift", "user", providerName+"/"+ana.Subject)},
		{"read every decision back, and prove that none was changed", m.command("audit", "query") + "; " + m.command("audit", "verify")},
		{"kill a region and look again", fmt.Sprintf("kill -9 %d", d.Regions[0].PID)},
		{"add a fourth node", m.fourth()},
	} {
		fmt.Fprintf(&b, "  %s\n", dim("# "+t.what))
		if t.line != "" {
			fmt.Fprintf(&b, "  %s\n", t.line)
		}
	}
	fmt.Fprintf(&b, "\n%s\n\n", dim("Ctrl-C ends all of it. Logs follow."))
	_, _ = m.config.Out.Write([]byte(b.String())) // nobody is left to tell
}

// fourth is the whole command that adds a node to the first region.
func (m *Mesh) fourth() string {
	i := len(regions)
	return m.command("node", "--name", regions[0]+"-2", "--region", regions[0], "--roles", "proxy",
		"--data-dir", m.path("fourth"), "--join", local(m.ports.api(0)), "--join-key-file", m.path(keyFile),
		"--listen-mesh", local(m.ports.api(i)), "--listen-gossip", local(m.ports.gossip(i)),
		"--listen-proxy", local(m.ports.proxy(i)), "--listen-ops", local(m.ports.ops(i)),
		"--tls-cert", m.leafCert, "--tls-key", m.leafKey)
}

// command is a line for a shell, with this program by the shortest path that leads to it from here.
func (m *Mesh) command(args ...string) string {
	binary := m.config.Binary
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, binary); err == nil && len(rel) < len(binary) && !strings.HasPrefix(rel, "..") {
			binary = rel
			if !strings.ContainsRune(rel, filepath.Separator) {
				binary = "./" + rel
			}
		}
	}
	words := []string{quote(binary)}
	for _, a := range args {
		words = append(words, quote(a))
	}
	return strings.Join(words, " ")
}

// quote makes one word of what a shell would take apart.
func quote(word string) string {
	safe := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_./:@,=+%", c)
	}
	if word != "" && strings.IndexFunc(word, func(c rune) bool { return !safe(c) }) < 0 {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

func (m *Mesh) style(code string) func(string) string {
	return func(s string) string {
		if !m.config.Color {
			return s
		}
		return "\x1b[" + code + "m" + s + "\x1b[0m"
	}
}
