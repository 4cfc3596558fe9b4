package activation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
)

// Procedure runs tasks. It is a plain value, used by one task at a time.
type Procedure struct {
	Backend Backend
	Clock   clock.Clock
	BootID  string // of the boot that is running now
	Logger  *slog.Logger

	// Heartbeat sends one heartbeat and acts on its answer; nil means that it was answered.
	Heartbeat func(ctx context.Context) error
	// Confirm completes one authenticated request on a fresh connection; an answer of 5xx counts.
	Confirm func(ctx context.Context) error
}

// Run does the task, from where its stage says, to its end. It returns nil once the ledger has that
// end, and an error where it was interrupted: ctx ended, or the ledger refused.
func (p *Procedure) Run(ctx context.Context, t Task, l Ledger) error {
	r := &run{Procedure: p, t: t, l: l, log: p.Logger.With("rollout", t.RolloutID, "closure", t.Closure, "task", t.Kind)}
	r.log.Info("task begins", "stage", t.Stage, "try", t.Try)
	var err error
	switch t.Kind {
	case RollBack:
		err = r.rollBack(ctx)
	case Reboot:
		err = r.reboot(ctx)
	default:
		err = r.activate(ctx)
	}
	if err != nil {
		r.log.Info("task interrupted", "err", err)
	}
	return err
}

// run is one run of a task.
type run struct {
	*Procedure
	t   Task
	l   Ledger
	log *slog.Logger
}

// Pauses between tries of what time can mend.
const (
	firstPause = time.Second
	longPause  = time.Minute
)

// errTimeout is the cause of a context whose signed timeout is over.
var errTimeout = errors.New("the signed timeout is over")

// within returns a context that ends when timeout has passed since began, also where that was before
// this run. Only its own end has the cause errTimeout.
func (r *run) within(ctx context.Context, began time.Time, timeout api.Duration) (context.Context, context.CancelFunc) {
	left := timeout.Std() - r.Clock.Now().Round(0).Sub(began)
	left = min(left, timeout.Std()) // a clock that was set back does not lengthen it
	return context.WithTimeoutCause(ctx, left, errTimeout)
}

// timedOut says whether it is the timeout that ended ctx.
func timedOut(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errTimeout) }

// retry calls f until it succeeds or fails for good, with growing pauses, until ctx ends. The error is
// then the last one that was not just the end of ctx.
func (r *run) retry(ctx context.Context, what string, f func(context.Context) error) error {
	var last error
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if ctx.Err() != nil || !temporary(err) {
			return last
		}
		r.log.Warn("will be tried again", "doing", what, "in", pause, "err", err)
		if r.Clock.Sleep(ctx, pause) != nil {
			return last
		}
	}
}

// machine is what the host runs, and what it would boot.
type machine struct{ running, boot string }

// is says whether the host runs and boots the closure.
func (m machine) is(closure string) bool { return m.running == closure && m.boot == closure }

func (r *run) look(ctx context.Context) (machine, error) {
	var m machine
	err := r.retry(ctx, "reading what the host runs", func(ctx context.Context) (err error) {
		if m.running, err = r.Backend.Current(ctx); err != nil {
			return fmt.Errorf("reading the current system: %w", err)
		}
		if m.boot, err = r.Backend.Boot(ctx); err != nil {
			return fmt.Errorf("reading the boot default: %w", err)
		}
		return nil
	})
	return m, err
}

// mark makes the task durable at its next stage.
func (r *run) mark(ctx context.Context, stage Stage) error {
	r.t.Stage = stage
	return r.l.Mark(ctx, r.t)
}

// fail records the end of the task: err says why, and a phase of its own where it has one. Where limit
// ended because of the timeout and the backend had no reason of its own, that is the reason.
func (r *run) fail(ctx, limit context.Context, phase string, changed bool, otherwise api.Code, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	f := Failure{Phase: phase, Changed: changed, Reason: otherwise, StderrTail: tail(err.Error())}
	var e *Error
	switch {
	case errors.As(err, &e):
		f.Reason, f.ExitCode = e.Code, e.ExitCode
		if e.Phase != "" {
			f.Phase = e.Phase
		}
	case timedOut(limit):
		f.Reason = api.CodeTimeout
	}
	return r.failed(ctx, f)
}

func (r *run) failed(ctx context.Context, f Failure) error {
	f.StderrTail = tail(f.StderrTail)
	r.log.Warn("task failed", "phase", f.Phase, "reason", f.Reason, "exitCode", f.ExitCode, "changed", f.Changed, "detail", f.StderrTail)
	return r.l.Failed(ctx, f)
}

// tail is the end of a text, at most what an event may carry. Programs and paths need not be text, and
// what is not cannot be written to the journal.
func tail(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) > api.MaxStderrTail {
		s = strings.ToValidUTF8(s[len(s)-api.MaxStderrTail:], "") // a character that was cut goes
	}
	return s
}
