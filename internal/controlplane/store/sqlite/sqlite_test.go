package sqlite

import (
	"bytes"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane/store"
	"nixfleet.dev/nixfleet/internal/controlplane/store/storetest"
)

// place is a state directory.
type place string

func (p place) Open(t *testing.T) store.Store {
	t.Helper()
	return mustOpen(t, string(p))
}

func mustOpen(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), dir, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustClose(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Place { return place(t.TempDir()) })
}

func TestCommitsAreSafeFromLossOfPower(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	defer mustClose(t, s)
	for pragma, want := range map[string]string{"synchronous": "2", "journal_mode": "wal"} {
		var got string
		if err := s.write.QueryRow("PRAGMA " + pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %s (%v), want %s", pragma, got, err, want)
		}
	}
}

func TestReadersCannotWrite(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	defer mustClose(t, s)
	if _, err := s.read.Exec("DELETE FROM log"); err == nil {
		t.Error("a connection for reads deleted the log")
	}
}

func TestTheDatabaseIsItsOwnersOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "state")
	s := mustOpen(t, dir)
	defer mustClose(t, s)
	if err := s.Append(t.Context(), storetest.Entries(1, 1)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{".": 0o700, File: 0o600, File + "-wal": 0o600, lockFile: 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v (%v), want %v", name, info.Mode(), err, want)
		}
	}
}

func TestASecondControlPlaneIsTurnedAway(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	_, err := Open(t.Context(), dir, clock.System{})
	if !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), "state_dir") || !strings.Contains(err.Error(), "process ") {
		t.Errorf("got %v, want ErrInUse with what to do", err)
	}
	mustClose(t, s)
	mustClose(t, mustOpen(t, dir))
}

func TestErrorsSayWhatToDo(t *testing.T) {
	write := func(data string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, File), []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, test := range map[string]struct {
		arrange func(t *testing.T, dir string)
		is      error
		says    string
	}{
		"a file that is no database":      {write(strings.Repeat("no database ", 1000)), store.ErrDamaged, "move the file"},
		"a database of something else":    {foreign, nil, "not a nixfleet control plane's"},
		"a database with a torn page":     {torn, store.ErrDamaged, "move the file"},
		"one locked by another process":   {hold, store.ErrInUse, "another process"},
		"a directory in the place of one": {func(t *testing.T, dir string) { _ = os.Mkdir(filepath.Join(dir, File), 0o700) }, nil, "create the database"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			test.arrange(t, dir)
			s, err := Open(t.Context(), dir, clock.System{})
			if err == nil {
				_ = s.Close()
			}
			if err == nil || test.is != nil && !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %v and %q", err, test.is, test.says)
			}
		})
	}
}

func foreign(t *testing.T, dir string) {
	db := rawDB(t, dir)
	if _, err := db.Exec("CREATE TABLE bookmarks (url TEXT)"); err != nil {
		t.Fatal(err)
	}
	db.Close()
}

func torn(t *testing.T, dir string) {
	s := mustOpen(t, dir)
	if err := s.Append(t.Context(), storetest.Entries(1, 5000)); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	path := filepath.Join(dir, File)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(data[4096:], bytes.Repeat([]byte{0xff}, len(data)-4096))
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// hold keeps a write transaction open from beside the control plane, as a forgotten sqlite3 shell does.
func hold(t *testing.T, dir string) {
	db := rawDB(t, dir)
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("CREATE TABLE x (y)"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(); db.Close() })
}

func rawDB(t *testing.T, dir string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, File))
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	return db
}

func TestAFullDiskRefusesTheGroupAndKeepsTheRest(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	if err := s.Append(t.Context(), storetest.Entries(1, 100)); err != nil {
		t.Fatal(err)
	}
	var pages int
	if err := s.write.QueryRow("PRAGMA page_count").Scan(&pages); err != nil {
		t.Fatal(err)
	}
	var limit int
	if err := s.write.QueryRow("PRAGMA max_page_count = 1").Scan(&limit); err != nil || limit != pages {
		t.Fatal(limit, pages, err)
	}
	err := s.Append(t.Context(), storetest.Entries(101, 500))
	if !errors.Is(err, store.ErrFull) || !strings.Contains(err.Error(), "free some space") {
		t.Errorf("got %v, want ErrFull with what to do", err)
	}
	mustClose(t, s)
	s = mustOpen(t, dir)
	defer mustClose(t, s)
	if last, err := s.LastSeq(t.Context()); err != nil || last != 100 {
		t.Errorf("the log ends at %d (%v), want 100", last, err)
	}
	if err := s.Append(t.Context(), storetest.Entries(101, 500)); err != nil {
		t.Error(err)
	}
}

func TestAMissingEntryIsNoticed(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	defer mustClose(t, s)
	if err := s.Append(t.Context(), storetest.Entries(1, 10)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.write.Exec("DELETE FROM log WHERE seq = 4"); err != nil {
		t.Fatal(err)
	}
	var err error
	for _, err = range s.Entries(t.Context(), 0) {
		if err != nil {
			break
		}
	}
	if !errors.Is(err, store.ErrDamaged) || !strings.Contains(err.Error(), "entry 4 is missing") {
		t.Errorf("got %v, want ErrDamaged at entry 4", err)
	}
}

func TestAnAlteredValueIsNoticed(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	defer mustClose(t, s)
	digest, err := s.PutObject(t.Context(), bytes.Repeat([]byte("x"), 3*chunk))
	if err != nil {
		t.Fatal(err)
	}
	for _, alter := range []string{"UPDATE chunks SET data = x'00' WHERE n = 1", "DELETE FROM chunks WHERE n = 2"} {
		if _, err := s.write.Exec(alter); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Object(t.Context(), digest); !errors.Is(err, store.ErrDamaged) {
			t.Errorf("%s: got %v, want ErrDamaged", alter, err)
		}
	}
}

func TestAValueWhoseWritingWasCutShortIsDroppedAtTheNextStart(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	whole, err := s.PutObject(t.Context(), bytes.Repeat([]byte("x"), 3*chunk))
	if err != nil {
		t.Fatal(err)
	}
	half := bytes.Repeat([]byte("y"), 3*chunk)
	if err := s.putChunks(t.Context(), store.Digest(half), half[:2*chunk]); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	s = mustOpen(t, dir)
	defer mustClose(t, s)
	if n := count(t, s, "SELECT count(*) FROM chunks"); n != 3 {
		t.Errorf("there are %d chunks, want the 3 of the whole object", n)
	}
	if _, err := s.Object(t.Context(), whole); err != nil {
		t.Error(err)
	}
}

func TestDroppedSnapshotsLeaveNothingBehind(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	defer mustClose(t, s)
	for i := range 5 {
		data := bytes.Repeat([]byte{byte(i)}, 2*chunk)
		if err := s.SaveSnapshot(t.Context(), store.Snapshot{Seq: int64(i), Data: data, TakenAt: time.Unix(0, 1)}); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(t, s, "SELECT count(*) FROM chunks"); n != 2*store.KeptSnapshots {
		t.Errorf("there are %d chunks, want %d", n, 2*store.KeptSnapshots)
	}
}

func count(t *testing.T, s *Store, query string) int {
	t.Helper()
	var n int
	if err := s.read.QueryRow(query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
