package hoststate

import (
	"fmt"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// given is an Input taken apart. No string of its own may flow into the record, or each Step would
// put its copy of the event on the heap.
type given struct {
	kind    inputKind
	event   *api.Event // nil unless the host reported it
	by      string     // Skip
	running string     // NewJournal, like boot
	boot    string
}

// condition is one condition of a row; its text is part of Transitions.
type condition uint8

const (
	asSigned condition = iota
	higherAttempt
	observedTarget
	observedPrevious
	cancelled
	unchanged
	changedLocally
	confirmTimeout
	otherFailure
	policyGoesBack
	policyHalts
	policyRevertsAll
	toPrevious
	causeRevert
	causeRevertOrUnstage
	soakOver
	probesKnown
	enforcedPass
	notByOperator
	onTarget
	offTarget
	onPrevious
	offPrevious
	conditions
)

var conditionTexts = [conditions]string{
	asSigned:             "target and wave are the signed line's",
	higherAttempt:        "a higher attempt",
	observedTarget:       "observed = target",
	observedPrevious:     "observed = previous",
	cancelled:            "reason cancelled",
	unchanged:            "changed: false",
	changedLocally:       "reason changed-locally",
	confirmTimeout:       "reason confirm-timeout",
	otherFailure:         "any other reason",
	policyGoesBack:       "policy goes back",
	policyHalts:          "policy halt",
	policyRevertsAll:     "policy rollback-all",
	toPrevious:           "to the previous closure",
	causeRevert:          "cause revert",
	causeRevertOrUnstage: "cause revert or unstage",
	soakOver:             "at not before the soak's end",
	probesKnown:          "the probe set is declared",
	enforcedPass:         "every enforce probe passes",
	notByOperator:        "not skipped by an operator",
	onTarget:             "on its target",
	offTarget:            "off its target",
	onPrevious:           "on the previous closure",
	offPrevious:          "elsewhere",
}

func (c condition) String() string { return conditionTexts[c] }

// fails says why the condition does not hold, or "".
func (c condition) fails(r *Record, g *given) string {
	switch c {
	case asSigned, higherAttempt, soakOver, probesKnown, enforcedPass:
		return c.failsInWords(r, g)
	case observedTarget:
		return unequal("the observed closure", g.event.ObservedClosure, "the target", r.TargetClosure)
	case observedPrevious:
		return unequal("the observed closure", g.event.ObservedClosure, "the previous one", r.PreviousClosure)
	case toPrevious:
		return unequal("the closure to go back to", g.event.ToClosure, "the previous one", r.PreviousClosure)
	}
	if c.holds(r, g) {
		return ""
	}
	return "it is not so that: " + c.String()
}

// holds evaluates the conditions whose text says all there is to say.
func (c condition) holds(r *Record, g *given) bool {
	switch c {
	case cancelled:
		return r.State == api.Activating && g.event.Reason == api.CodeCancelled
	case changedLocally:
		return g.event.Reason == api.CodeChangedLocally
	case unchanged:
		return !g.event.Changed && !changedLocally.holds(r, g) && !cancelled.holds(r, g)
	case confirmTimeout:
		return g.event.Changed && g.event.Reason == api.CodeConfirmTimeout
	case otherFailure:
		return g.event.Changed && !changedLocally.holds(r, g) && !cancelled.holds(r, g) && !confirmTimeout.holds(r, g)
	case policyGoesBack:
		return r.OnHealthFailure.GoesBack()
	case policyHalts:
		return !r.OnHealthFailure.GoesBack()
	case policyRevertsAll:
		return r.OnHealthFailure == api.RollbackAll
	case causeRevert:
		return g.event.Cause == api.CauseRevert
	case causeRevertOrUnstage:
		return g.event.Cause == api.CauseRevert || g.event.Cause == api.CauseUnstage
	case notByOperator:
		return r.SkippedBy != SkippedByOperator
	case onTarget:
		return g.running == r.TargetClosure && g.boot == r.TargetClosure
	case offTarget:
		return !onTarget.holds(r, g)
	case onPrevious:
		return r.PreviousClosure != "" && g.running == r.PreviousClosure && g.boot == r.PreviousClosure
	case offPrevious:
		return !onPrevious.holds(r, g)
	}
	return false
}

// failsInWords evaluates the conditions that have more to say than their text.
func (c condition) failsInWords(r *Record, g *given) string {
	switch e := g.event; c {
	case asSigned:
		if e.Wave != r.Wave {
			return fmt.Sprintf("wave %d is not the line's, %d", e.Wave, r.Wave)
		}
		return unequal("the target", e.TargetClosure, "the line's closure", r.TargetClosure)
	case higherAttempt:
		if e.Attempt <= r.Attempt {
			return fmt.Sprintf("attempt %d is not higher than %d", e.Attempt, r.Attempt)
		}
	case soakOver:
		if wall(e.At).Before(r.SoakEndsAt) {
			return fmt.Sprintf("it is at %s, before the soak's end at %s", stamp(e.At), stamp(r.SoakEndsAt))
		}
	case probesKnown:
		if !r.ProbesDeclared {
			return "the probe set is not declared"
		}
	case enforcedPass:
		if p, ok := r.Blocking(); ok {
			return fmt.Sprintf("probe %q has not passed", p.Name)
		}
	}
	return ""
}

func unequal(what, got, whose, want string) string {
	if got == want {
		return ""
	}
	return fmt.Sprintf("%s %q is not %s, %q", what, clip(got, maxClosure), whose, want)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Caps on what a record keeps of an event: one host cannot fill the memory of the control plane.
const (
	maxAttempt    = 1 << 31
	maxClosure    = 256
	maxDigest     = 64
	maxComponents = 64
	maxName       = 128
	maxText       = 1 << 10
)

// contradiction says what is wrong with an event in itself, whatever the record says, or "".
func contradiction(e *api.Event) string {
	switch e.Kind {
	case api.DispatchAck:
		switch {
		case e.Attempt < 1 || e.Attempt > maxAttempt:
			return fmt.Sprintf("attempt %d is out of range", e.Attempt)
		case len(e.PreviousClosure) > maxClosure || len(e.ManifestSHA256) > maxDigest:
			return "its previous closure or its manifest's digest is too long"
		}
	case api.ActivationFailed:
		if e.Reason == api.CodeCancelled && e.Changed {
			return "what was cancelled cannot have changed anything"
		}
	case api.RollbackStarted:
		switch e.Cause {
		case api.CauseHealth, api.CauseActivation, api.CauseConfirm, api.CauseRevert, api.CauseUnstage:
		default:
			return fmt.Sprintf("cause %q is not known", clip(e.Cause, maxName))
		}
	case api.ProbesDeclared:
		return badProbes(e.Probes)
	case api.ProbeResult:
		if e.Status != api.ProbePass && e.Status != api.ProbeFail {
			return fmt.Sprintf("status %q is neither pass nor fail", clip(e.Status, maxName))
		}
	}
	return ""
}

func badProbes(probes []api.DeclaredProbe) string {
	if len(probes) > api.MaxProbes {
		return fmt.Sprintf("%d probes are declared; at most %d are allowed", len(probes), api.MaxProbes)
	}
	for i, p := range probes {
		if len(p.Name) > maxName || len(p.Kind) > maxName {
			return "the name or kind of a probe is too long"
		}
		switch p.Mode {
		case api.ModeEnforce, api.ModeObserve, api.ModeDisabled:
		default:
			return fmt.Sprintf("mode %q of probe %q is not known", clip(p.Mode, maxName), p.Name)
		}
		for _, q := range probes[:i] {
			if p.Name == q.Name {
				return fmt.Sprintf("probe %q is declared twice", p.Name)
			}
		}
	}
	return ""
}
