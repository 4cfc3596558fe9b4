package reducer

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
	"nixfleet.dev/nixfleet/internal/agent/activation/activationtest"
	"nixfleet.dev/nixfleet/internal/clock"
)

// offer gives the agent an offer directly.
func (l *lab) offer(o Offer) Answer {
	l.t.Helper()
	running, _ := l.machine.Links()
	o.PreviousClosure = l.agent.View().PreviousFor(running, o.Line.Closure)
	a, err := l.agent.Offer(l.t.Context(), o)
	if err != nil {
		l.t.Fatal(err)
	}
	return a
}

func TestTheSameDispatchAgainChangesNothing(t *testing.T) {
	inBubble(t, func(l *lab) {
		o := activate(rollout1, closureB, soaking(time.Minute))
		l.cp.give(o)
		l.untilState(rollout1, api.Soaking)
		before := len(l.disk.read())
		if a := l.offer(o); a.Kind != Duplicate {
			t.Errorf("soaking: %+v", a)
		}
		if got := len(l.disk.read()); got != before {
			t.Errorf("%d new records", got-before)
		}
		l.untilState(rollout1, api.HostConverged)
		if a := l.offer(o); a.Kind != Duplicate {
			t.Errorf("converged: %+v", a)
		}
		o.Attempt = 2
		if a := l.offer(o); a.Code != api.CodeNotPermitted {
			t.Errorf("a higher attempt of what converged: %+v", a)
		}
	})
}

func TestANewerDispatchDropsAnOlderOneThatTouchedNothing(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.waiting()
		o := activate(rollout2, closureC, soaking(time.Minute))
		l.cp.give(o)
		if a := l.offer(o); a.Kind != Accepted {
			t.Fatalf("%+v", a)
		}
		l.cp.answer(true)
		l.untilState(rollout2, api.HostConverged)
		if got := l.machine.Switches(); !slices.Equal(got, []string{closureC}) {
			t.Errorf("switches to %q", got)
		}
		if s := l.agent.View().Rollouts[rollout1].State; s != api.HostSuperseded || l.cp.state(rollout1) != s {
			t.Errorf("the older rollout is %s here and %s there", s, l.cp.state(rollout1))
		}
	})
}

// lingering is a machine whose Realise takes a while to stop, and that notices a second one meanwhile.
type lingering struct {
	activation.Backend
	busy, both atomic.Bool
}

func (m *lingering) Realise(ctx context.Context, closure string, _ func(done, total int64)) error {
	if m.busy.Swap(true) {
		m.both.Store(true)
	}
	defer m.busy.Store(false)
	if closure == closureB {
		<-ctx.Done()
		_ = clock.System{}.Sleep(context.Background(), time.Second)
	}
	return context.Cause(ctx)
}

func TestTheNewerActivationBeginsOnceTheOlderOneHasStopped(t *testing.T) {
	inBubble(t, func(l *lab) {
		var machine *lingering
		l.options = func(o *Options) { machine = &lingering{Backend: o.Backend}; o.Backend = machine }
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.untilState(rollout1, api.Activating)
		l.cp.give(activate(rollout2, closureC, soaking(time.Minute)))
		l.untilState(rollout2, api.HostConverged)
		if machine.both.Load() {
			t.Error("two activations were at work at once")
		}
	})
}

func TestANewerDispatchWaitsForASwitchToFinish(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.switching()
		o := activate(rollout2, closureC, soaking(time.Minute))
		if a := l.offer(o); a.Kind != Busy {
			t.Errorf("%+v", a)
		}
		l.cp.give(o)
		l.untilState(rollout2, api.HostConverged)
		if got := l.machine.Switches(); !slices.Equal(got, []string{closureB, closureC}) {
			t.Errorf("switches to %q", got)
		}
	})
}

func TestANewerDispatchWaitsForARollbackToFinish(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.inRollback(activationtest.Script{Takes: time.Minute})
		l.start()
		sleep(time.Second)
		o := activate(rollout2, closureC, soaking(time.Minute))
		if a := l.offer(o); a.Kind != Busy {
			t.Errorf("%+v", a)
		}
		l.cp.give(o)
		l.untilState(rollout2, api.HostConverged)
		if s := l.cp.state(rollout1); s != api.Reverted {
			t.Errorf("the older rollout is %s", s)
		}
	})
}

func TestASoakingHostGoesStraightOnAndBackToWhatItConvergedOn(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.cp.give(activate(rollout1, closureB, soaking(time.Hour)))
		l.untilState(rollout1, api.Soaking)
		l.health.set(closureC, true)
		l.cp.give(activate(rollout2, closureC, soaking(time.Hour)))
		l.untilState(rollout2, api.Reverted)
		l.wantOn(closureA)
		if s := l.agent.View().Rollouts[rollout1].State; s != api.HostSuperseded {
			t.Errorf("the older rollout is %s", s)
		}
	})
}

