package enroll

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane/cptest"
	"nixfleet.dev/nixfleet/internal/controlplane/server"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/rollout"
	"nixfleet.dev/nixfleet/internal/trust"
)

const nonce = "0123456789abcdef0123456789abcdef"

// fakeTokens remembers the key of each token.
type fakeTokens struct {
	mu   sync.Mutex
	keys map[string]string
	err  error
}

func (f *fakeTokens) UseToken(_ context.Context, _, nonce, key string, _ *time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	if f.keys[nonce] != "" && f.keys[nonce] != key {
		return &rollout.TokenSpent{Nonce: nonce}
	}
	f.keys[nonce] = key
	return nil
}

type fixture struct {
	t      *testing.T
	ca     *cptest.CA
	files  cptest.Files
	tokens *fakeTokens
	issuer *Issuer
	now    time.Time
}

func newFixture(t *testing.T, lifetime time.Duration) *fixture {
	t.Helper()
	f := &fixture{t: t, ca: cptest.NewCA(t), tokens: &fakeTokens{keys: map[string]string{}}, now: time.Now().UTC().Truncate(time.Second)}
	dir := t.TempDir()
	f.files = f.ca.WriteFiles(dir, tls.Certificate{Certificate: [][]byte{f.ca.Cert.Raw}, PrivateKey: f.ca.Key})
	root := manifesttest.Root(manifesttest.Trust())
	pool := x509.NewCertPool()
	pool.AddCert(f.ca.Cert)
	var err error
	f.issuer, err = New(Options{
		CertFile: f.files.Cert, KeyFile: f.files.Key, TrustDomain: cptest.TrustDomain, Lifetime: lifetime,
		Root: func() *trust.Root { return root }, Tokens: f.tokens, Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
		Accepted: func(chain []*x509.Certificate) error {
			_, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
			return err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) token(edit func(*api.EnrollmentToken), keys ...string) api.Envelope {
	f.t.Helper()
	end := f.now.Add(time.Hour)
	token := api.EnrollmentToken{SchemaVersion: 1, Hostname: "web-01", Nonce: nonce, IssuedAt: f.now, ExpiresAt: &end}
	if edit != nil {
		edit(&token)
	}
	if keys == nil {
		keys = []string{manifesttest.EnrollmentKey}
	}
	payload, err := json.Marshal(token)
	if err != nil {
		f.t.Fatal(err)
	}
	data, err := trust.Sign(api.PayloadToken, payload, manifesttest.Key(keys[0]))
	if err != nil {
		f.t.Fatal(err)
	}
	var envelope api.Envelope
	if err := json.Unmarshal(data, &envelope); err != nil {
		f.t.Fatal(err)
	}
	return envelope
}

func ecKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func edKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// csr asks for much that it must not get.
func csr(t *testing.T, key crypto.Signer) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "evil"}, DNSNames: []string{"evil.example"}, EmailAddresses: []string{"evil@example.org"},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func digest(t *testing.T, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return trust.Digest(der)
}

func (f *fixture) enroll(token api.Envelope, csr string) (*x509.Certificate, error) {
	f.t.Helper()
	reply, err := f.issuer.Enroll(f.t.Context(), api.EnrollRequest{Token: token, CSR: csr})
	if err != nil {
		return nil, err
	}
	return f.parse(reply), nil
}

func (f *fixture) parse(reply api.CertificateReply) *x509.Certificate {
	f.t.Helper()
	chain := f.chain(reply)
	if !chain[0].NotAfter.Equal(reply.NotAfter) {
		f.t.Fatalf("the certificate ends at %v, the reply says %v", chain[0].NotAfter, reply.NotAfter)
	}
	return chain[0]
}

// chain reads all certificates of a reply, which must be there and lead from one to the next.
func (f *fixture) chain(reply api.CertificateReply) (chain []*x509.Certificate) {
	f.t.Helper()
	for rest := []byte(reply.Certificate); len(rest) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			f.t.Fatalf("not all of it is PEM: %s", reply.Certificate)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			f.t.Fatal(err)
		}
		if n := len(chain); n > 0 && chain[n-1].CheckSignatureFrom(cert) != nil {
			f.t.Fatalf("certificate %d did not issue the one before it", n)
		}
		chain = append(chain, cert)
	}
	if len(chain) < 2 {
		f.t.Fatalf("%d certificates are no chain: %s", len(chain), reply.Certificate)
	}
	return chain
}

