package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/iapmesh/iapmesh/internal/credential"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
)

// Config is one node's node.yaml. It names secrets, and holds none.
type Config struct {
	Name      string    `yaml:"name"`
	Region    string    `yaml:"region"`
	Roles     []string  `yaml:"roles"`
	DataDir   string    `yaml:"data_dir"`
	Listen    Listen    `yaml:"listen"`
	Advertise Advertise `yaml:"advertise"`
	Join      Join      `yaml:"join"`
	TLS       TLS       `yaml:"tls"`
	Seal      []string  `yaml:"seal"` // URLs of the keepers of the data key; default: the file seal.key in data_dir
	Audit     Audit     `yaml:"audit"`
	Log       Log       `yaml:"log"`
	Control   Control   `yaml:"control"`
	Rotate    []Rotate  `yaml:"rotate"` // keys whose successors this node makes
}

// Listen is where a node listens: host:port. An empty address is not listened on, except Mesh, which every node has.
type Listen struct {
	Mesh   string `yaml:"mesh"`
	Gossip string `yaml:"gossip"` // TCP and UDP, within the region
	Proxy  string `yaml:"proxy"`
	Ops    string `yaml:"ops"`
}

// Advertise is where others reach the node, where that differs from Listen.
type Advertise struct {
	Mesh   string `yaml:"mesh"`
	Gossip string `yaml:"gossip"`
	Proxy  string `yaml:"proxy"`
}

// Join says how a node that has not enrolled does so.
type Join struct {
	Addresses []string   `yaml:"addresses"` // of control nodes
	Key       Credential `yaml:"key"`
	Timeout   Duration   `yaml:"timeout"` // default: for ever
}

// Credential says where a secret is read from.
type Credential = credential.Credential

// TLS holds the certificates that users see.
type TLS struct {
	Certificates []CertificateFiles `yaml:"certificates"`
}

// CertificateFiles is a certificate with its chain, and its key, in PEM.
type CertificateFiles struct {
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

// Audit sizes the spool.
type Audit struct {
	SegmentBytes int64 `yaml:"segment_bytes"` // default 64 MiB
	MaxBytes     int64 `yaml:"max_bytes"`     // default 1 GiB
}

// Log says how the node logs to standard error.
type Log struct {
	Level  string `yaml:"level"`  // debug, info (default), warn, error
	Format string `yaml:"format"` // text (default), json
}

// Control tunes what control nodes do.
type Control struct {
	PromoteAfter Duration `yaml:"promote_after"` // how long a candidate must be steady before it votes; default 10s
}

// Duration is a time span as Go writes it.
type Duration = resource.Duration

// DefaultConfig is what holds where nothing is said.
func DefaultConfig() Config {
	return Config{
		Roles:   []string{"proxy"},
		DataDir: "/var/lib/iapmesh",
	}
}

// MaxConfig bounds a node.yaml.
const MaxConfig = 1 << 20

// ReadConfig decodes a node.yaml over the defaults, strictly. It does not validate: flags may come on top.
func ReadConfig(file string, r io.Reader) (Config, error) {
	c := DefaultConfig()
	data, err := io.ReadAll(io.LimitReader(r, MaxConfig+1))
	if err != nil {
		return c, fault.New(fault.Invalid, "read %s: %w", file, err)
	}
	if len(data) > MaxConfig {
		return c, fault.New(fault.Invalid, "%s: more than %d bytes", file, MaxConfig)
	}
	if len(strings.TrimSpace(string(data))) == 0 {
		return c, nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data), yaml.Strict())
	if err := decoder.Decode(&c); err != nil {
		return c, fault.New(fault.Invalid, "%s: %s", file, yaml.FormatError(err, false, true))
	}
	if err := decoder.Decode(&struct{}{}); !errors.Is(err, io.EOF) {
		return c, fault.New(fault.Invalid, "%s: holds a second document: a node has one", file)
	}
	return c, nil
}

