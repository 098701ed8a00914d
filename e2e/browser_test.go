package e2e_test

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
)

const pageWithin = time.Minute

// TestBrowser is a person with a browser: she signs in, is served in another region without signing in, is denied where she may
// not go, and signs out. Screenshots are kept with -artifacts.
func TestBrowser(t *testing.T) {
	path, err := exec.LookPath("chromium-headless-shell")
	if err != nil {
		lacks(t, "chromium-headless-shell")
	}
	m := startMesh(t)
	b := openBrowser(t, m, path)
	west, east, south := m.In("eu-west"), m.In("us-east"), m.In("ap-south")
	ana := m.user("ana")

	// She asks for an application, and is led to the provider's form.
	b.visits(west.url(m.Hosts.Echo, "/"))
	b.isAt(m.Provider.Issuer)
	b.does("fill in the form",
		chromedp.SendKeys(`input[name="username"]`, ana.Username),
		chromedp.SendKeys(`input[name="password"]`, ana.Password),
	)
	b.shot("1-sign-in-form")
	b.does("send the form", chromedp.Click(`button[type="submit"]`))
	b.arrives(west.url(m.Hosts.Echo, "/"))
	b.reads("Hello, "+ana.Name, ana.Username, "verified")
	b.shot("2-echo-in-eu-west")

	// The other regions know her.
	for _, r := range []region{east, south} {
		b.visits(r.url(m.Hosts.Echo, "/"))
		b.isAt(r.url(m.Hosts.Echo, "/"))
		b.reads("Hello, "+ana.Name, r.Name)
	}
	b.shot("3-echo-in-ap-south")

	// Billing is finance's. The page says who she is and gives an id to ask about.
	b.visits(west.url(m.Hosts.Billing, "/"))
	b.isAt(west.url(m.Hosts.Billing, "/"))
	b.reads(ana.Username)
	b.shot("4-denied-at-billing")

	// She signs out. Whoever had copied her session has nothing in his hand, in any region.
	copied := b.session(west.url(m.Hosts.Echo, "/"))
	copied.isServed(south)
	b.visits(west.url(m.Hosts.Echo, "/.iapmesh/sign_out"))
	b.reads(ana.Username)
	b.shot("5-sign-out")
	b.does("confirm", chromedp.Click(`form button`))
	b.arrives(west.url(m.Hosts.SignIn, "/.iapmesh/sign_out/complete"))
	b.reads("You are signed out", "in every region")
	b.shot("6-signed-out")
	for _, r := range []region{west, east, south} { // it is committed; each hears it a moment later
		eventually(t, doneWithin, "the session is refused in "+r.Name, func() error {
			a, err := copied.tries(r, m.Hosts.Echo, "/hello")
			if err == nil && a.Status != http.StatusUnauthorized {
				err = fmt.Errorf("status %d", a.Status)
			}
			return err
		})
	}
}

// session copies the browser's session at a page into a client of ours.
func (b *browser) session(page string) *person {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pageWithin)
	defer cancel()
	found, err := chromedp.Call(ctx, network.GetCookies, network.GetCookiesParams{URLs: []string{page}})
	if err != nil {
		b.t.Fatalf("cookies of %s: %v", page, err)
	}
	at, err := url.Parse(page)
	if err != nil {
		b.t.Fatal(err)
	}
	p := b.mesh.person("ana")
	for _, c := range found.Cookies {
		if strings.HasPrefix(c.Name, "__Host-iapmesh_session") {
			if !c.HTTPOnly || !c.Secure || c.SameSite != network.CookieSameSiteLax {
				b.t.Errorf("cookie %s: HttpOnly %v, Secure %v, SameSite %s", c.Name, c.HTTPOnly, c.Secure, c.SameSite)
			}
			p.api.Jar.SetCookies(at, []*http.Cookie{{Name: c.Name, Value: c.Value, Path: "/", Secure: true, HttpOnly: true}})
		}
	}
	return p
}

// browser is a real one.
type browser struct {
	t    *testing.T
	mesh *devMesh
	ctx  context.Context
	dir  string // of screenshots
}

func openBrowser(t *testing.T, m *devMesh, path string) *browser {
	t.Helper()
	allocator, cancel := chromedp.NewExecAllocator(context.Background(),
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.NoFirstRun, chromedp.DisableGPU, chromedp.Headless,
		chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(1000, 760),
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-dev-shm-usage", true),
		// Certificates are verified, and our root is known: by its key, so that no trust store of this machine is touched.
		chromedp.Flag("ignore-certificate-errors-spki-list", spki(t, m.CAFile)),
	)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	b := &browser{t: t, mesh: m, ctx: ctx, dir: t.ArtifactDir()}
	if err := chromedp.Do(ctx); err != nil { // starts it, without a limit: that would be the browser's
		t.Fatalf("start %s: %v", path, err)
	}
	return b
}

// spki is how Chromium names a certificate's key.
func spki(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatalf("%s holds no certificate", file)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// does runs steps in a row.
func (b *browser) does(what string, steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pageWithin)
	defer cancel()
	for _, step := range steps {
		if err := chromedp.Do(ctx, step); err != nil {
			b.t.Fatalf("%s: %v (at %s)", what, err, b.location())
		}
	}
}

func (b *browser) visits(page string) {
	b.t.Helper()
	b.does("visit "+page, chromedp.Navigate(page), chromedp.WaitReady("body"))
}

func (b *browser) location() string {
	ctx, cancel := context.WithTimeout(b.ctx, pageWithin)
	defer cancel()
	at, err := chromedp.Run(ctx, chromedp.Location())
	if err != nil {
		return err.Error()
	}
	return at
}

// isAt says on which page the browser is, by how its address begins.
func (b *browser) isAt(prefix string) {
	b.t.Helper()
	if at := b.location(); !strings.HasPrefix(at, prefix) {
		b.shot("unexpected")
		b.t.Fatalf("the browser is at %s, want %s", at, prefix)
	}
}

// arrives waits until redirects have led to a page, whatever its query.
func (b *browser) arrives(page string) {
	b.t.Helper()
	eventually(b.t, pageWithin, "the browser is at "+page, func() error {
		if at, _, _ := strings.Cut(b.location(), "?"); at != page {
			return fmt.Errorf("it is at %s", at)
		}
		return nil
	})
	b.does("wait for the page", chromedp.WaitReady("body"))
}

// reads finds words on the page, which may still be on its way.
func (b *browser) reads(words ...string) {
	b.t.Helper()
	defer func() {
		if b.t.Failed() {
			b.shot("unexpected")
		}
	}()
	eventually(b.t, pageWithin, "the page says what it should", func() error {
		ctx, cancel := context.WithTimeout(b.ctx, pageWithin)
		defer cancel()
		text, err := chromedp.Run(ctx, chromedp.Text("body"))
		if err != nil {
			return fmt.Errorf("read the page at %s: %w", b.location(), err)
		}
		for _, w := range words {
			if !strings.Contains(text, w) {
				return fmt.Errorf("the page at %s does not say %q:\n%s", b.location(), w, text)
			}
		}
		return nil
	})
}

// shot keeps a picture of the page.
func (b *browser) shot(name string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pageWithin)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Errorf("picture of %s: %v", name, err)
		return
	}
	if err := os.WriteFile(filepath.Join(b.dir, name+".png"), png, 0o644); err != nil {
		b.t.Error(err)
	}
}
