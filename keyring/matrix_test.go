package keyring_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// The machines, spelled out: what each transition makes of each state. A cell is the state that comes out, "-" where it stays, or the
// refusal's kind after "!"; a refusal changes nothing. What stands after a slash says under which circumstances. A state without a
// column and a transition without a row fail, so that nobody adds one without saying what it does everywhere.

const keyMatrix = `
                         pending    active     suspended  exhausted  expired    retiring   retired    revoked
ActivateKey              active     !conflict  !conflict  !conflict  !conflict  !conflict  !conflict  !conflict
ActivateKey/late         expired    !conflict  !conflict  !conflict  !conflict  !conflict  !conflict  !conflict
ActivateKey/unapproved   !denied    !conflict  !conflict  !conflict  !conflict  !conflict  !conflict  !conflict
ApproveKey               active     !conflict  !conflict  !conflict  !conflict  !conflict  !conflict  !conflict
ApproveKey/unneeded      !conflict  !conflict  !conflict  !conflict  !conflict  !conflict  !conflict  !conflict
ApproveKey/by-itself     !denied    !conflict  !conflict  !conflict  !conflict  !conflict  !conflict  !conflict
ApproveKey/late          !conflict  !conflict  !conflict  !conflict  !conflict  !conflict  !conflict  !conflict
SuspendKey               !conflict  suspended  !conflict  !conflict  !conflict  !conflict  !conflict  !conflict
ResumeKey                !conflict  !conflict  active     !conflict  !conflict  !conflict  !conflict  !conflict
ResumeKey/late           !conflict  !conflict  expired    !conflict  !conflict  !conflict  !conflict  !conflict
ResumeKey/used-up        !conflict  !conflict  exhausted  !conflict  !conflict  !conflict  !conflict  !conflict
SweepKey                 -          -          -          -          -          -          -          -
SweepKey/late            -          expired    -          -          -          retired    -          -
SweepKey/used-up         -          exhausted  -          -          -          -          -          -
RotateKey                !conflict  retiring   !conflict  retiring   retiring   !conflict  !conflict  !conflict
RotateKey/no-grace       !conflict  retired    !conflict  retired    retired    !conflict  !conflict  !conflict
RotateKey/approval       !conflict  -          !conflict  -          -          !conflict  !conflict  !conflict
RevokeKey                revoked    revoked    revoked    revoked    revoked    revoked    revoked    -
RevokeKey/by-holder      revoked    revoked    revoked    revoked    revoked    revoked    revoked    -
AdmitJoin                !denied    exhausted  !denied    !exhausted !denied    -          !denied    !denied
AdmitJoin/more-uses      !denied    -          !denied    !exhausted !denied    -          !denied    !denied
AdmitJoin/late           !denied    !denied    !denied    !exhausted !denied    !denied    !denied    !denied
ApproveKey/proposal      -          !conflict  !conflict  !conflict  !conflict  !conflict  !conflict  !conflict
ScheduleKey              -          -          -          -          -          !conflict  !conflict  !conflict
ReleaseHeldKey           !conflict  !conflict  active     !conflict  !conflict  !conflict  !conflict  !conflict
RequestKeyRotation       !conflict  -          !conflict  -          -          !conflict  !conflict  !conflict
ProposeSuccessor         !conflict  -          !conflict  -          -          !conflict  !conflict  !conflict
CompleteRotation         !conflict  retiring   !conflict  retiring   retiring   !conflict  !conflict  !conflict
CompleteRotation/waits   !conflict  !denied    !conflict  !denied    !denied    !conflict  !conflict  !conflict
SweepProposal            revoked    -          -          -          -          -          -          -
ReturnUse                -          -          -          active     -          -          -          -
ReturnUse/late           -          -          -          expired    -          -          -          -
`

