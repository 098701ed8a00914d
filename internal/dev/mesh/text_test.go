package mesh

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/node/resource"
)

func TestLinesOfSeveralProcessesDoNotMix(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	a, b := &lines{out: &out, prefix: "a │ "}, &lines{out: &out, prefix: "b │ "}
	for _, w := range []struct {
		to   *lines
		text string
	}{{a, "one"}, {b, "two\nthr"}, {a, " more\n\nx\n"}, {b, "ee\n"}} {
		if n, err := w.to.Write([]byte(w.text)); n != len(w.text) || err != nil {
			t.Fatalf("Write(%q) = %d, %v", w.text, n, err)
		}
	}
	if want := "b │ two\na │ one more\na │ \na │ x\nb │ three\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	out.Reset()
	if _, err := a.Write(bytes.Repeat([]byte("y"), maxLine+1)); err != nil || out.Len() < maxLine {
		t.Errorf("a line without end: %d bytes came out, %v", out.Len(), err)
	}
}

func TestQuoteIsWhatAShellTakesApart(t *testing.T) {
	t.Parallel()
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("this machine lacks sh")
	}
	for _, word := range []string{"plain", "", "a b", "it's", "$HOME", "a;b", "*", "\\", "ü", `"`} {
		out, err := exec.CommandContext(t.Context(), shell, "-c", "printf %s "+quote(word)).Output()
		if err != nil || string(out) != word {
			t.Errorf("%q quoted is %s, which a shell reads as %q (%v)", word, quote(word), out, err)
		}
	}
}

// TestMeshYAML compiles the template with values that YAML might take for something else.
func TestMeshYAML(t *testing.T) {
	t.Parallel()
	text, err := render("mesh.yaml", meshTemplate, map[string]any{
		"Issuer": "https://auth.localhost:18443", "SignInHost": SignInHost, "EchoHost": EchoHost, "BillingHost": BillingHost,
		"Provider": "https://127.0.0.1:20443", "CA": testCA, "Regions": regions[:], "Billing": "http://127.0.0.1:20463",
		"Echo": []map[string]string{{"URL": "http://127.0.0.1:20453", "Region": "eu-west"}, {"URL": "http://127.0.0.1:20454", "Region": "us-east"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	docs, err := resource.Parse("mesh.yaml", text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	c, err := resource.Compile(docs, regions[:])
	if err != nil {
		t.Fatal(err)
	}
	if r := c.Match(BillingHost, "/x"); r == nil || r.Name != "billing" {
		t.Errorf("billing is served by %v", r)
	}
	if p := c.Providers[providerName]; p == nil || strings.TrimSpace(p.OIDC.CA) != strings.TrimSpace(testCA) || p.OIDC.ClientSecret.Secret != secretName {
		t.Errorf("provider: %+v", p)
	}
}

// testCA is a certificate that was made for this test; its key is lost.
const testCA = `-----BEGIN CERTIFICATE-----
MIIBdDCCARmgAwIBAgIUGnz9W9u6hlDmdiTS8R3bRTyNo4owCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAeFw0yNjExMjMxNjQ3MDlaFw0zNjExMjAxNjQ3MDla
MA8xDTALBgNVBAMMBHRlc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQgFEtC
ND91pepPiuwogLFdQuatDedVwV8d2GWJk8OEkBeTNu2UXiBldzGH5Bg9SUqzoXJ0
5afegvvPwLDLn2LSo1MwUTAdBgNVHQ4EFgQU7gC+EvOhlENUNb1M9TpuncDsbeYw
HwYDVR0jBBgwFoAU7gC+EvOhlENUNb1M9TpuncDsbeYwDwYDVR0TAQH/BAUwAwEB
/zAKBggqhkjOPQQDAgNJADBGAiEA5ghO0/vjpBZvvUmcqvBpMCH3ar4njuERj9m6
ktjfml0CIQDONomhnr5vzen24x88fhfQ3HEZzszl7yO9C7dF4y3sMQ==
-----END CERTIFICATE-----
`
