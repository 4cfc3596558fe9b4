package rollout

import "fmt"

// SequenceGap refuses events that do not go on where the log ends: send again from Expected.
type SequenceGap struct{ Expected int64 }

// Error implements error.
func (e *SequenceGap) Error() string {
	return fmt.Sprintf("the next event of this stream is number %d", e.Expected)
}

// UnknownRollout refuses events of a rollout that this log does not know, that the host is not in, or
// under a journal that no heartbeat has shown yet. The agent keeps them and tries again after its next
// heartbeat.
type UnknownRollout struct {
	RolloutID string
	Reason    string
}

// Error implements error.
func (e *UnknownRollout) Error() string { return e.Reason }

// Malformed refuses a request whose fields make no sense, whatever the state.
type Malformed struct{ Field, Reason string }

// Error implements error.
func (e *Malformed) Error() string { return e.Field + ": " + e.Reason }

// RefusedRelease refuses an adoption as a whole.
type RefusedRelease struct {
	RolloutID string
	Reason    string
}

// Error implements error.
func (e *RefusedRelease) Error() string { return fmt.Sprintf("rollout %s: %s", e.RolloutID, e.Reason) }

// TokenSpent refuses an enrollment token that served another key already.
type TokenSpent struct{ Nonce string }

// Error implements error.
func (e *TokenSpent) Error() string { return "the token has served another key" }
