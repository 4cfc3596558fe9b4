package enroll

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"nixfleet.dev/nixfleet/internal/agent/durable"
)

const maxFile = 1 << 20

// ensureKey returns the host's private key, which is made where there is none: P-256, for the agent
// alone. It is made once and kept through every retry and renewal, so that a token bound to it stays
// good.
func ensureKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := loadKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(path)
	}
	return key, err
}

func loadKey(path string) (*ecdsa.PrivateKey, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key in PEM", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		if key, ecErr := x509.ParseECPrivateKey(block.Bytes); ecErr == nil {
			return key, nil
		}
		return nil, fmt.Errorf("read the key %s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the key %s is a %T; the agent uses ECDSA", path, parsed)
	}
	return key, nil
}

func makeKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// newRequest returns a CSR in PEM. The control plane uses its public key and nothing else.
func newRequest(key *ecdsa.PrivateKey, hostname string) (string, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: hostname}}, key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// parse reads a chain in PEM, this host's own certificate first.
func parse(data []byte) (chain []*x509.Certificate, err error) {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("there is a %.40q among the certificates", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		chain = append(chain, cert)
	}
	if len(chain) == 0 {
		return nil, errors.New("there is no certificate in PEM")
	}
	return chain, nil
}

// encode writes a chain in PEM, and nothing else that came with it.
func encode(chain []*x509.Certificate) []byte {
	var data []byte
	for _, cert := range chain {
		data = append(data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return data
}

// check says why cert is not hostname's certificate for key.
func check(cert *x509.Certificate, key *ecdsa.PrivateKey, hostname string) error {
	public, ok := cert.PublicKey.(*ecdsa.PublicKey)
	switch {
	case len(cert.URIs) != 1 || cert.URIs[0].Scheme != "spiffe" || cert.URIs[0].Path != "/host/"+hostname:
		return fmt.Errorf("the certificate is not that of host %s", hostname)
	case !ok || !public.Equal(&key.PublicKey):
		return errors.New("the certificate is not for this host's key")
	}
	return nil
}

// halfLife returns when a certificate is renewed: after half its life.
func halfLife(cert *x509.Certificate) time.Time {
	return cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 2)
}

func readFile(path string) ([]byte, error) {
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return durable.ReadFile(root, filepath.Base(path), maxFile)
}

// writeFile replaces a file whole, readable by the agent alone.
func writeFile(path string, data []byte) error {
	root, err := durable.OpenDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer root.Close()
	return durable.WriteFile(root, filepath.Base(path), data, 0o600)
}
