package activation

import (
	"context"
	"errors"
	"fmt"

	"nixfleet.dev/nixfleet/api"
)

// Backend is a kind of machine. Closures are base names (`<hash>-<name>`), "" where there is none.
// Every method is safe to call again after a crash, and returns soon after ctx ends with an error that
// wraps its cause. Methods may be called concurrently, but Realise, SetProfile and StartSwitch are
// only called by the one procedure that is running. An error that is no *Error counts as temporary.
type Backend interface {
	// Current returns the closure that runs now.
	Current(ctx context.Context) (string, error)
	// Boot returns the closure that is the default at the next boot.
	Boot(ctx context.Context) (string, error)
	// Realise makes the closure available, verified. It may call progress, from this goroutine or
	// another but never after it returned, with bytes; total is 0 while it is not known.
	Realise(ctx context.Context, closure string, progress func(done, total int64)) error
	// Protect has exactly these closures kept from garbage collection, beside what the profile keeps.
	Protect(ctx context.Context, closures []string) error
	// SetProfile makes the closure the default at the next boot, durably. It is idempotent.
	SetProfile(ctx context.Context, closure string) error
	// StartSwitch begins the detached switch to closure that is named job, and returns once Job knows
	// of it. A name is run at most once, whoever calls however often: where it was started before,
	// StartSwitch returns nil and does nothing. At no time do two switches run at once.
	// Job names match [a-z0-9-]{1,64}.
	StartSwitch(ctx context.Context, job, closure string) error
	// StopSwitch ends the job by force if it runs, and returns once nothing of it does. A job that
	// does not run, or was never started, is no error.
	StopSwitch(ctx context.Context, job string) error
	// Job says how a switch stands; it is told by the machine, so it outlives the agent.
	Job(ctx context.Context, job string) (JobStatus, error)
	// Health returns the path of health-checks.json of the system that runs now.
	Health(ctx context.Context) (path string, err error)
}

// JobState is how a detached switch stands.
type JobState int

// Job states.
const (
	// JobUnknown: never started, or ended without leaving a result (killed, power lost).
	JobUnknown JobState = iota
	// JobRunning: started, or waiting for its turn.
	JobRunning
	// JobExited: it ended, and its result is on disk.
	JobExited
)

// JobStatus is what is known of a detached switch; the fields after State are those of JobExited.
type JobStatus struct {
	State       JobState
	ExitCode    int
	FailedUnits []string // units that are failed after the switch
	StderrTail  string   // at most api.MaxStderrTail bytes
}

// Error is how a backend says what went wrong.
type Error struct {
	Code      api.Code // realise-failed, disk-full, closure-signature-invalid, switch-failed, …
	Phase     string   // api.Phase…; "" is the phase that the procedure is in
	Detail    string   // for people, without secrets
	ExitCode  int
	Temporary bool // time may mend it: try again within activationTimeout
	Cause     error
}

// Error implements error.
func (e *Error) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Detail, e.Cause)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Detail)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// temporary says whether trying again may help.
func temporary(err error) bool {
	var e *Error
	return !errors.As(err, &e) || e.Temporary
}

// The rest are abilities that a backend may have besides.

// Preflighter checks what can be known before anything is fetched, such as free space.
type Preflighter interface {
	Preflight(ctx context.Context, closure string) error
}

// Deferrer names the components (kernel, systemd, …) that must not be switched live from what runs now
// to closure; forced are those that the signed reboot.for lists. None means that it is switched live.
type Deferrer interface {
	DeferFor(ctx context.Context, closure string, forced []string) (components []string, err error)
}

// Rebooter reboots the machine; it returns once the reboot is under way.
type Rebooter interface {
	Reboot(ctx context.Context) error
}

// Units is a backend whose switch exits as switch-to-configuration does: 4 where units failed, 100
// where a reboot is needed. FailedUnits returns those that are failed now.
type Units interface {
	FailedUnits(ctx context.Context) ([]string, error)
}

// Pending names the components of the running system that are older than what it would boot.
type Pending interface {
	RebootPending(ctx context.Context) ([]string, error)
}
