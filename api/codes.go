package api

// ProtocolHeader is carried by every request under /v1 and by every response.
const ProtocolHeader = "X-Nixfleet-Protocol"

// ProtocolVersion is the value of ProtocolHeader.
const ProtocolVersion = "1"

// Code says why something was refused or failed; design/wire.md lists them.
type Code string

// Codes of agents: in rejections, and as the reason of failures.
const (
	CodeIdentityMismatch        Code = "identity-mismatch"
	CodeManifestUnavailable     Code = "manifest-unavailable"
	CodeSignatureInvalid        Code = "signature-invalid"
	CodeStale                   Code = "stale"
	CodeSignedInFuture          Code = "signed-in-future"
	CodeRollbackRefused         Code = "rollback-refused"
	CodeNotInManifest           Code = "not-in-manifest"
	CodeTargetMismatch          Code = "target-mismatch"
	CodeTooEarly                Code = "too-early"
	CodeOutsideWindow           Code = "outside-window"
	CodeQuarantined             Code = "quarantined"
	CodeHeldLocally             Code = "held-locally"
	CodeNotPermitted            Code = "not-permitted"
	CodeUnsupportedAction       Code = "unsupported-action"
	CodeUnsupportedSchema       Code = "unsupported-schema"
	CodeRealiseFailed           Code = "realise-failed"
	CodeClosureSignatureInvalid Code = "closure-signature-invalid"
	CodeDiskFull                Code = "disk-full"
	CodeSwitchFailed            Code = "switch-failed"
	CodeVerifyMismatch          Code = "verify-mismatch"
	CodeConfirmTimeout          Code = "confirm-timeout"
	CodeTimeout                 Code = "timeout"
	CodeCancelled               Code = "cancelled"
	CodeChangedLocally          Code = "changed-locally"
	CodeObserveOnly             Code = "observe-only"
)

// Codes of problem responses and of refused events.
const (
	CodeWrongRole           Code = "wrong-role"
	CodeCertificateRequired Code = "certificate-required"
	CodeCertificateRevoked  Code = "certificate-revoked"
	CodeMalformed           Code = "malformed"
	CodeNotFound            Code = "not-found"
	CodeUnknownRollout      Code = "unknown-rollout"
	CodeSequenceGap         Code = "sequence-gap"
	CodeWrongState          Code = "wrong-state"
	CodeTooLarge            Code = "too-large"
	CodeTooMany             Code = "too-many"
	CodeStarting            Code = "starting"
	CodeOverloaded          Code = "overloaded"
	CodeInvalidTransition   Code = "invalid-transition"
)

// Codes that the contract does not list, added where it leaves a gap (docs/adr).
const (
	// CodeUnsupportedProtocol answers a request without "X-Nixfleet-Protocol: 1".
	CodeUnsupportedProtocol Code = "unsupported-protocol"
	// CodeTokenInvalid answers an enrollment whose token is not good, and says why in the detail.
	CodeTokenInvalid Code = "token-invalid"
	// CodeHealthFailed is the lastFailure of a host whose probes failed through the threshold.
	CodeHealthFailed Code = "health-failed"
	// CodeMethodNotAllowed answers a known path under a method that it does not have.
	CodeMethodNotAllowed Code = "method-not-allowed"
	// CodeInternal answers a request that failed through no fault of the client.
	CodeInternal Code = "internal"
)

// Problem is an error response, RFC 9457.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Code   Code   `json:"code"`
	// ExpectedSeq is set for sequence-gap: the number to send again from.
	ExpectedSeq int64 `json:"expectedSeq,omitzero"`
}

// ProblemType is the media type of Problem.
const ProblemType = "application/problem+json"

// HostState is a host's state in a rollout (design/state.md), or Idle when it is in none.
type HostState string

// Host states.
const (
	Idle           HostState = "Idle"
	Pending        HostState = "Pending"
	Activating     HostState = "Activating"
	Deferred       HostState = "Deferred"
	Soaking        HostState = "Soaking"
	HostConverged  HostState = "Converged"
	Reverting      HostState = "Reverting"
	Reverted       HostState = "Reverted"
	Failed         HostState = "Failed"
	HostSuperseded HostState = "Superseded"
	Skipped        HostState = "Skipped"
)

// HostStates lists every state of a host in a rollout in the order of design/state.md.
var HostStates = []HostState{
	Pending, Activating, Deferred, Soaking, HostConverged, Reverting, Reverted, Failed, HostSuperseded, Skipped,
}

// RolloutState is a rollout's state (design/state.md).
type RolloutState string

// Rollout states.
const (
	RolloutWaiting     RolloutState = "Waiting"
	RolloutActive      RolloutState = "Active"
	RolloutPaused      RolloutState = "Paused"
	RolloutHalted      RolloutState = "Halted"
	RolloutRollingBack RolloutState = "RollingBack"
	RolloutRolledBack  RolloutState = "RolledBack"
	RolloutConverged   RolloutState = "Converged"
	RolloutCancelled   RolloutState = "Cancelled"
	RolloutSuperseded  RolloutState = "Superseded"
)

// Action is what a dispatch asks of a host.
type Action string

// Actions.
const (
	ActionActivate  Action = "activate"
	ActionRevert    Action = "revert"
	ActionReboot    Action = "reboot"
	ActionUnstage   Action = "unstage"
	ActionPreflight Action = "preflight"
)

// OnHealthFailure is what a policy does when a host fails.
type OnHealthFailure string

// The three policies.
const (
	Halt            OnHealthFailure = "halt"
	RollbackAndHalt OnHealthFailure = "rollback-and-halt"
	RollbackAll     OnHealthFailure = "rollback-all"
)

// GoesBack says whether a failing host returns to its previous closure under the policy.
func (p OnHealthFailure) GoesBack() bool { return p == RollbackAndHalt || p == RollbackAll }
