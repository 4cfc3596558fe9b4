package attack

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
)

// actor is a host, played by hand: it keeps to the protocol where its methods are used, and knows what
// it was acknowledged.
type actor struct {
	*caller
	cert          tls.Certificate
	name, journal string
	runs, boots   string
	last          map[string]int64 // of each stream, by journal and rollout
	acknowledged  []said
}

// said is an event that the control plane said it has.
type said struct {
	Journal, Rollout string
	Seq              int64
	Kind             api.EventKind
	Refused          api.Code
}

// actor returns a host that runs what it ran before the first release, and was not heard yet.
func (a *arena) actor(name string) *actor {
	a.t.Helper()
	cert := a.hostCertificate(name)
	h := &actor{
		caller: a.caller(cert), cert: cert, name: name, journal: newJournal(),
		runs: closure(name, 0), boots: closure(name, 0), last: map[string]int64{},
	}
	a.actors = append(a.actors, h)
	return h
}

var journals atomic.Int64

func newJournal() string { return fmt.Sprintf("%032x", 0xfeed0000+journals.Add(1)) }

// beat is the next heartbeat.
func (h *actor) beat() api.Heartbeat {
	return api.Heartbeat{
		Hostname: h.name, JournalID: h.journal, At: now(), AgentVersion: "test", BootID: "boot-1",
		CurrentClosure: h.runs, BootClosure: h.boots, RebootPending: []string{}, TrustSHA256: strings.Repeat("0", 64),
		LastSeq: map[string]int64{},
	}
}

// heartbeat sends the next heartbeat, which must be taken.
func (h *actor) heartbeat() api.HeartbeatReply {
	h.a.t.Helper()
	return h.beats(h.beat())
}

func (h *actor) beats(hb api.Heartbeat) (reply api.HeartbeatReply) {
	h.a.t.Helper()
	got := h.post("/v1/agent/heartbeat", hb)
	if got.status != http.StatusOK {
		h.a.t.Fatalf("a heartbeat of %s: %d %s", h.name, got.status, got.body)
	}
	h.a.must(json.Unmarshal(got.body, &reply))
	return reply
}

// poll asks for a dispatch, which must be there within patience.
func (h *actor) poll() api.Dispatch {
	h.a.t.Helper()
	got := h.get(fmt.Sprintf("/v1/agent/dispatch?wait=%d", patience/time.Second))
	return h.given(got)
}

// given reads a dispatch, which must be the host's own.
func (h *actor) given(got answer) (d api.Dispatch) {
	h.a.t.Helper()
	if got.status != http.StatusOK {
		h.a.t.Fatalf("a poll of %s: %d %s", h.name, got.status, got.body)
	}
	h.a.must(json.Unmarshal(got.body, &d))
	if d.Hostname != h.name {
		h.a.t.Fatalf("%s was given the dispatch of %s", h.name, d.Hostname)
	}
	return d
}

// idle checks that there is nothing to do for the host.
func (h *actor) idle() {
	h.a.t.Helper()
	if got := h.get("/v1/agent/dispatch?wait=0"); got.status != http.StatusNoContent {
		h.a.t.Errorf("a poll of %s: %d %s, want 204", h.name, got.status, got.body)
	}
}

// numbered makes the batch of the next events in a rollout's stream.
func (h *actor) numbered(rollout string, events ...api.Event) api.EventBatch {
	next := h.last[h.journal+rollout] + 1
	for i := range events {
		events[i].Seq = next + int64(i)
		if events[i].At.IsZero() {
			events[i].At = now()
		}
	}
	return api.EventBatch{Hostname: h.name, JournalID: h.journal, RolloutID: rollout, Events: events}
}

// say sends the next events, whether or not they are possible: all must be acknowledged.
func (h *actor) say(rollout string, events ...api.Event) api.EventsAck {
	h.a.t.Helper()
	return h.send(h.numbered(rollout, events...))
}

// send sends a batch, and takes note of what of it is new.
func (h *actor) send(b api.EventBatch) (ack api.EventsAck) {
	h.a.t.Helper()
	got := h.post("/v1/agent/events", b)
	if got.status != http.StatusOK {
		h.a.t.Fatalf("events of %s: %d %s", h.name, got.status, got.body)
	}
	h.a.must(json.Unmarshal(got.body, &ack))
	if want := b.Events[len(b.Events)-1].Seq; ack.AckedSeq < want {
		h.a.t.Fatalf("events of %s: acknowledged up to %d, want %d", h.name, ack.AckedSeq, want)
	}
	h.note(b, ack)
	return ack
}

