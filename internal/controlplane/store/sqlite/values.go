package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/internal/controlplane/store"
)

// chunk is how much of a large value is written at a time: the log waits for one of them at most.
const chunk = 1 << 20

// PutObject implements store.Store.
func (s *Store) PutObject(ctx context.Context, data []byte) (string, error) {
	digest := store.Digest(data)
	s.values.Lock()
	defer s.values.Unlock()
	var size int64
	err := s.read.QueryRowContext(ctx, "SELECT size FROM objects WHERE digest = ?", digest).Scan(&size)
	if err == nil {
		return digest, nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return "", s.explain("look for object "+digest, err)
	}
	if err := s.putChunks(ctx, digest, data); err != nil {
		return "", s.explain("write object "+digest, err)
	}
	_, err = s.write.ExecContext(ctx, "INSERT INTO objects (digest, size) VALUES (?, ?)", digest, len(data))
	return digest, s.explain("write object "+digest, err)
}

// Object implements store.Store.
func (s *Store) Object(ctx context.Context, digest string) ([]byte, error) {
	var size int64
	err := s.read.QueryRowContext(ctx, "SELECT size FROM objects WHERE digest = ?", digest).Scan(&size)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("object %s: %w", digest, store.ErrNotFound)
	}
	if err != nil {
		return nil, s.explain("look for object "+digest, err)
	}
	data, err := s.chunks(ctx, digest, size)
	return data, s.explain("read object "+digest, err)
}

// SaveSnapshot implements store.Store.
func (s *Store) SaveSnapshot(ctx context.Context, snap store.Snapshot) error {
	digest := store.Digest(snap.Data)
	s.values.Lock()
	defer s.values.Unlock()
	if err := s.putChunks(ctx, digest, snap.Data); err != nil {
		return s.explain("write a snapshot", err)
	}
	_, err := s.write.ExecContext(ctx, "INSERT OR REPLACE INTO snapshots (seq, taken_at, digest, size) VALUES (?, ?, ?, ?)",
		snap.Seq, snap.TakenAt.UnixNano(), digest, len(snap.Data))
	if err != nil {
		return s.explain("write a snapshot", err)
	}
	_, err = s.write.ExecContext(ctx, "DELETE FROM snapshots WHERE seq NOT IN (SELECT seq FROM snapshots ORDER BY seq DESC LIMIT ?)", store.KeptSnapshots)
	if err != nil {
		return s.explain("drop old snapshots", err)
	}
	return s.sweep(ctx)
}

// Snapshots implements store.Store.
func (s *Store) Snapshots(ctx context.Context) ([]int64, error) {
	rows, err := s.read.QueryContext(ctx, "SELECT seq FROM snapshots ORDER BY seq DESC")
	if err != nil {
		return nil, s.explain("list snapshots", err)
	}
	defer rows.Close()
	var seqs []int64
	for rows.Next() {
		var seq int64
		if err := rows.Scan(&seq); err != nil {
			return nil, s.explain("list snapshots", err)
		}
		seqs = append(seqs, seq)
	}
	return seqs, s.explain("list snapshots", rows.Err())
}

// Snapshot implements store.Store.
func (s *Store) Snapshot(ctx context.Context, seq int64) (store.Snapshot, error) {
	snap := store.Snapshot{Seq: seq}
	var at, size int64
	var digest string
	err := s.read.QueryRowContext(ctx, "SELECT taken_at, digest, size FROM snapshots WHERE seq = ?", seq).Scan(&at, &digest, &size)
	if errors.Is(err, sql.ErrNoRows) {
		return snap, fmt.Errorf("snapshot %d: %w", seq, store.ErrNotFound)
	}
	if err == nil {
		snap.TakenAt = time.Unix(0, at).UTC()
		snap.Data, err = s.chunks(ctx, digest, size)
	}
	return snap, s.explain("read a snapshot", err)
}

// putChunks writes a large value, piece by piece, each in a transaction of its own. The caller holds
// s.values, and names the value in a table of its own when all is written.
func (s *Store) putChunks(ctx context.Context, digest string, data []byte) error {
	for n := 0; n*chunk < len(data); n++ {
		piece := data[n*chunk : min((n+1)*chunk, len(data))]
		if _, err := s.write.ExecContext(ctx, "INSERT OR REPLACE INTO chunks (digest, n, data) VALUES (?, ?, ?)", digest, n, piece); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) chunks(ctx context.Context, digest string, size int64) ([]byte, error) {
	rows, err := s.read.QueryContext(ctx, "SELECT data FROM chunks WHERE digest = ? ORDER BY n", digest)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	data := make([]byte, 0, size)
	for rows.Next() {
		var piece sql.RawBytes
		if err := rows.Scan(&piece); err != nil {
			return nil, err
		}
		data = append(data, piece...)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	if store.Digest(data) != digest {
		return nil, fmt.Errorf("its digest is not %s: %w", digest, store.ErrDamaged)
	}
	return data, nil
}

// sweep drops, piece by piece, values that nothing names: of snapshots that were dropped, and of
// anything whose writing was cut short. The caller holds s.values, or is alone.
func (s *Store) sweep(ctx context.Context) error {
	const one = `DELETE FROM chunks WHERE rowid = (SELECT rowid FROM chunks
		WHERE digest NOT IN (SELECT digest FROM objects UNION ALL SELECT digest FROM snapshots) LIMIT 1)`
	for {
		result, err := s.write.ExecContext(ctx, one)
		if err != nil {
			return s.explain("drop unused values", err)
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return s.explain("drop unused values", err)
		}
	}
}

// SaveHeard implements store.Store. All hosts go into one row: one row each would cost the log a
// second at 100,000 hosts.
func (s *Store) SaveHeard(ctx context.Context, heard map[string]time.Time) error {
	nanos := make(map[string]int64, len(heard))
	for host, at := range heard {
		nanos[host] = at.UnixNano()
	}
	data, err := json.Marshal(nanos)
	if err == nil {
		_, err = s.write.ExecContext(ctx, "INSERT OR REPLACE INTO heard (id, data) VALUES (1, ?)", data)
	}
	return s.explain("write when hosts were heard", err)
}

// Heard implements store.Store.
func (s *Store) Heard(ctx context.Context) (map[string]time.Time, error) {
	var data []byte
	err := s.read.QueryRowContext(ctx, "SELECT data FROM heard").Scan(&data)
	if errors.Is(err, sql.ErrNoRows) {
		return map[string]time.Time{}, nil
	}
	var nanos map[string]int64
	if err == nil {
		err = json.Unmarshal(data, &nanos)
	}
	heard := make(map[string]time.Time, len(nanos))
	for host, n := range nanos {
		heard[host] = time.Unix(0, n).UTC()
	}
	return heard, s.explain("read when hosts were heard", err)
}
