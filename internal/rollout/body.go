package rollout

import (
	"time"

	"nixfleet.dev/nixfleet/api"
)

// FleetDeclared records that the index moved on: which host is declared on which channel is in the
// fleet object, and Channels names the rollout that each channel is at.
type FleetDeclared struct {
	Sequence int64             `json:"sequence"`
	SignedAt time.Time         `json:"signedAt"`
	Fleet    string            `json:"fleet"`    // object: the newest fleet envelope
	Channels map[string]string `json:"channels"` // channel to rollout id
}

// Adopted records a release of the entry's rollout, whole enough to plan with once its objects are
// loaded. A second one for the same rollout is a refresh: only SignedAt and Objects differ.
type Adopted struct {
	Channel    string    `json:"channel"`
	Ref        string    `json:"ref"`
	Sequence   int64     `json:"sequence"`
	ReleasedAt time.Time `json:"releasedAt"`
	SignedAt   time.Time `json:"signedAt"`
	Objects    Objects   `json:"objects"`
}

// HostEvent records an event of the entry's host in the entry's rollout. A refused one changed nothing
// but has used up its number.
type HostEvent struct {
	JournalID string    `json:"journalId"`
	Event     api.Event `json:"event"`
	Refused   api.Code  `json:"refused,omitzero"`
	Detail    string    `json:"detail,omitzero"`
}

// HostSeen records what a heartbeat says of a host, whenever any of it is new.
type HostSeen struct {
	JournalID      string   `json:"journalId"`
	AgentVersion   string   `json:"agentVersion,omitzero"`
	BootID         string   `json:"bootId,omitzero"`
	CurrentClosure string   `json:"currentClosure,omitzero"`
	BootClosure    string   `json:"bootClosure,omitzero"`
	Specialisation string   `json:"specialisation,omitzero"`
	RebootPending  []string `json:"rebootPending,omitempty"`
	TrustSHA256    string   `json:"trustSha256,omitzero"`
}

// Rejected records that a host refused a dispatch.
type Rejected struct {
	Attempt int       `json:"attempt"`
	Reason  api.Code  `json:"reason"`
	Detail  string    `json:"detail,omitzero"`
	At      time.Time `json:"at"` // by the host's clock
}

// TokenUsed records that an enrollment token was shown for the entry's host with a key.
type TokenUsed struct {
	Nonce           string    `json:"nonce"`
	PublicKeySHA256 string    `json:"publicKeySha256"`
	ExpiresAt       time.Time `json:"expiresAt,omitzero"`
}

// Opened: the rollout becomes Active, its first wave with it.
type Opened struct {
	Reason string `json:"reason"`
}

// Promoted: one more wave is open.
type Promoted struct {
	Wave   int    `json:"wave"`
	Reason string `json:"reason"`
}

// Halted: more hosts failed than the policy tolerates.
type Halted struct {
	Failures  int    `json:"failures"`
	Tolerated int    `json:"tolerated"`
	Reason    string `json:"reason"`
}

// RollingBack is Halted under the policy rollback-all.
type RollingBack struct {
	Failures  int    `json:"failures"`
	Tolerated int    `json:"tolerated"`
	Reason    string `json:"reason"`
}

// RolledBack: every host that the rollout moved is back, failed or overdue.
type RolledBack struct {
	Reason string `json:"reason"`
}

// Converged: the rollout is done. With a host: it ran and booted its target already, and converged on
// it before, so it is taken as Converged without a dispatch.
type Converged struct {
	Reason string `json:"reason"`
}

// Cancelled: the rollout's channel left the index.
type Cancelled struct {
	Reason string `json:"reason"`
}

// Superseded: a newer rollout of the channel took over. With a host: that host is no longer this
// rollout's.
type Superseded struct {
	By     string `json:"by,omitzero"` // the newer rollout, if there is one
	Reason string `json:"reason"`
}

