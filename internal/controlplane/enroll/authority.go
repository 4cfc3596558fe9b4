package enroll

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
)

// authority is what certificates are issued with.
type authority struct {
	digest  [sha256.Size]byte // of the files
	cert    *x509.Certificate
	key     crypto.Signer
	issuers []*x509.Certificate // cert, and from there up to the root, which is left out unless cert is it
}

func loadAuthority(certFile, keyFile string) (*authority, error) {
	if strings.Contains(keyFile, ":") && !strings.HasPrefix(keyFile, "/") {
		return nil, errors.New("[issuer] ca_key is not the path of a file; other kinds of keys are not known to this version")
	}
	certPEM, err := os.ReadFile(certFile)
	if err != nil {
		return nil, fmt.Errorf("reading the issuer's certificate: %w", err)
	}
	keyPEM, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the issuer's key: %w", err)
	}
	a := &authority{digest: sha256.Sum256(append(append(certPEM[:len(certPEM):len(certPEM)], 0), keyPEM...))}
	if err := a.parseCerts(certPEM); err != nil {
		return nil, fmt.Errorf("reading the issuer's certificate %s: %w", certFile, err)
	}
	if err := a.parseKey(keyPEM); err != nil {
		return nil, fmt.Errorf("reading the issuer's key %s: %w", keyFile, err)
	}
	return a, nil
}

func (a *authority) parseCerts(data []byte) error {
	for len(bytes.TrimSpace(data)) > 0 {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil || block.Type != "CERTIFICATE" {
			return errors.New("it is not certificates in PEM")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		if a.cert == nil {
			a.cert = cert
		}
		if cert == a.cert || !bytes.Equal(cert.RawIssuer, cert.RawSubject) {
			a.issuers = append(a.issuers, cert)
		}
	}
	switch {
	case a.cert == nil:
		return errors.New("it holds no certificate")
	case !a.cert.IsCA || a.cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("it is not that of a certificate authority")
	}
	return nil
}

func (a *authority) parseKey(data []byte) error {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return errors.New(`it is not a private key in PEM ("PRIVATE KEY", PKCS#8)`)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return errors.New("it is not a private key in PKCS#8")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return errors.New("it cannot sign")
	}
	public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(a.cert.PublicKey) {
		return errors.New("it does not belong to the certificate")
	}
	a.key = signer
	return nil
}

// sign makes a certificate that does not outlive the authority's own.
func (a *authority) sign(template *x509.Certificate, key publicKey) (*x509.Certificate, error) {
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	if !template.NotAfter.After(template.NotBefore) {
		return nil, fmt.Errorf("the issuer's own certificate ends at %s", a.cert.NotAfter)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.key, a.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
