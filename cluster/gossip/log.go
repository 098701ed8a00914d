package gossip

import (
	"bytes"
	"context"
	"log"
	"log/slog"

	"golang.org/x/time/rate"
)

// newLogger turns memberlist's log lines ("[WARN] memberlist: …") into records. A stranger can provoke them, so that they are
// bounded: 50 at once, then 5 a second.
func newLogger(to *slog.Logger, pool string) *log.Logger {
	return log.New(&logWriter{to: to, pool: pool, limit: rate.NewLimiter(5, 50)}, "", 0)
}

type logWriter struct {
	to    *slog.Logger
	pool  string
	limit *rate.Limiter
}

func (w *logWriter) Write(line []byte) (int, error) {
	level, text := slog.LevelWarn, bytes.TrimSpace(line)
	for _, l := range []struct {
		mark  string
		level slog.Level
	}{
		{"[DEBUG] ", slog.LevelDebug},
		{"[INFO] ", slog.LevelInfo},
		{"[WARN] ", slog.LevelWarn},
		{"[ERR] ", slog.LevelWarn}, // a peer's fault as often as not, and nothing that stops here
	} {
		if rest, ok := bytes.CutPrefix(text, []byte(l.mark)); ok {
			level, text = l.level, rest
			break
		}
	}
	if w.to.Enabled(context.Background(), level) && w.limit.Allow() {
		text = bytes.TrimPrefix(text, []byte("memberlist: "))
		w.to.Log(context.Background(), level, "memberlist", "pool", w.pool, "detail", string(text[:min(len(text), 500)]))
	}
	return len(line), nil
}
