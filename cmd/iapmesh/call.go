package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
)

// load reads the profile, once.
func (c *cli) load() (*profile.Profile, error) {
	if c.profile == nil {
		p, err := profile.Load(c.profileRef)
		if err != nil {
			return nil, err
		}
		c.profile = p
	}
	return c.profile, nil
}

// connect prepares the client of the profile's mesh.
func (c *cli) connect() (*profile.Client, error) {
	if c.client != nil {
		return c.client, nil
	}
	p, err := c.load()
	if err != nil {
		return nil, err
	}
	client, err := p.Dial()
	if err != nil {
		if fault.Is(err, fault.Unauthenticated) {
			return nil, hint(err, "It cannot renew itself any more: have another administrator make you a new profile.")
		}
		return nil, err
	}
	client.Patience = c.timeout
	c.client = client
	return client, nil
}

// service makes the client of one of the API's services.
type service[S any] func(grpc.ClientConnInterface) S

// unary makes one call of the leader and returns its answer, within --timeout. After two seconds it says that it waits.
func unary[S, Req, Resp any](ctx context.Context, c *cli, of service[S], method func(S, context.Context, *Req, ...grpc.CallOption) (*Resp, error), req *Req) (*Resp, error) {
	client, err := c.connect()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	waiting := c.await("the mesh")
	defer waiting.stop()
	client.Waiting = waiting.because
	var resp *Resp
	err = client.Call(ctx, func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) error {
		var err error
		resp, err = method(of(conn), ctx, req, opts...)
		return err
	})
	return resp, err
}

// stream opens a stream on the leader and hands over what comes, until it ends. When the lead moves, it opens it anew.
func stream[S, Req, Resp any](ctx context.Context, c *cli, of service[S], method func(S, context.Context, *Req, ...grpc.CallOption) (grpc.ServerStreamingClient[Resp], error), req *Req, each func(*Resp) error) error {
	client, err := c.connect()
	if err != nil {
		return err
	}
	waiting := c.await("the mesh")
	defer waiting.stop()
	client.Waiting = waiting.because
	return client.Call(ctx, func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) error {
		s, err := method(of(conn), ctx, req, opts...)
		if err != nil {
			return err
		}
		return receive(s, func(m *Resp) error {
			waiting.stop()
			return each(m)
		})
	})
}

// receive reads a stream to its end.
func receive[Resp any](s grpc.ServerStreamingClient[Resp], each func(*Resp) error) error {
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := each(m); err != nil {
			return err
		}
	}
}

// wait tells on stderr, after two seconds and then now and again, that something is still awaited.
type wait struct {
	w      io.Writer
	what   string
	live   bool // overwrite one line
	cancel chan struct{}
	ended  chan struct{}
	once   sync.Once

	mu   sync.Mutex
	last error
}

// await begins to wait; stop ends it. It may be stopped more than once.
func (c *cli) await(what string) *wait {
	w := &wait{w: c.stderr, what: what, live: terminal(c.stderr), cancel: make(chan struct{}), ended: make(chan struct{})}
	go w.run()
	return w
}

func (w *wait) run() {
	defer close(w.ended)
	began := time.Now()
	every := 10 * time.Second
	if w.live {
		every = time.Second
	}
	next := time.After(2 * time.Second)
	shown := false
	for {
		select {
		case <-w.cancel:
			if shown && w.live {
				fmt.Fprint(w.w, "\r\x1b[K")
			}
			return
		case <-next:
			next = time.After(every)
		}
		shown = true
		text := fmt.Sprintf("waiting for %s (%s)", w.what, spanText(time.Since(began)))
		w.mu.Lock()
		if w.last != nil {
			text += ": " + w.last.Error()
		}
		w.mu.Unlock()
		if w.live {
			fmt.Fprintf(w.w, "\r\x1b[K%.160s", text)
		} else {
			fmt.Fprintln(w.w, text)
		}
	}
}

func (w *wait) because(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = err
}

func (w *wait) stop() {
	w.once.Do(func() { close(w.cancel) })
	<-w.ended
}
