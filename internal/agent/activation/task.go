package activation

import (
	"context"
	"errors"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// MaxTries is how often a switch is begun for one activation or one rollback.
const MaxTries = 3

// Kind is what a task is for.
type Kind string

// Kinds of tasks.
const (
	Activate Kind = "activate"
	RollBack Kind = "rollback"
	Reboot   Kind = "reboot" // of a deferred host; its confirmation is part of it
)

// Stage is how far a task had come when it was last made durable.
type Stage string

// Stages of a task.
const (
	StageBegin   Stage = ""        // the profile is not set
	StageProfile Stage = "profile" // the profile is being set, or is
	StageSwitch  Stage = "switch"  // the switch Job was begun, or is about to be
	StageConfirm Stage = "confirm" // switched; confirming
	StageReboot  Stage = "reboot"  // the machine is going down
)

// Task is an activation or rollback that is to be done, or to be gone on with. It is an effect of the
// journal: a plain value that is kept there until it has an end.
type Task struct {
	Kind      Kind   `json:"kind"`
	RolloutID string `json:"rolloutId"`
	Attempt   int    `json:"attempt"`
	Closure   string `json:"closure"` // to switch to
	From      string `json:"from"`    // Activate: the previous closure, "" where there is none

	Stage Stage     `json:"stage,omitzero"`
	Began time.Time `json:"began"` // activationTimeout counts from here

	Try         int       `json:"try,omitzero"`         // switches begun, from 1
	Job         string    `json:"job,omitzero"`         // name of the newest of them
	BootID      string    `json:"bootId,omitzero"`      // of the boot in which it (or the reboot) was begun
	Running     string    `json:"running,omitzero"`     // the closure that ran right before it was begun
	FailedUnits []string  `json:"failedUnits,omitzero"` // failed right before the first
	ExitCode    int       `json:"exitCode,omitzero"`    // of the switch that is being confirmed
	ConfirmFrom time.Time `json:"confirmFrom,omitzero"` // confirmTimeout counts from here

	// Confirm has a rollback find out whether the control plane can be reached from where it went.
	Confirm bool `json:"confirm,omitzero"`
	// Stop is a switch of the task before that may still run, and must have ended before this begins.
	Stop string `json:"stop,omitzero"`
	// Unstage: the system never left the closure, only the default at the next boot goes back.
	Unstage bool `json:"unstage,omitzero"`
	// Started: ActivationStarted was sent.
	Started bool `json:"started,omitzero"`

	Timeout        api.Duration `json:"timeout"`        // the signed activationTimeout
	ConfirmTimeout api.Duration `json:"confirmTimeout"` // the signed confirmTimeout
	RebootFor      []string     `json:"rebootFor,omitzero"`
}

// Outcome is what an activation or rollback ended with.
type Outcome struct {
	Observed      string
	ExitCode      int
	FailedUnits   []string
	RebootPending []string
	// Reason is confirm-timeout where a system that was gone back to for a confirm-timeout cannot reach
	// a control plane either: the closure that was left is not to blame.
	Reason api.Code
}

// Failure is why one failed.
type Failure struct {
	Phase      string
	Changed    bool // whether the profile or the system was touched
	ExitCode   int
	Reason     api.Code
	StderrTail string
}

// ErrStopped is returned by a Ledger when the task is no longer to be done: it was withdrawn, or
// dropped for a newer one. The procedure ends at once.
var ErrStopped = errors.New("task is no longer to be done")

// Ledger is where a procedure says what happened and what it is about to do. But for Progress each
// call returns once that is durable; an error (ErrStopped, the end of ctx, a dead journal) ends the
// procedure at once, with nothing more done to the machine.
type Ledger interface {
	// Started says that the activation begins, by method.
	Started(ctx context.Context, method string) error
	// Progress may be dropped.
	Progress(ctx context.Context, phase string, done, total int64)
	// AwaitAck waits until the control plane has acknowledged the task's DispatchAck.
	AwaitAck(ctx context.Context) error
	// Mark makes the task durable as it stands, before what its stage names is done.
	Mark(ctx context.Context, t Task) error
	// Deferred ends the task: the profile is set and the rest waits for a reboot.
	Deferred(ctx context.Context, components []string) error
	// Completed ends the task well.
	Completed(ctx context.Context, o Outcome) error
	// Failed ends the task.
	Failed(ctx context.Context, f Failure) error
}
