package login

import (
	"context"
	"encoding/hex"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/node/session"
)

const recordFor = 10 * time.Second

// recordSignIn returns once it is on disk that a session began on a host: at the sign-in host, by a provider, or, at a route's
// host, by a ticket.
func (v *visit) recordSignIn(s *session.Session, t target, provider, by string) error {
	r := v.newRecord(audit.KindSignIn, audit.Allow, s.Identity, map[string]string{
		"provider": provider, "by": by, "target": t.Host, "amr": strings.Join(s.Identity.AMR, " "),
	})
	v.about(r, s)
	return v.record(r)
}

// recordRefusal is for a user who proved who they are, and may not sign in.
func (v *visit) recordRefusal(who identity.Identity, provider, reason string) error {
	r := v.newRecord(audit.KindSignIn, audit.Deny, who, map[string]string{"provider": provider})
	r.Reason = reason
	return v.record(r)
}

func (v *visit) recordSignOut(s *session.Session, everywhere bool) error {
	reach := "this browser"
	if everywhere {
		reach = "every region"
	}
	r := v.newRecord(audit.KindSignOut, audit.Allow, s.Identity, map[string]string{"ended": reach})
	v.about(r, s)
	return v.record(r)
}

func (v *visit) newRecord(kind audit.Kind, decision string, who identity.Identity, detail map[string]string) *audit.Record {
	r := &audit.Record{
		Kind: kind, Time: v.cfg.Now(), RequestID: v.w.Header().Get(headerRequestID), Method: v.r.Method, Host: v.host, Path: v.r.URL.Path,
		Actor: audit.Actor{Subject: who.Subject, Email: who.Email}, Decision: decision,
		Manifest: hex.EncodeToString(v.view.Config.Digest[:]), Revision: audit.Revision(v.view.Revision),
		Node: v.cfg.Node, Region: v.cfg.Region, Detail: detail,
	}
	if ip := v.cfg.ClientIP(v.r, v.view); ip.IsValid() {
		r.SourceIP = ip.String()
	}
	if own := v.view.Keyring.Nodes[v.cfg.Node]; own != nil {
		r.Actor.ProvisioningKey = own.ProvisioningKey
	}
	return r
}

func (v *visit) about(r *audit.Record, s *session.Session) {
	r.Actor.SessionID, r.Actor.SigningKID = s.ID, s.KID
	r.Actor.MintingNode, r.Actor.MintingProvisioningKey = s.MintingNode, s.MintingKey
}

// record waits until the record is durable, also if the browser does not. Its error is Unavailable: without a record, nothing
// happens.
func (v *visit) record(r *audit.Record) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(v.r.Context()), recordFor)
	defer cancel()
	if err := v.cfg.Trail.Record(ctx, r); err != nil {
		return fault.New(fault.Unavailable, "record %s: %w", r.Kind, err)
	}
	return nil
}
