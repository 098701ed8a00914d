package page_test

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/node/page"
)

func TestThePolicyAllowsThePagesOwnStyleAndNothingElse(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	page.Parse(`{{define "title"}}T{{end}}{{define "body"}}<p>{{.}}</p>{{end}}`).Write(w, http.StatusTeapot, "tea", "<b>", "'self'")
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
	if w.Code != http.StatusTeapot || w.Header().Get(page.ResponseHeader) != "tea" || !strings.Contains(body, "<p>&lt;b&gt;</p>") {
		t.Errorf("status %d, header %v, body %s", w.Code, w.Header(), body)
	}
}

func TestAMessageEscapesWhatItIsToldAndFollowsNoScript(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	page.Message{
		Title: "<i>", Text: []string{"<u>"}, Alert: "<s>", Detail: "<q>",
		Links: []page.Link{{Text: "on", URL: "https://a.example/?a=1&b=2"}, {Text: "off", URL: "javascript:alert(1)"}},
	}.Write(w, http.StatusForbidden, "denied")
	body := w.Body.String()
	for _, bad := range []string{"<i>", "<u>", "<s>", "<q>", "javascript:"} {
		if strings.Contains(body, bad) {
			t.Errorf("page holds %s: %s", bad, body)
		}
	}
	if !strings.Contains(body, `<a href="https://a.example/?a=1&amp;b=2">on</a>`) {
		t.Errorf("page: %s", body)
	}
	if got := w.Header().Get("Content-Security-Policy"); !strings.Contains(got, "form-action 'none'") {
		t.Errorf("policy %q", got)
	}
}
