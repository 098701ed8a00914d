package login_test

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/login"
	"github.com/iapmesh/iapmesh/node/session"
)

func TestThePortalListsWhatTheUserMayOpen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	u := w.user()
	page := u.get(w.url("us", "auth", "/")) // without a session: sign in, by which of the two?
	page = u.get(w.chosen(page, "dev"))
	page, err := u.submit(page, ana)
	if err != nil {
		t.Fatal(err)
	}
	w.refused(page, http.StatusOK, "Your applications")
	want := []string{w.url("us", "billing", "/"), signOutPath}
	if got := links(t, page); !slices.Equal(got, want) {
		t.Errorf("links %q, want %q: engineering may open billing, finance the wiki, nobody the rest", got, want)
	}
	if again := u.get(w.url("us", "wiki", "/.iapmesh/routes")); again.Request.URL.String() != w.url("us", "auth", "/.iapmesh/routes") {
		t.Errorf("another host's portal is at %s", again.Request.URL)
	}
	g := w.greeted(u.get(want[0]))
	if g.Email != ana {
		t.Errorf("greeted as %+v", g)
	}
}

func TestPagesThatAreNotThere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	u := w.user()
	for _, test := range []struct {
		host, path string
		status     int
	}{
		{"billing", "/.iapmesh/nothing", http.StatusNotFound},
		{"billing", callbackPath, http.StatusNotFound}, // the redirect URI is the sign-in host's alone
		{"billing", "/.iapmesh/sign_out/complete", http.StatusNotFound},
		{"auth", "/favicon.ico", http.StatusNotFound},
		{"auth", handoffPath, http.StatusBadRequest},
		{"auth", callbackPath, http.StatusBadRequest},
		{"auth", "/.iapmesh/sign_in?request=AAAA", http.StatusBadRequest},
	} {
		if page := u.get(w.url("eu", test.host, test.path)); page.StatusCode != test.status {
			t.Errorf("%s%s answers %d, want %d", test.host, test.path, page.StatusCode, test.status)
		}
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url("eu", "auth", callbackPath), nil)
	if err != nil {
		t.Fatal(err)
	}
	page, err := u.Client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = page.Body.Close()
	if page.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a posted callback is answered %d", page.StatusCode)
	}
}

// narrow makes a region's node speak for billing alone.
func (w *world) narrow(region string) {
	w.commit(func(c *keyring.Contents) {
		n := *c.Nodes[region]
		n.RouteSelector = "billing"
		c.Nodes[region] = &n
	})
}

func TestANodeOfFewRoutesOpensNoOthersByWayOfANodeOfAll(t *testing.T) {
	t.Parallel()
	forged := func(w *world) (string, *session.Session) {
		token, s, err := w.regions["us"].minter.Mint(w.views.Load(), session.Grant{Identity: identity.Identity{Subject: "dev/somebody", Groups: []string{"dev/finance"}}})
		if err != nil {
			t.Fatal(err)
		}
		return token, s
	}
	t.Run("its session at the sign-in host", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.narrow("us")
		token, s := forged(w)
		u := w.user()
		for _, host := range []string{"wiki", "billing"} {
			u.keep(w.url("eu", "auth", "/"), session.CookieName, token)
			page := u.get(w.url("eu", host, "/"))
			if strings.Contains(body(t, page), s.ID) || page.StatusCode != http.StatusOK {
				t.Errorf("%s took it, with %d", host, page.StatusCode)
			}
			if got := page.Request.URL.Host; got != "auth.localhost:"+w.port("eu") && "https://"+got != w.idps["dev"].server.URL {
				t.Errorf("arrived at %s, want a sign-in", page.Request.URL)
			}
		}
	})
	t.Run("its ticket", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.narrow("us")
		u := w.user()
		out, back := move(w, "eu", "us", "/.iapmesh/sign_in"), move(w, "us", "eu", handoffPath)
		u.steer = func(to *url.URL) error { return errors.Join(out(to), back(to)) }
		page := u.signIn(w.url("eu", "billing", "/"), ana)
		w.refused(page, http.StatusBadRequest, "cannot be finished")
		if u.has("billing") {
			t.Error("a ticket of a node that speaks for billing alone became a session of a node that speaks for all")
		}
	})
	t.Run("among nodes of the same routes", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.narrow("us")
		w.narrow("eu")
		u := w.user()
		u.steer = move(w, "eu", "us", handoffPath)
		w.greeted(u.signIn(w.url("eu", "billing", "/"), ana))
	})
}

func TestALoginNeedsSomethingToStandOn(t *testing.T) {
	t.Parallel()
	if _, err := login.New(login.Config{}); !fault.Is(err, fault.Internal) {
		t.Errorf("error %v", err)
	}
}

func TestMetricsTellHowSignInsEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	u := w.user()
	w.greeted(u.signIn(w.url("eu", "billing", "/"), ana))
	w.greeted(u.get(w.url("eu", "wiki", "/")))
	w.idps["dev"].down.Store(true)
	w.apply(strings.Replace(w.yaml(), "scopes: [openid, email, profile, groups]", "scopes: [openid]", 1)) // discovered anew
	w.user().get(w.url("eu", "billing", "/"))
	families, err := w.regions["eu"].registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	if diff := cmp.Diff(map[string]float64{
		"iapmesh_sign_ins_total dev ok": 1, "iapmesh_sign_ins_total dev reused": 1, "iapmesh_sign_ins_total dev provider_unavailable": 1,
		"iapmesh_handoffs_total ok": 2, "iapmesh_sign_in_seconds dev": 1,
	}, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}
