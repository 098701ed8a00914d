package keyring_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

func TestQuorumAfter(t *testing.T) {
	t.Parallel()
	const denied, tooEarly, fine = fault.Denied, fault.Unavailable, fault.Kind(0)
	for name, tc := range map[string]struct {
		voters   string // a: active, s: silent, n: never heard, l: lapsed, -: no record; c0, the leader, c1, …
		external bool
		young    bool // the leader has led for a second
		removing string
		want     fault.Kind
		says     string
	}{
		"one of three":                      {voters: "aaa", removing: "c1", want: fine},
		"two of three":                      {voters: "aaa", removing: "c1 c2", want: denied, says: "take 2 of 3 control nodes and leave 1 live, where 2 are needed to commit anything; add control nodes first"},
		"the only one":                      {voters: "a", removing: "c0", want: denied},
		"one of two":                        {voters: "aa", removing: "c1", want: denied, says: "add control nodes first"},
		"two of five":                       {voters: "aaaaa", removing: "c1 c2", want: fine},
		"three of five":                     {voters: "aaaaa", removing: "c1 c2 c3", want: denied},
		"a live one of three, one lapsed":   {voters: "aal", removing: "c1", want: denied, says: "ctl-2 (c2) has lapsed at 2026-11-23"},
		"the lapsed one of three":           {voters: "aal", removing: "c2", want: fine},
		"a live one of three, one silent":   {voters: "aas", removing: "c1", want: denied, says: "ctl-2 (c2) is silent since 2026-11-23T11:59:00Z: start it again, or take it out if it is gone (iapmesh control remove)"},
		"the silent one of three":           {voters: "aas", removing: "c2", want: fine},
		"a live one, one never heard":       {voters: "aan", removing: "c1", want: denied, says: "ctl-2 (c2) was not heard since 2026-11-23T11:00:00Z"},
		"the one never heard":               {voters: "aan", removing: "c2", want: fine},
		"a live one of five, one silent":    {voters: "aaaas", removing: "c1", want: fine},
		"a live one of five, two silent":    {voters: "aaass", removing: "c1", want: denied, says: "ctl-3 (c3) is silent since 2026-11-23T11:59:00Z, ctl-4 (c4) is silent"},
		"both silent ones of five":          {voters: "aaass", removing: "c3 c4", want: fine},
		"a live and a silent one of five":   {voters: "aaaas", removing: "c3 c4", want: fine},
		"a live one and both silent":        {voters: "aaass", removing: "c2 c3 c4", want: denied},
		"the silent one of four":            {voters: "aaas", removing: "c3", want: fine},
		"a live one of four, one silent":    {voters: "aaas", removing: "c2", want: denied},
		"a voter without a record":          {voters: "aa-", removing: "c1", want: denied},
		"a proxy":                           {voters: "aaa", removing: "p0", want: fine},
		"a proxy, though quorum hangs":      {voters: "all", removing: "p0", want: fine},
		"nobody":                            {voters: "a", want: fine},
		"one of two beside an external one": {voters: "aa", external: true, removing: "c1", want: fine},
		"the leader leaves an external one": {voters: "aa", external: true, removing: "c0", want: fine},
		"and leaves a silent one":           {voters: "as", external: true, removing: "c0", want: denied},
		"the last beside an external one":   {voters: "al", external: true, removing: "c0", want: denied},

		"too early to tell":                    {voters: "aan", young: true, removing: "c1", want: tooEarly, says: "ctl-2 (c2) was not heard since 2026-11-23T11:59:59Z; try again"},
		"an earlier term's word is old":        {voters: "aas", young: true, removing: "c1", want: tooEarly, says: "try again"},
		"early, whom it has heard suffices":    {voters: "aaan", young: true, removing: "c3", want: fine},
		"early, and too many in any case":      {voters: "aan", young: true, removing: "c1 c2", want: denied},
		"early, and a lapsed one will not do":  {voters: "aal", young: true, removing: "c1", want: denied},
		"early, it waits for the one it takes": {voters: "ana", young: true, removing: "c1", want: fine},
	} {
		f := keyring.QuorumFacts{
			Nodes:  map[string]*keyring.Node{"p0": {ID: "p0", State: keyring.NodeActive, Roles: []keyring.Role{keyring.RoleProxy}}},
			Leader: "c0", Heard: map[string]time.Time{}, Now: now, ListeningSince: now.Add(-time.Hour),
		}
		if tc.young {
			f.ListeningSince = now.Add(-time.Second)
		}
		for i, s := range tc.voters {
			id := fmt.Sprint("c", i)
			f.Voters = append(f.Voters, id)
			n := &keyring.Node{ID: id, Name: fmt.Sprint("ctl-", i), State: keyring.NodeActive, StateSince: now, Roles: []keyring.Role{keyring.RoleControl}}
			switch s {
			case 'a':
				if id != f.Leader { // which need not tell itself
					f.Heard[id] = now.Add(-keyring.LiveWithin)
				}
			case 's':
				f.Heard[id] = now.Add(-time.Minute)
			case 'l':
				n.State = keyring.NodeLapsed
			case '-':
				continue
			}
			f.Nodes[id] = n
		}
		if tc.external {
			f.Voters = nil
		}
		err := keyring.QuorumAfter(f, strings.Fields(tc.removing))
		if tc.want == fine {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if !fault.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %v, with %q", name, err, tc.want, tc.says)
		}
	}
}
