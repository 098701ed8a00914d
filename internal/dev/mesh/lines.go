package mesh

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"sync"
)

const maxLine = 16 << 10

// lines writes whole lines, each behind a prefix, so that those of several processes do not mix.
type lines struct {
	out    io.Writer
	prefix string

	mu      sync.Mutex // guards pending
	pending []byte
}

// Write keeps what follows the last line break until its own comes; a line that never ends is cut.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending = append(l.pending, p...)
	var out bytes.Buffer
	for {
		line, rest, found := bytes.Cut(l.pending, []byte{'\n'})
		if !found && len(l.pending) < maxLine {
			break
		}
		fmt.Fprintf(&out, "%s%s\n", l.prefix, line)
		l.pending = rest
	}
	l.pending = bytes.Clone(l.pending)
	if out.Len() > 0 {
		if _, err := l.out.Write(out.Bytes()); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// label is the prefix of a region's lines. Red is left to what goes wrong.
func label(name string, color bool) string {
	if !color {
		return fmt.Sprintf("%-8s │ ", name)
	}
	code := 90
	if i := slices.Index(regions[:], name); i >= 0 {
		code = [...]int{36, 33, 35}[i]
	}
	return fmt.Sprintf("\x1b[%dm%-8s │\x1b[0m ", code, name)
}
