// Package store is the contract between the control plane and the database that keeps its log
// (design/control-plane.md, One log, one writer).
//
// A Store is dumb on purpose: it keeps numbered entries, bytes by their digest, and snapshots, and
// knows nothing of rollouts. What the entries mean is internal/rollout's business, and who may append
// is internal/controlplane/writer's. Implementations live below (sqlite); each passes the whole of
// store/storetest against the real database.
package store

import (
	"context"
	"errors"
	"iter"
	"time"

	"nixfleet.dev/nixfleet/internal/trust"
)

// Errors that a caller decides on; implementations wrap them.
var (
	// ErrNotFound is returned for an object or a snapshot that is not there.
	ErrNotFound = errors.New("not found")
	// ErrConflict is returned by Append for entries that do not follow the log's last one: somebody
	// else writes this log, or it was changed by hand.
	ErrConflict = errors.New("the log does not end where it should")
	// ErrDamaged is returned where what is stored is not what was written.
	ErrDamaged = errors.New("the stored data are damaged")
	// ErrInUse is returned where another process holds the database.
	ErrInUse = errors.New("in use by another process")
	// ErrFull is returned where the database cannot grow.
	ErrFull = errors.New("no space left for the database")
)

// KeptSnapshots is how many snapshots a store keeps: the newest, and one to fall back to.
const KeptSnapshots = 2

// Entry is one line of the append-only log. It is never changed after it was appended.
type Entry struct {
	Seq        int64     // its place in the log, from 1 and without gaps
	RecordedAt time.Time // to the nanosecond, in UTC
	Kind       string
	RolloutID  string // "" where it is not about one rollout
	Hostname   string // "" where it is not about one host
	Body       []byte // JSON
}

// Snapshot is the state of everything as it was after the entry Seq, in the writer's own encoding.
type Snapshot struct {
	Seq     int64
	TakenAt time.Time
	Data    []byte
}

// Store keeps the log. Append is called by one goroutine at a time; everything else may be called
// concurrently, also beside Append. What a call that returned without an error has written survives
// the loss of power.
type Store interface {
	// LastSeq returns the place of the last entry, 0 for an empty log.
	LastSeq(ctx context.Context) (int64, error)
	// Append adds the entries as one: all of them are durable when it returns nil, and all or none when
	// it is cut short. After an error the caller must not go on but read the log again. They must be
	// numbered from LastSeq+1 without gaps, else ErrConflict. Once begun it is not interrupted by ctx.
	Append(ctx context.Context, entries []Entry) error
	// Entries yields the log after the entry after, oldest first. It may be appended to meanwhile;
	// what is yielded then is unspecified, but never has a gap. It stops at the first error.
	Entries(ctx context.Context, after int64) iter.Seq2[Entry, error]
	// RolloutEntries returns up to limit entries about one rollout after the entry after, oldest first.
	RolloutEntries(ctx context.Context, rolloutID string, after int64, limit int) ([]Entry, error)

	// PutObject keeps bytes under their digest (Digest) for ever. Putting them again does nothing.
	PutObject(ctx context.Context, data []byte) (digest string, err error)
	// Object returns the bytes with this digest, which it has checked, or ErrNotFound.
	Object(ctx context.Context, digest string) ([]byte, error)

	// SaveSnapshot keeps a snapshot and drops all but the newest KeptSnapshots. It does not hold up
	// Append for long, however large the snapshot is.
	SaveSnapshot(ctx context.Context, s Snapshot) error
	// Snapshots returns the places of the snapshots kept, newest first.
	Snapshots(ctx context.Context) ([]int64, error)
	// Snapshot returns the snapshot as of the entry seq: ErrNotFound, or ErrDamaged where the older
	// one or the log itself have to do.
	Snapshot(ctx context.Context, seq int64) (Snapshot, error)

	// SaveHeard keeps when each host was last heard, in place of what was saved before. It is no part
	// of the log: nothing is derived from it.
	SaveHeard(ctx context.Context, heard map[string]time.Time) error
	// Heard returns what SaveHeard saved last.
	Heard(ctx context.Context) (map[string]time.Time, error)

	// Close releases the database. No other call may be running or come after.
	Close() error
}

// Digest returns the name of an object: the SHA-256 of its bytes in lower-case hex, as in a release
// repository (design/artifacts.md, Release repository).
func Digest(data []byte) string {
	return trust.Digest(data)
}
