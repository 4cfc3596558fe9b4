package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"iter"
	"time"

	"nixfleet.dev/nixfleet/internal/controlplane/store"
)

// page is how many entries are read at a time: a long read would keep the WAL from being written back.
const page = 1000

// LastSeq implements store.Store.
func (s *Store) LastSeq(ctx context.Context) (int64, error) {
	var last int64
	err := s.read.QueryRowContext(ctx, "SELECT coalesce(max(seq), 0) FROM log").Scan(&last)
	return last, s.explain("find the end of the log", err)
}

// Append implements store.Store.
func (s *Store) Append(ctx context.Context, entries []store.Entry) error {
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("append to the log: %w", err)
	}
	if err := s.append(context.WithoutCancel(ctx), entries); err != nil {
		return s.explain("append to the log", err)
	}
	s.last += int64(len(entries))
	return nil
}

// append writes a group in one transaction.
func (s *Store) append(ctx context.Context, entries []store.Entry) error {
	conn, err := s.write.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // it only goes back into the pool
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it is a no-op; before, the first error counts
	if err := conn.Raw(func(c any) error { return s.insertAll(ctx, c.(driver.Conn), entries) }); err != nil {
		return err
	}
	return tx.Commit()
}

// insertAll inserts row by row, with the driver's own statement: one statement of many rows costs twice as
// much with this driver, and database/sql a quarter more than nothing between.
func (s *Store) insertAll(ctx context.Context, conn driver.Conn, entries []store.Entry) error {
	stmt, err := conn.Prepare("INSERT INTO log (seq, recorded_at, kind, rollout, host, body) VALUES (?, ?, ?, ?, ?, ?)")
	if err != nil {
		return err
	}
	defer stmt.Close() //nolint:errcheck // a statement that failed says so when it is executed
	insert := stmt.(driver.StmtExecContext)
	var row [6]driver.NamedValue
	for i := range row {
		row[i].Ordinal = i + 1
	}
	for i, e := range entries {
		if e.Seq != s.last+1+int64(i) {
			return fmt.Errorf("entry %d after %d: %w", e.Seq, s.last+int64(i), store.ErrConflict)
		}
		row[0].Value, row[1].Value, row[2].Value = e.Seq, e.RecordedAt.UnixNano(), e.Kind
		row[3].Value, row[4].Value, row[5].Value = e.RolloutID, e.Hostname, e.Body
		if _, err := insert.ExecContext(ctx, row[:]); err != nil {
			return fmt.Errorf("entry %d: %w", e.Seq, err)
		}
	}
	return nil
}

// Entries implements store.Store.
func (s *Store) Entries(ctx context.Context, after int64) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		for {
			entries, err := s.entries(ctx, "SELECT seq, recorded_at, kind, rollout, host, body FROM log WHERE seq > ? ORDER BY seq LIMIT ?", after, page)
			if err != nil {
				yield(store.Entry{}, s.explain("read the log", err))
				return
			}
			for _, e := range entries {
				if e.Seq != after+1 {
					yield(store.Entry{}, fmt.Errorf("read the log in %s: entry %d is missing: %w", s.path, after+1, store.ErrDamaged))
					return
				}
				after = e.Seq
				if !yield(e, nil) {
					return
				}
			}
			if len(entries) < page {
				return
			}
		}
	}
}

// RolloutEntries implements store.Store.
func (s *Store) RolloutEntries(ctx context.Context, rolloutID string, after int64, limit int) ([]store.Entry, error) {
	entries, err := s.entries(ctx, "SELECT seq, recorded_at, kind, rollout, host, body FROM log WHERE rollout = ? AND seq > ? ORDER BY seq LIMIT ?",
		rolloutID, after, max(limit, 0))
	return entries, s.explain("read the history of "+rolloutID, err)
}

func (s *Store) entries(ctx context.Context, query string, args ...any) ([]store.Entry, error) {
	rows, err := s.read.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var entries []store.Entry
	for rows.Next() {
		e, err := scan(rows)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, rows.Err()
}

func scan(rows *sql.Rows) (store.Entry, error) {
	var e store.Entry
	var at int64
	err := rows.Scan(&e.Seq, &at, &e.Kind, &e.RolloutID, &e.Hostname, &e.Body)
	e.RecordedAt = time.Unix(0, at).UTC()
	return e, err
}