// Quarantined: the entry's channel refuses the closure from now on. Hostname and RolloutID of the
// entry say where it failed.
type Quarantined struct {
	Channel string   `json:"channel"`
	Closure string   `json:"closure"`
	Code    api.Code `json:"code"`
	Reason  string   `json:"reason"`
}

// Allowed takes a quarantine back.
type Allowed struct {
	Channel string `json:"channel"`
	Closure string `json:"closure"`
	Reason  string `json:"reason"`
}

// Dispatched: the host is offered an action until it answers, refuses, or it is withdrawn.
type Dispatched struct {
	Action        api.Action `json:"action"`
	Attempt       int        `json:"attempt"`
	TargetClosure string     `json:"targetClosure"`
	Wave          int        `json:"wave"`
	SoakDueAt     time.Time  `json:"soakDueAt"`
	EnqueuedAt    time.Time  `json:"enqueuedAt"`
	Reason        string     `json:"reason"`
}

// Withdrawn: what the host was offered is offered no longer. RetryAt and Code are set where that is
// because of a refusal, which was recorded before: not before then.
type Withdrawn struct {
	Action  api.Action `json:"action"`
	Attempt int        `json:"attempt"`
	Reason  string     `json:"reason"`
	RetryAt time.Time  `json:"retryAt,omitzero"`
	Code    api.Code   `json:"code,omitzero"` // of the refusal
}

// Skipped: the rollout goes on without the host. By is a hoststate.SkippedBy constant.
type Skipped struct {
	By     string `json:"by"`
	Reason string `json:"reason"`
}

// Returned: a host that was skipped or overdue was heard again.
type Returned struct {
	Reason string `json:"reason"`
}

// Overdue: a host in flight has not been heard since Since for as long as the policy allows, or
// refuses to be reverted for as long.
type Overdue struct {
	Since  time.Time `json:"since"`
	Reason string    `json:"reason"`
}

// Stayed: a rollout that rolls back leaves the host where it is, because it cannot be taken back.
type Stayed struct {
	Reason string `json:"reason"`
}

// Kind implements Body.
func (Stayed) Kind() Kind { return KindStay }

// Kind implements Body.
func (FleetDeclared) Kind() Kind { return KindFleet }

// Kind implements Body.
func (Adopted) Kind() Kind { return KindAdopt }

// Kind implements Body.
func (HostEvent) Kind() Kind { return KindEvent }

// Kind implements Body.
func (HostSeen) Kind() Kind { return KindHeartbeat }

// Kind implements Body.
func (Rejected) Kind() Kind { return KindReject }

// Kind implements Body.
func (TokenUsed) Kind() Kind { return KindToken }

// Kind implements Body.
func (Opened) Kind() Kind { return KindOpen }

// Kind implements Body.
func (Promoted) Kind() Kind { return KindPromote }

// Kind implements Body.
func (Halted) Kind() Kind { return KindHalt }

// Kind implements Body.
func (RollingBack) Kind() Kind { return KindRollBack }

// Kind implements Body.
func (RolledBack) Kind() Kind { return KindRolledBack }

// Kind implements Body.
func (Converged) Kind() Kind { return KindConverge }

// Kind implements Body.
func (Cancelled) Kind() Kind { return KindCancel }

// Kind implements Body.
func (Superseded) Kind() Kind { return KindSupersede }

// Kind implements Body.
func (Quarantined) Kind() Kind { return KindQuarantine }

// Kind implements Body.
func (Allowed) Kind() Kind { return KindAllow }

// Kind implements Body.
func (Dispatched) Kind() Kind { return KindDispatch }

// Kind implements Body.
func (Withdrawn) Kind() Kind { return KindWithdraw }

// Kind implements Body.
func (Skipped) Kind() Kind { return KindSkip }

// Kind implements Body.
func (Returned) Kind() Kind { return KindReturn }

// Kind implements Body.
func (Overdue) Kind() Kind { return KindOverdue }
