package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/lab"
	"nixfleet.dev/nixfleet/internal/operator"
)

// scale is how large a test is, small or full.
type scale struct{ hosts, kills int }

func sized() scale {
	if long() {
		return scale{hosts: 50, kills: 10}
	}
	return scale{hosts: 8, kills: 3}
}

// stillUnderWay fails the test when the rollout is over already: nothing would be broken by a kill.
func stillUnderWay(t *testing.T, c *operator.Client, id string) {
	t.Helper()
	if r, err := c.Rollout(t.Context(), id); err == nil && r.State != api.RolloutActive {
		t.Fatalf("%s is %s: too late for a kill", id, r.State)
	}
}

// breakable is a fleet whose rollout takes long enough to be interrupted many times.
func breakable(t *testing.T, hosts int) *lab.Lab {
	return newLab(t, lab.Options{
		Hosts: hosts, CanarySoak: time.Duration(hosts) * 150 * time.Millisecond, Soak: 4 * time.Second,
		ProbeInterval: 500 * time.Millisecond, FailureThreshold: 2 * time.Second,
		HeartbeatInterval: 3 * time.Second,
	})
}

var slow = lab.Version{Number: "1", Switch: 500 * time.Millisecond}

// pause waits for a seeded part of most.
func pause(rng *rand.Rand, most time.Duration) {
	<-time.After(time.Duration(rng.Int64N(int64(most))))
}

func TestAKilledControlPlaneLosesNothing(t *testing.T) {
	seeds := []uint64{1}
	if long() {
		seeds = append(seeds, 2)
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, seed))
			s := sized()
			l := breakable(t, s.hosts)
			cp := spawn(t, "control-plane", l.ControlPlaneConfig())
			spawn(t, "agents", configs(l.Machines)...)
			c := client(t, l)
			awaitHeard(t, c, s.hosts)
			id := release(t, l, slow)
			for range s.kills {
				pause(rng, 900*time.Millisecond)
				stillUnderWay(t, c, id)
				cp.kill()
				cp = spawn(t, "control-plane", l.ControlPlaneConfig())
			}
			awaitState(t, c, id, api.RolloutConverged)
			checkConverged(t, l, c, id, slow)
		})
	}
}

func TestKilledAgentsFinishWhatTheyBegan(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	s := sized()
	l := breakable(t, s.hosts)
	spawn(t, "control-plane", l.ControlPlaneConfig())
	const groups = 4
	agents := make([]*process, groups)
	members := make([][]lab.Machine, groups)
	for i, m := range l.Machines {
		members[i%groups] = append(members[i%groups], m)
	}
	for i := range agents {
		agents[i] = spawn(t, "agents", configs(members[i])...)
	}
	c := client(t, l)
	awaitHeard(t, c, s.hosts)
	id := release(t, l, slow)
	for range s.kills {
		pause(rng, 800*time.Millisecond)
		stillUnderWay(t, c, id)
		i := rng.IntN(groups)
		agents[i].kill()
		agents[i] = spawn(t, "agents", configs(members[i])...)
	}
	awaitState(t, c, id, api.RolloutConverged)
	checkConverged(t, l, c, id, slow)
}

func TestKilledAgentsStillRollBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	s := sized()
	l := breakable(t, s.hosts)
	spawn(t, "control-plane", l.ControlPlaneConfig())
	agents := spawn(t, "agents", configs(l.Machines)...)
	c := client(t, l)
	awaitHeard(t, c, s.hosts)
	bad := slow
	bad.Broken = true
	id := release(t, l, bad)
	for range s.kills {
		pause(rng, 1200*time.Millisecond)
		agents.kill()
		agents = spawn(t, "agents", configs(l.Machines)...)
	}
	awaitState(t, c, id, api.RolloutHalted)
	eventually(t, time.Minute, "the canaries are back", func() bool {
		r, err := c.Rollout(t.Context(), id)
		return err == nil && r.Waves[0].Counts[api.Reverted] == l.Canaries()
	})
	for _, m := range l.Machines {
		if running, err := m.Running(); err != nil || running != m.Closure(lab.Version{Number: "0"}) {
			t.Errorf("%s runs %s (%v), not what it ran before", m.Name, running, err)
		}
		switches, err := m.Switches()
		if err != nil {
			t.Error(err)
		}
		if want := 2; m.Canary && len(switches) != want || !m.Canary && len(switches) != 0 {
			t.Errorf("%s (canary: %v) switched %d times: %v", m.Name, m.Canary, len(switches), switches)
		}
	}
	checkHistory(t, c, id)
}

