package bootstrap

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"time"

	"nixfleet.dev/nixfleet/internal/fleet"
)

// How long certificates live unless asked otherwise.
const (
	AuthorityLife = 10 * 365 * 24 * time.Hour
	ServerLife    = 365 * 24 * time.Hour
	OperatorLife  = 365 * 24 * time.Hour
	HostLife      = 30 * 24 * time.Hour
)

// clockSlack backdates what no revocation can name: the authority's and the servers' certificates. Those
// of clients begin when they are issued, or one that replaces a revoked one would count as revoked too.
const clockSlack = time.Hour

// Authority is a certificate with its key that can issue others.
type Authority struct {
	Cert *x509.Certificate
	Key  crypto.Signer
}

// Issued is a certificate and its private key, in PEM.
type Issued struct {
	Cert []byte // with the certificates that lead to the root, where there are any
	Key  []byte
}

// newRoot makes the root of a fleet.
func newRoot(trustDomain string, now time.Time) (*Authority, error) {
	return newAuthority(&x509.Certificate{
		Subject:    pkix.Name{CommonName: trustDomain + " root"},
		URIs:       []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
		MaxPathLen: 1,
	}, nil, now)
}

// newIssuer makes what a control plane issues certificates with. It can certify clients of this trust
// domain and nothing else: neither a server that hosts would talk to, nor another authority.
func newIssuer(root *Authority, trustDomain string, now time.Time) (*Authority, error) {
	return newAuthority(&x509.Certificate{
		Subject:                     pkix.Name{CommonName: trustDomain + " issuer"},
		URIs:                        []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
		MaxPathLenZero:              true,
		ExtKeyUsage:                 []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		PermittedDNSDomainsCritical: true,
		PermittedURIDomains:         []string{trustDomain},
	}, root, now)
}

func newAuthority(template *x509.Certificate, parent *Authority, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	if parent == nil {
		parent = &Authority{Cert: template, Key: key}
	}
	template.SerialNumber = newSerial()
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	template.NotBefore, template.NotAfter = now.Add(-clockSlack), now.Add(AuthorityLife)
	der, err := x509.CreateCertificate(rand.Reader, template, parent.Cert, key.Public(), parent.Key)
	if err != nil {
		return nil, fmt.Errorf("making the certificate of %s: %w", template.Subject.CommonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate of %s: %w", template.Subject.CommonName, err)
	}
	return &Authority{Cert: cert, Key: key}, nil
}

// LoadAuthority reads an authority that Init wrote.
func LoadAuthority(certFile, keyFile string) (*Authority, error) {
	certPEM, err := os.ReadFile(certFile)
	if err != nil {
		return nil, fmt.Errorf("reading the authority's certificate: %w", err)
	}
	keyPEM, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the authority's key: %w", err)
	}
	certBlock, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if certBlock == nil || keyBlock == nil {
		return nil, fmt.Errorf("%s or %s is not PEM", certFile, keyFile)
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", certFile, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", keyFile, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok || !cert.IsCA {
		return nil, fmt.Errorf("%s with %s is no certificate authority", certFile, keyFile)
	}
	return &Authority{Cert: cert, Key: signer}, nil
}

// TrustDomain returns the trust domain that the authority certifies for.
func (a *Authority) TrustDomain() string {
	if len(a.Cert.URIs) == 1 && a.Cert.URIs[0].Scheme == "spiffe" {
		return a.Cert.URIs[0].Host
	}
	return ""
}

// IssueHost issues a client certificate of a host. Hosts get theirs by enrolling; this is for tests, and
// for machines that cannot.
func (a *Authority) IssueHost(name string, now time.Time, life time.Duration) (Issued, error) {
	if !fleet.ValidHostname(name) {
		return Issued{}, badOption("%q is not a host name", name)
	}
	return a.issueClient("/host/", name, now, life)
}

// IssueOperator issues a client certificate of an operator.
func (a *Authority) IssueOperator(name string, now time.Time, life time.Duration) (Issued, error) {
	if !fleet.ValidOperator(name) {
		return Issued{}, badOption("%q is not an operator's name: up to 64 letters, digits, dots, hyphens and underscores", name)
	}
	return a.issueClient("/operator/", name, now, life)
}

func (a *Authority) issueClient(role, name string, now time.Time, life time.Duration) (Issued, error) {
	domain := a.TrustDomain()
	if domain == "" {
		return Issued{}, errors.New("the authority is of no trust domain")
	}
	return a.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		URIs:        []*url.URL{{Scheme: "spiffe", Host: domain, Path: role + name}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore:   now.Truncate(time.Second),
		NotAfter:    now.Add(life),
	})
}

// IssueServer issues the certificate of a control plane that is reached by these DNS names and IP
// addresses.
func (a *Authority) IssueServer(names []string, now time.Time, life time.Duration) (Issued, error) {
	if len(names) == 0 {
		return Issued{}, errors.New("a server's certificate needs a DNS name or an IP address")
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: names[0]},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		NotBefore:   now.Add(-clockSlack),
		NotAfter:    now.Add(life),
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if fleet.ValidHostname(name) {
			template.DNSNames = append(template.DNSNames, name)
		} else {
			return Issued{}, badOption("%q is neither a DNS name nor an IP address", name)
		}
	}
	return a.issue(template)
}

func (a *Authority) issue(template *x509.Certificate) (Issued, error) {
	if template.NotAfter.Before(template.NotBefore) {
		return Issued{}, badOption("the certificate would end before it begins")
	}
	if template.NotAfter.After(a.Cert.NotAfter) {
		template.NotAfter = a.Cert.NotAfter
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Issued{}, fmt.Errorf("making a key: %w", err)
	}
	template.SerialNumber = newSerial()
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, a.Cert, key.Public(), a.Key)
	if err != nil {
		return Issued{}, fmt.Errorf("making the certificate of %s: %w", template.Subject.CommonName, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Issued{}, err
	}
	chain := encodeCert(der)
	if !a.isRoot() {
		chain = append(chain, encodeCert(a.Cert.Raw)...)
	}
	return Issued{Cert: chain, Key: keyPEM}, nil
}

func (a *Authority) isRoot() bool { return a.Cert.CheckSignatureFrom(a.Cert) == nil }

func newSerial() *big.Int {
	bits := make([]byte, 16)
	rand.Read(bits)  // never fails: crypto/rand ends the process where there is no randomness
	bits[0] &= 0x7f  // positive in DER
	bits[15] |= 0x01 // not zero
	return new(big.Int).SetBytes(bits)
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
