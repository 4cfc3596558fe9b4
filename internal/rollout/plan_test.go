package rollout

import (
	"fmt"
	"testing"

	"nixfleet.dev/nixfleet/api"
)

func TestALongChainOfEdgesIsDecidedOnWithinMaxRounds(t *testing.T) {
	const n = 3000
	w := newWorld(t)
	policy := policyOf(api.RollbackAndHalt, 0)
	policy.MaxFailures = &api.Amount{Value: 100, Percent: true}
	m := api.Manifest{RolloutID: rid, Channel: "stable", Sequence: 1, ReleasedAt: start, SignedAt: start, Policy: policy, HostSet: api.HostSet{Size: n}}
	lines, declared := make(lineList, n), api.Fleet{Hosts: map[string]api.FleetHost{}}
	for i := range lines {
		lines[i] = api.HostLine{Hostname: hostIn(0, i), Closure: fmt.Sprint("C", i)}
		if i > 0 {
			lines[i].After = []string{hostIn(0, i-1)}
		}
		declared.Hosts[lines[i].Hostname] = api.FleetHost{Channel: "stable"}
	}
	entries, err := w.f.Adopt(Adoption{Sequence: 1, SignedAt: start, Object: "fleet", Fleet: declared, Releases: []Release{
		{manifest: m, lines: lines, objects: Objects{Manifest: "m"}, verified: true},
	}}, w.now)
	if err != nil {
		t.Fatal(err)
	}
	w.index.Fleet = declared
	w.applyOnly(t, entries)
	settled(t, w)
	w.now = w.now.Add(policy.Offline.After.Std())
	for i := 1; i < n; i++ {
		w.f.Heard(hostIn(0, i), w.now) // all but the first, which is left out, and with it all of them
	}
	settled(t, w)
	if r, _ := w.f.Rollout(rid, w.now); r.State != api.RolloutConverged || r.Waves[0].Counts[api.Skipped] != n {
		t.Errorf("the rollout is %s: %v", r.State, r.Waves[0].Counts)
	}
}

// settled plans until there is nothing to decide, which is within what the planner promises.
func settled(t *testing.T, w *world) {
	t.Helper()
	for range w.f.MaxRounds() {
		entries := w.f.Plan(w.now)
		if len(entries) == 0 {
			return
		}
		w.applyOnly(t, entries)
	}
	t.Fatalf("still deciding after %d rounds", w.f.MaxRounds())
}

func TestAPollOfAHostThatAnOldRolloutLeftOutWakesNobody(t *testing.T) {
	w := newWorld(t)
	w.story("release stable@aaaaaaa", "a A1", "b B1")
	w.story("heartbeat a b")
	w.story("advance 11m")
	w.story("release stable@bbbbbbb waves=0s,0s", "a A2 wave=1", "b B2")
	w.story("poll a")
	if was := w.f.hosts["a"].memberIn("stable@aaaaaaa").rec.State; was != api.Skipped {
		t.Fatalf("in the rollout before, the host is %s", was)
	}
	if w.f.Heard("a", w.now) {
		t.Error("the planner is woken for a rollout that is over")
	}
}
