package node

import (
	"time"

	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// mintedEvery is how old the sessions by minter in a report may be: to count ten thousand takes ten milliseconds, and reports go out with
// each new view.
const mintedEvery = 5 * time.Second

// mintedReport is the part of a node's report that says by whom the sessions that it holds were minted. The reporter's goroutine only.
type mintedReport struct {
	at   time.Time
	last []*iapmeshv1.MintedSessions
}

func (m *mintedReport) now(u *users, view *state.View) []*iapmeshv1.MintedSessions {
	if view == nil || time.Since(m.at) < mintedEvery {
		return m.last
	}
	m.at, m.last = time.Now(), nil
	for _, by := range u.live.Minted(view, u.verifier.Sessions(recently)) {
		p := &iapmeshv1.MintedSessions{ProvisioningKey: by.Key, Node: by.Node, Sessions: uint64(by.Sessions)}
		for _, s := range by.Newest {
			p.Newest = append(p.Newest, liveSession(s))
		}
		m.last = append(m.last, p)
	}
	return m.last
}

func liveSession(s session.Seen) *iapmeshv1.LiveSession {
	return &iapmeshv1.LiveSession{
		SessionId: s.ID, Subject: s.Identity.Subject, AuthTime: state.Stamp(s.Identity.AuthTime), IssuedAt: state.Stamp(s.IssuedAt),
		SeenAt: state.Stamp(s.At), SigningKid: s.KID,
	}
}
