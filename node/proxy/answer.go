package proxy

import (
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/node/page"
)

// answer is one that we give ourselves. Neither its page nor its problem says more than the client may know: why a policy
// refused is in the record, under the request id.
type answer struct {
	status int
	code   string // in page.ResponseHeader
	title  string
	text   string
	retry  bool // soon
}

// The answers; they never change.
var (
	badRequest     = answer{status: http.StatusBadRequest, code: "bad_request", title: "This request is not understood"}
	badMethod      = answer{status: http.StatusMethodNotAllowed, code: "bad_method", title: "This method is not served"}
	unknownHost    = answer{status: http.StatusNotFound, code: "unknown_host", title: "Nothing is here", text: "No application is served under this host name."}
	notFound       = answer{status: http.StatusNotFound, code: "not_found", title: "Nothing is here", text: "No application is served under this address."}
	notHere        = answer{status: http.StatusMisdirectedRequest, code: "not_here", title: "Not served here", text: "This node does not serve this application."}
	signInNeeded   = answer{status: http.StatusUnauthorized, code: "unauthenticated", title: "Sign-in needed", text: "This request carries no session that counts."}
	sessionEnded   = answer{status: http.StatusUnauthorized, code: "session_ended", title: "Signed out", text: "The session ended while this request was served."}
	denied         = answer{status: http.StatusForbidden, code: "denied", title: "You may not open this", text: "Ask whoever runs this application for access, and give them the id below."}
	otherProvider  = answer{status: http.StatusForbidden, code: "other_provider", title: "Sign in otherwise", text: "You are signed in, but by an identity provider that this application does not take."}
	stale          = answer{status: http.StatusServiceUnavailable, code: "stale", title: "Not certain enough", text: "This node has not heard from its mesh for longer than this application allows.", retry: true}
	restored       = answer{status: http.StatusServiceUnavailable, code: "restored", title: "Closed until an operator has looked", text: "This mesh was restored from a backup and awaits an operator. Nobody can sign in until then.", retry: true}
	notReady       = answer{status: http.StatusServiceUnavailable, code: "not_ready", title: "Not ready yet", text: "This node is still starting.", retry: true}
	keyUnknown     = answer{status: http.StatusServiceUnavailable, code: "unknown_key", title: "Try again", text: "This node does not know yet the key of your session.", retry: true}
	notRecorded    = answer{status: http.StatusServiceUnavailable, code: "not_recorded", title: "Not recorded, so not served", text: "The decision could not be written down.", retry: true}
	cannotAssert   = answer{status: http.StatusServiceUnavailable, code: "no_assertion", title: "Try again", text: "This node cannot tell the application who you are.", retry: true}
	ended          = answer{status: http.StatusServiceUnavailable, code: "ended", title: "Ended", text: "The mesh ended this request.", retry: true}
	badGateway     = answer{status: http.StatusBadGateway, code: "upstream_unreachable", title: "The application does not answer", text: "It could not be reached, or broke off."}
	gatewayTimeout = answer{status: http.StatusGatewayTimeout, code: "upstream_timeout", title: "The application does not answer", text: "It took longer than its route allows."}
)

// because says what is wrong with a request.
func (a answer) because(err error) answer {
	a.text = err.Error()
	return a
}

// problem is RFC 9457.
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail,omitempty"`
	Code      string `json:"code"`
	RequestID string `json:"request_id"`
}

// refuse answers by ourselves, once the decision is on disk, if there is one with a record. An answer that has begun is cut.
func (x *exchange) refuse(a answer) {
	if x.w.began.Load() {
		if x.w.status != http.StatusSwitchingProtocols {
			panic(http.ErrAbortHandler)
		}
		return
	}
	if x.durable() != nil {
		a = notRecorded
	}
	lost := x.keepEndOff()
	if (lost || a.status >= http.StatusInternalServerError) && x.in.Body != http.NoBody {
		// What the client still sends goes nowhere, and waiting for it would hold the answer back.
		_ = http.NewResponseController(x.w.ResponseWriter).SetReadDeadline(time.Now())
	}
	h := x.w.Header()
	x.mark(h)
	if x.duplex {
		x.dropBody()
	}
	if a.retry {
		h.Set("Retry-After", "1")
	}
	if a.status == http.StatusMethodNotAllowed {
		h.Set("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
	}
	if page.Wanted(x.in) && x.in.Header.Get("Upgrade") == "" {
		m := page.Message{Title: a.title, Text: []string{a.text}, Detail: "Request " + x.id}
		if a.code == denied.code && x.session != nil && x.session.Identity.Email != "" {
			m.Text = append([]string{"You are signed in as " + x.session.Identity.Email + "."}, m.Text...)
		}
		if a.code == denied.code && x.session != nil {
			m.Links = []page.Link{{Text: "What you may open", URL: ownPrefix + "routes"}, {Text: "Sign out", URL: ownPrefix + "sign_out"}}
		}
		if a.code == otherProvider.code {
			m.Links = []page.Link{{Text: "Sign in by another", URL: ownPrefix + "sign_in?" + url.Values{"rd": {x.in.RequestURI}}.Encode()}}
		}
		m.Write(&x.w, a.status, a.code)
		return
	}
	h.Set(page.ResponseHeader, a.code)
	x.writeJSON(a.status, "application/problem+json", problem{
		Type: "urn:iapmesh:problem:" + a.code, Title: a.title, Status: a.status, Detail: a.text, Code: a.code, RequestID: x.id,
	})
}

func (x *exchange) writeJSON(status int, contentType string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte("{}") // our own structs always encode
	}
	h := x.w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	x.w.WriteHeader(status)
	_, _ = x.w.Write(append(body, '\n')) // the client has gone: nobody is left to tell
}

// mark sets what every answer carries, an application's too.
func (x *exchange) mark(h http.Header) {
	h[headerRequestID] = []string{x.id}
	h[headerRegion] = []string{x.p.cfg.Region}
}

// newID names a request. It is no secret: it only must not meet another's.
func newID() string {
	var b [16]byte
	hi, lo := rand.Uint64(), rand.Uint64() //nolint:gosec // no secret, see above
	for i := range 8 {
		b[i], b[8+i] = byte(hi>>(8*i)), byte(lo>>(8*i))
	}
	return hex.EncodeToString(b[:])
}

// isOurs reports whether a path is the mesh's own, on every host.
func isOurs(path string) bool {
	return strings.HasPrefix(path, "/.") && (path == ownPrefix[:len(ownPrefix)-1] || strings.HasPrefix(path, ownPrefix) ||
		path == documentPath || strings.HasPrefix(path, documentPath+"/"))
}
