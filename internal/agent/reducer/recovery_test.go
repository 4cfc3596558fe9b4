package reducer

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
	"nixfleet.dev/nixfleet/internal/agent/activation/activationtest"
)

// rebootable is a machine that has closures deferred to a reboot, and can be rebooted by the agent.
type rebootable struct {
	activation.Backend
	reboots *atomic.Int32
	defers  bool
}

func (m rebootable) DeferFor(context.Context, string, []string) ([]string, error) {
	if !m.defers {
		return nil, nil
	}
	return []string{"kernel"}, nil
}

func (m rebootable) Reboot(context.Context) error { m.reboots.Add(1); return nil }

// deferring makes the lab's machine one that defers every closure.
func (l *lab) deferring() *atomic.Int32 {
	reboots := new(atomic.Int32)
	l.options = func(o *Options) { o.Backend = rebootable{o.Backend, reboots, true} }
	return reboots
}

// deferred takes the host to Deferred.
func (l *lab) deferred() (reboots *atomic.Int32, policy api.Policy) {
	reboots = l.deferring()
	policy = soaking(time.Minute)
	policy.Reboot = &api.Reboot{Mode: "window"}
	l.cp.give(activate(rollout1, closureB, policy))
	l.untilState(rollout1, api.Deferred)
	return reboots, policy
}

// rebootStarted takes it on to where the agent has told the machine to reboot.
func (l *lab) rebootStarted() *atomic.Int32 {
	reboots, policy := l.deferred()
	o := activate(rollout1, closureB, policy)
	o.Action = api.ActionReboot
	l.cp.give(o)
	l.until("the machine was told to reboot", time.Minute, func() bool { return reboots.Load() == 1 })
	return reboots
}

// inSwitch takes the host to the middle of the switch to closure b, and kills the agent there.
func (l *lab) inSwitch(s activationtest.Script) {
	l.machine.Script(closureB, s)
	l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
	l.until("the switch runs", time.Minute, func() bool { return len(l.machine.Switches()) == 1 })
	l.kill()
}

// inSoak takes the host to Soaking, and kills the agent there.
func (l *lab) inSoak() {
	l.cp.give(activate(rollout1, closureB, soaking(10*time.Minute)))
	l.untilState(rollout1, api.Soaking)
	l.kill()
}

// inRollback takes the host to Reverting from a failed switch to closure b, with the way back as in s,
// and kills the agent once that switch was begun.
func (l *lab) inRollback(s activationtest.Script) {
	l.machine.Script(closureB, activationtest.Script{ExitCode: 1})
	l.machine.Script(closureA, s)
	l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
	l.until("the way back is begun", time.Minute, func() bool { return len(l.machine.Switches()) == 2 })
	l.kill()
}

// wantEnd runs the agent to the state and checks what the machine was made to do meanwhile.
func (l *lab) wantEnd(state api.HostState, switches ...string) {
	l.t.Helper()
	l.untilState(rollout1, state)
	if got := l.machine.Switches(); !slices.Equal(got, switches) {
		l.t.Errorf("switches to %q, not %q", got, switches)
	}
}

func (l *lab) wantFailure(code api.Code) {
	l.t.Helper()
	if got := l.cp.failure(rollout1); got != code {
		l.t.Errorf("the failure is %q, not %q", got, code)
	}
}

func (l *lab) wantKind(kind api.EventKind, times int) {
	l.t.Helper()
	n := 0
	for _, k := range l.cp.kinds() {
		if k == kind {
			n++
		}
	}
	if n != times {
		l.t.Errorf("%d %s, not %d", n, kind, times)
	}
}

