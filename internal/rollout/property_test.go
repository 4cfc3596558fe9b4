package rollout

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"nixfleet.dev/nixfleet/api"
)

// TestAnyHistory takes random fleets through random releases, events true and false, silence, refusals,
// lost journals, restarts and a lost log. At every step Plan must equal PlanFull and the invariants
// must hold, and at the end the log must fold to the same picture.
func TestAnyHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &chaos{t: t, world: newWorld(t)}
		c.names = hostNames(rapid.IntRange(1, 7).Draw(t, "hosts"))
		c.release()
		steps := rapid.IntRange(1, 60).Draw(t, "steps")
		for range steps {
			c.step()
			c.invariants()
		}
		c.check()
	})
}

func hostNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("h%d", i)
	}
	return names
}

type chaos struct {
	*world
	t        *rapid.T
	names    []string
	releases int
}

func (c *chaos) name() string { return rapid.SampledFrom(c.names).Draw(c.t, "host") }

func (c *chaos) step() {
	c.out, c.refusals = nil, nil
	c.now = c.now.Add(time.Duration(rapid.IntRange(1, 90).Draw(c.t, "seconds")) * time.Second)
	switch rapid.IntRange(0, 19).Draw(c.t, "step") {
	case 0:
		c.release()
	case 1:
		c.advance(time.Duration(rapid.IntRange(1, 40).Draw(c.t, "minutes")) * time.Minute)
	case 2:
		c.restart()
	case 3:
		c.reject()
	case 4:
		c.wipe(c.name())
	case 5:
		c.changeIndex()
	case 6:
		c.plan()
	case 7:
		if rapid.IntRange(0, 9).Draw(c.t, "lose") == 0 {
			c.loseLog()
		}
	case 8, 9:
		c.poll(c.name())
	case 10, 11, 12:
		c.beat(c.name())
	default:
		c.event(c.name())
	}
}

// beat sends a heartbeat, now and then one of a host that was switched by hand.
func (c *chaos) beat(name string) {
	a := c.agent(name)
	switch rapid.IntRange(0, 9).Draw(c.t, "runs") {
	case 0:
		a.running = c.closure("by hand")
	case 1:
		a.boot = a.running
	}
	c.heartbeat(name)
}

func (c *chaos) closure(label string) string {
	return fmt.Sprintf("C%d", rapid.IntRange(0, 4).Draw(c.t, label))
}

func (c *chaos) release() {
	c.releases++
	channel := rapid.SampledFrom([]string{"stable", "edge"}).Draw(c.t, "channel")
	r := release{id: fmt.Sprintf("%s@%07x", channel, c.releases), sequence: int64(c.releases)}
	r.policy = policyOf(rapid.SampledFrom([]api.OnHealthFailure{api.Halt, api.RollbackAndHalt, api.RollbackAll}).Draw(c.t, "policy"))
	for range rapid.IntRange(1, 3).Draw(c.t, "waves") {
		soak := time.Duration(rapid.IntRange(0, 2).Draw(c.t, "soak")) * 10 * time.Minute
		r.policy.Waves = append(r.policy.Waves, api.Wave{Soak: api.Duration(soak)})
	}
	r.policy.MaxFailures = &api.Amount{Value: rapid.IntRange(0, 2).Draw(c.t, "maxFailures")}
	r.policy.Offline.Action = rapid.SampledFrom([]string{"skip", "wait"}).Draw(c.t, "offline")
	for _, b := range []string{"x", "y"} {
		r.budgets = append(r.budgets, api.ManifestBudget{Name: b, MaxInFlight: rapid.IntRange(1, 3).Draw(c.t, "max "+b)})
	}
	for i, name := range c.names {
		if rapid.IntRange(0, 4).Draw(c.t, "in") == 0 {
			continue
		}
		line := api.HostLine{Hostname: name, Closure: c.closure("closure"), Wave: rapid.IntRange(0, len(r.policy.Waves)-1).Draw(c.t, "wave")}
		line.Budgets = [][]int{nil, {0}, {1}, {0, 1}}[rapid.IntRange(0, 3).Draw(c.t, "budgets")]
		for _, before := range r.lines {
			if i > 0 && before.Wave <= line.Wave && rapid.IntRange(0, 5).Draw(c.t, "edge") == 0 {
				line.After = append(line.After, before.Hostname)
			}
		}
		r.lines = append(r.lines, line)
	}
	if err := c.publish(r); err != nil {
		c.t.Fatalf("%v", err)
	}
}

