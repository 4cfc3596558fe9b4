package rollout

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"nixfleet.dev/nixfleet/api"
)

func (w *world) agent(name string) *agent {
	a := w.agents[name]
	if a == nil {
		a = &agent{name: name, running: "old-" + name, boot: "old-" + name, events: map[string][]api.Event{}}
		w.agents[name] = a
	}
	return a
}

func (a *agent) journalID() string { return fmt.Sprintf("%s-journal-%d", a.name, a.journal) }

// heartbeat sends what the host is and does what the answer says about events.
func (w *world) heartbeat(name string) api.HeartbeatReply {
	w.t.Helper()
	a := w.agent(name)
	hb := api.Heartbeat{
		Hostname: name, JournalID: a.journalID(), At: w.now, AgentVersion: "1", BootID: fmt.Sprint(a.boots),
		CurrentClosure: a.running, BootClosure: a.boot, LastSeq: map[string]int64{},
	}
	for id, events := range a.events {
		hb.LastSeq[id] = int64(len(events))
	}
	entries, reply := w.f.Heartbeat(hb, w.now)
	w.apply(entries)
	w.plan()
	for _, id := range slices.Sorted(maps.Keys(reply.ReplayFrom)) {
		if err := w.send(name, id, reply.ReplayFrom[id]); err != nil {
			w.t.Fatalf("replay of %s by %s: %v", id, name, err)
		}
	}
	return reply
}

func (w *world) poll(name string) *api.Dispatch {
	w.t.Helper()
	if w.f.Heard(name, w.now) {
		w.plan()
	}
	return w.f.Outstanding(name)
}

// note puts an event into the agent's journal.
func (w *world) note(name, id string, e api.Event) {
	a := w.agent(name)
	e.Seq, e.At = int64(len(a.events[id]))+1, w.now
	a.events[id] = append(a.events[id], e)
}

// send sends the agent's events of a rollout from a number on.
func (w *world) send(name, id string, from int64) error {
	w.t.Helper()
	a := w.agent(name)
	b := api.EventBatch{Hostname: name, JournalID: a.journalID(), RolloutID: id, Events: a.events[id][from-1:]}
	if len(b.Events) == 0 {
		return nil
	}
	entries, ack, err := w.f.Events(name, b, w.now)
	if err != nil {
		return err
	}
	for _, r := range ack.Refused {
		w.refusals = append(w.refusals, fmt.Sprintf("%s %s %d: %s", name, id, r.Seq, r.Detail))
	}
	if ack.AckedSeq != int64(len(a.events[id])) {
		w.t.Fatalf("%d of %d events are acknowledged", ack.AckedSeq, len(a.events[id]))
	}
	w.apply(entries)
	w.plan()
	return nil
}

// say notes events and sends them, with whatever is not recorded yet.
func (w *world) say(name, id string, events ...api.Event) {
	w.t.Helper()
	from := int64(len(w.agent(name).events[id])) + 1
	for _, e := range events {
		w.note(name, id, e)
	}
	err := w.send(name, id, from)
	if gap := (*SequenceGap)(nil); errors.As(err, &gap) {
		err = w.send(name, id, gap.Expected)
	}
	if unknown := (*UnknownRollout)(nil); errors.As(err, &unknown) {
		w.refusals = append(w.refusals, fmt.Sprintf("%s %s: %s", name, id, unknown.Reason))
		err = nil
	}
	if err != nil {
		w.t.Fatalf("events of %s in %s: %v", name, id, err)
	}
}

// accept acknowledges what the host is offered, which must be an activation.
func (w *world) accept(name string) *api.Dispatch {
	w.t.Helper()
	d := w.poll(name)
	if d == nil || d.Action != api.ActionActivate {
		w.t.Fatalf("%s is offered %+v", name, d)
	}
	w.ack(name, d)
	return d
}

func (w *world) ack(name string, d *api.Dispatch) {
	w.t.Helper()
	a := w.agent(name)
	a.previous = a.running
	w.say(name, d.RolloutID, api.Event{
		Kind: api.DispatchAck, Attempt: d.Attempt, Wave: d.Wave, PreviousClosure: a.previous, TargetClosure: d.TargetClosure,
		SoakDueAt: d.SoakDueAt, EnqueuedAt: d.EnqueuedAt, ManifestSHA256: "sha",
	})
}

// activate takes an accepted dispatch to Soaking.
func (w *world) activate(name string, d *api.Dispatch) {
	w.t.Helper()
	a := w.agent(name)
	method := api.MethodSwitch
	if a.running == d.TargetClosure {
		method = api.MethodNone
	}
	a.running, a.boot = d.TargetClosure, d.TargetClosure
	w.say(name, d.RolloutID,
		api.Event{Kind: api.ActivationStarted, Method: method},
		api.Event{Kind: api.ActivationCompleted, ObservedClosure: d.TargetClosure})
}

func (w *world) converge(name, id string) {
	w.t.Helper()
	w.say(name, id,
		api.Event{Kind: api.ProbesDeclared, Probes: []api.DeclaredProbe{{Name: "up", Kind: "http", Mode: "enforce"}}},
		api.Event{Kind: api.ProbeResult, Probe: "up", ProbeKind: "http", Mode: "enforce", Status: "pass"},
		api.Event{Kind: api.Converged, ObservedClosure: w.agent(name).running})
}

// succeed takes a host from its offer to Converged.
func (w *world) succeed(name string) {
	w.t.Helper()
	d := w.accept(name)
	w.activate(name, d)
	w.converge(name, d.RolloutID)
}

// sicken has a soaking host fail its probes, and go back if the policy says so.
func (w *world) sicken(name, id string) {
	w.t.Helper()
	m := w.f.hosts[name].memberIn(id)
	events := []api.Event{{Kind: api.HealthFailed, FailingProbes: []string{"up"}, SustainedFor: api.Duration(time.Minute), PolicyApplied: m.rec.OnHealthFailure}}
	w.say(name, id, events...)
	if m.rec.State == api.Reverting {
		w.goBack(name, id, api.CauseHealth)
	}
}

// goBack takes a host back to its previous closure.
func (w *world) goBack(name, id, cause string) {
	w.t.Helper()
	a := w.agent(name)
	a.running, a.boot = a.previous, a.previous
	w.say(name, id,
		api.Event{Kind: api.RollbackStarted, ToClosure: a.previous, Cause: cause},
		api.Event{Kind: api.RollbackCompleted, ObservedClosure: a.previous})
}

// wipe gives the host a new journal.
func (w *world) wipe(name string) {
	a := w.agent(name)
	a.journal++
	a.events = map[string][]api.Event{}
}
