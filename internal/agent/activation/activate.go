package activation

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"nixfleet.dev/nixfleet/api"
)

// activate is steps 1 to 7 of design/agent.md, "Activation".
func (r *run) activate(ctx context.Context) error {
	limit, cancel := r.within(ctx, r.t.Began, r.t.Timeout)
	defer cancel()
	if r.t.Stage == StageBegin {
		if done, err := r.prepare(ctx, limit); done || err != nil {
			return err
		}
	}
	if r.t.Stage == StageProfile {
		if done, err := r.setProfile(ctx, limit); done || err != nil {
			return err
		}
	}
	if r.t.Stage != StageConfirm {
		if done, err := r.switchOver(ctx, limit); done || err != nil {
			return err
		}
	}
	return r.complete(ctx)
}

// prepare is everything before the profile is set. It touches nothing, so that it can be dropped, and
// is done anew after a restart.
func (r *run) prepare(ctx, limit context.Context) (done bool, err error) {
	at, err := r.look(limit)
	if err != nil {
		return true, r.fail(ctx, limit, api.PhasePreflight, false, api.CodeVerifyMismatch, err)
	}
	if at.is(r.t.Closure) {
		return true, r.alreadyThere(ctx)
	}
	if !r.t.Started {
		if err := r.l.Started(ctx, api.MethodSwitch); err != nil {
			return true, err
		}
		r.t.Started = true
	}
	if err := r.preflight(limit); err != nil {
		return true, r.fail(ctx, limit, api.PhasePreflight, false, api.CodeRealiseFailed, err)
	}
	if err := r.realise(limit); err != nil {
		return true, r.fail(ctx, limit, api.PhaseRealise, false, api.CodeRealiseFailed, err)
	}
	r.l.Progress(ctx, api.PhaseSetProfile, 0, 0)
	if err := r.waitForControlPlane(limit); err != nil {
		if errors.Is(err, ErrStopped) {
			return true, err
		}
		return true, r.fail(ctx, limit, api.PhaseSetProfile, false, api.CodeTimeout, err)
	}
	if at, err = r.look(limit); err != nil { // someone may have switched meanwhile
		return true, r.fail(ctx, limit, api.PhasePreflight, false, api.CodeVerifyMismatch, err)
	}
	r.t.Running = at.running
	if u, ok := r.Backend.(Units); ok {
		if r.t.FailedUnits, err = u.FailedUnits(limit); err != nil {
			return true, r.fail(ctx, limit, api.PhasePreflight, false, api.CodeSwitchFailed, err)
		}
	}
	return false, r.mark(ctx, StageProfile)
}

// alreadyThere ends the activation of a host that is on its target already: it soaks like any other.
func (r *run) alreadyThere(ctx context.Context) error {
	if err := r.l.Started(ctx, api.MethodNone); err != nil {
		return err
	}
	return r.l.Completed(ctx, Outcome{Observed: r.t.Closure})
}

func (r *run) preflight(ctx context.Context) error {
	p, ok := r.Backend.(Preflighter)
	if !ok {
		return nil
	}
	return r.retry(ctx, "preflight", func(ctx context.Context) error { return p.Preflight(ctx, r.t.Closure) })
}

func (r *run) realise(ctx context.Context) error {
	progress := func(done, total int64) { r.l.Progress(ctx, api.PhaseRealise, done, total) }
	return r.retry(ctx, "realising the closure", func(ctx context.Context) error {
		if err := r.Backend.Realise(ctx, r.t.Closure, progress); err != nil {
			return err
		}
		keep := slices.DeleteFunc([]string{r.t.Closure, r.t.From}, func(c string) bool { return c == "" })
		return r.Backend.Protect(ctx, keep)
	})
}

