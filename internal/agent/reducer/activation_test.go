package reducer

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
	"nixfleet.dev/nixfleet/internal/agent/activation/activationtest"
	"nixfleet.dev/nixfleet/internal/clock"
)

// waiting takes the host to where it waits for the control plane before it touches anything.
func (l *lab) waiting() {
	l.t.Helper()
	l.health.set(closureB, false)
	l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
	o, _ := l.cp.offered()
	l.cp.answer(false)
	o.PreviousClosure = closureA
	if a, err := l.start().Offer(l.t.Context(), o); err != nil || a.Kind != Accepted {
		l.t.Fatalf("%+v, %v", a, err)
	}
	sleep(time.Minute)
}

func (l *lab) wantOn(closure string) {
	l.t.Helper()
	if running, boot := l.machine.Links(); running != closure || boot != closure {
		l.t.Errorf("the machine runs %q and boots %q, not %q", running, boot, closure)
	}
}

func (l *lab) wantQuarantined(closure string, want bool) {
	l.t.Helper()
	if code, got := l.agent.View().Quarantined(closure); got != want {
		l.t.Errorf("%s quarantined: %v (%s)", closure, got, code)
	}
}

func (l *lab) event(kind api.EventKind) (found api.Event) {
	l.cp.mu.Lock()
	defer l.cp.mu.Unlock()
	for _, e := range l.cp.events {
		if e.Kind == kind {
			found = e
		}
	}
	return found
}

func TestNothingIsTouchedWhileTheControlPlaneDoesNotAnswer(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.waiting()
		sleep(40 * time.Minute)
		if len(l.machine.Switches()) > 0 {
			t.Error("it switched")
		}
		l.wantOn(closureA)
		l.cp.answer(true)
		l.untilState(rollout1, api.Reverted)
		if e := l.event(api.ActivationFailed); e.Reason != api.CodeTimeout || e.Changed {
			t.Errorf("%+v", e)
		}
		l.wantKind(api.RollbackStarted, 0)
		l.wantQuarantined(closureB, false)
	})
}

func TestAWithdrawnActivationStopsAndCanComeAgain(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.waiting()
		l.cp.withdraw(rollout1)
		l.cp.answer(true)
		l.until("it stopped", time.Minute, func() bool { return l.event(api.ActivationFailed).Kind != "" })
		if e := l.event(api.ActivationFailed); e.Reason != api.CodeCancelled || e.Changed {
			t.Errorf("%+v", e)
		}
		l.wantOn(closureA)
		l.cp.mu.Lock()
		l.cp.withdrawn = nil
		l.cp.mu.Unlock()
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.untilState(rollout1, api.HostConverged)
	})
}

func TestAWithdrawalAfterTheProfileIsSetChangesNothing(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.machine.Script(closureB, activationtest.Script{Takes: time.Minute})
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.until("switching", time.Minute, func() bool { return len(l.machine.Switches()) == 1 })
		if err := l.agent.Withdraw(l.t.Context(), []string{rollout1}); err != nil {
			t.Error(err)
		}
		l.untilState(rollout1, api.HostConverged)
	})
}

func TestAWithdrawalAfterAKillRightAfterTheProfileWasSetChangesNothing(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.killOn = "after set profile"
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		for l.start(); !l.agent.isDead(); sleep(time.Second) {
		}
		l.stop()
		if err := l.start().Withdraw(l.t.Context(), []string{rollout1}); err != nil {
			t.Error(err)
		}
		l.untilState(rollout1, api.HostConverged)
	})
}

func TestAnActivationWhoseAckWasRefusedStops(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.cp.refuse = api.DispatchAck
		l.waiting()
		l.cp.mu.Lock()
		l.cp.records[rollout1].State = api.HostSuperseded
		l.cp.mu.Unlock()
		l.cp.answer(true)
		l.until("it stopped", time.Minute, func() bool { return l.event(api.ActivationFailed).Reason == api.CodeCancelled })
		sleep(time.Hour)
		l.wantOn(closureA)
	})
}

func TestWhatTimeCanMendIsTriedAgain(t *testing.T) {
	inBubble(t, func(l *lab) {
		away := &activation.Error{Code: api.CodeRealiseFailed, Temporary: true}
		l.machine.FailRealise(away, errors.New("connection reset"), away)
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.untilState(rollout1, api.HostConverged)
		if keep := l.machine.Protected(); !slices.Equal(keep, []string{closureB, closureA}) {
			t.Errorf("protected from collection: %q", keep)
		}
	})
}