func TestPreviousClosure(t *testing.T) {
	v := &View{Converged: closureA, unconverged: map[string]bool{closureB: true}}
	for _, c := range []struct{ what, running, target, want string }{
		{"what ran", closureC, closureB, closureC},
		{"it runs the target already", closureC, closureC, closureA},
		{"it runs the target of a rollout that it did not converge in", closureB, closureC, closureA},
		{"a fresh install", "", closureC, ""},
	} {
		if got := v.PreviousFor(c.running, c.target); got != c.want {
			t.Errorf("%s: %q, not %q", c.what, got, c.want)
		}
	}
}

func TestRevertOnlyAsTheSignedPolicyAllows(t *testing.T) {
	all := activationtest.Policy(time.Minute, api.RollbackAll)
	revert := func(id string, p api.Policy) Offer {
		o := activate(id, closureB, p)
		o.Action = api.ActionRevert
		return o
	}
	converged := func(l *lab, p api.Policy) {
		l.cp.give(activate(rollout1, closureB, p))
		l.untilState(rollout1, api.HostConverged)
	}
	refused := func(what string, setup func(l *lab) Offer) {
		t.Run(what, func(t *testing.T) {
			inBubble(t, func(l *lab) {
				if a := l.offer(setup(l)); a.Code != api.CodeNotPermitted {
					t.Errorf("%+v", a)
				}
				sleep(time.Hour)
				if n := len(l.machine.Switches()); n > 2 {
					t.Errorf("%d switches", n)
				}
			})
		})
	}
	refused("policy rollback-and-halt", func(l *lab) Offer {
		converged(l, soaking(time.Minute))
		return revert(rollout1, all) // whatever an offer says, the journal has what was signed
	})
	refused("after revertWindow", func(l *lab) Offer {
		converged(l, all)
		sleep(24*time.Hour + time.Minute)
		return revert(rollout1, all)
	})
	refused("not the newest rollout", func(l *lab) Offer {
		converged(l, all)
		l.cp.give(activate(rollout2, closureC, all))
		l.untilState(rollout2, api.HostConverged)
		return revert(rollout1, all)
	})
	refused("a rollout it is not in", func(l *lab) Offer {
		l.start()
		return revert(rollout1, all)
	})
	refused("a host that failed", func(l *lab) Offer {
		l.inSoak()
		l.machine.Set(closureC, closureC)
		l.untilState(rollout1, api.Failed)
		return revert(rollout1, all)
	})
	t.Run("permitted, once", func(t *testing.T) {
		inBubble(t, func(l *lab) {
			converged(l, all)
			o := revert(rollout1, all)
			if a := l.offer(o); a.Kind != Accepted {
				t.Errorf("%+v", a)
			}
			l.wantEnd(api.Reverted, closureB, closureA)
			if a := l.offer(o); a.Kind != Duplicate {
				t.Errorf("again: %+v", a)
			}
			l.wantQuarantined(closureB, false)
		})
	})
}

func TestUnstageTakesTheBootDefaultBack(t *testing.T) {
	inBubble(t, func(l *lab) {
		_, policy := l.deferred()
		if running, boot := l.machine.Links(); running != closureA || boot != closureB {
			t.Fatalf("deferred, it runs %q and boots %q", running, boot)
		}
		o := activate(rollout1, closureB, policy)
		o.Action = api.ActionUnstage
		l.cp.give(o)
		l.wantEnd(api.Reverted)
		l.wantOn(closureA)
	})
}

