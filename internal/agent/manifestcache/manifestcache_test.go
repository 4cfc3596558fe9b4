package manifestcache_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/manifestcache"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
)

func open(t *testing.T, dir string) *manifestcache.Cache {
	t.Helper()
	c, err := manifestcache.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestWhatIsStoredIsLoadedByteForByteAlsoByTheNextProcess(t *testing.T) {
	dir := t.TempDir()
	rel := manifesttest.New(manifesttest.Options{})
	proof := rel.Proof(manifesttest.Hostname(1))
	for range 2 { // storing again replaces
		if err := open(t, dir).Store(rel.ID, rel.Envelope, proof); err != nil {
			t.Fatal(err)
		}
	}
	envelope, got, ok := open(t, dir).Load(rel.ID)
	if !ok || string(envelope) != string(rel.Envelope) {
		t.Fatalf("loaded %v, %d bytes", ok, len(envelope))
	}
	if diff := cmp.Diff(proof, got); diff != "" {
		t.Error(diff)
	}
	if _, _, ok := open(t, dir).Load("stable@ffffffff"); ok {
		t.Error("loaded what was never stored")
	}
}

func TestWhatCannotBeReadIsNotThere(t *testing.T) {
	rel := manifesttest.New(manifesttest.Options{})
	for name, spoil := range map[string]func(folder string) error{
		"no line":       func(f string) error { return os.Remove(filepath.Join(f, "host.json")) },
		"half a line":   func(f string) error { return os.Truncate(filepath.Join(f, "host.json"), 20) },
		"no manifest":   func(f string) error { return os.Remove(filepath.Join(f, "manifest.dsse.json")) },
		"a huge one":    func(f string) error { return os.Truncate(filepath.Join(f, "manifest.dsse.json"), 10<<20) },
		"a link out":    func(f string) error { return replaceByLink(filepath.Join(f, "host.json")) },
		"a folder only": func(f string) error { return os.RemoveAll(f) },
	} {
		dir := t.TempDir()
		c := open(t, dir)
		if err := c.Store(rel.ID, rel.Envelope, rel.Proof(manifesttest.Hostname(0))); err != nil {
			t.Fatal(err)
		}
		if err := spoil(filepath.Join(dir, "rollouts", rel.ID)); err != nil {
			t.Fatal(err)
		}
		if _, _, ok := c.Load(rel.ID); ok {
			t.Errorf("%s: loaded", name)
		}
	}
}

// replaceByLink puts a link to a copy outside of the cache in place of a file.
func replaceByLink(path string) error {
	outside := filepath.Join(filepath.Dir(path), "..", "..", "outside.json")
	if err := os.Rename(path, outside); err != nil {
		return err
	}
	return os.Symlink("../../outside.json", path)
}

func TestIdsThatAreNoneTouchNothing(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	for _, id := range []string{"", "..", "../x@0a1b2c3d", "stable@0a1b2c3d/..", "stable@XYZ", "stable"} {
		if err := c.Store(id, []byte("{}"), api.HostProof{}); err == nil {
			t.Errorf("stored %q", id)
		}
		if _, _, ok := c.Load(id); ok {
			t.Errorf("loaded %q", id)
		}
	}
	if entries, _ := os.ReadDir(filepath.Join(dir, "rollouts")); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestTheLastTenFinishedRolloutsAreKept(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	rel := manifesttest.New(manifesttest.Options{})
	id := func(i int) string { return fmt.Sprintf("stable@%08x", i) }
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 15 {
		if err := c.Store(id(i), rel.Envelope, rel.Proof(manifesttest.Hostname(0))); err != nil {
			t.Fatal(err)
		}
		at := begin.Add(time.Duration(i) * time.Hour)
		if err := os.Chtimes(filepath.Join(dir, "rollouts", id(i)), at, at); err != nil {
			t.Fatal(err)
		}
	}
	foreign := filepath.Join(dir, "rollouts", "lost+found")
	if err := os.Mkdir(foreign, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.Prune(func(rolloutID string) bool { return rolloutID != id(0) }); err != nil {
		t.Fatal(err)
	}
	for i := range 15 {
		_, _, ok := c.Load(id(i))
		if want := i == 0 || i >= 5; ok != want {
			t.Errorf("rollout %d, where 0 is not finished: kept %v, want %v", i, ok, want)
		}
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Errorf("what is none of ours was removed: %v", err)
	}
}
