package hoststate

import (
	"slices"

	"nixfleet.dev/nixfleet/api"
)

// Transition is one row of the machine's table, in words, for documentation and for tests that hold
// the two together. A step that fits no row is refused.
type Transition struct {
	From  []api.HostState // each of these, in the order of design/state.md
	Input string          // an api.EventKind, or the name of an input that only the control plane has
	When  []string        // all of these hold
	// To is the state afterwards, "" where it stays. Reverting is Failed instead where the host has no
	// previous closure, and the RollBack effect is then left out.
	To api.HostState
	// Effects names the effect that acts on the machine, beside those that follow from the step itself:
	// StopProbes when Soaking ends, Quarantine and Exonerate by what the event says.
	Effects          []string
	ControlPlaneOnly bool
}

// Transitions returns the whole table. For one record and input at most one row applies.
func Transitions() []Transition {
	out := make([]Transition, 0, len(table))
	for _, row := range table {
		t := Transition{
			From: row.from.list(), Input: row.input.String(), To: row.to,
			ControlPlaneOnly: row.input >= inputSkip,
		}
		for _, c := range row.when {
			t.When = append(t.When, c.String())
		}
		if row.do != actNone {
			t.Effects = append(t.Effects, row.do.String())
		}
		out = append(out, t)
	}
	return out
}

// row is a Transition as Step uses it: nothing in it is a function, so that a step allocates little.
type row struct {
	from  stateSet
	input inputKind
	when  []condition
	to    api.HostState
	do    action
}

const stay api.HostState = ""

// table is design/state.md, "A host in a rollout", in its order. Where two of its rows would fit one
// event (a changed-locally that also says changed: false), the conditions here say which one it is.
var table = []row{
	{states(api.Pending, api.Skipped), inputDispatchAck, []condition{asSigned}, api.Activating, actActivate},
	{states(api.Failed, api.Reverted), inputDispatchAck, []condition{asSigned, higherAttempt}, api.Activating, actActivate},
	{states(api.Activating), inputActivationStarted, nil, stay, actNone},
	{states(api.Activating), inputActivationProgress, nil, stay, actNone},
	{states(api.Activating), inputActivationCompleted, []condition{observedTarget}, api.Soaking, actStartProbes},
	{states(api.Activating), inputActivationDeferred, nil, api.Deferred, actNone},
	{states(api.Deferred), inputRebootStarted, nil, api.Activating, actNone},
	{states(api.Deferred), inputActivationCompleted, []condition{observedTarget}, api.Soaking, actStartProbes},
	{states(api.Activating), inputActivationFailed, []condition{cancelled}, api.Pending, actNone},
	{states(api.Activating, api.Deferred), inputActivationFailed, []condition{unchanged}, api.Reverted, actNone},
	{states(api.Activating, api.Deferred, api.Soaking), inputActivationFailed, []condition{changedLocally}, api.Failed, actNone},
	{states(api.Activating, api.Deferred), inputActivationFailed, []condition{confirmTimeout}, api.Reverting, actRollBack},
	{states(api.Activating, api.Deferred), inputActivationFailed, []condition{otherFailure, policyGoesBack}, api.Reverting, actRollBack},
	{states(api.Activating, api.Deferred), inputActivationFailed, []condition{otherFailure, policyHalts}, api.Failed, actNone},
	{states(api.Soaking), inputProbesDeclared, nil, stay, actNone},
	{states(api.Soaking), inputProbeResult, nil, stay, actNone},
	{states(api.Soaking), inputHealthFailed, []condition{policyGoesBack}, api.Reverting, actRollBack},
	{states(api.Soaking), inputHealthFailed, []condition{policyHalts}, api.Failed, actNone},
	{states(api.Soaking), inputConverged, []condition{observedTarget, soakOver, probesKnown, enforcedPass}, api.HostConverged, actNone},
	{states(api.Soaking, api.HostConverged), inputRollbackStarted, []condition{toPrevious, causeRevert, policyRevertsAll}, api.Reverting, actRollBack},
	{states(api.Deferred), inputRollbackStarted, []condition{toPrevious, causeRevertOrUnstage}, api.Reverting, actRollBack},
	{states(api.Reverting), inputRollbackStarted, []condition{toPrevious}, api.Reverting, actNone},
	{states(api.Failed), inputRollbackStarted, []condition{toPrevious}, api.Reverting, actRollBack},
	{states(api.Reverting), inputRollbackCompleted, []condition{observedPrevious}, api.Reverted, actNone},
	{states(api.Reverting), inputRollbackFailed, nil, api.Failed, actNone},
	{states(api.HostConverged, api.Reverted, api.Failed), inputProbesDeclared, nil, stay, actNone},
	{states(api.HostConverged, api.Reverted, api.Failed), inputProbeResult, nil, stay, actNone},
	{states(api.HostConverged, api.Reverted, api.Failed), inputActivationProgress, nil, stay, actNone},
	{states(api.HostSuperseded), inputAnyEvent, nil, stay, actNone},

	{states(api.Pending), inputSkip, nil, api.Skipped, actNone},
	{states(api.Skipped), inputHeard, []condition{notByOperator}, api.Pending, actNone},
	{states(api.Failed, api.Reverted, api.Skipped), inputRetry, nil, api.Pending, actNone},
	{notEnded, inputSupersede, nil, api.HostSuperseded, actNone},
	{states(api.Activating, api.Deferred, api.Soaking), inputNewJournal, nil, api.Pending, actNone},
	{states(api.HostConverged), inputNewJournal, []condition{onTarget}, stay, actNone},
	{states(api.HostConverged), inputNewJournal, []condition{offTarget}, api.Pending, actNone},
	{states(api.Reverting, api.Failed), inputNewJournal, []condition{onPrevious}, api.Reverted, actNone},
	{states(api.Reverting, api.Failed), inputNewJournal, []condition{offPrevious}, api.Pending, actNone},
	{states(api.Pending, api.Skipped, api.Reverted, api.HostSuperseded), inputNewJournal, nil, stay, actNone},
}

