package control

import (
	"strings"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
)

// keepsHeld refuses, while a restoration is unconfirmed, every commit that would let in again what is not let in now: whatever asks
// for it, it would pass by the list that an operator is to confirm. What refuses more is always welcome. The record of the restoration
// guards the commits that let in, so that none slips through while a restoration begins.
func (t *tx) keepsHeld() error {
	if t.listed {
		return nil
	}
	letsIn, err := t.letsIn()
	if err != nil || !letsIn {
		return err
	}
	r, err := t.restoration()
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if closed := (&keyring.Contents{Restoration: r}).Closed(); closed != nil {
		return fault.New(fault.Conflict, "it would let in again what is not let in now: %w", closed) // not Unavailable: nobody is to try again by himself
	}
	return nil
}

// letsIn reports whether the commit accepts what was refused until now.
func (t *tx) letsIn() (bool, error) {
	before := &t.View.Keyring.Contents
	for path := range t.puts {
		switch {
		case strings.HasPrefix(path, state.PrefixKey):
			k, err := t.key(strings.TrimPrefix(path, state.PrefixKey)) // as it is put
			if err != nil || keyring.KeyLetsIn(before.Keys[k.ID], k) {
				return true, err
			}
		case strings.HasPrefix(path, state.PrefixNode):
			n, err := t.node(strings.TrimPrefix(path, state.PrefixNode))
			if err != nil || keyring.NodeLetsIn(before.Nodes[n.ID], n) {
				return true, err
			}
		}
	}
	for path := range t.deletes {
		rest, ok := strings.CutPrefix(path, state.PrefixRevocation)
		if !ok {
			continue
		}
		kind, value, _ := strings.Cut(rest, "/")
		if r := before.Revocations[keyring.RevocationKind(kind)][value]; r == nil || !r.Over(t.Now) {
			return true, nil
		}
	}
	return false, nil
}
