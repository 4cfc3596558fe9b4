package enroll

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane/server"
	"nixfleet.dev/nixfleet/internal/rollout"
	"nixfleet.dev/nixfleet/internal/trust"
)

// backdate is how long before its making a certificate begins, for clocks that are a little apart. It is
// never before the host's last revocation: a new certificate must not be revoked.
const backdate = time.Minute

// maxCSR caps a certificate request, in bytes of PEM.
const maxCSR = 16 << 10

// maxCommonName is the longest common name that X.509 allows; it is for people alone.
const maxCommonName = 64

// Tokens remembers which key a token has served: internal/controlplane/writer.
type Tokens interface {
	// UseToken makes it durable that the token served the key. The error is a *rollout.TokenSpent when it
	// served another one before.
	UseToken(ctx context.Context, host, nonce, publicKeySHA256 string, expiresAt *time.Time) error
}

// Options are what an Issuer is made of.
type Options struct {
	CertFile, KeyFile string // of the certificate authority, PEM
	TrustDomain       string
	Lifetime          time.Duration // of the certificates
	Root              func() *trust.Root
	Tokens            Tokens
	// Accepted says whether a client's chain would be let in.
	Accepted func(chain []*x509.Certificate) error
	Clock    clock.Clock
	Logger   *slog.Logger
	Metrics  prometheus.Registerer
}

// Issuer implements server.Issuer. It may be used concurrently.
type Issuer struct {
	options   Options
	authority atomic.Pointer[authority]
	revoked   atomic.Pointer[revoked]
	issued    *prometheus.CounterVec
}

type revoked struct {
	nonces map[string]bool
	hosts  *server.Revocations
}

// New reads the authority and returns an Issuer.
func New(o Options) (*Issuer, error) {
	i := &Issuer{options: o, issued: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "nixfleet_certificates_issued_total", Help: "Host certificates issued, by how they were asked for.",
	}, []string{"by"})}
	if _, err := i.Reload(); err != nil {
		return nil, err
	}
	i.SetRevocations(api.Revocations{})
	o.Metrics.MustRegister(i.issued)
	return i, nil
}

// Reload reads the authority again and says whether it had changed; on an error the old one stays.
func (i *Issuer) Reload() (changed bool, err error) {
	a, err := loadAuthority(i.options.CertFile, i.options.KeyFile)
	if err != nil {
		return false, err
	}
	if old := i.authority.Load(); old != nil && old.digest == a.digest {
		return false, nil
	}
	i.authority.Store(a)
	return true, nil
}

// SetRevocations has a list count from now on.
func (i *Issuer) SetRevocations(list api.Revocations) {
	r := &revoked{nonces: map[string]bool{}, hosts: server.NewRevocations(list)}
	for _, token := range list.Tokens {
		r.nonces[token.Nonce] = true
	}
	i.revoked.Store(r)
}

// Enroll issues a certificate for a token.
func (i *Issuer) Enroll(ctx context.Context, req api.EnrollRequest) (api.CertificateReply, error) {
	key, err := parseCSR(req.CSR)
	if err != nil {
		return api.CertificateReply{}, err
	}
	token, err := i.verify(req.Token)
	if err != nil {
		return api.CertificateReply{}, err
	}
	switch {
	case i.revoked.Load().nonces[token.Nonce]:
		return api.CertificateReply{}, invalid("the token is revoked")
	case token.PublicKeySHA256 != "" && token.PublicKeySHA256 != key.digest:
		return api.CertificateReply{}, invalid("the token is bound to another key")
	case token.PublicKeySHA256 == "":
		if err := i.use(ctx, token, key); err != nil {
			return api.CertificateReply{}, err
		}
	}
	return i.issue(token.Hostname, key, "enroll")
}

// Renew issues the next certificate of a host that has one.
func (i *Issuer) Renew(_ context.Context, host string, req api.RenewRequest) (api.CertificateReply, error) {
	key, err := parseCSR(req.CSR)
	if err != nil {
		return api.CertificateReply{}, err
	}
	return i.issue(host, key, "renew")
}

func invalid(format string, args ...any) error {
	return server.Refuse(api.CodeTokenInvalid, format, args...)
}