// TestRecovery has the rows of the table in design/agent.md, "Restart and recovery", as its subtests:
// what the journal says, what the machine shows.
func TestRecovery(t *testing.T) {
	rows := []struct {
		row  string
		test func(*lab)
	}{
		{"nothing, anything: wait for a dispatch", func(l *lab) {
			l.machine.Set(closureC, closureB)
			l.start()
			sleep(time.Hour)
			if _, ok := l.agent.NextBatch(); ok || len(l.machine.Switches()) > 0 {
				l.t.Error("a new agent did something by itself")
			}
		}},
		{"Activating with the profile not set: go on from preflight", func(l *lab) {
			l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
			o, _ := l.cp.offered()
			l.cp.answer(false)
			a := l.start()
			o.PreviousClosure = closureA
			if answer, err := a.Offer(l.t.Context(), o); err != nil || answer.Kind != Accepted {
				l.t.Fatal(answer, err)
			}
			sleep(time.Minute)
			l.kill()
			l.cp.answer(true)
			l.wantEnd(api.HostConverged, closureB)
		}},
		{"Activating, switch begun, still running: go on watching it", func(l *lab) {
			l.inSwitch(activationtest.Script{Takes: 10 * time.Minute})
			l.wantEnd(api.HostConverged, closureB)
		}},
		{"Activating, switch begun, a recorded exit code of 0: judge it", func(l *lab) {
			l.inSwitch(activationtest.Script{Takes: time.Minute})
			sleep(5 * time.Hour) // longer than activationTimeout: the result counts, however late
			l.wantEnd(api.HostConverged, closureB)
		}},
		{"Activating, switch begun, a recorded exit code of 1: judge it", func(l *lab) {
			l.inSwitch(activationtest.Script{Takes: time.Minute, ExitCode: 1})
			sleep(time.Hour)
			l.wantEnd(api.Reverted, closureB, closureA)
			l.wantFailure(api.CodeSwitchFailed)
		}},
		{"Activating, switch begun, on target after a new boot: confirm, ActivationCompleted", func(l *lab) {
			l.inSwitch(activationtest.Script{Takes: time.Hour})
			l.machine.Restart("")
			l.wantEnd(api.HostConverged, closureB)
		}},
		{"Activating, switch begun, same boot, no exit code: switch again", func(l *lab) {
			l.inSwitch(activationtest.Script{Takes: time.Minute, Dies: 1})
			sleep(2 * time.Minute)
			l.wantEnd(api.HostConverged, closureB, closureB)
		}},
		{"Activating, switch begun, same boot, no exit code: three times, then switch-failed", func(l *lab) {
			l.inSwitch(activationtest.Script{Takes: time.Minute, Dies: 9})
			sleep(2 * time.Minute)
			l.wantEnd(api.Reverted, closureB, closureB, closureB, closureA)
			l.wantFailure(api.CodeSwitchFailed)
		}},
		{"Activating, switch begun, new boot, running the previous closure: verify-mismatch", func(l *lab) {
			l.inSwitch(activationtest.Script{Takes: time.Hour})
			l.machine.Restart(closureA)
			l.wantEnd(api.Reverted, closureB, closureA)
			l.wantFailure(api.CodeVerifyMismatch)
		}},
		{"Activating after RebootStarted, same boot: reboot again, once", func(l *lab) {
			reboots := l.rebootStarted()
			l.restart()
			l.until("it was rebooted again", time.Minute, func() bool { return reboots.Load() == 2 })
			l.restart()
			l.untilState(rollout1, api.Reverted)
			if n := reboots.Load(); n != 2 {
				l.t.Errorf("rebooted %d times", n)
			}
		}},
		{"Activating after RebootStarted, new boot, on target: confirm, ActivationCompleted", func(l *lab) {
			l.rebootStarted()
			l.kill()
			l.machine.Restart("")
			l.wantEnd(api.HostConverged)
			l.wantKind(api.ActivationCompleted, 1)
		}},
		{"Activating after RebootStarted, new boot, not target: verify-mismatch", func(l *lab) {
			l.rebootStarted()
			l.kill()
			l.machine.Restart(closureA)
			l.wantEnd(api.Reverted, closureA)
			l.wantFailure(api.CodeVerifyMismatch)
		}},
		{"Deferred, same boot: stay", func(l *lab) {
			l.deferred()
			l.restart()
			sleep(24 * time.Hour)
			l.wantEnd(api.Deferred)
		}},
		{"Deferred, new boot, on target: confirm, ActivationCompleted", func(l *lab) {
			l.deferred()
			l.kill()
			l.machine.Restart("")
			l.wantEnd(api.HostConverged)
		}},
		{"Deferred, new boot, not target: verify-mismatch", func(l *lab) {
			l.deferred()
			l.kill()
			l.machine.Restart(closureA)
			l.wantEnd(api.Reverted, closureA)
			l.wantFailure(api.CodeVerifyMismatch)
		}},
		{"Soaking, on target: re-read the probes, timers count from the recorded times", func(l *lab) {
			l.inSoak()
			sleep(9 * time.Minute)
			began := time.Now()
			l.wantEnd(api.HostConverged, closureB)
			if took := time.Since(began); took > 2*time.Minute {
				l.t.Errorf("the soak began anew: it took %v more", took)
			}
			l.wantKind(api.ProbesDeclared, 1)
		}},
		{"Soaking, something else: changed-locally", func(l *lab) {
			l.inSoak()
			l.machine.Set(closureC, closureC)
			l.wantEnd(api.Failed, closureB)
			l.wantFailure(api.CodeChangedLocally)
			if _, ok := l.agent.View().Quarantined(closureB); ok {
				l.t.Error("the closure is quarantined")
			}
		}},
		{"Reverting, on the previous closure, nothing running: RollbackCompleted", func(l *lab) {
			l.inRollback(activationtest.Script{Takes: time.Minute})
			sleep(time.Hour)
			l.wantEnd(api.Reverted, closureB, closureA)
			l.wantKind(api.RollbackCompleted, 1)
		}},
		{"Reverting, taken back by someone before it was begun: RollbackCompleted", func(l *lab) {
			l.machine.Script(closureB, activationtest.Script{ExitCode: 1})
			l.killAfterEvent(api.ActivationFailed)
			l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
			for l.start(); !l.agent.isDead(); sleep(time.Second) {
			}
			l.stop()
			l.machine.Set(closureA, closureA)
			l.wantEnd(api.Reverted, closureB)
		}},
		{"Reverting, otherwise: roll back again", func(l *lab) {
			l.inRollback(activationtest.Script{Takes: 10 * time.Minute})
			l.machine.Restart(closureC)
			l.wantEnd(api.Reverted, closureB, closureA, closureA)
			l.wantKind(api.RollbackStarted, 1)
		}},
		{"ended, anything: nothing to do", func(l *lab) {
			l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
			l.untilState(rollout1, api.HostConverged)
			l.kill()
			l.machine.Set(closureC, closureC)
			before := len(l.cp.kinds())
			l.start()
			sleep(24 * time.Hour)
			if got := len(l.cp.kinds()); got != before || len(l.machine.Switches()) != 1 {
				l.t.Errorf("%d new events, switches %q", got-before, l.machine.Switches())
			}
		}},
	}
	for _, row := range rows {
		t.Run(row.row, func(t *testing.T) { inBubble(t, row.test) })
	}
}