func (c *chaos) changeIndex() {
	if len(c.index.Releases) == 0 {
		return
	}
	r := rapid.SampledFrom(c.index.Releases).Draw(c.t, "release")
	switch rapid.IntRange(0, 2).Draw(c.t, "change") {
	case 0:
		c.stepIndex("refresh", r.ID())
	case 1:
		c.stepIndex("undeclare", c.name())
	case 2:
		c.stepIndex("withdraw", r.manifest.Channel)
	}
}

func (c *chaos) reject() {
	name := c.name()
	d := c.f.Outstanding(name)
	if d == nil {
		return
	}
	reason := rapid.SampledFrom([]api.Code{api.CodeStale, api.CodeHeldLocally, api.CodeNotPermitted}).Draw(c.t, "reason")
	c.apply(c.f.Reject(name, api.Rejection{Hostname: name, RolloutID: d.RolloutID, Attempt: d.Attempt, Reason: reason, At: c.now}, c.now))
	c.plan()
}

// event sends something that may be true: what the host's state asks for next, mostly.
func (c *chaos) event(name string) {
	if d := c.poll(name); d != nil && rapid.IntRange(0, 3).Draw(c.t, "answer") > 0 {
		if d.Action == api.ActionActivate {
			c.saySafely(name, d.RolloutID, c.ackOf(name, d))
		} else {
			c.saySafely(name, d.RolloutID, api.Event{Kind: api.RollbackStarted, ToClosure: c.agent(name).previous, Cause: string(d.Action)})
		}
		return
	}
	h := c.f.hosts[name]
	if h == nil || len(h.members) == 0 {
		return
	}
	m := rapid.SampledFrom(h.members).Draw(c.t, "rollout")
	c.saySafely(name, m.ro.id, c.next(name, m)...)
}

func (c *chaos) ackOf(name string, d *api.Dispatch) api.Event {
	a := c.agent(name)
	a.previous = a.running
	return api.Event{
		Kind: api.DispatchAck, Attempt: d.Attempt, Wave: d.Wave, PreviousClosure: a.previous, TargetClosure: d.TargetClosure,
		SoakDueAt: d.SoakDueAt, EnqueuedAt: d.EnqueuedAt, ManifestSHA256: "sha",
	}
}

// next returns events that the member's state asks for, or some that contradict it.
func (c *chaos) next(name string, m *member) []api.Event {
	a := c.agent(name)
	r := m.rec
	pick := rapid.IntRange(0, 5).Draw(c.t, "event")
	if pick == 5 {
		kinds := []api.EventKind{api.DispatchAck, api.ActivationCompleted, api.Converged, api.HealthFailed, api.RollbackCompleted, "Nonsense"}
		return []api.Event{{Kind: rapid.SampledFrom(kinds).Draw(c.t, "kind")}}
	}
	switch r.State {
	case api.Activating:
		switch pick {
		case 0:
			reason := rapid.SampledFrom([]api.Code{api.CodeCancelled, api.CodeRealiseFailed, api.CodeSwitchFailed, api.CodeConfirmTimeout, api.CodeChangedLocally}).Draw(c.t, "reason")
			return []api.Event{{Kind: api.ActivationFailed, Phase: api.PhaseSwitch, Reason: reason, Changed: reason != api.CodeCancelled && reason != api.CodeRealiseFailed}}
		case 1:
			return []api.Event{{Kind: api.ActivationStarted, Method: api.MethodSwitch}, {Kind: api.ActivationDeferred}}
		}
		a.running, a.boot = r.TargetClosure, r.TargetClosure
		return []api.Event{{Kind: api.ActivationStarted, Method: api.MethodSwitch}, {Kind: api.ActivationCompleted, ObservedClosure: r.TargetClosure}}
	case api.Deferred:
		return []api.Event{{Kind: api.RebootStarted, BootID: "1"}}
	case api.Soaking:
		if pick == 0 {
			return []api.Event{{Kind: api.HealthFailed, FailingProbes: []string{"up"}, PolicyApplied: r.OnHealthFailure}}
		}
		return []api.Event{{Kind: api.ProbesDeclared, Probes: []api.DeclaredProbe{}}, {Kind: api.Converged, ObservedClosure: r.TargetClosure}}
	case api.Reverting:
		if pick == 0 {
			return []api.Event{{Kind: api.RollbackFailed, Phase: api.PhaseSwitch, Reason: api.CodeSwitchFailed}}
		}
		a.running, a.boot = r.PreviousClosure, r.PreviousClosure
		return []api.Event{
			{Kind: api.RollbackStarted, ToClosure: r.PreviousClosure, Cause: api.CauseHealth},
			{Kind: api.RollbackCompleted, ObservedClosure: r.PreviousClosure},
		}
	}
	return []api.Event{{Kind: api.ProbesDeclared, Probes: []api.DeclaredProbe{}}}
}

