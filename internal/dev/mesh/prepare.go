package mesh

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"crypto/x509"

	"github.com/iapmesh/iapmesh/internal/dev/ca"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/node"
)

// The files of a data directory, beside a directory per region.
const (
	keptFile      = "dev-mesh.json"
	keyFile       = "bootstrap.key"
	profileFile   = "profile.json"
	meshFile      = "mesh.yaml"
	descriptFile  = "dev.json"
	tlsCertFile   = "tls.pem"
	tlsKeyFile    = "tls-key.pem"
	administrator = "dev"
)

// kept is what a mesh needs to know of its own past.
type kept struct {
	BasePort     int    `json:"base_port"`
	ClientSecret string `json:"client_secret"` // of the mesh, at the provider
	Founded      bool   `json:"founded"`
}

// prepare opens the data directory and the CA, and checks that the ports are free.
func (m *Mesh) prepare() error {
	if err := m.openDir(); err != nil {
		return err
	}
	if err := m.readKept(); err != nil {
		return err
	}
	m.ports = ports(m.kept.BasePort)
	if err := m.ports.validate(); err != nil {
		return err
	}
	if err := m.ports.free(); err != nil {
		return err
	}
	var err error
	if m.authority, err = ca.Open(m.config.CADir); err != nil {
		return err
	}
	return m.writeLeaf()
}

func (m *Mesh) openDir() error {
	if m.config.DataDir == "" {
		dir, err := os.MkdirTemp("", "iapmesh-dev-")
		if err != nil {
			return fault.New(fault.Invalid, "data directory: %w", err)
		}
		m.dir, m.temporary = dir, true
		return nil
	}
	dir, err := filepath.Abs(m.config.DataDir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return fault.New(fault.Invalid, "data directory: %w", err)
	}
	m.dir = dir
	// One that was killed left it behind.
	if err := os.Remove(m.path(descriptFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Invalid, "data directory: %w", err)
	}
	return nil
}

func (m *Mesh) path(name string) string { return filepath.Join(m.dir, name) }

// readKept reads what an earlier run left. The nodes' addresses are part of the mesh's state, so the ports stay where they were.
func (m *Mesh) readKept() error {
	data, err := os.ReadFile(m.path(keptFile))
	if errors.Is(err, fs.ErrNotExist) {
		m.kept = kept{BasePort: m.config.BasePort, ClientSecret: rand.Text()}
		if m.kept.BasePort == 0 {
			m.kept.BasePort = DefaultBasePort
		}
		return m.writeKept()
	}
	if err == nil {
		err = json.Unmarshal(data, &m.kept)
	}
	if err != nil {
		return fault.New(fault.Invalid, "read %s: %w", m.path(keptFile), err)
	}
	if m.config.BasePort != 0 && m.config.BasePort != m.kept.BasePort {
		return fault.New(fault.Conflict, "the mesh in %s has base port %d, which its nodes know each other by: leave --base-port out, or take another --data-dir", m.dir, m.kept.BasePort)
	}
	return nil
}

func (m *Mesh) writeKept() error { return m.writeJSON(keptFile, m.kept) }

// writeJSON puts a file in place at once, readable by its owner alone.
func (m *Mesh) writeJSON(name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return m.writeFile(name, append(data, '\n'))
}

func (m *Mesh) writeFile(name string, data []byte) error {
	f, err := os.CreateTemp(m.dir, ".dev-*") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), m.path(name))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// writeLeaf issues the certificate that nodes and provider show; a new one at each start.
func (m *Mesh) writeLeaf() error {
	leaf, err := m.authority.Leaf(append(Hosts(), "localhost", "127.0.0.1")...)
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	if err != nil {
		return fmt.Errorf("write %s: %w", tlsKeyFile, err)
	}
	var chain []byte
	for _, der := range leaf.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	m.leafCert, m.leafKey = m.path(tlsCertFile), m.path(tlsKeyFile)
	return errors.Join(
		m.writeFile(tlsKeyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		m.writeFile(tlsCertFile, chain),
	)
}

// found makes the mesh, once: the first region's node founds it, as `iapmesh init` does.
func (m *Mesh) found(ctx context.Context) error {
	if m.kept.Founded {
		var err error
		m.profile, err = profile.Load(m.path(profileFile))
		return err
	}
	for i := range regions {
		if err := m.writeNodeFile(i); err != nil {
			return err
		}
	}
	config, err := m.readNodeFile(0)
	if err != nil {
		return err
	}
	f, err := node.Init(ctx, node.InitConfig{Config: config, TrustDomain: TrustDomain, Admin: administrator, Logger: m.logger})
	if err != nil {
		return fmt.Errorf("found the mesh: %w", err)
	}
	if err := m.writeFile(keyFile, []byte(f.Bootstrap.String()+"\n")); err != nil {
		return err
	}
	m.profile = &f.Profile
	m.profile.ControlNodes = nil
	for i := range regions {
		m.profile.ControlNodes = append(m.profile.ControlNodes, local(m.ports.api(i)))
	}
	if _, err := m.profile.Save(m.path(profileFile)); err != nil {
		return err
	}
	m.kept.Founded = true
	return m.writeKept()
}

func (m *Mesh) readNodeFile(i int) (node.Config, error) {
	f, err := os.Open(m.nodeFile(i))
	if err != nil {
		return node.Config{}, fault.New(fault.Invalid, "%w", err)
	}
	defer f.Close()
	return node.ReadConfig(m.nodeFile(i), f)
}