const nodeMatrix = `
                         enrolled    active      lapsed      departed    quarantined revoked
ConfirmNode              active      -           !conflict   !conflict   !conflict   !conflict
RecoverNode              !conflict   -           active      !conflict   !conflict   !conflict
DepartNode               departed    departed    departed    -           !conflict   !conflict
QuarantineNode           quarantined quarantined quarantined !conflict   -           !conflict
ReleaseNode              !conflict   !conflict   !conflict   !conflict   active      !conflict
RevokeNode               revoked     revoked     revoked     revoked     revoked     -
ReleaseHeldNode          !conflict   !conflict   !conflict   !conflict   active      !conflict
AllowRebind              -           -           -           !conflict   -           !conflict
RebindNode               -           -           -           !conflict   !conflict   !conflict
SweepNode                -           -           -           -           -           -
SweepNode/a-day          departed    lapsed      -           -           -           -
SweepNode/a-week         departed    lapsed      departed    -           -           -
SweepNode/deaf           departed    -           -           -           -           -
`

const signingMatrix = `
                         announced   active      verify_only retired     destroyed   revoked
Promote                  active      !conflict   !conflict   !conflict   !conflict   !conflict
StopSigning              verify_only verify_only !conflict   !conflict   !conflict   !conflict
RequestRotation          !conflict   -           !conflict   !conflict   !conflict   !conflict
SweepSigningKey          -           -           -           -           -           -
SweepSigningKey/late     -           -           retired     -           -           -
SweepSigningKey/unaware  -           -           -           -           -           -
DestroySigningKey        !conflict   !conflict   !conflict   destroyed   !conflict   !conflict
RevokeSigningKey         revoked     revoked     revoked     !conflict   !conflict   -
`