// Validate reports all that is wrong, each with its field.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fault.New(fault.Invalid, format, args...)) }
	if err := keyring.ValidName("name", c.Name); err != nil {
		errs = append(errs, err)
	}
	if err := keyring.ValidRegion(c.Region); err != nil {
		errs = append(errs, err)
	}
	if len(c.Roles) == 0 {
		bad("roles: at least one of control, proxy, aggregator")
	}
	for i, r := range c.Roles {
		if !slices.Contains([]string{"control", "proxy", "aggregator"}, r) {
			bad("roles[%d] %.40q: want control, proxy or aggregator", i, r)
		}
		if slices.Contains(c.Roles[:i], r) {
			bad("roles[%d] %.40q: is there twice", i, r)
		}
	}
	if c.DataDir == "" {
		bad("data_dir: is required")
	}
	if c.Listen.Mesh == "" {
		bad("listen.mesh: every node listens there")
	}
	for _, a := range []struct {
		field, addr string
		reachable   bool
	}{
		{"listen.mesh", c.Listen.Mesh, false},
		{"listen.gossip", c.Listen.Gossip, false},
		{"listen.proxy", c.Listen.Proxy, false},
		{"listen.ops", c.Listen.Ops, false},
		{"advertise.mesh", c.Advertise.Mesh, true},
		{"advertise.gossip", c.Advertise.Gossip, true},
		{"advertise.proxy", c.Advertise.Proxy, true},
	} {
		errs = append(errs, validAddress(a.field, a.addr, a.reachable))
	}
	for i, addr := range c.Join.Addresses {
		errs = append(errs, validAddress(fmt.Sprintf("join.addresses[%d]", i), addr, true))
	}
	if len(c.Join.Addresses) > 0 {
		errs = append(errs, c.Join.Key.Validate("join.key"))
	}
	if c.HasRole(keyring.RoleProxy) && c.Listen.Proxy == "" {
		bad("listen.proxy: a proxy listens for users")
	}
	if c.HasRole(keyring.RoleProxy) && len(c.TLS.Certificates) == 0 {
		bad("tls.certificates: a proxy needs at least one")
	}
	errs = append(errs, c.validateSeal())
	for i, f := range c.TLS.Certificates {
		if f.CertFile == "" || f.KeyFile == "" {
			bad("tls.certificates[%d]: want cert_file and key_file", i)
		}
	}
	if c.Log.Level != "" && !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level) {
		bad("log.level %.40q: want debug, info, warn or error", c.Log.Level)
	}
	if c.Log.Format != "" && !slices.Contains([]string{"text", "json"}, c.Log.Format) {
		bad("log.format %.40q: want text or json", c.Log.Format)
	}
	if c.Audit.SegmentBytes < 0 || c.Audit.MaxBytes < 0 {
		bad("audit: segment_bytes %d and max_bytes %d: want no less than nothing", c.Audit.SegmentBytes, c.Audit.MaxBytes)
	}
	if c.Listen.Ops != "" {
		if host, _, err := net.SplitHostPort(c.Listen.Ops); err == nil && everywhere(host) {
			bad("listen.ops %s: metrics and health have no authentication: name one address, such as 127.0.0.1", c.Listen.Ops)
		}
	}
	errs = append(errs, c.validateRotate()...)
	return errors.Join(errs...)
}

// everywhere reports whether a host stands for every address of the machine.
func everywhere(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

func validAddress(field, addr string, reachable bool) error {
	if addr == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fault.New(fault.Invalid, "%s %.80q: want host:port", field, addr)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || (reachable && n == 0) {
		return fault.New(fault.Invalid, "%s %.80q: want a port from 1 to 65535", field, addr)
	}
	if reachable && everywhere(host) {
		return fault.New(fault.Invalid, "%s %.80q: others cannot reach that", field, addr)
	}
	return nil
}

// HasRole reports whether the node asks for a role.
func (c *Config) HasRole(r keyring.Role) bool { return slices.Contains(c.Roles, string(r)) }

func (c *Config) roles() []keyring.Role {
	var out []keyring.Role
	for _, r := range c.Roles {
		out = append(out, keyring.Role(r))
	}
	return out
}

// joinTimeout is how long a joiner tries; 0: until it is stopped.
func (c *Config) joinTimeout() time.Duration { return time.Duration(c.Join.Timeout) }
