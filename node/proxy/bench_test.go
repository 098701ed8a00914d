package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// BenchmarkProxied is the budget of DESIGN.md: the CPU time that iapmesh adds to a plain proxied request (verify, decide, assert,
// record twice, durable before the answer). Cleartext HTTP/1.1, 64-byte body, 32 connections; the application asked directly, plain
// and ours take turns, and the medians of ten rounds are compared. Client and application are in the process and cost all the same:
// a plain proxy alone takes plain less direct, and that is what added/proxy compares with. The machine's load stretches them alike.
func BenchmarkProxied(b *testing.B) {
	const connections, rounds = 32, 10
	body := strings.Repeat("x", 64)
	w := newWorld(b, options{plain: true, app: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "64")
		_, _ = io.WriteString(w, body)
	})})
	cookie := w.ana()
	target := &url.URL{Scheme: "http", Host: w.app.Listener.Addr().String()}
	plain := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target); r.SetXForwarded() },
		Transport: &http.Transport{MaxIdleConnsPerHost: 512, DisableCompression: true, IdleConnTimeout: 90 * time.Second},
	})
	defer plain.Close()

	head := "Host: billing.example.com\r\nUser-Agent: bench\r\nAccept: */*\r\nAccept-Language: en\r\nCookie: " + cookie.String() + "\r\n\r\n"
	sides := map[string]*side{
		"direct": dialSide(b, target.Host, connections, head),
		"plain":  dialSide(b, plain.Listener.Addr().String(), connections, head),
		"ours":   dialSide(b, w.server.Listener.Addr().String(), connections, head),
	}
	perRound := max(b.N, 2000)
	spent := map[string][]float64{}
	for name, s := range sides { // warm
		s.round(b, name, perRound)
	}
	b.ResetTimer()
	for range rounds {
		for _, name := range []string{"direct", "plain", "ours"} {
			before := cpu(b)
			sides[name].round(b, name, perRound)
			spent[name] = append(spent[name], float64((cpu(b)-before).Nanoseconds())/1000/float64(perRound))
		}
	}
	b.StopTimer()
	median := func(name string) float64 {
		slices.Sort(spent[name])
		return (spent[name][rounds/2-1] + spent[name][rounds/2]) / 2
	}
	b.ReportMetric(median("direct"), "direct-cpu-µs")
	b.ReportMetric(median("plain"), "plain-cpu-µs")
	b.ReportMetric(median("ours"), "ours-cpu-µs")
	b.ReportMetric(median("ours")-median("plain"), "added-cpu-µs")
	b.ReportMetric((median("ours")-median("plain"))/(median("plain")-median("direct")), "added/proxy")
}

type side struct {
	conns   []net.Conn
	request []byte
}

func dialSide(b *testing.B, address string, n int, head string) *side {
	b.Helper()
	s := &side{request: []byte("GET /x HTTP/1.1\r\n" + head)}
	for range n {
		c, err := (&net.Dialer{}).DialContext(b.Context(), "tcp", address)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { c.Close() })
		s.conns = append(s.conns, c)
	}
	return s
}

func (s *side) round(b *testing.B, name string, n int) {
	var wg sync.WaitGroup
	errs := make(chan error, len(s.conns))
	for i, c := range s.conns {
		share := n / len(s.conns)
		if i < n%len(s.conns) {
			share++
		}
		wg.Go(func() { errs <- s.ask(c, share) })
	}
	wg.Wait()
	for range s.conns {
		if err := <-errs; err != nil {
			b.Fatalf("%s: %v", name, err)
		}
	}
}

// ask costs as little as it can: it looks at the status and finds the end of the head.
func (s *side) ask(c net.Conn, n int) error {
	r := bufio.NewReader(c)
	for range n {
		if _, err := c.Write(s.request); err != nil {
			return err
		}
		for first := true; ; first = false {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return err
			}
			if first && string(line) != "HTTP/1.1 200 OK\r\n" {
				return fmt.Errorf("answer %q", line)
			}
			if len(line) == 2 {
				break
			}
		}
		if _, err := r.Discard(64); err != nil {
			return err
		}
	}
	return nil
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