func TestKeyMatrix(t *testing.T) {
	t.Parallel()
	type key = keyring.Key
	late := now.Add(48 * time.Hour)
	rotate := func(grace time.Duration, approval bool) func(key) (key, error) {
		return func(k key) (key, error) {
			after, _, err := keyring.RotateKey(k, keyring.RotateRequest{SuccessorPublicKey: public("next"), Grace: grace, NeedsApproval: approval, Now: now})
			return after, err
		}
	}
	revoke := func(byHolder bool) func(key) (key, error) {
		return func(k key) (key, error) {
			after, _, err := keyring.RevokeKey(k, nil, keyring.RevokeRequest{Cascade: keyring.CascadeKeep, ByHolder: byHolder, Now: now})
			return after, err
		}
	}
	approve := func(needed bool, by string, at time.Time) func(key) (key, error) {
		return func(k key) (key, error) {
			k.NeedsApproval = needed
			after, _, err := keyring.ApproveKey(k, keyring.ApproveRequest{By: by, Now: at})
			return after, err
		}
	}
	sweep := func(at time.Time) func(key) (key, error) {
		return func(k key) (key, error) { after, _ := keyring.SweepKey(k, at); return after, nil }
	}
	usedUp := func(do func(key) (key, error)) func(key) (key, error) {
		return func(k key) (key, error) { k.Uses = k.MaxUses; return do(k) }
	}
	admit := func(maxUses uint32, at time.Time) func(key) (key, error) {
		return func(k key) (key, error) {
			k.MaxUses = max(k.Uses, maxUses)
			if k.State == keyring.KeyExhausted {
				k.Uses = k.MaxUses
			}
			return keyring.AdmitJoin(k, facts(func(f *keyring.JoinFacts) { f.Now = at }))
		}
	}
	rotator := in(enrolled(t, issued(t, nil), "a"), keyring.NodeActive)
	scheduled := func(k key) key {
		k.RotateEvery, k.RotateGrace, k.Rotator, k.RotateRequested = 24*time.Hour, time.Hour, rotator.ID, true
		return k
	}
	propose := func(k key, approval bool) (key, error) {
		p, _, err := keyring.ProposeSuccessor(scheduled(k), keyring.ProposalRequest{SuccessorPublicKey: public("next"), By: rotator, NeedsApproval: approval, Now: now})
		return p, err
	}
	complete := func(approval bool) func(key) (key, error) {
		return func(k key) (key, error) {
			proposal, err := propose(issued(t, nil), approval)
			if err != nil {
				return k, err
			}
			proposal.Predecessor = k.ID
			after, _, err := keyring.CompleteRotation(scheduled(k), proposal, keyring.CompletionRequest{By: rotator, Now: now})
			return after, err
		}
	}
	giveBack := func(at time.Time) func(key) (key, error) {
		return func(k key) (key, error) { return keyring.ReturnUse(k, "n-1", at), nil }
	}
	machine[key]{
		matrix: keyMatrix, states: "KeyState", of: "Key",
		state: func(k key) string { return string(k.State) },
		in: func(s string) key {
			k := issued(t, nil)
			k.State = keyring.KeyState(s)
			switch k.State {
			case keyring.KeyExhausted:
				k.Uses, k.RecentUses = 1, []keyring.Use{{Node: "n-1", Name: "edge-1", At: now}}
			case keyring.KeyExpired:
				k.NotBefore, k.ExpiresAt = now.Add(-48*time.Hour), now.Add(-24*time.Hour)
			case keyring.KeyRetiring:
				k.Successor, k.GraceUntil = "next", now.Add(time.Hour)
			case keyring.KeyRetired:
				k.Successor, k.GraceUntil = "next", now.Add(-time.Hour)
			case keyring.KeyRevoked:
				k.RevokedAt, k.Cascade = now.Add(-time.Hour), keyring.CascadeKeep
			}
			return k
		},
		do: map[string]func(key) (key, error){
			"ActivateKey":      func(k key) (key, error) { return keyring.ActivateKey(k, now) },
			"ActivateKey/late": func(k key) (key, error) { return keyring.ActivateKey(k, late) },
			"ActivateKey/unapproved": func(k key) (key, error) {
				k.NeedsApproval = true
				return keyring.ActivateKey(k, now)
			},
			"ApproveKey":           approve(true, "ben", now),
			"ApproveKey/unneeded":  approve(false, "ben", now),
			"ApproveKey/by-itself": approve(true, "ana", now),
			"ApproveKey/late":      approve(true, "ben", late),
			"SuspendKey":           func(k key) (key, error) { return keyring.SuspendKey(k, "audit") },
			"ResumeKey":            func(k key) (key, error) { return keyring.ResumeKey(k, nil, now) },
			"ResumeKey/late":       func(k key) (key, error) { return keyring.ResumeKey(k, nil, late) },
			"ResumeKey/used-up":    usedUp(func(k key) (key, error) { return keyring.ResumeKey(k, nil, now) }),
			"SweepKey":             sweep(now),
			"SweepKey/late":        sweep(late),
			"SweepKey/used-up":     usedUp(sweep(now)),
			"RotateKey":            rotate(time.Hour, false),
			"RotateKey/no-grace":   rotate(0, false),
			"RotateKey/approval":   rotate(time.Hour, true),
			"RevokeKey":            revoke(false),
			"RevokeKey/by-holder":  revoke(true),
			"AdmitJoin":            admit(1, now),
			"AdmitJoin/more-uses":  admit(5, now),
			"AdmitJoin/late":       admit(5, late),
			"ApproveKey/proposal": func(k key) (key, error) {
				k.ProposedBy = rotator.ID
				return approve(true, "ben", now)(k)
			},
			"ScheduleKey": func(k key) (key, error) {
				return keyring.ScheduleKey(k, keyring.Schedule{Every: 24 * time.Hour, Rotator: rotator.ID}, &rotator)
			},
			"ReleaseHeldKey": func(k key) (key, error) {
				held := keyring.Restoration{}
				k.Reason = held.Reason()
				return keyring.ReleaseHeldKey(k, keyring.HeldKey{ID: k.ID, State: keyring.KeyActive}, &held, now)
			},
			"RequestKeyRotation":     func(k key) (key, error) { return keyring.RequestKeyRotation(scheduled(k)) },
			"ProposeSuccessor":       func(k key) (key, error) { _, err := propose(k, false); return k, err },
			"CompleteRotation":       complete(false),
			"CompleteRotation/waits": complete(true),
			"SweepProposal": func(k key) (key, error) {
				k.ProposedBy = rotator.ID
				after, _ := keyring.SweepProposal(k, nil, now)
				return after, nil
			},
			"ReturnUse":      giveBack(now),
			"ReturnUse/late": giveBack(late),
		},
	}.check(t)
}

