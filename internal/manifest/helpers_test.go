package manifest_test

import (
	"bytes"
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

func encode(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// golden compares data with a file of testdata, or writes it with -update, and returns the file.
func golden(t *testing.T, name string, data []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, want) {
		t.Errorf("%s is not what it was (go test -update rewrites it):\n%s\nwas\n%s", name, data, want)
	}
	return want
}

// wantRefusal checks that err is a refusal with a code, that says why.
func wantRefusal(t *testing.T, err error, code api.Code, text string) {
	t.Helper()
	var refusal *trust.Error
	if !errors.As(err, &refusal) {
		t.Fatalf("got %v, not a *trust.Error with code %s", err, code)
	}
	if refusal.Code != code {
		t.Errorf("code is %s, want %s: %v", refusal.Code, code, err)
	}
	if !strings.Contains(refusal.Detail, text) {
		t.Errorf("detail %q does not say %q", refusal.Detail, text)
	}
	if len(refusal.Detail) > 2000 {
		t.Errorf("a detail of %d bytes", len(refusal.Detail))
	}
}

func root() *trust.Root { return manifesttest.Root(manifesttest.Trust()) }

func hours(n int) time.Duration { return time.Duration(n) * time.Hour }
