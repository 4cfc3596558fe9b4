package backoff_test

import (
	"testing"
	"time"

	"nixfleet.dev/nixfleet/internal/agent/backoff"
)

func TestWaitsStartAtTheFloorAndGrowToFiveMinutes(t *testing.T) {
	low := backoff.Backoff{Floor: 5 * time.Second, Random: func() float64 { return 0 }}
	high := backoff.Backoff{Floor: 5 * time.Second, Random: func() float64 { return 0.999999 }}
	last := time.Duration(0)
	for i := range 60 {
		if got := low.Next(0); got != 5*time.Second {
			t.Fatalf("failure %d: the least wait is %v, want the floor", i, got)
		}
		got := high.Next(0)
		if got < last || got > 5*time.Minute {
			t.Fatalf("failure %d: the longest wait went from %v to %v", i, last, got)
		}
		last = got
	}
	if last < 4*time.Minute {
		t.Errorf("after 60 failures the longest wait is %v", last)
	}
	high.Reset()
	if got := high.Next(0); got > 10*time.Second {
		t.Errorf("after a reset the longest wait is %v", got)
	}
}

func TestWhatTheControlPlaneAsksIsHonoured(t *testing.T) {
	for _, r := range []float64{0, 0.5, 0.999999} {
		b := backoff.Backoff{Floor: 5 * time.Second, Random: func() float64 { return r }}
		if got := b.Next(40 * time.Second); got < 40*time.Second || got > 50*time.Second {
			t.Errorf("asked for 40 s, waits %v", got)
		}
		if got := b.Next(5 * time.Minute); got != 5*time.Minute {
			t.Errorf("asked for 5 min, waits %v", got)
		}
	}
}

func TestAFloorOverTheMaximumIsEveryWait(t *testing.T) {
	b := backoff.Backoff{Floor: time.Hour}
	if got := b.Next(0); got != time.Hour {
		t.Errorf("waits %v", got)
	}
}
