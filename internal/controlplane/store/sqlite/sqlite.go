package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane/store"
)

// File is the name of the database in the state directory.
const File = "nixfleet.db"

// readers is how many connections serve reads.
const readers = 4

// Store is a store.Store in one SQLite database. Open makes one.
type Store struct {
	path string
	lock *os.File

	write *sql.DB // its only connection writes
	read  *sql.DB // read-only connections

	last   int64      // place of the log's last entry; Append's own
	values sync.Mutex // held while a large value is written or dropped
}

var _ store.Store = (*Store)(nil)

// Open opens the database in the state directory dir, which it makes where it is not there yet, and
// brings its schema up to date. The directory is this process's own until Close: a second control plane
// on it gets store.ErrInUse.
func Open(ctx context.Context, dir string, clock clock.Clock) (*Store, error) {
	known, err := readMigrations(embedded)
	if err != nil {
		return nil, err
	}
	return open(ctx, dir, known, clock)
}

func open(ctx context.Context, dir string, known []migration, clock clock.Clock) (_ *Store, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	s := &Store{path: filepath.Join(dir, File)}
	if s.lock, err = lock(dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := create(s.path); err != nil {
		return nil, err
	}
	if err := s.connect(ctx); err != nil {
		return nil, s.explain("open the database", err)
	}
	if err := migrate(ctx, s.write, known, clock.Now()); err != nil {
		return nil, s.explain("prepare the schema", err)
	}
	return s, s.begin(ctx)
}

// create makes the database's file, for its owner only, where there is none. SQLite gives its other
// files the same mode.
func create(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("create the database: %w", err)
	}
	return f.Close()
}

// connect opens the two pools and checks that the settings took.
func (s *Store) connect(ctx context.Context) error {
	var err error
	if s.write, err = sql.Open("sqlite", dsn(s.path, url.Values{
		"_txlock": {"immediate"},
		"_pragma": {
			"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(FULL)",
			"wal_autocheckpoint(4000)", "journal_size_limit(67108864)",
		},
	})); err != nil {
		return err
	}
	s.write.SetMaxOpenConns(1)
	var mode string
	if err := s.write.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return err
	}
	if mode != "wal" {
		return fmt.Errorf("the file system does not let SQLite use WAL (journal mode is %s): use a local disk", mode)
	}
	s.read, err = sql.Open("sqlite", dsn(s.path, url.Values{
		"mode":    {"ro"},
		"_pragma": {"busy_timeout(5000)", "query_only(1)"},
	}))
	if err != nil {
		return err
	}
	s.read.SetMaxOpenConns(readers)
	s.read.SetMaxIdleConns(readers)
	return nil
}

func dsn(path string, settings url.Values) string {
	return (&url.URL{Scheme: "file", Path: path, RawQuery: settings.Encode()}).String()
}

// begin finds the end of the log and drops what an interrupted run left behind.
func (s *Store) begin(ctx context.Context) error {
	var err error
	if s.last, err = s.LastSeq(ctx); err != nil {
		return err
	}
	return s.sweep(ctx)
}

// Close implements store.Store: it leaves one file, with nothing in the WAL, and unlocks the directory.
func (s *Store) Close() error {
	var errs []error
	if s.read != nil {
		errs = append(errs, s.read.Close())
	}
	if s.write != nil {
		errs = append(errs, s.write.Close())
	}
	errs = append(errs, s.lock.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close %s: %w", s.path, err)
	}
	return nil
}
