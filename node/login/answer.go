package login

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/page"
	"github.com/iapmesh/iapmesh/node/session"
)

const headerRequestID = "X-Request-Id"

// failure is a page that says why a step was not taken.
type failure struct {
	kind   fault.Kind
	status int    // default: the kind's
	code   string // default sign_in_failed
	title  string
	text   string
	links  []page.Link
	retry  time.Duration // 0: no Retry-After
	quiet  bool          // strangers can cause it at will: not for the log
	err    error         // for the log; never shown
}

// fail answers with a page. Nothing that fails redirects: a browser is never sent round in circles.
func (v *visit) fail(f failure) {
	switch {
	case f.status != 0:
	case f.kind == fault.Unauthenticated:
		f.status = http.StatusForbidden // 401 asks for a header that no browser sends
	default:
		f.status = f.kind.HTTPStatus()
	}
	if f.code == "" {
		f.code = "sign_in_failed"
	}
	switch {
	case f.err == nil:
	case fault.Is(f.err, fault.Internal):
		v.cfg.Logger.ErrorContext(v.r.Context(), "sign-in step failed", "step", v.r.URL.Path, "host", v.host, "error", f.err)
	case f.quiet:
		v.cfg.Logger.DebugContext(v.r.Context(), "sign-in step refused", "step", v.r.URL.Path, "host", v.host, "error", f.err)
	default:
		v.cfg.Logger.InfoContext(v.r.Context(), "sign-in step refused", "step", v.r.URL.Path, "host", v.host, "error", f.err)
	}
	if f.retry > 0 {
		v.w.Header().Set("Retry-After", strconv.Itoa(int(f.retry/time.Second)))
	}
	m := page.Message{Title: f.title, Alert: f.text, Links: f.links}
	if id := v.w.Header().Get(headerRequestID); id != "" {
		m.Detail = "Request " + id
	}
	m.Write(v.w, f.status, f.code)
}

// failOn answers for an error that no step expected.
func (v *visit) failOn(err error) {
	switch {
	case errors.Is(err, session.ErrClosed):
		v.closed(err)
	case errors.Is(err, session.ErrBlocked):
		v.fail(failure{kind: fault.Denied, code: "blocked", title: "You are blocked", text: "An administrator has blocked your sign-in. Signing in again will not help.", err: err})
	case fault.Is(err, fault.Unavailable):
		v.fail(failure{
			kind: fault.Unavailable, title: "Sign-in is not available just now", text: "This node cannot finish it at the moment. Try again in a few seconds.",
			retry: 5 * time.Second, err: err,
		})
	case fault.Is(err, fault.Internal):
		v.fail(failure{kind: fault.Internal, title: "Something went wrong", text: "The sign-in cannot be finished. It has been logged.", err: err})
	default:
		v.fail(failure{kind: fault.KindOf(err), title: "This sign-in was refused", text: "Go back to the application and open it again.", err: err, links: v.portalLink()})
	}
}

// closed answers while the mesh was restored and no operator has confirmed it yet.
func (v *visit) closed(err error) {
	v.fail(failure{
		kind: fault.Unavailable, code: "restored", title: "Sign-in is closed", err: err, quiet: true, retry: 30 * time.Second,
		text: "This mesh was restored from a backup and awaits an operator. Nobody can sign in until he has confirmed it. Try again later.",
	})
}

// startAgain answers a step that belongs to no sign-in of this browser, or no longer.
func (v *visit) startAgain(err error, links ...page.Link) {
	v.fail(failure{
		kind: fault.Invalid, title: "This sign-in cannot be finished", err: err, links: links, quiet: true,
		text: "It has expired, was finished already, or was begun in another browser. Go back to the application and open it again.",
	})
}

func (v *visit) portalLink() []page.Link {
	if v.settings == nil {
		return nil
	}
	return []page.Link{{Text: "Your applications", URL: v.signInURL(pathRoutes, nil)}}
}

// redirect sends the browser on. Addresses carry tickets: nobody may keep them or name them to others.
func (v *visit) redirect(code, to string) {
	status := http.StatusFound
	if v.r.Method == http.MethodPost {
		status = http.StatusSeeOther
	}
	h := v.w.Header()
	h.Set(page.ResponseHeader, code)
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Location", to)
	v.w.WriteHeader(status)
}
