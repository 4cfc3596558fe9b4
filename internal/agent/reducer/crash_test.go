package reducer

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation/activationtest"
)

// story is one whole rollout, with how it must end whenever the agent is killed.
type story struct {
	setup    func(*lab)
	state    api.HostState
	on       string
	switches map[string]int // at most so many of each, without violations
}

var stories = map[string]story{
	"a good rollout": {
		setup:    func(l *lab) {},
		state:    api.HostConverged,
		on:       closureB,
		switches: map[string]int{closureB: 1},
	},
	"a rollout that fails its probes": {
		setup:    func(l *lab) { l.health.set(closureB, true) },
		state:    api.Reverted,
		on:       closureA,
		switches: map[string]int{closureB: 1, closureA: 1},
	},
	"a rollout whose switch fails": {
		setup:    func(l *lab) { l.machine.Script(closureB, activationtest.Script{Takes: time.Second, ExitCode: 1}) },
		state:    api.Reverted,
		on:       closureA,
		switches: map[string]int{closureB: 1, closureA: 1},
	},
	"a rollout whose switch hangs": {
		setup: func(l *lab) { l.machine.Script(closureB, activationtest.Script{Hangs: true}) },
		state: api.Reverted,
		on:    closureA,
		// A switch that was stopped right before the agent was killed leaves no result.
		switches: map[string]int{closureB: 2, closureA: 1},
	},
}

// tell runs the story with the agent killed at the given point, counted from 1, and returns the points
// that it came by.
func (s story) tell(t *testing.T, killAt int) (points []string) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, closureA)
		l.killAt = killAt
		s.setup(l)
		l.cp.give(activate(rollout1, closureB, soaking(2*time.Minute)))
		l.untilState(rollout1, s.state)
		sleep(time.Minute)
		l.stop()
		if running, boot := l.machine.Links(); running != s.on || boot != s.on {
			t.Errorf("the machine runs %q and boots %q, not %q", running, boot, s.on)
		}
		count := map[string]int{}
		for _, c := range l.machine.Switches() {
			count[c]++
		}
		for c, n := range count {
			if n > s.switches[c] {
				t.Errorf("%d switches to %q; at most %d are right", n, c, s.switches[c])
			}
		}
		points = l.points
	})
	return points
}

func TestKilledAtEveryPointOnceItEndsRight(t *testing.T) {
	for name, s := range stories {
		t.Run(name, func(t *testing.T) {
			for k := 1; ; k++ {
				var points []string
				t.Run(fmt.Sprintf("point %02d", k), func(t *testing.T) { points = s.tell(t, k) })
				if t.Failed() {
					return
				}
				if len(points) < k { // it came to its end without being killed: that was all of them
					if k < 30 {
						t.Errorf("only %d points: %q", len(points), points)
					}
					return
				}
			}
		})
	}
}
