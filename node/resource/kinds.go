package resource

import (
	"crypto/x509"
	"errors"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// IdentityProvider is where users prove who they are.
type IdentityProvider struct {
	Kind string `json:"kind" yaml:"kind"`
	Name string `json:"name" yaml:"name"`
	OIDC OIDC   `json:"oidc" yaml:"oidc"`
}

// OIDC is an OpenID Connect provider.
type OIDC struct {
	Issuer       string    `json:"issuer" yaml:"issuer"`
	ClientID     string    `json:"client_id" yaml:"client_id"`
	ClientSecret SecretRef `json:"client_secret,omitzero" yaml:"client_secret"`
	GroupsClaim  string    `json:"groups_claim,omitempty" yaml:"groups_claim"` // default groups
	Scopes       []string  `json:"scopes,omitempty" yaml:"scopes"`             // default openid, email, profile
	CA           string    `json:"ca,omitempty" yaml:"ca"`                     // PEM; default: the system's roots
}

// SecretRef names a secret that was set apart, by `iapmesh secret set NAME`.
type SecretRef struct {
	Secret string `json:"secret" yaml:"secret"`
}

// Policy is Cedar text.
type Policy struct {
	Kind  string `json:"kind" yaml:"kind"`
	Name  string `json:"name" yaml:"name"`
	Cedar string `json:"cedar" yaml:"cedar"`

	file string
}

// Schedule is a named span of the week, evaluated in its own time zone.
type Schedule struct {
	Kind     string   `json:"kind" yaml:"kind"`
	Name     string   `json:"name" yaml:"name"`
	TimeZone string   `json:"time_zone" yaml:"time_zone"` // IANA name
	Days     []string `json:"days" yaml:"days"`           // mon … sun
	From     string   `json:"from" yaml:"from"`           // 15:04
	To       string   `json:"to" yaml:"to"`
}

// Zone groups routes.
type Zone struct {
	Kind    string   `json:"kind" yaml:"kind"`
	Name    string   `json:"name" yaml:"name"`
	Parents []string `json:"parents,omitempty" yaml:"parents"`
}

// Service is a workload that may call routes.
type Service struct {
	Kind   string   `json:"kind" yaml:"kind"`
	Name   string   `json:"name" yaml:"name"`
	SPIFFE string   `json:"spiffe" yaml:"spiffe"`
	Groups []string `json:"groups,omitempty" yaml:"groups"`
	Region string   `json:"region,omitempty" yaml:"region"`
}

// Settings hold for the whole mesh; there is one, named mesh.
type Settings struct {
	Kind                 string   `json:"kind" yaml:"kind"`
	Name                 string   `json:"name" yaml:"name"`
	Issuer               string   `json:"issuer" yaml:"issuer"`             // of sessions and assertions; an https URL
	SignInHost           string   `json:"sign_in_host" yaml:"sign_in_host"` // the one host of sign-in
	SessionLifetime      Duration `json:"session_lifetime,omitzero" yaml:"session_lifetime"`
	JWKSMaxAge           Duration `json:"jwks_max_age,omitzero" yaml:"jwks_max_age"`
	SessionKeyRotation   Duration `json:"session_key_rotation,omitzero" yaml:"session_key_rotation"`
	AssertionKeyRotation Duration `json:"assertion_key_rotation,omitzero" yaml:"assertion_key_rotation"`
	// Of what the mesh holds in common; 0s turns the schedule off.
	CARotation          *Duration `json:"ca_rotation,omitempty" yaml:"ca_rotation"`
	AudienceKeyRotation *Duration `json:"audience_key_rotation,omitempty" yaml:"audience_key_rotation"`
	GossipKeyRotation   *Duration `json:"gossip_key_rotation,omitempty" yaml:"gossip_key_rotation"`

	Regions            []string `json:"regions,omitempty" yaml:"regions"`
	TrustedProxies     []string `json:"trusted_proxies,omitempty" yaml:"trusted_proxies"`           // CIDRs whose X-Forwarded-For counts
	ControlKeyApproval bool     `json:"control_key_approval,omitempty" yaml:"control_key_approval"` // a second administrator for keys that grant control
}

// The defaults of Settings, and the longest session.
const (
	DefaultSessionLifetime = time.Hour
	MaxSessionLifetime     = time.Hour
	DefaultJWKSMaxAge      = 60 * time.Second
	DefaultKeyRotation     = 24 * time.Hour
	minKeyRotation         = time.Minute

	DefaultCARotation          = 365 * 24 * time.Hour // longer than a provisioning key or an administrator's certificate lives, both of which keep a root
	DefaultAudienceKeyRotation = 30 * 24 * time.Hour
	DefaultGossipKeyRotation   = 24 * time.Hour
	minCARotation              = 24 * time.Hour
)

// Ref implementations name each resource.

// Ref names the provider.
func (p *IdentityProvider) Ref() Ref { return Ref{"IdentityProvider", p.Name} }

// Ref names the policy.
func (p *Policy) Ref() Ref { return Ref{"Policy", p.Name} }

// Ref names the schedule.
func (s *Schedule) Ref() Ref { return Ref{"Schedule", s.Name} }

// Ref names the zone.
func (z *Zone) Ref() Ref { return Ref{"Zone", z.Name} }

// Ref names the service.
func (s *Service) Ref() Ref { return Ref{"Service", s.Name} }

// Ref names the settings.
func (s *Settings) Ref() Ref { return Ref{"Settings", s.Name} }

func (p *IdentityProvider) setSource(string, int) {}
func (s *Schedule) setSource(string, int)         {}
func (z *Zone) setSource(string, int)             {}
func (s *Service) setSource(string, int)          {}
func (s *Settings) setSource(string, int)         {}
func (p *Policy) setSource(file string, _ int)    { p.file = file }

func (p *IdentityProvider) validate() error {
	errs := []error{validHead(p.Ref(), p.Kind)}
	if strings.Contains(p.Name, ".") {
		errs = append(errs, fault.New(fault.Invalid, "name %q: a provider's name holds no dot", p.Name))
	}
	if !validIssuer(p.OIDC.Issuer) {
		errs = append(errs, fault.New(fault.Invalid, "oidc.issuer %.200q: want an https URL without query, fragment or user", p.OIDC.Issuer))
	}
	if p.OIDC.ClientID == "" {
		errs = append(errs, fault.New(fault.Invalid, "oidc.client_id: is required"))
	}
	if p.OIDC.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(p.OIDC.CA)) {
		errs = append(errs, fault.New(fault.Invalid, "oidc.ca: holds no PEM certificate"))
	}
	if p.OIDC.Scopes != nil && !slices.Contains(p.OIDC.Scopes, "openid") {
		errs = append(errs, fault.New(fault.Invalid, "oidc.scopes: want openid among them"))
	}
	return errors.Join(errs...)
}

