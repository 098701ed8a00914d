package collect_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/collect"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

const run = audit.Run(0x0192000000000001)

// history is the trail of a node that says what it likes.
type history struct {
	node   string
	run    audit.Run
	tree   *audit.Tree
	frames []byte
}

func newHistory(node string, bodies ...string) *history {
	h := &history{node: node, run: run, tree: audit.NewTree()}
	for _, b := range bodies {
		h.frames = audit.AppendFrame(h.frames, audit.Frame{Run: h.run, Seq: h.tree.Size(), Body: []byte(b)})
		h.tree.Append(audit.LeafHash([]byte(b)))
	}
	return h
}

func (h *history) framesMessage() *iapmeshv1.ShipRequest {
	return &iapmeshv1.ShipRequest{Message: &iapmeshv1.ShipRequest_Frames{Frames: &iapmeshv1.ShipFrames{Run: h.run.String(), Frames: h.frames}}}
}

func (h *history) note(t testing.TB, by string) *iapmeshv1.ShipRequest {
	t.Helper()
	c := audit.Checkpoint{Mesh: "m", Node: h.node, Run: h.run, Size: h.tree.Size(), Root: h.tree.Root(), Time: time.Unix(1_800_000_000, 0)}
	signed, err := c.Sign(audit.SignWith(key(by)))
	if err != nil {
		t.Fatal(err)
	}
	return &iapmeshv1.ShipRequest{Message: &iapmeshv1.ShipRequest_Checkpoint{Checkpoint: &iapmeshv1.ShipCheckpoint{Run: h.run.String(), Note: signed}}}
}

// conversation is a Ship stream without a network: the node's messages in, the aggregator's out.
type conversation struct {
	grpc.ServerStream
	ctx context.Context
	in  []*iapmeshv1.ShipRequest
	out []*iapmeshv1.ShipResponse

	before func(left int) // nil, or called before each message in, with how many there are left
}

func (c *conversation) Context() context.Context { return c.ctx }

func (c *conversation) Recv() (*iapmeshv1.ShipRequest, error) {
	if len(c.in) == 0 {
		return nil, context.Canceled
	}
	if c.before != nil {
		c.before(len(c.in))
	}
	m := c.in[0]
	c.in = c.in[1:]
	return m, nil
}

func (c *conversation) Send(m *iapmeshv1.ShipResponse) error {
	c.out = append(c.out, m)
	return nil
}

// say has a node send messages after its hello, and returns the answers after the welcome.
func say(a *collect.Aggregator, node string, in ...*iapmeshv1.ShipRequest) (*iapmeshv1.ShipWelcome, []*iapmeshv1.ShipResponse, error) {
	hello := &iapmeshv1.ShipRequest{Message: &iapmeshv1.ShipRequest_Hello{Hello: &iapmeshv1.ShipHello{Runs: []string{run.String()}}}}
	c := &conversation{ctx: metadata.NewIncomingContext(context.Background(), metadata.Pairs("node", node)), in: slices.Concat([]*iapmeshv1.ShipRequest{hello}, in)}
	err := fault.FromStatus(a.Ship(c))
	if len(c.out) == 0 {
		return nil, nil, err
	}
	return c.out[0].GetWelcome(), c.out[1:], err
}

