package proxy

import (
	"net/http"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/assertion"
	"github.com/iapmesh/iapmesh/node/session"
)

const (
	ownPrefix    = "/.iapmesh/"
	documentPath = assertion.PathDocument
	userPath     = ownPrefix + "user"
)

// serveOwn serves the mesh's own paths, on any host that the mesh knows. They take a path as it was sent or not at all.
func (x *exchange) serveOwn() {
	if x.target.raw != x.target.path {
		x.refuse(notFound)
		return
	}
	x.mark(x.w.Header())
	switch x.target.path {
	case documentPath:
		x.p.document.ServeHTTP(&x.w, x.in)
	case assertion.PathJWKS:
		x.p.jwks.ServeHTTP(&x.w, x.in)
	case userPath:
		x.serveUser()
	default:
		if strings.HasPrefix(x.target.path, documentPath+"/") {
			x.refuse(notFound)
			return
		}
		x.p.cfg.SignIn.ServeHTTP(&x.w, x.in)
	}
}

// user is what /.iapmesh/user says.
type user struct {
	Subject     string    `json:"subject"`
	Email       string    `json:"email,omitempty"`
	Name        string    `json:"name,omitempty"`
	Groups      []string  `json:"groups"` // [] never null
	Session     string    `json:"sid"`
	AuthTime    time.Time `json:"auth_time,omitzero"`
	Expires     time.Time `json:"expires"`
	KID         string    `json:"kid"` // of the key that signed the session
	MintingNode string    `json:"minting_node"`
	Region      string    `json:"region"` // that answers
	Node        string    `json:"node"`   // that answers
	Revision    string    `json:"revision"`
}

// serveUser tells the caller who they are to the mesh.
func (x *exchange) serveUser() {
	if x.in.Method != http.MethodGet && x.in.Method != http.MethodHead {
		x.refuse(badMethod)
		return
	}
	s, err := x.identify()
	switch {
	case fault.Is(err, fault.Unavailable):
		x.refuse(keyUnknown)
		return
	case err != nil:
		x.refuse(signInNeeded)
		return
	}
	groups := s.Identity.Groups
	if groups == nil {
		groups = []string{}
	}
	x.writeJSON(http.StatusOK, "application/json", user{
		Subject: s.Identity.Subject, Email: s.Identity.Email, Name: s.Identity.Name, Groups: groups, Session: s.ID,
		AuthTime: s.Identity.AuthTime, Expires: s.Expires, KID: s.KID, MintingNode: s.MintingNode,
		Region: x.p.cfg.Region, Node: x.p.cfg.Node, Revision: x.view.Revision.String(),
	})
}

func (x *exchange) identify() (*session.Session, error) {
	token := session.ReadCookie(x.in)
	if token == "" {
		return nil, errNobody
	}
	s, err := x.p.cfg.Verifier.Identify(x.view, token)
	if fault.Is(err, fault.Unavailable) {
		view, awaitErr := x.p.cfg.Verifier.Await(x.ctx, x.p.cfg.Views, err)
		if awaitErr != nil {
			return nil, awaitErr
		}
		x.look(view)
		s, err = x.p.cfg.Verifier.Identify(view, token)
	}
	if err == nil {
		err = s.On(x.host)
	}
	return s, err
}
