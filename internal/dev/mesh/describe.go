package mesh

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/iapmesh/iapmesh/internal/dev"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
)

// Description is dev.json: where a running development mesh is. Scripts rely on its names.
type Description struct {
	Regions          []Region  `json:"regions"`
	Hosts            HostNames `json:"hosts"`
	Provider         Provider  `json:"idp"`
	CAFile           string    `json:"ca_file"` // of the development CA, PEM
	AdminProfile     string    `json:"admin_profile"`
	BootstrapKeyFile string    `json:"bootstrap_key_file"`
	MeshYAML         string    `json:"mesh_yaml"`
}

// Region is one region's node.
type Region struct {
	Name    string `json:"name"`
	Proxy   string `json:"proxy"` // host:port, as the next two
	API     string `json:"api"`
	Ops     string `json:"ops"`
	PID     int    `json:"pid"`
	DataDir string `json:"data_dir"`
}

// HostNames are the names that each region serves, on its own port.
type HostNames struct {
	Echo    string `json:"echo"`
	Billing string `json:"billing"`
	SignIn  string `json:"sign_in"`
}

// Provider is the development provider.
type Provider struct {
	Issuer string     `json:"issuer"`
	Users  []dev.User `json:"users"`
}

// Read reads a dev.json.
func Read(file string) (*Description, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fault.New(fault.NotFound, "%w", err)
	}
	d := &Description{}
	if err := json.Unmarshal(data, d); err != nil {
		return nil, fault.New(fault.Invalid, "read %s: %w", file, err)
	}
	return d, nil
}

// describe writes dev.json.
func (m *Mesh) describe() (*Description, error) {
	d := &Description{
		Hosts:    HostNames{Echo: EchoHost, Billing: BillingHost, SignIn: SignInHost},
		Provider: Provider{Issuer: m.idpURL(), Users: m.services.users},
		CAFile:   m.authority.CertFile(), AdminProfile: m.path(profileFile), BootstrapKeyFile: m.path(keyFile), MeshYAML: m.path(meshFile),
	}
	for i, region := range regions {
		config, err := m.readNodeFile(i)
		if err != nil {
			return nil, err
		}
		d.Regions = append(d.Regions, Region{
			Name: region, Proxy: local(m.ports.proxy(i)), API: local(m.ports.api(i)), Ops: local(m.ports.ops(i)),
			PID: m.processes[i].cmd.Process.Pid, DataDir: config.DataDir,
		})
	}
	return d, m.writeJSON(descriptFile, d)
}

// becomeDefault makes this mesh what the command line talks to, unless that is a mesh that is none of ours. It returns what to
// tell the user where it is not.
func (m *Mesh) becomeDefault() string {
	set := "export IAPMESH_PROFILE=" + m.path(profileFile)
	path, err := profile.Path(profile.DefaultName)
	if err != nil {
		return set
	}
	have, err := profile.Load(path)
	switch {
	case err == nil && have.TrustDomain != TrustDomain:
		return set + "   # your default profile is another mesh's, and stays"
	case err != nil && !fault.Is(err, fault.NotFound):
		return set + "   # " + err.Error()
	}
	if _, err := m.profile.Save(path); err != nil {
		return set + "   # " + err.Error()
	}
	return ""
}

// forgetDefault removes the default profile of a mesh that is about to be removed.
func (m *Mesh) forgetDefault() error {
	if m.profile == nil {
		return nil
	}
	path, err := profile.Path(profile.DefaultName)
	if err != nil {
		return nil // then none was written
	}
	if have, err := profile.Load(path); err != nil || have.Mesh != m.profile.Mesh {
		return nil // another's
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("default profile: %w", err)
	}
	return nil
}
