package hoststate

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/api"
)

const (
	target   = "0c2s7dq1p8m6x9y4z5v3w0a1b2c3d4f5-nixos-system-web-01-25.11"
	previous = "1c2s7dq1p8m6x9y4z5v3w0a1b2c3d4f5-nixos-system-web-01-25.10"
	other    = "2c2s7dq1p8m6x9y4z5v3w0a1b2c3d4f5-nixos-system-web-01-25.09"
)

var start = time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)

func at(minutes int) time.Time { return start.Add(time.Duration(minutes) * time.Minute) }

// record is a host in a state that it can be in, ten minutes in.
func record(state api.HostState, changes ...func(*Record)) Record {
	r := Record{
		Hostname: "web-01", RolloutID: "stable@0a1b2c3d", State: state, Attempt: 1, Wave: 0,
		TargetClosure: target, PreviousClosure: previous, Soak: api.Duration(30 * time.Minute),
		OnHealthFailure: api.RollbackAndHalt, LastAt: at(10), ChangedAt: at(10),
	}
	switch state {
	case api.Pending:
		r.PreviousClosure = ""
	case api.Soaking, api.HostConverged:
		r.CompletedAt, r.SoakEndsAt, r.ObservedClosure = at(10), at(40), target
		r.ProbesDeclared = true
		r.Probes = []api.ProbeStatus{{Name: "http", Kind: "http", Mode: api.ModeEnforce, Status: api.ProbePass}}
	case api.Failed, api.Reverting, api.Reverted:
		r.Failure = &api.Failure{Code: api.CodeSwitchFailed, At: at(10)}
	case api.Skipped:
		r.SkippedBy = SkippedByOffline
	}
	for _, change := range changes {
		change(&r)
	}
	return r
}

func halting(r *Record)      { r.OnHealthFailure = api.Halt }
func revertsAll(r *Record)   { r.OnHealthFailure = api.RollbackAll }
func noPrevious(r *Record)   { r.PreviousClosure = "" }
func byOperator(r *Record)   { r.SkippedBy = SkippedByOperator }
func undeclared(r *Record)   { r.ProbesDeclared, r.Probes = false, nil }
func notYetRun(r *Record)    { r.Probes[0].Status = "" }
func failing(r *Record)      { r.Probes[0].Status = api.ProbeFail }
func onlyObserved(r *Record) { r.Probes[0].Mode, r.Probes[0].Status = api.ModeObserve, api.ProbeFail }

// event is one of the host's at minute 50, with the fields that make it fit the record.
func event(kind api.EventKind, changes ...func(*api.Event)) Reported {
	e := api.Event{Seq: 1, Kind: kind, At: at(50)}
	switch kind {
	case api.DispatchAck:
		e.Attempt, e.TargetClosure, e.PreviousClosure, e.SoakDueAt = 1, target, previous, at(45)
	case api.ActivationCompleted, api.Converged:
		e.ObservedClosure = target
	case api.ActivationFailed:
		e.Phase, e.Reason, e.Changed = api.PhaseSwitch, api.CodeSwitchFailed, true
	case api.ProbesDeclared:
		e.Probes = []api.DeclaredProbe{{Name: "http", Kind: "http", Mode: api.ModeEnforce}}
	case api.ProbeResult:
		e.Probe, e.ProbeKind, e.Mode, e.Status = "http", "http", api.ModeEnforce, api.ProbePass
	case api.HealthFailed:
		e.FailingProbes, e.SustainedFor = []string{"http"}, api.Duration(time.Minute)
	case api.RollbackStarted:
		e.ToClosure, e.Cause = previous, api.CauseActivation
	case api.RollbackCompleted:
		e.ObservedClosure = previous
	case api.RollbackFailed:
		e.Phase, e.Reason = api.PhaseSwitch, api.CodeSwitchFailed
	}
	for _, change := range changes {
		change(&e)
	}
	return Reported{e}
}

