package reducer

import (
	"fmt"
	"slices"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
	"nixfleet.dev/nixfleet/internal/hoststate"
	"nixfleet.dev/nixfleet/internal/schedule"
)

// maxStream is how many events a rollout may have for it to be begun once more.
const maxStream = 2 * manyEvents

func rejected(code api.Code, format string, args ...any) Answer {
	return Answer{Kind: Rejected, Code: code, Detail: fmt.Sprintf(format, args...)}
}

func (t *tx) offer(o Offer, backend activation.Backend) (Answer, error) {
	switch o.Action {
	case api.ActionActivate:
		return t.offerActivate(o)
	case api.ActionRevert:
		return t.offerRevert(o)
	case api.ActionUnstage:
		return t.offerUnstage(o)
	case api.ActionReboot:
		return t.offerReboot(o, backend)
	}
	return rejected(api.CodeUnsupportedAction, "this agent does not know the action"), nil
}

func (t *tx) offerActivate(o Offer) (Answer, error) {
	st, known := t.status(o.RolloutID)
	if a := t.answered(o, st, known); a.Kind != 0 {
		return a, nil
	}
	if a := t.refusal(o, st); a.Kind != 0 {
		return a, nil
	}
	if id, ok := t.touching(); ok && id != o.RolloutID {
		return Answer{Kind: Busy}, nil
	}
	if _, ok := t.state.global.Quarantine[o.Line.Closure]; ok {
		delete(t.globals().Quarantine, o.Line.Closure)
		t.say("quarantine lifted by an operator", "rollout", o.RolloutID, "closure", o.Line.Closure)
	}
	if err := t.takeOver(o.RolloutID); err != nil {
		return Answer{}, err
	}
	if err := t.acknowledge(o); err != nil {
		return Answer{}, err
	}
	return Answer{Kind: Accepted}, t.prune()
}

// answered says whether the dispatch has its answer already, or cannot have one.
func (t *tx) answered(o Offer, st status, known bool) Answer {
	if !known {
		return Answer{}
	}
	switch state := st.Record.State; {
	case state == api.Pending && o.Attempt >= st.Record.Attempt: // cancelled before
		return Answer{}
	case o.Attempt <= st.Record.Attempt:
		return Answer{Kind: Duplicate}
	case state == api.Failed || state == api.Reverted:
		return Answer{}
	default:
		return rejected(api.CodeNotPermitted, "attempt %d, but attempt %d is %s", o.Attempt, st.Record.Attempt, state)
	}
}

// refusal says why this host does not try the closure now.
func (t *tx) refusal(o Offer, st status) Answer {
	if hold := t.state.global.Hold; hold != nil && t.now.Before(hold.Until) {
		return rejected(api.CodeHeldLocally, "until %s: %s", hold.Until.Format(time.RFC3339), hold.Reason)
	}
	if o.Line.Wave < 0 || o.Line.Wave >= len(o.Policy.Waves) || incomplete(o.Policy) {
		return rejected(api.CodeUnsupportedSchema, "the signed policy is not complete")
	}
	if st.LastSeq >= maxStream || t.state.size(o.RolloutID) > maxKept/2 {
		return rejected(api.CodeNotPermitted, "it was begun too often: %d events", st.LastSeq)
	}
	if q, ok := t.state.global.Quarantine[o.Line.Closure]; ok && !lifts(o, st) {
		return rejected(api.CodeQuarantined, "%s in rollout %s", q.Code, q.RolloutID)
	}
	return Answer{}
}

// lifts says whether the dispatch is an operator's word that the closure is to be tried again on this
// host, whatever became of it. Neither a higher attempt alone is that, nor the word on a first attempt.
func lifts(o Offer, st status) bool {
	return o.AllowClosure && o.Attempt > max(st.Record.Attempt, 1)
}

func incomplete(p api.Policy) bool {
	return p.ActivationTimeout == nil || p.ConfirmTimeout == nil || p.FailureThreshold == nil || p.RevertWindow == nil
}

// touching returns the rollout whose activation or rollback has to finish first.
func (t *tx) touching() (string, bool) {
	for _, id := range t.ids() {
		st, _ := t.status(id)
		if st.Task != nil && (st.Record.State == api.Reverting || st.Task.Stage != activation.StageBegin) {
			return id, true
		}
	}
	return "", false
}