func code(err error) api.Code {
	if p, ok := errors.AsType[*server.Problem](err); ok {
		return p.Code
	}
	return ""
}

func (f *fixture) refuses(name string, err error, want api.Code, says string) {
	f.t.Helper()
	if code(err) != want || !strings.Contains(err.Error(), says) {
		f.t.Errorf("%s: %v, want %s with %q", name, err, want, says)
	}
}

func TestACertificateIsTheTokensHostsAndNothingElse(t *testing.T) {
	f := newFixture(t, 2*time.Hour)
	for _, key := range []crypto.Signer{ecKey(t, elliptic.P256()), edKey(t)} {
		f.tokens.keys = map[string]string{}
		cert, err := f.enroll(f.token(nil), csr(t, key))
		if err != nil {
			t.Fatal(err)
		}
		id, err := server.Identify(cert, cptest.TrustDomain)
		if err != nil || id.Role != server.Host || id.Name != "web-01" {
			t.Errorf("identity %+v, %v", id, err)
		}
		if cert.Subject.CommonName != "web-01" || len(cert.DNSNames)+len(cert.EmailAddresses) > 0 || cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature {
			t.Errorf("certificate: %+v", cert)
		}
		if before := f.now.Sub(cert.NotBefore); before < 30*time.Second || before > 2*time.Minute || cert.NotAfter.Sub(f.now) > 2*time.Hour+time.Minute || cert.NotAfter.Sub(f.now) < time.Hour {
			t.Errorf("from %v to %v", cert.NotBefore, cert.NotAfter)
		}
		if cert.SerialNumber.BitLen() < 120 {
			t.Errorf("serial %v", cert.SerialNumber)
		}
	}
}

func TestACertificateComesWithWhatIssuedIt(t *testing.T) {
	f := newFixture(t, time.Hour)
	reply, err := f.issuer.Enroll(t.Context(), api.EnrollRequest{Token: f.token(nil), CSR: csr(t, ecKey(t, elliptic.P256()))})
	if err != nil {
		t.Fatal(err)
	}
	if chain := f.chain(reply); len(chain) != 2 || !chain[1].Equal(f.ca.Cert) {
		t.Errorf("%d certificates, want the host's and its authority's", len(chain))
	}
}

func TestAChainLeadsUpToTheRootAndLeavesThatOut(t *testing.T) {
	f := newFixture(t, time.Hour)
	template := *f.ca.Cert
	template.RawSubject, template.Subject = nil, pkix.Name{CommonName: "hosts"}
	key := ecKey(t, elliptic.P256())
	under, err := x509.CreateCertificate(rand.Reader, &template, f.ca.Cert, key.Public(), f.ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: under})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.ca.Cert.Raw})...)
	a := &authority{}
	if err := a.parseCerts(text); err != nil {
		t.Fatal(err)
	}
	if len(a.issuers) != 1 || !bytes.Equal(a.issuers[0].Raw, under) {
		t.Errorf("%d issuers, want the intermediate alone", len(a.issuers))
	}
}

func TestACertificateDoesNotOutliveItsAuthority(t *testing.T) {
	f := newFixture(t, 10_000*time.Hour)
	cert, err := f.enroll(f.token(nil), csr(t, edKey(t)))
	if err != nil || !cert.NotAfter.Equal(f.ca.Cert.NotAfter) {
		t.Errorf("until %v, %v", cert.NotAfter, err)
	}
}

