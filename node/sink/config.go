package sink

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/iapmesh/iapmesh/internal/credential"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// Config says where a secret is kept: exactly one of these.
type Config struct {
	File    string   `yaml:"file"`    // absolute path; replaced atomically, mode 0600
	Command []string `yaml:"command"` // absolute path, then arguments; the secret is on its standard input
	AWS     AWS      `yaml:"aws_secrets_manager"`
	GCP     GCP      `yaml:"gcp_secret_manager"`
	Vault   Vault    `yaml:"vault"`
}

// AWS is a secret of AWS Secrets Manager, which is there. Credentials come from where the SDK finds them: environment, profile, role.
type AWS struct {
	SecretID string `yaml:"secret_id"` // name or ARN
	Region   string `yaml:"region"`
	Endpoint string `yaml:"endpoint"` // default: the region's
	CAFile   string `yaml:"ca_file"`  // PEM; default: the system's
}

// GCP is a secret of Google Secret Manager, which is there. Credentials are the application default ones.
type GCP struct {
	Secret   string `yaml:"secret"`   // projects/P/secrets/S or projects/P/locations/L/secrets/S
	Endpoint string `yaml:"endpoint"` // default: Google's
	CAFile   string `yaml:"ca_file"`
}

// Vault is a field of a secret in a KV version 2 engine.
type Vault struct {
	Address   string                `yaml:"address"`
	Mount     string                `yaml:"mount"`
	Path      string                `yaml:"path"`
	Field     string                `yaml:"field"`     // default: key
	Namespace string                `yaml:"namespace"` // default: none
	CAFile    string                `yaml:"ca_file"`
	Token     credential.Credential `yaml:"token"` // read anew each time
}

// Kind is the kind of the one sink that is configured; empty if there is none, or more than one.
func (c *Config) Kind() Kind {
	var found []Kind
	for kind, set := range map[Kind]bool{
		KindFile: c.File != "", KindCommand: len(c.Command) > 0, KindAWS: c.AWS != AWS{}, KindGCP: c.GCP != GCP{}, KindVault: c.Vault != Vault{},
	} {
		if set {
			found = append(found, kind)
		}
	}
	if len(found) != 1 {
		return ""
	}
	return found[0]
}

var gcpSecret = regexp.MustCompile(`^projects/[a-zA-Z0-9.:_-]+(/locations/[a-z0-9-]+)?/secrets/[a-zA-Z0-9_-]+$`)

// Validate reports all that is wrong, as of the field.
func (c *Config) Validate(field string) error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fault.New(fault.Invalid, field+"."+format, args...))
	}
	endpoint := func(name, value string, required bool) {
		if value == "" && !required {
			return
		}
		u, err := url.Parse(value)
		switch {
		case err != nil || u.Host == "" || u.User != nil:
			bad("%s: want https://host", name) // not quoted: a URL can hold a password
		case u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())):
			bad("%s %.80q: the key would travel in the clear: want https", name, value)
		}
	}
	switch c.Kind() {
	case "":
		return fault.New(fault.Invalid, "%s: want exactly one of file, command, aws_secrets_manager, gcp_secret_manager, vault", field)
	case KindFile:
		if !filepath.IsAbs(c.File) || strings.HasSuffix(c.File, "/") {
			bad("file %.80q: want an absolute path", c.File)
		}
	case KindCommand:
		if !filepath.IsAbs(c.Command[0]) {
			bad("command %.80q: want an absolute path first", c.Command[0])
		}
	case KindAWS:
		if c.AWS.SecretID == "" {
			bad("aws_secrets_manager.secret_id: is required")
		}
		if c.AWS.Region == "" {
			bad("aws_secrets_manager.region: is required")
		}
		endpoint("aws_secrets_manager.endpoint", c.AWS.Endpoint, false)
	case KindGCP:
		if !gcpSecret.MatchString(c.GCP.Secret) {
			bad("gcp_secret_manager.secret %.80q: want projects/PROJECT/secrets/SECRET", c.GCP.Secret)
		}
		endpoint("gcp_secret_manager.endpoint", c.GCP.Endpoint, false)
	case KindVault:
		endpoint("vault.address", c.Vault.Address, true)
		for _, part := range []struct{ name, value string }{{"mount", c.Vault.Mount}, {"path", c.Vault.Path}} {
			if !plainPath(part.value) {
				bad("vault.%s %.80q: want a path without empty parts, . or ..", part.name, part.value)
			}
		}
		if c.Vault.Token.FD != 0 {
			bad("vault.token.fd: can be read once only: want file, env or credential")
		} else if err := c.Vault.Token.Validate(field + ".vault.token"); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func loopback(host string) bool { return host == "localhost" || host == "127.0.0.1" || host == "::1" }

// plainPath reports whether a path of Vault's API stays what it is in a URL.
func plainPath(p string) bool {
	return !strings.ContainsAny(p, "?#%\\") && !slices.ContainsFunc(strings.Split(p, "/"), func(part string) bool { return part == "" || part == "." || part == ".." })
}

// Check says what this machine lacks for a valid sink to work, as far as that is seen without using it.
func (c *Config) Check(field string) error {
	switch c.Kind() {
	case KindFile:
		dir := filepath.Dir(c.File)
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			return fault.New(fault.Invalid, "%s.file: the directory %s is not there, or not this user's to write: %w", field, dir, err)
		}
		if info, err := os.Lstat(c.File); err == nil && !info.Mode().IsRegular() {
			return fault.New(fault.Invalid, "%s.file: %s is there, and is no plain file", field, c.File)
		}
	case KindCommand:
		if _, err := exec.LookPath(c.Command[0]); err != nil {
			return fault.New(fault.Invalid, "%s.command: %w", field, err)
		}
	case KindAWS:
		return checkCA(field+".aws_secrets_manager", c.AWS.CAFile)
	case KindGCP:
		return checkCA(field+".gcp_secret_manager", c.GCP.CAFile)
	case KindVault:
		err := checkCA(field+".vault", c.Vault.CAFile)
		if _, tokenErr := c.Vault.Token.Read(); tokenErr != nil && c.Vault.Token.File != "" { // variables are the service's, not the checker's
			err = errors.Join(err, fault.New(fault.Invalid, "%s.vault.token: %w", field, tokenErr))
		}
		return err
	}
	return nil
}

func checkCA(field, path string) error {
	_, err := httpClient(path)
	if err != nil {
		return fault.New(fault.Invalid, "%s.ca_file: %w", field, err)
	}
	return nil
}

// httpClient speaks TLS to servers that the roots in a file stand for, or the system's where none is given. It follows no redirect: the
// secret goes to the host that is configured.
func httpClient(caFile string) (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	transport.DisableKeepAlives = true // one secret now and then
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fault.New(fault.Invalid, "%s holds no certificate in PEM", caFile)
		}
		transport.TLSClientConfig.RootCAs = roots
	}
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}
