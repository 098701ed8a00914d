package proxy

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"sync/atomic"
)

// writer counts what is answered, and holds interim answers back until the decision is on disk. Final ones come by
// exchange.answered or exchange.refuse, which have waited.
type writer struct {
	http.ResponseWriter
	x        *exchange
	status   int
	bytes    atomic.Int64 // a hijacked connection is written by another goroutine
	received atomic.Int64
	began    atomic.Bool
	expect   int64 // bytes of the answer, if its length is known
}

func (w *writer) WriteHeader(status int) {
	if status < http.StatusOK && status != http.StatusSwitchingProtocols {
		if w.x.durable() == nil {
			stripAnswer(w.Header())
			w.ResponseWriter.WriteHeader(status)
		}
		return
	}
	if w.status == 0 {
		w.status = status
		w.began.Store(true)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
		w.began.Store(true)
	}
	n, err := w.ResponseWriter.Write(b)
	if total := w.bytes.Add(int64(n)); err == nil && total < w.expect {
		err = http.NewResponseController(w.ResponseWriter).Flush() // more will come, nobody knows when
	}
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack hands the connection over, for WebSockets. It is closed when the exchange's context ends: a client that reads nothing
// would otherwise keep it open.
func (w *writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.status = http.StatusSwitchingProtocols
	w.began.Store(true)
	h := &hijacked{Conn: c, w: w}
	h.stop = context.AfterFunc(w.x.ctx, func() { c.Close() })
	return h, rw, nil
}

// hijacked counts what passes through a connection that is no longer HTTP.
type hijacked struct {
	net.Conn
	w    *writer
	stop func() bool
}

func (h *hijacked) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	h.w.received.Add(int64(n))
	return n, err
}

func (h *hijacked) Write(b []byte) (int, error) {
	n, err := h.Conn.Write(b)
	h.w.bytes.Add(int64(n))
	return n, err
}

func (h *hijacked) Close() error {
	h.stop()
	return h.Conn.Close()
}

// CloseWrite ends our half, where the connection can: the other half goes on.
func (h *hijacked) CloseWrite() error {
	if c, ok := h.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return h.Conn.Close()
}
