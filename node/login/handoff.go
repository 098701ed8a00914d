package login

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/page"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
)

const (
	maxSeen   = 1 << 16 // tickets
	seenFor   = time.Minute + 2*keyring.Skew
	maxTicket = 32 << 10
)

// ticket is the body of a hand-off token: a sign-in, and the browser that it is for.
type ticket struct {
	ID       string   `json:"id"`
	State    string   `json:"state"` // stateHash of the target host
	Subject  string   `json:"sub"`
	Email    string   `json:"email,omitempty"`
	Name     string   `json:"name,omitempty"`
	Groups   []string `json:"groups,omitempty"`
	AuthTime int64    `json:"auth_time,omitempty"`
	AMR      []string `json:"amr,omitempty"`
	Session  string   `json:"sid"`
	Revision string   `json:"rev"`
}

func (t ticket) grant() (session.Grant, error) {
	minted, err := revision.Parse(t.Revision)
	if err != nil || minted.IsZero() || t.Session == "" || t.ID == "" {
		return session.Grant{}, fault.New(fault.Unauthenticated, "ticket: names no session")
	}
	g := session.Grant{
		Identity: identity.Identity{Subject: t.Subject, Email: t.Email, Name: t.Name, Groups: t.Groups, AMR: t.AMR},
		ID:       t.Session, Minted: minted,
	}
	if t.AuthTime != 0 {
		g.Identity.AuthTime = time.Unix(t.AuthTime, 0)
	}
	return g, nil
}

// handOver sends the browser back to the target's host with a ticket: signed by this node, which must answer for it, and sealed,
// because addresses end up in histories and logs.
func (v *visit) handOver(b *boxes, s *session.Session, asked request) {
	body := ticket{
		ID: rand.Text(), State: asked.State, Subject: s.Identity.Subject, Email: s.Identity.Email, Name: s.Identity.Name,
		Groups: s.Identity.Groups, AMR: s.Identity.AMR, Session: s.ID, Revision: s.Minted.String(),
	}
	if t := s.Identity.AuthTime; !t.IsZero() {
		body.AuthTime = t.Unix()
	}
	signed, err := v.cfg.Minter.Sign(v.view, session.Handoff(asked.Target.Host), body)
	if err != nil {
		v.failOn(err)
		return
	}
	packed, err := pack(signed)
	if err != nil {
		v.failOn(err)
		return
	}
	// The address to return to holds no line end.
	sealed := b.seal(sealedTicket, asked.Target.Host, append([]byte(asked.Target.URI+"\n"), packed...))
	at := target{asked.Target.Host, pathHandoff + "?" + url.Values{"ticket": {sealed}}.Encode()}
	v.redirect("sign_in", at.url(v.port))
}

// redeem is /.iapmesh/handoff on a route's host: it changes a ticket into a session of this host.
func (v *visit) redeem() {
	t, token, err := v.openTicket(v.r.URL.Query().Get("ticket"))
	switch {
	case fault.Is(err, fault.Unavailable):
		v.failOn(err)
		return
	case err != nil:
		v.metrics.handoffs.WithLabelValues("refused").Inc()
		v.startAgain(err, v.portalLink()...)
		return
	}
	if err := v.redeemToken(t, token); err != nil {
		v.metrics.handoffs.WithLabelValues("refused").Inc()
		switch {
		case v.signedInFor(t): // another tab was faster, or the user went back
			v.redirect("sign_in", t.url(v.port))
		case fault.Is(err, fault.Unauthenticated):
			v.startAgain(err, page.Link{Text: "Open it again", URL: t.url(v.port)})
		default:
			v.failOn(err)
		}
		return
	}
	v.metrics.handoffs.WithLabelValues("ok").Inc()
	v.redirect("sign_in", t.url(v.port))
}

func (v *visit) openTicket(sealed string) (target, string, error) {
	bad := fault.New(fault.Unauthenticated, "ticket: not understood")
	if sealed == "" || len(sealed) > maxTicket {
		return target{}, "", bad
	}
	b, err := v.boxes(v.view)
	if err != nil {
		return target{}, "", err
	}
	plain, err := b.open(sealedTicket, v.host, sealed)
	if err != nil {
		return target{}, "", err
	}
	uri, packed, ok := bytes.Cut(plain, []byte("\n"))
	if !ok {
		return target{}, "", bad
	}
	t, err := parseTarget(v.host, string(uri))
	if err != nil {
		return target{}, "", err
	}
	token, err := unpack(packed)
	return t, token, err
}

