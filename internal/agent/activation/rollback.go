package activation

import (
	"context"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// confirmTry bounds one request of a confirmation; confirmPause is the longest pause between two.
const (
	confirmTry   = 15 * time.Second
	confirmPause = 10 * time.Second
	// confirmLeast is how long it is tried at least after a start of the agent: a machine that was off,
	// and has only just been booted, has not had its time to confirm, and its network comes up first.
	confirmLeast = 2 * time.Minute
)

// confirm says whether a control plane could be reached within confirmTimeout since ConfirmFrom.
func (r *run) confirm(ctx context.Context) (bool, error) {
	since := r.t.ConfirmFrom
	least := min(r.t.ConfirmTimeout.Std(), confirmLeast)
	if latest := r.Clock.Now().Round(0).Add(least - r.t.ConfirmTimeout.Std()); since.Before(latest) {
		since = latest
	}
	limit, cancel := r.within(ctx, since, r.t.ConfirmTimeout)
	defer cancel()
	for pause := firstPause; ; pause = min(2*pause, confirmPause) {
		try, done := context.WithTimeout(limit, confirmTry)
		err := r.Confirm(try)
		done()
		switch {
		case ctx.Err() != nil:
			return false, context.Cause(ctx)
		case err == nil:
			return true, nil
		}
		r.log.Warn("no control plane could be reached yet", "err", err)
		if r.Clock.Sleep(limit, pause) != nil && ctx.Err() == nil {
			return false, nil
		}
	}
}

// rollBack takes the host back to the closure: the same as an activation from setting the profile on,
// always live, MaxTries in all. It is complete when the host runs and boots the closure.
func (r *run) rollBack(ctx context.Context) error {
	if r.t.Stage == StageConfirm {
		return r.wentBack(ctx)
	}
	if r.t.Stage == StageBegin {
		if back, err := r.isBack(ctx); back || err != nil {
			return err
		}
	}
	for {
		failure, err := r.goBack(ctx)
		if err != nil {
			return err
		}
		if failure == nil {
			return r.wentBack(ctx)
		}
		if r.t.Try >= MaxTries {
			return r.failed(ctx, *failure)
		}
		r.log.Warn("going back failed; trying again", "try", r.t.Try, "reason", failure.Reason, "detail", failure.StderrTail)
		r.t.Stage = StageBegin
		if err := r.Clock.Sleep(ctx, firstPause<<r.t.Try); err != nil {
			return err
		}
	}
}

// isBack waits for a switch that was going on to end, and completes the rollback where the host is on
// the closure already: it never left, or had come back when the agent was ended.
func (r *run) isBack(ctx context.Context) (bool, error) {
	if err := r.stop(ctx, r.t.Stop); err != nil {
		return true, err
	}
	limit, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	at, err := r.look(limit)
	if ctx.Err() != nil {
		return true, context.Cause(ctx)
	}
	if err != nil || !at.is(r.t.Closure) {
		return false, nil
	}
	return true, r.wentBack(ctx)
}

// goBack is one try. A failure of it is not yet the rollback's.
func (r *run) goBack(ctx context.Context) (*Failure, error) {
	limit, cancel := r.within(ctx, r.Clock.Now().Round(0), r.t.Timeout)
	defer cancel()
	if r.t.Stage == StageBegin {
		if err := r.mark(ctx, StageProfile); err != nil {
			return nil, err
		}
	}
	if r.t.Stage == StageProfile {
		err := r.retry(limit, "setting the profile", func(ctx context.Context) error {
			return r.Backend.SetProfile(ctx, r.t.Closure)
		})
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			return r.lostTry(ctx, Failure{Phase: api.PhaseSetProfile, Changed: true, Reason: api.CodeSwitchFailed, StderrTail: tail(err.Error())})
		}
		at, err := r.look(limit)
		if err == nil && r.t.Unstage && at.is(r.t.Closure) {
			return nil, nil
		}
		r.t.Running = at.running // wherever the try before left it
	}
	e, err := r.runSwitch(ctx, limit)
	if err != nil {
		return nil, err
	}
	v := r.judgeRollback(ctx, e)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return v, nil
}

