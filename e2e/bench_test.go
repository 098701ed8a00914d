package e2e_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// BenchmarkIdleMemory reports what the nodes of a development mesh hold resident after half a minute in which nobody asked for
// anything, in MB of 2^20 bytes: the mean and the largest. Each is control and proxy, one is the aggregator too. Budget: 60 MB.
func BenchmarkIdleMemory(b *testing.B) {
	const idle = 30 * time.Second
	needsProc(b)
	m := startMesh(b)
	<-time.After(idle)
	var sum, largest, anonymous float64
	for b.Loop() {
		sum, largest, anonymous = 0, 0, 0
		for _, r := range m.Regions {
			resident := processStatus(b, r.PID, "VmRSS") / 1024
			sum, largest = sum+resident, max(largest, resident)
			anonymous = max(anonymous, processStatus(b, r.PID, "RssAnon")/1024) // the rest is the binary, which several nodes share
		}
	}
	b.ReportMetric(sum/float64(len(m.Regions)), "mean-MB")
	b.ReportMetric(largest, "max-MB")
	b.ReportMetric(anonymous, "max-anon-MB")
}

// BenchmarkNodeCPU reports the CPU time that a whole node, a process of its own, takes per authorized request: HTTPS with
// HTTP/1.1 on 32 connections that stay, a session cookie, a 64-byte answer, the record on disk before it. Where haproxy is
// installed, it takes turns with the node: TLS and forwarding alone, with one thread as many as the node may use.
func BenchmarkNodeCPU(b *testing.B) {
	const perRound, rounds = 4000, 6
	needsProc(b)
	m := startMesh(b)
	body := strings.Repeat("x", 64)
	application := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "64")
		_, _ = w.Write([]byte(body))
	}))
	b.Cleanup(application.Close)
	file := filepath.Join(b.TempDir(), "bench.yaml")
	route := fmt.Sprintf("kind: Route\nname: bench\nhosts: [%s]\npath: /bench\nidentity_providers: [dev]\nupstreams: [{url: %s}]\nallow: [{authenticated: true}]\n", m.Hosts.Echo, application.URL)
	if err := os.WriteFile(file, []byte(route), 0o600); err != nil {
		b.Fatal(err)
	}
	m.run("apply", "-f", file)
	in := m.In(m.Regions[len(m.Regions)-1].Name) // the first is the aggregator too, which stores what all others ship
	ana := m.person("ana")
	ana.signsIn(in, m.Hosts.Echo)
	eventually(b, loadWithin, "the new route serves", func() error {
		a, err := ana.tries(in, m.Hosts.Echo, "/bench/x")
		if err == nil && a.Status != http.StatusOK {
			err = fmt.Errorf("%s: status %d", a.URL, a.Status)
		}
		return err
	})
	page, err := url.Parse(in.url(m.Hosts.Echo, "/bench/x"))
	if err != nil {
		b.Fatal(err)
	}
	var cookies []string
	for _, c := range ana.api.Jar.Cookies(page) {
		cookies = append(cookies, c.Name+"="+c.Value)
	}
	request := "GET /bench/x HTTP/1.1\r\nHost: " + page.Host + "\r\nUser-Agent: bench\r\nAccept: */*\r\nCookie: " + strings.Join(cookies, "; ") + "\r\n\r\n"

	sides := []*loaded{{name: "node", pid: in.PID, conns: m.connections(m.Hosts.Echo, in.Proxy)}}
	if pid, address, ok := m.startHAProxy(application.Listener.Addr().String()); ok {
		sides = append(sides, &loaded{name: "haproxy", pid: pid, conns: m.connections(m.Hosts.Echo, address)})
	}
	for _, s := range sides {
		s.round(b, request, perRound) // warm
	}
	for b.Loop() {
		for range rounds {
			for _, s := range sides {
				before := processCPU(b, s.pid)
				start := time.Now()
				s.round(b, request, perRound)
				s.rate = append(s.rate, perRound/time.Since(start).Seconds())
				s.spent = append(s.spent, float64((processCPU(b, s.pid)-before).Microseconds())/perRound)
			}
		}
	}
	for _, s := range sides {
		slices.Sort(s.spent)
		slices.Sort(s.rate)
		b.ReportMetric(s.spent[len(s.spent)/2], s.name+"-cpu-µs/request")
		b.ReportMetric(s.rate[len(s.rate)/2], s.name+"-requests/s")
	}
}

// loaded is a process under load.
type loaded struct {
	name  string
	pid   int
	conns []net.Conn
	spent []float64 // µs of CPU per request
	rate  []float64
}

func (s *loaded) round(b *testing.B, request string, n int) {
	b.Helper()
	var wg sync.WaitGroup
	for _, c := range s.conns {
		wg.Go(func() {
			r := bufio.NewReader(c)
			for range n / len(s.conns) {
				if _, err := c.Write([]byte(request)); err != nil {
					b.Errorf("%s: %v", s.name, err)
					return
				}
				if err := readAnswer(r); err != nil {
					b.Errorf("%s: %v", s.name, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
}

// readAnswer costs as little as it can.
func readAnswer(r *bufio.Reader) error {
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
	_, err := r.Discard(64)
	return err
}

func (m *devMesh) connections(host, address string) []net.Conn {
	m.t.Helper()
	var conns []net.Conn
	for range 32 {
		d := tls.Dialer{Config: &tls.Config{RootCAs: m.roots, ServerName: host, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS13}}
		c, err := d.DialContext(m.t.Context(), "tcp", address)
		if err != nil {
			m.t.Fatal(err)
		}
		m.t.Cleanup(func() { c.Close() })
		conns = append(conns, c)
	}
	return conns
}

// startHAProxy starts one that forwards to the application, with the mesh's own certificate.
func (m *devMesh) startHAProxy(application string) (pid int, address string, ok bool) {
	path, err := exec.LookPath("haproxy")
	if err != nil {
		m.t.Log("haproxy is not installed: nothing to compare with")
		return 0, "", false
	}
	certificate, err := os.ReadFile(filepath.Join(m.dir, "tls.pem"))
	if err != nil {
		m.t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(m.dir, "tls-key.pem"))
	if err != nil {
		m.t.Fatal(err)
	}
	dir := m.t.TempDir()
	pem := filepath.Join(dir, "both.pem")
	if err := os.WriteFile(pem, slices.Concat(certificate, []byte("\n"), key), 0o600); err != nil {
		m.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.t.Fatal(err)
	}
	address = l.Addr().String()
	l.Close()
	config := fmt.Sprintf("global\n  nbthread 2\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  http-reuse always\nfrontend f\n  bind %s ssl crt %s alpn http/1.1\n  default_backend b\nbackend b\n  server s %s\n", address, pem, application)
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		m.t.Fatal(err)
	}
	out := &output{}
	cmd := exec.Command(path, "-db", "-f", file)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // it says that it was told to end
	})
	eventually(m.t, loadWithin, "haproxy listens", func() error {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return c.Close()
	})
	return cmd.Process.Pid, address, true
}

// needsProc skips where the system does not tell what a process takes as Linux does.
func needsProc(b *testing.B) {
	b.Helper()
	if _, err := os.Stat("/proc/self/status"); err != nil {
		b.Skip("this machine lacks /proc")
	}
}

// processStatus reads a field in kB of /proc/PID/status.
func processStatus(b *testing.B, pid int, field string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatalf("process %d has no %s", pid, field)
	return 0
}

// processCPU is what a process has used, of user and system time, in steps of 10 ms.
func processCPU(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name may hold spaces
	fields := strings.Fields(rest)
	var ticks int
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
