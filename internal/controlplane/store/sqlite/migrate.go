package sqlite

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed migrations/*.sql
var embedded embed.FS

// applicationID marks a database as nixfleet's ("nfcp"), so that no other program's is migrated.
const applicationID = 0x6e666370

// migration is one step of the schema, from version-1 to version.
type migration struct {
	version int
	name    string // of the file, without .sql
	oldest  int    // the oldest version whose code works on the result
	sql     string
	sum     string // SHA-256 of sql, hex
}

// readMigrations reads migrations/NNNN_name.sql in order; each begins with a line "-- oldest: N".
func readMigrations(files fs.FS) ([]migration, error) {
	names, err := fs.Glob(files, "migrations/*.sql")
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	slices.Sort(names)
	var all []migration
	for i, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("read migration: %w", err)
		}
		m := migration{sql: string(text), name: strings.TrimSuffix(strings.TrimPrefix(name, "migrations/"), ".sql")}
		number, _, _ := strings.Cut(m.name, "_")
		if m.version, err = strconv.Atoi(number); err != nil || m.version != i+1 {
			return nil, fmt.Errorf("migration %s is not number %d", m.name, i+1)
		}
		first, _, _ := strings.Cut(m.sql, "\n")
		if m.oldest, err = strconv.Atoi(strings.TrimPrefix(first, "-- oldest: ")); err != nil || m.oldest < 1 || m.oldest > m.version {
			return nil, fmt.Errorf(`migration %s does not begin with a line such as "-- oldest: %d"`, m.name, m.version)
		}
		sum := sha256.Sum256(text)
		m.sum = hex.EncodeToString(sum[:])
		all = append(all, m)
	}
	return all, nil
}

// migrate brings the database to the last of the known migrations, or finds that a newer release took
// it further in a way that this one can live with.
func migrate(ctx context.Context, db *sql.DB, known []migration, now time.Time) error {
	if err := claim(ctx, db); err != nil {
		return err
	}
	done, err := applied(ctx, db)
	if err != nil {
		return err
	}
	for _, m := range done {
		switch {
		case m.version <= len(known) && m.sum != known[m.version-1].sum:
			return fmt.Errorf("migration %s was applied to the database in another form: it was made by an unreleased build, or changed by hand", m.name)
		case m.oldest > len(known):
			return fmt.Errorf("the database is at schema %d, which only works with a newer nixfleet-control-plane: this one knows schema %d and %s needs at least %d",
				len(done), len(known), m.name, m.oldest)
		}
	}
	for _, m := range known[min(len(done), len(known)):] {
		if err := apply(ctx, db, m, now); err != nil {
			return fmt.Errorf("apply migration %s: %w", m.name, err)
		}
	}
	return nil
}

// claim marks an empty database as ours and refuses one that has something else in it.
func claim(ctx context.Context, db *sql.DB) error {
	var id, tables int
	if err := db.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id); err != nil {
		return fmt.Errorf("read application id: %w", err)
	}
	if id == applicationID {
		return nil
	}
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&tables); err != nil {
		return fmt.Errorf("count tables: %w", err)
	}
	if id != 0 || tables > 0 {
		return errors.New("this is a SQLite database, but not a nixfleet control plane's")
	}
	_, err := db.ExecContext(ctx, fmt.Sprintf(`PRAGMA application_id = %d;
		CREATE TABLE schema_migrations (
			version    INTEGER PRIMARY KEY,
			name       TEXT NOT NULL,
			sha256     TEXT NOT NULL,
			oldest     INTEGER NOT NULL, -- the oldest version whose code works on the result
			applied_at INTEGER NOT NULL  -- nanoseconds since 1970
		) STRICT`, applicationID))
	if err != nil {
		return fmt.Errorf("prepare an empty database: %w", err)
	}
	return nil
}

func applied(ctx context.Context, db *sql.DB) ([]migration, error) {
	rows, err := db.QueryContext(ctx, "SELECT version, name, sha256, oldest FROM schema_migrations ORDER BY version")
	if err != nil {
		return nil, fmt.Errorf("read applied migrations: %w", err)
	}
	defer rows.Close()
	var done []migration
	for rows.Next() {
		var m migration
		if err := rows.Scan(&m.version, &m.name, &m.sum, &m.oldest); err != nil {
			return nil, fmt.Errorf("read applied migrations: %w", err)
		}
		if m.version != len(done)+1 {
			return nil, fmt.Errorf("migration %d is missing from the database", len(done)+1)
		}
		done = append(done, m)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read applied migrations: %w", err)
	}
	return done, nil
}

// apply runs one migration and records it, or does neither.
func apply(ctx context.Context, db *sql.DB, m migration, now time.Time) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it is a no-op; before, the first error counts
	if _, err := tx.ExecContext(ctx, m.sql); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO schema_migrations VALUES (?, ?, ?, ?, ?)",
		m.version, m.name, m.sum, m.oldest, now.UnixNano()); err != nil {
		return err
	}
	return tx.Commit()
}
