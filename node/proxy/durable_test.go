package proxy_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/spool"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// disk is the machine's, until it is told to stall or to fail.
type disk struct {
	mu      sync.Mutex
	stalled chan struct{} // syncs wait for its end
	failing atomic.Bool
}

func (d *disk) stall() (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	stalled := make(chan struct{})
	d.stalled = stalled
	return sync.OnceFunc(func() {
		d.mu.Lock()
		d.stalled = nil
		d.mu.Unlock()
		close(stalled)
	})
}

func (d *disk) open(path string, flag int) (spool.File, error) {
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return &diskFile{f, d}, nil
}

type diskFile struct {
	*os.File
	disk *disk
}

func (f *diskFile) Sync() error {
	f.disk.mu.Lock()
	stalled := f.disk.stalled
	f.disk.mu.Unlock()
	if stalled != nil {
		<-stalled
	}
	if f.disk.failing.Load() {
		return errors.New("input/output error")
	}
	return f.File.Sync()
}

// saying is an application that says when it is called, and answers with a secret.
func saying(called chan<- struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		called <- struct{}{}
		if r.URL.Path == "/hints" {
			w.WriteHeader(http.StatusEarlyHints)
		}
		w.Header().Set("Set-Cookie", "secret=1")
		fmt.Fprint(w, "secret")
	})
}

func durableRoutes(durable, onFailure string) string {
	return strings.Replace(routesYAML, "hosts: [billing", fmt.Sprintf("audit: {durable: %s, on_failure: %s}\nhosts: [billing", durable, onFailure), 1)
}

func TestWhatWaitsForTheRecord(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		durable, path string
		reaches       bool // the application is called while the disk is stalled
	}{
		"before_answer":                   {"before_answer", "/", true},
		"before_answer, with early hints": {"before_answer", "/hints", true},
		"before_forward":                  {"before_forward", "/", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, called := &disk{}, make(chan struct{}, 1)
			w := newWorld(t, options{routes: durableRoutes(tc.durable, "refuse"), app: saying(called), files: d.open})
			cookie := w.ana()
			w.get("billing.example.com", "/", cookie) // warm
			<-called
			release := d.stall()
			defer release()
			answered, hinted := make(chan response, 1), make(chan struct{}, 1)
			r := w.request(http.MethodGet, "billing.example.com", tc.path, cookie)
			r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
				Got1xxResponse: func(int, textproto.MIMEHeader) error { hinted <- struct{}{}; return nil },
			}))
			go func() { answered <- w.do(r) }()
			w.kind(audit.KindDecision, 2)
			if tc.reaches {
				<-called
			}
			select {
			case <-answered:
				t.Error("answered before the record was on disk")
			case <-hinted:
				t.Error("early hints were sent before the record was on disk")
			case <-called:
				t.Error("the application was called before the record was on disk")
			case <-time.After(100 * time.Millisecond):
			}
			release()
			if res := <-answered; res.StatusCode != http.StatusOK || res.body != "secret" {
				t.Errorf("%d %s", res.StatusCode, res.body)
			}
			if tc.path == "/hints" && len(hinted) != 1 {
				t.Error("early hints never came")
			}
		})
	}
}

func TestARecordThatCannotBeKept(t *testing.T) {
	t.Parallel()
	type failure func(w *world, d *disk)
	full := func(w *world, _ *disk) { w.trail.full(fault.New(fault.Exhausted, "no room")) }
	fails := func(_ *world, d *disk) { d.failing.Store(true) }
	stalls := func(w *world, d *disk) { w.t.Cleanup(d.stall()) }
	for name, tc := range map[string]struct {
		durable, onFailure string
		fail               failure
		want               int
		gap                string
		called             string // the application: once, never, or either
	}{
		"full, refuse":  {"before_answer", "refuse", full, 503, "", "never"},
		"full, serve":   {"before_answer", "serve", full, 200, "billing exhausted", "once"},
		"stall, refuse": {"before_answer", "refuse", stalls, 503, "", "once"},
		"stall, serve":  {"before_answer", "serve", stalls, 200, "billing not_durable", "once"},
		// Whether the record finds a disk that fails or a spool that has noticed is the checkpoint's doing.
		"fails, refuse":                 {"before_answer", "refuse", fails, 503, "", ""},
		"fails, serve":                  {"before_answer", "serve", fails, 200, "billing ", "once"},
		"fails, before_forward, refuse": {"before_forward", "refuse", fails, 503, "", "never"},
		"fails, before_forward, serve":  {"before_forward", "serve", fails, 200, "billing ", "once"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, called := &disk{}, make(chan struct{}, 2)
			w := newWorld(t, options{routes: durableRoutes(tc.durable, tc.onFailure), app: saying(called), files: d.open, wait: 200 * time.Millisecond})
			cookie := w.ana()
			tc.fail(w, d)
			res := w.get("billing.example.com", "/", cookie)
			if res.StatusCode != tc.want || tc.want == 503 && res.code() != "not_recorded" {
				t.Errorf("%d %v %s", res.StatusCode, res.Header, res.body)
			}
			if tc.want == 503 && (strings.Contains(res.body, "secret") || res.Header.Get("Set-Cookie") != "") {
				t.Errorf("the application's answer leaks: %v %s", res.Header, res.body)
			}
			if tc.called == "once" && len(called) != 1 || tc.called == "never" && len(called) != 0 {
				t.Errorf("the application was called %d times", len(called))
			}
			w.trail.mu.Lock()
			gaps := strings.Join(w.trail.gaps, ", ")
			w.trail.mu.Unlock()
			if tc.gap != "" && !strings.Contains(gaps, tc.gap) || tc.gap == "" && strings.Contains(gaps, "not_durable") {
				t.Errorf("gaps: %s", gaps)
			}
		})
	}
}

// A refusal is evidence too: it is on disk before the client learns of it.
func TestADenialWaitsForItsRecord(t *testing.T) {
	t.Parallel()
	d := &disk{}
	w := newWorld(t, options{files: d.open})
	cookie, _ := w.signInAs("okta/staff")
	release := d.stall()
	defer release()
	answered := make(chan response, 1)
	go func() { answered <- w.get("billing.example.com", "/", cookie) }()
	w.kind(audit.KindDecision, 1)
	select {
	case <-answered:
		t.Error("answered before the record was on disk")
	case <-time.After(50 * time.Millisecond):
	}
	release()
	if res := <-answered; res.StatusCode != http.StatusForbidden {
		t.Errorf("%d", res.StatusCode)
	}
}
