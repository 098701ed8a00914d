package rotate_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/rotate"
)

func TestAKeyIsRotatedWhenItsTimeComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.current()
		defer w.start()()
		time.Sleep(period - time.Minute)
		if len(w.sunk()) != 0 || w.current().ID != first.ID {
			t.Fatal("rotated before its time")
		}
		time.Sleep(2 * time.Minute)
		w.rotated(first)
		second := w.current()
		time.Sleep(period)
		w.rotated(second)
		if len(w.sunk()) != 2 {
			t.Errorf("the sink took %d secrets, want 2", len(w.sunk()))
		}
	})
}

func TestAnOperatorAsksForARotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.current()
		defer w.start()()
		time.Sleep(time.Hour)
		w.change(keyring.RequestKeyRotation)
		time.Sleep(time.Second)
		w.rotated(first)
	})
}

func TestAKeyThatExpiredWhileTheNodeWasOffIsRotated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.current()
		time.Sleep(10 * period)
		w.change(func(k keyring.Key) (keyring.Key, error) { k, _ = keyring.SweepKey(k, time.Now()); return k, nil })
		if w.current().State != keyring.KeyExpired {
			t.Fatal("the key has not expired")
		}
		defer w.start()()
		time.Sleep(time.Second)
		w.rotated(first)
	})
}

// A sink that fails leaves the predecessor as it was, and the successor admits nobody; once it works, the same secret goes there.
func TestASinkThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		metrics := w.metrics
		first := w.current()
		w.setFail("sink", errors.New("disk full"))
		defer w.start()()
		time.Sleep(period + time.Hour)
		if k := w.current(); k.ID != first.ID || k.State != keyring.KeyActive || k.Successor != "" {
			t.Fatalf("the predecessor is %s, successor %q", k.State, k.Successor)
		}
		open, revoked := w.proposals()
		if open != 1 || revoked != 0 || len(w.onDisk()) != 1 {
			t.Fatalf("%d proposals open, %d revoked, %v on disk: want one, which waits", open, revoked, w.onDisk())
		}
		if !strings.Contains(w.log.String(), "disk full") {
			t.Error("the log does not say why")
		}
		if got := w.failing(); len(got) != 1 || got[0].Key != first.ID || got[0].Error != "sink: disk full" || time.Since(got[0].Since).Round(time.Minute) != time.Hour {
			t.Errorf("it says of itself: %+v", got)
		}
		got, err := testutil.GatherAndCount(metrics, "iapmesh_key_rotation_failures_total")
		if err != nil || got != 1 {
			t.Errorf("failures: %d series, %v", got, err)
		}
		if err := testutil.GatherAndCompare(metrics, strings.NewReader(`
# HELP iapmesh_key_rotation_overdue_seconds For how long a key that this node rotates has been due; 0: it is not.
# TYPE iapmesh_key_rotation_overdue_seconds gauge
iapmesh_key_rotation_overdue_seconds{key="edge"} 3600
`), "iapmesh_key_rotation_overdue_seconds"); err != nil {
			t.Error(err)
		}
		if n := strings.Count(w.log.String(), "put off"); n < 40 || n > 90 {
			t.Errorf("%d attempts in an hour: want them to grow rarer, and not to end", n)
		}
		w.setFail("sink", nil)
		time.Sleep(10 * time.Minute)
		w.rotated(first)
		if got := w.failing(); len(got) != 0 {
			t.Errorf("it works, and says %+v", got)
		}
	})
}

// The node may stop, or an answer get lost, between any two steps; the next process goes on with the same secret.
func TestARestartBetweenTheSteps(t *testing.T) {
	for _, at := range []string{"propose", "propose: lost answer", "sink", "sink: lost answer", "complete", "complete: lost answer"} {
		t.Run(at, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				first := w.current()
				w.setFail(at, fault.New(fault.Unavailable, "gone"))
				stop := w.start()
				time.Sleep(period + 10*time.Second)
				stop()
				if at != "complete: lost answer" && len(w.onDisk()) != 1 {
					t.Fatalf("on disk: %v, want the secret", w.onDisk())
				}
				w.setFail(at, nil)
				stop = w.start()
				time.Sleep(10 * time.Second)
				stop()
				defer w.start()() // once more, with nothing to do
				time.Sleep(10 * time.Second)
				w.rotated(first)
				for _, s := range w.sunk() {
					if s != w.sunk()[0] {
						t.Error("the sink took two secrets for one rotation")
					}
				}
				if _, revoked := w.proposals(); revoked != 0 {
					t.Errorf("%d proposals were given up", revoked)
				}
			})
		})
	}
}

func TestAViewThatLagsMakesNoSecondSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.current()
		w.behind = true
		defer w.start()()
		time.Sleep(period + 10*time.Minute)
		if strings.Contains(w.log.String(), "put off") || len(w.onDisk()) != 0 {
			t.Error("it went on with a rotation that is complete")
		}
		w.mu.Lock()
		w.behind = false
		w.show()
		w.mu.Unlock()
		time.Sleep(10 * time.Minute)
		w.rotated(first)
		if len(w.sunk()) != 1 {
			t.Errorf("the sink took %d secrets", len(w.sunk()))
		}
	})
}

// Somebody may have to agree to a key before it is completed: until then the sink is left alone.
func TestACompletionThatMustWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.current()
		w.setFail("complete", fault.New(fault.Conflict, "it waits for a second administrator"))
		defer w.start()()
		time.Sleep(period + time.Hour)
		if w.current().ID != first.ID || len(w.sunk()) != 1 || len(w.onDisk()) != 1 {
			t.Errorf("the sink took %d secrets, on disk: %v", len(w.sunk()), w.onDisk())
		}
		w.setFail("complete", nil)
		time.Sleep(2 * time.Minute)
		w.rotated(first)
		if len(w.sunk()) != 1 {
			t.Errorf("the sink took %d secrets", len(w.sunk()))
		}
	})
}

// What ends a rotation that is under way, and what becomes of its secret.
func TestWhatEndsARotation(t *testing.T) {
	other := keyring.Node{ID: "n-other", State: keyring.NodeActive}
	for name, tc := range map[string]struct {
		change func(k keyring.Key) (keyring.Key, error)
		onDisk int
	}{
		"the key is revoked": {func(k keyring.Key) (keyring.Key, error) {
			after, _, err := keyring.RevokeKey(k, nil, keyring.RevokeRequest{Cascade: keyring.CascadeKeep, Now: time.Now()})
			return after, err
		}, 0},
		"its schedule is taken away": {func(k keyring.Key) (keyring.Key, error) { return keyring.ScheduleKey(k, keyring.Schedule{}, nil) }, 0},
		"another node is named": {func(k keyring.Key) (keyring.Key, error) {
			return keyring.ScheduleKey(k, keyring.Schedule{Every: period, Rotator: other.ID}, &other)
		}, 0},
		"the key is suspended": {func(k keyring.Key) (keyring.Key, error) { return keyring.SuspendKey(k, "") }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				first := w.current()
				w.setFail("complete", fault.New(fault.Unavailable, "no leader"))
				defer w.start()()
				time.Sleep(period + time.Second)
				w.change(tc.change)
				w.setFail("complete", nil)
				time.Sleep(time.Hour)
				if k := w.current(); k.ID != first.ID || k.Successor != "" {
					t.Errorf("it was rotated all the same: %+v", k)
				}
				if got := w.onDisk(); len(got) != tc.onDisk {
					t.Errorf("on disk: %v, want %d", got, tc.onDisk)
				}
			})
		})
	}
}

func TestASecretThatIsLostWithTheDiskIsMadeAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.current()
		w.setFail("sink", errors.New("away"))
		stop := w.start()
		time.Sleep(period + time.Second)
		stop()
		for _, name := range w.onDisk() {
			must(t, os.WriteFile(filepath.Join(w.dir, "rotate", name), []byte("damaged"), 0o600))
		}
		w.setFail("sink", nil)
		defer w.start()()
		time.Sleep(time.Second)
		w.rotated(first)
		if open, revoked := w.proposals(); open != 0 || revoked != 1 {
			t.Errorf("%d proposals open, %d revoked: want the lost one revoked", open, revoked)
		}
	})
}

func TestAJobThatIsConfiguredNoMoreLeavesNoSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.setFail("sink", errors.New("away"))
		stop := w.start()
		time.Sleep(period + time.Second)
		stop()
		if len(w.onDisk()) != 1 {
			t.Fatal("no secret to lose")
		}
		r, err := rotate.New(rotate.Config{
			Node: w.node.ID, Leader: w, Sealer: w.sealer, Dir: filepath.Join(w.dir, "rotate"), Logger: slog.New(slog.DiscardHandler),
			Jobs: []rotate.Job{{Key: "another", Sink: w}}, Now: time.Now,
			Keyring: func() *keyring.Snapshot { return nil }, Changed: func() <-chan struct{} { return nil },
		})
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		must(t, r.Run(ctx))
		if left := w.onDisk(); len(left) != 0 {
			t.Errorf("left on disk: %v", left)
		}
	})
}
