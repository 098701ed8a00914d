package spool_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/spool"
	"github.com/iapmesh/iapmesh/internal/fault"
)

const childDir = "IAPMESH_TEST_SPOOL"

// TestMain turns the test binary into a process that appends until it is killed, if its parent asks so.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		appendForever(dir)
	}
	os.Exit(m.Run())
}

// appendForever appends from several goroutines and prints the sequence of each record that was reported durable.
func appendForever(dir string) {
	s, err := spool.Open(config(dir))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go s.Run(neverDone{})
	var out sync.Mutex
	var wg sync.WaitGroup
	fmt.Println(s.RunName())
	for p := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				ticket, err := s.Append(decision(p*1_000_000 + i))
				for ; fault.Is(err, fault.Exhausted); ticket, err = s.Append(decision(p*1_000_000 + i)) {
					<-time.After(5 * time.Millisecond) // the next segment is not ready yet
				}
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				if err := ticket.Wait(neverDone{}); err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				out.Lock()
				fmt.Println(ticket.ID().Seq, p*1_000_000+i)
				out.Unlock()
			}
		})
	}
	wg.Wait()
	os.Exit(1)
}

func TestNothingDurableIsLostByKill9(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	acknowledged := map[string]map[uint64]string{} // run → seq → path
	for life := range 3 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childDir+"="+dir)
		child.Stderr = os.Stderr
		stdout, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stdout)
		lines.Scan()
		run := lines.Text()
		acknowledged[run] = map[uint64]string{}
		killed := false
		for lines.Scan() {
			seq, number, whole := strings.Cut(lines.Text(), " ")
			n, err := strconv.ParseUint(seq, 10, 64)
			if err != nil || !whole {
				continue
			}
			acknowledged[run][n] = "/invoice/" + number
			if len(acknowledged[run]) == 1000*(life+1) {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				killed = true
			}
		}
		if err := child.Wait(); !killed {
			t.Fatalf("life %d ended by itself: %v", life, err)
		}
	}
	s, _ := running(t, config(dir))
	trails := read(t, s, nil, s.RunName(), 1)
	if len(acknowledged) != 3 || len(trails) != 4 {
		t.Fatalf("%d runs acknowledged, %d found", len(acknowledged), len(trails))
	}
	for run, seqs := range acknowledged {
		tr := trails[run]
		if tr == nil {
			t.Fatalf("run %s is lost", run)
		}
		if tr.proved != uint64(len(tr.records)) {
			t.Errorf("run %s: %d records, %d proved", run, len(tr.records), tr.proved)
		}
		for seq, path := range seqs {
			if seq >= uint64(len(tr.records)) || tr.records[seq].Path != path {
				t.Fatalf("run %s: record %d was reported durable and is not there", run, seq)
			}
		}
	}
	if first := trails[s.RunName()].records[0]; first.Kind != audit.KindRun || acknowledged[first.Detail["previous_run"]] == nil {
		t.Errorf("first record of the last run: %+v", first)
	}
}
