package trust_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

func TestVerifyRefuses(t *testing.T) {
	payload := []byte("payload")
	good := sign(t, api.PayloadRollout, payload, "a", "b")
	long := sign(t, api.PayloadRollout, []byte(strings.Repeat("x", 101)), "a", "b")
	change := func(f func(e *api.Envelope)) []byte { return edit(t, good, f) }
	for name, test := range map[string]struct {
		envelope []byte
		code     api.Code
		want     string
	}{
		"nothing":                     {nil, api.CodeSignatureInvalid, "not an envelope: test: is empty"},
		"garbage":                     {[]byte("<html>"), api.CodeSignatureInvalid, "not an envelope: test: "},
		"null":                        {[]byte("null"), api.CodeSignatureInvalid, "test: "},
		"an envelope cut off":         {good[:len(good)-5], api.CodeSignatureInvalid, "ends in the middle"},
		"two envelopes":               {append(good[:len(good):len(good)], good...), api.CodeSignatureInvalid, "after the JSON value"},
		"an envelope over its cap":    {make([]byte, trust.MaxEnvelope(100)+1), api.CodeTooLarge, "at most"},
		"a payload over its cap":      {long, api.CodeTooLarge, "101 bytes; at most 100"},
		"no signature":                {change(func(e *api.Envelope) { e.Signatures = nil }), api.CodeSignatureInvalid, "0 signatures"},
		"17 signatures":               {change(func(e *api.Envelope) { e.Signatures = repeat(e.Signatures[0], 17) }), api.CodeSignatureInvalid, "17 signatures"},
		"16 of one key":               {change(func(e *api.Envelope) { e.Signatures = repeat(e.Signatures[0], 16) }), api.CodeSignatureInvalid, "signed by 1 of the release keys; 2 are needed"},
		"one signature of two":        {sign(t, api.PayloadRollout, payload, "a"), api.CodeSignatureInvalid, "signed by 1 of"},
		"an unknown key":              {sign(t, api.PayloadRollout, payload, "a", "mallory"), api.CodeSignatureInvalid, "signed by 1 of"},
		"another payload type":        {sign(t, api.PayloadIndex, payload, "a", "b"), api.CodeSignatureInvalid, "payload type is"},
		"the payload type swapped":    {edit(t, sign(t, api.PayloadIndex, payload, "a", "b"), func(e *api.Envelope) { e.PayloadType = api.PayloadRollout }), api.CodeSignatureInvalid, "signed by 0 of"},
		"another payload":             {change(func(e *api.Envelope) { e.Payload = base64Of([]byte("Payload")) }), api.CodeSignatureInvalid, "signed by 0 of"},
		"a payload with newlines":     {change(func(e *api.Envelope) { e.Payload = e.Payload[:4] + "\n" + e.Payload[4:] }), api.CodeSignatureInvalid, "newlines"},
		"a payload in URL base64":     {change(func(e *api.Envelope) { e.Payload = "_-__" }), api.CodeSignatureInvalid, "base64"},
		"a payload without padding":   {change(func(e *api.Envelope) { e.Payload = strings.TrimRight(e.Payload, "=") }), api.CodeSignatureInvalid, "base64"},
		"another spelling of the end": {change(func(e *api.Envelope) { e.Payload = "cGF5bG9hZB==" }), api.CodeSignatureInvalid, "base64"},
		"another's key id": {change(func(e *api.Envelope) {
			e.Signatures[1] = api.Signature{KeyID: e.Signatures[1].KeyID, Sig: e.Signatures[0].Sig}
		}), api.CodeSignatureInvalid, "signed by 1 of"},
		"an empty signature": {change(func(e *api.Envelope) { e.Signatures[1].Sig = "" }), api.CodeSignatureInvalid, "signed by 1 of"},
		"a key in two cases": {[]byte(strings.Replace(string(good), `"payloadType"`, `"PayloadType"`, 1)), api.CodeSignatureInvalid, "payloadType: is missing"},
		"a payload twice":    {[]byte(strings.Replace(string(good), `"payload":`, `"payload":"","payload":`, 1)), api.CodeSignatureInvalid, "payload: is there twice"},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := verifyText(test.envelope, 100, root(t, 2, "a", "b", "c").ReleaseRule(), now)
			wantRefusal(t, err, test.code, test.want)
			if v.Value() != "" || v.Payload() != nil {
				t.Errorf("a refused envelope gave %q", v.Value())
			}
		})
	}
}

func repeat(s api.Signature, n int) []api.Signature {
	list := make([]api.Signature, n)
	for i := range list {
		list[i] = s
	}
	return list
}

