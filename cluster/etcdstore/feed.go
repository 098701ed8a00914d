package etcdstore

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/iapmesh/iapmesh/cluster/statemap"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	pageSize  = 256 // keys in one answer
	retryFeed = 250 * time.Millisecond
	readIn    = 30 * time.Second // the whole state
)

var errDistrusted = errors.New("etcd is in another epoch, or another cluster")

// Run reads the state and follows it until ctx ends, then closes everything; it returns nil. It is called once.
func (s *Store) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := s.feed(ctx)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, rpctypes.ErrCompacted) || errors.Is(err, errDistrusted) {
			s.cfg.Logger.Info("reading everything from etcd", "revision", s.Revision().String(), "reason", err)
			s.next = 0
			continue
		}
		s.cfg.Logger.Warn("etcd not followed", "revision", s.Revision().String(), "error", err)
		if err := pause(ctx, retryFeed); err != nil {
			break
		}
	}
	return s.Close()
}

// feed brings the map up to date and keeps it so; it returns why that ended.
func (s *Store) feed(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if s.next == 0 {
		if err := s.read(ctx); err != nil {
			return err
		}
	}
	// A member that has lost its quorum says so, instead of nothing.
	changes := s.client.Watch(clientv3.WithRequireLeader(ctx), s.keys.prefix, clientv3.WithPrefix(), clientv3.WithRev(s.next), clientv3.WithProgressNotify())
	for {
		select {
		case resp, open := <-changes:
			if !open {
				return fault.New(fault.Unavailable, "the watch ended")
			}
			if err := resp.Err(); err != nil {
				return err
			}
			if resp.Header.ClusterId != s.cluster.Load() {
				return errDistrusted
			}
			if resp.IsProgressNotify() { // nothing was written up to here: a compaction of it costs nothing
				s.next = resp.Header.Revision + 1
			}
			if err := s.apply(resp.Events); err != nil {
				return err
			}
		case <-s.doubt:
			s.next = 0
			return errDistrusted
		}
	}
}

// distrust makes Run read everything: etcd is in another epoch than this node, or is another cluster. Of an epoch, the watch is
// mostly about to say so; but where etcd was restored from a backup, it waits for an index that is far away.
func (s *Store) distrust() {
	select {
	case s.doubt <- struct{}{}:
	default:
	}
}

// read reads everything at one revision, and founds the mesh if there is nothing.
func (s *Store) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readIn)
	defer cancel()
	if err := s.found(ctx); err != nil {
		return err
	}
	var all []*mvccpb.KeyValue
	var at int64
	var cluster uint64
	from, end := s.keys.prefix, clientv3.GetPrefixRangeEnd(s.keys.prefix)
	for more := true; more; {
		page, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(at))
		if err != nil {
			return err
		}
		if at == 0 {
			at, cluster = page.Header.Revision, page.Header.ClusterId
		}
		all = append(all, page.Kvs...)
		if more = page.More && len(page.Kvs) > 0; more {
			from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
		}
	}
	state, epochs, leads, err := s.stateOf(all)
	if err != nil {
		return err
	}
	have := s.Revision()
	if state.Revision().Before(have) {
		return fault.New(fault.Unavailable, "etcd went back to %v, this node has %v: if it was restored from a backup, begin a later epoch", state.Revision(), have)
	}
	s.epochs.Store(epochs)
	s.leader.Store(leads)
	if have.Before(state.Revision()) || s.cluster.Load() != cluster {
		s.state.Publish(state, nil)
		s.metrics.reads.Inc()
	}
	s.cluster.Store(cluster)
	s.next = at + 1
	return nil
}

// found writes the first epoch, once.
func (s *Store) found(ctx context.Context) error {
	_, err := s.client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(s.keys.epoch()), "=", 0)).
		Then(clientv3.OpPut(s.keys.epoch(), strconv.Itoa(firstEpoch)), clientv3.OpPut(s.keys.head(), s.cfg.NodeID)).
		Commit()
	return err
}

