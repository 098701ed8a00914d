package collect

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Filter selects records; a zero field selects all.
type Filter struct {
	User            string // subject or e-mail
	Route           string
	Decision        string    // audit.Allow or audit.Deny
	From, To        time.Time // From ≤ time < To
	ProvisioningKey string    // of the serving or the minting node
	Node            string
	Kind            audit.Kind
	RequestID       string
	Limit           int  // 0: none
	Newest          bool // with Limit: the newest, still oldest first
	Follow          bool // go on with what is stored later
}

// Entry is a stored record.
type Entry struct {
	ID     audit.ID
	Body   []byte // verbatim
	Record audit.Record
}

// matches reports whether a record is selected.
func (f *Filter) matches(r *audit.Record) bool {
	return (f.User == "" || r.Actor.Subject == f.User || r.Actor.Email == f.User) &&
		(f.Route == "" || r.Route == f.Route) &&
		(f.Decision == "" || r.Decision == f.Decision) &&
		(f.From.IsZero() || !r.Time.Before(f.From)) &&
		(f.To.IsZero() || r.Time.Before(f.To)) &&
		(f.ProvisioningKey == "" || r.Actor.ProvisioningKey == f.ProvisioningKey || r.Actor.MintingProvisioningKey == f.ProvisioningKey) &&
		(f.Kind == "" || r.Kind == f.Kind) &&
		(f.RequestID == "" || r.RequestID == f.RequestID)
}

// needles are byte strings that the JSON of each selected record contains. To look for them costs far less than to decode.
func (f *Filter) needles() [][]byte {
	var all [][]byte
	for _, s := range []string{f.User, f.Route, f.Decision, f.ProvisioningKey, string(f.Kind), f.RequestID} {
		if s == "" {
			continue
		}
		if quoted := audit.AppendString(nil, s); !bytes.ContainsAny(quoted, "\\\ufffd") {
			all = append(all, quoted)
		}
	}
	return all
}

// Records yields the selected records, oldest first as far as the clocks of the nodes agree. With Follow it ends with ctx's error.
func (a *Aggregator) Records(ctx context.Context, f Filter) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		q := &query{a: a, filter: f, needles: f.needles(), trails: map[string]*trail{}}
		defer q.close()
		for first := true; ; first = false {
			a.mu.Lock()
			changed := a.changed
			a.mu.Unlock()
			if err := q.refresh(); err != nil {
				yield(Entry{}, err)
				return
			}
			if !q.pass(ctx, first && f.Newest && f.Limit > 0, yield) || !f.Follow {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				yield(Entry{}, ctx.Err())
				return
			}
		}
	}
}

// query is one reading through the trails of all nodes.
type query struct {
	a       *Aggregator
	filter  Filter
	needles [][]byte
	trails  map[string]*trail
	given   int
}

// trail reads the runs of a node, one after the other.
type trail struct {
	node    string
	cursors []*cursor
	at      int
	head    *Entry // read and not yet yielded
}

// refresh looks for new nodes, runs and records.
func (q *query) refresh() error {
	names := []string{q.filter.Node}
	if q.filter.Node == "" {
		var err error
		if names, err = nodes(q.a.cfg.Dir); err != nil {
			return err
		}
	} else if err := audit.CheckName(q.filter.Node); err != nil {
		return err
	}
	for _, node := range names {
		runs, err := runsOf(q.a.cfg.Dir, node)
		if err != nil {
			return err
		}
		t := q.trails[node]
		if t == nil {
			t = &trail{node: node}
			q.trails[node] = t
		}
		for i, run := range runs {
			if i < t.at {
				continue
			}
			l, err := q.a.log(node, run)
			if err != nil {
				return err
			}
			if i >= len(t.cursors) {
				t.cursors = append(t.cursors, &cursor{run: run})
			}
			t.cursors[i].segments = l.snapshot()
		}
	}
	return nil
}

func (l *runLog) snapshot() []segment {
	segments, _, _ := l.standing()
	return segments
}

