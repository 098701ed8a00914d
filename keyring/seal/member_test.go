package seal_test

import (
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
)

func TestAMemberOpensTheSecretsOfASnapshot(t *testing.T) {
	t.Parallel()
	aud, key, keys := trio(t)
	secret := mustSeal(t, key, "okta-client", "hunter2")
	s := keyring.NewSnapshot(revision.Revision{Epoch: 1, Index: 1}, keyring.Contents{
		Audiences: map[string]*keyring.Audience{aud.Name: &aud},
		Secrets:   map[string]*keyring.Secret{aud.Name + "/okta-client": &secret},
	})
	if got, err := (seal.Member{Node: "a", Key: keys["a"]}).Open(s, aud.Name, "okta-client"); err != nil || string(got) != "hunter2" {
		t.Errorf("a opens %q: %v", got, err)
	}
	for name, tc := range map[string]struct {
		member           seal.Member
		audience, secret string
		want             fault.Kind
	}{
		"no member":          {seal.Member{Node: "c", Key: keys["c"]}, aud.Name, "okta-client", fault.Denied},
		"an unknown secret":  {seal.Member{Node: "a", Key: keys["a"]}, aud.Name, "x", fault.NotFound},
		"a foreign audience": {seal.Member{Node: "a", Key: keys["a"]}, keyring.AssertAudience("eu-west", ""), "okta-client", fault.NotFound},
	} {
		if _, err := tc.member.Open(s, tc.audience, tc.secret); !fault.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if key.Audience() != keyring.AudienceProxies || key.Version() != 1 {
		t.Errorf("the key is %s", key)
	}
}

func TestTheAudienceOfAssertionsNamesEverySelector(t *testing.T) {
	t.Parallel()
	for selector, want := range map[string]string{"": "assert/eu-west/_", "x=y": "assert/eu-west/x=y"} {
		if got := keyring.AssertAudience("eu-west", selector); got != want {
			t.Errorf("selector %q: %s", selector, got)
		}
	}
}
