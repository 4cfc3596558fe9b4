package attack

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/strictjson"
)

const agentEvents = "/v1/agent/events"

func TestAStreamHasNoGapsAndNoDoubles(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.actor(evilHost)
	id := a.current()
	evil.heartbeat()
	d := evil.poll()
	from := func(seq int64, events ...api.Event) api.EventBatch {
		b := evil.numbered(id, events...)
		for i := range b.Events {
			b.Events[i].Seq = seq + int64(i)
		}
		return b
	}
	gap := func(expected int64, b api.EventBatch) {
		t.Helper()
		p := a.refused(fmt.Sprintf("events from %d", b.Events[0].Seq), evil.post(agentEvents, b), 409, api.CodeSequenceGap)
		if p.ExpectedSeq != expected {
			t.Errorf("expectedSeq is %d, want %d", p.ExpectedSeq, expected)
		}
	}

	gap(1, from(2, evil.ack(d)))
	gap(1, from(strictjson.MaxInteger, evil.ack(d)))
	for what, b := range map[string]api.EventBatch{
		"number 0": from(0, evil.ack(d)), "a number below": from(-1, evil.ack(d)),
		"a gap inside":     {Hostname: evil.name, JournalID: evil.journal, RolloutID: id, Events: []api.Event{from(1, evil.ack(d)).Events[0], from(3, started()).Events[0]}},
		"a repeat inside":  {Hostname: evil.name, JournalID: evil.journal, RolloutID: id, Events: []api.Event{from(1, evil.ack(d)).Events[0], from(1, started()).Events[0]}},
		"the wrong way up": {Hostname: evil.name, JournalID: evil.journal, RolloutID: id, Events: []api.Event{from(2, started()).Events[0], from(1, evil.ack(d)).Events[0]}},
	} {
		a.refused(what, evil.post(agentEvents, b), 400, api.CodeMalformed)
	}
	evil.isState(api.Pending, 1)

	first := evil.numbered(id, evil.ack(d), started())
	evil.send(first)
	evil.send(first) // acknowledged again, and nothing new
	other := from(1, failed(api.CodeSwitchFailed, true), failed(api.CodeSwitchFailed, true))
	if ack := evil.send(other); len(ack.Refused) > 0 {
		t.Errorf("what was seen before is refused: %+v", ack)
	}
	evil.isState(api.Activating, 1)
	gap(3, from(4, declared()))

	// One that begins with what was seen before goes on after it.
	overlap := from(2, started(), evil.completed(d.TargetClosure), declared())
	if ack := evil.send(overlap); len(ack.Refused) > 0 {
		t.Errorf("refused: %+v", ack)
	}
	evil.isState(api.Soaking, 1)

	// The same batch on four connections at once is recorded once.
	last := evil.numbered(id, api.Event{Kind: api.ProbeResult, Probe: "none", ProbeKind: "http", Mode: api.ModeObserve, Status: api.ProbePass}, converged(d.TargetClosure))
	answers := make(chan result, api.MaxHostRequests)
	for range api.MaxHostRequests {
		r := a.caller(evil.cert).request(http.MethodPost, agentEvents, last)
		c := a.caller(evil.cert)
		go func() {
			got, err := c.try(r)
			answers <- result{got, err}
		}()
	}
	for range api.MaxHostRequests {
		if r := a.next(answers); r.err != nil || r.status != 200 || !strings.Contains(string(r.body), `"ackedSeq":6`) {
			t.Errorf("one of four at once: %v %d %s", r.err, r.status, r.body)
		}
	}
	evil.note(last, api.EventsAck{})
	evil.isState(api.HostConverged, 1)
	a.over()
}