// standing is what is durable, the newest note over it if it is newer than the stored ones, and whether the run has forked.
func (l *runLog) standing() (segments []segment, note []byte, forked bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]segment(nil), l.segments...), l.latest, l.forked
}

func (q *query) close() {
	for _, t := range q.trails {
		for _, c := range t.cursors {
			c.close()
		}
	}
}

// pass yields what there is now, the nodes' trails merged by time; false if the caller wants no more.
func (q *query) pass(ctx context.Context, newest bool, yield func(Entry, error) bool) bool {
	var ring []Entry
	for n := 0; ; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			yield(Entry{}, ctx.Err())
			return false
		}
		e, err := q.oldest(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			yield(Entry{}, err)
			return false
		}
		if newest {
			if ring = append(ring, e); len(ring) >= 2*q.filter.Limit {
				ring = append(ring[:0], ring[len(ring)-q.filter.Limit:]...)
			}
			continue
		}
		q.given++
		if !yield(e, nil) || (q.given == q.filter.Limit && !q.filter.Newest) {
			return false
		}
	}
	for _, e := range ring[max(0, len(ring)-max(q.filter.Limit, 0)):] {
		if !yield(e, nil) {
			return false
		}
	}
	return true
}

// oldest takes the oldest of the nodes' next records.
func (q *query) oldest(ctx context.Context) (Entry, error) {
	var best *trail
	for _, t := range q.trails {
		if t.head == nil {
			if err := q.advance(ctx, t); err != nil {
				return Entry{}, err
			}
		}
		if t.head != nil && (best == nil || t.head.Record.Time.Before(best.head.Record.Time)) {
			best = t
		}
	}
	if best == nil {
		return Entry{}, io.EOF
	}
	e := *best.head
	best.head = nil
	return e, nil
}

// advance reads on to the next record that is selected; head stays nil at the end.
func (q *query) advance(ctx context.Context, t *trail) error {
	for n := 0; t.at < len(t.cursors); n++ {
		if n%4096 == 4095 && ctx.Err() != nil {
			return ctx.Err()
		}
		c := t.cursors[t.at]
		f, err := c.next()
		if errors.Is(err, io.EOF) {
			if t.at+1 == len(t.cursors) {
				return nil
			}
			t.at++
			continue
		}
		if err != nil {
			return err
		}
		if f.Kind != audit.RecordFrame || !containsAll(f.Body, q.needles) {
			continue
		}
		r, err := audit.Decode(f.Body)
		if err != nil || !q.filter.matches(&r) {
			continue // what does not decode is found by verification
		}
		t.head = &Entry{ID: audit.ID{Node: t.node, Run: f.Run.String(), Seq: f.Seq}, Body: bytes.Clone(f.Body), Record: r}
		return nil
	}
	return nil
}

func containsAll(body []byte, needles [][]byte) bool {
	for _, n := range needles {
		if !bytes.Contains(body, n) {
			return false
		}
	}
	return true
}

// Query serves Records.
func (a *Aggregator) Query(req *iapmeshv1.QueryRequest, stream iapmeshv1.AuditService_QueryServer) error {
	f := Filter{
		User: req.GetUser(), Route: req.GetRoute(), Decision: req.GetDecision(), ProvisioningKey: req.GetProvisioningKey(), Node: req.GetNode(),
		Kind: audit.Kind(req.GetKind()), RequestID: req.GetRequestId(), Limit: int(req.GetLimit()), Newest: req.GetNewest(), Follow: req.GetFollow(),
	}
	if f.Newest && f.Limit > 100_000 {
		return fault.ToStatus(fault.New(fault.Invalid, "query: limit %d, at most 100000 of the newest", f.Limit))
	}
	if t := req.GetFrom(); t != nil {
		f.From = t.AsTime()
	}
	if t := req.GetTo(); t != nil {
		f.To = t.AsTime()
	}
	for e, err := range a.Records(stream.Context(), f) {
		if err == nil {
			err = stream.Send(&iapmeshv1.QueryResponse{Id: e.ID.String(), Record: e.Body})
		}
		if err != nil {
			return fault.ToStatus(err)
		}
	}
	return nil
}
