package server

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Credentials are the server's certificate and the CA of its clients, read from files and read again
// when those change. It may be used concurrently.
type Credentials struct {
	certFile, keyFile, caFile string

	reload sync.Mutex
	loaded atomic.Pointer[loaded]
}

// loaded is one state of the files.
type loaded struct {
	digest [sha256.Size]byte
	cert   tls.Certificate
	leaf   *x509.Certificate
	pool   *x509.CertPool
}

// LoadCredentials reads the server's chain and key, and the CA that client certificates must lead to,
// all PEM files.
func LoadCredentials(certFile, keyFile, caFile string) (*Credentials, error) {
	c := &Credentials{certFile: certFile, keyFile: keyFile, caFile: caFile}
	_, err := c.Reload()
	return c, err
}

// Reload reads the files again and says whether they had changed. On an error (one file of a pair was
// replaced and the other not yet, for instance) what was loaded before stays.
func (c *Credentials) Reload() (changed bool, err error) {
	c.reload.Lock()
	defer c.reload.Unlock()
	var files [3][]byte
	for i, name := range []string{c.certFile, c.keyFile, c.caFile} {
		if files[i], err = os.ReadFile(name); err != nil {
			return false, fmt.Errorf("reading the server's certificates: %w", err)
		}
	}
	digest := sha256.Sum256(bytes.Join(files[:], []byte{0}))
	if old := c.loaded.Load(); old != nil && old.digest == digest {
		return false, nil
	}
	cert, err := tls.X509KeyPair(files[0], files[1])
	if err != nil {
		return false, fmt.Errorf("reading the certificate %s with the key %s: %w", c.certFile, c.keyFile, err)
	}
	pool, err := parsePool(files[2])
	if err != nil {
		return false, fmt.Errorf("reading the clients' CA %s: %w", c.caFile, err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return false, fmt.Errorf("reading the certificate %s: %w", c.certFile, err)
	}
	c.loaded.Store(&loaded{digest: digest, cert: cert, leaf: leaf, pool: pool})
	return true, nil
}

func parsePool(data []byte) (*x509.CertPool, error) {
	pool, n := x509.NewCertPool(), 0
	for len(bytes.TrimSpace(data)) > 0 {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("is not certificates in PEM")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		pool.AddCert(cert)
		n++
	}
	if n == 0 {
		return nil, errors.New("holds no certificate")
	}
	return pool, nil
}

// NotAfter returns when the server's certificate ends.
func (c *Credentials) NotAfter() time.Time { return c.loaded.Load().leaf.NotAfter }

// VerifyClient says why a client's chain would not be let in at a time, by the CA alone.
func (c *Credentials) VerifyClient(chain []*x509.Certificate, now time.Time) error {
	return c.loaded.Load().verify(chain, now)
}

// verify checks that a client's chain leads to the CA at a time.
func (l *loaded) verify(chain []*x509.Certificate, now time.Time) error {
	intermediates := x509.NewCertPool()
	for _, cert := range chain[1:] {
		intermediates.AddCert(cert)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: l.pool, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

// expired says whether err of verify is about time alone.
func expired(err error) bool {
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	return ok && invalid.Reason == x509.Expired
}