// redeemToken verifies the token, the browser and the ticket's first use, then mints and records. Nothing is set before all holds.
func (v *visit) redeemToken(t target, token string) error {
	var body ticket
	route, err := v.verifyTicket(t, token, &body)
	if waited, waitErr := v.cfg.Verifier.Await(v.r.Context(), v.cfg.Views, err); err != nil && waitErr == nil {
		v.view = waited
		route, err = v.verifyTicket(t, token, &body)
	}
	if err != nil {
		return err
	}
	grant, err := body.grant()
	grant.Host = v.host
	switch {
	case err != nil:
		return err
	case !slices.Contains(route.IdentityProviders, grant.Identity.Provider()):
		return fault.New(fault.Unauthenticated, "ticket: of provider %s, which route %s does not take", grant.Identity.Provider(), route.Name)
	case !v.vouchesFor(minterOf(v.view, token)):
		return fault.New(fault.Unauthenticated, "ticket: its node speaks for fewer routes than this one: let nodes that serve %s select all that users sign in to", v.settings.SignInHost)
	case !sameState(body.State, v.host, cookieValue(v.r, stateCookie)):
		return fault.New(fault.Unauthenticated, "ticket: for another browser, or used")
	}
	// A ticket works once on this node, for the set remembers it, and once in this browser, for it consumes the state cookie. Another
	// node would take it again, within its minute and in this browser only, if somebody kept the cookie: who can do that has the
	// session too.
	if err := v.seen.add(body.ID, v.cfg.Now(), seenFor); err != nil {
		return err
	}
	minted, s, err := v.cfg.Minter.Mint(v.view, grant)
	if err != nil {
		return err
	}
	if _, err := v.cfg.Verifier.Verify(v.view, route, minted); err != nil { // or the browser would be sent round in circles
		return fault.New(fault.Unavailable, "this node's session does not count for route %s: %w", route.Name, err)
	}
	if err := v.recordSignIn(s, t, s.Identity.Provider(), "host"); err != nil {
		return err
	}
	v.clearCookie(stateCookie)
	session.WriteCookie(v.w, minted, s.Expires.Sub(v.cfg.Now()))
	return nil
}

func (v *visit) verifyTicket(t target, token string, body *ticket) (*resource.Route, error) {
	route, _, err := t.route(v.view)
	if err != nil {
		return nil, err
	}
	if route == nil { // a ticket for the sign-in host: it needs none
		return nil, fault.New(fault.Unauthenticated, "ticket: not for an application")
	}
	return route, v.cfg.Verifier.VerifyAs(v.view, route, session.Handoff(v.host), token, body)
}

// signedInFor reports whether the browser has a session that the target would take.
func (v *visit) signedInFor(t target) bool {
	route, providers, err := t.route(v.view)
	token := session.ReadCookie(v.r)
	if err != nil || route == nil || token == "" {
		return false
	}
	s, err := v.cfg.Verifier.Verify(v.view, route, token)
	return err == nil && s.On(v.host) == nil && slices.Contains(providers, s.Identity.Provider())
}

// minterOf is the node that signed a token which was verified just before; empty if it is unknown.
func minterOf(view *state.View, token string) string {
	head, _, _ := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		return ""
	}
	var header struct {
		KID string `json:"kid"`
	}
	if json.Unmarshal(raw, &header) != nil {
		return ""
	}
	if key := view.Keyring.SigningKeys[header.KID]; key != nil {
		return key.Node
	}
	return ""
}

// seenSet remembers what was used, until it would be refused anyway.
type seenSet struct {
	max int

	mu     sync.Mutex
	until  map[string]time.Time // guarded by mu
	pruned time.Time            // guarded by mu
}

func newSeenSet(max int) *seenSet { return &seenSet{max: max, until: map[string]time.Time{}} }

// add refuses what is in the set already. Unavailable: the set is full; to forget what is not over would let it be used twice.
func (s *seenSet) add(id string, now time.Time, life time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.pruned) > time.Minute || len(s.until) >= s.max {
		for old, until := range s.until {
			if now.After(until) {
				delete(s.until, old)
			}
		}
		s.pruned = now
	}
	if _, used := s.until[id]; used {
		return fault.New(fault.Unauthenticated, "ticket: used already")
	}
	if len(s.until) >= s.max {
		return fault.New(fault.Unavailable, "%d sign-ins in a few minutes: try again", s.max)
	}
	s.until[id] = now.Add(life)
	return nil
}
