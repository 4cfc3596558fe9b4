// Package clock is the only place that reads the system's time. Everything else is given a Clock, or a
// time as an argument; internal/archtest holds that.
//
// Under testing/synctest the System clock is the bubble's fake one, so tests need no other.
package clock

import (
	"context"
	"time"
)

// Clock tells the time and waits. Implementations may be used concurrently.
type Clock interface {
	// Now returns the current time in UTC. It carries a monotonic reading, which stands still while
	// the machine sleeps.
	Now() time.Time
	// Sleep waits for d or until ctx ends, and then returns the cause of its end. d <= 0 does not wait.
	Sleep(ctx context.Context, d time.Duration) error
	// NewTimer returns a timer that fires once after d.
	NewTimer(d time.Duration) *time.Timer
	// AfterFunc calls f in a goroutine of its own after d, unless the timer it returns is stopped before.
	AfterFunc(d time.Duration, f func()) *time.Timer
}

// System is the machine's clock.
type System struct{}

// Now implements Clock.
func (System) Now() time.Time { return time.Now().UTC() }

// Sleep implements Clock.
func (System) Sleep(ctx context.Context, d time.Duration) error {
	if err := context.Cause(ctx); err != nil || d <= 0 {
		return err
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// NewTimer implements Clock.
func (System) NewTimer(d time.Duration) *time.Timer { return time.NewTimer(d) }

// AfterFunc implements Clock.
func (System) AfterFunc(d time.Duration, f func()) *time.Timer { return time.AfterFunc(d, f) }