func attempt(n int) func(*api.Event)     { return func(e *api.Event) { e.Attempt = n } }
func reason(c api.Code) func(*api.Event) { return func(e *api.Event) { e.Reason = c } }
func phase(p string) func(*api.Event)    { return func(e *api.Event) { e.Phase = p } }
func cause(c string) func(*api.Event)    { return func(e *api.Event) { e.Cause = c } }
func observed(c string) func(*api.Event) { return func(e *api.Event) { e.ObservedClosure = c } }
func minute(m int) func(*api.Event)      { return func(e *api.Event) { e.At = at(m) } }
func nothingChanged(e *api.Event)        { e.Changed = false }
func wave(n int) func(*api.Event)        { return func(e *api.Event) { e.Wave = n } }
func targetIs(c string) func(*api.Event) { return func(e *api.Event) { e.TargetClosure = c } }
func backTo(c string) func(*api.Event)   { return func(e *api.Event) { e.ToClosure = c } }
func declares(p ...api.DeclaredProbe) Reported {
	return event(api.ProbesDeclared, func(e *api.Event) { e.Probes = p })
}

func quarantine(c api.Code) Effect { return Quarantine{Closure: target, Code: c} }

// refused is the state of a case whose step must be refused.
const refused api.HostState = "refused"

// rows is design/state.md's table, line by line, and what is not in it.
var rows = []struct {
	name    string
	record  Record
	in      Input
	to      api.HostState
	effects []Effect
}{
	{"Pending: DispatchAck", record(api.Pending), event(api.DispatchAck), api.Activating, []Effect{Activate{}}},
	{"Pending: DispatchAck of a later attempt", record(api.Pending), event(api.DispatchAck, attempt(4)), api.Activating, []Effect{Activate{}}},
	{"Skipped: DispatchAck", record(api.Skipped), event(api.DispatchAck), api.Activating, []Effect{Activate{}}},
	{"Pending: DispatchAck of another closure", record(api.Pending), event(api.DispatchAck, targetIs(other)), refused, nil},
	{"Pending: DispatchAck of another wave", record(api.Pending), event(api.DispatchAck, wave(1)), refused, nil},
	{"Pending: DispatchAck of no attempt", record(api.Pending), event(api.DispatchAck, attempt(0)), refused, nil},
	{"Failed: DispatchAck with a higher attempt", record(api.Failed), event(api.DispatchAck, attempt(2)), api.Activating, []Effect{Activate{}}},
	{"Reverted: DispatchAck with a higher attempt", record(api.Reverted), event(api.DispatchAck, attempt(2)), api.Activating, []Effect{Activate{}}},
	{"Failed: DispatchAck with the same attempt", record(api.Failed), event(api.DispatchAck), refused, nil},
	{"Reverted: DispatchAck with the same attempt", record(api.Reverted), event(api.DispatchAck), refused, nil},
	{"Activating: DispatchAck", record(api.Activating), event(api.DispatchAck, attempt(2)), refused, nil},
	{"Converged: DispatchAck", record(api.HostConverged), event(api.DispatchAck, attempt(2)), refused, nil},

	{"Activating: ActivationStarted", record(api.Activating), event(api.ActivationStarted), api.Activating, nil},
	{"Activating: ActivationProgress", record(api.Activating), event(api.ActivationProgress), api.Activating, nil},
	{"Pending: ActivationStarted", record(api.Pending), event(api.ActivationStarted), refused, nil},
	{"Soaking: ActivationProgress", record(api.Soaking), event(api.ActivationProgress), refused, nil},

	{"Activating: ActivationCompleted, observed = target", record(api.Activating), event(api.ActivationCompleted), api.Soaking, []Effect{StartProbes{}}},
	{"Activating: ActivationCompleted elsewhere", record(api.Activating), event(api.ActivationCompleted, observed(previous)), refused, nil},
	{"Activating: ActivationDeferred", record(api.Activating), event(api.ActivationDeferred), api.Deferred, nil},
	{"Deferred: RebootStarted", record(api.Deferred), event(api.RebootStarted), api.Activating, nil},
	{"Deferred: ActivationCompleted, observed = target", record(api.Deferred), event(api.ActivationCompleted), api.Soaking, []Effect{StartProbes{}}},
	{"Deferred: ActivationCompleted elsewhere", record(api.Deferred), event(api.ActivationCompleted, observed(other)), refused, nil},
	{"Soaking: ActivationCompleted", record(api.Soaking), event(api.ActivationCompleted), refused, nil},
	{"Soaking: ActivationDeferred", record(api.Soaking), event(api.ActivationDeferred), refused, nil},
	{"Activating: RebootStarted", record(api.Activating), event(api.RebootStarted), refused, nil},

	{"Activating: ActivationFailed, cancelled", record(api.Activating), event(api.ActivationFailed, reason(api.CodeCancelled), nothingChanged), api.Pending, nil},
	{"Activating: ActivationFailed, cancelled and changed", record(api.Activating), event(api.ActivationFailed, reason(api.CodeCancelled)), refused, nil},
	{"Activating: ActivationFailed, changed: false", record(api.Activating), event(api.ActivationFailed, reason(api.CodeRealiseFailed), phase(api.PhaseRealise), nothingChanged), api.Reverted, nil},
	{"Activating: ActivationFailed, changed: false, policy halt", record(api.Activating, halting), event(api.ActivationFailed, reason(api.CodeDiskFull), nothingChanged), api.Reverted, nil},
	{"Activating: ActivationFailed, changed: false, bad signature", record(api.Activating), event(api.ActivationFailed, reason(api.CodeClosureSignatureInvalid), nothingChanged), api.Reverted, []Effect{quarantine(api.CodeClosureSignatureInvalid)}},
	{"Activating: ActivationFailed, changed: false, no previous closure", record(api.Activating, noPrevious), event(api.ActivationFailed, reason(api.CodeRealiseFailed), nothingChanged), api.Reverted, nil},
	{"Deferred: ActivationFailed, changed: false", record(api.Deferred), event(api.ActivationFailed, reason(api.CodeRealiseFailed), nothingChanged), api.Reverted, nil},
	{"Activating: ActivationFailed, changed-locally", record(api.Activating), event(api.ActivationFailed, reason(api.CodeChangedLocally)), api.Failed, nil},
	{"Activating: ActivationFailed, changed-locally, changed: false", record(api.Activating), event(api.ActivationFailed, reason(api.CodeChangedLocally), nothingChanged), api.Failed, nil},
	{"Deferred: ActivationFailed, changed-locally", record(api.Deferred), event(api.ActivationFailed, reason(api.CodeChangedLocally)), api.Failed, nil},
	{"Soaking: ActivationFailed, changed-locally", record(api.Soaking), event(api.ActivationFailed, reason(api.CodeChangedLocally)), api.Failed, []Effect{StopProbes{}}},
	{"Soaking: ActivationFailed for another reason", record(api.Soaking), event(api.ActivationFailed), refused, nil},
	{"Activating: ActivationFailed, confirm-timeout", record(api.Activating), event(api.ActivationFailed, reason(api.CodeConfirmTimeout)), api.Reverting, []Effect{quarantine(api.CodeConfirmTimeout), RollBack{api.CauseConfirm}}},
	{"Activating: ActivationFailed, confirm-timeout, whatever the policy", record(api.Activating, halting), event(api.ActivationFailed, reason(api.CodeConfirmTimeout)), api.Reverting, []Effect{quarantine(api.CodeConfirmTimeout), RollBack{api.CauseConfirm}}},
	{"Deferred: ActivationFailed, confirm-timeout", record(api.Deferred, halting), event(api.ActivationFailed, reason(api.CodeConfirmTimeout)), api.Reverting, []Effect{quarantine(api.CodeConfirmTimeout), RollBack{api.CauseConfirm}}},
	{"Activating: ActivationFailed, confirm-timeout, no previous closure", record(api.Activating, noPrevious), event(api.ActivationFailed, reason(api.CodeConfirmTimeout)), api.Failed, []Effect{quarantine(api.CodeConfirmTimeout)}},
	{"Activating: ActivationFailed otherwise, policy rollback-and-halt", record(api.Activating), event(api.ActivationFailed), api.Reverting, []Effect{quarantine(api.CodeSwitchFailed), RollBack{api.CauseActivation}}},
	{"Activating: ActivationFailed otherwise, policy rollback-all", record(api.Activating, revertsAll), event(api.ActivationFailed), api.Reverting, []Effect{quarantine(api.CodeSwitchFailed), RollBack{api.CauseActivation}}},
	{"Deferred: ActivationFailed otherwise, policy goes back", record(api.Deferred), event(api.ActivationFailed, reason(api.CodeVerifyMismatch)), api.Reverting, []Effect{quarantine(api.CodeVerifyMismatch), RollBack{api.CauseActivation}}},
	{"Activating: ActivationFailed otherwise, policy goes back, no previous closure", record(api.Activating, noPrevious), event(api.ActivationFailed), api.Failed, []Effect{quarantine(api.CodeSwitchFailed)}},
	{"Activating: ActivationFailed otherwise, policy halt", record(api.Activating, halting), event(api.ActivationFailed), api.Failed, []Effect{quarantine(api.CodeSwitchFailed)}},
	{"Deferred: ActivationFailed otherwise, policy halt", record(api.Deferred, halting), event(api.ActivationFailed), api.Failed, []Effect{quarantine(api.CodeSwitchFailed)}},
	{"Activating: timeout after the switch began", record(api.Activating, halting), event(api.ActivationFailed, reason(api.CodeTimeout)), api.Failed, []Effect{quarantine(api.CodeTimeout)}},
	{"Activating: timeout before the switch began", record(api.Activating), event(api.ActivationFailed, reason(api.CodeTimeout), phase(api.PhaseSetProfile)), api.Reverting, []Effect{RollBack{api.CauseActivation}}},
	{"Activating: timeout while realising", record(api.Activating), event(api.ActivationFailed, reason(api.CodeTimeout), phase(api.PhaseRealise), nothingChanged), api.Reverted, nil},
	{"Reverting: ActivationFailed", record(api.Reverting), event(api.ActivationFailed), refused, nil},

	{"Soaking: ProbesDeclared", record(api.Soaking), event(api.ProbesDeclared), api.Soaking, nil},
	{"Soaking: ProbeResult", record(api.Soaking), event(api.ProbeResult), api.Soaking, nil},
	{"Soaking: ProbesDeclared twice the same", record(api.Soaking), declares(api.DeclaredProbe{Name: "a", Kind: "tcp", Mode: "enforce"}, api.DeclaredProbe{Name: "a", Kind: "exec", Mode: "enforce"}), refused, nil},
	{"Soaking: ProbesDeclared with an unknown mode", record(api.Soaking), declares(api.DeclaredProbe{Name: "a", Kind: "tcp", Mode: "Enforce"}), refused, nil},
	{"Soaking: ProbesDeclared, too many", record(api.Soaking), declares(make([]api.DeclaredProbe, 65)...), refused, nil},
	{"Soaking: ProbeResult that is neither", record(api.Soaking), event(api.ProbeResult, func(e *api.Event) { e.Status = "ok" }), refused, nil},
	{"Activating: ProbeResult", record(api.Activating), event(api.ProbeResult), refused, nil},
	{"Soaking: HealthFailed, policy goes back", record(api.Soaking), event(api.HealthFailed), api.Reverting, []Effect{StopProbes{}, quarantine(api.CodeHealthFailed), RollBack{api.CauseHealth}}},
	{"Soaking: HealthFailed, policy goes back, no previous closure", record(api.Soaking, noPrevious), event(api.HealthFailed), api.Failed, []Effect{StopProbes{}, quarantine(api.CodeHealthFailed)}},
	{"Soaking: HealthFailed, policy halt", record(api.Soaking, halting), event(api.HealthFailed), api.Failed, []Effect{StopProbes{}, quarantine(api.CodeHealthFailed)}},
	{"Converged: HealthFailed", record(api.HostConverged), event(api.HealthFailed), refused, nil},
	{"Soaking: Converged", record(api.Soaking), event(api.Converged), api.HostConverged, []Effect{StopProbes{}}},
	{"Soaking: Converged at the very end of the soak", record(api.Soaking), event(api.Converged, minute(40)), api.HostConverged, []Effect{StopProbes{}}},
	{"Soaking: Converged before the soak's end", record(api.Soaking), event(api.Converged, minute(39)), refused, nil},
	{"Soaking: Converged elsewhere", record(api.Soaking), event(api.Converged, observed(previous)), refused, nil},
	{"Soaking: Converged without a declared probe set", record(api.Soaking, undeclared), event(api.Converged), refused, nil},
	{"Soaking: Converged with an enforce probe that has not run", record(api.Soaking, notYetRun), event(api.Converged), refused, nil},
	{"Soaking: Converged with a failing enforce probe", record(api.Soaking, failing), event(api.Converged), refused, nil},
	{"Soaking: Converged with a failing observe probe", record(api.Soaking, onlyObserved), event(api.Converged), api.HostConverged, []Effect{StopProbes{}}},
	{"Activating: Converged", record(api.Activating), event(api.Converged), refused, nil},
	{"Converged: Converged", record(api.HostConverged), event(api.Converged), refused, nil},

	{"Soaking: RollbackStarted cause revert, policy rollback-all", record(api.Soaking, revertsAll), event(api.RollbackStarted, cause(api.CauseRevert)), api.Reverting, []Effect{StopProbes{}, RollBack{api.CauseRevert}}},
	{"Converged: RollbackStarted cause revert, policy rollback-all", record(api.HostConverged, revertsAll), event(api.RollbackStarted, cause(api.CauseRevert)), api.Reverting, []Effect{RollBack{api.CauseRevert}}},
	{"Converged: RollbackStarted cause revert, no previous closure", record(api.HostConverged, revertsAll, noPrevious), event(api.RollbackStarted, cause(api.CauseRevert), backTo("")), api.Failed, nil},
	{"Converged: RollbackStarted cause revert, policy rollback-and-halt", record(api.HostConverged), event(api.RollbackStarted, cause(api.CauseRevert)), refused, nil},
	{"Soaking: RollbackStarted cause unstage, policy rollback-all", record(api.Soaking, revertsAll), event(api.RollbackStarted, cause(api.CauseUnstage)), refused, nil},
	{"Soaking: RollbackStarted to another closure", record(api.Soaking, revertsAll), event(api.RollbackStarted, cause(api.CauseRevert), backTo(other)), refused, nil},
	{"Deferred: RollbackStarted cause revert", record(api.Deferred), event(api.RollbackStarted, cause(api.CauseRevert)), api.Reverting, []Effect{RollBack{api.CauseRevert}}},
	{"Deferred: RollbackStarted cause unstage", record(api.Deferred), event(api.RollbackStarted, cause(api.CauseUnstage)), api.Reverting, []Effect{RollBack{api.CauseUnstage}}},
	{"Deferred: RollbackStarted cause health", record(api.Deferred), event(api.RollbackStarted, cause(api.CauseHealth)), refused, nil},
	{"Reverting: RollbackStarted", record(api.Reverting), event(api.RollbackStarted), api.Reverting, nil},
	{"Failed: RollbackStarted", record(api.Failed), event(api.RollbackStarted, cause(api.CauseRevert)), api.Reverting, []Effect{RollBack{api.CauseRevert}}},
	{"Failed: RollbackStarted, no previous closure", record(api.Failed, noPrevious), event(api.RollbackStarted, backTo("")), api.Failed, nil},
	{"Failed: RollbackStarted for no known cause", record(api.Failed), event(api.RollbackStarted, cause("mood")), refused, nil},
	{"Reverted: RollbackStarted", record(api.Reverted), event(api.RollbackStarted), refused, nil},
	{"Reverting: RollbackCompleted, observed = previous", record(api.Reverting), event(api.RollbackCompleted), api.Reverted, nil},
	{"Reverting: RollbackCompleted elsewhere", record(api.Reverting), event(api.RollbackCompleted, observed(target)), refused, nil},
	{"Failed: RollbackCompleted", record(api.Failed), event(api.RollbackCompleted), refused, nil},
	{"Reverting: RollbackFailed", record(api.Reverting), event(api.RollbackFailed), api.Failed, nil},
	{"Activating: RollbackFailed", record(api.Activating), event(api.RollbackFailed), refused, nil},

	{"Converged: ProbesDeclared", record(api.HostConverged), event(api.ProbesDeclared), api.HostConverged, nil},
	{"Reverted: ProbesDeclared", record(api.Reverted), event(api.ProbesDeclared), api.Reverted, nil},
	{"Failed: ProbesDeclared", record(api.Failed), event(api.ProbesDeclared), api.Failed, nil},
	{"Converged: ProbeResult", record(api.HostConverged), event(api.ProbeResult), api.HostConverged, nil},
	{"Reverted: ProbeResult", record(api.Reverted), event(api.ProbeResult), api.Reverted, nil},
	{"Failed: ProbeResult", record(api.Failed), event(api.ProbeResult), api.Failed, nil},
	{"Converged: ActivationProgress", record(api.HostConverged), event(api.ActivationProgress), api.HostConverged, nil},
	{"Reverted: ActivationProgress", record(api.Reverted), event(api.ActivationProgress), api.Reverted, nil},
	{"Failed: ActivationProgress", record(api.Failed), event(api.ActivationProgress), api.Failed, nil},
	{"Pending: ProbeResult", record(api.Pending), event(api.ProbeResult), refused, nil},
	{"Superseded: DispatchAck", record(api.HostSuperseded), event(api.DispatchAck, targetIs(other), attempt(0)), api.HostSuperseded, nil},
	{"Superseded: ActivationFailed", record(api.HostSuperseded), event(api.ActivationFailed), api.HostSuperseded, nil},
	{"Superseded: an event nobody knows", record(api.HostSuperseded), event("Sang"), api.HostSuperseded, nil},
	{"Soaking: an event nobody knows", record(api.Soaking), event("Sang"), refused, nil},

	{"Pending: skipped as offline", record(api.Pending), Skip{SkippedByOffline}, api.Skipped, nil},
	{"Pending: skipped by an operator", record(api.Pending), Skip{SkippedByOperator}, api.Skipped, nil},
	{"Pending: skipped by an edge", record(api.Pending), Skip{SkippedByEdge}, api.Skipped, nil},
	{"Pending: skipped by nobody", record(api.Pending), Skip{}, refused, nil},
	{"Activating: skipped by an operator", record(api.Activating), Skip{SkippedByOperator}, refused, nil},
	{"Skipped as offline: heard", record(api.Skipped), Heard{}, api.Pending, nil},
	{"Skipped by an operator: heard", record(api.Skipped, byOperator), Heard{}, refused, nil},
	{"Pending: heard", record(api.Pending), Heard{}, refused, nil},
	{"Failed: retried", record(api.Failed), Retry{}, api.Pending, nil},
	{"Reverted: retried", record(api.Reverted), Retry{}, api.Pending, nil},
	{"Skipped by an operator: retried", record(api.Skipped, byOperator), Retry{}, api.Pending, nil},
	{"Soaking: retried", record(api.Soaking), Retry{}, refused, nil},
	{"Superseded: retried", record(api.HostSuperseded), Retry{}, refused, nil},
	{"Pending: superseded", record(api.Pending), Supersede{}, api.HostSuperseded, nil},
	{"Activating: superseded", record(api.Activating), Supersede{}, api.HostSuperseded, nil},
	{"Deferred: superseded", record(api.Deferred), Supersede{}, api.HostSuperseded, nil},
	{"Soaking: superseded", record(api.Soaking), Supersede{}, api.HostSuperseded, []Effect{StopProbes{}}},
	{"Reverting: superseded", record(api.Reverting), Supersede{}, api.HostSuperseded, nil},
	{"Failed: superseded", record(api.Failed), Supersede{}, api.HostSuperseded, nil},
	{"Skipped: superseded", record(api.Skipped), Supersede{}, api.HostSuperseded, nil},
	{"Converged: superseded", record(api.HostConverged), Supersede{}, refused, nil},
	{"Reverted: superseded", record(api.Reverted), Supersede{}, refused, nil},
	{"Superseded: superseded", record(api.HostSuperseded), Supersede{}, refused, nil},
	{"Activating: a new journal", record(api.Activating), NewJournal{target, target}, api.Pending, nil},
	{"Deferred: a new journal", record(api.Deferred), NewJournal{previous, target}, api.Pending, nil},
	{"Soaking: a new journal", record(api.Soaking), NewJournal{target, target}, api.Pending, []Effect{StopProbes{}}},
	{"Converged: a new journal on its target", record(api.HostConverged), NewJournal{target, target}, api.HostConverged, nil},
	{"Converged: a new journal off its target", record(api.HostConverged), NewJournal{other, other}, api.Pending, nil},
	{"Converged: a new journal that boots something else", record(api.HostConverged), NewJournal{target, other}, api.Pending, nil},
	{"Reverting: a new journal on the previous closure", record(api.Reverting), NewJournal{previous, previous}, api.Reverted, nil},
	{"Failed: a new journal on the previous closure", record(api.Failed), NewJournal{previous, previous}, api.Reverted, nil},
	{"Reverting: a new journal elsewhere", record(api.Reverting), NewJournal{target, target}, api.Pending, nil},
	{"Failed: a new journal that boots something else", record(api.Failed), NewJournal{previous, target}, api.Pending, nil},
	{"Failed: a new journal, no previous closure, on none", record(api.Failed, noPrevious), NewJournal{}, api.Pending, nil},
	{"Pending: a new journal", record(api.Pending), NewJournal{previous, previous}, api.Pending, nil},
	{"Skipped: a new journal", record(api.Skipped), NewJournal{previous, previous}, api.Skipped, nil},
	{"Reverted: a new journal", record(api.Reverted), NewJournal{previous, previous}, api.Reverted, nil},
	{"Superseded: a new journal", record(api.HostSuperseded), NewJournal{other, other}, api.HostSuperseded, nil},
	{"Pending: nothing", record(api.Pending), nil, refused, nil},
}

