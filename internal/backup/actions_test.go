package backup_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/backup"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// What an act means to who remembers.
const (
	refuses = "refuses"
	takes   = "takes back"
	neither = "" // it refuses nothing that a snapshot could accept again
)

// meanings has every act that leaves a record in package control. One that is missing here fails the test: whoever adds an act says
// what it means, and teaches trail.go if it refuses.
var meanings = map[string]string{
	"revoke.session": neither, // a restoration refuses every session of before it
	"revoke.user":    refuses, "revoke.node": refuses, "revoke.signing_key": refuses, "key.revoke": refuses, "key.suspend": refuses,
	"node.quarantine": refuses, "node.remove": refuses, "node.leave": refuses, "node.depart": refuses, "admin.revoke": refuses, "snapshot.confirm": refuses,
	"revocation.lift": takes, "key.resume": takes, "node.release": takes,
	"control.transfer": neither, "admin.issue": neither, "admin.renew": neither, "apply": neither, "secret.set": neither, "key.issue": neither, "key.approve": neither,
	"key.rotate": refuses, "key.close-proposal": refuses, // their successors are what counts
	"key.schedule": neither, "key.rotate-request": neither, "key.propose": neither, "node.rebind": neither, "node.recover": neither, "node.allow-rebind": neither,
	"receipt.complete": neither, "receipt.prune": neither, "signing-key": neither, "signing-key.rotate": neither,
	"snapshot.save": neither, "snapshot.restore": neither, "snapshot.remember": neither, // the node says it again
}

func TestEveryActOfControlIsUnderstood(t *testing.T) {
	t.Parallel()
	acts := recorded(t)
	for _, act := range acts {
		meaning, known := meanings[act.name]
		if !known {
			t.Errorf("act %q: say in meanings what it means to the trail's memory, and teach trail.go if it refuses", act.name)
			continue
		}
		if meaning != neither && !slices.Contains([]string{"audit.KindRevocation", "audit.KindAdmin", "audit.KindRotation"}, act.kind) {
			t.Errorf("act %q is recorded as %s, which Remembered does not ask for", act.name, act.kind)
		}
		record := audit.Record{Time: time.Unix(1, 0), Detail: map[string]string{
			"action": act.name, "value": "x", "id": "x", "key": "x", "node": "x", "kind": "subject", "except": "x", "cascade": "keep", "block": "yes",
		}}
		if got := len(backup.FromRecords([]audit.Record{record}, backup.Writers{"": true})) > 0; got != (meaning == refuses) {
			t.Errorf("act %q: remembered as a denial: %t, want %t", act.name, got, meaning == refuses)
		}
	}
	for name := range meanings {
		if !slices.ContainsFunc(acts, func(a act) bool { return a.name == name }) {
			t.Errorf("act %q: nothing records it any more", name)
		}
	}
}

type act struct{ name, kind string }

// recorded are the acts that package control leaves records of, as its source has them.
func recorded(t *testing.T) []act {
	t.Helper()
	dir := filepath.Join("..", "..", "node", "control")
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var acts []act // but those of turned: it replaces what the mesh holds in common, on schedule or at once, and refuses nobody
	for target := range iapmeshv1.RevokeTarget_name {
		if name := iapmeshv1.RevokeTarget(target).String(); target != 0 { // as Controller.Revoke names them
			acts = append(acts, act{"revoke." + strings.ToLower(strings.TrimPrefix(name, "REVOKE_TARGET_")), "audit.KindRevocation"})
		}
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, f.Name()), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		kind := "" // of the record around
		ast.Inspect(parsed, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt: // turned alone names an act so
				if index, ok := n.Lhs[0].(*ast.IndexExpr); ok && types.ExprString(index.Index) == `"action"` && f.Name() != "authority.go" {
					t.Errorf("%s: the test does not know the act %s", f.Name(), types.ExprString(n.Rhs[0]))
				}
			case *ast.CallExpr:
				if sel, ok := n.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "record" && len(n.Args) == 4 {
					kind = types.ExprString(n.Args[1])
				}
			case *ast.CompositeLit:
				switch types.ExprString(n.Type) {
				case "nodeAct":
					acts = append(acts, act{literal(t, n.Elts[1]), types.ExprString(n.Elts[2])})
				case "keyMove":
					acts = append(acts, act{"key." + literal(t, n.Elts[1]), "audit.KindAdmin"})
				}
			case *ast.KeyValueExpr:
				if types.ExprString(n.Key) != `"action"` {
					break
				}
				switch value := types.ExprString(n.Value); value {
				case "act.action", "act.Action", `"key." + m.verb`: // seen where they are named
				default:
					acts = append(acts, act{literal(t, n.Value), kind})
				}
			}
			return true
		})
	}
	return acts
}

func literal(t *testing.T, e ast.Expr) string {
	t.Helper()
	s, err := strconv.Unquote(types.ExprString(e))
	if err != nil {
		t.Fatalf("act %s: the test does not know where its name comes from", types.ExprString(e))
	}
	return s
}