func TestWhatTimeCannotMendFailsWithItsReason(t *testing.T) {
	for _, c := range []struct {
		code       api.Code
		quarantine bool
	}{
		{api.CodeRealiseFailed, false}, {api.CodeDiskFull, false}, {api.CodeClosureSignatureInvalid, true},
	} {
		t.Run(string(c.code), func(t *testing.T) {
			inBubble(t, func(l *lab) {
				l.machine.FailRealise(&activation.Error{Code: c.code})
				l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
				l.wantEnd(api.Reverted)
				l.wantFailure(c.code)
				l.wantQuarantined(closureB, c.quarantine)
			})
		})
	}
}

func TestACacheThatStaysAwayIsRealiseFailed(t *testing.T) {
	inBubble(t, func(l *lab) {
		for range 200 {
			l.machine.FailRealise(&activation.Error{Code: api.CodeRealiseFailed, Temporary: true})
		}
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		began := time.Now()
		l.wantEnd(api.Reverted)
		l.wantFailure(api.CodeRealiseFailed)
		if took := time.Since(began); took < 29*time.Minute || took > 31*time.Minute {
			t.Errorf("it gave up after %v", took)
		}
	})
}

func TestAThirdClosureIsAMismatch(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.machine.Script(closureB, activationtest.Script{Takes: time.Hour, Shows: closureC})
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.wantEnd(api.Reverted, closureB, closureA)
		l.wantFailure(api.CodeVerifyMismatch)
		l.wantQuarantined(closureB, true)
	})
}

func TestASystemThatCannotReachTheControlPlaneGoesBack(t *testing.T) {
	inBubble(t, func(l *lab) {
		policy := activationtest.Policy(time.Minute, api.Halt) // whatever the policy
		l.machine.Script(closureB, activationtest.Script{Takes: time.Minute})
		l.cp.give(activate(rollout1, closureB, policy))
		l.until("switching", time.Minute, func() bool { return len(l.machine.Switches()) == 1 })
		l.cp.answer(false)
		l.until("going back", time.Hour, func() bool { return len(l.machine.Switches()) == 2 })
		l.cp.answer(true)
		l.wantEnd(api.Reverted, closureB, closureA)
		l.wantFailure(api.CodeConfirmTimeout)
		l.wantQuarantined(closureB, true)
		if e := l.event(api.RollbackStarted); e.Cause != api.CauseConfirm {
			t.Errorf("cause %q", e.Cause)
		}
	})
}

func TestAClosureIsExoneratedWhenThePreviousSystemIsCutOffToo(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.machine.Script(closureB, activationtest.Script{Takes: time.Minute})
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.until("switching", time.Minute, func() bool { return len(l.machine.Switches()) == 1 })
		l.cp.answer(false)
		l.until("going back", time.Hour, func() bool { return len(l.machine.Switches()) == 2 })
		sleep(time.Minute)
		l.restart() // the time to confirm is not given anew
		sleep(5 * time.Minute)
		l.cp.answer(true)
		l.wantEnd(api.Reverted, closureB, closureA)
		l.wantQuarantined(closureB, false)
		if e := l.event(api.RollbackCompleted); e.Reason != api.CodeConfirmTimeout {
			t.Errorf("reason %q", e.Reason)
		}
	})
}

func TestAHostOnItsTargetSwitchesNothingAndSoaks(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.cp.give(activate(rollout1, closureA, soaking(10*time.Minute)))
		began := time.Now()
		l.wantEnd(api.HostConverged)
		if e := l.event(api.ActivationStarted); e.Method != api.MethodNone {
			t.Errorf("method %q", e.Method)
		}
		if took := time.Since(began); took < 10*time.Minute {
			t.Errorf("it soaked for %v", took)
		}
	})
}

func TestAHostWithoutAPreviousClosureCannotGoBack(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.machine.Set("", "")
		l.health.set(closureB, true)
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.wantEnd(api.Failed, closureB)
		l.wantOn(closureB)
	})
}

func TestUnderHaltAFailingHostStaysWhereItIs(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.health.set(closureB, true)
		l.cp.give(activate(rollout1, closureB, activationtest.Policy(time.Minute, api.Halt)))
		l.wantEnd(api.Failed, closureB)
		sleep(time.Hour)
		l.wantOn(closureB)
	})
}

