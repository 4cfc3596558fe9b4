package trustfile_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/trustfile"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
)

func TestWhatTheFileSaysNowCountsAndWhatItSaidLastWhereItCannotBeRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trust.json")
	write := func(data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	before, after := manifesttest.Trust(), manifesttest.Trust()
	after.Release.Keys = append(after.Release.Keys, manifesttest.Trusted("next", manifesttest.Key("next")))
	first, second := manifesttest.Root(before).SHA256(), manifesttest.Root(after).SHA256()

	write(manifesttest.TrustJSON(before))
	var log bytes.Buffer
	f, err := trustfile.Open(path, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	want := func(when, sha256, said string) {
		t.Helper()
		log.Reset()
		for range 3 {
			if f.SHA256() != sha256 {
				t.Errorf("%s: another file counts", when)
			}
		}
		if n := strings.Count(log.String(), "level="); said == "" && n > 0 || said != "" && (n != 1 || !strings.Contains(log.String(), said)) {
			t.Errorf("%s: logged %q", when, log.String())
		}
	}
	want("unchanged", first, "")
	write(manifesttest.TrustJSON(after))
	want("changed", second, "what it says now counts")
	write(manifesttest.TrustJSON(after)[:40])
	want("half written", second, "what it said before still counts")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want("gone", second, "no such file")
	write(bytes.Repeat([]byte(" "), api.MaxTrust+1))
	want("too large", second, "is over")
	write(manifesttest.TrustJSON(after))
	want("back", second, "")
	write(manifesttest.TrustJSON(before))
	want("changed back", first, "what it says now counts")
}

func TestNoAgentStartsWithoutATrustFile(t *testing.T) {
	if _, err := trustfile.Open(filepath.Join(t.TempDir(), "trust.json"), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a trust file that is not there was read")
	}
}
