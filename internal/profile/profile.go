// Package profile is the file by which the command line knows a mesh: where its control nodes are, which roots they prove
// themselves under, and the administrator's own certificate and key. Whoever holds the file is that administrator: it is 0600,
// and a file that others may read is refused.
package profile

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Profile is one administrator's way into one mesh.
type Profile struct {
	Mesh         string   `json:"mesh"`          // id
	TrustDomain  string   `json:"trust_domain"`  // of the SPIFFE IDs
	Name         string   `json:"name"`          // the administrator's
	ControlNodes []string `json:"control_nodes"` // host:port
	Roots        string   `json:"roots"`         // PEM
	Certificate  string   `json:"certificate"`   // PEM
	Key          string   `json:"key"`           // PEM, PKCS #8

	Clock func() time.Time `json:"-"` // by which certificates are valid; nil: time.Now
}

const maxProfile = 1 << 20

// Dir is where profiles lie by name: iapmesh/profiles in the user's configuration directory.
func Dir() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fault.New(fault.Invalid, "profile: no configuration directory: %w", err)
	}
	return filepath.Join(dir, "iapmesh", "profiles"), nil
}

// DefaultName is the profile that is used when none is named.
const DefaultName = "default"

// Path resolves what a person types: a path (it holds a slash or ends in .json), a name, or nothing: IAPMESH_PROFILE, then default.
func Path(ref string) (string, error) {
	if ref == "" {
		ref = os.Getenv("IAPMESH_PROFILE")
	}
	if ref == "" {
		ref = DefaultName
	}
	if strings.ContainsRune(ref, filepath.Separator) || strings.HasSuffix(ref, ".json") {
		return ref, nil
	}
	dir, err := Dir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, ref+".json"), nil
}

// Load reads the profile that ref names.
func Load(ref string) (*Profile, error) {
	path, err := Path(ref)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "no profile %s: name one with --profile or IAPMESH_PROFILE (`iapmesh init` writes one; `iapmesh dev` makes its own the default)", path)
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "profile: %w", err)
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(fault.Invalid, "profile %s: mode %04o lets others read its key: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	if info.Size() > maxProfile {
		return nil, fault.New(fault.Invalid, "profile %s: %d bytes, at most %d", path, info.Size(), maxProfile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.New(fault.Invalid, "profile: %w", err)
	}
	p := &Profile{}
	if err := json.Unmarshal(data, p); err != nil {
		return nil, fault.New(fault.Invalid, "profile %s: %w", path, err)
	}
	return p, nil
}

// Save writes the profile to the path that ref names, mode 0600, replacing one of that name at once.
func (p *Profile) Save(ref string) (string, error) {
	path, err := Path(ref)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fault.New(fault.Invalid, "profile: %w", err)
	}
	data, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return "", fault.New(fault.Internal, "profile: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".profile-*")
	if err != nil {
		return "", fault.New(fault.Invalid, "profile: %w", err)
	}
	defer os.Remove(tmp.Name()) // after the rename there is nothing to remove
	_, err = tmp.Write(append(data, '\n'))
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return "", fault.New(fault.Invalid, "profile: %w", err)
	}
	return path, nil
}

// Credential is the administrator's certificate and key.
func (p *Profile) Credential() (*tls.Certificate, error) {
	cert, err := tls.X509KeyPair([]byte(p.Certificate), []byte(p.Key))
	if err != nil {
		return nil, fault.New(fault.Invalid, "profile of %s: certificate and key: %w", p.Name, err)
	}
	return &cert, nil
}

// RootPool is the mesh's roots.
func (p *Profile) RootPool() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(p.Roots)) {
		return nil, fault.New(fault.Invalid, "profile of %s: roots: no PEM certificate", p.Name)
	}
	return pool, nil
}

// CertificatePEM writes certificates as a profile holds them.
func CertificatePEM(ders ...[]byte) string {
	var b strings.Builder
	for _, der := range ders {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return b.String()
}
