package trust_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"pgregory.net/rapid"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

// oracleKey gives go-securesystemslib a key of ours, with the standard library's verification.
type oracleKey struct{ *trust.KeySigner }

func (k oracleKey) KeyID() (string, error) { return k.KeySigner.KeyID(), nil }

func (k oracleKey) Sign(_ context.Context, message []byte) ([]byte, error) {
	return k.KeySigner.Sign(message)
}

func (k oracleKey) Public() crypto.PublicKey {
	block, _ := pem.Decode([]byte(k.KeySigner.Public().PEM()))
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		panic(err)
	}
	return key
}

func (k oracleKey) Verify(_ context.Context, message, sig []byte) error {
	digest := sha256.Sum256(message)
	switch key := k.Public().(type) {
	case ed25519.PublicKey:
		if ed25519.Verify(key, message, sig) {
			return nil
		}
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(key, digest[:], sig) {
			return nil
		}
	}
	return errors.New("does not verify")
}

func TestPAEIsThatOfTheDSSELibrary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind, payload := rapid.String().Draw(t, "type"), rapid.SliceOf(rapid.Byte()).Draw(t, "payload")
		if got, want := trust.PAE(api.PayloadType(kind), payload), dsse.PAE(kind, payload); string(got) != string(want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	const vector = "DSSEv1 29 http://example.com/HelloWorld 11 hello world" // from the specification
	if got := trust.PAE("http://example.com/HelloWorld", []byte("hello world")); string(got) != vector {
		t.Errorf("got %q", got)
	}
}

func TestEnvelopesOfTheDSSELibraryVerify(t *testing.T) {
	a, p := manifesttest.Key("a"), manifesttest.ECDSAKey("p")
	signer, err := dsse.NewEnvelopeSigner(oracleKey{a}, oracleKey{p})
	if err != nil {
		t.Fatal(err)
	}
	made, err := signer.SignPayload(t.Context(), string(api.PayloadRollout), []byte("payload"))
	if err != nil {
		t.Fatal(err)
	}
	tr := trustOf(2, "a")
	tr.Release.Keys = append(tr.Release.Keys, manifesttest.Trusted("p", p))
	if v, err := verifyText(encode(t, made), 100, manifesttest.Root(tr).ReleaseRule(), now); err != nil || v.Value() != "payload" {
		t.Errorf("%q, %v", v.Value(), err)
	}
}

// The library lets a key id decide which key is tried, so here ids are right or not there; and it gives
// up at a signature that is not base64, so here all are.
func TestTheDSSELibraryAgreesOnWhatVerifies(t *testing.T) {
	all := map[string]*trust.KeySigner{
		"a": manifesttest.Key("a"), "b": manifesttest.Key("b"), "mallory": manifesttest.Key("mallory"),
		"p": manifesttest.ECDSAKey("p"), "q": manifesttest.ECDSAKey("q"),
	}
	trusted := []string{"a", "b", "p", "q"}
	verdicts := map[bool]int{}
	rapid.Check(t, func(rt *rapid.T) {
		threshold := rapid.IntRange(1, len(trusted)).Draw(rt, "threshold")
		payload := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(rt, "payload")
		e := api.Envelope{PayloadType: api.PayloadRollout, Payload: base64Of(payload)}
		for _, name := range rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "mallory", "p", "q"}), 1, 6).Draw(rt, "signers") {
			message := trust.PAE(e.PayloadType, payload)
			if rapid.IntRange(0, 5).Draw(rt, "other message") == 0 {
				message = append(message, '!')
			}
			sig, err := all[name].Sign(message)
			if err != nil {
				rt.Fatal(err)
			}
			if rapid.IntRange(0, 5).Draw(rt, "broken") == 0 {
				sig[rapid.IntRange(0, len(sig)-1).Draw(rt, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(rt, "bit")
			}
			s := api.Signature{Sig: base64Of(sig)}
			if rapid.Bool().Draw(rt, "hint") {
				s.KeyID = all[name].KeyID()
			}
			e.Signatures = append(e.Signatures, s)
		}
		envelope := encode(t, e)

		tr := trustOf(threshold)
		var verifiers []dsse.Verifier
		for _, name := range trusted {
			tr.Release.Keys = append(tr.Release.Keys, manifesttest.Trusted(name, all[name]))
			verifiers = append(verifiers, oracleKey{all[name]})
		}
		_, ours := verifyText(envelope, 100, manifesttest.Root(tr).ReleaseRule(), now)
		oracle, err := dsse.NewMultiEnvelopeVerifier(threshold, verifiers...)
		if err != nil {
			rt.Fatal(err)
		}
		var theirs dsse.Envelope
		if err := json.Unmarshal(envelope, &theirs); err != nil {
			rt.Fatal(err)
		}
		_, err = oracle.Verify(t.Context(), &theirs)
		verdicts[err == nil]++
		if (err == nil) != (ours == nil) {
			rt.Errorf("the library says %v, we say %v, of %s", err, ours, envelope)
		}
	})
	if verdicts[true] == 0 || verdicts[false] == 0 {
		t.Errorf("the cases were all of one kind: %v", verdicts)
	}
}
