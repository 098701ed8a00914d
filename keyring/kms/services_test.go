package kms_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// The services of this file speak what their documentation says, and encrypt for real, so that only what was encrypted decrypts.

// fault of a service: what it answers instead.
type answer struct {
	status int
	body   string
}

// service is what the local servers have in common.
type service struct {
	aead   cipher.AEAD
	broken atomic.Pointer[answer] // nil: it works
	hang   atomic.Bool            // it does not answer before its client goes
	calls  atomic.Int32
}

func (s *service) init(t *testing.T) {
	t.Helper()
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	if s.aead, err = cipher.NewGCM(block); err != nil {
		t.Fatal(err)
	}
}

func (s *service) seal(plaintext, aad []byte) []byte {
	nonce := make([]byte, s.aead.NonceSize())
	rand.Read(nonce)
	return s.aead.Seal(nonce, nonce, plaintext, aad)
}

func (s *service) open(sealed, aad []byte) ([]byte, error) {
	if len(sealed) < s.aead.NonceSize() {
		return nil, io.ErrUnexpectedEOF
	}
	return s.aead.Open(nil, sealed[:s.aead.NonceSize()], sealed[s.aead.NonceSize():], aad)
}

// spoilt answers in place of a service that is broken or hangs.
func (s *service) spoilt(w http.ResponseWriter, r *http.Request) bool {
	s.calls.Add(1)
	if s.hang.Load() {
		_, _ = io.Copy(io.Discard, r.Body) // else the server does not notice that its client goes
		<-r.Context().Done()
		return true
	}
	if a := s.broken.Load(); a != nil {
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.body)
		return true
	}
	return false
}

