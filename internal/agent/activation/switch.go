package activation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// ended is how a switch ended.
type ended struct {
	kind   endKind
	status JobStatus
	at     machine // what was seen: third
	never  bool    // expired before the switch was begun
}

type endKind int

const (
	exited  endKind = iota // with a result
	lost                   // without one, in this boot, for the last time
	booted                 // without one: the machine was booted since
	third                  // a third closure appeared
	expired                // the timeout is over
)

// jobName names a switch of this task: the same for the same try, also after a restart, and another
// for every other.
func (r *run) jobName() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%d\n%s\n%d", r.t.RolloutID, r.t.Attempt, r.t.Closure, r.t.Began.UnixNano()))
	return fmt.Sprintf("%s-%s-%d", r.t.Kind, hex.EncodeToString(sum[:8]), r.t.Try)
}

// runSwitch begins a switch, or takes up the one that was begun, and follows it to its end. One that
// is lost is begun again, MaxTries in all. A switch never runs on past the return.
func (r *run) runSwitch(ctx, limit context.Context) (ended, error) {
	if r.t.Stage == StageSwitch {
		if e, over, err := r.takeUp(ctx); over || err != nil {
			return e, err
		}
	}
	for {
		if r.t.Stage != StageSwitch {
			if timedOut(limit) {
				return ended{kind: expired, never: true}, nil
			}
			r.t.Try++
			r.t.Job, r.t.BootID = r.jobName(), r.BootID
			if err := r.mark(ctx, StageSwitch); err != nil {
				return ended{}, err
			}
		}
		e, err := r.follow(ctx, limit)
		if err != nil || e.kind != lost || r.t.Try >= MaxTries {
			return e, err
		}
		r.log.Warn("the switch ended without a result; switching again", "job", r.t.Job, "try", r.t.Try)
		r.t.Stage = StageProfile
	}
}

// takeUp looks at a switch that was begun before the agent was started: a result that is there counts,
// however late. After a boot the switch does not run any more, so where there is no result the machine
// itself is all there is.
func (r *run) takeUp(ctx context.Context) (e ended, over bool, err error) {
	limit, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	var s JobStatus
	err = r.retry(limit, "reading how the switch ended", func(ctx context.Context) (err error) {
		s, err = r.Backend.Job(ctx, r.t.Job)
		return err
	})
	switch {
	case ctx.Err() != nil:
		return ended{}, true, context.Cause(ctx)
	case err == nil && s.State == JobExited:
		return ended{kind: exited, status: s}, true, nil
	case r.t.BootID != r.BootID:
		return ended{kind: booted}, true, nil
	}
	return ended{}, false, nil
}

// follow starts the marked switch, or takes it up where it was started before, and watches it.
func (r *run) follow(ctx, limit context.Context) (ended, error) {
	r.l.Progress(ctx, api.PhaseSwitch, 0, 0)
	begun, err := r.begin(limit)
	var e ended
	if err == nil {
		e, err = r.watch(limit)
	}
	switch {
	case ctx.Err() != nil:
		return ended{}, context.Cause(ctx)
	case err == nil && e.kind == third:
		return e, r.stop(ctx, r.t.Job)
	case err == nil:
		return e, nil
	case timedOut(limit):
		return ended{kind: expired, never: !begun}, r.stop(ctx, r.t.Job)
	}
	return ended{kind: exited, status: failedStart(err)}, nil
}

// begin starts the marked switch, which does nothing where it was started before. One that was not
// started in time is not started any more, only to be stopped half way.
func (r *run) begin(limit context.Context) (begun bool, err error) {
	err = r.retry(limit, "starting the switch", func(ctx context.Context) error {
		if timedOut(ctx) {
			s, err := r.Backend.Job(context.WithoutCancel(ctx), r.t.Job)
			begun = err == nil && s.State == JobRunning
			return errTimeout
		}
		return r.Backend.StartSwitch(ctx, r.t.Job, r.t.Closure)
	})
	return begun || err == nil, err
}

func failedStart(err error) JobStatus {
	s := JobStatus{State: JobExited, ExitCode: 1, StderrTail: tail(err.Error())}
	var e *Error
	if errors.As(err, &e) && e.ExitCode != 0 {
		s.ExitCode = e.ExitCode
	}
	return s
}

// Pauses between looks at a running switch.
const (
	firstLook = 50 * time.Millisecond
	slowLook  = time.Second
)