func TestAnUnboundTokenServesOneKey(t *testing.T) {
	f := newFixture(t, time.Hour)
	first, second := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	for range 3 { // a lost answer is asked for again
		if _, err := f.enroll(f.token(nil), csr(t, first)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := f.enroll(f.token(nil), csr(t, second))
	f.refuses("a second key", err, api.CodeTokenInvalid, "another key")
}

func TestNothingIsIssuedUnlessTheUseOfTheTokenIsOnDisk(t *testing.T) {
	f := newFixture(t, time.Hour)
	f.tokens.err = errors.New("disk full")
	if cert, err := f.enroll(f.token(nil), csr(t, edKey(t))); err == nil || code(err) != "" {
		t.Errorf("got %v, %v", cert, err)
	}
}

func TestABoundTokenCertifiesItsKeyAgainAndAgain(t *testing.T) {
	f := newFixture(t, time.Hour)
	key := ecKey(t, elliptic.P256())
	bound := f.token(func(token *api.EnrollmentToken) { token.ExpiresAt, token.PublicKeySHA256 = nil, digest(t, key) })
	for range 2 {
		if _, err := f.enroll(bound, csr(t, key)); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.tokens.keys) > 0 {
		t.Error("a bound token was used up")
	}
	_, err := f.enroll(bound, csr(t, ecKey(t, elliptic.P256())))
	f.refuses("another key", err, api.CodeTokenInvalid, "bound to another key")
}

func TestBadTokensAreRefused(t *testing.T) {
	f := newFixture(t, time.Hour)
	request := csr(t, edKey(t))
	for name, test := range map[string]struct {
		token api.Envelope
		says  string
	}{
		"an unknown key": {f.token(nil, "stranger"), ""},
		"a release key":  {f.token(nil, manifesttest.ReleaseKey), ""},
		"one that has ended": {f.token(func(token *api.EnrollmentToken) {
			end := f.now.Add(-time.Second)
			token.ExpiresAt = &end
		}), "ended"},
		"one of the future":                           {f.token(func(token *api.EnrollmentToken) { token.IssuedAt = f.now.Add(time.Hour) }), "and now it is"},
		"one that is bound to nothing and never ends": {f.token(func(token *api.EnrollmentToken) { token.ExpiresAt = nil }), "no end"},
		"a host name that is not one":                 {f.token(func(token *api.EnrollmentToken) { token.Hostname = "web-01/../operator/root" }), "host name"},
		"nothing":                                     {api.Envelope{}, ""},
	} {
		_, err := f.enroll(test.token, request)
		f.refuses(name, err, api.CodeTokenInvalid, test.says)
	}
	altered := f.token(nil)
	altered.PayloadType = api.PayloadIndex
	_, err := f.enroll(altered, request)
	f.refuses("another type", err, api.CodeTokenInvalid, "")
	if len(f.tokens.keys) > 0 {
		t.Error("a bad token was used up")
	}
}

func TestRevocationOfTokensAndHosts(t *testing.T) {
	f := newFixture(t, time.Hour)
	key := edKey(t)
	cutoff := f.now.Add(-10 * time.Second).Add(time.Millisecond)
	f.issuer.SetRevocations(api.Revocations{Hosts: []api.RevokedHost{{Hostname: "web-01", CertificatesIssuedBefore: cutoff}}})
	cert, err := f.enroll(f.token(nil), csr(t, key))
	if err != nil || cert.NotBefore.Before(cutoff) {
		t.Fatalf("a certificate after a revocation begins at %v: %v", cert.NotBefore, err)
	}
	f.issuer.SetRevocations(api.Revocations{Hosts: []api.RevokedHost{{Hostname: "web-01", CertificatesIssuedBefore: f.now.Add(time.Hour)}}})
	_, err = f.enroll(f.token(nil), csr(t, key))
	f.refuses("a host revoked for the future", err, api.CodeCertificateRevoked, "until")
	f.issuer.SetRevocations(api.Revocations{Tokens: []api.RevokedToken{{Nonce: nonce}}})
	_, err = f.enroll(f.token(nil), csr(t, key))
	f.refuses("a revoked token", err, api.CodeTokenInvalid, "revoked")
}

func TestBadRequestsAreRefused(t *testing.T) {
	f := newFixture(t, time.Hour)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := csr(t, edKey(t))
	block, _ := pem.Decode([]byte(good))
	block.Bytes[len(block.Bytes)-1] ^= 1
	for name, text := range map[string]string{
		"nothing": "", "garbage": "garbage", "huge": strings.Repeat("a", maxCSR+1),
		"RSA": csr(t, rsaKey), "P-384": csr(t, ecKey(t, elliptic.P384())),
		"another block":          strings.ReplaceAll(good, "CERTIFICATE REQUEST", "CERTIFICATE"),
		"signed by another key":  string(pem.EncodeToMemory(block)),
		"a request that is none": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte{0x30, 0}})),
	} {
		_, err := f.enroll(f.token(nil), text)
		f.refuses(name, err, api.CodeMalformed, "csr")
		_, err = f.issuer.Renew(t.Context(), "web-01", api.RenewRequest{CSR: text})
		f.refuses(name, err, api.CodeMalformed, "csr")
	}
}

