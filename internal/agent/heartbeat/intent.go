package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest"
)

// retryIntent is how long it is at most until what this host should be is looked at again, where it
// could not be verified.
const retryIntent = 15 * time.Minute

// watch is what is known of the host's intent: the manifest that its channel is at.
type watch struct {
	mu    sync.Mutex
	due   time.Time // when to verify it next
	stale error     // why nothing fresh is to be had; nil where something is
}

// Stale returns why this host can get nothing fresh, nil where it can. It runs on either way.
func (w *Worker) Stale() error {
	w.watch.mu.Lock()
	defer w.watch.mu.Unlock()
	return w.watch.stale
}

// watchIntent verifies, every quarter of its window, the manifest that this host's channel is at, so
// that a control plane that withholds releases is noticed here (security.md, "indefinite freeze"). away
// is why no control plane can be asked just now, nil where one can.
func (w *Worker) watchIntent(ctx context.Context, away error) {
	now := w.o.Clock.Now()
	if now.Before(w.watch.due) { // only Run's goroutine changes it
		return
	}
	channel, rolloutID := w.intent()
	if rolloutID == "" {
		return // a host that has never been on a channel, and no advice: nothing to hold anybody to
	}
	m, err := api.Manifest{}, away
	if err == nil {
		m, err = w.verifyIntent(ctx, channel, rolloutID)
	}
	if ctx.Err() != nil {
		return
	}
	var next time.Duration
	var stale error
	if err == nil {
		next = min(m.FreshnessWindow.Std()/4, freshUntil(m).Sub(now)+time.Second)
	} else {
		next, stale = w.withoutIntent(channel, now, err)
	}
	w.watch.mu.Lock()
	defer w.watch.mu.Unlock()
	if stale == nil && w.watch.stale != nil {
		w.o.Logger.Info("what this host should be is fresh again", "channel", channel, "rollout", rolloutID)
	}
	w.watch.due, w.watch.stale = now.Add(next), stale
}

// intent returns this host's channel and the rollout that it is at: as the control plane says, or else
// the newest that was accepted.
func (w *Worker) intent() (channel, rolloutID string) {
	w.mu.Lock()
	current := w.current
	w.mu.Unlock()
	channel = w.o.Keeper.Channel()
	if channel == "" && len(current) == 1 {
		for channel = range current {
		}
	}
	if rolloutID = current[channel]; rolloutID != "" {
		return channel, rolloutID
	}
	if highest := w.o.Keeper.Highest(channel); highest != nil {
		rolloutID = highest.Value().RolloutID
	}
	return channel, rolloutID
}

// freshUntil is when a manifest is stale from.
func freshUntil(m api.Manifest) time.Time { return m.SignedAt.Add(m.FreshnessWindow.Std()) }

// verifyIntent verifies a rollout's manifest as the control plane has it now.
func (w *Worker) verifyIntent(ctx context.Context, channel, rolloutID string) (m api.Manifest, err error) {
	of, _, err := manifest.ParseID(rolloutID)
	if err != nil {
		return m, err
	}
	if of != channel {
		return m, fmt.Errorf("the control plane says that channel %s is at %s", channel, rolloutID)
	}
	envelope, proof, err := w.fetch(ctx, rolloutID)
	if err != nil {
		return m, err
	}
	accepted, err := w.o.Keeper.Accept(rolloutID, envelope, proof)
	if err != nil {
		w.o.ControlPlane.Avoid()
		return m, err
	}
	return accepted.Manifest.Value(), nil
}

func (w *Worker) fetch(ctx context.Context, rolloutID string) (envelope []byte, proof api.HostProof, err error) {
	if envelope, err = w.o.ControlPlane.Manifest(ctx, rolloutID); err == nil {
		proof, err = w.o.ControlPlane.HostProof(ctx, rolloutID, w.o.Hostname)
	}
	return envelope, proof, err
}

// errNothingFresh is why Stale is not nil.
var errNothingFresh = errors.New("no fresh manifest can be had for this host's channel")

// withoutIntent says what it means that the newest manifest could not be verified: nothing yet, while
// the newest that was accepted is fresh; otherwise that this host can get nothing fresh, which it says
// here, since the control plane may be the one who keeps it from it.
func (w *Worker) withoutIntent(channel string, now time.Time, cause error) (next time.Duration, stale error) {
	highest := w.o.Keeper.Highest(channel)
	if highest == nil {
		w.o.Logger.Warn("the manifest of this host's channel cannot be verified", "channel", channel, "err", cause)
		return retryIntent, nil
	}
	m := highest.Value()
	next = min(m.FreshnessWindow.Std()/4, retryIntent)
	end := freshUntil(m)
	if !now.After(end) {
		w.o.Logger.Warn("the manifest of this host's channel cannot be verified now", "channel", channel, "rollout", m.RolloutID, "freshUntil", end, "err", cause)
		return min(next, end.Sub(now)+time.Second), nil
	}
	stale = fmt.Errorf("%w: the newest, %s, was fresh until %s: %w", errNothingFresh, m.RolloutID, end.UTC().Format(time.RFC3339), cause)
	w.o.Logger.Error("this host can get nothing fresh; it runs on", "channel", channel, "rollout", m.RolloutID, "code", string(api.CodeStale), "err", stale)
	return next, stale
}
