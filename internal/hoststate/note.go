package hoststate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// note writes down what an accepted input says. to is the state that the record goes to.
func (r *Record) note(g *given, to api.HostState) {
	if g.event != nil {
		r.noteEvent(g.event, to)
		return
	}
	switch g.kind {
	case inputSkip:
		r.SkippedBy = skipper(g.by)
	case inputHeard:
		r.SkippedBy = ""
	case inputRetry:
		r.startOver()
		r.Attempt++
	case inputNewJournal:
		r.freshStream(g)
		if to == api.Pending && r.State != api.Pending {
			r.startOver()
			r.Attempt++
		}
	}
}

func (r *Record) noteEvent(e *api.Event, to api.HostState) {
	switch e.Kind {
	case api.DispatchAck:
		r.noteAck(e)
	case api.ActivationCompleted:
		r.noteCompletion(e)
	case api.ActivationDeferred:
		r.RebootPending = clipList(e.Components)
	case api.ActivationFailed:
		r.noteActivationFailed(e, to)
	case api.ProbesDeclared:
		r.declare(e.Probes)
	case api.ProbeResult:
		r.result(e)
	case api.HealthFailed:
		r.fail(e, api.CodeHealthFailed, "failing for "+api.Duration(e.SustainedFor.Std().Round(100*time.Millisecond)).String()+": "+strings.Join(clipList(e.FailingProbes), ", "))
		r.going(to, api.CauseHealth)
	case api.RollbackStarted:
		r.going(to, e.Cause)
	case api.RollbackCompleted:
		r.ObservedClosure = r.PreviousClosure
		r.RebootPending = clipList(e.RebootPending)
	case api.RollbackFailed:
		r.fail(e, e.Reason, failureDetail(e))
	case api.Converged:
		r.ObservedClosure = r.TargetClosure
	}
}

// skipper returns by if it is one of the three who can skip a host.
func skipper(by string) string {
	switch by {
	case SkippedByOffline:
		return SkippedByOffline
	case SkippedByOperator:
		return SkippedByOperator
	case SkippedByEdge:
		return SkippedByEdge
	}
	return ""
}

// noteAck begins a try. A previous closure that is the target is none: to go back to it would change
// nothing (agent.md, L10). An attempt never goes down, so that the next retry is higher than all.
func (r *Record) noteAck(e *api.Event) {
	r.startOver()
	r.Attempt = max(r.Attempt, e.Attempt)
	r.Failure = nil
	r.PreviousClosure = e.PreviousClosure
	if r.PreviousClosure == r.TargetClosure {
		r.PreviousClosure = ""
	}
	r.SoakDueAt = wall(e.SoakDueAt)
	r.ManifestSHA256 = e.ManifestSHA256
}

// startOver forgets what an earlier try found out, but for its failure and previous closure.
func (r *Record) startOver() {
	r.SoakDueAt, r.ManifestSHA256 = time.Time{}, ""
	r.CompletedAt, r.SoakEndsAt, r.ObservedClosure = time.Time{}, time.Time{}, ""
	r.ProbesDeclared, r.Probes, r.RebootPending = false, nil, nil
	r.SkippedBy, r.RevertCause = "", ""
}

// freshStream lets the events of a new journal begin at any time.
func (r *Record) freshStream(g *given) {
	if g.kind == inputNewJournal {
		r.LastAt = time.Time{}
	}
}

func (r *Record) noteCompletion(e *api.Event) {
	r.CompletedAt = wall(e.At)
	r.SoakEndsAt = later(r.SoakDueAt, plus(r.CompletedAt, r.Soak.Std()))
	r.ObservedClosure = r.TargetClosure
	r.ProbesDeclared, r.Probes = false, nil
	r.RebootPending = clipList(e.RebootPending)
}

func (r *Record) noteActivationFailed(e *api.Event, to api.HostState) {
	if to == api.Pending {
		r.startOver()
		return
	}
	r.fail(e, e.Reason, failureDetail(e))
	cause := api.CauseActivation
	if e.Reason == api.CodeConfirmTimeout {
		cause = api.CauseConfirm
	}
	r.going(to, cause)
}

func (r *Record) going(to api.HostState, cause string) {
	if to == api.Reverting {
		r.RevertCause = cause
	}
}

func (r *Record) fail(e *api.Event, code api.Code, detail string) {
	r.Failure = &api.Failure{Code: api.Code(clip(string(code), maxName)), Detail: clip(detail, maxText), At: wall(e.At)}
}

// failureDetail is one short text for people: where it failed, how, and the end of what was printed.
func failureDetail(e *api.Event) string {
	detail := clip(e.Phase, maxName)
	if e.ExitCode != 0 {
		detail += fmt.Sprintf(", exit code %d", e.ExitCode)
	}
	if tail := strings.TrimSpace(clipTail(e.StderrTail, maxText/2)); tail != "" {
		detail += ": " + tail
	}
	return detail
}

// declare replaces the probe set. A probe that was there before keeps its result: the agent declares
// again after a restart, and results since the activation still count.
func (r *Record) declare(probes []api.DeclaredProbe) {
	var next []api.ProbeStatus // nil when empty, as it is read back
	for _, p := range probes {
		status := api.ProbeStatus{Name: p.Name, Kind: p.Kind}
		if old := slices.IndexFunc(r.Probes, func(q api.ProbeStatus) bool { return q.Name == p.Name && q.Kind == p.Kind }); old >= 0 {
			status = r.Probes[old]
		}
		status.Mode = p.Mode
		next = append(next, status)
	}
	r.ProbesDeclared, r.Probes = true, next
}

// result keeps a result on a copy of the list. One of a probe that is not declared has no place, and
// so cannot pass for one that is declared later.
func (r *Record) result(e *api.Event) {
	i := slices.IndexFunc(r.Probes, func(p api.ProbeStatus) bool { return p.Name == e.Probe })
	if i < 0 {
		return
	}
	r.Probes = slices.Clone(r.Probes)
	r.Probes[i].Status = e.Status
	r.Probes[i].FailureReason = clip(e.FailureReason, maxText)
	r.Probes[i].At = wall(e.At)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// plus adds without leaving the years that can be written down.
func plus(t time.Time, d time.Duration) time.Time { return wall(t.Add(d)) }
