// Package longpoll is the agent's one way to be told that it is its turn: it holds a poll open at the
// control plane, and turns a dispatch, which is advice, into an Offer for the reducer, or into a refusal
// with its reason (design/agent.md, "The long-poll worker"; L1 to L15 are that table's rows).
//
// A dispatch is acted on only because of what is signed: the manifest and this host's line, verified
// anew for every dispatch, whether they come from disk or from the control plane. The worker keeps no
// state that a restart would lose and takes no decision of the host machine: the reducer does.
package longpoll

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/backoff"
	"nixfleet.dev/nixfleet/internal/agent/client"
	"nixfleet.dev/nixfleet/internal/agent/reducer"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/manifest"
)

const (
	// wait is how long a poll is held at the control plane.
	wait = api.MaxWait * time.Second
	// leastRound is how long a round takes at least that started nothing new (L3).
	leastRound = time.Second
	// closingSpread is over how long agents come back to a control plane that is shutting down.
	closingSpread = 10 * time.Second
	// rejectTimeout bounds telling of a refusal: it is best effort and holds up the next poll.
	rejectTimeout = 10 * time.Second
)

// ControlPlane is what the worker asks; *client.Client is one.
type ControlPlane interface {
	Dispatch(ctx context.Context, wait time.Duration) (client.Poll, error)
	Manifest(ctx context.Context, rolloutID string) ([]byte, error)
	HostProof(ctx context.Context, rolloutID, hostname string) (api.HostProof, error)
	Reject(ctx context.Context, r api.Rejection) error
	// Avoid has the next question go to another control plane, where there is one.
	Avoid()
}

// Reducer is what takes the work; *reducer.Reducer is one.
type Reducer interface {
	Offer(ctx context.Context, o reducer.Offer) (reducer.Answer, error)
	View() *reducer.View
}

// Cache keeps manifests on disk; *manifestcache.Cache is one.
type Cache interface {
	Load(rolloutID string) (envelope []byte, proof api.HostProof, ok bool)
	Store(rolloutID string, envelope []byte, proof api.HostProof) error
	Prune(finished func(rolloutID string) bool) error
}

// Keeper decides which manifests are accepted and records them; *accept.Keeper is one.
type Keeper interface {
	Accept(rolloutID string, envelope []byte, proof api.HostProof) (manifest.Accepted, error)
	Follow(channel string) error
}

// Options configure a Worker. Between, Resend and Random may be nil.
type Options struct {
	Hostname     string
	ErrorBackoff time.Duration // the least wait after an error
	Observe      bool          // refuse all that would change the host
	// After is closed once the first heartbeat was answered: the first poll comes after it (L1).
	After <-chan struct{}

	ControlPlane ControlPlane
	Reducer      Reducer
	Cache        Cache
	Keeper       Keeper
	// Current returns the closure that the current-system link points at, "" where there is none.
	Current func(ctx context.Context) (string, error)
	// Resend has outbound send what it still has, back-off or not.
	Resend func()
	// Between is called between two polls that went well: what is due soon goes over the connection
	// that is free now.
	Between func(ctx context.Context)

	Clock  clock.Clock
	Logger *slog.Logger
	Random func() float64 // in [0, 1), for jitter; nil is math/rand/v2's
}

// Worker polls. Run it once.
type Worker struct {
	o       Options
	backoff backoff.Backoff
}

// New returns a worker.
func New(o Options) *Worker {
	if o.Random == nil {
		o.Random = rand.Float64
	}
	return &Worker{o: o, backoff: backoff.Backoff{Floor: o.ErrorBackoff, Random: o.Random}}
}

// Run polls until ctx ends, and returns its cause. Nothing else ends it.
func (w *Worker) Run(ctx context.Context) error {
	select {
	case <-w.o.After:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		pause, well := w.round(ctx)
		if err := w.o.Clock.Sleep(ctx, pause); err != nil {
			return err
		}
		if well && w.o.Between != nil {
			w.o.Between(ctx)
		}
	}
}

// round asks once and handles the answer. It returns how long to wait before the next time, and
// whether the control plane answered as it should.
func (w *Worker) round(ctx context.Context) (pause time.Duration, well bool) {
	asked := w.o.Clock.Now()
	poll, err := w.o.ControlPlane.Dispatch(ctx, wait)
	switch {
	case ctx.Err() != nil: // L13: shutdown wins over an answer that is there already
		return 0, false
	case err != nil:
		pause = w.backoff.Next(client.RetryAfter(err))
		w.o.Logger.Warn("asking for work failed", "err", err, "wait", pause)
		return pause, false
	case poll.Dispatch == nil:
		w.backoff.Reset()
		pause = asked.Add(leastRound).Sub(w.o.Clock.Now())
		if poll.Closing {
			pause = max(pause, time.Duration(w.o.Random()*float64(closingSpread)))
		}
		return pause, true
	}
	return w.dispatched(ctx, *poll.Dispatch)
}

// dispatched handles a dispatch.
func (w *Worker) dispatched(ctx context.Context, d api.Dispatch) (pause time.Duration, well bool) {
	kind, err := w.handle(ctx, d)
	switch {
	case ctx.Err() != nil:
		return 0, false
	case err != nil:
		w.refuse(ctx, d, err)
		return w.backoff.Next(0), false
	}
	w.backoff.Reset()
	if kind == reducer.Accepted {
		return 0, true
	}
	// The control plane has not got the answer yet. Its events are the answer.
	if w.o.Resend != nil {
		w.o.Resend()
	}
	return w.o.ErrorBackoff, true
}