func TestVerifyReturnsTheExactBytes(t *testing.T) {
	payload := []byte("{ \"b\" : 1,\r\n \"a\":\t2 }\n")
	envelope := sign(t, api.PayloadRollout, payload, "a")
	v, err := verifyText(envelope, 100, root(t, 1, "a").ReleaseRule(), now)
	if err != nil {
		t.Fatal(err)
	}
	if v.Value() != string(payload) || string(v.Payload()) != string(payload) || string(v.Envelope()) != string(envelope) {
		t.Errorf("got %q", v.Payload())
	}
	if v.PayloadSHA256() != trust.Digest(payload) || v.EnvelopeSHA256() != trust.Digest(envelope) {
		t.Error("the digests are not of the bytes")
	}
}

func TestNothingIsParsedBeforeItsSignature(t *testing.T) {
	_, err := trust.Verify("test", sign(t, api.PayloadRollout, []byte("payload"), "mallory"), api.PayloadRollout, 100,
		root(t, 1, "a").ReleaseRule(), now, func([]byte) (string, error) {
			t.Error("an unsigned payload was parsed")
			return "", nil
		})
	wantRefusal(t, err, api.CodeSignatureInvalid, "signed by 0 of")
}

func TestAParserThatRefusesMakesItMalformed(t *testing.T) {
	reason := errors.New("test: is nonsense")
	_, err := trust.Verify("test", sign(t, api.PayloadRollout, []byte("payload"), "a"), api.PayloadRollout, 100,
		root(t, 1, "a").ReleaseRule(), now, func([]byte) (string, error) { return "", reason })
	wantRefusal(t, err, api.CodeMalformed, "is nonsense")
	if !errors.Is(err, reason) {
		t.Error("the parser's error is not wrapped")
	}
}

