package state_test

import (
	"encoding/json"
	"path/filepath"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/node/state"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// clock is set by hand.
type clock struct{ time.Time }

func (c *clock) now() time.Time { return c.Time }

func at(index uint64) revision.Revision { return revision.Revision{Epoch: 1, Index: index} }

func wantAge(t *testing.T, f *state.Freshness, what string, age time.Duration, known bool) {
	t.Helper()
	if got, ok := f.Age(); got != age || ok != known {
		t.Errorf("%s: age %v, known %v; want %v, %v", what, got, ok, age, known)
	}
}

func TestAgeCountsFromTheQuestion(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), &clock{noon}
	f := state.NewFreshness(w.source, c.now)
	wantAge(t, f, "nothing asked", 0, false)
	f.Answered(noon.Add(-time.Second), revision.Revision{}, 0)
	wantAge(t, f, "an answer, but no view", 0, false)
	w.send(true, state.PutMesh(mesh)) // revision 1
	wantAge(t, f, "the view came", time.Second, true)
	f.Answered(noon.Add(-2*time.Second), at(1), 0)
	wantAge(t, f, "an older answer", time.Second, true)
	f.Answered(noon, at(1), 300*time.Millisecond)
	wantAge(t, f, "the answerer's own age on top", 300*time.Millisecond, true)
	c.Time = noon.Add(5 * time.Second)
	wantAge(t, f, "time passes", 5300*time.Millisecond, true)
	f.Answered(c.Time, at(2), 0)
	wantAge(t, f, "an answer that the view has yet to reach", 5300*time.Millisecond, true)
	w.send(false, state.PutMesh(mesh))
	wantAge(t, f, "the view reached it", 0, true)
	c.Time = noon
	wantAge(t, f, "the clock went back", 0, false)
}

// A view that lags by more answers than are remembered still learns how old it is.
func TestAViewThatAlwaysLagsKnowsItsAge(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), &clock{noon}
	f := state.NewFreshness(w.source, c.now)
	w.send(true, state.PutMesh(mesh))
	for i := range uint64(200) {
		c.Time = noon.Add(time.Duration(i) * time.Second)
		f.Answered(c.Time, at(i+2), 0)
	}
	wantAge(t, f, "nothing met yet", 0, false)
	w.send(false, state.PutMesh(mesh)) // revision 2: the answer of noon
	wantAge(t, f, "the first answer met", 199*time.Second, true)
}

func TestAgeAcrossARestart(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		back  time.Duration // from when it was saved
		view  uint64        // what the disk still held
		age   time.Duration
		known bool
	}{
		"at once":                    {0, 2, time.Minute, true},
		"a week off":                 {7 * 24 * time.Hour, 2, 7*24*time.Hour + time.Minute, true},
		"a newer view":               {time.Second, 3, time.Minute + time.Second, true},
		"the clock went back":        {-time.Second, 2, 0, false},
		"the disk lost the last one": {0, 1, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, c := newWorld(t), &clock{noon.Add(time.Minute)}
			before := state.NewFreshness(w.source, c.now)
			if before.Save() != nil {
				t.Error("an age that is not known was saved")
			}
			w.send(true, state.PutMesh(mesh))
			w.send(false, state.PutMesh(mesh))
			before.Answered(noon, at(2), 0)
			saved := before.Save()

			w2, c2 := newWorld(t), &clock{c.Add(tc.back)}
			after := state.NewFreshness(w2.source, c2.now)
			if err := after.Restore(saved); err != nil {
				t.Fatal(err)
			}
			wantAge(t, after, "before the view is loaded", 0, false)
			for range tc.view {
				w2.send(true, state.PutMesh(mesh))
			}
			wantAge(t, after, name, tc.age, tc.known)
		})
	}
}

func TestASavedAgeThatIsWrongCountsForNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.send(true, state.PutMesh(mesh))
	f := state.NewFreshness(w.source, (&clock{noon}).now)
	if err := f.Restore([]byte("{")); err == nil {
		t.Error("half a file")
	}
	future, err := json.Marshal(map[string]any{"as_of": noon.Add(time.Hour), "now": noon, "revision": at(1)})
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range [][]byte{future, []byte("{}"), []byte(`{"as_of":"2026-11-23T11:59:00Z","now":"2026-11-23T11:59:00Z"}`)} {
		if err := f.Restore(data); err != nil {
			t.Error(err)
		}
		wantAge(t, f, string(data), 0, false)
	}
	if err := f.RestoreFile(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Errorf("no file: %v", err)
	}
}
