package idp

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/iapmesh/iapmesh/internal/dev/page"
)

const (
	loginPath = "/login"
	// Cookies know no ports: the name keeps two development meshes on one machine from ending each other's session.
	cookiePrefix = "__Host-dev-idp-"
)

// showLogin asks for a password, unless the browser has a session that the client accepts.
func (p *Provider) showLogin(w http.ResponseWriter, r *http.Request) {
	a, err := p.store.attempt(r.URL.Query().Get("request"))
	if err != nil {
		p.refuse(w, err)
		return
	}
	now := p.now()
	if s, ok := p.store.session(p.cookie(r)); ok && a.accepts(s, now) {
		p.store.finish(a.id, s.subject, s.authTime)
		p.proceed(w, r, a)
		return
	}
	if a.prompts(oidc.PromptNone) {
		op.AuthRequestError(w, r, a, oidc.ErrLoginRequired(), p.op)
		return
	}
	p.form(w, http.StatusOK, a, a.request.LoginHint, "")
}

func (p *Provider) submitLogin(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, "form cannot be read", http.StatusBadRequest)
		return
	}
	a, err := p.store.attempt(r.PostForm.Get("request"))
	if err != nil {
		p.refuse(w, err)
		return
	}
	username := strings.TrimSpace(r.PostForm.Get("username"))
	user, ok := p.authenticate(username, r.PostForm.Get("password"))
	if !ok {
		p.log.InfoContext(r.Context(), "development sign-in refused", "client", a.request.ClientID)
		p.form(w, http.StatusUnauthorized, a, username, "Wrong username or password.")
		return
	}
	now := p.now()
	p.store.finish(a.id, user.Subject, now)
	p.store.dropSession(p.cookie(r)) // a new sign-in gets a new cookie: an old one that somebody planted is worth nothing
	if p.store.lifetime > 0 {
		value := p.store.startSession(user.Subject, now)
		p.setCookie(w, value, int(p.store.lifetime/time.Second))
	}
	p.log.InfoContext(r.Context(), "development sign-in", "user", user)
	p.proceed(w, r, a)
}

func (p *Provider) authenticate(username, password string) (User, bool) {
	for _, u := range p.users {
		if strings.EqualFold(u.Username, username) {
			return u, u.checkPassword(password)
		}
	}
	return User{}, false
}

// proceed hands over to the library, which sends the code to the client.
func (p *Provider) proceed(w http.ResponseWriter, r *http.Request, a authRequest) {
	ctx := op.ContextWithIssuer(r.Context(), p.issuer)
	http.Redirect(w, r, op.AuthCallbackURL(p.op)(ctx, a.id), http.StatusSeeOther)
}

// endSession signs the browser out here, then does what OpenID Connect RP-Initiated Logout 1.0 says.
func (p *Provider) endSession(w http.ResponseWriter, r *http.Request) {
	p.store.dropSession(p.cookie(r))
	p.setCookie(w, "", -1)
	p.op.ServeHTTP(w, r)
}

func (p *Provider) cookieName() string {
	sum := sha256.Sum256([]byte(p.issuer))
	return cookiePrefix + hex.EncodeToString(sum[:4])
}

func (p *Provider) cookie(r *http.Request) string {
	c, err := r.Cookie(p.cookieName())
	if err != nil {
		return ""
	}
	return c.Value
}

