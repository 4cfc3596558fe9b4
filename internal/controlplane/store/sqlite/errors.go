package sqlite

import (
	"errors"
	"fmt"

	driver "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"nixfleet.dev/nixfleet/internal/controlplane/store"
)

// explain says what was being done, which of the store's errors it is, and what a person can do.
func (s *Store) explain(doing string, err error) error {
	if err == nil {
		return nil
	}
	var e *driver.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("%s in %s: %w", doing, s.path, err)
	}
	hint, kind := judge(e.Code())
	if kind == nil {
		return fmt.Errorf("%s in %s: %w", doing, s.path, err)
	}
	return fmt.Errorf("%s in %s: %w (%w): %s", doing, s.path, kind, err, hint)
}

// judge says what a person can do about SQLite's error, and which of the store's it is, if any.
func judge(code int) (hint string, kind error) {
	switch code & 0xff { // the primary code; the rest says which system call
	case lib.SQLITE_BUSY, lib.SQLITE_LOCKED:
		return "another process keeps it locked; end it (a sqlite3 shell, a backup that writes?) and start again", store.ErrInUse
	case lib.SQLITE_CORRUPT, lib.SQLITE_NOTADB:
		return "move the file and its -wal and -shm aside and start again: the control plane rebuilds " +
			"from the release repository and the agents, or put a backup in its place", store.ErrDamaged
	case lib.SQLITE_FULL:
		return "free some space on its file system and start again; nothing acknowledged is lost", store.ErrFull
	case lib.SQLITE_IOERR:
		return "look for errors of the disk in the kernel's log before starting again", errDisk
	case lib.SQLITE_READONLY, lib.SQLITE_CANTOPEN, lib.SQLITE_PERM, lib.SQLITE_AUTH:
		return "the control plane's user must be able to read and write it and the directory it is in", errAccess
	}
	return "", nil
}

var (
	errAccess = errors.New("no access to the database")
	errDisk   = errors.New("the disk does not do as it is told")
)