func TestADeletedDatabaseIsRebuilt(t *testing.T) {
	s := sized()
	l := breakable(t, s.hosts)
	cp := spawn(t, "control-plane", l.ControlPlaneConfig())
	spawn(t, "agents", configs(l.Machines)...)
	c := client(t, l)
	awaitHeard(t, c, s.hosts)
	id := release(t, l, slow)
	eventually(t, time.Minute, "canaries soak", func() bool {
		r, err := c.Rollout(t.Context(), id)
		return err == nil && r.Waves[0].Counts[api.Soaking] > 0
	})
	cp.kill()
	entries, err := os.ReadDir(l.ControlPlaneState())
	if err != nil || len(entries) == 0 {
		t.Fatalf("the state folder holds %d entries (%v)", len(entries), err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(l.ControlPlaneState(), e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	spawn(t, "control-plane", l.ControlPlaneConfig())
	awaitState(t, c, id, api.RolloutConverged)
	checkConverged(t, l, c, id, slow)
}

// awaitHeard waits for every host's first heartbeat.
func awaitHeard(t *testing.T, c *operator.Client, hosts int) {
	t.Helper()
	eventually(t, 2*time.Minute, "every host is heard", func() bool {
		heard := 0
		for h, err := range c.Hosts(t.Context(), operator.HostFilter{}) {
			if err != nil {
				return false
			}
			if h.LastHeartbeatAt != nil {
				heard++
			}
		}
		return heard == hosts
	})
}

func awaitState(t *testing.T, c *operator.Client, id string, want api.RolloutState) {
	t.Helper()
	var last api.Rollout
	deadline := time.Now().Add(4 * time.Minute)
	for time.Now().Before(deadline) {
		r, err := c.Rollout(t.Context(), id)
		if err == nil {
			if last = r; r.State == want {
				return
			}
		}
		<-time.After(100 * time.Millisecond)
	}
	t.Fatalf("%s is %s, not %s: %+v", id, last.State, want, last.Waves)
}

// checkConverged checks from outside that every machine runs v after exactly one switch, and that the
// recorded history is whole.
func checkConverged(t *testing.T, l *lab.Lab, c *operator.Client, id string, v lab.Version) {
	t.Helper()
	for _, m := range l.Machines {
		if running, err := m.Running(); err != nil || running != m.Closure(v) {
			t.Errorf("%s runs %s (%v), not %s", m.Name, running, err, m.Closure(v))
		}
		switches, err := m.Switches()
		if err != nil {
			t.Error(err)
		}
		if len(switches) != 1 || !switches[0].Finished || switches[0].Closure != m.Closure(v) {
			t.Errorf("%s switched %v, not once", m.Name, switches)
		}
	}
	for host, kinds := range checkHistory(t, c, id) {
		if kinds[api.DispatchAck] != 1 || kinds[api.ActivationCompleted] != 1 || kinds[api.Converged] != 1 {
			t.Errorf("the history of %s has %v", host, kinds)
		}
	}
}

// checkHistory checks that each host's recorded events are numbered from 1 without gap or repeat, and
// returns how many of each kind it has.
func checkHistory(t *testing.T, c *operator.Client, id string) map[string]map[api.EventKind]int {
	t.Helper()
	last := map[string]int64{}
	kinds := map[string]map[api.EventKind]int{}
	for after := int64(0); ; {
		page, err := c.Events(t.Context(), id, after, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Items {
			if e.LogSeq <= after {
				t.Fatalf("entry %d comes after entry %d", e.LogSeq, after)
			}
			after = e.LogSeq
			seq, ok := seqOf(t, e)
			if !ok {
				continue
			}
			if seq != last[e.Hostname]+1 {
				t.Errorf("%s: event %d (%s) comes after event %d", e.Hostname, seq, e.Kind, last[e.Hostname])
			}
			last[e.Hostname] = seq
			if kinds[e.Hostname] == nil {
				kinds[e.Hostname] = map[api.EventKind]int{}
			}
			kinds[e.Hostname][api.EventKind(e.Kind)]++
		}
		if len(page.Items) == 0 {
			return kinds
		}
	}
}
