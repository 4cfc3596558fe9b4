// Package heartbeat tells the control plane what this host is, first of all and then by an interval,
// and acts on what it answers, within the limits of design/security.md ("advice abuse"): the answer is
// advice. It may ask for events again, have ended rollouts' events forgotten, and stop an activation
// that has not touched the machine; the reducer enforces each. It also names what the host's channel is
// at, which is verified like any manifest, so that a host notices when it is kept in the past.
//
// It changes no state of a rollout, and fetches no manifest in order to act on it.
package heartbeat

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/backoff"
	"nixfleet.dev/nixfleet/internal/agent/client"
	"nixfleet.dev/nixfleet/internal/agent/reducer"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/trust"
)

// The interval: what it is until the control plane says another, and what it is clamped to.
const (
	DefaultInterval = time.Minute
	MinInterval     = 10 * time.Second
	MaxInterval     = 15 * time.Minute
)

// ControlPlane is who is told; *client.Client is one.
type ControlPlane interface {
	Heartbeat(ctx context.Context, hb api.Heartbeat) (api.HeartbeatReply, error)
	Confirm(ctx context.Context, hb api.Heartbeat) error
	Manifest(ctx context.Context, rolloutID string) ([]byte, error)
	HostProof(ctx context.Context, rolloutID, hostname string) (api.HostProof, error)
	Avoid()
}

// Reducer is what the answer is for; *reducer.Reducer is one.
type Reducer interface {
	View() *reducer.View
	Replay(ctx context.Context, from map[string]int64) error
	Forget(ctx context.Context, rolloutIDs []string) error
	Withdraw(ctx context.Context, rolloutIDs []string) error
}

// Keeper decides which manifests are accepted; *accept.Keeper is one.
type Keeper interface {
	Accept(rolloutID string, envelope []byte, proof api.HostProof) (manifest.Accepted, error)
	Channel() string
	Highest(channel string) *trust.Verified[api.Manifest]
}

// Machine says what runs; every activation.Backend is one.
type Machine interface {
	Current(ctx context.Context) (string, error)
	Boot(ctx context.Context) (string, error)
}

// pending is an ability that a Machine may have besides (activation.Pending).
type pending interface {
	RebootPending(ctx context.Context) ([]string, error)
}

// Options configure a Worker.
type Options struct {
	Hostname    string
	Version     string // of the agent
	BootID      string
	TrustSHA256 func() string        // of the trust.json that counts now
	Uptime      func() time.Duration // of the machine

	// Interval is fixed by this host's configuration; 0 follows the control plane.
	Interval     time.Duration
	ErrorBackoff time.Duration

	ControlPlane ControlPlane
	Reducer      Reducer
	Keeper       Keeper
	Machine      Machine
	// Heard is called after each answered heartbeat; nil for nobody.
	Heard func()

	Clock  clock.Clock
	Logger *slog.Logger
	Random func() float64 // in [0, 1), for jitter; nil is math/rand/v2's
}

// Worker sends heartbeats. Run it once; its other methods may be called concurrently.
type Worker struct {
	o     Options
	one   chan struct{} // one slot, taken while a heartbeat is on its way
	first chan struct{} // closed once one was answered
	watch watch

	mu       sync.Mutex
	tried    time.Time // when one was sent last
	last     time.Time // when one was answered last; zero before the first
	interval time.Duration
	current  map[string]string // from the last answer
}

// New returns a worker.
func New(o Options) *Worker {
	if o.Random == nil {
		o.Random = rand.Float64
	}
	w := &Worker{o: o, one: make(chan struct{}, 1), first: make(chan struct{}), interval: o.Interval}
	if w.interval == 0 {
		w.interval = DefaultInterval
	}
	return w
}

// First is closed once a heartbeat was answered.
func (w *Worker) First() <-chan struct{} { return w.first }

