package audit_test

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
)

func at(sec int64) time.Time { return time.Unix(sec, 123456789).UTC() }

// full has every field set.
func full() audit.Record {
	return audit.Record{
		Kind: audit.KindDecision, Time: at(1_800_000_000), RequestID: "r-1", TraceID: "t-1", Route: "billing", Method: "GET", Host: "billing.example.com",
		Path: "/a b\"\\\n\x01ü\u2028", SourceIP: "203.0.113.7", Destination: "http://10.0.0.5:8080",
		Actor: audit.Actor{Subject: "okta/1", Email: "ana@example.com", SessionID: "s", ProvisioningKey: "k1", MintingProvisioningKey: "k2",
			MintingNode: "n2", SigningKID: "n2.1"},
		Decision: audit.Deny, Reason: "no", Policies: []string{"a", "b"}, Manifest: "9f86", Revision: audit.Revision{Epoch: 1, Index: 42}, ViewAgeMS: 17,
		Node: "n1", Region: "eu-west", Hop: 1, Status: 403, BytesIn: 1, BytesOut: 2, DurationMS: 1.25, UpstreamReceipt: "x",
		DecisionID: audit.ID{Node: "n1", Run: "0000000000000001", Seq: 7},
		Gap:        &audit.Span{Count: 3, Reason: "full", From: at(1), To: at(2), Route: "billing"},
		Refusals:   &audit.Span{Count: 4, Reason: "no session", From: at(3), To: at(4)},
		Detail:     map[string]string{"b": "2", "a": "1"},
	}
}

func TestARecordIsReadBackAsItWas(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]audit.Record{
		"full":            full(),
		"least":           {Kind: audit.KindAdmin, Time: at(5)},
		"a part of actor": {Kind: audit.KindSignIn, Time: at(5), Actor: audit.Actor{SigningKID: "k"}},
		"zero":            {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body := r.AppendJSON(nil)
			got, err := audit.Decode(body)
			if err != nil {
				t.Fatalf("%v in %s", err, body)
			}
			if diff := cmp.Diff(r, got); diff != "" {
				t.Error(diff)
			}
			var theirs map[string]any
			if err := json.Unmarshal(body, &theirs); err != nil {
				t.Error(err)
			}
			standard, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			var ours map[string]any
			if err := json.Unmarshal(standard, &ours); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(ours, theirs); diff != "" {
				t.Errorf("encoding/json writes other fields: %s", diff)
			}
		})
	}
}

func TestWhatJSONCannotSayBecomesZero(t *testing.T) {
	t.Parallel()
	r := audit.Record{Kind: "x\xff", DurationMS: math.NaN(), Time: time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC)}
	got, err := audit.Decode(r.AppendJSON(nil))
	if err != nil || got.DurationMS != 0 || !got.Time.IsZero() || got.Kind != "x\ufffd" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestClipMakesTheWorstRecordFit(t *testing.T) {
	t.Parallel()
	worst := strings.Repeat("\x01", 5_000)
	r := full()
	r.Kind, r.RequestID, r.TraceID, r.Route, r.Method, r.Host, r.Path = audit.Kind(worst), worst, worst, worst, worst, worst, worst
	r.SourceIP, r.Destination, r.Decision, r.Reason, r.Manifest, r.Node, r.Region = worst, worst, worst, worst, worst, worst, worst
	r.UpstreamReceipt, r.DecisionID.Node, r.DecisionID.Run = worst, worst, worst
	r.Actor = audit.Actor{Subject: worst, Email: worst, SessionID: worst, ProvisioningKey: worst, MintingProvisioningKey: worst, MintingNode: worst, SigningKID: worst}
	r.Gap.Reason, r.Gap.Route, r.Refusals.Reason, r.Refusals.Route = worst, worst, worst, worst
	for i := range 100 {
		r.Policies = append(r.Policies, worst)
		r.Detail[worst[:100+i]] = worst
	}
	before := r.AppendJSON(nil)
	clipped := r.Clip()
	if body := clipped.AppendJSON(nil); len(body) > audit.MaxBody {
		t.Errorf("%d bytes after clipping, at most %d", len(body), audit.MaxBody)
	}
	if !bytes.Equal(before, r.AppendJSON(nil)) {
		t.Error("Clip changed the record that it was called on")
	}
	if !strings.HasSuffix(clipped.Path, "…+2952") {
		t.Errorf("the path ends in %q", clipped.Path[len(clipped.Path)-20:])
	}
}

func TestDecodeIsBounded(t *testing.T) {
	t.Parallel()
	if _, err := audit.Decode(make([]byte, audit.MaxBody+1)); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if _, err := audit.Decode([]byte("{")); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

func TestIDsAreReadBack(t *testing.T) {
	t.Parallel()
	id := audit.ID{Node: "n1", Run: "r", Seq: 1 << 60}
	if got, err := audit.ParseID(id.String()); got != id || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	for _, s := range []string{"", "n1", "n1/r", "n1/r/", "n1/r/-1", "/r/1", "n1//1", "n1/r/1/2"} {
		if id, err := audit.ParseID(s); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, %v", s, id, err)
		}
	}
}

func FuzzRecordEncoding(f *testing.F) {
	f.Add("billing", "/p", "ana@example.com", "a\x00\"\\", int64(1), 1.5, uint64(3))
	f.Add("\xff", "\u2028", "é", "\n", int64(-1), math.Inf(1), uint64(0))
	f.Fuzz(func(t *testing.T, route, path, email, detail string, n int64, d float64, count uint64) {
		r := audit.Record{Kind: audit.KindOutcome, Time: at(n & 0xffffffff), Route: route, Path: path, Actor: audit.Actor{Email: email},
			ViewAgeMS: n, DurationMS: d, Policies: []string{detail}, Detail: map[string]string{detail: path}, Gap: &audit.Span{Count: count, Reason: detail}}
		body := r.AppendJSON(nil)
		if len(body) > audit.MaxBody {
			t.Skip("longer than a record may be: Clip cuts it before, and has tests of its own")
		}
		got, err := audit.Decode(body)
		if err != nil {
			t.Fatalf("%v in %q", err, body)
		}
		if math.IsNaN(d) || math.IsInf(d, 0) {
			r.DurationMS = 0
		}
		for _, s := range []string{route, path, email, detail} {
			if !utf8.ValidString(s) {
				return // it was valid JSON: no more is promised
			}
		}
		if diff := cmp.Diff(r, got); diff != "" {
			t.Error(diff)
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	r := full()
	f.Add(r.AppendJSON(nil))
	f.Add([]byte(`{"revision":"1","time":"x"}`))
	f.Add([]byte(`{"decision_id":"a/b","detail":{"a":1}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := audit.Decode(body)
		if err != nil {
			return
		}
		once := r.AppendJSON(nil)
		if len(once) > audit.MaxBody {
			return
		}
		again, err := audit.Decode(once)
		if err != nil {
			t.Fatalf("our own encoding %q: %v", once, err)
		}
		if twice := again.AppendJSON(nil); string(once) != string(twice) {
			t.Errorf("not deterministic: %q, %q", once, twice)
		}
	})
}

func BenchmarkRecordEncode(b *testing.B) {
	r := full()
	r.Gap, r.Refusals, r.Detail = nil, nil, nil
	buf := make([]byte, 0, 2048)
	b.ReportAllocs()
	for b.Loop() {
		buf = r.AppendJSON(buf[:0])
	}
	b.ReportMetric(float64(len(buf)), "bytes")
}
