// Package outbound sends the host's events to the control plane: in the journal's order over all
// rollouts, batch by batch, each until it is acknowledged (design/wire.md, "POST /v1/agent/events").
//
// The events, and how far they are acknowledged, are the reducer's; this package has none of its own
// and forgets nothing when the process ends. It owns only the folder of batches that a control plane
// called malformed.
package outbound

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/backoff"
	"nixfleet.dev/nixfleet/internal/agent/client"
	"nixfleet.dev/nixfleet/internal/clock"
)

// ControlPlane is where events go; *client.Client is one.
type ControlPlane interface {
	Events(ctx context.Context, batch api.EventBatch) (api.EventsAck, error)
}

// Reducer is where they come from; *reducer.Reducer is one.
type Reducer interface {
	// NextBatch returns the oldest unacknowledged events of one rollout, none of those in skip.
	NextBatch(skip ...string) (api.EventBatch, bool)
	// OutboundReady gives a value when there may be something new.
	OutboundReady() <-chan struct{}
	Acked(ctx context.Context, rolloutID string, seq int64, refused []api.RefusedEvent) error
	SetAside(ctx context.Context, rolloutID string, from, to int64) error
	Replay(ctx context.Context, from map[string]int64) error
}

// Options configure a Worker.
type Options struct {
	ControlPlane ControlPlane
	Reducer      Reducer
	SetAside     *Folder // where malformed batches are kept
	ErrorBackoff time.Duration
	Clock        clock.Clock
	Logger       *slog.Logger
	Random       func() float64 // in [0, 1), for jitter; nil is math/rand/v2's
}

// Worker sends. Run it once; its other methods may be called concurrently.
type Worker struct {
	o       Options
	backoff backoff.Backoff
	kick    chan struct{} // one slot: send now, back-off or not
	heard   chan struct{} // one slot: a heartbeat was answered

	held    map[string]bool // rollouts that wait for the next heartbeat
	rewound map[string]bool // rollouts that were sent again from an earlier number since the last one
}

// New returns a worker.
func New(o Options) *Worker {
	return &Worker{
		o: o, backoff: backoff.Backoff{Floor: o.ErrorBackoff, Random: o.Random},
		kick: make(chan struct{}, 1), heard: make(chan struct{}, 1), held: map[string]bool{}, rewound: map[string]bool{},
	}
}

// Resend has everything tried again now: the control plane asked for what it was not sent yet.
func (w *Worker) Resend() { signal(w.kick) }

// Heard says that a heartbeat was answered: rollouts that the control plane did not know are tried again.
func (w *Worker) Heard() { signal(w.heard) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run sends until ctx ends, and returns its cause, or until the reducer ends.
func (w *Worker) Run(ctx context.Context) error {
	for {
		batch, ok := w.o.Reducer.NextBatch(slices.Collect(maps.Keys(w.held))...)
		if !ok {
			if err := w.wait(ctx, nil, w.o.Reducer.OutboundReady()); err != nil {
				return err
			}
			continue
		}
		pause, err := w.send(ctx, batch)
		if err != nil {
			return err
		}
		if pause > 0 {
			timer := w.o.Clock.NewTimer(pause)
			err = w.wait(ctx, timer.C, nil)
			timer.Stop()
		}
		if err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// wait waits for any of the signals.
func (w *Worker) wait(ctx context.Context, timer <-chan time.Time, ready <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer:
	case <-ready:
	case <-w.kick:
		w.releaseAll()
	case <-w.heard:
		w.releaseAll()
	}
	return nil
}

// releaseAll has every rollout tried again.
func (w *Worker) releaseAll() {
	clear(w.held)
	clear(w.rewound)
}

// send sends one batch. It returns how long to wait before the next, and an error only where the
// reducer's is the end.
func (w *Worker) send(ctx context.Context, b api.EventBatch) (time.Duration, error) {
	ack, err := w.o.ControlPlane.Events(ctx, b)
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	switch {
	case err == nil:
		return w.acked(ctx, b, ack)
	case client.IsProblem(err, api.CodeSequenceGap):
		return w.rewind(ctx, b, err)
	case client.IsProblem(err, api.CodeUnknownRollout):
		w.o.Logger.Info("the control plane does not know this rollout; its events wait for the next heartbeat", "rollout", b.RolloutID)
		w.held[b.RolloutID] = true
		return 0, nil
	case client.IsProblem(err, api.CodeMalformed):
		return w.setAside(ctx, b, err)
	}
	return w.failed(b, err), nil
}

// failed is any error that time may mend.
func (w *Worker) failed(b api.EventBatch, err error) time.Duration {
	pause := w.backoff.Next(client.RetryAfter(err))
	w.o.Logger.Warn("sending events failed", "rollout", b.RolloutID, "err", err, "wait", pause)
	return pause
}

// acked takes an acknowledgement. One of less than was sent is progress; one of nothing is an error,
// and one of more counts for what was sent.
func (w *Worker) acked(ctx context.Context, b api.EventBatch, ack api.EventsAck) (time.Duration, error) {
	first, last := b.Events[0].Seq, b.Events[len(b.Events)-1].Seq
	seq := min(ack.AckedSeq, last)
	if seq < first {
		return w.failed(b, fmt.Errorf("events %d to %d were sent and only those up to %d acknowledged", first, last, ack.AckedSeq)), nil
	}
	refused := slices.DeleteFunc(ack.Refused, func(r api.RefusedEvent) bool { return r.Seq < first || r.Seq > seq })
	for _, r := range refused {
		kind := b.Events[r.Seq-first].Kind
		w.o.Logger.Error("the control plane refused an event", "rollout", b.RolloutID, "seq", r.Seq, "kind", string(kind), "code", string(r.Code), "detail", r.Detail)
	}
	w.backoff.Reset()
	return 0, w.o.Reducer.Acked(ctx, b.RolloutID, seq, refused)
}

// rewind sends again from where the control plane says, once. Where there is another gap then, this
// rollout waits for the next heartbeat, so that it neither loops nor holds up the others.
func (w *Worker) rewind(ctx context.Context, b api.EventBatch, err error) (time.Duration, error) {
	status, _ := errors.AsType[*client.StatusError](err)
	expected := status.Problem.ExpectedSeq
	if w.rewound[b.RolloutID] || expected < 1 || expected >= b.Events[0].Seq {
		w.held[b.RolloutID] = true
		return w.failed(b, err), nil
	}
	w.rewound[b.RolloutID] = true
	w.o.Logger.Info("the control plane misses events; sending again", "rollout", b.RolloutID, "seq", expected)
	return 0, w.o.Reducer.Replay(ctx, map[string]int64{b.RolloutID: expected})
}

// setAside keeps a batch that the control plane will never take where a person can look at it.
func (w *Worker) setAside(ctx context.Context, b api.EventBatch, err error) (time.Duration, error) {
	first, last := b.Events[0].Seq, b.Events[len(b.Events)-1].Seq
	file, keepErr := w.o.SetAside.Keep(b)
	if keepErr != nil {
		return w.failed(b, errors.Join(err, keepErr)), nil
	}
	w.o.Logger.Error("the control plane calls a batch of events malformed; it is set aside", "rollout", b.RolloutID, "seq", first, "last", last, "file", file, "err", err)
	return 0, w.o.Reducer.SetAside(ctx, b.RolloutID, first, last)
}
