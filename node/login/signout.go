package login

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/page"
	"github.com/iapmesh/iapmesh/node/session"
)

const endFor = 5 * time.Second

// signOutNote goes from the host on which a user signed out to the sign-in host, whose cookie goes too. It is sealed, so that
// nobody can sign a user out by a link.
type signOutNote struct {
	Session string `json:"s"`
	Ended   bool   `json:"e"` // in every region
	At      int64  `json:"t"`
}

var signOutPage = page.Parse(`{{define "title"}}Sign out{{end}}
{{define "body"}}<h1>Sign out?</h1>
{{if .Name}}<p>You are signed in as <strong>{{.Name}}</strong>.</p>{{end}}<p>It ends your session on every application, in every region.</p>
<form method="post" action="` + pathSignOut + `"><button type="submit">Sign out</button></form>{{end}}`) // never written

// confirmSignOut shows the form: a link must not sign anybody out.
func (v *visit) confirmSignOut() {
	name := ""
	if s, err := v.identify(session.ReadCookie(v.r)); err == nil {
		name = s.Identity.Email
		if name == "" {
			name = s.Identity.Subject
		}
	}
	// The answer to the form leads on to the sign-in host.
	signOutPage.Write(v.w, http.StatusOK, "sign_out", struct{ Name string }{name}, "'self'", "https://"+v.settings.SignInHost+v.port)
}

// signOut ends the session in every region, then here and on the sign-in host. The cookies of other hosts stay, and are worth
// nothing: all hosts share the session's id.
func (v *visit) signOut() {
	if !v.sameOrigin() {
		v.fail(failure{kind: fault.Denied, code: "cross_site", title: "This form came from another site", text: "Sign out by the form on this page.", links: []page.Link{{Text: "Sign out", URL: pathSignOut}}})
		return
	}
	s, err := v.identify(session.ReadCookie(v.r))
	session.ClearCookie(v.w, v.r)
	v.clearCookie(stateCookie)
	if err != nil { // nothing that counts is left to end here
		v.redirect("signed_out", v.signInURL(pathComplete, nil))
		return
	}
	ctx, cancel := context.WithTimeout(v.r.Context(), endFor)
	defer cancel()
	endErr := v.cfg.Sessions.EndSession(ctx, s.ID, s.Identity.Subject)
	if endErr != nil {
		v.cfg.Logger.WarnContext(v.r.Context(), "session ended on this host alone", "error", endErr)
	}
	if err := v.recordSignOut(s, endErr == nil); err != nil { // a user who wants to leave is let go all the same
		v.cfg.Logger.ErrorContext(v.r.Context(), "sign-out not recorded", "error", err)
	}
	var query url.Values
	if b, err := v.boxes(v.view); err == nil {
		if note, err := b.sealJSON(sealedSignOut, "", signOutNote{s.ID, endErr == nil, v.cfg.Now().Unix()}); err == nil {
			query = url.Values{"note": {note}}
		}
	}
	v.redirect("signed_out", v.signInURL(pathComplete, query))
}

// signedOut is /.iapmesh/sign_out/complete on the sign-in host.
func (v *visit) signedOut() {
	var note signOutNote
	b, err := v.boxes(v.view)
	if err == nil {
		err = b.openJSON(sealedSignOut, "", v.r.URL.Query().Get("note"), &note)
	}
	valid := err == nil && v.cfg.Now().Unix()-note.At <= int64(attemptLife/time.Second)
	own, err := v.identify(session.ReadCookie(v.r))
	if err != nil || (valid && own.ID == note.Session) {
		session.ClearCookie(v.w, v.r)
		own = nil
	}
	m := page.Message{Title: "You are signed out", Links: []page.Link{{Text: "Sign in again", URL: v.signInURL(pathSignIn, nil)}}}
	switch {
	case own != nil: // of another sign-in, or whoever sent the user here could not prove a sign-out
		m.Title, m.Text = "You are still signed in here", []string{"On " + v.host + " you have another session."}
		m.Links = []page.Link{{Text: "Sign out", URL: pathSignOut}, v.portalLink()[0]}
	case valid && note.Ended:
		m.Text = []string{"Your session has ended on every application, in every region."}
	case valid:
		m.Alert = "The other regions could not be told yet. Your session here is gone from this browser, but a copy of it would work until it expires, within the hour."
	default:
		m.Text = []string{"There is no session on this host."}
	}
	m.Write(v.w, http.StatusOK, "signed_out")
}

// sameOrigin reports whether a form came from this very host: the browser must say so (Fetch Metadata, or Origin), and must not
// say otherwise. SameSite alone would let sibling hosts in.
func (v *visit) sameOrigin() bool {
	sites, origins := v.r.Header["Sec-Fetch-Site"], v.r.Header["Origin"]
	if len(sites) > 1 || len(origins) > 1 || len(sites)+len(origins) == 0 {
		return false
	}
	if len(sites) == 1 && sites[0] != "same-origin" {
		return false
	}
	return len(origins) == 0 || strings.EqualFold(origins[0], "https://"+v.host+v.port)
}
