package control

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// attention is what of the mesh as a whole wants an operator's eye, the gravest first.
func (c *Controller) attention(v *state.View) []*iapmeshv1.Attention {
	var out []*iapmeshv1.Attention
	if r := v.Keyring.Unconfirmed(); r != nil {
		out = append(out, restorationAttention(r))
	}
	for _, a := range v.Keyring.Authorities {
		if a.State == keyring.AuthorityPrepared {
			waiting := len(keyring.ReadyToActivate(*a, c.facts(v)).Waiting)
			out = append(out, &iapmeshv1.Attention{
				Kind: iapmeshv1.AttentionKind_ATTENTION_KIND_AUTHORITY, Subject: a.Serial, Since: state.Stamp(a.CreatedAt), Command: "iapmesh ca list",
				Text: fmt.Sprintf("the next CA, %.8s, is prepared: it issues once every live node has acknowledged it; %d have not", a.Serial, waiting),
			})
		}
	}
	for _, k := range v.Keyring.Keys {
		if !keyring.RotationOverdue(*k, c.Now()) {
			continue
		}
		due, rotator := keyring.NextRotation(*k), k.Rotator
		if n := v.Keyring.Nodes[k.Rotator]; n != nil {
			rotator = n.Name
		}
		out = append(out, &iapmeshv1.Attention{
			Kind: iapmeshv1.AttentionKind_ATTENTION_KIND_KEY_ROTATION, Subject: k.ID, Since: state.Stamp(due), Command: "iapmesh key show " + k.ID,
			Text: fmt.Sprintf("key %s (%s) was to be rotated by node %s at %s, and was not", k.Name, k.ID, rotator, due.UTC().Format(time.RFC3339)),
		})
	}
	slices.SortFunc(out, func(a, b *iapmeshv1.Attention) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), a.GetSince().AsTime().Compare(b.GetSince().AsTime()), cmp.Compare(a.Subject, b.Subject))
	})
	return out
}

func restorationAttention(r *keyring.Restoration) *iapmeshv1.Attention {
	out := &iapmeshv1.Attention{
		Kind: iapmeshv1.AttentionKind_ATTENTION_KIND_RESTORATION, Subject: strconv.FormatUint(r.Statement.NewEpoch, 10), Since: state.Stamp(r.Statement.Time),
		Text:    fmt.Sprintf("restored under epoch %d: nobody signs in, joins or uses a session until an operator has confirmed the list", r.Statement.NewEpoch),
		Command: "iapmesh snapshot pending, then confirm",
	}
	if r.Phase == keyring.RestorationRunning {
		out.Text = fmt.Sprintf("a snapshot is being restored under epoch %d: nobody signs in, joins or uses a session; if that has ended early, repeat it", r.Statement.NewEpoch)
		out.Command = "iapmesh snapshot restore, with the same file"
	}
	return out
}