// killAfterEvent has the agent killed right after the record with the first event of the kind.
func (l *lab) killAfterEvent(kind api.EventKind) {
	l.options = func(o *Options) {
		l.options = nil
		o.Journal = &killingJournal{o.Journal, l.agent, kind}
	}
}

type killingJournal struct {
	Journal
	a    *agent
	kind api.EventKind
}

func (j *killingJournal) Append(record []byte) error {
	err := j.Journal.Append(record)
	if s, _ := replay([][]byte{record}); s != nil && err == nil {
		return nil // the first record, a snapshot
	}
	if hasEvent(record, j.kind) {
		j.a.mu.Lock()
		defer j.a.mu.Unlock()
		j.a.dead = true
		j.a.cancel(errKilled)
		return errKilled
	}
	return err
}

func TestAJournalThatCannotBeReadIsAnError(t *testing.T) {
	for _, record := range []string{
		`{`, `{"v":2}`, `{"v":1}`, `{"v":1,"snapshot":true,"journalId":7}`,
		`{"v":1,"snapshot":true,"journalId":"0","status":{"stable@1111111":{"record":{"state":"Activating"}}}}`,
	} {
		_, err := New(Options{Records: [][]byte{[]byte(record)}})
		if !errors.Is(err, ErrUndecodable) {
			t.Errorf("a journal of %s: %v", record, err)
		}
	}
}

func TestAnEmptyJournalBeginsWithANewID(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.inSoak()
		first := l.start().View().JournalID
		if again := l.restart().View().JournalID; again != first || len(first) != 32 {
			t.Errorf("the journal's id went from %q to %q", first, again)
		}
		l.kill()
		l.disk.records = nil
		v := l.start().View()
		if v.JournalID == first || len(v.JournalID) != 32 || len(v.LastSeq) != 0 {
			t.Errorf("after losing the journal %q there is %+v", first, v)
		}
	})
}

func TestAJournalThatCannotBeWrittenEndsTheReducer(t *testing.T) {
	inBubble(t, func(l *lab) {
		full := errors.New("disk full")
		l.options = func(o *Options) { o.Journal = &failingJournal{Journal: o.Journal, err: full} }
		a := l.start()
		_, err := a.Offer(l.t.Context(), activate(rollout1, closureB, soaking(time.Minute)))
		if !errors.Is(err, full) {
			t.Errorf("Offer returned %v", err)
		}
		sleep(time.Second)
		if !errors.Is(a.err, full) {
			t.Errorf("Run returned %v", a.err)
		}
		if _, ok := a.NextBatch(); ok {
			t.Error("an event that is not durable would be sent")
		}
		if _, err := a.Offer(l.t.Context(), Offer{}); !errors.Is(err, ErrEnded) {
			t.Errorf("a call afterwards returned %v", err)
		}
		a.cancel(nil)
		a.wg.Wait()
		l.agent = nil
	})
}

// failingJournal fails every Append but the first.
type failingJournal struct {
	Journal
	err  error
	some bool
}

func (j *failingJournal) Append(record []byte) error {
	if j.some {
		return j.err
	}
	j.some = true
	return j.Journal.Append(record)
}