func TestASwitchThatHangsIsStoppedAlsoUnderHalt(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.machine.Script(closureB, activationtest.Script{Hangs: true})
		l.cp.give(activate(rollout1, closureB, activationtest.Policy(time.Minute, api.Halt)))
		l.wantEnd(api.Failed, closureB)
		l.wantFailure(api.CodeTimeout)
		l.wantQuarantined(closureB, true)
		l.machine.Wait() // for ever, if it still ran
	})
}

func TestARollbackIsTriedThreeTimes(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.machine.Script(closureB, activationtest.Script{Takes: time.Second, ExitCode: 1})
		l.machine.Script(closureA, activationtest.Script{Takes: time.Second, ExitCode: 7})
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.wantEnd(api.Failed, closureB, closureA, closureA, closureA)
		if e := l.event(api.RollbackFailed); e.ExitCode != 7 || e.Reason != api.CodeSwitchFailed {
			t.Errorf("%+v", e)
		}
	})
}

func TestShutdownTakesLessThanTwoSeconds(t *testing.T) {
	moments := map[string]func(*lab){
		"idle":                      func(l *lab) { l.start(); sleep(time.Minute) },
		"waiting for the ack":       func(l *lab) { l.waiting() },
		"in a back-off of realise":  func(l *lab) { l.realiseFails(); sleep(5 * time.Minute) },
		"switching":                 func(l *lab) { l.switching() },
		"confirming":                func(l *lab) { l.switching(); l.cp.answer(false); sleep(2 * time.Minute) },
		"soaking":                   func(l *lab) { l.inSoak(); l.start(); sleep(time.Minute) },
		"rolling back in a hurry":   func(l *lab) { l.inRollback(activationtest.Script{Takes: time.Minute}); l.start() },
		"with the health path away": func(l *lab) { l.noHealth(); l.inSoak(); l.start(); sleep(time.Second) },
	}
	for name, moment := range moments {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(l *lab) {
				moment(l)
				began := time.Now()
				l.stop()
				if took := time.Since(began); took >= 2*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func (l *lab) realiseFails() {
	for range 200 {
		l.machine.FailRealise(errors.New("connection refused"))
	}
	l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
	l.start()
}

func (l *lab) switching() {
	l.machine.Script(closureB, activationtest.Script{Takes: time.Minute})
	l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
	l.until("switching", time.Minute, func() bool { return len(l.machine.Switches()) == 1 })
}

// noHealth makes a backend that cannot say where the health checks are.
func (l *lab) noHealth() {
	l.options = func(o *Options) { o.Backend = withoutHealth{o.Backend} }
}

type withoutHealth struct{ activation.Backend }

func (withoutHealth) Health(context.Context) (string, error) { return "", errors.New("no such link") }

func TestHealthChecksThatCannotBeReadAreAFailure(t *testing.T) {
	cases := map[string]func(*lab){
		"the file is broken":       func(l *lab) { l.health.broken = errors.New("health-checks.json: is empty") },
		"the file cannot be found": (*lab).noHealth,
	}
	for name, setup := range cases {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(l *lab) {
				setup(l)
				l.cp.give(activate(rollout1, closureB, soaking(time.Hour)))
				l.wantEnd(api.Reverted, closureB, closureA)
				l.wantFailure(api.CodeHealthFailed)
			})
		})
	}
}

func TestProgressComesAtMostEveryTenSeconds(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.options = func(o *Options) { o.Backend = talkative{o.Backend} }
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.untilState(rollout1, api.HostConverged)
		var last time.Time
		n := 0
		for _, e := range l.cp.events {
			if e.Kind != api.ActivationProgress {
				continue
			}
			if n++; e.At.Sub(last) < progressEvery {
				t.Errorf("progress at %v and %v", last, e.At)
			}
			last = e.At
		}
		if n < 6 {
			t.Errorf("only %d in a minute", n)
		}
	})
}

// talkative reports progress every second while it realises for a minute.
type talkative struct{ activation.Backend }

func (talkative) Realise(ctx context.Context, closure string, progress func(done, total int64)) error {
	for i := range int64(60) {
		progress(i, 60)
		if err := (clock.System{}).Sleep(ctx, time.Second); err != nil {
			return err
		}
	}
	return nil
}