// Run sends heartbeats until ctx ends, and returns its cause, or until the reducer ends.
func (w *Worker) Run(ctx context.Context) error {
	failures := backoff.Backoff{Floor: w.o.ErrorBackoff, Random: w.o.Random}
	for {
		pause := w.untilDue(w.o.Random())
		var err error
		if pause <= 0 {
			err = w.Beat(ctx)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err == nil {
				failures.Reset()
			} else {
				pause = failures.Next(client.RetryAfter(err))
				w.o.Logger.Warn("heartbeat failed", "err", err, "wait", pause)
			}
		}
		w.watchIntent(ctx, err)
		if err := w.o.Clock.Sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// untilDue returns how long it is until a heartbeat is due by itself: an interval after the last, and
// up to a quarter more, in which one usually goes out between two polls instead.
func (w *Worker) untilDue(random float64) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last.IsZero() {
		return 0
	}
	due := w.interval + time.Duration(random*float64(w.interval/4))
	return w.last.Add(due).Sub(w.o.Clock.Now())
}

// Between sends a heartbeat now if one is due soon: a poll has just ended, so the connection is free.
func (w *Worker) Between(ctx context.Context) {
	w.mu.Lock()
	soon := !w.last.IsZero() && w.o.Clock.Now().Sub(w.tried) >= w.interval*3/4
	w.mu.Unlock()
	if !soon {
		return
	}
	if err := w.Beat(ctx); err != nil && ctx.Err() == nil {
		w.o.Logger.Warn("heartbeat failed", "err", err)
	}
}

// Beat sends one heartbeat now and returns once its answer has been acted on. An error means that
// there was none, or that the reducer has ended.
func (w *Worker) Beat(ctx context.Context) error {
	select {
	case w.one <- struct{}{}:
		defer func() { <-w.one }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	w.mu.Lock()
	w.tried = w.o.Clock.Now()
	w.mu.Unlock()
	view := w.o.Reducer.View()
	hb, err := w.compose(ctx, view)
	if err != nil {
		return err
	}
	reply, err := w.o.ControlPlane.Heartbeat(ctx, hb)
	if err != nil {
		return err
	}
	if err := w.heed(ctx, reply, view.Acked); err != nil {
		return err
	}
	w.answered(reply)
	return nil
}

// Confirm completes one request over a new connection: it is a heartbeat too, whose answer nobody
// reads (state.md, Confirmation).
func (w *Worker) Confirm(ctx context.Context) error {
	hb, err := w.compose(ctx, w.o.Reducer.View())
	if err != nil {
		return err
	}
	return w.o.ControlPlane.Confirm(ctx, hb)
}

// compose says what this host is now.
func (w *Worker) compose(ctx context.Context, view *reducer.View) (api.Heartbeat, error) {
	running, err := w.o.Machine.Current(ctx)
	if err != nil {
		return api.Heartbeat{}, err
	}
	boot, err := w.o.Machine.Boot(ctx)
	if err != nil {
		return api.Heartbeat{}, err
	}
	hb := api.Heartbeat{
		Hostname: w.o.Hostname, JournalID: view.JournalID, At: w.o.Clock.Now().Round(0),
		AgentVersion: w.o.Version, BootID: w.o.BootID, CurrentClosure: running, BootClosure: boot,
		TrustSHA256: w.o.TrustSHA256(), UptimeSeconds: int64(w.o.Uptime() / time.Second), LastSeq: view.LastSeq,
	}
	if machine, ok := w.o.Machine.(pending); ok {
		if hb.RebootPending, err = machine.RebootPending(ctx); err != nil {
			return api.Heartbeat{}, err
		}
	}
	return hb, nil
}

// heed acts on an answer's advice, as far as it is about rollouts that this host knows. acked is what
// had been acknowledged when the question was asked.
func (w *Worker) heed(ctx context.Context, reply api.HeartbeatReply, acked map[string]int64) error {
	known := w.o.Reducer.View().Rollouts
	if ids := only(known, reply.Withdrawn); len(ids) > 0 {
		w.o.Logger.Info("the control plane withdrew rollouts", "rollouts", ids)
		if err := w.o.Reducer.Withdraw(ctx, ids); err != nil {
			return err
		}
	}
	if from := w.lost(reply.ReplayFrom, acked); len(from) > 0 {
		w.o.Logger.Info("the control plane asks for events again", "from", from)
		if err := w.o.Reducer.Replay(ctx, from); err != nil {
			return err
		}
	}
	if ids := only(known, reply.Forget); len(ids) > 0 {
		return w.o.Reducer.Forget(ctx, ids)
	}
	return nil
}

// lost returns from where on the control plane asks for events that it had acknowledged before. What it
// had not was on its way to it when it answered, and is sent until it has it anyway.
func (w *Worker) lost(replay, acked map[string]int64) map[string]int64 {
	from := map[string]int64{}
	for id, seq := range replay {
		switch upTo, known := acked[id]; {
		case !known:
		case max(seq, 1) <= upTo:
			from[id] = max(seq, 1)
		default:
			w.o.Logger.Debug("the control plane asks for events that are on their way", "rollout", id, "from", seq)
		}
	}
	return from
}

func only(known map[string]reducer.RolloutView, ids []string) []string {
	var out []string
	for _, id := range ids {
		if _, ok := known[id]; ok {
			out = append(out, id)
		}
	}
	return out
}

// answered takes note of an answer.
func (w *Worker) answered(reply api.HeartbeatReply) {
	w.mu.Lock()
	if w.last.IsZero() {
		close(w.first)
	}
	w.last = w.o.Clock.Now()
	w.current = reply.Current
	if w.o.Interval == 0 && reply.Interval > 0 {
		w.interval = min(max(reply.Interval.Std(), MinInterval), MaxInterval)
	}
	w.mu.Unlock()
	if w.o.Heard != nil {
		w.o.Heard()
	}
}
