package trust_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"strings"
	"testing"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

func TestKeysAndSignaturesOfOpenSSLVerify(t *testing.T) {
	for _, name := range []string{"ed25519", "p256"} {
		public := string(fixture(t, "openssl/"+name+".pub.pem"))
		key, err := trust.ParsePublicKeyPEM(public)
		if err != nil {
			t.Fatal(name, err)
		}
		if key.PEM() != public {
			t.Errorf("%s: the key is written as\n%s, not as openssl did", name, key.PEM())
		}
		block, _ := pem.Decode([]byte(public))
		if sum := sha256.Sum256(block.Bytes); key.ID() != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: id is %s, not the digest of its DER SPKI", name, key.ID())
		}
		tr := manifesttest.Trust()
		tr.Release.Keys = []api.TrustKey{{Name: name, PublicKey: public}}
		v, err := trust.VerifyFleet(manifesttest.Root(tr), fixture(t, "openssl/"+name+".dsse.json"), now)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if v.Value().Commit != "0a1b2c3d" {
			t.Errorf("%s: read %+v", name, v.Value())
		}
	}
}

func TestPrivateKeysOfOpenSSLSign(t *testing.T) {
	for _, name := range []string{"ed25519", "p256"} {
		signer, err := trust.ParsePrivateKeyPEM(fixture(t, "openssl/"+name+".key.pem"))
		if err != nil {
			t.Fatal(name, err)
		}
		sig, err := signer.Sign([]byte("message"))
		if err != nil {
			t.Fatal(name, err)
		}
		key, err := trust.ParsePublicKeyPEM(string(fixture(t, "openssl/"+name+".pub.pem")))
		if err != nil {
			t.Fatal(name, err)
		}
		if signer.KeyID() != key.ID() || !key.Verify([]byte("message"), sig) {
			t.Errorf("%s: what the private key signed does not verify with the public one", name)
		}
		if key.Verify([]byte("massage"), sig) {
			t.Errorf("%s: the signature verifies another message", name)
		}
		if (trust.PublicKey{}).Verify([]byte("message"), sig) {
			t.Error("the zero key verified something")
		}
	}
}

func TestOtherKeysAreRefused(t *testing.T) {
	ed := string(fixture(t, "openssl/ed25519.pub.pem"))
	for name, test := range map[string]struct{ pem, want string }{
		"nothing":           {"", "not PEM"},
		"a path":            {"/etc/key.pem", "not PEM"},
		"RSA":               {string(fixture(t, "openssl/rsa.pub.pem")), "neither an Ed25519 nor an ECDSA"},
		"P-384":             {string(fixture(t, "openssl/p384.pub.pem")), "other than P-256"},
		"explicit curve":    {string(fixture(t, "openssl/p256explicit.pub.pem")), "not a public key"},
		"a private key":     {string(fixture(t, "openssl/ed25519.key.pem")), `"PRIVATE KEY", not "PUBLIC KEY"`},
		"two keys":          {ed + ed, "after the PEM block"},
		"garbage DER":       {"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a public key"},
		"a truncated key":   {strings.Replace(ed, "MCow", "MCkw", 1), "not a public key"},
		"an unknown header": {strings.ReplaceAll(ed, "PUBLIC KEY", strings.Repeat("X", 5000)), "PEM of type"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := trust.ParsePublicKeyPEM(test.pem)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want …%s…", err, test.want)
			}
			if err != nil && len(err.Error()) > 300 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
	for name, pem := range map[string][]byte{
		"a public key": []byte(ed), "nothing": nil,
		"two keys": []byte(strings.Repeat(string(fixture(t, "openssl/ed25519.key.pem")), 2)),
		"garbage":  []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
	} {
		if _, err := trust.ParsePrivateKeyPEM(pem); err == nil {
			t.Errorf("%s was read as a private key", name)
		}
	}
}

func FuzzParsePublicKeyPEM(f *testing.F) {
	for _, name := range []string{"ed25519", "p256", "p384", "rsa", "p256explicit"} {
		f.Add(string(fixture(f, "openssl/"+name+".pub.pem")))
	}
	f.Fuzz(func(t *testing.T, text string) {
		key, err := trust.ParsePublicKeyPEM(text)
		if err != nil {
			return
		}
		again, err := trust.ParsePublicKeyPEM(key.PEM())
		if err != nil || again.ID() != key.ID() {
			t.Errorf("%q was read, but not when it was written again: %v", text, err)
		}
	})
}
