package login

import (
	"net/http"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/page"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/policy"
)

var portalPage = page.Parse(`{{define "title"}}Your applications{{end}}
{{define "body"}}<h1>Your applications</h1><p class="soft">{{.Name}}</p>
{{if .Routes}}<ul>{{range .Routes}}<li><a href="{{.URL}}">{{.Text}}</a></li>{{end}}</ul>{{else}}<p>There is none that you may open.</p>{{end}}
<nav><a href="` + pathSignOut + `">Sign out</a></nav>{{end}}`) // never written

// portal lists the routes that the user may open, on the sign-in host.
func (v *visit) portal() {
	token := session.ReadCookie(v.r)
	s, err := v.identify(token)
	if waited, waitErr := v.cfg.Verifier.Await(v.r.Context(), v.cfg.Views, err); err != nil && waitErr == nil {
		v.view = waited
		s, err = v.identify(token)
	}
	switch {
	case fault.Is(err, fault.Unavailable):
		v.failOn(err)
		return
	case err != nil:
		v.redirect("sign_in", v.signInURL(pathSignIn, nil))
		return
	}
	data := struct {
		Name   string
		Routes []page.Link
	}{Name: s.Identity.Email}
	if data.Name == "" {
		data.Name = s.Identity.Subject
	}
	for _, r := range v.view.Config.Routes {
		if u, ok := v.mayOpen(r, s, token); ok {
			data.Routes = append(data.Routes, page.Link{Text: r.Name, URL: u})
		}
	}
	portalPage.Write(v.w, http.StatusOK, "portal", data)
}

// mayOpen decides GET for the root of a route, on the first of its hosts that can be linked to.
func (v *visit) mayOpen(r *resource.Route, s *session.Session, token string) (string, bool) {
	host := ""
	for _, h := range r.Hosts {
		if !strings.HasPrefix(h, "*") {
			host = h
			break
		}
	}
	if _, err := v.cfg.Verifier.Verify(v.view, r, token); host == "" || r.API || err != nil {
		return "", false
	}
	age, known := v.cfg.Age()
	if !known {
		age = -1
	}
	at := target{host, "/" + strings.Trim(r.Path, "/")}
	d := v.view.Config.Policy.Decide(&policy.Request{
		Principal: s.Identity, Route: r.Name, Method: http.MethodGet, Host: host, Path: at.URI,
		SourceIP: v.cfg.ClientIP(v.r, v.view), Region: v.cfg.Region, Now: v.cfg.Now(), KeyringAge: age, DirectoryAge: -1 * time.Nanosecond,
	})
	return at.url(v.port), d.Allow
}
