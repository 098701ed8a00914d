package session

import (
	"context"
	stdjson "encoding/json"
	"errors"
	"iter"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4/json"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
)

// How Await is bounded.
const (
	awaitFor   = 500 * time.Millisecond
	maxWaiters = 256
)

// Config is a Verifier's.
type Config struct {
	Now        func() time.Time      // default time.Now
	Registerer prometheus.Registerer // nil: no metrics
	CacheSize  int                   // tokens; default 16,384
}

// Verifier verifies session tokens against a view. It is safe for concurrent use, and takes no lock.
type Verifier struct {
	now     func() time.Time
	cache   *cache
	waiters atomic.Int64
	metrics *verifierMetrics
}

// NewVerifier makes a Verifier.
func NewVerifier(cfg Config) *Verifier {
	v := &Verifier{now: cfg.Now, cache: newCache(cfg.CacheSize), metrics: newVerifierMetrics(cfg.Registerer)}
	if v.now == nil {
		v.now = time.Now
	}
	return v
}

// verdict is the permission of a cached token in one view.
type verdict struct {
	view    *state.View
	session *Session // nil if err
	node    *keyring.Node
	err     error
}

// Verify returns the session that a token carries, if it counts for the route in the view. Errors are ErrInvalid, ErrExpired,
// ErrRevoked, *UnknownKeyError or *ProviderError, none of which echoes the token.
func (v *Verifier) Verify(view *state.View, route *resource.Route, token string) (*Session, error) {
	if route == nil {
		return nil, v.refuse(invalid("no route"))
	}
	return v.verify(view, route, token)
}

// Identify is Verify for the mesh's own pages, which belong to no route: it says who is calling, whatever the minting node's
// selector covers, and so must never open an application.
func (v *Verifier) Identify(view *state.View, token string) (*Session, error) {
	return v.verify(view, nil, token)
}

func (v *Verifier) verify(view *state.View, route *resource.Route, token string) (*Session, error) {
	now := v.now()
	hash := v.cache.hash(token)
	e := v.cache.get(hash, token)
	if e == nil {
		v.metrics.misses.Inc()
		var err error
		if e, err = v.admit(view, token, now); err != nil {
			return nil, v.refuse(err)
		}
		e.hash = hash
		v.cache.put(e, now)
	} else {
		v.metrics.hits.Inc()
	}
	if !now.Before(e.deadline) {
		return nil, v.refuse(ErrExpired)
	}
	at := e.verdict.Load()
	if at == nil || at.view != view {
		at = e.judge(view, at)
		e.verdict.Store(at)
	}
	if at.err != nil {
		return nil, v.refuse(at.err)
	}
	if route != nil && !view.Selects(at.node, route) {
		return nil, v.refuse(invalid("minting node %s does not speak for route %s", at.node.ID, route.Name))
	}
	if route != nil && !route.Takes(at.session.Identity.Provider()) {
		return nil, v.refuse(&ProviderError{at.session, route.Name})
	}
	e.touch(now)
	return at.session, nil
}

func (v *Verifier) refuse(err error) error {
	v.metrics.refused.WithLabelValues(reason(err)).Inc()
	return err
}

// admit is the cold path: it verifies the signature and decodes what it covers.
func (v *Verifier) admit(view *state.View, token string, now time.Time) (*entry, error) {
	opened, err := open(view, sessions(), token)
	if err != nil {
		return nil, err
	}
	var c claims
	if err := json.Unmarshal(opened.payload, &c); err != nil {
		return nil, invalid("claims")
	}
	if err := c.check(view, sessions(), now); err != nil {
		return nil, err
	}
	s, err := c.session(opened.kid)
	if err != nil {
		return nil, err
	}
	return &entry{token: token, session: s, public: opened.public, deadline: s.Expires.Add(keyring.Skew)}, nil
}

func (c *claims) session(kid string) (*Session, error) {
	minted, err := revision.Parse(c.Revision)
	if err != nil {
		return nil, invalid("rev")
	}
	if err := keyring.ValidSessionID(c.Session); err != nil {
		return nil, invalid("sid")
	}
	s := &Session{
		Identity: identity.Identity{Subject: c.Subject, Email: c.Email, Name: c.Name, Groups: c.Groups, AMR: c.AMR},
		ID:       c.Session, Host: c.Host, Minted: minted, KID: kid, issuer: c.Issuer,
		IssuedAt: time.Unix(c.IssuedAt, 0), Expires: time.Unix(c.Expires, 0),
	}
	if c.AuthTime != 0 {
		s.Identity.AuthTime = time.Unix(c.AuthTime, 0)
	}
	if err := s.Identity.Validate(); err != nil {
		return nil, invalid("%w", err)
	}
	return s, nil
}

