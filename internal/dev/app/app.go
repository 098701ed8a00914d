// Package app is the applications behind a development mesh: echo, which shows what reaches an application, and billing,
// which shows what an application does with it.
//
// They trust nobody but the mesh's assertion: a header that claims an identity counts for nothing, the assertion only once
// its signature, issuer, audience and times have been verified against the mesh's JWKS. They serve plain HTTP handlers;
// listening is the caller's.
package app

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"time"
)

// AssertionHeader carries the mesh's assertion to the application.
const AssertionHeader = "X-Iapmesh-Jwt-Assertion"

// RegionHeader is the default of Config.RegionHeader.
const RegionHeader = "X-Iapmesh-Region"

// Config says whom an application believes.
type Config struct {
	Name         string       // shown to people; "echo" or "billing" if empty
	JWKS         []string     // URLs of key sets, each trusted alike: the regions' /.well-known/iapmesh/jwks.json
	Issuer       string       // of assertions
	Audience     string       // of assertions: the route's
	Client       *http.Client // fetches JWKS; http.DefaultClient's transport and 2 s if nil
	Region       string       // where this instance runs, if it shall say so
	RegionHeader string       // request header that names the region which served
	Origins      []string     // patterns of hosts whose pages may open a WebSocket, beside *.localhost and the application's own
	Logger       *slog.Logger
	Now          func() time.Time
}

func (c Config) withDefaults(name string) Config {
	if c.Name == "" {
		c.Name = name
	}
	if c.RegionHeader == "" {
		c.RegionHeader = RegionHeader
	}
	if c.Client == nil {
		c.Client = &http.Client{Timeout: fetchTimeout}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Caller is who the assertion says is calling, and whether that was verified.
type Caller struct {
	Verified bool    `json:"verified"`
	Reason   string  `json:"reason,omitempty"` // why not
	Claims   *Claims `json:"claims,omitempty"` // only of a verified assertion
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, "encode answer: "+err.Error(), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if _, ok := v.(problem); ok {
		h.Set("Content-Type", "application/problem+json")
	}
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client has gone: nobody is left to tell
}
