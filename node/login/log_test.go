package login_test

import (
	"bytes"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// lines is what was logged.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Whoever is not signed in can ask for as much nonsense as he likes: it fills no log, in which what matters would drown.
func TestStrangersFillNoLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, path := range []string{
		"/.iapmesh/sign_in?rd=" + url.QueryEscape("https://evil.example.com/"), "/.iapmesh/sign_in?rd=//x", "/.iapmesh/sign_in?request=x", "/.iapmesh/handoff?ticket=x",
		"/.iapmesh/callback?state=x&code=y", "/.iapmesh/nothing", "/.iapmesh/sign_out/complete?note=x",
	} {
		for _, host := range []string{"auth", "billing"} {
			if page := w.user().get(w.url("eu", host, path)); page.StatusCode == http.StatusInternalServerError {
				t.Errorf("%s at %s: %d", path, host, page.StatusCode)
			}
		}
	}
	if logged := w.regions["eu"].log.String(); logged != "" {
		t.Errorf("%d lines, the first: %.300s", strings.Count(logged, "\n"), logged)
	}
}
