package app

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/time/rate"

	"github.com/iapmesh/iapmesh/internal/dev/page"
)

const maxMessage = 1 << 20

// webSocket returns each message until the other side closes or the connection is cut.
func (e *echo) webSocket(w http.ResponseWriter, r *http.Request) {
	// Behind a proxy that rewrites Host, the origin that the page has is not the host that we see.
	origins := append([]string{"*.localhost", "*.localhost:*", "localhost:*", "127.0.0.1:*"}, e.config.Origins...)
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{OriginPatterns: origins})
	if err != nil {
		e.config.Logger.InfoContext(r.Context(), "WebSocket refused", "error", err)
		return // Accept has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(maxMessage)
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context())) // a hijacked request's context says nothing of its connection
	defer cancel()
	for {
		kind, message, err := conn.Read(ctx)
		if err == nil {
			err = conn.Write(ctx, kind, message)
		}
		if err != nil {
			if websocket.CloseStatus(err) == -1 && !errors.Is(err, io.EOF) {
				e.config.Logger.InfoContext(ctx, "WebSocket cut", "error", err)
			}
			return
		}
	}
}

// Tick is the data of one server-sent event.
type Tick struct {
	N    int       `json:"n"` // from 1
	Time time.Time `json:"time"`
}

// events sends a tick at once and then one per interval (WHATWG HTML, server-sent events).
func (e *echo) events(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	interval, err := duration(query, "interval", time.Second, maxDelay)
	count, countErr := number(query, "count", 0, 1<<30)
	if err = errors.Join(err, countErr); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	out := http.NewResponseController(w)
	ticker := time.NewTicker(max(interval, time.Millisecond))
	defer ticker.Stop()
	for n := 1; ; n++ {
		data, err := json.Marshal(Tick{N: n, Time: e.config.Now()})
		if err != nil {
			return // the clock is past the year 9999
		}
		if _, err := fmt.Fprintf(w, "id: %d\nevent: tick\ndata: %s\n\n", n, data); err != nil {
			return
		}
		if err := out.Flush(); err != nil || n == count {
			return
		}
		select {
		case <-ticker.C:
		case <-r.Context().Done():
			return
		}
	}
}

// Upload is a line of /upload's answer: progress, then the end with its digest.
type Upload struct {
	Bytes  int64  `json:"bytes"`
	Done   bool   `json:"done"`
	SHA256 string `json:"sha256,omitempty"`
}

// upload reads the body piece by piece, answering while it reads if progress is asked for (newline-delimited JSON).
func (e *echo) upload(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	progress, err := number(query, "progress", 0, 1<<30)
	speed, speedErr := number(query, "rate", 0, 1<<30)
	if err = errors.Join(err, speedErr); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	out := http.NewResponseController(w)
	if progress > 0 {
		if err := out.EnableFullDuplex(); err != nil && !errors.Is(err, http.ErrNotSupported) {
			http.Error(w, "answer while reading: "+err.Error(), http.StatusInternalServerError)
			return
		}
	}
	piece := 32 << 10
	limit := rate.NewLimiter(rate.Inf, piece)
	if speed > 0 {
		piece = max(1, min(piece, speed/10))
		limit = rate.NewLimiter(rate.Limit(speed), piece)
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	lines, digest, buffer := json.NewEncoder(w), sha256.New(), make([]byte, piece)
	var total, told int64
	for {
		n, err := r.Body.Read(buffer)
		digest.Write(buffer[:n])
		total += int64(n)
		if limit.WaitN(r.Context(), n) != nil {
			return
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			e.config.Logger.InfoContext(r.Context(), "upload cut", "bytes", total, "error", err)
			panic(http.ErrAbortHandler) // an answer that has begun can only be cut
		}
		if progress > 0 && total-told >= int64(progress) {
			told = total
			if lines.Encode(Upload{Bytes: total}) != nil || out.Flush() != nil {
				return
			}
		}
	}
	_ = lines.Encode(Upload{Bytes: total, Done: true, SHA256: hex.EncodeToString(digest.Sum(nil))}) // the client has gone
}

func (e *echo) uploadForm(w http.ResponseWriter, r *http.Request) {
	if !page.Wanted(r) {
		e.echo(w, r)
		return
	}
	uploadTemplate.Write(w, http.StatusOK, e.describe(r), "'self'")
}