// stateOf makes a state of all that lies under the prefix.
func (s *Store) stateOf(all []*mvccpb.KeyValue) (*statemap.State, *epochs, *leader, error) {
	var found *epochs
	var leads *leader
	for _, kv := range all {
		var err error
		switch string(kv.Key) {
		case s.keys.epoch():
			if found, err = parseEpochs(kv.Value, kv.ModRevision); err != nil {
				return nil, nil, nil, err
			}
		case s.keys.leader():
			leads = parseLeader(kv)
		}
	}
	if found == nil {
		return nil, nil, nil, fault.New(fault.Invalid, "etcd holds no %s", s.keys.epoch())
	}
	txn := statemap.NewTxn()
	var at int64
	for _, kv := range all {
		key, data := s.keys.isData(string(kv.Key))
		if data {
			txn.Put(store.Entry{Key: key, Value: kv.Value, Revision: found.revision(kv.ModRevision)})
		}
		if data || string(kv.Key) == s.keys.head() || string(kv.Key) == s.keys.epoch() {
			at = max(at, kv.ModRevision)
		}
	}
	return txn.Commit(found.revision(at)), found, leads, nil
}

// apply publishes the commits that events are made of. An answer of etcd never holds a part of a revision.
func (s *Store) apply(events []*clientv3.Event) error {
	edit := s.state.Current()
	at, txn := edit.Revision(), edit.Edit()
	var changes []store.Change
	flush := func() {
		if edit.Revision() != at {
			edit = txn.Commit(at)
			s.state.Publish(edit, changes)
			changes, txn = nil, edit.Edit()
		}
	}
	for len(events) > 0 {
		n := 1
		for n < len(events) && events[n].Kv.ModRevision == events[0].Kv.ModRevision {
			n++
		}
		group := events[:n]
		events = events[n:]
		if slices.ContainsFunc(group, func(e *clientv3.Event) bool { return string(e.Kv.Key) == s.keys.epoch() }) {
			flush()
		}
		c, err := s.change(txn, group)
		if err != nil {
			return err
		}
		if at.Before(c.Revision) {
			if c.Revision.Epoch == at.Epoch {
				changes = append(changes, c)
			} // else all watches start anew
			at = c.Revision
		}
		if len(changes) == 0 {
			flush()
		}
		s.next = group[0].Kv.ModRevision + 1
	}
	flush()
	return nil
}

// change writes the events of one revision, and returns what changed: a zero Change if it was no commit.
func (s *Store) change(txn *statemap.Txn, events []*clientv3.Event) (store.Change, error) {
	commit := false
	for _, e := range events {
		switch name := string(e.Kv.Key); {
		case name == s.keys.epoch() && e.Type == clientv3.EventTypePut:
			next, err := parseEpochs(e.Kv.Value, e.Kv.ModRevision)
			if err != nil {
				return store.Change{}, err
			}
			s.epochs.Store(next)
			commit = true
		case name == s.keys.head():
			commit = true
		case name == s.keys.leader() && e.Type == clientv3.EventTypePut:
			s.leader.Store(parseLeader(e.Kv))
		case name == s.keys.leader():
			s.leader.Store(nil)
		}
	}
	c := store.Change{}
	at := s.epochs.Load().revision(events[0].Kv.ModRevision)
	for _, e := range events {
		key, data := s.keys.isData(string(e.Kv.Key))
		if !data {
			continue
		}
		commit = true // also if somebody wrote it by hand, without the head
		if e.Type == clientv3.EventTypePut {
			c.Entries = append(c.Entries, store.Entry{Key: key, Value: e.Kv.Value, Revision: at})
		} else if _, there := txn.Get(key); there {
			c.Entries = append(c.Entries, store.Entry{Key: key, Revision: at, Deleted: true})
		}
	}
	if commit {
		c.Revision = at
	}
	slices.SortFunc(c.Entries, func(a, b store.Entry) int { return cmp.Compare(a.Key, b.Key) })
	txn.Apply(c.Entries)
	return c, nil
}

func parseLeader(kv *mvccpb.KeyValue) *leader {
	id, address, _ := strings.Cut(string(kv.Value), " ")
	return &leader{id, address}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