// judge looks the permission up in a view. The session is the one of the verdict before, as long as its lineage is the same.
func (e *entry) judge(view *state.View, before *verdict) *verdict {
	key, node, err := standing(view, e.session.KID, e.public)
	if err == nil {
		err = inTime(node, e.session.IssuedAt)
	}
	if err == nil {
		err = unrevoked(view, e.session)
	}
	if err != nil {
		return &verdict{view: view, err: err}
	}
	s := e.session
	if before != nil && before.session != nil {
		s = before.session
	}
	if s.MintingNode != node.ID || s.MintingKey != node.ProvisioningKey {
		fresh := *s
		fresh.MintingNode, fresh.MintingKey = key.Node, node.ProvisioningKey
		s = &fresh
	}
	return &verdict{view: view, session: s, node: node}
}

// unrevoked checks issuer, revocations, and that the mesh was not restored since.
func unrevoked(view *state.View, s *Session) error {
	if s.issuer != "" && (view.Config.Settings == nil || view.Config.Settings.Issuer != s.issuer) {
		return invalid("issuer %.100q", s.issuer)
	}
	if view.Keyring.Fenced(s.Minted) {
		return revoked("minted at revision %s, before the mesh was restored", s.Minted)
	}
	if r := view.Keyring.Revoked(s.ID, s.Identity.Subject, s.Minted); r != nil {
		return revoked("%s, at revision %s", r.Kind, r.Revision)
	}
	return nil
}

// VerifyAs verifies a token that Minter.Sign signed for the purpose, on a node that speaks for the route, and decodes its body
// into body. Single use is the caller's to enforce. Errors are Verify's.
func (v *Verifier) VerifyAs(view *state.View, route *resource.Route, p Purpose, token string, body any) error {
	err := v.verifyAs(view, route, p, token, body)
	if err != nil {
		return v.refuse(err)
	}
	return nil
}

func (v *Verifier) verifyAs(view *state.View, route *resource.Route, p Purpose, token string, body any) error {
	if p.typ == "" || p.typ == sessionType || route == nil {
		return fault.New(fault.Internal, "verify a token: want a purpose and a route")
	}
	opened, err := open(view, p, token)
	if err != nil {
		return err
	}
	var c struct {
		registered
		Body stdjson.RawMessage `json:"body"`
	}
	if err := json.Unmarshal(opened.payload, &c); err != nil {
		return invalid("claims")
	}
	if err := c.check(view, p, v.now()); err != nil {
		return err
	}
	_, node, err := standing(view, opened.kid, opened.public)
	if err != nil {
		return err
	}
	if err := inTime(node, time.Unix(c.IssuedAt, 0)); err != nil {
		return err
	}
	if !view.Selects(node, route) {
		return invalid("minting node %s does not speak for route %s", node.ID, route.Name)
	}
	if err := json.Unmarshal(c.Body, body); err != nil {
		return invalid("body")
	}
	return nil
}

// Views is what Await waits on; state.Source is one.
type Views interface {
	WaitRevision(ctx context.Context, at revision.Revision) (*state.View, error)
}

// Await waits at most 500 ms for the view that err, from Verify, asks for; the caller then matches its route and verifies anew.
// An err that asks for none is returned as it is. Few wait at a time: a forged header costs no more than a quick 503.
func (v *Verifier) Await(ctx context.Context, views Views, err error) (*state.View, error) {
	var unknown *UnknownKeyError
	if !errors.As(err, &unknown) || !unknown.Newer {
		return nil, err
	}
	if v.waiters.Add(1) > maxWaiters {
		v.waiters.Add(-1)
		return nil, err
	}
	defer v.waiters.Add(-1)
	ctx, cancel := context.WithTimeout(ctx, awaitFor)
	defer cancel()
	view, waitErr := views.WaitRevision(ctx, unknown.Needs)
	if waitErr != nil {
		return nil, err
	}
	return view, nil
}

// Recent yields the ids of the sessions that were verified within the last d, perhaps twice, for Live.Stats.
func (v *Verifier) Recent(d time.Duration) iter.Seq[string] {
	since := v.now().Add(-d).Unix()
	return func(yield func(string) bool) {
		for e := range v.cache.all {
			if e.used.Load() >= since && !yield(e.session.ID) {
				return
			}
		}
	}
}