func TestEventsOfARolloutThatTheHostIsNotInAreKeptByTheHost(t *testing.T) {
	a := newArena(t, func(f *api.Fleet) {
		f.Channels["edge"] = f.Channels[arenaChannel]
		h := f.Hosts["other-01"]
		h.Channel = "edge"
		f.Hosts["other-01"] = h
	}, evilHost, "other-01")
	evil := a.actor(evilHost)
	evil.heartbeat()
	d := evil.poll()
	a.eventually("the other channel is adopted", func() bool {
		_, err := a.operator.Rollout(t.Context(), "edge@"+a.fleet.Commit)
		return err == nil
	})
	for _, id := range []string{"edge@" + a.fleet.Commit, arenaChannel + "@" + strings.Repeat("f", 40), "nothing@0000000", "-"} {
		b := evil.numbered(id, evil.ack(d))
		if id == "-" {
			b.RolloutID, b.JournalID = a.current(), newJournal() // one that no heartbeat has shown
		}
		a.refused("events in "+id, evil.post(agentEvents, b), 404, api.CodeUnknownRollout)
	}
	for _, id := range []string{"", "stable", "stable@", "@0000000", "Stable@0000000", "stable@000000", "stable@0000000g", "stable@" + strings.Repeat("0", 65),
		"../../etc/passwd", "stable@0000000/../..", strings.Repeat("a", 64) + "@0000000", "stable@0000000\n", "stable@0000000\x00"} {
		a.refused(fmt.Sprintf("events in %q", id), evil.post(agentEvents, evil.numbered(id, evil.ack(d))), 400, api.CodeMalformed)
	}
	for _, path := range []string{"stable@", "stable", "STABLE@0000000", "%2e%2e@0000000", "stable@0000000%2fx", "stable@000000%00"} {
		for _, of := range []string{"/manifest", "/hosts/" + evilHost} {
			a.refused(path, evil.get("/v1/rollouts/"+path+of), 400, api.CodeMalformed)
		}
	}
	for _, path := range []string{"../hosts", "stable@0000000%2f..", "%2e%2e/%2e%2e/hosts", "/"} {
		a.refused(path, evil.get("/v1/rollouts/"+path+"/manifest"), 404, api.CodeNotFound)
	}
	a.refused("a manifest that is not there", evil.get("/v1/rollouts/nothing@0000000/manifest"), 404, api.CodeUnknownRollout)
	a.refused("a line of a rollout that is not there", evil.get("/v1/rollouts/nothing@0000000/hosts/"+evilHost), 404, api.CodeUnknownRollout)
	a.refused("its line in a rollout that it is not in", evil.get("/v1/rollouts/edge@"+a.fleet.Commit+"/hosts/"+evilHost), 404, api.CodeNotFound)

	// A certificate of the fleet for a host that the fleet does not have.
	ghost := a.actor("ghost-01")
	ghost.heartbeat()
	ghost.idle()
	a.refused("events of a host that is not declared", ghost.post(agentEvents, ghost.numbered(a.current(), evil.ack(d))), 404, api.CodeUnknownRollout)
	if at := a.host("ghost-01"); at.Declared || at.State != api.Idle || at.RolloutID != "" {
		t.Errorf("it is taken in: %+v", at)
	}
	evil.isState(api.Pending, 1)
	a.over()
}

