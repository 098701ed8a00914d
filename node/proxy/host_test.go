package proxy_test

import (
	"net/http"
	"testing"

	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/node/session"
)

// Whoever gets hold of the cookie of one host, such as a node that serves that host alone, has not got the others.
func TestASessionOfAnotherHostIsNone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	who := identity.Identity{Subject: "okta/00u1", Groups: []string{"okta/finance"}, AuthTime: w.now}
	token, _, err := session.NewMinter(w.keys, nil).Mint(w.views.Load(), session.Grant{Identity: who, Host: "billing.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	cookie := &http.Cookie{Name: session.CookieName, Value: token}
	for host, want := range map[string]int{
		"billing.example.com": http.StatusOK, "BILLING.example.com.:8443": http.StatusOK, "x.apps.example.com": http.StatusUnauthorized, "api.example.com": http.StatusUnauthorized,
	} {
		if res := w.get(host, "/", cookie); res.StatusCode != want {
			t.Errorf("%s: %d, want %d", host, res.StatusCode, want)
		}
		if res := w.get(host, "/.iapmesh/user", cookie); res.StatusCode != want {
			t.Errorf("%s says who is there: %d, want %d", host, res.StatusCode, want)
		}
	}
}
