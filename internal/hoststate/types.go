package hoststate

import (
	"time"

	"nixfleet.dev/nixfleet/api"
)

// Record is what is known of one host in one rollout. It is a plain value: Step returns a new one and
// shares no memory with the old one that either changes.
type Record struct {
	Hostname  string        `json:"hostname"`
	RolloutID string        `json:"rolloutId"`
	State     api.HostState `json:"state"`
	Attempt   int           `json:"attempt"` // of the current try; 1 in a new record
	Wave      int           `json:"wave"`

	// From the signed manifest and line.
	TargetClosure   string              `json:"targetClosure"`
	Soak            api.Duration        `json:"soak"` // of the host's wave
	OnHealthFailure api.OnHealthFailure `json:"onHealthFailure"`

	// From DispatchAck on. PreviousClosure is "" where the host has none.
	PreviousClosure string    `json:"previousClosure"`
	SoakDueAt       time.Time `json:"soakDueAt,omitzero"`
	ManifestSHA256  string    `json:"manifestSha256,omitzero"`

	// From ActivationCompleted on.
	CompletedAt     time.Time `json:"completedAt,omitzero"`
	SoakEndsAt      time.Time `json:"soakEndsAt,omitzero"`
	ObservedClosure string    `json:"observedClosure,omitzero"`

	// Probes holds the declared probes, in order, with the latest result of each since the activation.
	ProbesDeclared bool              `json:"probesDeclared,omitzero"`
	Probes         []api.ProbeStatus `json:"probes,omitempty"`

	RebootPending []string     `json:"rebootPending,omitempty"`
	Failure       *api.Failure `json:"failure,omitzero"`     // the newest failure, kept when the host goes back
	SkippedBy     string       `json:"skippedBy,omitzero"`   // why it is Skipped: SkippedBy…
	RevertCause   string       `json:"revertCause,omitzero"` // cause of the rollback in progress or done

	LastAt    time.Time `json:"lastAt,omitzero"`    // at of the newest accepted event: it never decreases
	ChangedAt time.Time `json:"changedAt,omitzero"` // when State last changed
}

// Input is what a Step is taken on: an api.Event, or one of the inputs that only the control plane has.
type Input interface{ input() }

// Reported is an event of the host, from its own agent.
type Reported struct{ api.Event }

// Who skipped a host: Skip.By and Record.SkippedBy.
const (
	SkippedByOffline  = "offline" // it was unheard, or only rejecting, for offline.after
	SkippedByOperator = "operator"
	SkippedByEdge     = "edge" // a host that it comes after failed or was skipped
)

// Skip leaves a Pending host out.
type Skip struct{ By string }

// Heard says that a host that was skipped for its silence (or for an edge's) is back.
type Heard struct{}

// Retry has a Failed, Reverted or Skipped host tried again by an operator.
type Retry struct{}

// Supersede ends a record that has not ended: a newer rollout took the host over, or the host is no
// longer this rollout's.
type Supersede struct{}

// NewJournal says that a heartbeat came with another journalId: the agent lost its records. Running
// and Boot are the closures that the heartbeat shows. It is possible in every state, since it also
// begins the host's stream of events afresh.
type NewJournal struct{ Running, Boot string }

func (Reported) input()   {}
func (Skip) input()       {}
func (Heard) input()      {}
func (Retry) input()      {}
func (Supersede) input()  {}
func (NewJournal) input() {}

// Effect is something to do once the step is durable. The agent runs Activate, RollBack, StartProbes
// and StopProbes; both sides act on Quarantine.
type Effect interface{ effect() }

// Activate starts the activation of the record's target closure.
type Activate struct{}

// RollBack takes the host back to the record's previous closure; Cause is that of RollbackStarted.
type RollBack struct{ Cause string }

// StartProbes drops every earlier result and starts the probes of the closure that is live now.
type StartProbes struct{}

// StopProbes ends the soak's probing.
type StopProbes struct{}

// Quarantine says that the closure may be to blame for a failure: do not try it again.
type Quarantine struct {
	Closure string
	Code    api.Code
}

// Exonerate takes the quarantine back that this record's confirm-timeout led to: the previous system
// cannot reach a control plane either (state.md, Confirmation), which its RollbackCompleted says by the
// reason confirm-timeout. Quarantines of the closure for another reason, or by another host, stand.
type Exonerate struct{ Closure string }

func (Activate) effect()    {}
func (RollBack) effect()    {}
func (StartProbes) effect() {}
func (StopProbes) effect()  {}
func (Quarantine) effect()  {}
func (Exonerate) effect()   {}

// InvalidTransition is the error of a step that contradicts the record; the record is unchanged.
type InvalidTransition struct {
	State  api.HostState
	Input  string // the event's kind, or the input's name
	Reason string // which condition does not hold
}

// Error implements error.
func (e *InvalidTransition) Error() string {
	return e.Input + " in state " + string(e.State) + ": " + e.Reason
}

// New returns the record of a host that is Pending in a rollout, attempt 1.
// The line and policy are a verified manifest's, where a line's wave is one of the policy's.
func New(line api.HostLine, rolloutID string, policy api.Policy, now time.Time) Record {
	var soak api.Duration
	if line.Wave >= 0 && line.Wave < len(policy.Waves) {
		soak = policy.Waves[line.Wave].Soak
	}
	return Record{
		Hostname: line.Hostname, RolloutID: rolloutID, State: api.Pending, Attempt: 1, Wave: line.Wave,
		TargetClosure: line.Closure, Soak: soak, OnHealthFailure: policy.OnHealthFailure, ChangedAt: wall(now),
	}
}

// NextAt returns the at of the record's next event: now, but never before the event before it, also
// when the clock was set back. A Step refuses an event whose at decreases.
func (r Record) NextAt(now time.Time) time.Time { return later(r.LastAt, wall(now)) }

// Ended says whether nothing more is expected of the host in this rollout: Supersede no longer applies.
func (r Record) Ended() bool { return !notEnded.has(r.State) }

// Blocking returns the first declared enforce probe whose latest result is not a pass.
func (r Record) Blocking() (api.ProbeStatus, bool) {
	for _, p := range r.Probes {
		if p.Mode == api.ModeEnforce && p.Status != api.ProbePass {
			return p, true
		}
	}
	return api.ProbeStatus{}, false
}

// InFlight says whether the host counts as disrupted for budgets by its state alone; a Pending host
// that is offered a dispatch does too, and so do Failed and overdue ones, which the planner knows.
func (r Record) InFlight() bool {
	switch r.State {
	case api.Activating, api.Deferred, api.Soaking, api.Reverting:
		return true
	}
	return false
}

// Done says whether the host no longer holds back its wave and the hosts after it.
func (r Record) Done() bool {
	switch r.State {
	case api.Deferred, api.HostConverged, api.Skipped:
		return true
	}
	return false
}
