package release

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

func TestKeysThatOthersCanReadAreRefused(t *testing.T) {
	dir := t.TempDir()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, key any, mode os.FileMode) string {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good", private, 0o600)
	if _, err := LoadKey(good); err != nil {
		t.Errorf("a key for its owner alone: %v", err)
	}
	for path, want := range map[string]string{
		write("group", private, 0o640): "chmod 600",
		write("all", private, 0o604):   "chmod 600",
		write("p384", p384, 0o600):     "curve other than P-256",
		filepath.Join(dir, "none"):     "no such file",
		"pkcs11:token=x":               "is a URI",
		"awskms:///alias/x":            "is a URI",
	} {
		if _, err := LoadKey(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want …%s…", path, err, want)
		}
	}
}

func TestTokensAreWhatTheContractSays(t *testing.T) {
	trusted := manifesttest.Trust()
	root := manifesttest.Root(trusted)
	base := TokenOptions{Hostname: "web-01", Signer: manifesttest.Key(manifesttest.EnrollmentKey), Now: manifesttest.Time, Expires: time.Hour}
	token, envelope, err := MintToken(base)
	if err != nil {
		t.Fatal(err)
	}
	v, err := trust.VerifyToken(root, envelope, base.Now.Add(59*time.Minute))
	if err != nil || !cmp.Equal(v.Value(), token) {
		t.Errorf("verified %+v, error %v", v.Value(), err)
	}
	if _, err := trust.VerifyToken(root, envelope, base.Now.Add(time.Hour)); err == nil {
		t.Error("it is good after its hour")
	}
	if other, _, err := MintToken(base); err != nil || other.Nonce == token.Nonce {
		t.Errorf("two tokens have one nonce, error %v", err)
	}
	for name, change := range map[string]func(*TokenOptions){
		"without an end and unbound": func(o *TokenOptions) { o.Expires = 0 },
		"ended before it began":      func(o *TokenOptions) { o.Expires = -1 },
		"for no host":                func(o *TokenOptions) { o.Hostname = "Web" },
		"bound to no digest":         func(o *TokenOptions) { o.PublicKeySHA256 = "x" },
	} {
		opts := base
		change(&opts)
		if _, _, err := MintToken(opts); err == nil {
			t.Errorf("a token %s was minted", name)
		}
	}
	bound := base
	bound.Expires, bound.PublicKeySHA256 = 0, strings.Repeat("0a", 32)
	if _, envelope, err = MintToken(bound); err != nil {
		t.Fatal(err)
	}
	if _, err := trust.VerifyToken(root, envelope, base.Now.Add(10000*time.Hour)); err != nil {
		t.Errorf("a bound token without an end: %v", err)
	}
}