func TestRenewalIsForTheHostThatAsks(t *testing.T) {
	f := newFixture(t, time.Hour)
	reply, err := f.issuer.Renew(t.Context(), "db-07", api.RenewRequest{CSR: csr(t, edKey(t))})
	if err != nil {
		t.Fatal(err)
	}
	if id, err := server.Identify(f.parse(reply), cptest.TrustDomain); err != nil || id.Name != "db-07" {
		t.Errorf("identity %+v, %v", id, err)
	}
}

func TestALongHostNameHasNoCommonName(t *testing.T) {
	f := newFixture(t, time.Hour)
	host := strings.Repeat("a", 60) + "." + strings.Repeat("b", 60)
	reply, err := f.issuer.Renew(t.Context(), host, api.RenewRequest{CSR: csr(t, edKey(t))})
	if err != nil {
		t.Fatal(err)
	}
	cert := f.parse(reply)
	if id, err := server.Identify(cert, cptest.TrustDomain); err != nil || id.Name != host || cert.Subject.CommonName != "" {
		t.Errorf("identity %+v, %v, CN %q", id, err, cert.Subject.CommonName)
	}
}

func TestTheAuthorityIsReadAgain(t *testing.T) {
	f := newFixture(t, time.Hour)
	if changed, err := f.issuer.Reload(); changed || err != nil {
		t.Errorf("nothing changed: %v, %v", changed, err)
	}
	other := cptest.NewCA(t)
	dir := filepath.Dir(f.files.Cert)
	other.WriteFiles(dir, tls.Certificate{Certificate: [][]byte{f.ca.Cert.Raw}, PrivateKey: other.Key})
	if _, err := f.issuer.Reload(); err == nil || !strings.Contains(err.Error(), "does not belong") {
		t.Errorf("a key of another: %v", err)
	}
	if _, err := f.issuer.Renew(t.Context(), "web-01", api.RenewRequest{CSR: csr(t, edKey(t))}); err != nil {
		t.Errorf("the old one is gone: %v", err)
	}
	other.WriteFiles(dir, tls.Certificate{Certificate: [][]byte{other.Cert.Raw}, PrivateKey: other.Key})
	if changed, err := f.issuer.Reload(); !changed || err != nil {
		t.Errorf("reload: %v, %v", changed, err)
	}
	_, err := f.issuer.Renew(t.Context(), "web-01", api.RenewRequest{CSR: csr(t, edKey(t))})
	if err == nil || !strings.Contains(err.Error(), "client_ca") {
		t.Errorf("a certificate that would not be let in: %v", err)
	}
}

func TestAFileThatIsNoAuthorityIsRefused(t *testing.T) {
	f := newFixture(t, time.Hour)
	leaf := f.ca.Host("web-01")
	write := func(kind string, der []byte) string {
		name := filepath.Join(t.TempDir(), "file.pem")
		if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	leafCert, leafKey := write("CERTIFICATE", leaf.Certificate[0]), write("PRIVATE KEY", cptest.PKCS8(t, leaf.PrivateKey))
	for name, files := range map[string][2]string{
		"a host's":       {leafCert, leafKey},
		"no certificate": {f.files.Key, f.files.Key},
		"no key":         {f.files.Cert, f.files.Cert},
		"gone":           {f.files.Cert + "x", f.files.Key},
		"a key URI":      {f.files.Cert, "pkcs11:token=x"},
	} {
		if _, err := loadAuthority(files[0], files[1]); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func FuzzParseCSR(f *testing.F) {
	f.Add("-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n")
	f.Fuzz(func(t *testing.T, text string) {
		if key, err := parseCSR(text); err == nil && (key.key == nil || len(key.digest) != 64) {
			t.Errorf("key %+v", key)
		}
	})
}
