package page_test

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/internal/dev/page"
)

func TestThePolicyAllowsThePagesOwnStyle(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	page.Parse(`{{define "title"}}T{{end}}{{define "body"}}<p>{{.}}</p>{{end}}`).Write(w, http.StatusTeapot, "<b>", "'self'")
	body := w.Body.String()
	_, rest, ok := strings.Cut(body, "<style>")
	css, _, closed := strings.Cut(rest, "</style>")
	if !ok || !closed {
		t.Fatalf("no style in %s", body)
	}
	sum := sha256.Sum256([]byte(css))
	policy := w.Header().Get("Content-Security-Policy")
	if want := "style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; !strings.Contains(policy, want) {
		t.Errorf("policy %q lacks %q: a browser would show the page without its style", policy, want)
	}
	if !strings.Contains(policy, "form-action 'self';") || !strings.Contains(policy, "default-src 'none';") {
		t.Errorf("policy %q", policy)
	}
	if w.Code != http.StatusTeapot || !strings.Contains(body, "<p>&lt;b&gt;</p>") {
		t.Errorf("status %d, body %s", w.Code, body)
	}
}
