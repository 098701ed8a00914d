package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/iapmesh/iapmesh/cluster/raftstore"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// op is one call on one key: a write of value, or a read.
type op struct {
	key, value string
	write      bool
}

// registers is what the keys must look like to all clients together.
var registers = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, o := range history {
			key := o.Input.(op).key
			byKey[key] = append(byKey[key], o)
		}
		var parts [][]porcupine.Operation
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		in := input.(op)
		if in.write {
			return true, in.value
		}
		return output.(string) == state.(string), state
	},
}

// recorder collects what clients saw, for porcupine.
type recorder struct {
	mu      sync.Mutex
	start   time.Time
	history []porcupine.Operation
	unknown int
}

func (r *recorder) now() int64 { return int64(time.Since(r.start)) }

func (r *recorder) add(client int, in op, call int64, out string, ret int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ret == math.MaxInt64 {
		r.unknown++
	}
	r.history = append(r.history, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: ret})
}

// grow waits for more operations.
func (r *recorder) grow(t *testing.T, by int) {
	t.Helper()
	count := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.history)
	}
	before := count()
	eventually(t, "more operations", func() bool { return count() >= before+by })
}

// Clients write and read, each at a member of its own choice, while leaders are cut off and deposed. Reads are made the way
// that the contract calls linearizable: Sync at the leader, Wait and Get at any member.
func TestReadsAreLinearizableUnderLeaderChanges(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 3, brisk)
	ctx, stop := context.WithCancel(t.Context())
	rec := &recorder{start: time.Now()}
	var wg sync.WaitGroup
	for client := range 6 {
		wg.Go(func() {
			pace := time.NewTicker(2 * time.Millisecond) // most calls meet a member that does not lead
			defer pace.Stop()
			for i := 0; ctx.Err() == nil; i++ {
				at := g.members[rand.IntN(3)]
				key := fmt.Sprint("k/", rand.IntN(3))
				if rand.IntN(2) == 0 {
					rec.write(ctx, t, client, at, op{key: key, value: fmt.Sprint(client, ".", i), write: true})
				} else {
					rec.read(ctx, t, client, at, g.members[rand.IntN(3)], op{key: key})
				}
				<-pace.C
			}
		})
	}
	changes := 0
	for range 3 {
		leader := g.leader()
		g.net.Cut(leader.addr)
		g.leader(leader)
		g.net.Heal(leader.addr)
		changes++
		rec.grow(t, 200)
		if err := g.leader().TransferLeadership(ctx); err == nil {
			changes++
		}
	}
	rec.grow(t, 200)
	stop()
	wg.Wait()
	result, info := porcupine.CheckOperationsVerbose(registers, rec.history, 10*time.Minute)
	if result != porcupine.Ok {
		t.Errorf("history of %d operations is %s", len(rec.history), result)
		if err := porcupine.VisualizePath(registers, info, t.ArtifactDir()+"/history.html"); err != nil {
			t.Log(err)
		}
	}
	t.Logf("%d operations, %d in doubt, %d changes of leader", len(rec.history), rec.unknown, changes)
}

func (r *recorder) write(ctx context.Context, t *testing.T, client int, at *member, in op) {
	call := r.now()
	_, err := at.Commit(ctx, put(in.key, in.value))
	var elsewhere *raftstore.NotLeaderError
	switch {
	case err == nil:
		r.add(client, in, call, "", r.now())
	case errors.Is(err, store.ErrInDoubt):
		r.add(client, in, call, "", math.MaxInt64) // it may take effect at any time from now on
	case !errors.As(err, &elsewhere) && ctx.Err() == nil:
		t.Errorf("commit: %v", err)
	}
}

func (r *recorder) read(ctx context.Context, t *testing.T, client int, leader, at *member, in op) {
	call := r.now()
	rev, err := leader.Sync(ctx)
	if err != nil {
		return // not the leader, most of the time
	}
	short, cancel := context.WithTimeout(ctx, time.Second) // at may be the one that is cut off
	defer cancel()
	if err := at.Wait(short, rev); err != nil {
		return
	}
	e, err := at.Get(ctx, in.key)
	if err != nil && !fault.Is(err, fault.NotFound) {
		if ctx.Err() == nil {
			t.Errorf("get: %v", err)
		}
		return
	}
	r.add(client, in, call, string(e.Value), r.now())
}