func validIssuer(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.Hostname() != "" && u.User == nil && !strings.ContainsAny(s, "?#")
}

func (p *Policy) validate() error {
	errs := []error{validHead(p.Ref(), p.Kind)}
	if strings.TrimSpace(p.Cedar) == "" {
		errs = append(errs, fault.New(fault.Invalid, "cedar: is required"))
	}
	return errors.Join(errs...)
}

func (s *Schedule) validate() error {
	errs := []error{validHead(s.Ref(), s.Kind)}
	// Local is each machine's own: two nodes would decide differently.
	if _, err := time.LoadLocation(s.TimeZone); err != nil || s.TimeZone == "" || s.TimeZone == "Local" {
		errs = append(errs, fault.New(fault.Invalid, "time_zone %.40q: want an IANA name such as Europe/Paris", s.TimeZone))
	}
	return errors.Join(errs...)
}

func (z *Zone) validate() error { return validHead(z.Ref(), z.Kind) }

func (s *Service) validate() error {
	errs := []error{validHead(s.Ref(), s.Kind)}
	if !strings.HasPrefix(s.SPIFFE, "spiffe://") {
		errs = append(errs, fault.New(fault.Invalid, "spiffe %.80q: want spiffe://…", s.SPIFFE))
	}
	return errors.Join(errs...)
}

