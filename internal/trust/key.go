package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// PublicKey is a key that can verify: Ed25519, or ECDSA on P-256 with SHA-256. The algorithm is a
// property of the key, never of what it signed. The zero value verifies nothing. It may be used
// concurrently.
type PublicKey struct {
	der []byte
	id  string
	key crypto.PublicKey // ed25519.PublicKey or *ecdsa.PublicKey
}

// NewPublicKey wraps an Ed25519 or ECDSA P-256 public key of the standard library.
func NewPublicKey(key crypto.PublicKey) (PublicKey, error) {
	switch k := key.(type) {
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return PublicKey{}, errors.New("an Ed25519 key of the wrong length")
		}
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return PublicKey{}, errors.New("an ECDSA key on a curve other than P-256")
		}
	default:
		return PublicKey{}, errors.New("neither an Ed25519 nor an ECDSA P-256 key")
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return PublicKey{}, fmt.Errorf("encoding the public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return PublicKey{der: der, id: hex.EncodeToString(sum[:]), key: key}, nil
}

// ParsePublicKeyPEM reads SPKI in PEM, as `openssl pkey -pubout` writes it.
func ParsePublicKeyPEM(text string) (PublicKey, error) {
	block, rest := pem.Decode([]byte(text))
	switch {
	case block == nil:
		return PublicKey{}, errors.New("not PEM")
	case block.Type != "PUBLIC KEY":
		return PublicKey{}, fmt.Errorf("PEM of type %.32q, not \"PUBLIC KEY\" (openssl pkey -pubout)", block.Type)
	case strings.TrimSpace(string(rest)) != "":
		return PublicKey{}, errors.New("something after the PEM block")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return PublicKey{}, fmt.Errorf("not a public key: %w", err)
	}
	return NewPublicKey(key)
}

// ID is the key's id: the SHA-256 of its DER SPKI in lower-case hex.
func (k PublicKey) ID() string { return k.id }

// PEM returns the key as `openssl pkey -pubout` writes it.
func (k PublicKey) PEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.der}))
}

// Verify reports whether sig is a signature of message by this key: 64 raw bytes for Ed25519, ASN.1
// DER for ECDSA.
func (k PublicKey) Verify(message, sig []byte) bool {
	switch key := k.key.(type) {
	case ed25519.PublicKey:
		return len(sig) == ed25519.SignatureSize && ed25519.Verify(key, message, sig)
	case *ecdsa.PublicKey:
		digest := sha256.Sum256(message)
		return ecdsa.VerifyASN1(key, digest[:], sig)
	}
	return false
}

// Signer signs. A key in a file is a KeySigner; a hardware token or an external command implements
// Signer itself.
type Signer interface {
	// KeyID is the PublicKey.ID of the key that signs.
	KeyID() string
	// Sign signs message, hashing it itself where the algorithm wants that.
	Sign(message []byte) ([]byte, error)
}

// KeySigner signs with a crypto.Signer. It may be used concurrently if that may.
type KeySigner struct {
	signer crypto.Signer
	public PublicKey
}

// NewSigner returns a Signer for an Ed25519 or ECDSA P-256 private key, wherever it is kept.
func NewSigner(signer crypto.Signer) (*KeySigner, error) {
	public, err := NewPublicKey(signer.Public())
	if err != nil {
		return nil, err
	}
	return &KeySigner{signer: signer, public: public}, nil
}

// ParsePrivateKeyPEM reads an unencrypted PKCS#8 private key in PEM, as `openssl genpkey` writes it.
func ParsePrivateKeyPEM(text []byte) (*KeySigner, error) {
	block, rest := pem.Decode(text)
	switch {
	case block == nil:
		return nil, errors.New("not PEM")
	case block.Type != "PRIVATE KEY":
		return nil, fmt.Errorf("PEM of type %.32q, not \"PRIVATE KEY\" (PKCS#8, unencrypted)", block.Type)
	case strings.TrimSpace(string(rest)) != "":
		return nil, errors.New("something after the PEM block")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("not a private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("a key that cannot sign")
	}
	return NewSigner(signer)
}

// KeyID implements Signer.
func (s *KeySigner) KeyID() string { return s.public.ID() }

// Public returns the public half of the key.
func (s *KeySigner) Public() PublicKey { return s.public }

// Sign implements Signer.
func (s *KeySigner) Sign(message []byte) ([]byte, error) {
	if _, ok := s.public.key.(ed25519.PublicKey); ok {
		return s.signer.Sign(rand.Reader, message, crypto.Hash(0))
	}
	digest := sha256.Sum256(message)
	return s.signer.Sign(rand.Reader, digest[:], crypto.SHA256)
}
