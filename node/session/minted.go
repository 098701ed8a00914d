package session

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
)

// The bounds of what Minted returns.
const (
	MaxMinters    = 100
	NewestMinted  = 5   // sessions of one minter that are named
	maxNamedInAll = 200 // sessions that are named
)

// Seen is a session and when this node last saw it.
type Seen struct {
	*Session
	At time.Time
}

// Minted are the live sessions that one node has minted.
type Minted struct {
	Key, Node string // that minted: its provisioning key, its id
	Sessions  int    // distinct ones
	Newest    []Seen // by when they were minted
}

// Minted counts the live sessions by the node that minted them: those with something open, and those of recent, such as
// Verifier.Sessions', that still count in the view. It returns the minters with most sessions, at most MaxMinters, and of each the
// newest sessions. It is for reports, never for a request: it takes no lock that a request waits for longer than Recheck's.
func (l *Live) Minted(view *state.View, recent iter.Seq[Seen]) []Minted {
	type minter struct{ key, node string }
	c := l.checker(view)
	distinct := map[minter]map[string]Seen{}
	var last minter // most are of the same
	var sessions map[string]Seen
	see := func(s Seen) {
		if !c.counts(s.Session) {
			return
		}
		if m := (minter{s.MintingKey, s.MintingNode}); m != last || sessions == nil {
			if last, sessions = m, distinct[m]; sessions == nil {
				sessions = map[string]Seen{}
				distinct[m] = sessions
			}
		}
		have, ok := sessions[s.ID]
		switch {
		case !ok || s.IssuedAt.After(have.IssuedAt): // refreshed
			if have.At.After(s.At) {
				s.At = have.At
			}
			sessions[s.ID] = s
		case s.At.After(have.At):
			have.At = s.At
			sessions[s.ID] = have
		}
	}
	now := l.cfg.Now()
	for _, o := range l.snapshot() {
		if o.Session != nil {
			see(Seen{o.Session, now})
		}
	}
	if recent != nil {
		for s := range recent {
			see(s)
		}
	}
	out := make([]Minted, 0, len(distinct))
	for m, sessions := range distinct {
		out = append(out, Minted{Key: m.key, Node: m.node, Sessions: len(sessions), Newest: newest(maps.Values(sessions))})
	}
	slices.SortFunc(out, func(a, b Minted) int {
		return cmp.Or(cmp.Compare(b.Sessions, a.Sessions), cmp.Compare(a.Key, b.Key), cmp.Compare(a.Node, b.Node))
	})
	out = out[:min(len(out), MaxMinters)]
	named := 0
	for i := range out {
		room := max(0, maxNamedInAll-named)
		out[i].Newest = out[i].Newest[:min(len(out[i].Newest), room)]
		named += len(out[i].Newest)
	}
	return out
}

// newest keeps a few: a node may hold thousands, and sorts none of them but these.
func newest(sessions iter.Seq[Seen]) []Seen {
	var top []Seen
	for s := range sessions {
		if len(top) == NewestMinted && !byAge(s, top[len(top)-1]) {
			continue
		}
		at, _ := slices.BinarySearchFunc(top, s, func(a, b Seen) int {
			if byAge(a, b) {
				return -1
			}
			return 1
		})
		top = slices.Insert(top, at, s)
		top = top[:min(len(top), NewestMinted)]
	}
	return top
}

// byAge reports whether a was minted after b; of two of the same second, the order of their ids decides.
func byAge(a, b Seen) bool {
	if !a.IssuedAt.Equal(b.IssuedAt) {
		return a.IssuedAt.After(b.IssuedAt)
	}
	return a.ID < b.ID
}

// counts reports whether a session still counts in the checker's view.
func (c *checker) counts(s *Session) bool {
	if unrevoked(c.view, s) != nil {
		return false
	}
	return c.standingOf(s.KID).err == nil
}

// Sessions yields the sessions that were verified within the last d and have not expired, perhaps twice, for Live.Minted.
func (v *Verifier) Sessions(d time.Duration) iter.Seq[Seen] {
	now := v.now()
	since := now.Add(-d).Unix()
	return func(yield func(Seen) bool) {
		for e := range v.cache.all {
			used := e.used.Load()
			if used < since || !now.Before(e.session.Expires.Add(keyring.Skew)) {
				continue
			}
			at := e.verdict.Load()
			if at == nil || at.session == nil {
				continue
			}
			if !yield(Seen{at.session, time.Unix(used, 0)}) {
				return
			}
		}
	}
}