func TestActionsThatThisMachineCannotDo(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.untilState(rollout1, api.HostConverged)
		want := map[api.Action]api.Code{
			api.ActionUnstage: api.CodeNotPermitted, api.ActionReboot: api.CodeNotPermitted,
			api.ActionPreflight: api.CodeUnsupportedAction, "dance": api.CodeUnsupportedAction, "": api.CodeUnsupportedAction,
		}
		got := map[api.Action]api.Code{}
		for action := range want {
			o := activate(rollout1, closureB, soaking(time.Minute))
			o.Action = action
			got[action] = l.offer(o).Code
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestARebootIsRefusedOutsideItsWindow(t *testing.T) {
	inBubble(t, func(l *lab) {
		reboots, policy := l.deferred()
		o := activate(rollout1, closureB, policy)
		o.Action = api.ActionReboot
		o.Freezes = []api.Freeze{{From: time.Now().Add(-time.Hour), Until: time.Now().Add(time.Hour), Reason: "peak"}}
		if a := l.offer(o); a.Code != api.CodeOutsideWindow {
			t.Errorf("in a freeze: %+v", a)
		}
		never := o
		never.Freezes, never.Policy.Reboot = nil, &api.Reboot{Mode: "never"}
		if a := l.offer(never); a.Code != api.CodeNotPermitted {
			t.Errorf("under reboot.mode never: %+v", a)
		}
		if reboots.Load() != 0 {
			t.Error("it rebooted")
		}
	})
}

func TestAHeldHostRejectsDispatchesUntilTheHoldEnds(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.start()
		if err := l.agent.Hold(l.t.Context(), time.Now().Add(time.Hour), "repairs"); err != nil {
			t.Fatal(err)
		}
		l.restart()
		o := activate(rollout1, closureB, soaking(time.Minute))
		if a := l.offer(o); a.Code != api.CodeHeldLocally {
			t.Errorf("%+v", a)
		}
		sleep(time.Hour + time.Second)
		l.cp.give(o)
		l.untilState(rollout1, api.HostConverged)
	})
}

func TestWhatIsRefusedLeavesNothingInTheJournal(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.untilState(rollout1, api.HostConverged)
		sleep(time.Minute)
		bad := func(edit func(*Offer)) Offer {
			o := activate(rollout2, closureC, soaking(time.Minute))
			edit(&o)
			return o
		}
		before := len(l.disk.read())
		for _, o := range []Offer{
			bad(func(o *Offer) { o.Action = "dance" }),
			bad(func(o *Offer) { o.Action = api.ActionRevert }),
			bad(func(o *Offer) { o.Action = api.ActionUnstage }),
			bad(func(o *Offer) { o.Action = api.ActionReboot }),
			bad(func(o *Offer) { o.Line.Wave = 7 }),
			bad(func(o *Offer) { o.Policy.ConfirmTimeout = nil }),
			bad(func(o *Offer) { o.RolloutID, o.Attempt = rollout1, 2 }),
			bad(func(o *Offer) { o.RolloutID, o.Action = rollout1, api.ActionRevert }),
		} {
			if a := l.offer(o); a.Kind != Rejected {
				t.Errorf("%+v: %+v", o, a)
			}
		}
		// What hoststate itself refuses is an error, and no more.
		o := bad(func(o *Offer) { o.Attempt = 1<<53 - 1 })
		if _, err := l.agent.Offer(l.t.Context(), o); err == nil {
			t.Error("an attempt that is out of range was taken")
		}
		if n := len(l.disk.read()) - before; n != 0 || len(l.agent.View().Rollouts) != 1 {
			t.Errorf("%d records, and rollouts %v", n, l.agent.View().Rollouts)
		}
	})
}

func TestTheControlPlanesSoakIsClamped(t *testing.T) {
	inBubble(t, func(l *lab) {
		o := activate(rollout1, closureB, soaking(time.Minute))
		o.SoakDueAt = time.Now().Add(1000 * time.Hour)
		l.cp.give(o)
		began := time.Now()
		l.untilState(rollout1, api.HostConverged)
		if took := time.Since(began); took > 32*time.Minute {
			t.Errorf("it soaked for %v", took)
		}
	})
}

func TestOldRolloutsAreForgottenAndPruned(t *testing.T) {
	inBubble(t, func(l *lab) {
		var ids []string
		for i := range 3 * maxEnded {
			id := "stable@" + string(rune('a'+i%6)) + "000000" + string(rune('0'+i/6%10)) + string(rune('0'+i/60))
			ids = append(ids, id)
			closure := []string{closureB, closureC}[i%2]
			l.cp.give(activate(id, closure, soaking(time.Minute)))
			l.untilState(id, api.HostConverged)
			sleep(time.Second)
			if err := l.agent.Forget(l.t.Context(), ids); err != nil {
				t.Fatal(err)
			}
		}
		v := l.agent.View()
		if n := len(v.Rollouts); n > maxEnded+2 {
			t.Errorf("%d rollouts are remembered", n)
		}
		last := ids[len(ids)-1]
		if v.LastSeq[last] < 5 || v.Rollouts[last].State != api.HostConverged {
			t.Errorf("the newest is %+v, last seq %d", v.Rollouts[last], v.LastSeq[last])
		}
		if n := len(l.agent.state.rollouts[last].events); n != 0 {
			t.Errorf("%d events of a forgotten rollout are kept", n)
		}
		if a := l.offer(activate(last, closureC, soaking(time.Minute))); a.Kind != Duplicate {
			t.Errorf("a forgotten rollout is offered again: %+v", a)
		}
	})
}
