package reducer

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/internal/agent/activation"
)

// ErrEnded is returned by the methods of a reducer whose Run has returned.
var ErrEnded = errors.New("the reducer has ended")

// ErrUndecodable is wrapped by the error of New where the journal's records are none that this version
// can read. They are to be set aside and a new journal begun.
var ErrUndecodable = errors.New("the journal cannot be decoded")

// queue is how many inputs may wait for the reducer; a worker that brings one more waits.
const queue = 64

// compactAbove is the journal's size from which on it is compacted, when it has also doubled since the
// last time.
const compactAbove = 1 << 20

// Reducer is the agent's one writer. Its methods may be called concurrently, also before Run; those
// with a context wait for Run to take their input, and return once what they did is durable.
type Reducer struct {
	o      Options
	log    *slog.Logger
	proc   *activation.Procedure
	inputs chan input
	ended  chan struct{}

	state *state // only Run's goroutine
	meter meter
	// onTarget are the soaks in which this process has seen the host on its target.
	onTarget map[int64]bool
	staff    staff
	worth    int64 // the journal's size right after the last compaction
	outbox   *outbox
	viewed   atomic.Pointer[View]
}

// input is one thing that happened: a step, and where its outcome goes.
type input struct {
	step  func(*tx) error
	reply chan error
}

// New reads what the journal held, or starts a new one, which is durable on return. Nothing runs
// before Run.
func New(o Options) (*Reducer, error) {
	r := &Reducer{
		o: o, log: o.Logger, inputs: make(chan input, queue), ended: make(chan struct{}),
		proc: &activation.Procedure{
			Backend: o.Backend, Clock: o.Clock, BootID: o.BootID, Logger: o.Logger,
			Heartbeat: o.Heartbeat, Confirm: o.Confirm,
		},
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
		r.proc.Logger = r.log
	}
	if err := r.open(); err != nil {
		return nil, err
	}
	r.meter, r.onTarget = meter{clock: o.Clock}, map[int64]bool{}
	r.outbox = newOutbox(o.Hostname, r.state.journalID)
	for id, ro := range r.state.rollouts {
		r.outbox.set(id, ro.stream())
	}
	r.viewed.Store(r.state.view())
	return r, nil
}

func (r *Reducer) open() (err error) {
	if len(r.o.Records) > 0 {
		if r.state, err = replay(r.o.Records); err != nil {
			return fmt.Errorf("%w: %w", ErrUndecodable, err)
		}
		r.o.Records = nil
		return nil
	}
	var id [16]byte
	rand.Read(id[:]) // never fails
	r.state = newState(hex.EncodeToString(id[:]))
	r.log.Info("started a new journal", "journal", r.state.journalID)
	return r.write(r.state.snapshot(), r.o.Journal.Append)
}

// Run takes inputs until ctx ends or the journal can no longer be written, and then waits for every
// worker it started. It is called once. The error is nil when ctx ended.
func (r *Reducer) Run(ctx context.Context) error {
	defer close(r.ended)
	r.staff = staff{running: map[string]*worker{}, done: make(chan *worker)}
	defer r.staff.dismiss()
	if err := r.own((*tx).recover); err != nil {
		return err
	}
	for {
		r.assign(ctx)
		if err := r.turn(ctx); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// turn waits for the next thing to happen and takes it.
func (r *Reducer) turn(ctx context.Context) error {
	var alarm <-chan time.Time
	now := r.meter.now()
	if due, ok := r.state.due(now); ok {
		timer := r.o.Clock.NewTimer(max(due.Sub(now), 0))
		defer timer.Stop()
		alarm = timer.C
	}
	select {
	case <-ctx.Done():
		return nil
	case in := <-r.inputs:
		return r.take(in)
	case <-alarm:
		return r.own((*tx).tick)
	case w := <-r.staff.done:
		return r.leave(ctx, w)
	}
}

// own takes a step that nobody asked for, so that its refusal is nobody's to handle.
func (r *Reducer) own(step func(*tx) error) error {
	in := input{step: step, reply: make(chan error, 1)}
	return errors.Join(r.take(in), <-in.reply)
}

// take runs one step, and has its record written before anything of it is seen. What the step itself
// refuses goes to who asked; only a journal that cannot be written ends the reducer. Whoever asked is
// answered either way.
func (r *Reducer) take(in input) error {
	now := r.meter.read()
	if err := r.keepTime(now); err != nil {
		in.reply <- err
		return err
	}
	t := newTx(r.state, now, r.o.BootID)
	if err := in.step(t); err != nil {
		in.reply <- err
		return nil //nolint:nilerr // it is for who asked
	}
	err := r.commit(t)
	in.reply <- err
	return err
}

// keepTime moves the timers where the machine slept or its clock was set since the last step.
func (r *Reducer) keepTime(now time.Time) error {
	gap := r.meter.gap()
	if gap == 0 {
		return nil
	}
	t := newTx(r.state, now, r.o.BootID)
	t.say("the machine slept or its clock was set: timers are moved", "by", gap)
	t.shift(gap)
	return r.commit(t)
}

func (r *Reducer) commit(t *tx) error {
	c := t.change()
	if c == nil {
		return nil
	}
	if err := r.write(c, r.o.Journal.Append); err != nil {
		return err
	}
	r.state.apply(c)
	for _, id := range c.touched() {
		if ro := r.state.rollouts[id]; ro != nil {
			r.outbox.set(id, ro.stream())
		} else {
			r.outbox.drop(id)
		}
	}
	r.viewed.Store(r.state.view())
	for _, line := range t.log {
		r.log.Info(line.msg, line.args...)
	}
	return r.compact()
}

func (r *Reducer) compact() error {
	size := r.o.Journal.Size()
	if size < compactAbove || size < 2*r.worth {
		return nil
	}
	if err := r.write(r.state.snapshot(), r.o.Journal.Compact); err != nil {
		return err
	}
	r.worth = r.o.Journal.Size()
	return nil
}

func (r *Reducer) write(c *change, to func([]byte) error) error {
	data, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encoding a journal record: %w", err)
	}
	if err := to(data); err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	return nil
}

// do has a step taken and waits until it is durable. When ctx ends meanwhile it may still be taken.
func (r *Reducer) do(ctx context.Context, step func(*tx) error) error {
	in := input{step: step, reply: make(chan error, 1)}
	select {
	case r.inputs <- in:
	case <-r.ended:
		return ErrEnded
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-in.reply:
		return err
	case <-r.ended:
		return ErrEnded
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (ro *rollout) stream() stream {
	return stream{acked: ro.status.AckedSeq, events: ro.events}
}