func writeJSON(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

// vault is the transit engine of Vault with the key "mesh".
type vault struct {
	service
	token string
	url   string
}

func newVault(t *testing.T) *vault {
	v := &vault{token: "hvs.CAESIJtesttokentesttoken"}
	v.init(t)
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/{engine}/{op}/{key}", v.serve)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	v.url = server.URL
	return v
}

func (v *vault) fail(w http.ResponseWriter, status int, text string) {
	w.WriteHeader(status)
	writeJSON(w, map[string]any{"errors": []string{text}})
}

func (v *vault) serve(w http.ResponseWriter, r *http.Request) {
	if v.spoilt(w, r) {
		return
	}
	var in struct{ Plaintext, Ciphertext string }
	switch {
	case r.Header.Get("X-Vault-Token") != v.token:
		v.fail(w, http.StatusForbidden, "permission denied")
		return
	case r.PathValue("engine") != "transit":
		v.fail(w, http.StatusNotFound, `no handler for route "`+r.URL.Path+`". route entry not found.`)
		return
	case r.PathValue("key") != "mesh":
		v.fail(w, http.StatusBadRequest, "encryption key not found")
		return
	case json.NewDecoder(r.Body).Decode(&in) != nil:
		v.fail(w, http.StatusBadRequest, "error parsing JSON")
		return
	}
	out := map[string]any{}
	switch r.PathValue("op") {
	case "encrypt":
		plaintext, err := base64.StdEncoding.DecodeString(in.Plaintext)
		if err != nil {
			v.fail(w, http.StatusBadRequest, "failed to base64-decode plaintext")
			return
		}
		out["ciphertext"] = "vault:v1:" + base64.StdEncoding.EncodeToString(v.seal(plaintext, nil))
		out["key_version"] = 1
	case "decrypt":
		text, ok := strings.CutPrefix(in.Ciphertext, "vault:v1:")
		sealed, err := base64.StdEncoding.DecodeString(text)
		if !ok || err != nil {
			v.fail(w, http.StatusBadRequest, "invalid ciphertext: no prefix")
			return
		}
		plaintext, err := v.open(sealed, nil)
		if err != nil {
			v.fail(w, http.StatusBadRequest, "cipher: message authentication failed")
			return
		}
		out["plaintext"] = base64.StdEncoding.EncodeToString(plaintext)
	}
	writeJSON(w, map[string]any{
		"request_id": "0b9e6e6e-0c3c-4c6a-8a8c-1f3e3b1f0d5e", "lease_id": "", "renewable": false, "lease_duration": 0, "data": out,
		"wrap_info": nil, "warnings": nil, "auth": nil,
	})
}

// aws is KMS with the key alias/mesh. It checks signatures as the documentation of Signature Version 4 says.
type aws struct {
	service
	id, secret, region string
	url                string
}

func newAWS(t *testing.T) *aws {
	a := &aws{id: "AKIDEXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", region: "eu-west-1"}
	a.init(t)
	server := httptest.NewServer(http.HandlerFunc(a.serve))
	t.Cleanup(server.Close)
	a.url = server.URL
	return a
}

func (a *aws) fail(w http.ResponseWriter, kind, text string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(http.StatusBadRequest)
	writeJSON(w, map[string]string{"__type": kind, "message": text})
}

func (a *aws) serve(w http.ResponseWriter, r *http.Request) {
	if a.spoilt(w, r) {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/x-amz-json-1.1" {
		a.fail(w, "ValidationException", "not JSON 1.1")
		return
	}
	if problem := a.unsigned(r, body); problem != "" {
		a.fail(w, "InvalidSignatureException", problem)
		return
	}
	var in struct {
		KeyID                     string `json:"KeyId"`
		Plaintext, CiphertextBlob []byte
		EncryptionContext         map[string]string
	}
	if err := json.Unmarshal(body, &in); err != nil {
		a.fail(w, "ValidationException", err.Error())
		return
	}
	aad, _ := json.Marshal(in.EncryptionContext) // keys in order
	out := map[string]any{"KeyId": "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab", "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}
	switch r.Header.Get("X-Amz-Target") {
	case "TrentService.Encrypt":
		if in.KeyID != "alias/mesh" {
			a.fail(w, "NotFoundException", "Alias "+in.KeyID+" is not found.")
			return
		}
		out["CiphertextBlob"] = a.seal(in.Plaintext, aad)
	case "TrentService.Decrypt":
		plaintext, err := a.open(in.CiphertextBlob, aad)
		if err != nil {
			a.fail(w, "InvalidCiphertextException", "")
			return
		}
		out["Plaintext"] = plaintext
	default:
		a.fail(w, "UnknownOperationException", "")
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	writeJSON(w, out)
}

// unsigned says what is wrong with a request's signature.
func (a *aws) unsigned(r *http.Request, body []byte) string {
	fields := map[string]string{}
	credentials, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return "Missing Authentication Token"
	}
	for part := range strings.SplitSeq(credentials, ", ") {
		name, value, _ := strings.Cut(part, "=")
		fields[name] = value
	}
	stamp := r.Header.Get("X-Amz-Date")
	if len(stamp) < 8 {
		return "no X-Amz-Date"
	}
	scope := strings.Join([]string{stamp[:8], a.region, "kms", "aws4_request"}, "/")
	if fields["Credential"] != a.id+"/"+scope {
		return "credential " + fields["Credential"]
	}
	var headers strings.Builder
	names := strings.Split(fields["SignedHeaders"], ";")
	if !slices.IsSorted(names) || !slices.Contains(names, "host") || !slices.Contains(names, "x-amz-date") || !slices.Contains(names, "x-amz-target") {
		return "signed headers " + fields["SignedHeaders"]
	}
	for _, name := range names {
		value := strings.Join(r.Header.Values(name), ",")
		switch name {
		case "host":
			value = r.Host
		case "content-length":
			value = fmt.Sprint(r.ContentLength)
		}
		fmt.Fprintf(&headers, "%s:%s\n", name, strings.TrimSpace(value))
	}
	digest := sha256.Sum256(body)
	request := strings.Join([]string{r.Method, "/", "", headers.String(), fields["SignedHeaders"], hex.EncodeToString(digest[:])}, "\n")
	requestDigest := sha256.Sum256([]byte(request))
	key := []byte("AWS4" + a.secret)
	for part := range strings.SplitSeq(scope, "/") {
		key = mac(key, part)
	}
	want := hex.EncodeToString(mac(key, strings.Join([]string{"AWS4-HMAC-SHA256", stamp, scope, hex.EncodeToString(requestDigest[:])}, "\n")))
	if want != fields["Signature"] {
		return "The request signature we calculated does not match the signature you provided."
	}
	return ""
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// gcp is Cloud KMS with one key, by gRPC.
type gcp struct {
	kmspb.UnimplementedKeyManagementServiceServer
	service
	code    atomic.Uint32 // what it answers, if not OK
	options []option.ClientOption
}

const gcpKey = "projects/p/locations/europe-west1/keyRings/r/cryptoKeys/mesh"

func newGCP(t *testing.T) *gcp {
	g := &gcp{}
	g.init(t)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	kmspb.RegisterKeyManagementServiceServer(server, g)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // which it says if it was stopped before it began
			t.Error(err)
		}
	})
	g.options = []option.ClientOption{
		option.WithEndpoint(l.Addr().String()), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
	}
	return g
}

func (g *gcp) spoiltCall(ctx context.Context, name string) error {
	g.calls.Add(1)
	if g.hang.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	if c := codes.Code(g.code.Load()); c != codes.OK {
		return status.Error(c, "as the test wants")
	}
	if name != gcpKey {
		return status.Errorf(codes.NotFound, "CryptoKey %s not found.", name)
	}
	return nil
}

func (g *gcp) Encrypt(ctx context.Context, r *kmspb.EncryptRequest) (*kmspb.EncryptResponse, error) {
	if err := g.spoiltCall(ctx, r.Name); err != nil {
		return nil, err
	}
	return &kmspb.EncryptResponse{Name: r.Name + "/cryptoKeyVersions/1", Ciphertext: g.seal(r.Plaintext, r.AdditionalAuthenticatedData)}, nil
}

func (g *gcp) Decrypt(ctx context.Context, r *kmspb.DecryptRequest) (*kmspb.DecryptResponse, error) {
	if err := g.spoiltCall(ctx, r.Name); err != nil {
		return nil, err
	}
	plaintext, err := g.open(r.Ciphertext, r.AdditionalAuthenticatedData)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "Decryption failed: the ciphertext is invalid.")
	}
	return &kmspb.DecryptResponse{Plaintext: plaintext}, nil
}

