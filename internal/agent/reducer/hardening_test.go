package reducer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation/activationtest"
	"nixfleet.dev/nixfleet/internal/hoststate"
)

// jumps has the reducer find, from its next step on, that the wall clock ran ahead of the monotonic one.
func (l *lab) jumps(by func() time.Duration) {
	l.t.Helper()
	err := l.agent.do(l.t.Context(), func(*tx) error {
		l.agent.meter.monotonic = func(anchor, at time.Time) time.Duration { return at.Sub(anchor) - by() }
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

func TestADiskThatFillsUpWhileTheMachineSleepsEndsTheReducer(t *testing.T) {
	inBubble(t, func(l *lab) {
		full := errors.New("disk full")
		disk := &fillable{}
		l.probed(api.ModeObserve, 10*time.Minute)
		quiet := l.options
		l.options = func(o *Options) { quiet(o); disk.Journal = o.Journal; o.Journal = disk }
		l.restart()
		sleep(time.Minute)
		var slept atomic.Int64
		l.jumps(func() time.Duration { return time.Duration(slept.Load()) })
		disk.fill(full)
		slept.Store(int64(time.Hour))
		sleep(20 * time.Minute) // the soak's end is a step that nobody asked for
		a := l.agent
		if !errors.Is(a.err, full) {
			t.Errorf("Run returned %v", a.err)
		}
		if _, err := a.Offer(l.t.Context(), Offer{}); !errors.Is(err, ErrEnded) {
			t.Errorf("a call afterwards returned %v", err)
		}
		a.cancel(nil)
		a.wg.Wait()
		l.agent = nil
	})
}

// fillable is a journal whose disk can fill up.
type fillable struct {
	Journal
	mu  sync.Mutex
	err error
}

func (j *fillable) fill(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.err = err
}

func (j *fillable) Append(record []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return j.err
	}
	return j.Journal.Append(record)
}

func TestAFailureThatIsNoTextIsStillRecordedAndGoneBackFrom(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.machine.Script(closureB, activationtest.Script{Takes: time.Second, ExitCode: 1, Stderr: "caf\xe9\n"})
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.wantEnd(api.Reverted, closureB, closureA)
		if e := l.event(api.ActivationFailed); e.StderrTail != "caf\ufffd\n" {
			t.Errorf("what was printed: %q", e.StderrTail)
		}
	})
}

func TestASwitchThatNeverBeganIsNotTheClosuresFault(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.killOn = "after set profile"
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.start()
		sleep(time.Minute)
		l.stop()
		sleep(time.Hour) // longer than activationTimeout
		l.wantEnd(api.Reverted, closureA)
		if e := l.event(api.ActivationFailed); e.Reason != api.CodeTimeout || e.Phase != api.PhaseSetProfile || !e.Changed {
			t.Errorf("%+v", e)
		}
		l.wantQuarantined(closureB, false)
		l.wantOn(closureA)
	})
}

func TestAHostThatWasOffWhileItConfirmedIsGivenTimeToConfirm(t *testing.T) {
	for name, boot := range map[string]func(*lab){
		"the agent alone": func(*lab) {},
		"the machine":     func(l *lab) { l.machine.Restart("") },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(l *lab) {
				l.inConfirm()
				boot(l)
				sleep(time.Hour) // longer than confirmTimeout
				l.start()
				sleep(30 * time.Second) // the network comes up
				l.cp.answer(true)
				l.wantEnd(api.HostConverged, closureB)
			})
		})
	}
}

func TestAHostThatIsCutOffGoesBackHoweverOftenItIsStarted(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.inConfirm()
		for range 4 {
			l.machine.Restart("")
			l.start()
			sleep(3 * time.Minute)
			if l.agent.View().Rollouts[rollout1].State == api.Reverting {
				break
			}
			l.kill()
		}
		l.until("going back", time.Minute, func() bool { return len(l.machine.Switches()) == 2 })
		l.cp.answer(true)
		l.wantEnd(api.Reverted, closureB, closureA)
		l.wantFailure(api.CodeConfirmTimeout)
	})
}

// inConfirm takes the host to where it has switched to closure b and no control plane answers, and
// kills the agent there.
func (l *lab) inConfirm() {
	l.machine.Script(closureB, activationtest.Script{Takes: time.Minute})
	l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
	l.until("switching", time.Minute, func() bool { return len(l.machine.Switches()) == 1 })
	l.cp.answer(false)
	l.until("switched", 5*time.Minute, func() bool { running, _ := l.machine.Links(); return running == closureB })
	sleep(30 * time.Second)
	l.kill()
}

func TestWhatSomeoneSwitchedToWhileTheAgentWaitedIsNoThirdClosure(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.waiting()
		l.machine.Set(closureC, closureC)
		l.cp.answer(true)
		l.wantEnd(api.HostConverged, closureB)
		l.wantQuarantined(closureB, false)
	})
}

