package reducer

import (
	"context"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// View returns the state as of the newest record. It never blocks.
func (r *Reducer) View() *View { return r.viewed.Load() }

// Offer takes a verified dispatch. The answer is about this dispatch alone; an error means that there
// is none (ctx or the reducer ended, or the journal cannot be written).
func (r *Reducer) Offer(ctx context.Context, o Offer) (Answer, error) {
	var a Answer
	err := r.do(ctx, func(t *tx) error {
		var err error
		a, err = t.offer(o, r.o.Backend)
		return err
	})
	if err != nil {
		return Answer{}, err
	}
	return a, nil
}

// NextBatch returns the oldest events that are not acknowledged, in the journal's order over all
// rollouts, leaving out those of the rollouts in skip (that the control plane does not know now).
// It returns the same again until Acked or SetAside, and false where there is none. It never blocks.
func (r *Reducer) NextBatch(skip ...string) (api.EventBatch, bool) { return r.outbox.next(skip) }

// OutboundReady gives a value when there may be something new to send. It has one slot.
func (r *Reducer) OutboundReady() <-chan struct{} { return r.outbox.ready }

// Acked says that the control plane has every event of the rollout up to seq on disk, and refused
// some. An activation whose DispatchAck was refused stops, if it has not set the profile.
func (r *Reducer) Acked(ctx context.Context, rolloutID string, seq int64, refused []api.RefusedEvent) error {
	return r.do(ctx, func(t *tx) error { return t.acked(rolloutID, seq, refused) })
}

// SetAside says that events from to to are not to be sent again unless asked for: the control plane
// called them malformed. An activation whose DispatchAck is among them stops like a refused one.
func (r *Reducer) SetAside(ctx context.Context, rolloutID string, from, to int64) error {
	return r.do(ctx, func(t *tx) error { return t.setAside(rolloutID, from, to) })
}

// AckWait returns once the rollout's events up to seq are acknowledged.
func (r *Reducer) AckWait(ctx context.Context, rolloutID string, seq int64) error {
	return r.outbox.wait(ctx, rolloutID, seq)
}

// Replay has events sent again: by rollout, the seq to begin at. It is advice of the control plane, so
// what is not there is passed over.
func (r *Reducer) Replay(ctx context.Context, from map[string]int64) error {
	return r.do(ctx, func(t *tx) error { return t.replay(from) })
}

// Forget drops the events of these rollouts where they have ended on this host and everything is
// acknowledged; their last state and number stay.
func (r *Reducer) Forget(ctx context.Context, rolloutIDs []string) error {
	return r.do(ctx, func(t *tx) error { return t.forget(rolloutIDs) })
}

// Withdraw says that these rollouts are no longer active: an activation of theirs that has not set the
// profile stops, as cancelled.
func (r *Reducer) Withdraw(ctx context.Context, rolloutIDs []string) error {
	return r.do(ctx, func(t *tx) error {
		for _, id := range rolloutIDs {
			if err := t.cancel(id); err != nil {
				return err
			}
		}
		return nil
	})
}

// Hold has dispatches rejected as held-locally until then; a zero time lifts it.
func (r *Reducer) Hold(ctx context.Context, until time.Time, reason string) error {
	return r.do(ctx, func(t *tx) error {
		t.globals().Hold = &Hold{Until: until.UTC().Round(0), Reason: reason}
		if until.IsZero() {
			t.globals().Hold = nil
		}
		return nil
	})
}
