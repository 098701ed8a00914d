package control

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
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
		if a := c.rotationAttention(v, k); a != nil {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, func(a, b *iapmeshv1.Attention) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), a.GetSince().AsTime().Compare(b.GetSince().AsTime()), cmp.Compare(a.Subject, b.Subject))
	})
	return out
}

// rotationAttention is of a key whose schedule was not kept, or whose rotator says that it fails; nil: neither.
func (c *Controller) rotationAttention(v *state.View, k *keyring.Key) *iapmeshv1.Attention {
	failing := c.failingRotation(k)
	overdue := keyring.RotationOverdue(*k, c.Now())
	if failing == nil && !overdue {
		return nil
	}
	rotator := k.Rotator
	if n := v.Keyring.Nodes[k.Rotator]; n != nil {
		rotator = n.Name
	}
	out := &iapmeshv1.Attention{Kind: iapmeshv1.AttentionKind_ATTENTION_KIND_KEY_ROTATION, Subject: k.ID, Command: "iapmesh key show " + k.ID}
	if overdue {
		due := keyring.NextRotation(*k)
		out.Since = state.Stamp(due)
		out.Text = fmt.Sprintf("key %s (%s) was to be rotated by node %s at %s, and was not", k.Name, k.ID, rotator, due.UTC().Format(time.RFC3339))
	} else {
		out.Since = failing.Since
		out.Text = fmt.Sprintf("node %s fails to rotate key %s (%s), and tries again", rotator, k.Name, k.ID)
	}
	if failing != nil {
		out.Text += ": " + failing.Error
	}
	return out
}

// failingRotation is what the key's own rotator reports of it; what another says of it does not count.
func (c *Controller) failingRotation(k *keyring.Key) *iapmeshv1.FailingRotation {
	if k.Rotator == "" || !c.Reports.Live(k.Rotator) {
		return nil
	}
	report, _ := c.Reports.Get(k.Rotator)
	for _, f := range report.GetFailingRotations() {
		if f.GetKeyId() == k.ID {
			return f
		}
	}
	return nil
}

const (
	maxFailingRotations = 16  // in a report
	maxRotationError    = 300 // bytes
)

// clipRotations keeps of a report what it may say of rotations.
func clipRotations(report *iapmeshv1.NodeReport) {
	if report == nil {
		return
	}
	report.FailingRotations = slices.DeleteFunc(report.FailingRotations, func(f *iapmeshv1.FailingRotation) bool { return f == nil || len(f.KeyId) > keyring.MaxName })
	if len(report.FailingRotations) > maxFailingRotations {
		report.FailingRotations = slices.Clone(report.FailingRotations[:maxFailingRotations])
	}
	for _, f := range report.FailingRotations {
		if len(f.Error) > maxRotationError {
			f.Error = strings.ToValidUTF8(f.Error[:maxRotationError], "") + "…"
		}
	}
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
