package login_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/node/session"
)

// The cookie of an application's host, put on the sign-in host, is worth no ticket to the other hosts, and no portal.
func TestAHostsSessionOpensNeitherTheSignInHostNorOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	u := w.user()
	w.greeted(u.signIn(w.url("eu", "billing", "/"), ana))
	var stolen []*http.Cookie
	at, err := url.Parse(w.url("eu", "billing", "/"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range u.Client.Jar.Cookies(at) {
		if strings.HasPrefix(c.Name, session.CookieName) {
			stolen = append(stolen, &http.Cookie{Name: c.Name, Value: c.Value, Path: "/", Secure: true})
		}
	}
	if len(stolen) == 0 {
		t.Fatal("no cookie to steal")
	}
	thief := w.user()
	for _, host := range []string{"auth", "wiki"} {
		if at, err = url.Parse(w.url("eu", host, "/")); err != nil {
			t.Fatal(err)
		}
		thief.Client.Jar.SetCookies(at, stolen)
	}
	idp := strings.TrimPrefix(w.idps["dev"].server.URL, "https://")
	for _, address := range []string{w.url("eu", "wiki", "/"), w.url("eu", "auth", "/.iapmesh/routes"), w.url("us", "wiki", "/.iapmesh/sign_in?rd=/")} {
		if page := thief.get(address); page.Request.URL.Host != idp && page.Header.Get("X-Iapmesh-Response") != "sign_in_choose" {
			t.Errorf("%s led to %s (%d), not to a sign-in", address, page.Request.URL, page.StatusCode)
		}
	}
}