// readTimeout bounds how long it is tried to read what the machine shows, apart from the signed
// timeouts: those may be over when a result is read late.
const readTimeout = time.Minute

// watch looks at the switch and the running system until the switch ends, a third closure appears, or
// ctx ends. What cannot be read is looked at again.
func (r *run) watch(ctx context.Context) (ended, error) {
	unknown := 0
	for pause := firstLook; ; pause = min(pause+pause/2, slowLook) {
		s, err := r.Backend.Job(ctx, r.t.Job)
		switch {
		case err == nil && s.State == JobExited:
			return ended{kind: exited, status: s}, nil
		case err == nil && s.State == JobUnknown:
			if unknown++; unknown > 1 {
				return ended{kind: lost}, nil
			}
		case err == nil:
			unknown = 0
			running, err := r.Backend.Current(ctx)
			if err == nil && running != r.t.Closure && running != r.t.Running {
				boot, _ := r.Backend.Boot(ctx) // for people only
				return ended{kind: third, at: machine{running, boot}}, nil
			}
		case !temporary(err):
			return ended{}, err
		}
		if err := r.Clock.Sleep(ctx, pause); err != nil {
			return ended{}, err
		}
	}
}

// stop has a switch end before anything else is begun, however long that takes.
func (r *run) stop(ctx context.Context, job string) error {
	if job == "" {
		return nil
	}
	err := r.retry(ctx, "stopping the switch", func(ctx context.Context) error {
		if err := r.Backend.StopSwitch(ctx, job); err != nil {
			return fmt.Errorf("stopping switch %s: %w", job, err)
		}
		return nil
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		r.log.Error("the switch could not be stopped", "job", job, "err", err)
	}
	return nil
}

// verdict is what a switch's end means.
type verdict struct {
	failure  *Failure // nil: done, or deferred
	deferred bool
	exitCode int
}

// Exit codes of switch-to-configuration that mean something.
const (
	exitUnitsFailed  = 4
	exitRebootNeeded = 100
)

// judge says what a switch's end means (step 6). The exit code alone proves nothing, and the running
// system alone neither.
func (r *run) judge(ctx context.Context, e ended) verdict {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	f := Failure{Phase: api.PhaseSwitch, Changed: true, ExitCode: e.status.ExitCode, Reason: api.CodeSwitchFailed, StderrTail: tail(e.status.StderrTail)}
	switch e.kind {
	case lost:
		f.StderrTail = fmt.Sprintf("the switch ended without a result, %d times", r.t.Try)
		return verdict{failure: &f}
	case expired:
		f.Reason, f.StderrTail = api.CodeTimeout, "the switch did not end within activationTimeout"
		if e.never { // which is not the closure's fault
			f.Phase, f.StderrTail = api.PhaseSetProfile, "the switch was not begun within activationTimeout"
		}
		return verdict{failure: &f}
	case third:
		f = r.mismatch(e.at, api.PhaseSwitch)
		return verdict{failure: &f}
	}
	r.t.ExitCode = e.status.ExitCode
	units, isUnits := r.Backend.(Units)
	code := e.status.ExitCode
	switch {
	case e.kind == booted, code == 0:
	case isUnits && code == exitRebootNeeded:
		return verdict{deferred: true}
	case isUnits && code == exitUnitsFailed:
		if broken := r.newlyFailed(ctx, units, e.status.FailedUnits); len(broken) > 0 {
			f.StderrTail = tail(fmt.Sprintf("failed units: %q\n%s", broken, f.StderrTail))
			return verdict{failure: &f}
		}
	default:
		return verdict{failure: &f}
	}
	at, err := r.look(ctx)
	if err != nil {
		f.Reason, f.StderrTail = api.CodeVerifyMismatch, tail(err.Error())
		return verdict{failure: &f}
	}
	if !at.is(r.t.Closure) {
		f = r.mismatch(at, api.PhaseSwitch)
		return verdict{failure: &f}
	}
	return verdict{exitCode: code}
}

// newlyFailed returns the units that are failed and were not before the switch.
func (r *run) newlyFailed(ctx context.Context, u Units, reported []string) []string {
	failed := reported
	if failed == nil {
		failed, _ = u.FailedUnits(ctx)
	}
	return slices.DeleteFunc(slices.Clone(failed), func(unit string) bool { return slices.Contains(r.t.FailedUnits, unit) })
}
