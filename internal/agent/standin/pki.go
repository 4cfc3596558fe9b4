package standin

import (
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
)

// TrustDomain is the SPIFFE trust domain of every certificate made here.
const TrustDomain = "fleet.test"

// Certificates are good from before synctest's fake now to after any real one.
var (
	NotBefore = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	NotAfter  = time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC)
)

// CA is a certificate authority of one test.
type CA struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	PEM  []byte
}

// NewCA makes a certificate authority.
func NewCA(t testing.TB) *CA {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: NotBefore, NotAfter: NotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	ca := &CA{t: t, key: key}
	ca.cert, ca.PEM = ca.sign(template, template, key)
	return ca
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (ca *CA) sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey) (*x509.Certificate, []byte) {
	ca.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// Server returns a certificate for 127.0.0.1 and localhost.
func (ca *CA) Server() tls.Certificate {
	key := newKey(ca.t)
	cert, _ := ca.sign(&x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "control plane"},
		NotBefore: NotBefore, NotAfter: NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca.cert, key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// Host signs public as the certificate of a host, good from notBefore to notAfter, in PEM.
func (ca *CA) Host(name string, public any, notBefore, notAfter time.Time) []byte {
	ca.t.Helper()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name},
		NotBefore: notBefore, NotAfter: notAfter, URIs: []*url.URL{HostID(name)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// HostID returns the SPIFFE id of a host.
func HostID(name string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: TrustDomain, Path: "/host/" + name}
}

func serial() *big.Int {
	n, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	return n
}

// Files are where a host's TLS files are.
type Files struct{ CA, Cert, Key string }

// WriteHost writes the CA, a certificate and a key for a host below dir.
func (ca *CA) WriteHost(dir, name string) Files {
	ca.t.Helper()
	f := Files{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "host.pem"), filepath.Join(dir, "host.key")}
	key := newKey(ca.t)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		ca.t.Fatal(err)
	}
	WriteFile(ca.t, f.CA, ca.PEM)
	WriteFile(ca.t, f.Cert, ca.Host(name, &key.PublicKey, NotBefore, NotAfter))
	WriteFile(ca.t, f.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return f
}

// WriteFile replaces a file whole, as a tool that renews certificates does.
func WriteFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}
