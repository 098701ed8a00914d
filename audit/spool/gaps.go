package spool

import (
	"maps"
	"slices"
	"strings"

	"github.com/iapmesh/iapmesh/audit"
)

// maxGaps bounds how many (route, reason) pairs are told apart; what comes on top is counted under no route.
const maxGaps = 256

type gapKey struct{ route, reason string }

// Gap counts a request that a route served although its record could not be kept. The counts of each second become gap
// records as soon as there is room for them.
func (s *Spool) Gap(route, reason string) {
	now := s.cfg.Now()
	s.metrics.gaps.Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	k := gapKey{route, reason}
	if s.gaps[k] == nil && len(s.gaps) >= maxGaps {
		k = gapKey{reason: "several"}
	}
	g := s.gaps[k]
	if g == nil {
		g = &audit.Span{Route: k.route, Reason: k.reason, From: now}
		s.gaps[k] = g
	}
	g.Count++
	g.To = now
}

// flushGaps appends what was counted, as far as there is room; the rest goes on being counted. The caller holds mu.
func (s *Spool) flushGaps() {
	for _, k := range slices.SortedFunc(maps.Keys(s.gaps), func(a, b gapKey) int {
		return strings.Compare(a.route+"\x00"+a.reason, b.route+"\x00"+b.reason)
	}) {
		span := s.gaps[k]
		if !s.appendLocked(&audit.Record{Kind: audit.KindGap, Time: span.To, Route: span.Route, Gap: span}) {
			return
		}
		delete(s.gaps, k)
	}
}

// appendLocked appends one of the spool's own records, and reports whether there was room. The caller holds mu.
func (s *Spool) appendLocked(r *audit.Record) bool {
	r.Node, r.Region = s.cfg.Node, s.cfg.Region
	e := s.encoders.Get().(*encoder)
	defer s.encoders.Put(e)
	frame, leaf := e.encode(r)
	if s.admit(int64(len(frame)), 0) != nil {
		return false
	}
	audit.Frame{Run: s.run, Seq: s.seq}.Seal(frame)
	c := s.place(frame)
	c.leaves = append(c.leaves, leaf)
	s.seq++
	return true
}