func TestAKeyIDIsOnlyAHint(t *testing.T) {
	good := sign(t, api.PayloadRollout, []byte("payload"), "a", "b")
	for name, hint := range map[string]func(e *api.Envelope){
		"none":       func(e *api.Envelope) { e.Signatures[0].KeyID, e.Signatures[1].KeyID = "", "" },
		"garbage":    func(e *api.Envelope) { e.Signatures[0].KeyID = "not hex at all" },
		"swapped":    func(e *api.Envelope) { s := e.Signatures; s[0].KeyID, s[1].KeyID = s[1].KeyID, s[0].KeyID },
		"a stranger": func(e *api.Envelope) { e.Signatures[0].KeyID = manifesttest.Key("mallory").KeyID() },
		"the same":   func(e *api.Envelope) { e.Signatures[0].KeyID = e.Signatures[1].KeyID },
	} {
		if _, err := verifyText(edit(t, good, hint), 100, root(t, 2, "a", "b").ReleaseRule(), now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestARetiredKeyVerifiesNothing(t *testing.T) {
	tr := trustOf(1, "old", "new")
	retireAt := now
	tr.Release.Keys[0].RetireAt = &retireAt
	rule := manifesttest.Root(tr).ReleaseRule()
	byOld, byBoth := sign(t, api.PayloadRollout, []byte("p"), "old"), sign(t, api.PayloadRollout, []byte("p"), "old", "new")
	if _, err := verifyText(byOld, 100, rule, now.Add(-time.Second)); err != nil {
		t.Errorf("before it retires: %v", err)
	}
	for _, at := range []time.Time{now, now.Add(time.Hour)} {
		_, err := verifyText(byOld, 100, rule, at)
		wantRefusal(t, err, api.CodeSignatureInvalid, "1 that are retired")
		if _, err := verifyText(byBoth, 100, rule, at); err != nil {
			t.Errorf("signed by the new key too: %v", err)
		}
	}
}

func TestMixedAlgorithmsMeetAThreshold(t *testing.T) {
	tr := trustOf(2, "a")
	tr.Release.Keys = append(tr.Release.Keys, manifesttest.Trusted("p", manifesttest.ECDSAKey("p")))
	envelope, err := trust.AddSignature(sign(t, api.PayloadRollout, []byte("p"), "a"), manifesttest.ECDSAKey("p"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verifyText(envelope, 100, manifesttest.Root(tr).ReleaseRule(), now); err != nil {
		t.Error(err)
	}
}

func TestTheZeroRuleIsMetByNothing(t *testing.T) {
	_, err := verifyText(sign(t, api.PayloadRollout, []byte("p"), "a"), 100, trust.Rule{}, now)
	wantRefusal(t, err, api.CodeSignatureInvalid, "")
}

func TestSigningAgainReplacesTheKeysSignature(t *testing.T) {
	envelope := sign(t, api.PayloadRollout, []byte("p"), "a", "b")
	again, err := trust.AddSignature(envelope, manifesttest.Key("a"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(again), `"keyid"`); n != 2 {
		t.Errorf("%d signatures: %s", n, again)
	}
	many := envelope
	for i := range 14 {
		if many, err = trust.AddSignature(many, manifesttest.Key(fmt.Sprint(i))); err != nil {
			t.Fatal(i, err)
		}
	}
	if _, err := trust.AddSignature(many, manifesttest.Key("one too many")); err == nil {
		t.Error("a 17th signature was added")
	}
	if _, err := trust.Sign(api.PayloadRollout, []byte("p")); err == nil {
		t.Error("an envelope was made without a signature")
	}
}

func TestAChangedBitNeverChangesWhatIsVerified(t *testing.T) {
	payload := `{"schemaVersion":1,"x":"y"}`
	envelope := sign(t, api.PayloadRollout, []byte(payload), "a", "b")
	rule := root(t, 2, "a", "b").ReleaseRule()
	accepted := 0
	for at := range len(envelope) * 8 {
		changed := append([]byte(nil), envelope...)
		changed[at/8] ^= 1 << (at % 8)
		v, err := verifyText(changed, 1000, rule, now)
		if err == nil {
			accepted++
			if v.Value() != payload {
				t.Fatalf("bit %d: verified %q", at, v.Value())
			}
		} else if trust.CodeOf(err) == "" {
			t.Fatalf("bit %d: %v is no refusal", at, err)
		}
	}
	// What may change is the hints, and nothing else: two key ids of 64 characters and the field's name.
	if most := 2 * (64 + len("keyid")) * 8; accepted == 0 || accepted > most {
		t.Errorf("%d changed bits were accepted; at most %d are the hints", accepted, most)
	}
}

func TestAnySignersMeetARuleExactlyWhenEnoughOfThemAreTrusted(t *testing.T) {
	all := []string{"a", "b", "c", "d", "e"}
	rapid.Check(t, func(rt *rapid.T) {
		trusted := rapid.SliceOfNDistinct(rapid.SampledFrom(all), 1, 5, rapid.ID).Draw(rt, "trusted")
		threshold := rapid.IntRange(1, len(trusted)).Draw(rt, "threshold")
		signers := rapid.SliceOfN(rapid.SampledFrom(all), 1, 8).Draw(rt, "signers")
		var list []api.Signature
		different := map[string]bool{}
		for _, name := range signers {
			sig, err := manifesttest.Key(name).Sign(trust.PAE(api.PayloadRollout, []byte("p")))
			if err != nil {
				rt.Fatal(err)
			}
			list = append(list, api.Signature{Sig: base64Of(sig)})
			if slices.Contains(trusted, name) {
				different[name] = true
			}
		}
		envelope := edit(t, sign(t, api.PayloadRollout, []byte("p"), "a"), func(e *api.Envelope) { e.Signatures = list })
		_, err := verifyText(envelope, 100, root(t, threshold, trusted...).ReleaseRule(), now)
		if met := len(different) >= threshold; met != (err == nil) {
			rt.Errorf("%d different trusted keys of %d signed: %v", len(different), threshold, err)
		}
	})
}

func FuzzVerify(f *testing.F) {
	payload := `{"schemaVersion":1}`
	f.Add(sign(f, api.PayloadRollout, []byte(payload), "a"))
	f.Add(sign(f, api.PayloadRollout, []byte(payload), "a", "b"))
	f.Add(sign(f, api.PayloadIndex, []byte(payload), "a", "b"))
	f.Add([]byte(`{"payloadType":"","payload":"","signatures":[{"sig":""}]}`))
	rule := root(f, 2, "a", "b").ReleaseRule()
	f.Fuzz(func(t *testing.T, envelope []byte) {
		v, err := verifyText(envelope, 1000, rule, now)
		switch {
		case err == nil && v.Value() != payload:
			t.Errorf("verified %q, which nobody signed", v.Value())
		case err != nil && trust.CodeOf(err) == "":
			t.Errorf("%v is no refusal", err)
		}
	})
}

func FuzzDecodeBase64(f *testing.F) {
	for _, s := range []string{"", "AA==", "AB==", "A\nA==", "_-8=", "AAAA"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if data, err := trust.DecodeBase64(s); err == nil && base64Of(data) != s {
			t.Errorf("%q and %q are the same bytes", s, base64Of(data))
		}
	})
}