func TestNodeMatrix(t *testing.T) {
	t.Parallel()
	type node = keyring.Node
	from, to, err := keyring.RotateKey(issued(t, nil), keyring.RotateRequest{SuccessorPublicKey: public("next"), Grace: time.Hour, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	sweep := func(since time.Time, after time.Duration) func(node) (node, error) {
		return func(n node) (node, error) { n, _, _ = keyring.SweepNode(n, since, now.Add(after)); return n, nil }
	}
	machine[node]{
		matrix: nodeMatrix, states: "NodeState", of: "Node",
		state: func(n node) string { return string(n.State) },
		in:    func(s string) node { return in(enrolled(t, from, "a"), keyring.NodeState(s)) },
		do: map[string]func(node) (node, error){
			"ConfirmNode":    func(n node) (node, error) { return keyring.ConfirmNode(n, now) },
			"RecoverNode":    func(n node) (node, error) { return keyring.RecoverNode(n, now) },
			"DepartNode":     func(n node) (node, error) { return keyring.DepartNode(n, "", now) },
			"QuarantineNode": func(n node) (node, error) { return keyring.QuarantineNode(n, "", now) },
			"ReleaseNode":    func(n node) (node, error) { return keyring.ReleaseNode(n, now) },
			"RevokeNode":     func(n node) (node, error) { return keyring.RevokeNode(n, "", now) },
			"ReleaseHeldNode": func(n node) (node, error) {
				held := keyring.Restoration{}
				n.Reason = held.Reason()
				return keyring.ReleaseHeldNode(n, keyring.HeldNode{ID: n.ID, State: keyring.NodeActive}, &held, now)
			},
			"AllowRebind":      func(n node) (node, error) { return keyring.AllowRebind(n, to, keyring.RebindFacts{}) },
			"RebindNode":       func(n node) (node, error) { return keyring.RebindNode(n, from, to, keyring.RebindFacts{}) },
			"SweepNode":        sweep(now, time.Minute),
			"SweepNode/a-day":  sweep(now, keyring.LapseAfter),
			"SweepNode/a-week": sweep(now, keyring.DepartAfter),
			"SweepNode/deaf":   sweep(time.Time{}, keyring.DepartAfter),
		},
	}.check(t)
}

func TestSigningKeyMatrix(t *testing.T) {
	t.Parallel()
	type key = keyring.SigningKey
	sweep := func(knownSince, at time.Time) func(key) (key, error) {
		return func(k key) (key, error) { after, _ := keyring.SweepSigningKey(k, knownSince, at); return after, nil }
	}
	machine[key]{
		matrix: signingMatrix, states: "SigningState", of: "SigningKey",
		state: func(k key) string { return string(k.State) },
		in: func(s string) key {
			k := inState(announced(t, in(enrolled(t, issued(t, nil), "a"), keyring.NodeActive), "s1", nil), keyring.SigningState(s))
			k.RetireAt = now.Add(time.Hour)
			return k
		},
		do: map[string]func(key) (key, error){
			"Promote": func(k key) (key, error) {
				changed, err := keyring.Promote(k, byKID(k), now)
				if err != nil {
					return k, err
				}
				return changed[0], nil
			},
			"StopSigning":             func(k key) (key, error) { return keyring.StopSigning(k, now) },
			"RequestRotation":         keyring.RequestRotation,
			"SweepSigningKey":         sweep(now, now),
			"SweepSigningKey/late":    sweep(now, now.Add(2*time.Hour)),
			"SweepSigningKey/unaware": sweep(time.Time{}, now.Add(2*time.Hour)),
			"DestroySigningKey":       func(k key) (key, error) { return keyring.DestroySigningKey(k, now) },
			"RevokeSigningKey":        func(k key) (key, error) { return keyring.RevokeSigningKey(k, "", now) },
		},
	}.check(t)
}

// machine is a lifecycle and what its matrix is held against.
type machine[T any] struct {
	matrix string
	states string // the type of its states
	of     string // the type that its transitions take and return
	state  func(T) string
	in     func(state string) T
	do     map[string]func(T) (T, error)
}

func (m machine[T]) check(t *testing.T) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(m.matrix), "\n")
	columns := strings.Fields(lines[0])
	if declared := declaredStates(t, m.states); !slices.Equal(slices.Sorted(slices.Values(columns)), declared) {
		t.Fatalf("the matrix has the states %v, the package %v", columns, declared)
	}
	covered := map[string]bool{}
	rows := map[string]bool{}
	for _, line := range lines[1:] {
		cells := strings.Fields(line)
		name, cells := cells[0], cells[1:]
		function, _, _ := strings.Cut(name, "/")
		covered[function], rows[name] = true, true
		do := m.do[name]
		if do == nil || len(cells) != len(columns) {
			t.Errorf("%s: %d cells for %d states, and the test does it: %v", name, len(cells), len(columns), do != nil)
			continue
		}
		for i, from := range columns {
			t.Run(name+"/"+from, func(t *testing.T) {
				t.Parallel()
				m.cell(t, do, from, cells[i])
			})
		}
	}
	for name := range m.do {
		if !rows[name] {
			t.Errorf("%s has no row", name)
		}
	}
	if have, want := slices.Sorted(maps.Keys(covered)), transitions(t, m.of); !slices.Equal(have, want) {
		t.Errorf("the matrix has rows for %v, the package's transitions are %v", have, want)
	}
}

