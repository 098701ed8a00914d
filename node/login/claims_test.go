package login_test

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/node/login"
)

func TestAnIdentityIsWhatTheClaimsSay(t *testing.T) {
	t.Parallel()
	type who = identity.Identity
	at := time.Unix(1800000000, 0)
	for name, test := range map[string]struct {
		claims string
		want   who
	}{
		"all of it": {
			`{"sub":"00u1","email":"ana@example.com","email_verified":true,"name":"Ana","groups":["b","a","b"],"auth_time":1800000000,"iat":1800000009,"amr":["pwd","otp"]}`,
			who{Subject: "okta/00u1", Email: "ana@example.com", Name: "Ana", Groups: []string{"okta/a", "okta/b"}, AuthTime: at, AMR: []string{"pwd", "otp"}},
		},
		"the least":                  {`{"sub":"1","iat":1800000000}`, who{Subject: "okta/1", AuthTime: at}},
		"an e-mail unverified":       {`{"sub":"1","email":"a@b","email_verified":false}`, who{Subject: "okta/1"}},
		"unverified, in a string":    {`{"sub":"1","email":"a@b","email_verified":"false"}`, who{Subject: "okta/1"}},
		"verified, in a string":      {`{"sub":"1","email":"a@b","email_verified":"true"}`, who{Subject: "okta/1", Email: "a@b"}},
		"verified, in nonsense":      {`{"sub":"1","email":"a@b","email_verified":7}`, who{Subject: "okta/1"}},
		"not said to be verified":    {`{"sub":"1","email":"a@b"}`, who{Subject: "okta/1", Email: "a@b"}},
		"said in another case":       {`{"sub":"1","Email":"a@b","EMAIL_VERIFIED":true}`, who{Subject: "okta/1"}},
		"an e-mail of two @":         {`{"sub":"1","email":"root@corp.example@evil.example"}`, who{Subject: "okta/1"}},
		"an e-mail of no @":          {`{"sub":"1","email":"root"}`, who{Subject: "okta/1"}},
		"an e-mail of nobody":        {`{"sub":"1","email":"@b"}`, who{Subject: "okta/1"}},
		"an e-mail with a line":      {`{"sub":"1","email":"a@b\r\nX: y"}`, who{Subject: "okta/1"}},
		"an e-mail with white space": {`{"sub":"1","email":"a b@c"}`, who{Subject: "okta/1"}},
		"one group":                  {`{"sub":"1","groups":"a"}`, who{Subject: "okta/1", Groups: []string{"okta/a"}}},
		"groups with a slash":        {`{"sub":"1","groups":["other/a",""]}`, who{Subject: "okta/1", Groups: []string{"okta/other/a"}}},
		"no groups":                  {`{"sub":"1","groups":null}`, who{Subject: "okta/1"}},
		"a name that is none":        {`{"sub":"1","name":"a\u0000b","preferred_username":"ana"}`, who{Subject: "okta/1", Name: "ana"}},
		"methods that are none":      {`{"sub":"1","amr":["pwd","\n",""]}`, who{Subject: "okta/1", AMR: []string{"pwd"}}},
		"a time that is none":        {`{"sub":"1","auth_time":"now","iat":-5}`, who{Subject: "okta/1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := login.IdentityOf("okta", "", []byte(test.claims))
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Groups) == 0 {
				got.Groups = nil
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("identity (-want +got):\n%s", diff)
			}
		})
	}
}

func TestClaimsThatMeanNobodyAreRefused(t *testing.T) {
	t.Parallel()
	many, err := json.Marshal(make([]string, 1001))
	if err != nil {
		t.Fatal(err)
	}
	for name, claims := range map[string]string{
		"no subject":              `{}`,
		"an empty subject":        `{"sub":""}`,
		"a subject that is none":  `{"sub":1}`,
		"a long subject":          `{"sub":"` + strings.Repeat("a", 256) + `"}`,
		"a subject with a line":   `{"sub":"a\nb"}`,
		"groups of numbers":       `{"sub":"1","groups":[1]}`,
		"groups in an object":     `{"sub":"1","groups":{"a":true}}`,
		"a group with a line":     `{"sub":"1","groups":["a\nb"]}`,
		"a long group":            `{"sub":"1","groups":["` + strings.Repeat("a", 257) + `"]}`,
		"too many groups":         `{"sub":"1","groups":` + string(many) + `}`,
		"no object":               `[]`,
		"nothing":                 ``,
		"a subject in other case": `{"SUB":"1"}`,
	} {
		if got, err := login.IdentityOf("okta", "", []byte(claims)); err == nil {
			t.Errorf("%s: taken as %+v", name, got)
		}
	}
	if got, err := login.IdentityOf("okta", "roles", []byte(`{"sub":"1","groups":["admin"],"roles":["user"]}`)); err != nil || cmp.Diff([]string{"okta/user"}, got.Groups) != "" {
		t.Errorf("groups %q of another claim than was asked for: %v", got.Groups, err)
	}
}

func FuzzClaims(f *testing.F) {
	f.Add([]byte(`{"sub":"1","email":"a@b","groups":["a"],"amr":["pwd"],"iat":1}`))
	f.Add([]byte(`{"sub":"\u2028","groups":"\ud800"}`))
	f.Add([]byte(`{"iat":1e300,"sub":"1"}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		got, err := login.IdentityOf("okta", "groups", payload)
		if err != nil {
			return
		}
		if err := got.Validate(); err != nil || !strings.HasPrefix(got.Subject, "okta/") || strings.Count(got.Email, "@") > 1 {
			t.Errorf("%q: %+v: %v", payload, got, err)
		}
	})
}

func FuzzSealed(f *testing.F) {
	for i, s := range []string{"", "AAAA", strings.Repeat("A", 200), "=", "-_", strings.Repeat("x", 70000)} {
		f.Add(strconv.Itoa(i), s)
	}
	w := newWorld(f)
	f.Fuzz(func(t *testing.T, context, text string) {
		if opened, err := w.regions["eu"].login.OpenAll(w.views.Load(), context, text); err != nil || opened {
			t.Errorf("%q opened as something that this mesh sealed: %v", text, err)
		}
	})
}

func FuzzUnpack(f *testing.F) {
	packed, err := login.Pack("a.b.c")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, packed []byte) {
		token, err := login.Unpack(packed)
		if err != nil {
			return
		}
		again, err := login.Pack(token)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := login.Unpack(again); err != nil || back != token {
			t.Errorf("%q came back as %q: %v", token, back, err)
		}
	})
}