// note takes note of what of a batch is new.
func (h *actor) note(b api.EventBatch, ack api.EventsAck) {
	refused := map[int64]api.Code{}
	for _, r := range ack.Refused {
		refused[r.Seq] = r.Code
	}
	stream := b.JournalID + b.RolloutID
	for _, e := range b.Events {
		if e.Seq > h.last[stream] {
			h.last[stream] = e.Seq
			h.acknowledged = append(h.acknowledged, said{b.JournalID, b.RolloutID, e.Seq, e.Kind, refused[e.Seq]})
		}
	}
}

// does sends the next events, which must all be possible.
func (h *actor) does(rollout string, events ...api.Event) {
	h.a.t.Helper()
	if ack := h.say(rollout, events...); len(ack.Refused) > 0 {
		h.a.t.Fatalf("events of %s were refused: %+v", h.name, ack.Refused)
	}
}

// cannot sends an event that must be refused, with its number used up and the state as it was.
func (h *actor) cannot(rollout string, e api.Event) {
	h.a.t.Helper()
	was := h.a.host(h.name).State
	ack := h.say(rollout, e)
	if len(ack.Refused) != 1 || ack.Refused[0].Seq != ack.AckedSeq || ack.Refused[0].Code != api.CodeInvalidTransition || ack.Refused[0].Detail == "" {
		h.a.t.Errorf("%s in state %s: %+v, want it to be refused", e.Kind, was, ack)
	}
	if is := h.a.host(h.name).State; is != was {
		h.a.t.Errorf("a refused %s took the host from %s to %s", e.Kind, was, is)
	}
}

// isState checks what operators see of the host.
func (h *actor) isState(state api.HostState, attempt int) {
	h.a.t.Helper()
	if is := h.a.host(h.name); is.State != state || is.Attempt != attempt {
		h.a.t.Errorf("%s is %s, attempt %d; want %s, attempt %d", h.name, is.State, is.Attempt, state, attempt)
	}
}

// converge goes through a rollout as a good host does.
func (h *actor) converge(rollout string) {
	h.a.t.Helper()
	h.heartbeat()
	d := h.poll()
	if d.RolloutID != rollout || d.Action != api.ActionActivate || d.TargetClosure != h.a.fleet.Hosts[h.name].Closure {
		h.a.t.Fatalf("%s was given %+v", h.name, d)
	}
	h.does(rollout, h.ack(d), started(), h.completed(d.TargetClosure), declared(), converged(d.TargetClosure))
	h.isState(api.HostConverged, d.Attempt)
	h.idle()
	h.heartbeat()
}

// ack accepts a dispatch.
func (h *actor) ack(d api.Dispatch) api.Event {
	return api.Event{
		Kind: api.DispatchAck, Attempt: d.Attempt, Wave: d.Wave, PreviousClosure: h.runs, TargetClosure: d.TargetClosure,
		SoakDueAt: d.SoakDueAt, EnqueuedAt: d.EnqueuedAt, ManifestSHA256: strings.Repeat("a", 64),
	}
}

// completed says that the host runs a closure from now on.
func (h *actor) completed(closure string) api.Event {
	h.runs, h.boots = closure, closure
	return api.Event{Kind: api.ActivationCompleted, ObservedClosure: closure}
}

func started() api.Event { return api.Event{Kind: api.ActivationStarted, Method: api.MethodSwitch} }

func declared(probes ...api.DeclaredProbe) api.Event {
	return api.Event{Kind: api.ProbesDeclared, Probes: probes}
}

func converged(closure string) api.Event {
	return api.Event{Kind: api.Converged, ObservedClosure: closure}
}

func failed(reason api.Code, changed bool) api.Event {
	return api.Event{Kind: api.ActivationFailed, Phase: api.PhaseSwitch, Changed: changed, ExitCode: 1, Reason: reason}
}

func TestAGoodHostConvergesByHand(t *testing.T) {
	a := newArena(t, nil)
	a.over()
}
