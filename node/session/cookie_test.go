package session_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/node/session"
)

// browser keeps cookies by name, as a browser does for one host.
type browser struct {
	names  []string
	values map[string]string
}

func (b *browser) take(t *testing.T, w *httptest.ResponseRecorder) {
	t.Helper()
	if b.values == nil {
		b.values = map[string]string{}
	}
	for _, c := range w.Result().Cookies() {
		if !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Domain != "" {
			t.Errorf("cookie %s: %+v", c.Name, c)
		}
		if n := len(c.Raw); n > 4096 {
			t.Errorf("cookie %s: %d bytes", c.Name, n)
		}
		if c.MaxAge < 0 {
			delete(b.values, c.Name)
			continue
		}
		if _, have := b.values[c.Name]; !have {
			b.names = append(b.names, c.Name)
		}
		b.values[c.Name] = c.Value
	}
}

func (b *browser) request() *http.Request {
	r := httptest.NewRequest(http.MethodGet, "https://billing.example.com/", nil)
	r.AddCookie(&http.Cookie{Name: "app", Value: "1"})
	for _, n := range b.names {
		if v, ok := b.values[n]; ok {
			r.AddCookie(&http.Cookie{Name: n, Value: v})
		}
	}
	return r
}

func TestACookieOfAnySizeComesBack(t *testing.T) {
	t.Parallel()
	var b browser
	for _, size := range []int{session.MaxToken, 1, 3799, 3800, 3801, 7600, 7601, 11401, 700, session.MaxToken} { // one browser: longer ones are left over
		token := strings.Repeat("abcdefghi.", size/10+1)[:size]
		w := httptest.NewRecorder()
		session.WriteCookie(w, token, time.Hour)
		b.take(t, w)
		if got := session.ReadCookie(b.request()); got != token {
			t.Errorf("%d bytes came back as %d", size, len(got))
		}
	}
	w := httptest.NewRecorder()
	session.ClearCookie(w, b.request())
	b.take(t, w)
	if len(b.values) != 0 || session.ReadCookie(b.request()) != "" {
		t.Errorf("left after clearing: %d", len(b.values))
	}
}

func TestCookiesThatAreNotRead(t *testing.T) {
	t.Parallel()
	const name = "__Host-iapmesh_session"
	for what, lines := range map[string][]string{
		"none":              nil,
		"empty":             {name + "="},
		"another's name":    {"x" + name + "=a", name + "x=a", strings.ToLower(name) + "=a"},
		"twice":             {name + "=a; " + name + "=b"},
		"twice in lines":    {name + "=a", name + "=b"},
		"part missing":      {name + "=3~a; " + name + "_1=b"},
		"part twice":        {name + "=2~a; " + name + "_1=b; " + name + "_1=c"},
		"count of one":      {name + "=1~a"},
		"count too large":   {name + "=9~a"},
		"count of no digit": {name + "=~a"},
		"count of letters":  {name + "=z~a"},
		"too long":          {name + "=" + strings.Repeat("a", 4000)},
		"header too long":   {"app=" + strings.Repeat("a", 70<<10) + "; " + name + "=a"},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		if lines != nil {
			r.Header["Cookie"] = lines
		}
		if got := session.ReadCookie(r); got != "" {
			t.Errorf("%s: read %.40q", what, got)
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header["Cookie"] = []string{"a=1", "b=2;" + name + "=token ;c=3", name + "=token"}
	if got := session.ReadCookie(r); got != "token" {
		t.Errorf("among others: %q", got)
	}
}

func TestStripLeavesOtherCookiesAlone(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ in, want []string }{
		"none":           {nil, nil},
		"others":         {[]string{`a=1;b="x y";  c=;;d`}, []string{`a=1;b="x y";  c=;;d`}},
		"only ours":      {[]string{"__Host-iapmesh_session=t"}, nil},
		"first":          {[]string{"__Host-iapmesh_session=t; a=1; b=2"}, []string{"a=1; b=2"}},
		"middle":         {[]string{"a=1; __Host-iapmesh_session=t; b=2"}, []string{"a=1; b=2"}},
		"last":           {[]string{"a=1; __Host-iapmesh_session_1=t"}, []string{"a=1"}},
		"all of ours":    {[]string{"__Host-iapmesh_refresh=r; a=1;__Host-iapmesh_login_x=l"}, []string{"a=1"}},
		"case":           {[]string{"__host-IAPMESH_session=t; a=1"}, []string{"a=1"}},
		"without value":  {[]string{"a=1; __Host-iapmesh_session"}, []string{"a=1"}},
		"tabs":           {[]string{"a=1;\t__Host-iapmesh_session=t"}, []string{"a=1"}},
		"several lines":  {[]string{"a=1", "__Host-iapmesh_session=t", "b=2"}, []string{"a=1", "b=2"}},
		"a value of it":  {[]string{"a=__Host-iapmesh_session"}, []string{"a=__Host-iapmesh_session"}},
		"a longer name":  {[]string{"x__Host-iapmesh_session=1"}, []string{"x__Host-iapmesh_session=1"}},
		"quotes kept on": {[]string{`a="1"; __Host-iapmesh_session=t; b={"x":"y"}`}, []string{`a="1"; b={"x":"y"}`}},
	} {
		h := http.Header{}
		if tc.in != nil {
			h["Cookie"] = tc.in
		}
		session.StripCookies(h)
		if diff := cmp.Diff(tc.want, h["Cookie"]); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}