func TestAClockThatIsOnlySetAfterTheBootHoldsNoTimerForEver(t *testing.T) {
	// A machine without a battery for its clock comes up in 1970, and is told the time a little later.
	completed := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	now := completed.Add(5 * time.Minute)
	s := newState("journal")
	s.rollouts[rollout1] = &rollout{
		terms: terms{Policy: soaking(10 * time.Minute)},
		status: status{
			Record: hoststate.Record{State: api.Soaking, CompletedAt: completed, SoakEndsAt: completed.Add(10 * time.Minute)},
			Soak: &soak{Until: completed.Add(10 * time.Minute), Watched: map[string]watched{
				"up": {Mode: api.ModeEnforce, Status: api.ProbeFail, Fails: 2, FailingSince: completed, Reported: api.ProbePass, ReportedAt: completed},
			}},
		},
	}
	tx := newTx(s, now, "boot-2")
	tx.shift(56 * 365 * 24 * time.Hour)
	st, _ := tx.status(rollout1)
	if left := st.Soak.Until.Sub(now); left > 10*time.Minute {
		t.Errorf("%v of a soak of ten minutes are left", left)
	}
	w := st.Soak.Watched["up"]
	if w.FailingSince.After(now) || w.ReportedAt.After(now) {
		t.Errorf("it fails since %v and was reported at %v, and now it is %v", w.FailingSince, w.ReportedAt, now)
	}
}

// hung is a Probes whose probes do not end: a command that hangs in the kernel, on a disk that is gone.
type hung struct {
	*scripted
	release chan struct{}
}

func (h hung) Run(ctx context.Context, set api.HealthChecks, report func(ProbeRun)) error {
	_ = h.scripted.Run(ctx, set, report)
	<-h.release
	return nil
}

func TestProbesThatDoNotEndHoldUpNoRollback(t *testing.T) {
	inBubble(t, func(l *lab) {
		h := hung{&scripted{mode: api.ModeEnforce, failed: make(chan bool)}, make(chan struct{})}
		defer close(h.release)
		l.options = func(o *Options) { o.Probes = h }
		l.cp.give(activate(rollout1, closureB, soaking(time.Hour)))
		l.until("probes are declared", time.Minute, func() bool { return l.event(api.ProbesDeclared).Kind != "" })
		h.fail()
		sleep(10 * time.Minute)
		h.fail()
		l.untilState(rollout1, api.Reverted)
		l.wantOn(closureA)
	})
}

func TestWhatIsKeptOfAHostileControlPlanesRolloutsHasACap(t *testing.T) {
	inBubble(t, func(l *lab) {
		s := newState("journal")
		long := strings.Repeat("\x00", 4096) // six times as long in JSON
		for i := range 10 {
			ro := &rollout{terms: terms{Policy: soaking(time.Minute)}}
			ro.status = status{Order: int64(i + 1), LastSeq: 60, AckedSeq: 60, Record: hoststate.Record{State: api.HostSuperseded}}
			if i%2 == 0 {
				ro.status.AckedSeq = 3
			}
			for n := range 60 {
				ro.events = append(ro.events, logged{N: int64(60*i + n), Event: api.Event{Seq: int64(n + 1), Kind: api.ActivationFailed, StderrTail: long}})
			}
			s.rollouts[fmt.Sprintf("stable@%07x", i)] = ro
		}
		s.global.Orders = 10
		record, err := json.Marshal(s.snapshot())
		if err != nil {
			t.Fatal(err)
		}
		l.disk.records = [][]byte{record}
		l.cp.answer(false) // it takes nothing
		l.start()
		if a := l.offer(activate(rollout1, closureB, soaking(time.Minute))); a.Kind != Accepted {
			t.Fatalf("%+v", a)
		}
		a := l.agent
		l.stop()
		kept := 0
		for id := range a.View().Rollouts {
			kept += a.state.size(id)
		}
		if kept > maxKept {
			t.Errorf("%d bytes of events are kept", kept)
		}
		if _, ok := a.View().Rollouts["stable@0000009"]; !ok {
			t.Error("the newest of the old rollouts is gone")
		}
	})
}

func TestOnlyAHigherAttemptWithAnOperatorsWordLiftsTheQuarantine(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.machine.Script(closureB, activationtest.Script{Takes: time.Second, ExitCode: 1})
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.untilState(rollout1, api.Reverted)
		l.machine.Script(closureB, activationtest.Script{Takes: time.Second})

		l.cp.give(activate(rollout2, closureB, soaking(time.Minute)))
		l.until("an answer", time.Minute, func() bool { return l.cp.answerKind() != 0 })
		if l.cp.last.Code != api.CodeQuarantined {
			t.Errorf("a quarantined closure in another rollout: %+v", l.cp.last)
		}
		again := activate(rollout1, closureB, soaking(time.Minute))
		again.AllowClosure = true
		if a := l.offer(again); a.Kind != Duplicate {
			t.Errorf("the word on the same attempt: %+v", a)
		}
		other := activate(rollout2, closureB, soaking(time.Minute))
		other.AllowClosure = true
		if a := l.offer(other); a.Code != api.CodeQuarantined {
			t.Errorf("the word on a first attempt: %+v", a)
		}
		again.Attempt, again.AllowClosure = 7, false
		if a := l.offer(again); a.Code != api.CodeQuarantined {
			t.Errorf("a higher attempt alone: %+v", a)
		}
		l.wantQuarantined(closureB, true)
		again.Attempt, again.AllowClosure = 2, true
		l.cp.give(again)
		l.untilState(rollout1, api.HostConverged)
		l.wantQuarantined(closureB, false)
	})
}