func TestTable(t *testing.T) {
	for _, test := range rows {
		t.Run(test.name, func(t *testing.T) {
			got, effects, err := Step(test.record, test.in, at(60))
			var invalid *InvalidTransition
			if test.to == refused {
				if !errors.As(err, &invalid) || invalid.State != test.record.State || invalid.Reason == "" {
					t.Fatalf("got %s, %v; want it refused with a reason", got.State, err)
				}
				if diff := cmp.Diff(test.record, got); diff != "" || effects != nil {
					t.Errorf("a refused step has effects %v and changed the record:\n%s", effects, diff)
				}
				return
			}
			if err != nil || got.State != test.to {
				t.Fatalf("got %s, %v; want %s", got.State, err, test.to)
			}
			if diff := cmp.Diff(test.effects, effects); diff != "" {
				t.Errorf("effects (-want +got):\n%s", diff)
			}
			changed := got.ChangedAt.Equal(at(60))
			if moved := test.record.State != test.to; moved != changed {
				t.Errorf("changedAt is %v where the state moved: %v", got.ChangedAt, moved)
			}
		})
	}
}

func TestEveryRowOfTheTableIsTested(t *testing.T) {
	tested := map[string]bool{}
	for _, test := range rows {
		if test.to == refused {
			continue
		}
		tested[fmt.Sprint(test.record.State, " ", inputOf(test.in), " ", test.to)] = true
	}
	for _, row := range Transitions() {
		for _, from := range row.From {
			to := row.To
			if to == stay {
				to = from
			}
			want := fmt.Sprint(from, " ", row.Input, " ", to)
			if row.Input == inputAnyEvent.String() {
				want = fmt.Sprint(from, " ", api.DispatchAck, " ", to)
			}
			if !tested[want] {
				t.Errorf("no case takes %s", want)
			}
		}
	}
}

func inputOf(in Input) string {
	switch in := in.(type) {
	case Reported:
		return string(in.Kind)
	case nil:
		return ""
	}
	return strings.TrimPrefix(fmt.Sprintf("%T", in), "hoststate.")
}

func TestTransitionsAreInWords(t *testing.T) {
	seen := map[string]bool{}
	for _, row := range Transitions() {
		if len(row.From) == 0 || row.Input == "" || row.Input == "unknown" || slices.Contains(row.When, "") {
			t.Errorf("a row without words: %+v", row)
		}
		key := fmt.Sprintf("%+v", row)
		if seen[key] {
			t.Errorf("a row is there twice: %s", key)
		}
		seen[key] = true
		if row.ControlPlaneOnly != slices.Contains([]string{"Skip", "Heard", "Retry", "Supersede", "NewJournal"}, row.Input) {
			t.Errorf("%s: control plane only is %v", row.Input, row.ControlPlaneOnly)
		}
	}
}
