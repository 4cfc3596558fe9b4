package attack

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// lapse is a host that loses its journal in some state: what state.md's table makes of it.
type lapse struct {
	// reach takes the host, which was given d, to the state in which it loses its journal.
	reach func(h *actor, d api.Dispatch)
	in    api.HostState
	// Where its heartbeat shows it afterwards: on its target or its previous closure, running and booting.
	runs, boots place
	to          api.HostState
	attempt     int
	// refused says that its target is quarantined by now.
	quarantined bool
}

type place int

const (
	onPrevious place = iota
	onTarget
	elsewhere
)

func (p place) closure(name string) string {
	return closure(name, map[place]int{onPrevious: 0, onTarget: 1, elsewhere: 9}[p])
}

// reach accepts the dispatch and then tells events.
func reach(events func(d api.Dispatch) []api.Event) func(*actor, api.Dispatch) {
	return func(h *actor, d api.Dispatch) {
		h.does(d.RolloutID, h.ack(d))
		h.does(d.RolloutID, events(d)...)
	}
}

func completed(d api.Dispatch) api.Event {
	return api.Event{Kind: api.ActivationCompleted, ObservedClosure: d.TargetClosure}
}

var (
	toActivating = reach(func(api.Dispatch) []api.Event { return []api.Event{started()} })
	toDeferred   = reach(func(api.Dispatch) []api.Event { return []api.Event{{Kind: api.ActivationDeferred}} })
	toSoaking    = reach(func(d api.Dispatch) []api.Event { return []api.Event{completed(d)} })
	toConverged  = reach(func(d api.Dispatch) []api.Event {
		return []api.Event{completed(d), declared(), converged(d.TargetClosure)}
	})
	toReverting = reach(func(api.Dispatch) []api.Event { return []api.Event{failed(api.CodeSwitchFailed, true)} })
	toReverted  = reach(func(api.Dispatch) []api.Event { return []api.Event{failed(api.CodeRealiseFailed, false)} })
	toFailed    = reach(func(api.Dispatch) []api.Event {
		return []api.Event{failed(api.CodeSwitchFailed, true), {Kind: api.RollbackFailed, Phase: api.PhaseSwitch, Reason: api.CodeSwitchFailed}}
	})
)

// lapses is every row of state.md's table about a new journalId, and every other state.
var lapses = map[string]lapse{
	"pending-01":    {reach: func(*actor, api.Dispatch) {}, in: api.Pending, to: api.Pending, attempt: 1},
	"activating-01": {reach: toActivating, in: api.Activating, to: api.Pending, attempt: 2},
	"activating-02": {reach: toActivating, in: api.Activating, runs: onTarget, boots: onTarget, to: api.Pending, attempt: 2},
	"deferred-01":   {reach: toDeferred, in: api.Deferred, boots: onTarget, to: api.Pending, attempt: 2},
	"soaking-01":    {reach: toSoaking, in: api.Soaking, runs: onTarget, boots: onTarget, to: api.Pending, attempt: 2},
	"converged-01":  {reach: toConverged, in: api.HostConverged, runs: onTarget, boots: onTarget, to: api.HostConverged, attempt: 1},
	"converged-02":  {reach: toConverged, in: api.HostConverged, runs: elsewhere, boots: onTarget, to: api.Pending, attempt: 2},
	"converged-03":  {reach: toConverged, in: api.HostConverged, runs: onTarget, boots: elsewhere, to: api.Pending, attempt: 2},
	"reverting-01":  {reach: toReverting, in: api.Reverting, to: api.Reverted, attempt: 1, quarantined: true},
	"reverting-02":  {reach: toReverting, in: api.Reverting, boots: onTarget, to: api.Pending, attempt: 2, quarantined: true},
	"reverted-01":   {reach: toReverted, in: api.Reverted, to: api.Reverted, attempt: 1},
	"failed-01":     {reach: toFailed, in: api.Failed, to: api.Reverted, attempt: 1, quarantined: true},
	"failed-02":     {reach: toFailed, in: api.Failed, runs: elsewhere, boots: elsewhere, to: api.Pending, attempt: 2, quarantined: true},
}

func TestANewJournalInEveryState(t *testing.T) {
	names := slices.Sorted(maps.Keys(lapses))
	a := newArena(t, nil, names...)
	id := a.current()
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			defer func(outer *testing.T) { a.t = outer }(a.t)
			a.t = t
			c, h := lapses[name], a.actor(name)
			h.heartbeat()
			c.reach(h, h.poll())
			h.isState(c.in, 1)

			// What the new journal says before a heartbeat has shown it is kept by the host.
			old := h.journal
			h.journal = newJournal()
			early := h.numbered(id, started())
			a.refused("events of a journal that was not shown", h.post(agentEvents, early), 404, api.CodeUnknownRollout)
			h.isState(c.in, 1)

			h.runs, h.boots = c.runs.closure(name), c.boots.closure(name)
			hb := h.beat()
			hb.LastSeq[id] = 3
			if from := h.beats(hb).ReplayFrom[id]; from != 1 {
				t.Errorf("it is asked to replay from %d, want 1: its streams start afresh", from)
			}
			h.isState(c.to, c.attempt)
			h.heartbeat() // the same again is no news
			h.isState(c.to, c.attempt)

			lost := h.numbered(id, started())
			lost.JournalID, lost.Events[0].Seq = old, h.last[old+id]+1
			a.refused("events of the lost journal", h.post(agentEvents, lost), 404, api.CodeUnknownRollout)
			h.isState(c.to, c.attempt)
			h.goesOn(c)
		})
	}
	a.over()
}

