package app

import (
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/iapmesh/iapmesh/internal/dev/page"
	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	maxDelay   = time.Minute
	maxPadding = 64 << 20
)

// Echo is echo's answer: the request as the application saw it.
type Echo struct {
	App        string      `json:"app"`
	Region     string      `json:"region,omitempty"`    // where the application runs
	ServedBy   string      `json:"served_by,omitempty"` // the region that served, by the mesh's header
	Method     string      `json:"method"`
	Host       string      `json:"host"`
	Path       string      `json:"path"`        // decoded
	RequestURI string      `json:"request_uri"` // as it came
	Query      url.Values  `json:"query"`
	Headers    http.Header `json:"headers"`
	Proto      string      `json:"proto"`
	Remote     string      `json:"remote"`
	BodyBytes  int64       `json:"body_bytes"`
	Caller
}

// NewEcho makes the application that answers with what reached it.
//
//	/        JSON (Echo); a page for browsers. ?status=N answers N, ?delay=D waits first, ?bytes=N answers N bytes instead
//	/ws      a WebSocket that returns each message
//	/sse     server-sent events; ?interval=D (1s), ?count=N (until the client leaves)
//	/upload  reads the body as it comes, answers its size and SHA-256; ?progress=N says so every N bytes, ?rate=N reads N bytes/s
//
// Every other path answers as / does, and browsers get JSON there.
func NewEcho(c Config) http.Handler {
	c = c.withDefaults("echo")
	e := &echo{config: c, verifier: NewVerifier(c)}
	return http.HandlerFunc(e.route)
}

// route is no ServeMux: that redirects paths which are not canonical, and an application shall show what was sent.
func (e *echo) route(w http.ResponseWriter, r *http.Request) {
	get := r.Method == http.MethodGet
	switch {
	case r.URL.Path == "/" && get:
		e.home(w, r)
	case r.URL.Path == "/ws" && get:
		e.webSocket(w, r)
	case r.URL.Path == "/sse" && get:
		e.events(w, r)
	case r.URL.Path == "/upload" && get:
		e.uploadForm(w, r)
	case r.URL.Path == "/upload" && (r.Method == http.MethodPost || r.Method == http.MethodPut):
		e.upload(w, r)
	default:
		e.echo(w, r)
	}
}

type echo struct {
	config   Config
	verifier *Verifier
}

func (e *echo) describe(r *http.Request) Echo {
	return Echo{
		App: e.config.Name, Region: e.config.Region, ServedBy: r.Header.Get(e.config.RegionHeader),
		Method: r.Method, Host: r.Host, Path: r.URL.Path, RequestURI: r.RequestURI, Query: r.URL.Query(),
		Headers: r.Header, Proto: r.Proto, Remote: r.RemoteAddr, Caller: e.verifier.Caller(r),
	}
}

func (e *echo) echo(w http.ResponseWriter, r *http.Request) {
	answer := e.describe(r)
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, "read body: "+err.Error(), http.StatusBadRequest)
		return
	}
	answer.BodyBytes = n
	query := r.URL.Query()
	status, err := number(query, "status", http.StatusOK, 599)
	if err == nil && status < http.StatusOK {
		err = fault.New(fault.Invalid, "status=%d: want 200 to 599", status)
	}
	delay, delayErr := duration(query, "delay", 0, maxDelay)
	padding, paddingErr := number(query, "bytes", -1, maxPadding)
	for _, err := range []error{err, delayErr, paddingErr} {
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
			return
		}
	}
	if padding >= 0 {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.Itoa(padding))
		w.WriteHeader(status)
		_, _ = io.CopyN(w, zeros{}, int64(padding)) // the client has gone: nobody is left to tell
		return
	}
	writeJSON(w, status, answer)
}

func (e *echo) home(w http.ResponseWriter, r *http.Request) {
	if !page.Wanted(r) || r.URL.RawQuery != "" {
		e.echo(w, r)
		return
	}
	homeTemplate.Write(w, http.StatusOK, e.describe(r))
}

// zeros reads as NUL bytes without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// number reads an integer parameter from 0 to most; absent is the default.
func number(q url.Values, name string, absent, most int) (int, error) {
	if !q.Has(name) {
		return absent, nil
	}
	n, err := strconv.Atoi(q.Get(name))
	if err != nil || n < 0 || n > most {
		return 0, fault.New(fault.Invalid, "%s=%.40q: want 0 to %d", name, q.Get(name), most)
	}
	return n, nil
}

// duration reads a duration parameter from 0 to most; absent is the default.
func duration(q url.Values, name string, absent, most time.Duration) (time.Duration, error) {
	if !q.Has(name) {
		return absent, nil
	}
	d, err := time.ParseDuration(q.Get(name))
	if err != nil || d < 0 || d > most {
		return 0, fault.New(fault.Invalid, "%s=%.40q: want 0s to %s", name, q.Get(name), most)
	}
	return d, nil
}
