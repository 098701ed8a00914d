package mesh

import (
	"bytes"
	_ "embed" // the two templates
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"text/template"
)

//go:embed node.yaml.tmpl
var nodeTemplate string

//go:embed mesh.yaml.tmpl
var meshTemplate string

// render fills in a template.
func render(name, text string, data any) ([]byte, error) {
	t, err := template.New(name).Funcs(template.FuncMap{
		"q": strconv.Quote, // a Go string without controls is a YAML one
		"indent": func(n int, s string) string {
			return strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n"+strings.Repeat(" ", n))
		},
	}).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("template %s: %w", name, err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, data); err != nil {
		return nil, fmt.Errorf("template %s: %w", name, err)
	}
	return out.Bytes(), nil
}

// writeNodeFile writes one region's node.yaml. One that is there stays: somebody may have edited it.
func (m *Mesh) writeNodeFile(i int) error {
	if _, err := os.Stat(m.nodeFile(i)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	data := struct {
		Name, Region, DataDir, Mesh, Gossip, Proxy, Ops, Join, Key, Cert, CertKey string
		First                                                                     bool
	}{
		Name: regions[i] + "-1", Region: regions[i], DataDir: m.path(regions[i] + "/data"),
		Mesh: local(m.ports.api(i)), Gossip: local(m.ports.gossip(i)), Proxy: local(m.ports.proxy(i)), Ops: local(m.ports.ops(i)),
		Join: local(m.ports.api(0)), Key: m.path(keyFile), Cert: m.leafCert, CertKey: m.leafKey, First: i == 0,
	}
	text, err := render("node.yaml", nodeTemplate, data)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(m.path(regions[i]), 0o700); err != nil {
		return fmt.Errorf("write node.yaml: %w", err)
	}
	return m.writeFile(regions[i]+"/node.yaml", text)
}

// writeMeshFile writes mesh.yaml, if it is not there, and returns what it holds.
func (m *Mesh) writeMeshFile() ([]byte, error) {
	have, err := os.ReadFile(m.path(meshFile))
	if !errors.Is(err, fs.ErrNotExist) {
		return have, err
	}
	type app struct{ URL, Region string }
	data := struct {
		Issuer, SignInHost, EchoHost, BillingHost, Provider, CA string
		Regions                                                 []string
		Echo                                                    []app
		Billing                                                 string
	}{
		Issuer: m.issuer(), SignInHost: SignInHost, EchoHost: EchoHost, BillingHost: BillingHost, Provider: m.idpURL(),
		CA: string(m.authority.CertPEM()), Regions: regions[:], Billing: "http://" + local(m.ports.billing()),
	}
	for i, region := range regions {
		data.Echo = append(data.Echo, app{"http://" + local(m.ports.echo(i)), region})
	}
	text, err := render("mesh.yaml", meshTemplate, data)
	if err != nil {
		return nil, err
	}
	return text, m.writeFile(meshFile, text)
}