// goesOn ends a lapse: a host that is Pending has its turn, unless its closure is quarantined.
func (h *actor) goesOn(c lapse) {
	h.a.t.Helper()
	if c.to != api.Pending || c.quarantined {
		h.idle()
		h.cannot(h.a.current(), started())
		return
	}
	d := h.poll()
	if d.Attempt != c.attempt {
		h.a.t.Errorf("attempt %d is offered, want %d", d.Attempt, c.attempt)
	}
	if h.runs == d.TargetClosure {
		h.runs = closure(h.name, 0)
	}
	h.does(d.RolloutID, h.ack(d), started(), h.completed(d.TargetClosure), declared(), converged(d.TargetClosure))
	h.isState(api.HostConverged, c.attempt)
}

// TestANewJournalOfASupersededHost has a host take part in a newer rollout before it loses its journal:
// its part in the older one stays ended.
func TestANewJournalOfASupersededHost(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.actor(evilHost)
	older := a.current()
	evil.heartbeat()
	evil.does(older, evil.ack(evil.poll()))
	newer := a.release()
	d := evil.poll()
	evil.does(newer, evil.ack(d))
	states := func(id string) map[api.HostState]int {
		r, err := a.operator.Rollout(t.Context(), id)
		a.must(err)
		return r.Waves[0].Counts
	}
	if is := states(older); is[api.HostSuperseded] == 0 {
		t.Fatalf("the older rollout: %v", is)
	}
	evil.journal = newJournal()
	evil.heartbeat()
	if is := states(older); is[api.HostSuperseded] == 0 || is[api.Pending] > 1 {
		t.Errorf("the older rollout: %v", is)
	}
	evil.isState(api.Pending, 2)
	// What it says of the older one is recorded, and moves nothing.
	evil.does(older, started(), converged(closure(evilHost, 1)), api.Event{Kind: api.HealthFailed})
	evil.isState(api.Pending, 2)
	if ch := a.picture().Channels[0]; len(ch.Quarantine) > 0 {
		t.Errorf("quarantined: %+v", ch.Quarantine)
	}
	evil.converge(newer)
	a.over()
}

// TestANewJournalOfASkippedHost has a host be silent until the rollout goes on without it.
func TestANewJournalOfASkippedHost(t *testing.T) {
	a := newArena(t, func(f *api.Fleet) {
		p := f.RolloutPolicies["one"]
		p.Offline = &api.Offline{After: new(api.Duration(700 * time.Millisecond)), Action: "skip"}
		f.RolloutPolicies["one"] = p
	}, evilHost)
	evil := a.actor(evilHost)
	evil.heartbeat()
	a.eventually("the silent host is skipped", func() bool { return a.host(evilHost).State == api.Skipped })
	evil.journal = newJournal()
	evil.heartbeat()
	a.eventually("it is back", func() bool { return a.host(evilHost).State == api.Pending })
	evil.converge(a.current())
	a.over()
}

// TestJournalsThatAlternate flips between two journals: what was recorded of each stays recorded once.
func TestJournalsThatAlternate(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.actor(evilHost)
	id := a.current()
	evil.heartbeat()
	d := evil.poll()
	evil.does(id, evil.ack(d))
	first, second := evil.journal, newJournal()
	for i := range 3 {
		evil.journal = second
		evil.heartbeat()
		evil.isState(api.Pending, 2*i+2)
		d.Attempt = 2*i + 2
		evil.does(id, evil.ack(d))

		evil.journal = first
		evil.heartbeat()
		evil.isState(api.Pending, 2*i+3)
		again := evil.numbered(id, evil.ack(d))
		again.Events[0].Seq = 1 // seen before
		evil.send(again)
		evil.isState(api.Pending, 2*i+3)
		d.Attempt = 2*i + 3
		evil.does(id, evil.ack(d))
	}
	for _, id := range []string{"", "0", strings.Repeat("0", 31), strings.Repeat("0", 33), strings.Repeat("F", 32), strings.Repeat("g", 32), "../" + strings.Repeat("0", 29)} {
		hb := evil.beat()
		hb.JournalID = id
		a.refused("journalId "+id, evil.post("/v1/agent/heartbeat", hb), 400, api.CodeMalformed)
		b := evil.numbered(a.current(), started())
		b.JournalID = id
		a.refused("journalId "+id, evil.post(agentEvents, b), 400, api.CodeMalformed)
	}
	evil.isState(api.Activating, 7)
	evil.journal = newJournal()
	evil.converge(a.current())
	a.over()
}