// saySafely sends events of a journal that may not be known yet.
func (c *chaos) saySafely(name, id string, events ...api.Event) {
	from := int64(len(c.agent(name).events[id])) + 1
	for _, e := range events {
		c.note(name, id, e)
	}
	err := c.send(name, id, from)
	if gap := (*SequenceGap)(nil); errors.As(err, &gap) {
		err = c.send(name, id, gap.Expected)
	}
	if unknown := (*UnknownRollout)(nil); err != nil && !errors.As(err, &unknown) {
		c.t.Fatalf("%v", err)
	}
}

// invariants checks what must hold whatever happened.
func (c *chaos) invariants() {
	open := map[string]string{}
	for id, r := range c.f.rollouts {
		if !r.holdsOpen() {
			continue
		}
		if other, twice := open[r.ch.name]; twice {
			c.t.Fatalf("%s and %s are both open", id, other)
		}
		open[r.ch.name] = id
	}
	for _, h := range c.f.hosts {
		offers := 0
		for _, m := range h.members {
			offers += one(m.offer != nil)
		}
		if offers > 1 {
			c.t.Fatalf("%s is offered %d things at once", h.name, offers)
		}
	}
	for _, e := range c.out {
		if d, ok := e.Body.(Dispatched); ok && d.Action == api.ActionActivate {
			c.dispatched(e, d)
		}
	}
}

// dispatched checks an activation against the state right after it, as far as it can have changed
// since only for the better.
func (c *chaos) dispatched(e Entry, d Dispatched) {
	r := c.f.rollouts[e.RolloutID]
	if r == nil {
		return
	}
	m := r.find(e.Hostname)
	if d.Wave >= r.open || e.RecordedAt.Before(r.waves[d.Wave].opensAt) {
		c.t.Fatalf("%s was dispatched in wave %d before its time", e.Hostname, d.Wave)
	}
	if d.TargetClosure != m.rec.TargetClosure || d.Wave != m.rec.Wave {
		c.t.Fatalf("%s was dispatched to %+v", e.Hostname, d)
	}
}

// TestBudgetsAreNeverExceeded checks each plan's dispatches against a count made by hand.
func TestBudgetsAreNeverExceeded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &chaos{t: t, world: newWorld(t), names: hostNames(6)}
		c.onDispatch = func(before *Fleet, entries []Entry) { checkBudgets(t, before, entries) }
		c.release()
		c.release()
		for range rapid.IntRange(5, 40).Draw(t, "steps") {
			c.step()
		}
	})
}

// checkBudgets counts, for each budget of each host that entries dispatch, the other hosts that are
// disrupted by what state.md says, and those that entries add.
func checkBudgets(t *rapid.T, f *Fleet, entries []Entry) {
	for i, e := range entries {
		d, ok := e.Body.(Dispatched)
		if !ok {
			continue
		}
		r := f.rollouts[e.RolloutID]
		m := r.find(e.Hostname)
		for _, b := range m.budgetIndexes {
			name, limit := r.manifest.DisruptionBudgets[b].Name, r.manifest.DisruptionBudgets[b].MaxInFlight
			for _, o := range f.rollouts {
				for _, ob := range o.manifest.DisruptionBudgets {
					if ob.Name == name && o.holdsOpen() {
						limit = min(limit, ob.MaxInFlight)
					}
				}
			}
			busy := map[string]bool{}
			for hn, h := range f.hosts {
				for _, hm := range h.members {
					busyState := hm.rec.InFlight() || hm.offer != nil
					if busyState && names(hm, name) {
						busy[hn] = true
					}
				}
			}
			for _, earlier := range entries[:i] {
				if em := f.rollouts[earlier.RolloutID].find(earlier.Hostname); names(em, name) {
					busy[earlier.Hostname] = true
				}
			}
			delete(busy, e.Hostname)
			if len(busy) >= limit {
				t.Fatalf("%s of %s goes beyond budget %s: %d of %d busy already", d.Action, e.Hostname, name, len(busy), limit)
			}
		}
	}
}

func names(m *member, budget string) bool {
	return slices.ContainsFunc(m.budgetIndexes, func(i int) bool { return m.ro.manifest.DisruptionBudgets[i].Name == budget })
}
