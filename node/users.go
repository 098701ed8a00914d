package node

import (
	"context"
	"net"
	"path/filepath"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/assertion"
	"github.com/iapmesh/iapmesh/node/login"
	"github.com/iapmesh/iapmesh/node/proxy"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// users is what a proxy node serves its users with.
type users struct {
	live     *session.Live
	verifier *session.Verifier
	proxy    *proxy.Proxy
	minted   mintedReport
}

// recently is how long a session counts in a node's report after it was last seen.
const recently = 5 * time.Minute

// serveUsers makes what users meet: sessions, sign-in, assertions and the proxy itself.
func (a *assembly) serveUsers(ctx context.Context) error {
	if !a.config.HasRole(keyring.RoleProxy) || a.config.Listen.Proxy == "" {
		return nil
	}
	keys, err := session.OpenKeys(session.KeysConfig{
		Node: a.id.public.NodeID, Dir: filepath.Join(a.config.DataDir, sessionsDir), Sealer: a.id.sealer, Announcer: announcer{a.link},
		Views: a.source, Logger: a.logger, Registerer: a.registry, Now: a.env.Now,
	})
	if err != nil {
		return err
	}
	first := a.id.public.FirstKey
	if err := keys.Add(a.id.sessionKey(), revision.Revision{Epoch: first.Epoch, Index: first.Index}); err != nil {
		return err
	}
	u := &users{
		live:     session.NewLive(session.LiveConfig{Node: a.id.public.NodeID, Registerer: a.registry, Now: a.env.Now}),
		verifier: session.NewVerifier(session.Config{Registerer: a.registry, Now: a.env.Now}),
	}
	signIn, err := login.New(login.Config{
		Node: a.id.public.NodeID, Region: a.config.Region, Views: a.source, Minter: session.NewMinter(keys, a.env.Now), Verifier: u.verifier,
		Secrets: a.member, Trail: a.trail, Sessions: announcer{a.link}, ClientIP: proxy.ClientIP, Age: a.freshness.Age, Logger: a.logger, Registerer: a.registry, Now: a.env.Now,
	})
	if err != nil {
		return err
	}
	files := make([]proxy.CertificateFiles, 0, len(a.config.TLS.Certificates))
	for _, f := range a.config.TLS.Certificates {
		files = append(files, proxy.CertificateFiles{CertFile: f.CertFile, KeyFile: f.KeyFile})
	}
	certificates, err := proxy.LoadCertificates(files, a.logger)
	if err != nil {
		return err
	}
	u.proxy, err = proxy.New(proxy.Config{
		Node: a.id.public.NodeID, Region: a.config.Region, Views: a.source, Age: a.freshness.Age, Verifier: u.verifier, Live: u.live,
		Issuer: assertion.NewIssuer(assertion.Config{Node: a.id.public.NodeID, Secrets: a.member, Registerer: a.registry, Now: a.env.Now}),
		Spool:  a.spool, Refusals: a.refusals, SignIn: signIn, Certificates: certificates, Logger: a.logger, Registerer: a.registry, Now: a.env.Now,
	})
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", a.config.Listen.Proxy)
	if err != nil {
		return fault.New(fault.Unavailable, "listen.proxy: %w", err)
	}
	a.closers = append(a.closers, func() { l.Close() })
	a.users = u
	a.base = append(a.base, part{"session keys", keys.Run}, part{"live set", u.live.Run}, part{"certificates", certificates.Run})
	a.front = append(a.front, part{"proxy", func(ctx context.Context) error {
		if err := a.standing.await(ctx); err != nil { // who calls meanwhile waits in the listener's backlog
			return err
		}
		return u.proxy.Run(ctx, l)
	}})
	return nil
}

// describe adds to a report what this node serves.
func (u *users) describe(r *iapmeshv1.NodeReport, view *state.View) {
	stats := u.live.Stats(u.verifier.Recent(recently))
	r.Sessions, r.OpenStreams, r.RequestsPerSecond = uint64(stats.Sessions), uint64(stats.Streams), u.proxy.RPS()
	r.Minted = u.minted.now(u, view)
}