// Of a node that was put out only so much is taken: in bytes, in runs, and in what no checkpoint proves.
func TestTheAggregatorTakesLittleOfANodeThatWasPutOut(t *testing.T) {
	t.Parallel()
	trusted := false
	open := func() *collect.Aggregator {
		a, err := collect.Open(collect.Config{
			Dir: t.TempDir(), Mesh: "m", Node: "agg", Signer: audit.SignWith(key("agg")), NodeKey: public, Trusted: func(string) bool { return trusted },
			Peer: func(ctx context.Context) (string, error) { return "n1", nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.Close() })
		return a
	}
	a := open()
	h := newHistory("n1", `{"kind":"run"}`, `{"kind":"decision"}`)
	if _, out, err := say(a, "n1", h.framesMessage(), h.note(t, "n1")); fault.Is(err, fault.Exhausted) || len(out) != 1 || out[0].GetAck().GetNextSeq() != 2 {
		t.Fatalf("its remainder: %v, %v", out, err)
	}
	begin := func(n int) (err error) { // so many runs, of no bytes at all
		for i := 0; err == nil && i < n; i++ {
			none := &iapmeshv1.ShipRequest{Message: &iapmeshv1.ShipRequest_Frames{Frames: &iapmeshv1.ShipFrames{Run: audit.Run(uint64(run) + uint64(i) + 1).String()}}}
			if _, _, err = say(a, "n1", none); !fault.Is(err, fault.Exhausted) {
				err = nil // the conversation is over
			}
		}
		return err
	}
	if err := begin(100); !fault.Is(err, fault.Exhausted) {
		t.Errorf("a hundred runs: %v", err)
	}
	if _, _, err := say(a, "n1", h.note(t, "n1")); fault.Is(err, fault.Exhausted) {
		t.Errorf("a run that is known: %v", err)
	}
	trusted = true
	if err := begin(100); err != nil {
		t.Errorf("it was released: %v", err)
	}
	trusted = false
	fat := newHistory("n1")
	for range 100 {
		fat.frames = audit.AppendFrame(fat.frames, audit.Frame{Run: run, Seq: fat.tree.Size(), Body: make([]byte, 60<<10)})
		fat.tree.Append(audit.LeafHash(make([]byte, 60<<10)))
	}
	a = open()
	if _, _, err := say(a, "n1", fat.framesMessage()); fault.Is(err, fault.Exhausted) {
		t.Errorf("six megabytes: %v", err)
	}
	if _, _, err := say(a, "n1", fat.framesMessage()); !fault.Is(err, fault.Exhausted) {
		t.Errorf("twelve without a checkpoint: %v", err)
	}
}

// stalling signs once it is let: until then whoever asked for the signature holds the lock of a run, as over a disk that does not answer.
type stalling struct {
	audit.Signer
	asked, let chan struct{}
}

func (s *stalling) Sign(message []byte) ([]byte, error) {
	s.asked <- struct{}{}
	<-s.let
	return s.Signer.Sign(message)
}

// A node that was put out and hands in may have to wait for its run; no other has to wait with it.
func TestANodeThatHandsInHoldsUpNobody(t *testing.T) {
	t.Parallel()
	disk := &stalling{audit.SignWith(key("agg")), make(chan struct{}), make(chan struct{})}
	admitting := make(chan string, 100)
	a, err := collect.Open(collect.Config{
		Dir: t.TempDir(), Mesh: "m", Node: "agg", Signer: disk, NodeKey: public,
		Trusted: func(node string) bool {
			admitting <- node
			return false
		},
		Peer: func(ctx context.Context) (string, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			return md.Get("node")[0], nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	first, more, other := newHistory("n1", "a"), newHistory("n1", "a", "b"), newHistory("n2", "a")
	note := first.note(t, "n1")
	var waiting sync.WaitGroup
	waiting.Go(func() { _, _, _ = say(a, "n1", first.framesMessage(), note) })
	t.Cleanup(func() {
		close(disk.let)
		waiting.Wait()
		a.Close()
	})
	<-disk.asked
	waiting.Go(func() { _, _, _ = say(a, "n1", more.framesMessage()) })
	for range 3 { // the frames, the note, and the frames by the second stream
		if node := <-admitting; node != "n1" {
			t.Fatalf("%s is admitted", node)
		}
	}
	done := make(chan error, 1)
	go func() {
		_, _, err := say(a, "n2", other.framesMessage())
		done <- err
	}()
	select {
	case err := <-done:
		if fault.Is(err, fault.Exhausted) {
			t.Errorf("another node: %v", err)
		}
	case <-time.After(patience):
		t.Error("another node waits")
	}
}

// A stream may outlive the store that it was for; it writes nothing there any more.
func TestNothingIsWrittenOnceTheStoreIsClosed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := open(t, dir)
	h := newHistory("n1", "a", "b")
	c := &conversation{ctx: metadata.NewIncomingContext(t.Context(), metadata.Pairs("node", "n1")), in: []*iapmeshv1.ShipRequest{
		{Message: &iapmeshv1.ShipRequest_Hello{Hello: &iapmeshv1.ShipHello{}}}, h.framesMessage(), h.note(t, "n1"),
	}}
	c.before = func(left int) {
		if left == 1 {
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if err := fault.FromStatus(a.Ship(c)); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a checkpoint after the end: %v", err)
	}
	if runs, err := filepath.Glob(filepath.Join(dir, "n1", "*")); err != nil || len(runs) != 0 {
		t.Errorf("it wrote %v, %v", runs, err)
	}
	if len(c.out) != 1 {
		t.Errorf("answers: %v", c.out)
	}
}

func TestTheAggregatorRefuses(t *testing.T) {
	t.Parallel()
	good := newHistory("n1", `{"kind":"run"}`, `{"kind":"decision"}`)
	tail := newHistory("n1", "a", "b", "c")
	_, n, _ := audit.DecodeFrame(tail.frames)
	tail.frames = tail.frames[n:]
	flipped := newHistory("n1", "a")
	flipped.frames[audit.FrameHeader] ^= 1
	elsewhere := newHistory("n1", "a")
	elsewhere.run++
	noteInside := newHistory("n1", "a")
	noteInside.frames = audit.AppendFrame(nil, audit.Frame{Kind: audit.CheckpointFrame, Run: run, Body: []byte("x")})
	badEdge := newHistory("n1")
	badEdge.frames = audit.AppendFrame(nil, audit.Frame{Kind: audit.EdgeFrame, Run: run, Seq: 5, Body: []byte{0, 1}})
	otherMesh := audit.Checkpoint{Mesh: "m2", Node: "n1", Run: run, Time: time.Unix(1, 0)}
	foreign, err := otherMesh.Sign(audit.SignWith(key("n1")))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		node string
		in   []*iapmeshv1.ShipRequest
		kind fault.Kind
	}{
		"another key's checkpoint":   {"n1", []*iapmeshv1.ShipRequest{good.framesMessage(), good.note(t, "n2")}, fault.Denied},
		"another node's checkpoint":  {"n2", []*iapmeshv1.ShipRequest{good.framesMessage(), good.note(t, "n1")}, fault.Denied},
		"a node without a key":       {"stranger", []*iapmeshv1.ShipRequest{good.framesMessage(), good.note(t, "n1")}, fault.NotFound},
		"a path for a name":          {"..", nil, fault.Invalid},
		"a gap":                      {"n1", []*iapmeshv1.ShipRequest{tail.framesMessage()}, fault.Invalid},
		"a flipped bit":              {"n1", []*iapmeshv1.ShipRequest{flipped.framesMessage()}, fault.Invalid},
		"frames of another run":      {"n1", []*iapmeshv1.ShipRequest{{Message: &iapmeshv1.ShipRequest_Frames{Frames: &iapmeshv1.ShipFrames{Run: elsewhere.run.String(), Frames: good.frames}}}}, fault.Invalid},
		"a note among frames":        {"n1", []*iapmeshv1.ShipRequest{noteInside.framesMessage()}, fault.Invalid},
		"an edge that is none":       {"n1", []*iapmeshv1.ShipRequest{badEdge.framesMessage()}, fault.Invalid},
		"a checkpoint of the future": {"n1", []*iapmeshv1.ShipRequest{good.note(t, "n1")}, fault.Invalid},
		"another mesh": {"n1", []*iapmeshv1.ShipRequest{{Message: &iapmeshv1.ShipRequest_Checkpoint{Checkpoint: &iapmeshv1.ShipCheckpoint{
			Run: run.String(), Note: foreign}}}}, fault.Invalid},
		"a run that is no run": {"n1", []*iapmeshv1.ShipRequest{{Message: &iapmeshv1.ShipRequest_Frames{Frames: &iapmeshv1.ShipFrames{Run: "../x"}}}}, fault.Invalid},
		"an empty message":     {"n1", []*iapmeshv1.ShipRequest{{}}, fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := open(t, t.TempDir())
			defer a.Close()
			_, answers, err := say(a, tc.node, tc.in...)
			if !fault.Is(err, tc.kind) || len(answers) != 0 {
				t.Errorf("%v, %v; want kind %v", err, answers, tc.kind)
			}
			for e, err := range a.Records(t.Context(), collect.Filter{}) {
				t.Errorf("stored %v, %v", e.ID, err)
			}
		})
	}
}

func TestAForkIsAlarmedAboutAndRefusedFromThereOn(t *testing.T) {
	t.Parallel()
	first, other := newHistory("n1", "a", "b", "c"), newHistory("n1", "a", "X", "c")
	longer := newHistory("n1", "a", "b", "c", "d")
	for name, in := range map[string][]*iapmeshv1.ShipRequest{
		"other records":         {other.framesMessage()},
		"another signed root":   {other.note(t, "n1")},
		"a root that is none's": {longer.framesMessage(), newHistory("n1", "a", "b", "c", "D").note(t, "n1")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			a := open(t, dir)
			_, answers, _ := say(a, "n1", first.framesMessage(), first.note(t, "n1"), first.framesMessage(), first.note(t, "n1"))
			if len(answers) != 2 || answers[0].GetAck().GetNextSeq() != 3 || answers[1].GetAck() == nil {
				t.Fatalf("the first history, twice: %v", answers)
			}
			if root := first.tree.Root(); !bytes.Equal(answers[0].GetAck().GetRoot(), root[:]) {
				t.Error("another root is acknowledged")
			}
			_, answers, _ = say(a, "n1", in...)
			if len(answers) != 1 || answers[0].GetFork() == nil {
				t.Fatalf("the second history: %v", answers)
			}
			if evidence, err := os.ReadFile(filepath.Join(dir, "n1", run.String(), "forked")); err != nil || len(evidence) == 0 {
				t.Errorf("evidence: %s, %v", evidence, err)
			}
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			a = open(t, dir)
			defer a.Close()
			_, answers, _ = say(a, "n1", longer.framesMessage(), longer.note(t, "n1"))
			if len(answers) != 1 || answers[0].GetFork() == nil {
				t.Errorf("after a restart the run is taken again: %v", answers)
			}
			var stored []string
			for e, err := range a.Records(t.Context(), collect.Filter{}) {
				stored = append(stored, e.ID.String())
				_ = err
			}
			if len(stored) != 0 { // "a" is no JSON: nothing decodes, and nothing was added
				t.Errorf("stored %v", stored)
			}
		})
	}
}

func TestWelcomeSaysWhereToGoOn(t *testing.T) {
	t.Parallel()
	a := open(t, t.TempDir())
	defer a.Close()
	h := newHistory("n1", "a", "b")
	if w, _, _ := say(a, "n1", h.framesMessage(), h.note(t, "n1")); len(w.GetPositions()) != 0 {
		t.Errorf("at first: %v", w)
	}
	longer := newHistory("n1", "a", "b", "c")
	w, _, _ := say(a, "n1", longer.framesMessage()) // and no checkpoint: it must be sent again
	if len(w.GetPositions()) != 1 || w.GetPositions()[0].GetNextSeq() != 2 {
		t.Errorf("then: %v", w)
	}
	if w, _, _ = say(a, "n1"); w.GetPositions()[0].GetNextSeq() != 2 {
		t.Errorf("at last: %v", w)
	}
	if w, _, _ := say(a, "n2"); len(w.GetPositions()) != 0 {
		t.Errorf("another node is told of it: %v", w)
	}
}

func TestOneProcessHoldsTheStore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := open(t, dir)
	defer a.Close()
	cfg := collect.Config{Dir: dir, Mesh: "m", Node: "agg", Signer: audit.SignWith(key("agg")), NodeKey: public,
		Peer: func(context.Context) (string, error) { return "", errors.New("nobody") }}
	if _, err := collect.Open(cfg); !fault.Is(err, fault.Conflict) {
		t.Errorf("second open: %v", err)
	}
	if err := (collect.Config{}).Validate(); err == nil {
		t.Error("an empty configuration is valid")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func FuzzShip(f *testing.F) {
	h := newHistory("n1", "a", "b")
	f.Add(h.frames, h.note(f, "n1").GetCheckpoint().GetNote())
	f.Add(audit.AppendFrame(nil, audit.EdgeOf(run, h.tree)), []byte("x\n\n— y z\n"))
	f.Add([]byte{0, 0, 0, 0, 1}, []byte{})
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, frames, note []byte) {
		sub, err := os.MkdirTemp(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(sub)
		a := open(t, sub)
		defer a.Close()
		_, answers, _ := say(a, "n1",
			&iapmeshv1.ShipRequest{Message: &iapmeshv1.ShipRequest_Frames{Frames: &iapmeshv1.ShipFrames{Run: run.String(), Frames: frames}}},
			&iapmeshv1.ShipRequest{Message: &iapmeshv1.ShipRequest_Checkpoint{Checkpoint: &iapmeshv1.ShipCheckpoint{Run: run.String(), Note: note}}})
		for _, m := range answers {
			if m.GetAck() != nil {
				if _, err := audit.OpenCheckpoint(note, "n1", must(public("n1"))); err != nil {
					t.Errorf("acknowledged what n1 did not sign: %v", err)
				}
			}
		}
	})
}

func FuzzStoredSegment(f *testing.F) {
	h := newHistory("n1", `{"kind":"decision"}`, `{"kind":"outcome"}`)
	seg := append(audit.AppendFrame(nil, audit.EdgeOf(run, audit.NewTree())), h.frames...)
	noted := audit.AppendFrame(bytes.Clone(seg), audit.Frame{Kind: audit.CheckpointFrame, Run: run, Seq: 2, Body: h.note(f, "n1").GetCheckpoint().GetNote()})
	f.Add(noted)
	f.Add(seg[:len(seg)-3])
	f.Add(append(bytes.Clone(noted), noted...))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		sub, err := os.MkdirTemp(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(sub)
		runDir := filepath.Join(sub, "n1", run.String())
		if err := os.MkdirAll(runDir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(runDir, "00000000000000000000.segment"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := collect.VerifyStore(sub, verifier()); err != nil {
			t.Errorf("verify: %v", err)
		}
		a := open(t, sub)
		defer a.Close()
		for _, err := range a.Records(t.Context(), collect.Filter{}) {
			if err != nil {
				t.Errorf("query: %v", err)
			}
		}
		if _, _, err := say(a, "n1", h.framesMessage()); fault.Is(err, fault.Internal) {
			t.Errorf("ship: %v", err)
		}
	})
}