// notEnded are the states that Supersede ends. A Failed host is among them: it counts in budgets and
// may yet go back, and a host that left the fleet must not count for ever.
var notEnded = states(api.Pending, api.Activating, api.Deferred, api.Soaking, api.Reverting, api.Failed, api.Skipped)

// rowsOf holds the rows of each input.
var rowsOf = func() (rows [inputKinds][]row) {
	for _, r := range table {
		rows[r.input] = append(rows[r.input], r)
	}
	return rows
}()

// stateSet is a set of host states.
type stateSet uint16

func states(list ...api.HostState) stateSet {
	var set stateSet
	for _, s := range list {
		set |= bit(s)
	}
	return set
}

func bit(s api.HostState) stateSet {
	switch s {
	case api.Pending:
		return 1 << 0
	case api.Activating:
		return 1 << 1
	case api.Deferred:
		return 1 << 2
	case api.Soaking:
		return 1 << 3
	case api.HostConverged:
		return 1 << 4
	case api.Reverting:
		return 1 << 5
	case api.Reverted:
		return 1 << 6
	case api.Failed:
		return 1 << 7
	case api.HostSuperseded:
		return 1 << 8
	case api.Skipped:
		return 1 << 9
	}
	return 0
}

func (set stateSet) has(s api.HostState) bool { return set&bit(s) != 0 }

func (set stateSet) list() []api.HostState {
	return slices.DeleteFunc(slices.Clone(api.HostStates), func(s api.HostState) bool { return !set.has(s) })
}

// inputKind numbers what a step can be taken on.
type inputKind uint8

const (
	inputUnknown inputKind = iota
	inputDispatchAck
	inputActivationStarted
	inputActivationProgress
	inputActivationCompleted
	inputActivationDeferred
	inputRebootStarted
	inputActivationFailed
	inputProbesDeclared
	inputProbeResult
	inputHealthFailed
	inputRollbackStarted
	inputRollbackCompleted
	inputRollbackFailed
	inputConverged
	inputAnyEvent // an event of any kind, known or not
	inputSkip     // from here on: the control plane's own
	inputHeard
	inputRetry
	inputSupersede
	inputNewJournal
	inputKinds
)

var inputNames = [inputKinds]string{
	"unknown", string(api.DispatchAck), string(api.ActivationStarted), string(api.ActivationProgress),
	string(api.ActivationCompleted), string(api.ActivationDeferred), string(api.RebootStarted),
	string(api.ActivationFailed), string(api.ProbesDeclared), string(api.ProbeResult), string(api.HealthFailed),
	string(api.RollbackStarted), string(api.RollbackCompleted), string(api.RollbackFailed), string(api.Converged),
	"any event", "Skip", "Heard", "Retry", "Supersede", "NewJournal",
}

func (k inputKind) String() string { return inputNames[k] }

func kindOf(e api.EventKind) inputKind {
	for k := inputDispatchAck; k < inputAnyEvent; k++ {
		if inputNames[k] == string(e) {
			return k
		}
	}
	return inputUnknown
}

// action is the effect of a row that acts on the machine.
type action uint8

const (
	actNone action = iota
	actActivate
	actRollBack
	actStartProbes
)

func (a action) String() string { return [...]string{"", "Activate", "RollBack", "StartProbes"}[a] }
