package session_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/session"
)

// Whatever comes: no panic, an error of a known kind, and nothing accepted that go-jose would not verify by the same key.
func FuzzVerify(f *testing.F) {
	m := newMesh(f)
	good, _ := m.signIn("eu")
	ticket, err := m.minter("eu").Sign(m.view, session.Handoff("billing.example.com"), "x")
	if err != nil {
		f.Fatal(err)
	}
	p := m.parts()
	p.header["krev"] = "9.9"
	for _, seed := range []string{
		"", ".", "..", "...", good, ticket, good[:len(good)-1], good + ".", strings.ReplaceAll(good, ".", ".."), "e30.e30.e30",
		p.by(f, m.private["eu"]), p.by(f, m.private["bill"]),
	} {
		f.Add(seed)
	}
	v, route := m.verifier(), m.route("billing")
	f.Fuzz(func(t *testing.T, token string) {
		s, err := v.Verify(m.view, route, token)
		if err == nil {
			parsed, joseErr := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.EdDSA})
			if joseErr != nil {
				t.Fatalf("accepted what go-jose cannot parse: %v", joseErr)
			}
			if _, joseErr = parsed.Verify(m.private["eu"].Public()); joseErr != nil || s == nil {
				t.Fatalf("accepted what go-jose refuses: %v", joseErr)
			}
			return
		}
		var unknown *session.UnknownKeyError
		newer := errors.As(err, &unknown) && unknown.Newer
		if kind := fault.KindOf(err); newer && kind != fault.Unavailable || !newer && kind != fault.Unauthenticated {
			t.Fatalf("%v: kind %v", err, kind)
		}
	})
}

// What was written is read; whatever else a Cookie header holds, reading is bounded, and stripping leaves nothing of ours.
func FuzzCookies(f *testing.F) {
	for _, seed := range []string{
		"", "a=1", "__Host-iapmesh_session=x", "__Host-iapmesh_session=2~x; __Host-iapmesh_session_1=y",
		"__Host-iapmesh_session=4~; __Host-iapmesh_session_1=~", "; ;=;__Host-iapmesh_=;", "\t__HOST-iapmesh_session\t=1",
	} {
		f.Add(seed, uint16(9000))
	}
	f.Fuzz(func(t *testing.T, line string, size uint16) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header["Cookie"] = []string{line}
		if token := session.ReadCookie(r); len(token) > session.MaxToken || strings.ContainsAny(token, "~;") {
			t.Fatalf("read %d bytes: %.80q", len(token), token)
		}
		session.StripCookies(r.Header)
		if token := session.ReadCookie(r); token != "" {
			t.Fatalf("left %q", token)
		}
		session.StripCookies(r.Header)
		for pair := range strings.SplitSeq(strings.Join(r.Header["Cookie"], ";"), ";") {
			if strings.HasPrefix(strings.ToLower(strings.Trim(pair, " \t")), "__host-iapmesh_") {
				t.Fatalf("left %q", pair)
			}
		}
		token := strings.Repeat("x", min(int(size), session.MaxToken)) + "y"
		if len(token) > session.MaxToken {
			return
		}
		w := httptest.NewRecorder()
		session.WriteCookie(w, token, time.Hour)
		back := httptest.NewRequest(http.MethodGet, "/", nil)
		for _, c := range w.Result().Cookies() {
			back.AddCookie(c)
		}
		if session.ReadCookie(back) != token {
			t.Fatalf("a token of %d bytes did not come back", len(token))
		}
	})
}
