package sqlite

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane/store"
	"nixfleet.dev/nixfleet/internal/controlplane/store/storetest"
)

// loadDump makes a database as an earlier release left it.
func loadDump(t *testing.T, name string) string {
	t.Helper()
	dump, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	db := rawDB(t, dir)
	if _, err := db.Exec(string(dump)); err != nil {
		t.Fatal(err)
	}
	db.Close()
	return dir
}

func TestADatabaseOfEachReleasedSchemaOpens(t *testing.T) {
	dumps, err := filepath.Glob("testdata/v*.sql")
	if err != nil || len(dumps) == 0 {
		t.Fatal(dumps, err)
	}
	for _, dump := range dumps {
		t.Run(filepath.Base(dump), func(t *testing.T) {
			s := mustOpen(t, loadDump(t, filepath.Base(dump)))
			defer mustClose(t, s)
			var got []store.Entry
			for e, err := range s.Entries(t.Context(), 0) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, e)
			}
			if diff := cmp.Diff(storetest.Entries(1, 5), got); diff != "" {
				t.Error(diff)
			}
			if data, err := s.Object(t.Context(), store.Digest([]byte("an object"))); err != nil || string(data) != "an object" {
				t.Errorf("the object came back as %q, %v", data, err)
			}
			if snap, err := s.Snapshot(t.Context(), 3); err != nil || string(snap.Data) != `{"state":3}` {
				t.Errorf("the snapshot came back as %q, %v", snap.Data, err)
			}
			if heard, err := s.Heard(t.Context()); err != nil || !heard["host-1"].Equal(time.Unix(1795420800, 5)) {
				t.Errorf("heard came back as %v, %v", heard, err)
			}
			if err := s.Append(t.Context(), storetest.Entries(6, 1)); err != nil {
				t.Error(err)
			}
		})
	}
}

// next is the schema of a release to come: the present one and a migration more.
func next(t *testing.T, text string) []migration {
	t.Helper()
	first, err := embedded.ReadFile("migrations/0001_log.sql")
	if err != nil {
		t.Fatal(err)
	}
	known, err := readMigrations(fstest.MapFS{
		"migrations/0001_log.sql":  {Data: first},
		"migrations/0002_next.sql": {Data: []byte(text)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return known
}

func openWith(ctx context.Context, dir string, known []migration) error {
	s, err := open(ctx, dir, known, clock.System{})
	if err != nil {
		return err
	}
	return s.Close()
}

func TestTheReleaseBeforeStillRunsOnALaterSchema(t *testing.T) {
	dir := loadDump(t, "v1.sql")
	newer := next(t, "-- oldest: 1\nALTER TABLE log ADD COLUMN trace TEXT NOT NULL DEFAULT '';")
	if err := openWith(t.Context(), dir, newer); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, dir)
	if err := s.Append(t.Context(), storetest.Entries(6, 3)); err != nil {
		t.Error(err)
	}
	mustClose(t, s)
	if err := openWith(t.Context(), dir, newer); err != nil {
		t.Error(err)
	}
}

func TestASchemaThatNeedsANewerReleaseIsRefused(t *testing.T) {
	dir := loadDump(t, "v1.sql")
	if err := openWith(t.Context(), dir, next(t, "-- oldest: 2\nDROP TABLE heard;")); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), dir, clock.System{})
	if err == nil || !strings.Contains(err.Error(), "newer nixfleet-control-plane") {
		t.Errorf("got %v, want that a newer one is needed", err)
	}
}

func TestAMigrationThatFailsChangesNothing(t *testing.T) {
	dir := loadDump(t, "v1.sql")
	if err := openWith(t.Context(), dir, next(t, "-- oldest: 1\nDROP TABLE heard; SELECT nonsense;")); err == nil {
		t.Fatal("nonsense was applied")
	}
	s := mustOpen(t, dir)
	defer mustClose(t, s)
	if n := count(t, s, "SELECT count(*) FROM heard") + count(t, s, "SELECT count(*) FROM schema_migrations"); n != 2 {
		t.Errorf("the failed migration left something behind: %d", n)
	}
}

func TestAMigrationThatWasChangedIsRefused(t *testing.T) {
	dir := loadDump(t, "v1.sql")
	known := next(t, "-- oldest: 1\nSELECT 1;")
	known[0].sum = store.Digest([]byte("something else"))
	if err := openWith(t.Context(), dir, known); err == nil || !strings.Contains(err.Error(), "0001_log was applied to the database in another form") {
		t.Errorf("got %v, want that it is another form", err)
	}
}

func TestMigrationFilesMustBeWellFormed(t *testing.T) {
	for name, files := range map[string]fstest.MapFS{
		"a gap in the numbers": {"migrations/0002_x.sql": {Data: []byte("-- oldest: 1\n")}},
		"no number":            {"migrations/x.sql": {Data: []byte("-- oldest: 1\n")}},
		"no oldest":            {"migrations/0001_x.sql": {Data: []byte("SELECT 1;\n")}},
		"an oldest of its own future": {
			"migrations/0001_x.sql": {Data: []byte("-- oldest: 2\n")},
		},
	} {
		if _, err := readMigrations(files); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}
