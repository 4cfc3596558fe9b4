package hoststate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// Step takes record r on by one input and returns the record afterwards and what to do once it is
// durable, in this order: StopProbes, Quarantine, Exonerate, then what acts on the machine. The error
// is an *InvalidTransition, and the record then comes back as it was. now is when the caller learnt
// of the input; conditions on time go by the event's own at, so that the agent and the control plane
// agree. r is not changed. Step may be called concurrently.
func Step(r Record, in Input, now time.Time) (Record, []Effect, error) {
	var g given
	var event api.Event
	switch in := in.(type) {
	case Reported:
		event = in.Event
		g = given{kind: kindOf(event.Kind), event: &event}
	case Skip:
		g = given{kind: inputSkip, by: in.By}
	case Heard:
		g = given{kind: inputHeard}
	case Retry:
		g = given{kind: inputRetry}
	case Supersede:
		g = given{kind: inputSupersede}
	case NewJournal:
		g = given{kind: inputNewJournal, running: in.Running, boot: in.Boot}
	}
	row, reason := find(&r, &g)
	if reason != "" {
		return r, nil, &InvalidTransition{State: r.State, Input: nameOf(in, g.kind), Reason: reason}
	}
	next := r
	effects := next.take(&row, &g, now)
	return next, effects, nil
}

// nameOf is what to call an input in errors.
func nameOf(in Input, kind inputKind) string {
	if r, ok := in.(Reported); ok {
		return clip(string(r.Kind), maxName)
	}
	return kind.String()
}

// find returns the row that applies, or the reason why none does.
func find(r *Record, g *given) (row, string) {
	if reason := refusal(r, g); reason != "" {
		return row{}, reason
	}
	if g.event != nil && r.State == api.HostSuperseded {
		return rowsOf[inputAnyEvent][0], ""
	}
	reason := "that is not possible in this state"
	if g.kind == inputUnknown {
		reason = "this version does not know it"
	}
	first := true
	for _, candidate := range rowsOf[g.kind] {
		if !candidate.from.has(r.State) {
			continue
		}
		why := candidate.fails(r, g)
		if why == "" {
			return candidate, ""
		}
		if first {
			reason, first = why, false
		}
	}
	return row{}, reason
}

// refusal is what makes an input impossible in every state.
func refusal(r *Record, g *given) string {
	if e := g.event; e != nil {
		if wall(e.At).Before(r.LastAt) {
			return fmt.Sprintf("it is at %s, before the event before it at %s", stamp(e.At), stamp(r.LastAt))
		}
		if r.State == api.HostSuperseded {
			return ""
		}
		return contradiction(e)
	}
	if g.kind == inputSkip && skipper(g.by) == "" {
		return "it does not say by whom"
	}
	return ""
}

func (w *row) fails(r *Record, g *given) string {
	for _, c := range w.when {
		if reason := c.fails(r, g); reason != "" {
			return reason
		}
	}
	return ""
}

// take changes r, which is Step's own copy, as the row says, and returns the effects.
func (r *Record) take(w *row, g *given, now time.Time) []Effect {
	from := r.State
	if g.event != nil {
		r.LastAt = wall(g.event.At)
	}
	if from == api.HostSuperseded {
		r.freshStream(g)
		return nil
	}
	to := w.to
	if to == stay {
		to = from
	}
	if to == api.Reverting && r.PreviousClosure == "" {
		to = api.Failed
	}
	r.note(g, to)
	if to != from {
		r.State, r.ChangedAt = to, wall(now)
	}
	return r.effects(w, g, from)
}

func (r *Record) effects(w *row, g *given, from api.HostState) []Effect {
	var effects []Effect
	if from == api.Soaking && r.State != api.Soaking {
		effects = append(effects, StopProbes{})
	}
	if code, ok := blames(g.event); ok {
		effects = append(effects, Quarantine{Closure: r.TargetClosure, Code: code})
	}
	if r.State == api.Reverted && g.kind == inputRollbackCompleted && r.exonerated(g.event) {
		effects = append(effects, Exonerate{Closure: r.TargetClosure})
	}
	switch {
	case w.do == actActivate:
		effects = append(effects, Activate{})
	case w.do == actStartProbes:
		effects = append(effects, StartProbes{})
	case w.do == actRollBack && r.State == api.Reverting:
		effects = append(effects, RollBack{Cause: r.RevertCause})
	}
	return effects
}

// blames says whether an event is a failure that the target closure may be to blame for (state.md,
// Quarantine), and its code.
func blames(e *api.Event) (api.Code, bool) {
	if e == nil {
		return "", false
	}
	switch e.Kind {
	case api.HealthFailed:
		return api.CodeHealthFailed, true
	case api.ActivationFailed:
		switch e.Reason {
		case api.CodeSwitchFailed, api.CodeVerifyMismatch, api.CodeClosureSignatureInvalid, api.CodeConfirmTimeout:
			return e.Reason, true
		case api.CodeTimeout:
			return e.Reason, e.Phase == api.PhaseSwitch || e.Phase == api.PhaseConfirm
		}
	}
	return "", false
}

// exonerated says whether the end of a rollback shows that a confirm-timeout was not the closure's
// fault: the previous system could not reach a control plane either.
func (r *Record) exonerated(e *api.Event) bool {
	return e.Reason == api.CodeConfirmTimeout && r.Failure != nil && r.Failure.Code == api.CodeConfirmTimeout
}

// wall drops the monotonic reading, which does not travel, so that both sides compare the same times,
// and keeps within the years that RFC 3339 can write.
func wall(t time.Time) time.Time {
	switch {
	case t.After(endOfTime):
		return endOfTime
	case t.Before(time.Time{}):
		return time.Time{}
	}
	return t.Round(0).UTC()
}

// endOfTime is the last time that RFC 3339 can write.
var endOfTime = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// clip cuts outside text at n bytes, on its own memory.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(strings.Clone(s[:n]), "")
}

// clipTail keeps the last n bytes of s.
func clipTail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(strings.Clone(s[len(s)-n:]), "")
}

func clipList(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	out := slices.Clone(list[:min(len(list), maxComponents)])
	for i := range out {
		out[i] = clip(out[i], maxName)
	}
	return out
}