func (s *Settings) validate() error {
	errs := []error{validHead(s.Ref(), s.Kind)}
	if s.Name != "mesh" {
		errs = append(errs, fault.New(fault.Invalid, "name %.40q: there is one Settings, named mesh", s.Name))
	}
	if !validIssuer(s.Issuer) {
		errs = append(errs, fault.New(fault.Invalid, "issuer %.200q: want an https URL without query, fragment or user", s.Issuer))
	}
	if err := validHost(s.SignInHost); err != nil || strings.HasPrefix(s.SignInHost, "*") {
		errs = append(errs, fault.New(fault.Invalid, "sign_in_host %.80q: want one host name, lower case, without a port", s.SignInHost))
	}
	if s.SessionLifetime > Duration(MaxSessionLifetime) || (s.SessionLifetime != 0 && s.SessionLifetime < Duration(time.Minute)) {
		errs = append(errs, fault.New(fault.Invalid, "session_lifetime %s: want 1m to %s", time.Duration(s.SessionLifetime), MaxSessionLifetime))
	}
	if s.JWKSMaxAge != 0 && (s.JWKSMaxAge < Duration(time.Second) || s.JWKSMaxAge > Duration(time.Hour)) {
		errs = append(errs, fault.New(fault.Invalid, "jwks_max_age %s: want 1s to 1h", time.Duration(s.JWKSMaxAge)))
	}
	for _, r := range []struct {
		field string
		d     Duration
	}{{"session_key_rotation", s.SessionKeyRotation}, {"assertion_key_rotation", s.AssertionKeyRotation}} {
		if r.d != 0 && r.d < Duration(minKeyRotation) {
			errs = append(errs, fault.New(fault.Invalid, "%s %s: want at least %s", r.field, time.Duration(r.d), minKeyRotation))
		}
	}
	for _, r := range []struct {
		field string
		d     *Duration
		least time.Duration
	}{
		{"ca_rotation", s.CARotation, minCARotation}, {"audience_key_rotation", s.AudienceKeyRotation, minKeyRotation},
		{"gossip_key_rotation", s.GossipKeyRotation, minKeyRotation},
	} {
		if r.d != nil && *r.d != 0 && *r.d < Duration(r.least) {
			errs = append(errs, fault.New(fault.Invalid, "%s %s: want at least %s, or 0s for no rotation by schedule", r.field, time.Duration(*r.d), r.least))
		}
	}
	for _, r := range s.Regions {
		errs = append(errs, ValidRegion(r))
	}
	for _, c := range s.TrustedProxies {
		if _, err := netip.ParsePrefix(c); err != nil {
			errs = append(errs, fault.New(fault.Invalid, "trusted_proxies %.60q: want a CIDR such as 10.0.0.0/8", c))
		}
	}
	return errors.Join(errs...)
}

// withDefaults returns settings with every unset span filled in.
func (s Settings) withDefaults() Settings {
	fill := func(d *Duration, v time.Duration) {
		if *d == 0 {
			*d = Duration(v)
		}
	}
	fill(&s.SessionLifetime, DefaultSessionLifetime)
	fill(&s.JWKSMaxAge, DefaultJWKSMaxAge)
	fill(&s.SessionKeyRotation, DefaultKeyRotation)
	fill(&s.AssertionKeyRotation, DefaultKeyRotation)
	return s
}

// Custody says how often the mesh replaces what it holds in common: zero for what is replaced on demand alone. Settings may be nil.
func (s *Settings) Custody() (ca, audience, gossip time.Duration) {
	if s == nil {
		s = &Settings{}
	}
	or := func(d *Duration, unset time.Duration) time.Duration {
		if d == nil {
			return unset
		}
		return time.Duration(*d)
	}
	return or(s.CARotation, DefaultCARotation), or(s.AudienceKeyRotation, DefaultAudienceKeyRotation), or(s.GossipKeyRotation, DefaultGossipKeyRotation)
}
