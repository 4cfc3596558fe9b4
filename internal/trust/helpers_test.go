package trust_test

import (
	"encoding/base64"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var now = manifesttest.Time

// fixture returns a file of testdata.
func fixture(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func sign(t testing.TB, kind api.PayloadType, payload []byte, names ...string) []byte {
	t.Helper()
	signers := make([]trust.Signer, len(names))
	for i, name := range names {
		signers[i] = manifesttest.Key(name)
	}
	envelope, err := trust.Sign(kind, payload, signers...)
	if err != nil {
		t.Fatal(err)
	}
	return envelope
}

// root returns a trust.json of so many of these release keys.
func root(t testing.TB, threshold int, names ...string) *trust.Root {
	t.Helper()
	return manifesttest.Root(trustOf(threshold, names...))
}

func trustOf(threshold int, names ...string) api.Trust {
	tr := manifesttest.Trust()
	tr.Release.Threshold, tr.Release.Keys = threshold, nil
	for _, name := range names {
		tr.Release.Keys = append(tr.Release.Keys, manifesttest.Trusted(name, manifesttest.Key(name)))
	}
	return tr
}

// edit changes an envelope as its JSON has it.
func edit(t testing.TB, envelope []byte, change func(*api.Envelope)) []byte {
	t.Helper()
	var e api.Envelope
	if err := json.Unmarshal(envelope, &e); err != nil {
		t.Fatal(err)
	}
	change(&e)
	return encode(t, e)
}

// verifyText verifies an envelope whose payload is any text.
func verifyText(envelope []byte, limit int, rule trust.Rule, at time.Time) (trust.Verified[string], error) {
	return trust.Verify("test", envelope, api.PayloadRollout, limit, rule, at,
		func(payload []byte) (string, error) { return string(payload), nil })
}

// wantRefusal checks that err is a refusal with a code, that names what was refused and says why.
func wantRefusal(t *testing.T, err error, code api.Code, text string) {
	t.Helper()
	var refusal *trust.Error
	if !errors.As(err, &refusal) {
		t.Fatalf("got %v, not a *trust.Error with code %s", err, code)
	}
	if refusal.Code != code || trust.CodeOf(err) != code {
		t.Errorf("code is %s, want %s: %v", refusal.Code, code, err)
	}
	if !strings.Contains(refusal.Detail, text) {
		t.Errorf("detail %q does not say %q", refusal.Detail, text)
	}
	if len(refusal.Detail) > 2000 {
		t.Errorf("a detail of %d bytes", len(refusal.Detail))
	}
}

func base64Of(data []byte) string { return base64.StdEncoding.EncodeToString(data) }
