package reducer

import (
	"context"
	"log/slog"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
	"nixfleet.dev/nixfleet/internal/clock"
)

// Journal is where records go; *journal.Journal is one. Append and Compact are durable on return, and
// any error of theirs ends the reducer.
type Journal interface {
	Append(record []byte) error
	// Compact replaces everything with this one record.
	Compact(snapshot []byte) error
	// Size is the journal's length in bytes.
	Size() int64
}

// Probes runs a closure's health checks.
type Probes interface {
	// Load reads health-checks.json; an absent file is the empty set.
	Load(path string) (api.HealthChecks, error)
	// Run runs the probes until ctx ends, each once right away and then by its interval, and calls
	// report after each run, from one goroutine or several. It returns only once all of it has ended.
	Run(ctx context.Context, set api.HealthChecks, report func(ProbeRun)) error
}

// ProbeRun is the result of one run of one probe.
type ProbeRun struct {
	Probe      api.Probe
	At         time.Time
	Status     string // api.ProbePass or api.ProbeFail
	Reason     string // why it failed
	SubResults []api.ProbeSubResult
}

// Options is what a reducer needs. All but Records and Logger are required.
type Options struct {
	Hostname string
	BootID   string // of the boot that is running now

	Journal Journal
	Records [][]byte // what the journal held, oldest first; none starts a new journal with a new id

	Backend activation.Backend
	Probes  Probes
	Clock   clock.Clock
	Logger  *slog.Logger

	// Heartbeat sends one heartbeat now and acts on its answer (Withdraw among it) before it returns;
	// nil means that it was answered.
	Heartbeat func(ctx context.Context) error
	// Confirm completes one authenticated request on a fresh connection; an answer of 5xx counts.
	Confirm func(ctx context.Context) error
}

// Offer is what a verified dispatch becomes (design/agent.md, L11): everything in it was checked
// against the signed manifest and line, and nothing of it is derived again.
type Offer struct {
	RolloutID      string
	Channel        string
	Action         api.Action
	Attempt        int
	AllowClosure   bool // with a higher attempt: an operator lifts the quarantine of the closure here
	Line           api.HostLine
	Policy         api.Policy
	ReleasedAt     time.Time
	ManifestSHA256 string

	PreviousClosure string // by View.PreviousFor
	SoakDueAt       time.Time
	EnqueuedAt      time.Time

	MaintenanceWindows []api.MaintenanceWindow
	Freezes            []api.Freeze
}

// AnswerKind is what became of an Offer.
type AnswerKind int

// What can become of an Offer.
const (
	// Accepted: its answering event is durable and the work goes on.
	Accepted AnswerKind = iota + 1
	// Duplicate: it was answered before; nothing changed. Outbound should send what it still has.
	Duplicate
	// Busy: an activation or rollback that already touched the machine finishes first. Nothing
	// changed; the dispatch will be given again, so treat it like Duplicate.
	Busy
	// Rejected: refused, for Code.
	Rejected
)

// Answer is the reply to an Offer. Code and Detail are set for Rejected only.
type Answer struct {
	Kind   AnswerKind
	Code   api.Code
	Detail string
}

// View is what the agent's other workers may know, as of one record. It is never changed.
type View struct {
	JournalID string
	LastSeq   map[string]int64 // by rollout
	Acked     map[string]int64 // by rollout: up to where the control plane has its events
	Rollouts  map[string]RolloutView
	Newest    string // the rollout accepted last, "" where there is none
	Hold      *Hold  // the local hold, even where it is over

	// Converged is the closure that the host converged on last, or, where it never did, what it ran
	// before its first rollout.
	Converged string

	quarantine  map[string]quarantined
	unconverged map[string]bool
}

// RolloutView is one rollout in a View.
type RolloutView struct {
	Channel       string
	State         api.HostState
	Attempt       int
	TargetClosure string
	RebootPending []string
	Ended         bool
}

// Hold is a host-local hold: dispatches are rejected as held-locally until Until.
type Hold struct {
	Until  time.Time `json:"until"`
	Reason string    `json:"reason"`
}

// PreviousFor returns the previous closure of a dispatch to target that arrives while running runs:
// what runs, but where that is the target itself, or the target of a rollout that this host did not
// converge in, the one that it converged on last (design/state.md, "Previous closure").
func (v *View) PreviousFor(running, target string) string {
	if running == target || v.unconverged[running] {
		return v.Converged
	}
	return running
}

// Busy says whether the host is on its way from one system to another, or probes the one it came to:
// what it may have to go back from.
func (v *View) Busy() bool {
	for _, r := range v.Rollouts {
		if r.State == api.Activating || r.State == api.Soaking || r.State == api.Reverting {
			return true
		}
	}
	return false
}

// Quarantined says whether the agent refuses to try the closure, and for which failure.
func (v *View) Quarantined(closure string) (api.Code, bool) {
	q, ok := v.quarantine[closure]
	return q.Code, ok
}
