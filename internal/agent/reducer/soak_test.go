package reducer

import (
	"context"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation/activationtest"
	"nixfleet.dev/nixfleet/internal/clock"
)

// scripted is a Probes whose one probe gives what it is told, when it is told.
type scripted struct {
	mode   string
	failed chan bool
}

func (s *scripted) Load(string) (api.HealthChecks, error) {
	return api.HealthChecks{Probes: []api.Probe{{Name: "up", Kind: api.ProbeTCP, Mode: s.mode}}}, nil
}

func (s *scripted) Run(ctx context.Context, set api.HealthChecks, report func(ProbeRun)) error {
	for {
		select {
		case failed := <-s.failed:
			run := ProbeRun{Probe: set.Probes[0], Status: api.ProbePass}
			if failed {
				run.Status, run.Reason = api.ProbeFail, "refused"
			}
			report(run)
		case <-ctx.Done():
			return nil
		}
	}
}

// probed takes the host to Soaking with a probe under the test's control.
func (l *lab) probed(mode string, soak time.Duration) *scripted {
	s := &scripted{mode: mode, failed: make(chan bool)}
	l.options = func(o *Options) { o.Probes = s }
	l.cp.give(activate(rollout1, closureB, activationtest.Policy(soak, api.RollbackAndHalt)))
	l.until("probes are declared", time.Minute, func() bool { return l.event(api.ProbesDeclared).Kind != "" })
	return s
}

func (s *scripted) fail() { s.give(true) }
func (s *scripted) pass() { s.give(false) }

// give gives a result, unless the probes have ended.
func (s *scripted) give(failed bool) {
	timer := clock.System{}.NewTimer(time.Millisecond)
	defer timer.Stop()
	select {
	case s.failed <- failed:
	case <-timer.C:
	}
	sleep(0)
}

func (l *lab) wantState(when string, want api.HostState) {
	l.t.Helper()
	if got := l.agent.View().Rollouts[rollout1].State; got != want {
		l.t.Errorf("%s the host is %s, not %s", when, got, want)
	}
}

func TestOneFailureIsNotSustained(t *testing.T) {
	inBubble(t, func(l *lab) {
		p := l.probed(api.ModeEnforce, time.Hour)
		p.fail()
		sleep(10 * time.Minute)
		l.wantState("after one failure", api.Soaking)
		p.fail()
		sleep(time.Second)
		l.wantState("after a second one, ten minutes later", api.Reverting)
	})
}

func TestAFailureIsSustainedOnceTheThresholdHasPassed(t *testing.T) {
	inBubble(t, func(l *lab) {
		p := l.probed(api.ModeEnforce, time.Hour)
		p.fail()
		p.fail()
		sleep(59 * time.Second)
		l.wantState("before the threshold", api.Soaking)
		sleep(2 * time.Second)
		l.wantState("after it", api.Reverting)
		l.untilState(rollout1, api.Reverted)
		if e := l.event(api.HealthFailed); len(e.FailingProbes) != 1 || e.SustainedFor.Std() != time.Minute {
			t.Errorf("%+v", e)
		}
	})
}

func TestAPassBeginsTheThresholdAnew(t *testing.T) {
	inBubble(t, func(l *lab) {
		p := l.probed(api.ModeEnforce, time.Hour)
		p.fail()
		p.fail()
		sleep(50 * time.Second)
		p.pass()
		p.fail()
		p.fail()
		sleep(50 * time.Second)
		l.wantState("100 s after the first failure, 50 s after the pass", api.Soaking)
		sleep(11 * time.Second)
		l.wantState("a minute after the pass", api.Reverting)
	})
}

func TestARestartDoesNotBeginTheThresholdAnew(t *testing.T) {
	inBubble(t, func(l *lab) {
		p := l.probed(api.ModeEnforce, time.Hour)
		p.fail()
		p.fail()
		sleep(30 * time.Second)
		l.restart()
		sleep(29 * time.Second)
		l.wantState("before the threshold", api.Soaking)
		sleep(2 * time.Second)
		l.wantState("after it", api.Reverting)
	})
}