func (i *Issuer) verify(envelope api.Envelope) (api.EnrollmentToken, error) {
	data, err := json.Marshal(envelope)
	if err != nil {
		return api.EnrollmentToken{}, fmt.Errorf("encoding a token: %w", err)
	}
	v, err := trust.VerifyToken(i.options.Root(), data, i.options.Clock.Now())
	if refusal, ok := errors.AsType[*trust.Error](err); ok {
		return api.EnrollmentToken{}, invalid("%s", refusal.Detail)
	}
	return v.Value(), err
}

func (i *Issuer) use(ctx context.Context, token api.EnrollmentToken, key publicKey) error {
	err := i.options.Tokens.UseToken(ctx, token.Hostname, token.Nonce, key.digest, token.ExpiresAt)
	if _, spent := errors.AsType[*rollout.TokenSpent](err); spent {
		i.options.Logger.Warn("an enrollment token was shown with a second key", "host", token.Hostname)
		return invalid("the token has served another key")
	}
	return err
}

func (i *Issuer) issue(host string, key publicKey, by string) (api.CertificateReply, error) {
	now := i.options.Clock.Now()
	begins := now.Add(-backdate).Truncate(time.Second)
	if cutoff := i.revoked.Load().hosts.HostCutoff(host); begins.Before(cutoff) {
		begins = cutoff.Add(time.Second - 1).Truncate(time.Second)
	}
	if begins.After(now.Add(backdate)) {
		return api.CertificateReply{}, server.Refuse(api.CodeCertificateRevoked, "certificates of %s are revoked until %s", host, begins.UTC().Format(time.RFC3339))
	}
	a := i.authority.Load()
	leaf, err := a.sign(i.template(host, begins, now), key)
	if err != nil {
		return api.CertificateReply{}, fmt.Errorf("issuing a certificate for %s: %w", host, err)
	}
	chain, err := i.chain(leaf, a)
	if err != nil {
		return api.CertificateReply{}, fmt.Errorf("a certificate for %s would not be let in; does [tls] client_ca hold what [issuer] ca_cert leads to? %w", host, err)
	}
	var text []byte
	for _, cert := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	i.issued.WithLabelValues(by).Inc()
	i.options.Logger.Info("issued a certificate", "host", host, "by", by, "serial", leaf.SerialNumber.Text(16), "notAfter", leaf.NotAfter)
	return api.CertificateReply{Certificate: string(text), NotAfter: leaf.NotAfter}, nil
}

func (i *Issuer) template(host string, begins, now time.Time) *x509.Certificate {
	serial := make([]byte, 16)
	rand.Read(serial)                 // never fails: crypto/rand ends the process where there is no randomness
	serial[0] = serial[0]&0x7f | 0x40 // positive, and as long as it looks
	t := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		NotBefore:    begins, NotAfter: now.Add(i.options.Lifetime).Truncate(time.Second),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
		URIs: []*url.URL{{Scheme: "spiffe", Host: i.options.TrustDomain, Path: "/host/" + host}},
	}
	if len(host) <= maxCommonName {
		t.Subject = pkix.Name{CommonName: host}
	}
	return t
}

// chain returns leaf with what issued it (wire.md, Certificates), if this control plane would let it in.
func (i *Issuer) chain(leaf *x509.Certificate, a *authority) ([]*x509.Certificate, error) {
	chain := append([]*x509.Certificate{leaf}, a.issuers...)
	return chain, i.options.Accepted(chain)
}

// publicKey is that of a certificate request.
type publicKey struct {
	key    crypto.PublicKey
	digest string // SHA-256 of its DER SPKI, hex
}

// parseCSR takes the public key out of a certificate request whose sender has the private key.
func parseCSR(text string) (publicKey, error) {
	malformed := func(format string, args ...any) (publicKey, error) {
		return publicKey{}, server.Refuse(api.CodeMalformed, "csr "+format, args...)
	}
	if len(text) > maxCSR {
		return malformed("is over %d bytes", maxCSR)
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return malformed("is not a certificate request in PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return malformed("is not a certificate request")
	}
	switch key := csr.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return malformed("has a key that is neither Ed25519 nor ECDSA P-256")
		}
	default:
		return malformed("has a key that is neither Ed25519 nor ECDSA P-256")
	}
	if csr.CheckSignature() != nil {
		return malformed("is not signed by its own key")
	}
	spki, err := x509.MarshalPKIXPublicKey(csr.PublicKey)
	if err != nil {
		return malformed("has a key that cannot be encoded")
	}
	return publicKey{csr.PublicKey, trust.Digest(spki)}, nil
}
