package writer

import (
	"context"
	"sync/atomic"
	"time"

	"nixfleet.dev/nixfleet/internal/controlplane/store"
	"nixfleet.dev/nixfleet/internal/rollout"
)

// heardEvery is how often it is saved when hosts were last heard. After a crash that much of it is lost,
// which nothing depends on.
const heardEvery = time.Minute

// minTail is how many bytes of entries are worth a snapshot at least.
const minTail = 4 << 20

// snapshots says when the next one is due: when the log's tail has grown as large as the last one.
type snapshots struct {
	due   chan struct{} // holds one when one is
	last  atomic.Int64  // place of the last one
	size  atomic.Int64  // its bytes
	tail  int64         // bytes of the entries since the last one was due; the committer's own
	least int64         // minTail
}

func (s *snapshots) started(f folded) {
	s.last.Store(f.snapshot)
	s.size.Store(f.size)
	s.tail = f.tail
}

// grown says that the log has so many bytes more.
func (s *snapshots) grown(bytes int64) {
	s.tail += bytes
	if s.tail < max(s.least, s.size.Load()) {
		return
	}
	select {
	case s.due <- struct{}{}:
		s.tail = 0
	default: // one is still being taken
	}
}

// taken says that there is one.
func (s *snapshots) taken(snap store.Snapshot) {
	s.last.Store(snap.Seq)
	s.size.Store(int64(len(snap.Data)))
}

// upkeep does what can wait, until ctx ends: snapshots, and when hosts were heard.
func (w *Writer) upkeep(ctx context.Context) {
	for ctx.Err() == nil {
		timer := w.clock.NewTimer(heardEvery)
		select {
		case <-w.snapshots.due:
			w.snapshot(ctx)
		case <-timer.C:
			w.saveHeard(ctx)
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// snapshot keeps a snapshot of the fleet as it is. The core waits while the state is copied, and not
// while the copy is encoded and written.
func (w *Writer) snapshot(ctx context.Context) {
	began := w.clock.Now()
	w.mu.RLock()
	still := w.fleet.Still()
	w.mu.RUnlock()
	w.metrics.pause.Set(w.clock.Now().Sub(began).Seconds())
	err := w.committed.wait(ctx, still.LogSeq()) // no snapshot is ever ahead of the log
	if err == nil {
		err = w.save(ctx, still)
	}
	switch {
	case ctx.Err() != nil:
	case err != nil:
		w.log.Error("a snapshot of the log could not be taken; the next start reads more of the log", "err", err)
	default:
		w.metrics.snapshot.Observe(w.clock.Now().Sub(began).Seconds())
	}
}

func (w *Writer) save(ctx context.Context, still rollout.Still) error {
	data, err := still.JSON()
	if err != nil {
		return err
	}
	snap := store.Snapshot{Seq: still.LogSeq(), TakenAt: w.now(), Data: data}
	if err := w.store.SaveSnapshot(ctx, snap); err != nil {
		return err
	}
	w.snapshots.taken(snap)
	return nil
}

// leave keeps what makes the next start quick. All of the log is on disk already: an error is logged.
func (w *Writer) leave(ctx context.Context, fleet *rollout.Fleet) {
	w.saveHeard(ctx)
	if fleet.LogSeq() == w.snapshots.last.Load() {
		return
	}
	if err := w.save(ctx, fleet.Still()); err != nil {
		w.log.Error("no snapshot was left for the next start", "err", err)
	}
}
