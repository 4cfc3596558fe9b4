package reducer

import (
	"time"

	"nixfleet.dev/nixfleet/internal/clock"
)

// jump is the least difference between the wall clock and the monotonic one that counts as time in
// which nothing ran: the machine slept, or its clock was set. Less is the clock being kept right.
const jump = 2 * time.Second

// meter reads the time, and notices when the wall clock went on without the monotonic one, which
// stands still while the machine sleeps. Timers are recorded as wall-clock times, since they outlive
// the process, and are moved by such a gap.
type meter struct {
	clock clock.Clock
	// monotonic is how long after the anchor t is by the monotonic clock; tests replace it.
	monotonic func(anchor, t time.Time) time.Duration

	anchor, last time.Time
}

// now returns the wall-clock time.
func (m *meter) now() time.Time { return m.clock.Now().Round(0) }

// read takes the time of a step.
func (m *meter) read() time.Time {
	m.last = m.clock.Now()
	if m.anchor.IsZero() {
		m.anchor = m.last
	}
	return m.last.Round(0)
}

// gap returns by how much the wall clock ran ahead of (or, below zero, fell behind) the monotonic one
// since the last gap, once it is a jump.
func (m *meter) gap() time.Duration {
	elapsed := m.last.Sub(m.anchor)
	if m.monotonic != nil {
		elapsed = m.monotonic(m.anchor, m.last)
	}
	gap := m.last.Round(0).Sub(m.anchor.Round(0)) - elapsed
	if gap.Abs() < jump {
		return 0
	}
	m.anchor = m.last
	return gap
}
