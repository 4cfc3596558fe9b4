package api

import (
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Limits of the protocol (design/wire.md).
const (
	MaxRequestBody   = 1 << 20
	MaxBatchEvents   = 256
	MaxBatchBytes    = 512 << 10
	MaxWait          = 60 // seconds a dispatch poll is held
	MaxStderrTail    = 4 << 10
	MaxRejectID      = 256
	MaxRejectDetail  = 1 << 10
	MaxHostRequests  = 4
	MaxListLimit     = 1000
	DefaultListLimit = 100
)

// Dispatch is the control plane's advice to one host that it is its turn.
type Dispatch struct {
	Hostname      string    `json:"hostname"`
	RolloutID     string    `json:"rolloutId"`
	Action        Action    `json:"action"`
	Attempt       int       `json:"attempt"`
	TargetClosure string    `json:"targetClosure"`
	Wave          int       `json:"wave"`
	SoakDueAt     time.Time `json:"soakDueAt"`
	EnqueuedAt    time.Time `json:"enqueuedAt"`
	// AllowClosure, with an attempt above the first, says that an operator lifts this host's quarantine of
	// the target (docs/adr/0004-an-attempt-alone-lifts-no-quarantine.md).
	AllowClosure bool `json:"allowClosure,omitzero"`
}

// Rejection tells the control plane that an agent refused a dispatch.
type Rejection struct {
	Hostname  string    `json:"hostname"`
	RolloutID string    `json:"rolloutId"`
	Attempt   int       `json:"attempt"`
	Reason    Code      `json:"reason"`
	Detail    string    `json:"detail" strict:"optional"`
	At        time.Time `json:"at"`
}

// EventBatch carries events of one host and rollout, in order of seq.
type EventBatch struct {
	Hostname  string  `json:"hostname"`
	JournalID string  `json:"journalId"` // 32 hex characters
	RolloutID string  `json:"rolloutId"`
	Events    []Event `json:"events"`
}

// EventsAck answers an EventBatch: everything up to AckedSeq is on disk.
type EventsAck struct {
	AckedSeq int64          `json:"ackedSeq"`
	Refused  []RefusedEvent `json:"refused"`
}

// RefusedEvent is an event that contradicted the record; it has used up its number.
type RefusedEvent struct {
	Seq    int64  `json:"seq"`
	Code   Code   `json:"code"`
	Detail string `json:"detail"`
}

// Heartbeat says what a host is.
type Heartbeat struct {
	Hostname       string           `json:"hostname"`
	JournalID      string           `json:"journalId"`
	At             time.Time        `json:"at"`
	AgentVersion   string           `json:"agentVersion"`
	BootID         string           `json:"bootId"`
	CurrentClosure string           `json:"currentClosure"`
	BootClosure    string           `json:"bootClosure"`
	Specialisation string           `json:"specialisation" strict:"optional"`
	RebootPending  []string         `json:"rebootPending" strict:"optional"`
	TrustSHA256    string           `json:"trustSha256"`
	UptimeSeconds  int64            `json:"uptimeSeconds"`
	LastSeq        map[string]int64 `json:"lastSeq"`
}

// HeartbeatReply answers a Heartbeat.
type HeartbeatReply struct {
	ReceivedAt time.Time         `json:"receivedAt"`
	Interval   Duration          `json:"interval"`
	ReplayFrom map[string]int64  `json:"replayFrom"`
	Forget     []string          `json:"forget"`
	Withdrawn  []string          `json:"withdrawn"`
	Current    map[string]string `json:"current"`
}

// HostProof is one host's line of a rollout with its Merkle inclusion proof.
type HostProof struct {
	Index int64    `json:"index"`
	Size  int64    `json:"size"`
	Line  string   `json:"line"`  // exactly as stored, without its LF
	Proof []string `json:"proof"` // base64 hashes
}

// EnrollRequest asks for a host's certificate.
type EnrollRequest struct {
	Token Envelope `json:"token"`
	CSR   string   `json:"csr"` // PEM
}

// RenewRequest asks for the next certificate of the host that asks.
type RenewRequest struct {
	CSR string `json:"csr"` // PEM
}

// CertificateReply answers both.
type CertificateReply struct {
	Certificate string    `json:"certificate"` // PEM chain
	NotAfter    time.Time `json:"notAfter"`
}

// List is one page of items.
type List[T any] struct {
	Items      []T    `json:"items"`
	NextCursor string `json:"nextCursor"`
}

// Host is what operators see of a host.
type Host struct {
	Hostname        string        `json:"hostname"`
	Channel         string        `json:"channel"`
	Tags            []string      `json:"tags"`
	Declared        bool          `json:"declared"`
	State           HostState     `json:"state"`
	Overdue         bool          `json:"overdue"`
	RolloutID       string        `json:"rolloutId"`
	Attempt         int           `json:"attempt"`
	Wave            int           `json:"wave"`
	CurrentClosure  string        `json:"currentClosure"`
	BootClosure     string        `json:"bootClosure"`
	TargetClosure   string        `json:"targetClosure"`
	PreviousClosure string        `json:"previousClosure"`
	Drifted         bool          `json:"drifted"`
	LastHeartbeatAt *time.Time    `json:"lastHeartbeatAt"`
	Reachable       bool          `json:"reachable"`
	LastFailure     *Failure      `json:"lastFailure"`
	LastRejection   *Failure      `json:"lastRejection"`
	Probes          []ProbeStatus `json:"probes"`
	AgentVersion    string        `json:"agentVersion"`
	TrustSHA256     string        `json:"trustSha256"` // of the trust.json that its agent goes by, "" until it is heard
	RebootPending   []string      `json:"rebootPending"`
	SoakEndsAt      *time.Time    `json:"soakEndsAt"`
}

// Failure is a coded failure or refusal.
type Failure struct {
	Code   Code      `json:"code"`
	Detail string    `json:"detail"`
	At     time.Time `json:"at"`
}

// ProbeStatus is the latest known result of a probe; Status is "" until it has run.
type ProbeStatus struct {
	Name          string    `json:"name"`
	Kind          string    `json:"kind"`
	Mode          string    `json:"mode"`
	Status        string    `json:"status"`
	FailureReason string    `json:"failureReason"`
	At            time.Time `json:"at,omitzero"`
}

// Rollout is what operators see of a rollout.
type Rollout struct {
	RolloutID   string        `json:"rolloutId"`
	Channel     string        `json:"channel"`
	Ref         string        `json:"ref"`
	Sequence    int64         `json:"sequence"`
	PolicyName  string        `json:"policyName"`
	State       RolloutState  `json:"state"`
	OpenedAt    *time.Time    `json:"openedAt"`
	EndedAt     *time.Time    `json:"endedAt"`
	CurrentWave int           `json:"currentWave"`
	Waves       []WaveStatus  `json:"waves"`
	Hosts       int           `json:"hosts"`
	Failed      int           `json:"failed"`
	HaltReason  string        `json:"haltReason"`
	Blocks      []GateVerdict `json:"blocks"`
}

// WaveStatus counts a wave's hosts by state.
type WaveStatus struct {
	Index  int               `json:"index"`
	Open   bool              `json:"open"`
	Counts map[HostState]int `json:"counts"`
}

// Why says why a host is where it is.
type Why struct {
	Hostname  string        `json:"hostname"`
	RolloutID string        `json:"rolloutId"`
	State     HostState     `json:"state"`
	Summary   string        `json:"summary"`
	Gates     []GateVerdict `json:"gates"`
}

// GateVerdict is one gate's answer.
type GateVerdict struct {
	Gate   string     `json:"gate"`
	Pass   bool       `json:"pass"`
	Reason string     `json:"reason"`
	Since  *time.Time `json:"since"`
}

// Channel is what operators see of a channel.
type Channel struct {
	Channel     string               `json:"channel"`
	Ref         string               `json:"ref"`
	Sequence    int64                `json:"sequence"`
	SignedAt    time.Time            `json:"signedAt"`
	ExpiresAt   time.Time            `json:"expiresAt"`
	RolloutID   string               `json:"rolloutId"`
	State       RolloutState         `json:"state"`
	PausedUntil *time.Time           `json:"pausedUntil"`
	Paused      bool                 `json:"paused"`
	Quarantine  []QuarantinedClosure `json:"quarantine"`
}

// QuarantinedClosure is a closure that a channel refuses to try again.
type QuarantinedClosure struct {
	Closure string    `json:"closure"`
	Reason  string    `json:"reason"`
	At      time.Time `json:"at"`
}

// LoggedEvent is one entry of a rollout's recorded history: an event of a host (Kind is then an
// EventKind and Fields holds the fields of that kind), or what the control plane decided or was told.
type LoggedEvent struct {
	LogSeq     int64          `json:"logSeq"`
	At         time.Time      `json:"at"`
	RecordedAt time.Time      `json:"recordedAt"`
	Hostname   string         `json:"hostname"`
	RolloutID  string         `json:"rolloutId"`
	Kind       string         `json:"kind"`
	Fields     jsontext.Value `json:",embed"`
}
