package reducer

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation/activationtest"
)

func soaking(d time.Duration) api.Policy { return activationtest.Policy(d, api.RollbackAndHalt) }

func TestAGoodRolloutConverges(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.untilState(rollout1, api.HostConverged)
		want := []api.EventKind{
			api.DispatchAck, api.ActivationStarted, api.ActivationCompleted, api.ProbesDeclared, api.ProbeResult, api.Converged,
		}
		if diff := cmp.Diff(want, l.cp.kinds()); diff != "" {
			t.Error(diff)
		}
		if running, boot := l.machine.Links(); running != closureB || boot != closureB {
			t.Errorf("the machine runs %q and boots %q", running, boot)
		}
	})
}

func TestAFailingReleaseRollsItselfBack(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.health.set(closureB, true)
		l.cp.give(activate(rollout1, closureB, soaking(5*time.Minute)))
		l.untilState(rollout1, api.Reverted)
		want := []api.EventKind{
			api.DispatchAck, api.ActivationStarted, api.ActivationCompleted, api.ProbesDeclared, api.ProbeResult,
			api.HealthFailed, api.RollbackStarted, api.RollbackCompleted,
		}
		if diff := cmp.Diff(want, l.cp.kinds()); diff != "" {
			t.Error(diff)
		}
		if running, boot := l.machine.Links(); running != closureA || boot != closureA {
			t.Errorf("the machine runs %q and boots %q", running, boot)
		}
		if code, ok := l.agent.View().Quarantined(closureB); !ok || code != api.CodeHealthFailed {
			t.Errorf("closure b is quarantined: %v, %q", ok, code)
		}
	})
}