// takeOver ends the older rollouts that have not ended: what has not touched the machine is dropped.
func (t *tx) takeOver(newer string) error {
	for _, id := range t.ids() {
		st, _ := t.status(id)
		if id == newer || st.Record.Ended() {
			continue
		}
		if err := t.cancel(id); err != nil {
			return err
		}
		edit := t.edit(id)
		record, effects, err := hoststate.Step(edit.Record, hoststate.Supersede{}, t.now)
		if err != nil {
			return fmt.Errorf("rollout %s: %w", id, err)
		}
		t.say("rollout superseded", "rollout", id, "by", newer, "was", edit.Record.State)
		edit.Record = record
		if err := t.enact(id, effects); err != nil {
			return err
		}
	}
	return nil
}

// acknowledge begins the attempt.
func (t *tx) acknowledge(o Offer) error {
	st, g := t.edit(o.RolloutID), t.globals()
	record := hoststate.New(o.Line, o.RolloutID, o.Policy, t.now)
	if st.LastSeq > 0 {
		record.State, record.Attempt, record.LastAt = st.Record.State, st.Record.Attempt, st.Record.LastAt
	}
	st.Record = record
	t.editedTerms[o.RolloutID] = terms{
		Channel: o.Channel, Line: o.Line, Policy: o.Policy, ReleasedAt: o.ReleasedAt, ManifestSHA256: o.ManifestSHA256,
	}
	g.Orders++
	st.Order, st.AckSeq, st.Reverted, st.StagedIn = g.Orders, st.LastSeq+1, false, ""
	if !g.HasOwn && g.Converged == "" && o.PreviousClosure != o.Line.Closure {
		g.Converged = o.PreviousClosure
	}
	return t.emit(o.RolloutID, api.Event{
		Kind: api.DispatchAck, Attempt: o.Attempt, Wave: o.Line.Wave, PreviousClosure: o.PreviousClosure,
		TargetClosure: o.Line.Closure, SoakDueAt: t.clampSoak(o), EnqueuedAt: o.EnqueuedAt.UTC(), ManifestSHA256: o.ManifestSHA256,
	})
}

// clampSoak bounds the control plane's advice by what was signed (wire.md, Transport).
func (t *tx) clampSoak(o Offer) time.Time {
	latest := t.now.Add(o.Policy.ActivationTimeout.Std()).Add(o.Policy.Waves[o.Line.Wave].Soak.Std())
	if o.SoakDueAt.After(latest) {
		return latest
	}
	return o.SoakDueAt.UTC()
}

// cancel stops an activation that has not set the profile. Nothing was changed, so it is no failure.
func (t *tx) cancel(id string) error {
	st, ok := t.status(id)
	if !ok || st.Record.State != api.Activating || st.Task == nil || st.Task.Stage != activation.StageBegin {
		return nil
	}
	return t.emit(id, api.Event{Kind: api.ActivationFailed, Phase: api.PhasePreflight, Reason: api.CodeCancelled})
}

// offerRevert goes back only as far as the signed policy lets a control plane ask for it: rollback-all,
// within revertWindow of this host's own activation, once, in its newest rollout.
func (t *tx) offerRevert(o Offer) (Answer, error) {
	st, ok := t.status(o.RolloutID)
	if !ok {
		return rejected(api.CodeNotPermitted, "this host takes no part in the rollout"), nil
	}
	record, policy := st.Record, t.terms(o.RolloutID).Policy
	switch {
	case st.Reverted:
		return Answer{Kind: Duplicate}, nil
	case policy.OnHealthFailure != api.RollbackAll:
		return rejected(api.CodeNotPermitted, "the signed policy is %s", policy.OnHealthFailure), nil
	case t.state.newest() != o.RolloutID:
		return rejected(api.CodeNotPermitted, "rollout %s is newer", t.state.newest()), nil
	case record.State != api.Soaking && record.State != api.HostConverged && record.State != api.Deferred:
		return rejected(api.CodeNotPermitted, "the host is %s", record.State), nil
	case record.State != api.Deferred && t.now.After(record.CompletedAt.Add(policy.RevertWindow.Std())):
		return rejected(api.CodeNotPermitted, "revertWindow ended at %s", record.CompletedAt.Add(policy.RevertWindow.Std()).Format(time.RFC3339)), nil
	}
	return t.leave(o, api.CauseRevert)
}

// offerUnstage takes a deferred host's boot default back.
func (t *tx) offerUnstage(o Offer) (Answer, error) {
	st, ok := t.status(o.RolloutID)
	switch {
	case ok && st.Record.RevertCause == api.CauseUnstage:
		return Answer{Kind: Duplicate}, nil
	case !ok || st.Record.State != api.Deferred:
		return rejected(api.CodeNotPermitted, "nothing is staged here for the rollout"), nil
	}
	return t.leave(o, api.CauseUnstage)
}

