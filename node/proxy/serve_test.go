package proxy_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/iapmesh/iapmesh/node/proxy"
	"github.com/iapmesh/iapmesh/node/session"
)

// writePair makes a self-signed certificate for names, in files.
func writePair(t *testing.T, dir, file string, names ...string) proxy.CertificateFiles {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: file}, DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: file}}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := proxy.CertificateFiles{CertFile: filepath.Join(dir, file+".crt"), KeyFile: filepath.Join(dir, file+".key")}
	for name, block := range map[string]*pem.Block{files.CertFile: {Type: "CERTIFICATE", Bytes: der}, files.KeyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func TestCertificatesAreFoundByNameAndReloaded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := []proxy.CertificateFiles{
		writePair(t, dir, "first", "auth.example.com"), writePair(t, dir, "wild", "*.example.com"), writePair(t, dir, "exact", "billing.example.com"),
	}
	c, err := proxy.LoadCertificates(files, nil)
	if err != nil {
		t.Fatal(err)
	}
	shown := func(name string) *x509.Certificate {
		t.Helper()
		found, err := c.GetCertificate(&tls.ClientHelloInfo{ServerName: name})
		if err != nil {
			t.Fatal(err)
		}
		return found.Leaf
	}
	for name, want := range map[string]string{
		"billing.example.com": "exact", "BILLING.example.com": "exact", "billing.example.com.": "exact", "other.example.com": "wild", "auth.example.com": "first",
		"a.b.example.com": "first", "example.com": "first", "": "first", "evil.org": "first",
	} {
		if got := shown(name).Subject.CommonName; got != want {
			t.Errorf("%q is shown %s, want %s", name, got, want)
		}
	}
	before := shown("billing.example.com").SerialNumber
	if err := c.Reload(); err != nil || shown("billing.example.com").SerialNumber != before {
		t.Errorf("nothing changed: %v", err)
	}
	writePair(t, dir, "exact", "billing.example.com", "more.example.com")
	if err := c.Reload(); err != nil || shown("billing.example.com").SerialNumber.Cmp(before) == 0 || shown("more.example.com").Subject.CommonName != "exact" {
		t.Errorf("not reloaded: %v", err)
	}
	if err := os.WriteFile(files[2].KeyFile, []byte("half a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	before = shown("billing.example.com").SerialNumber
	if err := c.Reload(); err == nil || shown("billing.example.com").SerialNumber.Cmp(before) != 0 {
		t.Errorf("a key that cannot be used: %v", err)
	}
	if _, err := proxy.LoadCertificates(nil, nil); err == nil {
		t.Error("no certificates at all")
	}
	if _, err := proxy.LoadCertificates(files, nil); err == nil || !strings.Contains(err.Error(), "exact.crt") {
		t.Errorf("a key that cannot be used: %v", err)
	}
}

// serve runs the proxy of a world as a node does.
func (w *world) serve(t *testing.T) (address string, stop func() error) {
	t.Helper()
	certificates, err := proxy.LoadCertificates([]proxy.CertificateFiles{writePair(t, t.TempDir(), "c", "*.example.com")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := w.cfg
	cfg.Certificates = certificates
	p, err := proxy.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx, l) }()
	t.Cleanup(cancel)
	return l.Addr().String(), func() error { cancel(); return <-done }
}

func TestRunServesHTTPSUntilItIsStopped(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	address, stop := w.serve(t)
	for _, version := range []int{1, 2} {
		transport := &http.Transport{
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, ServerName: "billing.example.com"},
			ForceAttemptHTTP2: version == 2,
		}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+"/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = "billing.example.com"
		r.AddCookie(w.ana())
		res, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != 200 || res.ProtoMajor != version || !bytes.Contains(body, []byte(`"https"`)) {
			t.Errorf("%s %d %s: %v", res.Proto, res.StatusCode, body, err)
		}
		transport.CloseIdleConnections()
	}
	old := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}
	if c, err := (&tls.Dialer{Config: old}).DialContext(t.Context(), "tcp", address); err == nil {
		c.Close()
		t.Error("TLS 1.1 is spoken")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// A WebSocket is no server's connection any more, and must end with the node all the same.
func TestStoppingEndsWebSockets(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	address, stop := w.serve(t)
	c, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, ServerName: "billing.example.com"}}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: billing.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nCookie: "+w.ana().String()+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	w.eventually("it is open", func() bool { return w.live.Stats(nil).Streams == 1 })
	if err := stop(); err != nil {
		t.Error(err)
	}
	w.eventually("it is closed", func() bool { return w.live.Stats(nil).Streams == 0 })
}

