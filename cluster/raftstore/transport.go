package raftstore

import (
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// poolSize is how many idle connections raft keeps to each member.
const poolSize = 4

// streamLayer lets raft dial by our Transport.
type streamLayer struct{ Transport }

func (s streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return s.Transport.Dial(string(addr), timeout)
}

// retryTransport repeats a call that met a dead connection. Raft's pool notices that a member has restarted only when it uses
// the connection, and then gives up: a candidate would lose one election for each dead connection to each voter, and a new
// leader its first heartbeats. Every call is safe to repeat.
type retryTransport struct {
	*raft.NetworkTransport
}

func retry(call func() error) error {
	var err error
	for range poolSize + 1 {
		if err = call(); !dead(err) {
			return err
		}
	}
	return err
}

// dead reports whether err is what a connection says that the other end has closed. A failed dial is not.
func dead(err error) bool {
	var dialing *net.OpError
	if errors.As(err, &dialing) && dialing.Op == "dial" {
		return false
	}
	for _, closed := range []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(err, closed) {
			return true
		}
	}
	return false
}

// AppendEntries implements raft.Transport.
func (t *retryTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	return retry(func() error { return t.NetworkTransport.AppendEntries(id, target, args, resp) })
}

// RequestVote implements raft.Transport.
func (t *retryTransport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return retry(func() error { return t.NetworkTransport.RequestVote(id, target, args, resp) })
}

// RequestPreVote implements raft.WithPreVote.
func (t *retryTransport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return retry(func() error { return t.NetworkTransport.RequestPreVote(id, target, args, resp) })
}

// TimeoutNow implements raft.Transport.
func (t *retryTransport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return retry(func() error { return t.NetworkTransport.TimeoutNow(id, target, args, resp) })
}
