package keyring_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
)

var receiptAt = revision.Revision{Epoch: 1, Index: 10}

func rev(index uint64) revision.Revision { return revision.Revision{Epoch: 1, Index: index} }

// nodesOf makes records: "a b!x" are a, active, and b, in state x.
func nodesOf(text string) map[string]*keyring.Node {
	nodes := map[string]*keyring.Node{}
	for _, word := range strings.Fields(text) {
		id, state, gone := strings.Cut(word, "!")
		n := &keyring.Node{ID: id, Name: id, Region: "r", State: keyring.NodeActive, StateSince: now}
		if gone {
			n.State = keyring.NodeState(state)
		}
		nodes[id] = n
	}
	return nodes
}

// heard is a node that reported the index, so long ago, and reached the change so long ago.
func heard(index uint64, ago, reached time.Duration) keyring.NodeFact {
	return keyring.NodeFact{
		State: keyring.NodeActive, HeardAt: now.Add(-ago), Served: rev(index), Reached: []keyring.Reach{{Revision: rev(index), At: now.Add(-reached)}},
	}
}

func TestReceiptsMoveAsNodesReport(t *testing.T) {
	t.Parallel()
	has, lags := heard(10, time.Second, 2*time.Second), heard(9, time.Second, time.Minute)
	silent, silentHas := heard(9, time.Hour, 2*time.Hour), heard(10, time.Hour, 2*time.Hour)
	never := keyring.NodeFact{State: keyring.NodeActive}
	gone := func(s keyring.NodeState) keyring.NodeFact {
		return keyring.NodeFact{State: s, Since: now.Add(-time.Minute), HeardAt: now.Add(-time.Minute), Served: rev(9)}
	}
	type facts map[string]keyring.NodeFact
	for name, tc := range map[string]struct {
		state keyring.ReceiptState
		acked bool // b, by what was written
		more  bool
		young bool // the leader has only just begun to listen
		facts facts
		want  keyring.ReceiptState
		acks  string
		gone  keyring.NodeState // of b
	}{
		"nobody was heard":                          {state: "open", facts: facts{"a": never, "b": never}, want: "open"},
		"one live node has it, one does not":        {state: "open", facts: facts{"a": has, "b": lags}, want: "open"},
		"all have it":                               {state: "open", facts: facts{"a": has, "b": has}, want: "everywhere", acks: "a b"},
		"all live nodes have it, one is silent":     {state: "open", facts: facts{"a": has, "b": silent}, want: "live", acks: "a"},
		"one was never heard":                       {state: "open", facts: facts{"a": has, "b": never}, want: "live", acks: "a"},
		"one was never heard, by a young leader":    {state: "open", young: true, facts: facts{"a": has, "b": never}, want: "open"},
		"one is silent since before a young leader": {state: "open", young: true, facts: facts{"a": has, "b": silent}, want: "open"},
		"all have it, and the leader is young":      {state: "open", young: true, facts: facts{"a": has, "b": has}, want: "everywhere", acks: "a b"},
		"who has it is silent now":                  {state: "open", facts: facts{"a": silentHas, "b": silentHas}, want: "open"},
		"one had it before it fell silent":          {state: "open", facts: facts{"a": has, "b": silentHas}, want: "everywhere", acks: "a b"},
		"a newcomer lags":                           {state: "open", facts: facts{"a": has, "b": has, "c": lags}, want: "open"},
		"a newcomer was never heard":                {state: "open", facts: facts{"a": has, "b": has, "c": never}, want: "everywhere", acks: "a b"},
		"the rest of the act is to come":            {state: "open", more: true, facts: facts{"a": has, "b": has}, want: "open"},
		"live, and nothing new":                     {state: "live", facts: facts{"a": has, "b": silent}, want: "live"},
		"live, and a node is back but lags":         {state: "live", facts: facts{"a": has, "b": lags}, want: "live"},
		"live, and the last has it":                 {state: "live", facts: facts{"a": has, "b": has}, want: "everywhere", acks: "a b"},
		"live, and the last is revoked":             {state: "live", facts: facts{"a": has, "b": gone("revoked")}, want: "everywhere", acks: "a", gone: "revoked"},
		"live, and the last departed":               {state: "live", facts: facts{"a": has, "b": gone("departed")}, want: "everywhere", acks: "a", gone: "departed"},
		"live, and the last is quarantined":         {state: "live", facts: facts{"a": has, "b": gone("quarantined")}, want: "everywhere", acks: "a", gone: "quarantined"},
		"live, and the last has no record":          {state: "live", facts: facts{"a": has}, want: "everywhere", acks: "a", gone: "departed"},
		"open, and the other is revoked":            {state: "open", facts: facts{"a": has, "b": gone("revoked")}, want: "everywhere", acks: "a", gone: "revoked"},
		"an earlier leader heard it":                {state: "live", acked: true, facts: facts{"a": has, "b": never}, want: "everywhere", acks: "a b"},
		"its disk was set back since":               {state: "live", acked: true, facts: facts{"a": has, "b": lags}, want: "live", acks: "b"},
		"a state that a newer version knows":        {state: "later", facts: facts{"a": has, "b": has}, want: "later"},
		"everywhere stays":                          {state: "everywhere", acked: true, facts: facts{"a": lags, "b": lags}, want: "everywhere", acks: "b"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := keyring.NewReceipt("r-1", keyring.Act{Action: "key.revoke", More: tc.more}, nodesOf("a b x!revoked"), now.Add(-time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			r.State, r.Revision = tc.state, receiptAt
			if tc.acked {
				r.Nodes[1].AckAt = now.Add(-30 * time.Second)
			}
			before := slices.Clone(r.Nodes)
			f := keyring.ReceiptFacts{Now: now, Nodes: tc.facts, ListeningSince: now.Add(-time.Hour)}
			if tc.young {
				f.ListeningSince = now.Add(-time.Second)
			}
			next, moved := keyring.AdvanceReceipt(r, f)
			if next.State != tc.want || moved != (tc.want != tc.state) {
				t.Fatalf("%s, moved %v; want %s", next.State, moved, tc.want)
			}
			if diff := cmp.Diff(before, r.Nodes); diff != "" {
				t.Errorf("the receipt before was changed: %s", diff)
			}
			var acks []string
			for _, n := range next.Nodes {
				if !n.AckAt.IsZero() {
					acks = append(acks, n.ID)
				}
			}
			if strings.Join(acks, " ") != tc.acks || next.Nodes[1].Gone != tc.gone {
				t.Errorf("acknowledged by %v, b gone: %q; want %q, %q", acks, next.Nodes[1].Gone, tc.acks, tc.gone)
			}
			if moved && tc.state == "open" && !next.LiveAt.Equal(now) {
				t.Errorf("live at %v", next.LiveAt)
			}
			if moved && next.State == "everywhere" && !next.EveryAt.Equal(now) {
				t.Errorf("everywhere at %v", next.EveryAt)
			}
			if again, moves := keyring.AdvanceReceipt(next, f); moves {
				t.Errorf("by the same facts it moves again, to %+v", again)
			}
		})
	}
}

func TestAReceiptTellsWhenANodeReachedTheChange(t *testing.T) {
	t.Parallel()
	f := keyring.NodeFact{State: keyring.NodeActive, HeardAt: now, Served: rev(12), Reached: []keyring.Reach{
		{Revision: rev(8), At: now.Add(-9 * time.Second)}, {Revision: rev(11), At: now.Add(-4 * time.Second)}, {Revision: rev(12), At: now.Add(-time.Second)},
	}}
	r, _ := keyring.NewReceipt("r-1", keyring.Act{}, nodesOf("a"), now.Add(time.Hour)) // by a clock that has gone back since
	r.Revision = receiptAt
	next, _ := keyring.AdvanceReceipt(r, keyring.ReceiptFacts{Now: now, ListeningSince: now.Add(-time.Hour), Nodes: map[string]keyring.NodeFact{"a": f}})
	if !next.Nodes[0].AckAt.Equal(now.Add(-4 * time.Second)) {
		t.Errorf("acknowledged at %v", next.Nodes[0].AckAt)
	}
	if next.LiveAt.Before(next.At) || next.EveryAt.Before(next.LiveAt) {
		t.Errorf("times go back: %v, %v, %v", next.At, next.LiveAt, next.EveryAt)
	}
}

func TestAnActOfSeveralCommitsHasOneReceipt(t *testing.T) {
	t.Parallel()
	r, err := keyring.NewReceipt("r-1", keyring.Act{Action: "key.revoke", More: true}, nodesOf("b a"), now)
	if err != nil || len(r.Nodes) != 2 || r.Nodes[0].ID != "a" {
		t.Fatalf("%+v, %v", r, err)
	}
	next, err := keyring.ContinueReceipt(r, keyring.Act{}, nodesOf("a b!revoked c d!departed"))
	if err != nil || next.More || len(next.Nodes) != 3 || len(r.Nodes) != 2 {
		t.Fatalf("%+v, %v", next, err)
	}
	if _, err := keyring.ContinueReceipt(next, keyring.Act{}, nil); !fault.Is(err, fault.Conflict) {
		t.Errorf("continued after its end: %v", err)
	}
	for what, act := range map[string]keyring.Act{
		"control characters": {Target: "a\nb"}, "no UTF-8": {By: "\xff"}, "too long": {Reason: strings.Repeat("x", keyring.MaxReason+1)},
	} {
		if _, err := keyring.NewReceipt("r-1", act, nil, now); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestReceiptIDsSortByTime(t *testing.T) {
	t.Parallel()
	var ids []string
	for i := range 200 {
		id, err := keyring.NewReceiptID(now.Add(time.Duration(i)*time.Millisecond), rand.Reader)
		if err != nil || keyring.ValidReceiptID(id) != nil {
			t.Fatalf("%s: %v, %v", id, err, keyring.ValidReceiptID(id))
		}
		ids = append(ids, id)
	}
	if !slices.IsSorted(ids) {
		t.Error("ids do not sort by time")
	}
	for _, id := range []string{"", "r-", "x", ids[0][2:], ids[0] + "0", strings.ToUpper(ids[0]), "r-" + strings.ToUpper(ids[0][2:]), "r-w" + ids[0][3:], "r-/" + ids[0][3:]} {
		if err := keyring.ValidReceiptID(id); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", id, err)
		}
	}
	if _, err := keyring.NewReceiptID(now, bytes.NewReader(nil)); !fault.Is(err, fault.Internal) {
		t.Errorf("without randomness: %v", err)
	}
}

func TestReceiptsArePruned(t *testing.T) {
	t.Parallel()
	// many are receipts of one a minute, the newest now.
	many := func(n, size int, open func(i int) bool) (kept []keyring.KeptReceipt) {
		for i := range n {
			kept = append(kept, keyring.KeptReceipt{ID: fmt.Sprintf("%05d", i), At: now.Add(time.Duration(i-n) * time.Minute), Open: open(i), Size: size})
		}
		return kept
	}
	none, all := func(int) bool { return false }, func(int) bool { return true }
	old := []keyring.KeptReceipt{{ID: "old", At: now.Add(-keyring.ReceiptsKeptFor)}, {ID: "old-open", At: now.Add(-keyring.ReceiptsKeptFor), Open: true}, {ID: "new", At: now}}
	for name, tc := range map[string]struct {
		kept []keyring.KeptReceipt
		want []string
	}{
		"few":                       {many(10, 100, none), nil},
		"over age, open ones too":   {old, []string{"old", "old-open"}},
		"too many":                  {many(keyring.ReceiptsKept+2, 100, none), []string{"00000", "00001"}},
		"too many, the oldest open": {many(keyring.ReceiptsKept+2, 100, func(i int) bool { return i < 5 }), []string{"00005", "00006"}},
		"too many, all open":        {many(keyring.ReceiptsKept+1, 100, all), []string{"00000"}},
		"too large":                 {many(20, keyring.ReceiptsMaxBytes/19, none), []string{"00000"}},
	} {
		var gone []string
		for _, k := range keyring.PruneReceipts(tc.kept, now) {
			gone = append(gone, k.ID)
		}
		if diff := cmp.Diff(tc.want, gone); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// Whatever nodes report, fall silent, leave and are set back, in whatever order and under whichever leaders: a receipt never goes back,
// and says everywhere only when each node that had to know had reported the change or may serve no more.
func TestWhateverBecomesOfAReceipt(t *testing.T) {
	t.Parallel()
	order := []keyring.ReceiptState{keyring.ReceiptOpen, keyring.ReceiptLive, keyring.ReceiptEverywhere}
	rapid.Check(t, func(rt *rapid.T) {
		at, since := now, now.Add(-time.Hour)
		ids := []string{"a", "b", "c"}
		r, err := keyring.NewReceipt("r-1", keyring.Act{}, nodesOf("a b c"), now)
		if err != nil {
			rt.Fatal(err)
		}
		r.Revision = receiptAt
		facts, reported := map[string]keyring.NodeFact{}, map[string]bool{}
		for _, id := range ids {
			facts[id] = keyring.NodeFact{State: keyring.NodeActive}
		}
		pick := func() string { return rapid.SampledFrom(ids).Draw(rt, "node") }
		rt.Repeat(map[string]func(*rapid.T){
			"report": func(rt *rapid.T) {
				id, f := pick(), keyring.NodeFact{State: keyring.NodeActive, HeardAt: at, Served: rev(rapid.Uint64Range(9, 11).Draw(rt, "index"))}
				if facts[id].State == keyring.NodeActive {
					f.Reached = []keyring.Reach{{Revision: f.Served, At: at}}
					facts[id] = f
					reported[id] = reported[id] || !f.Served.Before(receiptAt)
				}
			},
			"leave":   func(*rapid.T) { id := pick(); facts[id] = keyring.NodeFact{State: keyring.NodeDeparted, Since: at} },
			"silence": func(rt *rapid.T) { at = at.Add(time.Duration(rapid.IntRange(1, 40).Draw(rt, "seconds")) * time.Second) },
			"another leader": func(*rapid.T) {
				since = at
				for id, f := range facts {
					facts[id] = keyring.NodeFact{State: f.State, Since: f.Since}
				}
			},
			"": func(rt *rapid.T) {
				next, moved := keyring.AdvanceReceipt(r, keyring.ReceiptFacts{Now: at, ListeningSince: since, Nodes: facts})
				if slices.Index(order, next.State) < slices.Index(order, r.State) || moved != (next.State != r.State) {
					rt.Fatalf("from %s to %s, moved %v", r.State, next.State, moved)
				}
				if r = next; !moved || r.State != keyring.ReceiptEverywhere {
					return
				}
				for _, n := range r.Nodes {
					if !n.AckAt.IsZero() != reported[n.ID] && n.Gone == "" {
						rt.Fatalf("%s: %+v, reported %v", n.ID, n, reported[n.ID])
					}
					if n.AckAt.IsZero() && n.Gone == "" {
						rt.Fatalf("%s neither has it nor is gone: %+v", n.ID, n)
					}
				}
			},
		})
	})
}

func FuzzReceiptID(f *testing.F) {
	f.Add("r-06h15s75f3eg6sh30q4g")
	f.Add("r-../admin/x")
	f.Add("r-06H15S75F3EG6SH30Q4G")
	f.Add("r-06h15s75f3eg6sh30q4g\n") // base32 leaves newlines out
	f.Fuzz(func(t *testing.T, id string) {
		if keyring.ValidReceiptID(id) != nil {
			return
		}
		if len(id) != 22 || strings.Trim(id[2:], "0123456789abcdefghijklmnopqrstuv") != "" {
			t.Fatalf("%q is no id", id)
		}
	})
}