func (p *Provider) setCookie(w http.ResponseWriter, value string, maxAge int) {
	http.SetCookie(w, &http.Cookie{Name: p.cookieName(), Value: value, Path: "/", MaxAge: maxAge,
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

func (s *storage) session(value string) (session, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.sessions[value]
	return v, ok && !s.now().After(v.expires)
}

func (s *storage) startSession(subject string, now time.Time) string {
	value := rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	if prune(s.sessions, func(v session) bool { return now.After(v.expires) }) { // full: the next sign-in asks again
		s.sessions[value] = session{subject: subject, authTime: now, expires: now.Add(s.lifetime)}
	}
	return value
}

func (s *storage) dropSession(value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, value)
}

// endSessions ends a user's sessions and access tokens; everybody's if subject is empty.
func (s *storage) endSessions(subject string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.sessions, func(_ string, v session) bool { return subject == "" || v.subject == subject })
	maps.DeleteFunc(s.tokens, func(_ string, v token) bool { return subject == "" || v.subject == subject })
}

type loginPage struct {
	Request, Username, Alert, Client string
	Users                            []User
}

func (p *Provider) form(w http.ResponseWriter, status int, a authRequest, username, alert string) {
	host := a.request.ClientID
	if u, err := url.Parse(a.request.RedirectURI); err == nil {
		host = u.Host
	}
	loginTemplate.Write(w, status, loginPage{Request: a.id, Username: username, Alert: alert, Client: host, Users: p.users},
		p.store.client.formActions()...)
}

func (p *Provider) refuse(w http.ResponseWriter, err error) {
	messageTemplate.Write(w, http.StatusBadRequest, message{"Start again", "Nothing to sign in to: " + err.Error() +
		". Go back to the application and open it again."})
}

func (p *Provider) signedOut(w http.ResponseWriter, _ *http.Request) {
	messageTemplate.Write(w, http.StatusOK, message{"Signed out", "You are signed out of the development provider."})
}

func (p *Provider) home(w http.ResponseWriter, _ *http.Request) {
	homeTemplate.Write(w, http.StatusOK, p.users)
}

type message struct{ Title, Text string }

const userTable = `{{define "users"}}<div class="scroll"><table><thead><tr><th scope="col">Username</th><th scope="col">Groups</th></tr></thead><tbody>
{{range .}}<tr><td>{{.Username}}</td><td>{{if .Groups}}{{join .Groups ", "}}{{else}}<span class="soft">none</span>{{end}}</td></tr>{{end}}
</tbody></table></div>{{end}}`

// The pages. They are parsed once and never change.
var (
	loginTemplate = page.Parse(userTable + `{{define "title"}}{{if .Alert}}Error: {{end}}Sign in (development provider){{end}}
{{define "body"}}<main class="narrow"><p><span class="tag">Development identity provider</span></p>
<h1>Sign in</h1><p class="soft">to continue to <code>{{.Client}}</code></p>
{{if .Alert}}<p class="alert" role="alert" id="alert">{{.Alert}}</p>{{end}}
<form method="post" action="` + loginPath + `"><input type="hidden" name="request" value="{{.Request}}">
<label for="username">Username</label>
<input id="username" name="username" type="text" inputmode="email" autocomplete="username" autocapitalize="none" spellcheck="false" required value="{{.Username}}"{{if not .Username}} autofocus{{end}}{{if .Alert}} aria-describedby="alert"{{end}}>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required{{if .Username}} autofocus{{end}}{{if .Alert}} aria-invalid="true" aria-describedby="alert"{{end}}>
<button type="submit">Sign in</button></form>
<h2>Who can sign in</h2>{{template "users" .Users}}
<p class="soft">Made-up users for development. Their passwords were printed when the mesh started, and are in its <code>dev.json</code>.</p></main>{{end}}`)

	messageTemplate = page.Parse(`{{define "title"}}{{.Title}} (development provider){{end}}
{{define "body"}}<main class="narrow"><p><span class="tag">Development identity provider</span></p>
<h1>{{.Title}}</h1><p>{{.Text}}</p></main>{{end}}`)

	homeTemplate = page.Parse(userTable + `{{define "title"}}Development provider{{end}}
{{define "body"}}<main class="narrow"><p><span class="tag">Development identity provider</span></p>
<h1>An OpenID provider for one machine</h1><p>It signs in made-up users for a development mesh. Open one of the mesh's applications to get here.</p>
<h2>Users</h2>{{template "users" .}}
<nav><a href="/.well-known/openid-configuration">Discovery document</a><a href="/keys">Keys</a><a href="/end_session">Sign out</a></nav></main>{{end}}`)
)