func (m machine[T]) cell(t *testing.T, do func(T) (T, error), from, want string) {
	t.Helper()
	before := m.in(from)
	after, err := do(before)
	if kind, refused := strings.CutPrefix(want, "!"); refused {
		if err == nil || fault.KindOf(err).String() != kind {
			t.Errorf("%v, want a refusal: %s", err, kind)
		}
		want = from
	} else if err != nil {
		t.Errorf("refused: %v", err)
	}
	if want == "-" {
		want = from
	}
	if got := m.state(after); got != want {
		t.Errorf("it is %s, want %s", got, want)
	}
	if !reflect.DeepEqual(m.in(from), before) {
		t.Error("what went in was changed")
	}
}

// sources parses the package's own files.
func sources(t *testing.T) []*ast.File {
	t.Helper()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

func isNamed(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}

// declaredStates are the constants of a type, sorted.
func declaredStates(t *testing.T, typ string) []string {
	t.Helper()
	var out []string
	for _, f := range sources(t) {
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || !isNamed(spec.Type, typ) {
				return true
			}
			for _, v := range spec.Values {
				if lit, ok := v.(*ast.BasicLit); ok {
					s, err := strconv.Unquote(lit.Value)
					if err != nil {
						t.Fatal(err)
					}
					out = append(out, s)
				}
			}
			return true
		})
	}
	slices.Sort(out)
	return out
}

// transitions are the exported functions that take a value of the type first, and return one, or several, first; sorted.
func transitions(t *testing.T, typ string) []string {
	t.Helper()
	var out []string
	for _, f := range sources(t) {
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil || !fn.Name.IsExported() || len(fn.Type.Params.List) == 0 || fn.Type.Results == nil || !isNamed(fn.Type.Params.List[0].Type, typ) {
				continue
			}
			result := fn.Type.Results.List[0].Type
			if list, ok := result.(*ast.ArrayType); ok {
				result = list.Elt
			}
			if isNamed(result, typ) {
				out = append(out, fn.Name.Name)
			}
		}
	}
	slices.Sort(out)
	return out
}
