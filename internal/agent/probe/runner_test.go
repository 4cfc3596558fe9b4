package probe

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
)

// lab is a runner whose one kind of probe is the test's.
type lab struct {
	*Runner
	mu   sync.Mutex
	runs map[string][]time.Duration // when each probe's runs were reported, since the start
	all  []Result
}

func newLab(check kind) *lab {
	l := &lab{Runner: NewRunner(clock.System{}), runs: map[string][]time.Duration{}}
	l.kinds = map[string]kind{"test": check}
	return l
}

// run runs the probes for a while and returns once all has ended.
func (l *lab) run(t *testing.T, d time.Duration, probes ...api.Probe) {
	t.Helper()
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	err := l.Run(ctx, api.HealthChecks{Probes: probes}, func(r Result) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.runs[r.Probe.Name] = append(l.runs[r.Probe.Name], time.Since(start))
		l.all = append(l.all, r)
	})
	if err != nil {
		t.Error(err)
	}
}

func every(interval time.Duration, names ...string) []api.Probe {
	var probes []api.Probe
	for _, name := range names {
		probes = append(probes, api.Probe{Name: name, Kind: "test", Mode: api.ModeEnforce, Interval: api.Duration(interval), Timeout: api.Duration(3 * time.Second)})
	}
	return probes
}

func pass(context.Context, api.Probe) error { return nil }

func TestAProbeRunsRightAwayAndThenByItsInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(pass)
		l.run(t, 50*time.Second, every(15*time.Second, "a")...)
		if got := fmt.Sprint(l.runs["a"]); got != "[0s 15s 30s 45s]" {
			t.Errorf("it ran at %s", got)
		}
	})
}

func TestProbesAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(pass)
		l.run(t, 100*time.Second, every(20*time.Second, "a", "b", "c", "d")...)
		at := map[time.Duration]bool{}
		for name, runs := range l.runs {
			if runs[0] > startWithin {
				t.Errorf("%s ran first at %v", name, runs[0])
			}
			for i, run := range runs {
				if at[run] {
					t.Errorf("two probes ran at %v", run)
				}
				at[run] = true
				if i == 0 {
					continue
				}
				if gap := run - runs[i-1]; gap > 20*time.Second || i > 1 && gap != 20*time.Second {
					t.Errorf("%s ran at %v and next at %v", name, runs[i-1], run)
				}
			}
		}
		if len(l.runs) != 4 {
			t.Errorf("%d probes ran", len(l.runs))
		}
		times := slices.Sorted(maps.Keys(at))
		for i := 4; i < len(times)-1; i++ { // after the first of each
			if gap := times[i+1] - times[i]; gap < 4*time.Second {
				t.Errorf("four probes in 20s ran at %v and %v", times[i], times[i+1])
			}
		}
	})
}

func TestTwoRunsOfOneProbeNeverOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running atomic.Int32
		l := newLab(func(ctx context.Context, _ api.Probe) error {
			if running.Add(1) > 1 {
				t.Error("two runs at once")
			}
			defer running.Add(-1)
			return clock.System{}.Sleep(ctx, 25*time.Second)
		})
		probes := every(10*time.Second, "slow")
		probes[0].Timeout = api.Duration(time.Minute)
		l.run(t, 100*time.Second, probes...)
		if got := fmt.Sprint(l.runs["slow"]); got != "[25s 55s 1m25s]" {
			t.Errorf("its runs ended at %s", got)
		}
	})
}

func TestNeverManyRunAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running, most atomic.Int32
		l := newLab(func(ctx context.Context, _ api.Probe) error {
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			return clock.System{}.Sleep(ctx, 2*time.Second)
		})
		var names []string
		for i := range api.MaxProbes {
			names = append(names, fmt.Sprint(i))
		}
		l.run(t, time.Minute, every(10*time.Second, names...)...)
		if most.Load() != atOnce || len(l.runs) != api.MaxProbes {
			t.Errorf("%d at once, %d of %d probes ran", most.Load(), len(l.runs), api.MaxProbes)
		}
	})
}

func TestATimeoutIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(func(ctx context.Context, _ api.Probe) error {
			<-ctx.Done()
			return ctx.Err()
		})
		l.run(t, 5*time.Second, every(time.Minute, "a")...)
		if len(l.all) != 1 || l.all[0].Status != api.ProbeFail || !strings.HasPrefix(l.all[0].Reason, "timed out after 3s") {
			t.Errorf("%+v", l.all)
		}
	})
}

func TestARunThatNeverEndsIsLeftBehindAndHoldsUpNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var begun atomic.Int32
		l := newLab(func(_ context.Context, p api.Probe) error {
			if p.Name != "a" {
				return nil
			}
			begun.Add(1)
			<-release // not even for its timeout: it hangs in the kernel
			return nil
		})
		start := time.Now()
		l.run(t, time.Minute, every(10*time.Second, "a", "b")...)
		if took := time.Since(start); took > time.Minute+2*time.Second {
			t.Errorf("the end took %v", took-time.Minute)
		}
		if begun.Load() != 1 {
			t.Errorf("%d runs of one probe at once", begun.Load())
		}
		if len(l.runs["a"]) < 5 || len(l.runs["b"]) < 5 {
			t.Errorf("reported at %v", l.runs)
		}
		for _, r := range l.all {
			if r.Probe.Name == "a" && (r.Status != api.ProbeFail || !strings.Contains(r.Reason, "does not end")) {
				t.Errorf("%+v", r)
			}
		}
		close(release)
	})
}

func TestARunThatWasCutOffIsNotReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(func(ctx context.Context, _ api.Probe) error {
			<-ctx.Done()
			return ctx.Err()
		})
		l.run(t, 2*time.Second, every(time.Minute, "a")...) // before its timeout
		if len(l.all) != 0 {
			t.Errorf("the end of the probing is told as a failure: %+v", l.all)
		}
	})
}

func TestADisabledProbeDoesNotRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(pass)
		probes := every(10*time.Second, "on", "observed", "off")
		probes[1].Mode, probes[2].Mode = api.ModeObserve, api.ModeDisabled
		l.run(t, 15*time.Second, probes...)
		if len(l.runs["on"]) != 2 || len(l.runs["observed"]) != 2 || l.runs["off"] != nil {
			t.Errorf("%v", l.runs)
		}
	})
}

func TestRunWithoutProbesWaitsForItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		newLab(pass).run(t, time.Minute)
		if took := time.Since(start); took != time.Minute {
			t.Errorf("it returned after %v", took)
		}
	})
}

func TestAFailureHasAShortReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(func(context.Context, api.Probe) error { return errors.New(strings.Repeat("ü", 1000)) })
		l.run(t, time.Second, every(time.Minute, "a")...)
		if r := l.all[0]; r.Status != api.ProbeFail || len(r.Reason) > maxReason || !slices.Equal([]rune(r.Reason)[:2], []rune("üü")) || r.At.IsZero() {
			t.Errorf("%+v", r)
		}
	})
}