func TestTimeAsleepIsTakenOffTheTimers(t *testing.T) {
	inBubble(t, func(l *lab) {
		p := l.probed(api.ModeEnforce, 10*time.Minute)
		p.fail()
		p.fail()
		l.stop()
		l.start()
		sleep(time.Second)
		var slept time.Duration
		if err := l.agent.do(l.t.Context(), func(*tx) error {
			l.agent.meter.monotonic = func(anchor, at time.Time) time.Duration { return at.Sub(anchor) - slept }
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		sleep(30 * time.Second)
		if err := l.agent.do(l.t.Context(), func(*tx) error { slept = 8 * time.Hour; return nil }); err != nil {
			t.Fatal(err)
		}
		sleep(8 * time.Hour) // in the bubble the timers fire during it, and see the gap
		l.wantState("asleep for most of that time", api.Soaking)
		until := l.agent.state.rollouts[rollout1].status.Soak.Until
		if left := time.Until(until); left < 9*time.Minute || left > 18*time.Hour {
			t.Errorf("%v of the soak are left", left)
		}
	})
}

func TestAnObservedProbeHoldsNothing(t *testing.T) {
	inBubble(t, func(l *lab) {
		p := l.probed(api.ModeObserve, 10*time.Minute)
		p.fail()
		p.fail()
		p.fail()
		sleep(9 * time.Minute)
		l.wantState("with an observed probe failing", api.Soaking)
		l.untilState(rollout1, api.HostConverged)
	})
}

func TestAnEnforceProbeThatHasNotRunHoldsConvergence(t *testing.T) {
	inBubble(t, func(l *lab) {
		p := l.probed(api.ModeEnforce, time.Minute)
		sleep(time.Hour)
		l.wantState("without a result", api.Soaking)
		p.pass()
		l.untilState(rollout1, api.HostConverged)
	})
}

func TestAProbeThatFailsAtTheEndOfTheSoakHoldsConvergence(t *testing.T) {
	inBubble(t, func(l *lab) {
		p := l.probed(api.ModeEnforce, 10*time.Minute)
		p.pass()
		sleep(10*time.Minute - 5*time.Second)
		p.fail() // once, so not sustained; reported at once, since the last report is long ago
		sleep(time.Minute)
		l.wantState("with the newest result a failure", api.Soaking)
		p.pass()
		l.untilState(rollout1, api.HostConverged)
	})
}

func TestAFailureThatIsNotReportedYetHoldsConvergence(t *testing.T) {
	inBubble(t, func(l *lab) {
		p := l.probed(api.ModeEnforce, 20*time.Second)
		p.pass()
		sleep(10 * time.Second)
		p.fail() // 10 s after the pass was reported, so not reported before the soak's end
		sleep(15 * time.Second)
		l.wantState("at the soak's end", api.Soaking)
		p.pass()
		l.untilState(rollout1, api.HostConverged)
	})
}

func TestProbeResultsAreAtMostOneEvery30sAndTheLastIsNeverLost(t *testing.T) {
	inBubble(t, func(l *lab) {
		p := l.probed(api.ModeEnforce, time.Hour)
		p.pass()
		for i := range 100 {
			sleep(time.Second)
			if i%2 == 0 {
				p.fail()
			} else {
				p.pass()
			}
		}
		p.fail()
		sleep(31 * time.Second)
		p.pass()
		sleep(31 * time.Second)
		var last api.Event
		n := 0
		for _, e := range l.cp.events {
			if e.Kind != api.ProbeResult {
				continue
			}
			if n++; n > 1 && e.At.Sub(last.At) < reportEvery {
				t.Errorf("results at %v and %v", last.At, e.At)
			}
			if e.Status == last.Status {
				t.Errorf("%s again at %v, which is no change", e.Status, e.At)
			}
			last = e
		}
		if n < 3 || n > 7 || last.Status != api.ProbePass {
			t.Errorf("%d results, the last is %s", n, last.Status)
		}
	})
}

func TestRunsThatChangeNothingAreNotJournalled(t *testing.T) {
	inBubble(t, func(l *lab) {
		p := l.probed(api.ModeEnforce, 24*time.Hour)
		p.pass()
		sleep(time.Minute)
		before := len(l.disk.read())
		for range 100 {
			sleep(15 * time.Second)
			p.pass()
		}
		if got := len(l.disk.read()); got != before {
			t.Errorf("%d records of runs that changed nothing", got-before)
		}
	})
}

func TestAHostTakenAwayByHandIsNobodysFailure(t *testing.T) {
	inBubble(t, func(l *lab) {
		p := l.probed(api.ModeEnforce, time.Hour)
		l.machine.Set(closureC, closureC)
		p.fail()
		p.fail()
		l.untilState(rollout1, api.Failed)
		l.wantFailure(api.CodeChangedLocally)
		l.wantQuarantined(closureB, false)
		l.wantOn(closureC)
	})
}