// lostTry counts a try that did not come to a switch.
func (r *run) lostTry(ctx context.Context, f Failure) (*Failure, error) {
	r.t.Try++
	return &f, r.mark(ctx, StageProfile)
}

// judgeRollback is judge, but units that failed are no reason not to be back.
func (r *run) judgeRollback(ctx context.Context, e ended) *Failure {
	if _, ok := r.Backend.(Units); ok && e.kind == exited && e.status.ExitCode == exitUnitsFailed {
		limit, cancel := context.WithTimeout(ctx, readTimeout)
		defer cancel()
		if at, err := r.look(limit); err == nil && at.is(r.t.Closure) {
			r.t.ExitCode = e.status.ExitCode
			return nil
		}
	}
	v := r.judge(ctx, e)
	if v.deferred {
		return &Failure{Phase: api.PhaseSwitch, Changed: true, ExitCode: exitRebootNeeded, Reason: api.CodeSwitchFailed,
			StderrTail: "the previous closure cannot be switched to live"}
	}
	return v.failure
}

// wentBack completes the rollback. After a confirm-timeout it first finds out whether the previous
// system can reach a control plane (state.md, Confirmation).
func (r *run) wentBack(ctx context.Context) error {
	o := r.outcome(ctx)
	if !r.t.Confirm {
		return r.l.Completed(ctx, o)
	}
	if r.t.Stage != StageConfirm {
		r.t.ConfirmFrom = r.Clock.Now().Round(0)
		if err := r.mark(ctx, StageConfirm); err != nil {
			return err
		}
	}
	reached, err := r.confirm(ctx)
	if err != nil {
		return err
	}
	if !reached {
		o.Reason = api.CodeConfirmTimeout
	}
	return r.l.Completed(ctx, o)
}

// reboot reboots a deferred host, and judges what it came up with. A machine that is still in the same
// boot after a restart of the agent is rebooted again, once.
func (r *run) reboot(ctx context.Context) error {
	limit, cancel := r.within(ctx, r.Clock.Now().Round(0), r.t.Timeout)
	defer cancel()
	if r.t.Stage == StageReboot && r.t.BootID == r.BootID {
		return r.goDown(ctx, limit)
	}
	if r.t.Stage != StageConfirm {
		at, err := r.look(limit)
		if err != nil {
			return r.fail(ctx, limit, api.PhaseSwitch, true, api.CodeVerifyMismatch, err)
		}
		if !at.is(r.t.Closure) {
			return r.failed(ctx, r.mismatch(at, api.PhaseSwitch))
		}
		r.t.ConfirmFrom = r.Clock.Now().Round(0)
		if err := r.mark(ctx, StageConfirm); err != nil {
			return err
		}
	}
	return r.complete(ctx)
}

// maxReboots is how often the agent reboots for one RebootStarted.
const maxReboots = 2

// goDown reboots, and waits to be ended by it.
func (r *run) goDown(ctx, limit context.Context) error {
	give := func(detail string) error {
		return r.failed(ctx, Failure{Phase: api.PhaseSetProfile, Changed: true, Reason: api.CodeTimeout, StderrTail: tail(detail)})
	}
	rebooter, ok := r.Backend.(Rebooter)
	if !ok {
		return give("this kind of machine is not rebooted by the agent")
	}
	if r.t.Try >= maxReboots {
		return give("the machine did not reboot")
	}
	r.t.Try++
	if err := r.mark(ctx, StageReboot); err != nil {
		return err
	}
	err := r.retry(limit, "rebooting", rebooter.Reboot)
	if err == nil {
		<-limit.Done()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return give(err.Error())
	}
	return give("the machine did not reboot within activationTimeout")
}
