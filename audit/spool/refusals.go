package spool

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/iapmesh/iapmesh/audit"
)

// maxSources bounds how many (source, route, reason) are told apart in a minute; the rest is counted under no source.
const maxSources = 1024

// appender is what Refusals needs of a Spool.
type appender interface {
	Append(r *audit.Record) (Ticket, error)
}

// Refusals counts what was refused before anybody was authenticated: one record per source, route, reason and minute, so that a flood
// cannot fill the spool. An IPv6 source is its /64, since whoever has one address has them all.
type Refusals struct {
	to     appender
	logger *slog.Logger
	now    func() time.Time

	mu     sync.Mutex
	counts map[refusal]*audit.Span
}

type refusal struct {
	source        netip.Prefix
	route, reason string
}

// NewRefusals counts into s. Run must be started.
func NewRefusals(s *Spool) *Refusals {
	return &Refusals{to: s, logger: s.cfg.Logger, now: s.cfg.Now, counts: map[refusal]*audit.Span{}}
}

// Count counts one refusal.
func (r *Refusals) Count(source netip.Addr, route, reason string) {
	now := r.now()
	k := refusal{sourcePrefix(source), route, reason}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts[k] == nil && len(r.counts) >= maxSources {
		k = refusal{reason: "several"}
	}
	span := r.counts[k]
	if span == nil {
		span = &audit.Span{Reason: k.reason, Route: k.route, From: now}
		r.counts[k] = span
	}
	span.Count++
	span.To = now
}

func sourcePrefix(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil { // no address at all
		return netip.Prefix{}
	}
	return p
}

// Run appends the counts each minute, and once more when ctx ends; the spool's Run must end later.
func (r *Refusals) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.flush()
		case <-ctx.Done():
			r.flush()
			return nil
		}
	}
}

// flush appends what was counted. What the spool does not take goes on being counted.
func (r *Refusals) flush() {
	r.mu.Lock()
	counts := r.counts
	r.counts = map[refusal]*audit.Span{}
	r.mu.Unlock()
	keys := make([]refusal, 0, len(counts))
	for k := range counts {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b refusal) int {
		return cmp.Or(a.source.Addr().Compare(b.source.Addr()), cmp.Compare(a.route, b.route), cmp.Compare(a.reason, b.reason))
	})
	for i, k := range keys {
		rec := audit.Record{Kind: audit.KindRefusals, Time: counts[k].To, Route: k.route, SourceIP: k.text(), Refusals: counts[k]}
		if _, err := r.to.Append(&rec); err != nil {
			r.logger.Warn("refusals not recorded yet", "sources", len(keys)-i, "error", err)
			r.putBack(keys[i:], counts)
			return
		}
	}
}

func (r *Refusals) putBack(keys []refusal, counts map[refusal]*audit.Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range keys {
		old := counts[k]
		if newer := r.counts[k]; newer != nil {
			old.Count, old.To = old.Count+newer.Count, newer.To
		}
		r.counts[k] = old
	}
}

func (k refusal) text() string {
	switch {
	case !k.source.IsValid():
		return ""
	case k.source.IsSingleIP():
		return k.source.Addr().String()
	}
	return k.source.String()
}