// TestWhatContradictsTheRecordUsesUpItsNumber tells, in every state on the way to Converged and back,
// every kind of event that state.md's table does not have there.
func TestWhatContradictsTheRecordUsesUpItsNumber(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.actor(evilHost)
	id := a.current()
	evil.heartbeat()
	d := evil.poll()
	was := evil.runs
	lies := func(possible ...api.EventKind) {
		t.Helper()
		for _, e := range evil.lies(d, was, possible) {
			evil.cannot(id, e)
		}
	}
	wrong := func(edit func(*api.Event), e api.Event) {
		t.Helper()
		edit(&e)
		evil.cannot(id, e)
	}
	lies()
	wrong(func(e *api.Event) { e.TargetClosure = closure(goodHost, 1) }, evil.ack(d))
	wrong(func(e *api.Event) { e.Wave = 1 }, evil.ack(d))
	wrong(func(e *api.Event) { e.Wave = -1 }, evil.ack(d))
	wrong(func(e *api.Event) { e.Attempt = 0 }, evil.ack(d))
	wrong(func(e *api.Event) { e.Attempt = strictjson.MaxInteger }, evil.ack(d))
	wrong(func(e *api.Event) { e.Kind = "Promoted" }, evil.ack(d))
	wrong(func(e *api.Event) { e.Kind = api.EventKind(strings.Repeat("é", 2000)) }, evil.ack(d))
	evil.acknowledged[len(evil.acknowledged)-1].Kind = api.EventKind(strings.Repeat("é", 32)) // as it is kept

	evil.does(id, evil.ack(d))
	lies(api.ActivationStarted, api.ActivationProgress, api.ActivationCompleted, api.ActivationDeferred, api.ActivationFailed)
	wrong(func(e *api.Event) { e.ObservedClosure = closure(goodHost, 1) }, api.Event{Kind: api.ActivationCompleted})
	wrong(func(e *api.Event) { e.Reason, e.Changed = api.CodeCancelled, true }, failed(api.CodeCancelled, true))

	evil.does(id, api.Event{Kind: api.ActivationDeferred, Components: []string{"kernel"}})
	lies(api.RebootStarted, api.ActivationCompleted, api.ActivationFailed, api.RollbackStarted)
	wrong(func(e *api.Event) { e.ToClosure = closure(goodHost, 0) }, api.Event{Kind: api.RollbackStarted, Cause: api.CauseUnstage})
	wrong(func(e *api.Event) { e.Cause = "whim" }, api.Event{Kind: api.RollbackStarted, ToClosure: was})

	evil.does(id, evil.completed(d.TargetClosure))
	lies(api.ProbesDeclared, api.ProbeResult, api.HealthFailed, api.Converged, api.ActivationFailed)
	wrong(func(*api.Event) {}, converged(d.TargetClosure)) // no probes are declared yet
	evil.does(id, declared(api.DeclaredProbe{Name: "web", Kind: "http", Mode: api.ModeEnforce}))
	wrong(func(*api.Event) {}, converged(d.TargetClosure)) // it has not passed
	wrong(func(*api.Event) {}, converged(closure(goodHost, 1)))
	wrong(func(*api.Event) {}, declared(api.DeclaredProbe{Name: "web", Kind: "http", Mode: "lenient"}))
	wrong(func(*api.Event) {}, declared(api.DeclaredProbe{Name: "a", Mode: api.ModeObserve}, api.DeclaredProbe{Name: "a", Mode: api.ModeObserve}))
	pass := api.Event{Kind: api.ProbeResult, Probe: "web", ProbeKind: "http", Mode: api.ModeEnforce, Status: api.ProbePass}
	wrong(func(e *api.Event) { e.Status = "maybe" }, pass)
	wrong(func(*api.Event) {}, failed(api.CodeSwitchFailed, true))
	evil.does(id, pass, converged(d.TargetClosure))
	lies(api.ProbesDeclared, api.ProbeResult, api.ActivationProgress)
	evil.isState(api.HostConverged, 1)

	// On the way back.
	id = a.release()
	d = evil.poll()
	was = evil.runs
	evil.does(id, evil.ack(d), failed(api.CodeSwitchFailed, true))
	lies(api.RollbackStarted, api.RollbackCompleted, api.RollbackFailed)
	wrong(func(e *api.Event) { e.ObservedClosure = d.TargetClosure }, api.Event{Kind: api.RollbackCompleted})
	evil.does(id, api.Event{Kind: api.RollbackStarted, ToClosure: was, Cause: api.CauseActivation}, api.Event{Kind: api.RollbackFailed, Phase: api.PhaseSwitch, Reason: api.CodeSwitchFailed})
	lies(api.ProbesDeclared, api.ProbeResult, api.ActivationProgress, api.RollbackStarted)
	wrong(func(*api.Event) {}, evil.ack(d)) // not a higher attempt
	evil.does(id, api.Event{Kind: api.RollbackStarted, ToClosure: was, Cause: api.CauseActivation}, api.Event{Kind: api.RollbackCompleted, ObservedClosure: was})
	lies(api.ProbesDeclared, api.ProbeResult, api.ActivationProgress)
	evil.isState(api.Reverted, 1)
	a.over()
}

