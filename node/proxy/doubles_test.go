package proxy_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/netip"
	"sync"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/spool"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
)

// views is a source of views that tests set.
type views struct {
	mu      sync.Mutex
	view    *state.View
	changed chan struct{}
	coming  *state.View // arrives as soon as somebody waits for it
}

func (v *views) set(view *state.View) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.view = view
	close(v.changed)
	v.changed = make(chan struct{})
}

func (v *views) setOnceAwaited(view *state.View) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.coming = view
}

func (v *views) Load() *state.View {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.view
}

func (v *views) WaitRevision(ctx context.Context, at revision.Revision) (*state.View, error) {
	for {
		v.mu.Lock()
		if v.coming != nil && v.view.Revision.Before(at) {
			v.view, v.coming = v.coming, nil
		}
		view, changed := v.view, v.changed
		v.mu.Unlock()
		if !view.Revision.Before(at) {
			return view, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// trail is a real spool that remembers what was appended, and can be told to refuse.
type trail struct {
	*spool.Spool
	plain   bool
	mu      sync.Mutex
	refuse  error
	records []audit.Record
	gaps    []string
}

func (s *trail) Append(r *audit.Record) (spool.Ticket, error) {
	if s.plain {
		return s.Spool.Append(r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		return spool.Ticket{}, s.refuse
	}
	ticket, err := s.Spool.Append(r)
	if err == nil {
		s.records = append(s.records, *r)
	}
	return ticket, err
}

func (s *trail) Gap(route, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gaps = append(s.gaps, route+" "+reason)
}

func (s *trail) full(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = err
}

// signIn stands where node/login does.
type signIn struct{}

func (signIn) Begin(w http.ResponseWriter, r *http.Request, _ *state.View, route *resource.Route) {
	w.Header().Set("X-Begun-For", route.Name)
	http.Redirect(w, r, "https://auth.example.com/.iapmesh/sign_in", http.StatusFound)
}

func (signIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fmt.Fprint(w, "sign-in: "+r.URL.Path)
}

type refusals struct {
	mu   sync.Mutex
	seen []string
}

func (r *refusals) Count(source netip.Addr, route, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, source.String()+" "+route+" "+reason)
}

func (r *refusals) list() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.seen...)
}

// sealer is AES-256-GCM under a key that every test knows.
type sealer struct{}

func (sealer) aead() cipher.AEAD {
	key := sha256.Sum256([]byte("the disk of a test"))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return aead
}

func (s sealer) Seal(plaintext, context []byte) ([]byte, error) {
	return s.aead().Seal(nil, nil, plaintext, context), nil
}

func (s sealer) Open(sealed, context []byte) ([]byte, error) {
	return s.aead().Open(nil, nil, sealed, context)
}