func (t *tx) leave(o Offer, cause string) (Answer, error) {
	if st, _ := t.status(o.RolloutID); st.Record.PreviousClosure == "" {
		return rejected(api.CodeNotPermitted, "the host has no previous closure"), nil
	}
	if id, ok := t.touching(); ok {
		return rejected(api.CodeNotPermitted, "rollout %s is at work", id), nil
	}
	st := t.edit(o.RolloutID)
	st.Reverted = cause == api.CauseRevert
	err := t.emit(o.RolloutID, api.Event{Kind: api.RollbackStarted, ToClosure: st.Record.PreviousClosure, Cause: cause})
	return Answer{Kind: Accepted}, err
}

// offerReboot reboots a deferred host inside a window that the signed manifest opens.
func (t *tx) offerReboot(o Offer, backend activation.Backend) (Answer, error) {
	st, ok := t.status(o.RolloutID)
	rebooter, can := backend.(activation.Rebooter)
	policy := o.Policy.Reboot
	switch open, reason := schedule.Open(o.MaintenanceWindows, o.Freezes, o.Policy.IgnoreWindows, t.now); {
	case ok && st.Task != nil && st.Task.Kind == activation.Reboot:
		return Answer{Kind: Duplicate}, nil
	case !ok || st.Record.State != api.Deferred:
		return rejected(api.CodeNotPermitted, "nothing waits here for a reboot"), nil
	case !can || rebooter == nil:
		return rejected(api.CodeNotPermitted, "this kind of machine is not rebooted by the agent"), nil
	case policy == nil || policy.Mode != "window":
		return rejected(api.CodeNotPermitted, "the signed policy does not let the agent reboot"), nil
	case !open:
		return rejected(api.CodeOutsideWindow, "%s", reason), nil
	}
	if err := t.emit(o.RolloutID, api.Event{Kind: api.RebootStarted, BootID: t.bootID}); err != nil {
		return Answer{}, err
	}
	t.assign(o.RolloutID, t.rebootTask(o.RolloutID, t.bootID))
	return Answer{Kind: Accepted}, nil
}

// rebootTask reboots out of the boot, or judges what the machine came up with after it.
func (t *tx) rebootTask(id, bootID string) activation.Task {
	record := t.edit(id).Record
	return activation.Task{
		Kind: activation.Reboot, Stage: activation.StageReboot, BootID: bootID,
		Closure: record.TargetClosure, From: record.PreviousClosure,
	}
}

// Caps on what is remembered: maxEnded rollouts that ended and whose events are forgotten, maxRollouts in
// all, and maxKept bytes of their events, so that the whole always fits one record of the journal. A
// control plane that acknowledges nothing, or never says what to forget, fills no disk.
const (
	maxEnded    = 32
	maxRollouts = 128
	maxKept     = 8 << 20
)

// prune drops the oldest rollouts over the caps, and of those that it may not drop yet the events that
// the control plane has.
func (t *tx) prune() error {
	ids := t.ids()
	slices.Reverse(ids)
	total, forgotten, kept := len(ids), 0, 0
	for _, id := range ids {
		if ro := t.state.rollouts[id]; finished(ro.status) && len(ro.events) == 0 {
			forgotten++
		}
		kept += t.state.size(id)
	}
	for _, id := range ids {
		ro := t.state.rollouts[id]
		if _, edited := t.editedStatus[id]; edited || !finished(ro.status) {
			continue
		}
		acked := ro.status.AckedSeq == ro.status.LastSeq
		switch {
		case len(ro.events) == 0 && (forgotten > maxEnded || total > maxRollouts):
			forgotten--
			total--
			t.dropped = append(t.dropped, id)
		case len(ro.events) > 0 && (total > maxRollouts || kept > maxKept && !acked):
			kept -= t.state.size(id)
			total--
			t.dropped = append(t.dropped, id)
			t.say("a rollout and its events are dropped: there are too many", "rollout", id, "acked", ro.status.AckedSeq, "lastSeq", ro.status.LastSeq)
		case len(ro.events) > 0 && kept > maxKept:
			kept -= t.state.size(id)
			forgotten++
			t.forgotten = append(t.forgotten, id)
		}
	}
	return nil
}

// finished says whether nothing more will happen here for the rollout by itself.
func finished(st status) bool {
	return st.Task == nil && st.Soak == nil && !st.Record.InFlight()
}
