package raftstore

import (
	"sync"

	"github.com/hashicorp/raft"
)

// nudgingTransport tells followers of a commit at once. Raft's leader never signals it: they learn with the next entries, or
// after CommitTimeout × [1, 2). A nudge is an AppendEntries without entries, with the new commit index, in the stream of those
// that raft sends: same term, previous entry = the last one sent. Raft itself sends such when it is idle.
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
	p := &nudgedPipeline{AppendPipeline: inner, transport: t, wake: make(chan uint64, 1), closed: make(chan struct{})}
	t.mu.Lock()
	t.pipelines[p] = struct{}{}
	t.mu.Unlock()
	go p.run() // ends with Close, which raft calls when it is done with a pipeline
	return p, nil
}

// nudge sends the commit index to whoever has not been sent it. It never blocks: the state machine calls it.
func (t *nudgingTransport) nudge(commit uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := range t.pipelines {
		select {
		case <-p.wake: // an older index that has not been taken up
		default:
		}
		p.wake <- commit // has room: nudge alone sends, under the lock
	}
}

type nudgedPipeline struct {
	raft.AppendPipeline
	transport *nudgingTransport
	wake      chan uint64
	closed    chan struct{}
	once      sync.Once

	mu   sync.Mutex // one sender at a time
	last *raft.AppendEntriesRequest
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
	p.last = &last
	return p.AppendPipeline.AppendEntries(args, resp)
}

func (p *nudgedPipeline) run() {
	for {
		select {
		case commit := <-p.wake:
			p.send(commit)
		case <-p.closed:
			return
		}
	}
}

func (p *nudgedPipeline) send(commit uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil || p.last.LeaderCommitIndex >= commit {
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