// waitForControlPlane returns once the DispatchAck is acknowledged and then one heartbeat is answered
// (state.md, Confirmation): the rollout was not withdrawn, and there is a connection to confirm over
// later. A withdrawal that the heartbeat brings has the ledger refuse the next mark.
func (r *run) waitForControlPlane(ctx context.Context) error {
	if err := r.l.AwaitAck(ctx); err != nil {
		return fmt.Errorf("waiting for DispatchAck to be acknowledged: %w", err)
	}
	return r.retry(ctx, "a heartbeat before anything is changed", r.Heartbeat)
}

// setProfile sets the profile, and defers the rest to a reboot where it must not be switched live.
func (r *run) setProfile(ctx, limit context.Context) (done bool, err error) {
	err = r.retry(limit, "setting the profile", func(ctx context.Context) error {
		return r.Backend.SetProfile(ctx, r.t.Closure)
	})
	if err != nil {
		return true, r.fail(ctx, limit, api.PhaseSetProfile, true, api.CodeTimeout, err)
	}
	d, ok := r.Backend.(Deferrer)
	if !ok {
		return false, nil
	}
	var components []string
	err = r.retry(limit, "finding out what must wait for a reboot", func(ctx context.Context) (err error) {
		components, err = d.DeferFor(ctx, r.t.Closure, r.t.RebootFor)
		return err
	})
	switch {
	case err != nil:
		return true, r.fail(ctx, limit, api.PhaseSetProfile, true, api.CodeTimeout, err)
	case len(components) > 0:
		return true, r.l.Deferred(ctx, components)
	}
	return false, nil
}

// switchOver switches, or goes on with a switch that was begun, and judges how it ended.
func (r *run) switchOver(ctx, limit context.Context) (done bool, err error) {
	ended, err := r.runSwitch(ctx, limit)
	if err != nil {
		return true, err
	}
	v := r.judge(ctx, ended)
	switch {
	case ctx.Err() != nil:
		return true, context.Cause(ctx)
	case v.deferred:
		return true, r.l.Deferred(ctx, nil)
	case v.failure != nil:
		return true, r.failed(ctx, *v.failure)
	}
	r.t.ExitCode, r.t.ConfirmFrom = v.exitCode, r.Clock.Now().Round(0)
	return false, r.mark(ctx, StageConfirm)
}

// complete confirms the connection from the new system, and that it is still the one that runs.
func (r *run) complete(ctx context.Context) error {
	r.l.Progress(ctx, api.PhaseConfirm, 0, 0)
	if reached, err := r.confirm(ctx); err != nil {
		return err
	} else if !reached {
		return r.failed(ctx, Failure{
			Phase: api.PhaseConfirm, Changed: true, ExitCode: r.t.ExitCode, Reason: api.CodeConfirmTimeout,
			StderrTail: "no control plane could be reached from the new system",
		})
	}
	limit, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	at, err := r.look(limit)
	if err != nil {
		return r.fail(ctx, limit, api.PhaseConfirm, true, api.CodeVerifyMismatch, err)
	}
	if !at.is(r.t.Closure) {
		return r.failed(ctx, r.mismatch(at, api.PhaseConfirm))
	}
	return r.l.Completed(ctx, r.outcome(ctx))
}

func (r *run) outcome(ctx context.Context) Outcome {
	o := Outcome{Observed: r.t.Closure, ExitCode: r.t.ExitCode}
	if u, ok := r.Backend.(Units); ok && o.ExitCode != 0 {
		o.FailedUnits, _ = u.FailedUnits(ctx) // for people only
	}
	if p, ok := r.Backend.(Pending); ok {
		o.RebootPending, _ = p.RebootPending(ctx)
	}
	return o
}

// mismatch is the failure of a host that is not where it was taken to.
func (r *run) mismatch(at machine, phase string) Failure {
	return Failure{
		Phase: phase, Changed: true, ExitCode: r.t.ExitCode, Reason: api.CodeVerifyMismatch,
		StderrTail: fmt.Sprintf("the host runs %q and boots %q, not %q", at.running, at.boot, r.t.Closure),
	}
}
