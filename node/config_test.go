package node_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node"
)

const goodConfig = `
name: eu-west-1
region: eu-west
roles: [control, proxy]
data_dir: /var/lib/iapmesh
listen: {mesh: "0.0.0.0:7443", gossip: "127.0.0.1:7946", proxy: ":8443", ops: "127.0.0.1:9464"}
advertise: {mesh: "eu-west-1.example.com:7443"}
join:
  addresses: [control.example.com:7443]
  key: {file: /etc/iapmesh/key}
  timeout: 5m
tls: {certificates: [{cert_file: c.pem, key_file: k.pem}]}
audit: {max_bytes: 1073741824}
log: {level: debug, format: json}
`

func TestConfigReadsAndHolds(t *testing.T) {
	t.Parallel()
	c, err := node.ReadConfig("node.yaml", strings.NewReader(goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Errorf("validate: %v", err)
	}
	if c.Name != "eu-west-1" || c.Join.Key.File != "/etc/iapmesh/key" || c.Listen.Proxy != ":8443" || c.Log.Format != "json" {
		t.Errorf("config: %+v", c)
	}
	empty, err := node.ReadConfig("node.yaml", strings.NewReader(" \n"))
	if err != nil || empty.DataDir != "/var/lib/iapmesh" || len(empty.Roles) != 1 {
		t.Errorf("defaults: %+v, %v", empty, err)
	}
}

func TestConfigIsDecodedStrictly(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ yaml, want string }{
		"unknown field":   {"name: x\nregon: eu\n", `[2:1] unknown field "regon"`},
		"unknown, nested": {"listen: {mseh: x}\n", `unknown field "mseh"`},
		"wrong type":      {"roles: {a: b}\n", "[1:"},
		"duration":        {"join: {timeout: soon}\n", "duration"},
		"a key twice":     {"name: x\nname: y\n", "[2:1]"},
		"two documents":   {"name: x\n---\nname: y\n", "second document"},
		"a secret inside": {"join: {key: {value: iapk_x}}\n", "unknown field"},
		"too large":       {strings.Repeat("#", node.MaxConfig+1), "more than"},
	} {
		if c, err := node.ReadConfig("node.yaml", strings.NewReader(tc.yaml)); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %+v, %v, want invalid, with %q", name, c, err, tc.want)
		}
	}
}

func TestEveryFieldOfTheConfigHasItsRule(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ from, to, want string }{
		{"name: eu-west-1", "name: EU", "name"},
		{"region: eu-west", "region: eu.west", "region"},
		{"[control, proxy]", "[]", "roles: at least one"},
		{"[control, proxy]", "[controll]", "roles[0]"},
		{"[control, proxy]", "[proxy, proxy]", "roles[1]"},
		{"data_dir: /var/lib/iapmesh", "data_dir: ''", "data_dir"},
		{"data_dir: /var/lib/iapmesh", "data_dir: /d\nseal: [file://k, rot13://k]", "seal[1]"},
		{"data_dir: /var/lib/iapmesh", "data_dir: /d\nseal: [base64key://c2hvcnQ=]", "seal[0]"},
		{"data_dir: /var/lib/iapmesh", "data_dir: /d\nseal: [a, b, c, d, e, f, g, h, i]", "at most 8"},
		{`mesh: "0.0.0.0:7443"`, `mesh: ""`, "listen.mesh: every node"},
		{`mesh: "0.0.0.0:7443"`, `mesh: "7443"`, "listen.mesh"},
		{`"127.0.0.1:7946"`, `"127.0.0.1:seven"`, "listen.gossip"},
		{`proxy: ":8443"`, `proxy: ":84430"`, "listen.proxy"},
		{`"127.0.0.1:9464"`, `":9464"`, "listen.ops"},
		{`"127.0.0.1:9464"`, `"0.0.0.0:9464"`, "listen.ops"},
		{`"127.0.0.1:9464"`, `"[::]:9464"`, "listen.ops"},
		{`"127.0.0.1:9464"`, `"[::0]:9464"`, "listen.ops"},
		{"eu-west-1.example.com:7443", "0.0.0.0:7443", "advertise.mesh"},
		{"eu-west-1.example.com:7443", "eu-west-1.example.com:0", "advertise.mesh"},
		{"control.example.com:7443", "control.example.com", "join.addresses[0]"},
		{"{file: /etc/iapmesh/key}", "{}", "join.key: want exactly one"},
		{"{file: /etc/iapmesh/key}", "{file: /k, env: K}", "join.key: want exactly one"},
		{"{file: /etc/iapmesh/key}", "{fd: 2}", "join.key.fd"},
		{"[{cert_file: c.pem, key_file: k.pem}]", "[]", "tls.certificates: a proxy"},
		{"[{cert_file: c.pem, key_file: k.pem}]", "[{cert_file: c.pem}]", "tls.certificates[0]"},
		{"1073741824", "-1", "audit"},
		{"level: debug", "level: loud", "log.level"},
		{"format: json", "format: xml", "log.format"},
	} {
		c, err := node.ReadConfig("node.yaml", strings.NewReader(strings.Replace(goodConfig, tc.from, tc.to, 1)))
		if err != nil {
			t.Errorf("%s: %v", tc.to, err)
			continue
		}
		if err := c.Validate(); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want invalid, with %q", tc.to, err, tc.want)
		}
	}
	var nothing node.Config
	err := nothing.Validate()
	for _, want := range []string{"name", "region", "roles", "data_dir", "listen.mesh"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q among all problems at once", err, want)
		}
	}
}

func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // past the umask
			t.Fatal(err)
		}
		return path
	}
	const secret = "s3cret-8e1c"
	t.Setenv("IAPMESH_TEST_KEY", " "+secret+"\n")
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	good, open := write("good", secret+"\n", 0o600), write("open", secret, 0o644)
	write("group", secret, 0o640)
	for name, c := range map[string]node.Credential{
		"a file": {File: good}, "read only": {File: write("ro", secret, 0o400)}, "a variable": {Env: "IAPMESH_TEST_KEY"}, "systemd": {Credential: "good"},
	} {
		if got, err := c.Read(); err != nil || got != secret {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for name, tc := range map[string]struct {
		c    node.Credential
		want string
	}{
		"a file for others":  {node.Credential{File: open}, "mode 0644 lets others read it"},
		"a file for a group": {node.Credential{Credential: "group"}, "mode 0640"},
		"no file":            {node.Credential{File: filepath.Join(dir, "none")}, "no such file"},
		"no variable":        {node.Credential{Env: "IAPMESH_TEST_NONE"}, "IAPMESH_TEST_NONE"},
		"a path for a name":  {node.Credential{Credential: "../" + filepath.Base(dir) + "/good"}, "plain name"},
		"too large":          {node.Credential{File: write("large", strings.Repeat("x", 64<<10+1), 0o600)}, "more than"},
		"nothing":            {node.Credential{}, "exactly one"},
		"two":                {node.Credential{File: good, Env: "X"}, "exactly one"},
	} {
		got, err := tc.c.Read()
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tc.want) || got != "" || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %q, %v, want invalid, with %q", name, got, err, tc.want)
		}
	}
}
