package schedule

import (
	"fmt"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// Schedule is when a channel's hosts may be disrupted: its maintenance windows and freezes, compiled.
// It does not change and may be used concurrently. The zero Schedule is always open.
type Schedule struct {
	windows []window
	freezes []api.Freeze
}

// New compiles a channel's windows and freezes. ignore is the policy's ignoreWindows, which lifts both.
// The error names the first window that is not valid.
func New(windows []api.MaintenanceWindow, freezes []api.Freeze, ignore bool) (Schedule, error) {
	if ignore {
		return Schedule{}, nil
	}
	s := Schedule{freezes: freezes}
	for i, w := range windows {
		compiled, err := compile(w)
		if err != nil {
			return Schedule{}, fmt.Errorf("maintenance window %d: %w", i, err)
		}
		s.windows = append(s.windows, compiled)
	}
	return s, nil
}

// Validate says what is wrong with w, if anything.
func Validate(w api.MaintenanceWindow) error {
	_, err := compile(w)
	return err
}

// Open is New and Schedule.Open in one, for who asks once. Windows that are not valid are never open.
func Open(windows []api.MaintenanceWindow, freezes []api.Freeze, ignore bool, now time.Time) (open bool, reason string) {
	s, err := New(windows, freezes, ignore)
	if err != nil {
		return false, err.Error()
	}
	return s.Open(now)
}

// Open says whether a window is open at now, or there are none, and no freeze is on; where not, reason
// says why and until when.
func (s Schedule) Open(now time.Time) (open bool, reason string) {
	for _, f := range s.freezes {
		if frozen(f, now) {
			return false, freezeReason(f)
		}
	}
	if len(s.windows) == 0 {
		return true, ""
	}
	for _, w := range s.windows {
		if w.open(now) {
			return true, ""
		}
	}
	var next time.Time
	for _, w := range s.windows {
		next = earliest(next, w.next(now))
	}
	if next.IsZero() {
		return false, "outside every maintenance window, and none opens for years"
	}
	return false, "outside every maintenance window; the next opens at " + stamp(next)
}

// NextChange returns the first time after now at which Open may answer otherwise: a window opens or
// closes, a freeze begins or ends. It is zero where nothing is in sight; it may be early, never late.
func (s Schedule) NextChange(now time.Time) time.Time {
	var next time.Time
	for _, f := range s.freezes {
		for _, at := range []time.Time{f.From, f.Until} {
			if at.After(now) {
				next = earliest(next, at)
			}
		}
	}
	for _, w := range s.windows {
		next = earliest(next, w.next(now))
		if w.open(now) {
			next = earliest(next, w.last(now).Add(w.duration))
		}
	}
	return next
}

// frozen says whether f is on at now: from From until just before Until.
func frozen(f api.Freeze, now time.Time) bool { return !now.Before(f.From) && now.Before(f.Until) }

func freezeReason(f api.Freeze) string {
	reason := "a freeze is on until " + stamp(f.Until)
	if f.Reason != "" {
		reason += fmt.Sprintf(": %.200q", f.Reason)
	}
	return reason
}

// earliest returns the earlier of two times of which zero is none.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