// lies are events of every kind but those that are possible.
func (h *actor) lies(d api.Dispatch, previous string, possible []api.EventKind) []api.Event {
	all := []api.Event{
		h.ack(d), started(), {Kind: api.ActivationProgress, Phase: api.PhaseRealise}, {Kind: api.ActivationCompleted, ObservedClosure: d.TargetClosure},
		{Kind: api.ActivationDeferred}, {Kind: api.RebootStarted, BootID: "b"}, failed(api.CodeSwitchFailed, true), declared(),
		{Kind: api.ProbeResult, Probe: "web", ProbeKind: "http", Mode: api.ModeEnforce, Status: api.ProbePass},
		{Kind: api.HealthFailed, FailingProbes: []string{"web"}, SustainedFor: api.Duration(time.Minute), PolicyApplied: api.RollbackAndHalt},
		{Kind: api.RollbackStarted, ToClosure: previous, Cause: api.CauseHealth}, {Kind: api.RollbackCompleted, ObservedClosure: previous},
		{Kind: api.RollbackFailed, Phase: api.PhaseSwitch, Reason: api.CodeSwitchFailed}, converged(d.TargetClosure),
	}
	var lies []api.Event
	for _, e := range all {
		if e.Kind == api.DispatchAck && h.a.host(h.name).State == api.Pending {
			continue
		}
		lie := true
		for _, kind := range possible {
			lie = lie && kind != e.Kind
		}
		if lie {
			lies = append(lies, e)
		}
	}
	return lies
}

func TestTimesThatAreFarOff(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.actor(evilHost)
	id := a.current()
	hb := evil.beat()
	hb.At = time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC)
	evil.beats(hb)
	hb.At = time.Time{}
	evil.beats(hb)
	if at := a.host(evil.name); at.LastHeartbeatAt == nil || now().Sub(*at.LastHeartbeatAt).Abs() > time.Minute {
		t.Errorf("the host says when it was heard: %+v", at)
	}
	d := evil.poll()
	for _, at := range []time.Time{time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), now().AddDate(1, 0, 0), now().Add(25 * time.Hour)} {
		e := evil.ack(d)
		e.At = at
		evil.cannot(id, e)
	}
	for _, text := range []string{`"2026-11-23T08:00:00+01:00"`, `"2026-11-23T08:00:00"`, `"yesterday"`, `"10000-01-01T00:00:00Z"`, `"2026-13-01T00:00:00Z"`, `1795433012`, `null`} {
		body := fmt.Sprintf(`{"hostname":%q,"journalId":%q,"rolloutId":%q,"events":[{"seq":5,"kind":"ActivationStarted","at":%s,"method":"switch"}]}`,
			evil.name, evil.journal, id, text)
		p := a.refused("an event at "+text, evil.post(agentEvents, body), 400, api.CodeMalformed)
		if !strings.Contains(p.Detail, "at") {
			t.Errorf("%q does not name the field", p.Detail)
		}
	}
	// A past that never was is the host's own word, and what it says then may not go back before it.
	e := evil.ack(d)
	e.At = time.Date(1, 1, 1, 0, 0, 1, 0, time.UTC)
	e.SoakDueAt, e.EnqueuedAt = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)
	evil.does(id, e)
	done := evil.completed(d.TargetClosure)
	done.At = now().Add(time.Hour)
	evil.does(id, done)
	early := declared()
	early.At = now()
	evil.cannot(id, early)
	early.At = now().Add(2 * time.Hour)
	evil.does(id, early)
	over := converged(d.TargetClosure)
	over.At = now().Add(23 * time.Hour)
	evil.cannot(id, over) // its own soakDueAt has not come
	evil.isState(api.Soaking, 1)
	if at := a.host(evil.name); at.SoakEndsAt == nil || at.SoakEndsAt.Year() != 9999 {
		t.Errorf("the soak: %+v", at.SoakEndsAt)
	}
	a.over()
}