// azure is Key Vault with one RSA key, and the Entra tenant that guards it, on one TLS server that answers for both hosts.
type azure struct {
	service
	key       *rsa.PrivateKey
	secret    string
	transport http.RoundTripper
	tokens    atomic.Int32
}

const (
	azureTenant  = "72f988bf-86f1-41af-91ab-2d7cd011db47"
	azureClient  = "11111111-2222-3333-4444-555555555555"
	azureVersion = "78deebed173b48e48f55abf87ed4cf71"
	azureToken   = "eyJ0eXAiOiJKV1QiLCJhbGciOiJub25lIn0.eyJvaWQiOiJ4In0."
	azureURL     = "azurekeyvault://mesh.vault.azure.net/keys/mesh/" + azureVersion
)

func newAzure(t *testing.T) *azure {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	a := &azure{key: key, secret: "Zx8Q~client.secret.of.the.test"}
	a.init(t)
	mux := http.NewServeMux()
	mux.HandleFunc("GET login.microsoftonline.com/common/discovery/instance", a.discovery)
	mux.HandleFunc("GET login.microsoftonline.com/{tenant}/v2.0/.well-known/openid-configuration", a.configuration)
	mux.HandleFunc("POST login.microsoftonline.com/{tenant}/oauth2/v2.0/token", a.issue)
	mux.HandleFunc("POST mesh.vault.azure.net/keys/{name}/{version}/{op}", a.serve)
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	client := server.Client().Transport.(*http.Transport).Clone()
	client.TLSClientConfig.ServerName = "example.com" // which httptest's certificate is for
	client.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
	}
	t.Cleanup(client.CloseIdleConnections)
	a.transport = client
	return a
}

func (a *azure) discovery(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, map[string]any{
		"tenant_discovery_endpoint": "https://login.microsoftonline.com/" + azureTenant + "/v2.0/.well-known/openid-configuration", "api-version": "1.1",
		"metadata": []map[string]any{{
			"preferred_network": "login.microsoftonline.com", "preferred_cache": "login.windows.net", "aliases": []string{"login.microsoftonline.com"},
		}},
	})
}

func (a *azure) configuration(w http.ResponseWriter, r *http.Request) {
	base := "https://login.microsoftonline.com/" + r.PathValue("tenant")
	writeJSON(w, map[string]any{
		"token_endpoint": base + "/oauth2/v2.0/token", "authorization_endpoint": base + "/oauth2/v2.0/authorize", "issuer": base + "/v2.0",
	})
}

func (a *azure) issue(w http.ResponseWriter, r *http.Request) {
	a.tokens.Add(1)
	w.Header().Set("Content-Type", "application/json")
	if r.FormValue("grant_type") != "client_credentials" || r.FormValue("client_id") != azureClient || r.FormValue("client_secret") != a.secret ||
		r.PathValue("tenant") != azureTenant || !strings.Contains(r.FormValue("scope"), "https://vault.azure.net/.default") {
		w.WriteHeader(http.StatusUnauthorized)
		writeJSON(w, map[string]any{"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."})
		return
	}
	writeJSON(w, map[string]any{"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": azureToken})
}

func (a *azure) fail(w http.ResponseWriter, status int, code, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	writeJSON(w, map[string]any{"error": map[string]string{"code": code, "message": text}})
}

func (a *azure) serve(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+azureToken {
		w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.microsoftonline.com/`+azureTenant+`", resource="https://vault.azure.net"`)
		a.fail(w, http.StatusUnauthorized, "Unauthorized", "AKV10000: Request is missing a Bearer or PoP token.")
		return
	}
	if a.spoilt(w, r) {
		return
	}
	var in struct{ Alg, Value string }
	err := json.NewDecoder(r.Body).Decode(&in)
	value, errValue := base64.RawURLEncoding.DecodeString(in.Value)
	switch {
	case err != nil || errValue != nil || in.Alg != "RSA-OAEP-256" || r.URL.Query().Get("api-version") == "":
		a.fail(w, http.StatusBadRequest, "BadParameter", "bad request")
		return
	case r.PathValue("name") != "mesh" || r.PathValue("version") != azureVersion:
		a.fail(w, http.StatusNotFound, "KeyNotFound", "A key with (name/id) was not found in this key vault.")
		return
	}
	var out []byte
	switch r.PathValue("op") {
	case "encrypt":
		out, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, &a.key.PublicKey, value, nil)
	case "decrypt":
		out, err = rsa.DecryptOAEP(sha256.New(), nil, a.key, value, nil)
	}
	if err != nil {
		a.fail(w, http.StatusBadRequest, "BadParameter", "The parameter is incorrect.")
		return
	}
	kid := url.URL{Scheme: "https", Host: r.Host, Path: "/keys/mesh/" + azureVersion}
	w.Header().Set("Content-Type", "application/json")
	writeJSON(w, map[string]string{"kid": kid.String(), "value": base64.RawURLEncoding.EncodeToString(out)})
}