// h2 sends a request's pseudo-headers and headers as they are, and returns the status.
func (w *world) h2(fields ...hpack.HeaderField) string {
	w.t.Helper()
	for range 10 {
		if status, answered := w.tryH2(fields); answered {
			return status
		}
	}
	return "closed"
}

// tryH2 reports false where the server closed without a word: it gives up on a connection whose first frame takes two seconds, which a
// busy machine may let pass.
func (w *world) tryH2(fields []hpack.HeaderField) (status string, answered bool) {
	t := w.t
	t.Helper()
	c, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}}).DialContext(t.Context(), "tcp", w.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var block, out bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range fields {
		if err := encoder.WriteField(f); err != nil {
			t.Fatal(err)
		}
	}
	framer := http2.NewFramer(&out, c)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	out.WriteString(http2.ClientPreface)
	if err := errors.Join(framer.WriteSettings(), framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(out.Bytes()); err != nil {
		return "", false
	}
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			return "", false
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			return f.PseudoValue("status"), true
		case *http2.RSTStreamFrame:
			return "reset", true
		case *http2.GoAwayFrame:
			return "closed", true
		}
	}
}

func TestHTTP2RequestLines(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{http2: true})
	for name, tc := range map[string]struct {
		authority, host, path string
		want                  string
	}{
		"as usual":        {"open.example.com", "", "/", "200"},
		"case":            {"OPEN.example.com", "", "/", "200"},
		"Host, the same":  {"open.example.com", "open.example.com", "/", "200"},
		"Host, another":   {"open.example.com", "billing.example.com", "/", "400"},
		"Host alone":      {"", "open.example.com", "/", "200"},
		"path without /":  {"open.example.com", "", "x", "reset"},
		"absolute path":   {"open.example.com", "", "https://billing.example.com/", "reset"},
		"dot segment":     {"open.example.com", "", "/a/../b", "400"},
		"encoded slash":   {"open.example.com", "", "/a%2fb", "400"},
		"authority, user": {"a@open.example.com", "", "/", "reset"},
	} {
		t.Run(name, func(t *testing.T) {
			fields := []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: tc.path}}
			if tc.authority != "" {
				fields = append(fields, hpack.HeaderField{Name: ":authority", Value: tc.authority})
			}
			if tc.host != "" {
				fields = append(fields, hpack.HeaderField{Name: "host", Value: tc.host})
			}
			if got := w.h2(fields...); got != tc.want && !(tc.want == "reset" && (got == "400" || got == "closed")) {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

func TestMetricsAndRate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	registry := prometheus.NewRegistry()
	var later atomic.Int64
	start := time.Now()
	cfg := w.cfg
	cfg.Registerer, cfg.Now = registry, func() time.Time { return start.Add(time.Duration(later.Load())) }
	p, err := proxy.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	serve := func(host string) {
		r := w.request(http.MethodGet, host, "/", nil)
		r.RequestURI, r.RemoteAddr = "/", "127.0.0.1:5"
		p.ServeHTTP(&nowhere{header: http.Header{}}, r)
	}
	for range 20 {
		serve("open.example.com")
	}
	serve("billing.example.com")
	serve("unknown.example.com")
	if got := p.RPS(); got != 0 {
		t.Errorf("a second that is not over: %v", got)
	}
	later.Add(int64(time.Second))
	if got := p.RPS(); got != 2.2 {
		t.Errorf("%v requests a second", got)
	}
	later.Add(int64(time.Minute))
	if got := p.RPS(); got != 0 {
		t.Errorf("a minute later: %v", got)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "iapmesh_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			labels := ""
			for _, l := range m.GetLabel() {
				labels += l.GetName() + "=" + l.GetValue() + " "
			}
			counts[labels] = m.GetCounter().GetValue()
		}
	}
	if counts["code=200 decision=allow route=open "] != 20 || counts["code=401 decision=none route=billing "] != 1 || counts["code=404 decision=none route= "] != 1 {
		t.Errorf("%v", counts)
	}
}

// nowhere is an answer that nobody reads.
type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (n *nowhere) WriteHeader(int)             {}

func TestAProxyWithoutItsPartsIsNotMade(t *testing.T) {
	t.Parallel()
	_, err := proxy.New(proxy.Config{Node: "eu", Verifier: session.NewVerifier(session.Config{})})
	for _, field := range []string{"Region", "Views", "Live", "Issuer", "Spool", "Refusals", "SignIn"} {
		if err == nil || !strings.Contains(err.Error(), field+" is required") {
			t.Errorf("%s: %v", field, err)
		}
	}
}
