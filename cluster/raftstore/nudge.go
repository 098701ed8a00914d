package raftstore

import (
	"sync"

	"github.com/hashicorp/raft"
)

// nudgingTransport tells followers of a commit at once. Raft's leader never signals it: they learn with the next entries, or
// after CommitTimeout × [1, 2). A nudge is an AppendEntries without entries, with the new commit index, in the stream of those
// that raft sends: same term, previous entry = the last one sent. Raft itself sends such when it is idle. It never speaks of what
// was not sent yet: a follower takes every entry up to the index for committed, also those of a deposed leader that are about
// to be overwritten.
type nudgingTransport struct {
	*retryTransport

	mu        sync.Mutex
	pipelines map[*nudgedPipeline]struct{}
}

// AppendEntriesPipeline implements raft.Transport. While there is no pipeline, as after an error, nobody is nudged.
func (t *nudgingTransport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := t.retryTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	p := &nudgedPipeline{AppendPipeline: inner, transport: t, wake: make(chan notice, 1), closed: make(chan struct{})}
	t.mu.Lock()
	t.pipelines[p] = struct{}{}
	t.mu.Unlock()
	go p.run() // ends with Close, which raft calls when it is done with a pipeline
	return p, nil
}

// notice is an index that is committed, and the term of its entry.
type notice struct{ commit, term uint64 }

// nudge sends the commit index to whoever has not been sent it. It never blocks: the state machine calls it.
func (t *nudgingTransport) nudge(n notice) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := range t.pipelines {
		select {
		case <-p.wake: // an older index that has not been taken up
		default:
		}
		p.wake <- n // has room: nudge alone sends, under the lock
	}
}

type nudgedPipeline struct {
	raft.AppendPipeline
	transport *nudgingTransport
	wake      chan notice
	closed    chan struct{}
	once      sync.Once

	mu      sync.Mutex // one sender at a time
	last    *raft.AppendEntriesRequest
	noticed notice
}

// AppendEntries implements raft.AppendPipeline.
func (p *nudgedPipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := *args
	last.Entries = nil
	if n := len(args.Entries); n > 0 {
		last.PrevLogEntry, last.PrevLogTerm = args.Entries[n-1].Index, args.Entries[n-1].Term
	}
	// Raft may have made it before the nudge that it follows, and nobody would say so again.
	args.LeaderCommitIndex = p.noticed.within(&last)
	last.LeaderCommitIndex = args.LeaderCommitIndex
	p.last = &last
	return p.AppendPipeline.AppendEntries(args, resp)
}

func (p *nudgedPipeline) run() {
	for {
		select {
		case n := <-p.wake:
			p.send(n)
		case <-p.closed:
			return
		}
	}
}

// within is the commit index that the follower may be told once it has what last says that it was sent: not less than last's own.
func (n notice) within(last *raft.AppendEntriesRequest) uint64 {
	if n.term > last.Term { // this member leads no more, and has heard of the commit from who does
		return last.LeaderCommitIndex
	}
	return max(last.LeaderCommitIndex, min(n.commit, last.PrevLogEntry))
}

func (p *nudgedPipeline) send(n notice) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noticed = n
	if p.last == nil {
		return
	}
	commit := n.within(p.last)
	if commit == p.last.LeaderCommitIndex {
		return
	}
	p.last.LeaderCommitIndex = commit
	nudge := *p.last
	// An error shows in raft's own next send; the answer goes to raft as those to its own requests do.
	_, _ = p.AppendPipeline.AppendEntries(&nudge, new(raft.AppendEntriesResponse))
}

// Close implements raft.AppendPipeline. It takes no lock that a blocked send holds.
func (p *nudgedPipeline) Close() error {
	p.once.Do(func() {
		close(p.closed)
		p.transport.mu.Lock()
		delete(p.transport.pipelines, p)
		p.transport.mu.Unlock()
	})
	return p.AppendPipeline.Close()
}
