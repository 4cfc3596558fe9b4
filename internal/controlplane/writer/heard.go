package writer

import (
	"context"

	"nixfleet.dev/nixfleet/internal/rollout"
)

// saveHeard keeps when hosts last sent a heartbeat, all in one piece. Heartbeats that say nothing new are
// not on the log, so without it a host that died last week would seem never to have been heard after
// a restart.
func (w *Writer) saveHeard(ctx context.Context) {
	w.mu.RLock()
	heard := w.fleet.LastHeartbeats()
	w.mu.RUnlock()
	if err := w.store.SaveHeard(ctx, heard); err != nil && ctx.Err() == nil {
		w.log.Warn("it was not saved when hosts were last heard", "err", err)
	}
}

// restoreHeard is the reverse of saveHeard.
func (w *Writer) restoreHeard(ctx context.Context, fleet *rollout.Fleet) {
	heard, err := w.store.Heard(ctx)
	if err != nil {
		w.log.Warn("it is not known when hosts were last heard", "err", err)
		return
	}
	fleet.RestoreHeartbeats(heard)
}
