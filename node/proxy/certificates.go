package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// reloadEach is how often certificate files are looked at.
const reloadEach = 10 * time.Second

// CertificateFiles are PEM files: a certificate with its chain, and its key.
type CertificateFiles struct{ CertFile, KeyFile string }

// Certificates are what users' TLS clients are shown, by the name they ask for. Run reloads files that changed.
type Certificates struct {
	files  []CertificateFiles
	logger *slog.Logger
	table  atomic.Pointer[certificateTable]
}

type certificateTable struct {
	first  *tls.Certificate
	byName map[string]*tls.Certificate // names and "*.example.com"
	stamps string
}

// LoadCertificates reads all files; at least one pair is required. A nil logger discards.
func LoadCertificates(files []CertificateFiles, logger *slog.Logger) (*Certificates, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	c := &Certificates{files: files, logger: logger}
	if len(files) == 0 {
		return nil, fault.New(fault.Invalid, "certificates: at least one pair of cert_file and key_file is required")
	}
	t, err := c.load()
	if err != nil {
		return nil, err
	}
	c.table.Store(t)
	return c, nil
}

func (c *Certificates) load() (*certificateTable, error) {
	t := &certificateTable{byName: map[string]*tls.Certificate{}, stamps: c.stamps()} // first: a change meanwhile is seen next time
	var errs []error
	for _, f := range c.files {
		pair, err := tls.LoadX509KeyPair(f.CertFile, f.KeyFile)
		if err != nil {
			errs = append(errs, fault.New(fault.Invalid, "certificate %s: %w", f.CertFile, err))
			continue
		}
		if pair.Leaf == nil {
			if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
				errs = append(errs, fault.New(fault.Invalid, "certificate %s: %w", f.CertFile, err))
				continue
			}
		}
		if t.first == nil {
			t.first = &pair
		}
		for _, name := range append(pair.Leaf.DNSNames, addresses(pair.Leaf)...) {
			if name = strings.ToLower(name); t.byName[name] == nil {
				t.byName[name] = &pair
			}
		}
	}
	return t, errors.Join(errs...)
}

func addresses(leaf *x509.Certificate) []string {
	var names []string
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// stamps tells versions of the files apart.
func (c *Certificates) stamps() string {
	var b strings.Builder
	for _, f := range c.files {
		for _, name := range []string{f.CertFile, f.KeyFile} {
			if info, err := os.Stat(name); err == nil {
				fmt.Fprintf(&b, "%d/%d ", info.ModTime().UnixNano(), info.Size())
			} else {
				b.WriteString("- ")
			}
		}
	}
	return b.String()
}

// Reload reads the files again if one has changed. If any cannot be used, all that was loaded stays in use, and the next Reload
// tries again.
func (c *Certificates) Reload() error {
	if c.stamps() == c.table.Load().stamps {
		return nil
	}
	t, err := c.load()
	if err != nil {
		return fmt.Errorf("reload certificates: %w", err)
	}
	c.table.Store(t)
	return nil
}

// Run reloads until ctx ends.
func (c *Certificates) Run(ctx context.Context) error {
	tick := time.NewTicker(reloadEach)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		text := ""
		if err := c.Reload(); err != nil {
			text = err.Error()
		}
		if text != "" && text != last { // the same mistake once
			c.logger.Error("certificates stay as they were", "error", text)
		}
		last = text
	}
}

// GetCertificate finds the certificate for a name: its own, then a wildcard's of one label, then the first.
func (c *Certificates) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	t := c.table.Load()
	name := strings.TrimSuffix(strings.ToLower(hello.ServerName), ".")
	if found := t.byName[name]; found != nil {
		return found, nil
	}
	if _, domain, ok := strings.Cut(name, "."); ok {
		if found := t.byName["*."+domain]; found != nil {
			return found, nil
		}
	}
	return t.first, nil
}
