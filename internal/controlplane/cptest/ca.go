// Package cptest makes what tests of the control plane need: a CA whose certificates can be wrong in
// any way, and clients that use them. It is for tests and benchmarks alone; real certificates are made
// by internal/release and internal/controlplane/enroll.
package cptest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/internal/clock"
)

// TrustDomain is that of every certificate here, unless a test says otherwise.
const TrustDomain = "fleet.example"

// CA is a fleet's certificate authority.
type CA struct {
	tb   testing.TB
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey
}

// Spec is what a certificate says. Zero times are an hour ago and tomorrow; no EKU is clientAuth.
type Spec struct {
	URIs                []string
	DNS, Emails         []string
	IPs                 []net.IP
	EKU                 []x509.ExtKeyUsage
	NotBefore, NotAfter time.Time
	CommonName          string
	IsCA                bool
}

// NewCA makes a CA.
func NewCA(tb testing.TB) *CA {
	tb.Helper()
	key := newKey(tb)
	template := &x509.Certificate{
		SerialNumber: serial(tb), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: (clock.System{}).Now().Add(-24 * time.Hour), NotAfter: (clock.System{}).Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return &CA{tb: tb, Cert: cert, Key: key}
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func serial(tb testing.TB) *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

// Issue makes a certificate and its key.
func (ca *CA) Issue(s Spec) tls.Certificate {
	ca.tb.Helper()
	key := newKey(ca.tb)
	if s.NotBefore.IsZero() {
		s.NotBefore = (clock.System{}).Now().Add(-time.Hour)
	}
	if s.NotAfter.IsZero() {
		s.NotAfter = (clock.System{}).Now().Add(24 * time.Hour)
	}
	if s.EKU == nil {
		s.EKU = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	template := &x509.Certificate{
		SerialNumber: serial(ca.tb), Subject: pkix.Name{CommonName: s.CommonName}, NotBefore: s.NotBefore, NotAfter: s.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: s.EKU, BasicConstraintsValid: true, IsCA: s.IsCA,
		DNSNames: s.DNS, EmailAddresses: s.Emails, IPAddresses: s.IPs,
	}
	for _, uri := range s.URIs {
		u, err := url.Parse(uri)
		if err != nil {
			ca.tb.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Cert, key.Public(), ca.Key)
	if err != nil {
		ca.tb.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		ca.tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// Host makes the certificate of a host.
func (ca *CA) Host(name string) tls.Certificate {
	return ca.Issue(Spec{URIs: []string{"spiffe://" + TrustDomain + "/host/" + name}, CommonName: name})
}

// Operator makes the certificate of an operator.
func (ca *CA) Operator(name string) tls.Certificate {
	return ca.Issue(Spec{URIs: []string{"spiffe://" + TrustDomain + "/operator/" + name}, CommonName: name})
}

// Server makes a server's certificate for loopback.
func (ca *CA) Server() tls.Certificate {
	return ca.Issue(Spec{
		DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		EKU: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, CommonName: "control plane",
	})
}

// Files are the paths of a server's PEM files.
type Files struct{ Cert, Key, CA string }

// WriteFiles writes cert and the CA as a server reads them into dir, over what is there.
func (ca *CA) WriteFiles(dir string, cert tls.Certificate) Files {
	ca.tb.Helper()
	f := Files{Cert: filepath.Join(dir, "server.crt"), Key: filepath.Join(dir, "server.key"), CA: filepath.Join(dir, "ca.crt")}
	write := func(name, kind string, der []byte) {
		if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			ca.tb.Fatal(err)
		}
	}
	write(f.Key, "PRIVATE KEY", PKCS8(ca.tb, cert.PrivateKey))
	write(f.Cert, "CERTIFICATE", cert.Certificate[0])
	write(f.CA, "CERTIFICATE", ca.Cert.Raw)
	return f
}

// PKCS8 encodes a private key.
func PKCS8(tb testing.TB, key crypto.PrivateKey) []byte {
	tb.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// ClientTLS is the configuration of a client with these certificates, which may be none.
func (ca *CA) ClientTLS(certs ...tls.Certificate) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(ca.Cert)
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: certs}
}
