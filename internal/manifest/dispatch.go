package manifest

import (
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/schedule"
	"nixfleet.dev/nixfleet/internal/trust"
)

// EarliestDispatch returns when hosts of wave may be dispatched at the earliest: releasedAt plus the
// signed soaks of all earlier waves.
func EarliestDispatch(m api.Manifest, wave int) time.Time {
	at := m.ReleasedAt
	for i := range min(wave, len(m.Policy.Waves)) {
		at = at.Add(m.Policy.Waves[i].Soak.Std())
	}
	return at
}

// CheckDispatch decides, by design/artifacts.md ("A dispatch is acted on when"), whether an agent may
// act at now on d, whose manifest it has just accepted. The first rule that is broken is the error:
//
//   - hostname and rollout are the accepted ones (identity-mismatch),
//   - the action is known (unsupported-action),
//   - targetClosure and wave are the line's (target-mismatch),
//   - the signed policy permits the action (not-permitted); that a revert is within revertWindow, and
//     once, is for the agent to check, which knows when it activated,
//   - the earlier waves' soaks have passed (too-early), and
//   - a maintenance window is open and no freeze is on (outside-window).
//
// The last two are for what takes a host forward: activate and reboot. A preflight changes nothing on
// the host (design/wire.md), and going back, by revert or unstage, waits for no window (design/state.md,
// Planner; docs/adr/0002-going-back-needs-no-window.md).
func CheckDispatch(a Accepted, d api.Dispatch, now time.Time) error {
	m, what := a.Manifest.Value(), "dispatch"
	switch {
	case d.Hostname != a.Line.Hostname:
		return trust.Refuse(api.CodeIdentityMismatch, what, "it is for host %.80q", d.Hostname)
	case d.RolloutID != m.RolloutID:
		return trust.Refuse(api.CodeIdentityMismatch, what, "it is of rollout %.80q, not of %s", d.RolloutID, m.RolloutID)
	case !knownAction(d.Action):
		return trust.Refuse(api.CodeUnsupportedAction, what, "action %.40q is not known", string(d.Action))
	case d.TargetClosure != a.Line.Closure:
		return trust.Refuse(api.CodeTargetMismatch, what, "its closure is %.80q; the signed line says %s", d.TargetClosure, a.Line.Closure)
	case d.Wave != a.Line.Wave:
		return trust.Refuse(api.CodeTargetMismatch, what, "its wave is %d; the signed line says %d", d.Wave, a.Line.Wave)
	}
	if err := checkPermitted(m.Policy, d.Action); err != nil {
		return err
	}
	if d.Action != api.ActionActivate && d.Action != api.ActionReboot {
		return nil
	}
	return checkTime(m, a.Line.Wave, latest(now, a.NotEarlierThan))
}

func knownAction(a api.Action) bool {
	switch a {
	case api.ActionActivate, api.ActionRevert, api.ActionReboot, api.ActionUnstage, api.ActionPreflight:
		return true
	}
	return false
}

func checkPermitted(p api.Policy, action api.Action) error {
	switch {
	case action == api.ActionRevert && p.OnHealthFailure != api.RollbackAll:
		return trust.Refuse(api.CodeNotPermitted, "dispatch", "a revert needs policy %s; the signed one is %s", api.RollbackAll, p.OnHealthFailure)
	case action == api.ActionReboot && p.Reboot.Mode != RebootWindow:
		return trust.Refuse(api.CodeNotPermitted, "dispatch", "a reboot needs reboot.mode %q; the signed one is %q", RebootWindow, p.Reboot.Mode)
	case action == api.ActionPreflight && p.Preflight == PreflightOff:
		return trust.Refuse(api.CodeNotPermitted, "dispatch", "a preflight needs preflight to be on; the signed policy has it %s", PreflightOff)
	}
	return nil
}

func checkTime(m api.Manifest, wave int, now time.Time) error {
	const what = "dispatch"
	if at := EarliestDispatch(m, wave); now.Before(at) {
		return trust.Refuse(api.CodeTooEarly, what, "wave %d may begin at %s, and now it is %s", wave, stamp(at), stamp(now))
	}
	if open, reason := schedule.Open(m.MaintenanceWindows, m.Freezes, m.Policy.IgnoreWindows, now); !open {
		return trust.Refuse(api.CodeOutsideWindow, what, "%s", reason)
	}
	return nil
}
