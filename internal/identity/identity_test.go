package identity_test

import (
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/identity"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		id identity.Identity
		ok bool
	}{
		"whole":                    {identity.Identity{Subject: "okta/00u1", Email: "ana@example.com", Name: "Ana", Groups: []string{"okta/finance"}}, true},
		"a subject with a slash":   {identity.Identity{Subject: "okta/a/b"}, true},
		"no provider":              {identity.Identity{Subject: "/00u1"}, false},
		"no subject":               {identity.Identity{Subject: "okta/"}, false},
		"no slash":                 {identity.Identity{Subject: "okta"}, false},
		"nothing":                  {identity.Identity{}, false},
		"long":                     {identity.Identity{Subject: "okta/" + strings.Repeat("x", 508)}, false},
		"a newline in the e-mail":  {identity.Identity{Subject: "okta/a", Email: "a\n@b"}, false},
		"NUL in the name":          {identity.Identity{Subject: "okta/a", Name: "a\x00"}, false},
		"another provider's group": {identity.Identity{Subject: "okta/a", Groups: []string{"google/finance"}}, false},
		"a provider of one prefix": {identity.Identity{Subject: "okta/a", Groups: []string{"oktafoo/finance"}}, false},
		"DEL in a group":           {identity.Identity{Subject: "okta/a", Groups: []string{"okta/\x7f"}}, false},
	} {
		if err := tc.id.Validate(); (err == nil) != tc.ok || (err != nil && !fault.Is(err, fault.Invalid)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A domain that could be read in two ways is none.
func TestDomain(t *testing.T) {
	t.Parallel()
	for email, want := range map[string]string{
		"ana@Example.COM": "example.com", "": "", "ana": "", "@example.com": "", "a@b@example.com": "", "ana@": "",
		"ana@EXAMPLE.\u212AOM": "example.\u212Aom", // the Kelvin sign folds into k by Unicode, and not here
	} {
		if got := (identity.Identity{Email: email}).Domain(); got != want {
			t.Errorf("%q: %q, want %q", email, got, want)
		}
	}
	if p := (identity.Identity{Subject: "okta/a/b"}).Provider(); p != "okta" {
		t.Errorf("provider %q", p)
	}
}
