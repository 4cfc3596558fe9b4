package rollout

import (
	"errors"
	"strings"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
)

const rid = "stable@aaaaaaa"

// accepted returns a world in which web-01 has accepted a dispatch: event 1 is recorded.
func accepted(t *testing.T) *world {
	w := newWorld(t)
	w.story("release stable@aaaaaaa", "web-01 A1", "web-02 A2")
	w.story("heartbeat web-01 web-02")
	w.story("ack web-01")
	return w
}

// story takes one step, as in testdata/scenarios.
func (w *world) story(step string, hosts ...string) { w.step(strings.Fields(step), hosts) }

func batch(events ...api.Event) api.EventBatch {
	return api.EventBatch{Hostname: "web-01", JournalID: "web-01-journal-0", RolloutID: rid, Events: events}
}

func TestEventsThatHaveNoPlaceAreRefusedAsAWhole(t *testing.T) {
	at := start
	started := func(seq int64) api.Event {
		return api.Event{Seq: seq, At: at, Kind: api.ActivationStarted, Method: api.MethodSwitch}
	}
	for _, test := range []struct {
		name  string
		batch api.EventBatch
		want  error
	}{
		{"a gap before the batch", batch(started(3)), &SequenceGap{Expected: 2}},
		{"a gap inside the batch", batch(started(2), started(4)), &Malformed{"events.1.seq", ""}},
		{"a batch out of order", batch(started(3), started(2)), &Malformed{"events.1.seq", ""}},
		{"a number twice", batch(started(2), started(2)), &Malformed{"events.1.seq", ""}},
		{"a number below 1", batch(started(0)), &Malformed{"events.0.seq", ""}},
		{"no events", batch(), &Malformed{"events", ""}},
		{"too many events", batch(make([]api.Event, 257)...), &Malformed{"events", ""}},
		{"another host's name", api.EventBatch{Hostname: "web-02", JournalID: "j", RolloutID: rid, Events: []api.Event{started(2)}}, &Malformed{"hostname", ""}},
		{"no journal", api.EventBatch{Hostname: "web-01", RolloutID: rid, Events: []api.Event{started(2)}}, &Malformed{"journalId", ""}},
		{"a rollout that nobody knows", api.EventBatch{Hostname: "web-01", JournalID: "web-01-journal-0", RolloutID: "stable@fffffff", Events: []api.Event{started(1)}}, &UnknownRollout{}},
		{"a journal that no heartbeat has shown", api.EventBatch{Hostname: "web-01", JournalID: "other", RolloutID: rid, Events: []api.Event{started(1)}}, &UnknownRollout{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := accepted(t)
			before := w.snapshot(w.f)
			entries, _, err := w.f.Events("web-01", test.batch, w.now)
			if len(entries) > 0 || err == nil {
				t.Fatalf("got %v, %v", entries, err)
			}
			switch want := test.want.(type) {
			case *SequenceGap:
				var gap *SequenceGap
				if !errors.As(err, &gap) || gap.Expected != want.Expected {
					t.Errorf("got %v, want %v", err, want)
				}
			case *Malformed:
				var malformed *Malformed
				if !errors.As(err, &malformed) || malformed.Field != want.Field {
					t.Errorf("got %v, want field %s", err, want.Field)
				}
			case *UnknownRollout:
				var unknown *UnknownRollout
				if !errors.As(err, &unknown) {
					t.Errorf("got %v, want an unknown rollout", err)
				}
			}
			if w.snapshot(w.f) != before {
				t.Error("the picture changed")
			}
		})
	}
}

func TestAHostThatIsNotInARolloutHasNoEventsThere(t *testing.T) {
	w := accepted(t)
	w.story("heartbeat stranger")
	b := batch(api.Event{Seq: 1, Kind: api.ProbesDeclared, At: start})
	b.Hostname, b.JournalID = "stranger", "stranger-journal-0"
	_, _, err := w.f.Events("stranger", b, w.now)
	if unknown := (*UnknownRollout)(nil); !errors.As(err, &unknown) {
		t.Fatalf("got %v", err)
	}
}

func TestRepeatedEventsAreAcknowledgedAndChangeNothing(t *testing.T) {
	w := accepted(t)
	w.story("wipe nobody")
	before := w.snapshot(w.f)
	entries, ack, err := w.f.Events("web-01", batch(w.agent("web-01").events[rid]...), w.now)
	if err != nil || len(entries) > 0 || ack.AckedSeq != 1 || len(ack.Refused) > 0 {
		t.Fatalf("got %v, %+v, %v", entries, ack, err)
	}
	if w.snapshot(w.f) != before {
		t.Error("the picture changed")
	}
}

func TestARepeatInFrontOfNewEventsIsNoHindrance(t *testing.T) {
	w := accepted(t)
	first := w.agent("web-01").events[rid][0]
	entries, ack, err := w.f.Events("web-01", batch(first, api.Event{Seq: 2, At: w.now, Kind: api.ActivationStarted, Method: "switch"}), w.now)
	if err != nil || len(entries) != 1 || ack.AckedSeq != 2 {
		t.Fatalf("got %v, %+v, %v", entries, ack, err)
	}
}

func TestARefusedEventUsesUpItsNumber(t *testing.T) {
	for _, test := range []struct {
		name string
		bad  api.Event
	}{
		{"a transition that the table does not have", api.Event{Kind: api.Converged, ObservedClosure: "A1", At: start}},
		{"a kind that nobody knows", api.Event{Kind: "Teleported", At: start}},
		{"a time before that of the event before", api.Event{Kind: api.ActivationStarted, At: start.Add(-time.Hour)}},
		{"a time far ahead", api.Event{Kind: api.ActivationStarted, At: start.Add(25 * time.Hour)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := accepted(t)
			test.bad.Seq = 2
			entries, ack, err := w.f.Events("web-01", batch(test.bad, api.Event{Seq: 3, At: start, Kind: api.ActivationStarted, Method: "switch"}), w.now)
			if err != nil || ack.AckedSeq != 3 || len(entries) != 2 || len(ack.Refused) != 1 {
				t.Fatalf("got %v, %+v, %v", show(entries), ack, err)
			}
			if r := ack.Refused[0]; r.Seq != 2 || r.Code != api.CodeInvalidTransition || r.Detail == "" {
				t.Errorf("refused %+v", r)
			}
			w.apply(entries)
			w.plan()
			if _, ack, err := w.f.Events("web-01", batch(test.bad), w.now); err != nil || ack.AckedSeq != 3 {
				t.Errorf("sent again: %+v, %v", ack, err)
			}
			w.check()
		})
	}
}

func TestRejectionsAreRecordedOnceAndBounded(t *testing.T) {
	w := accepted(t)
	say := func(reason string) []Entry {
		return w.f.Reject("web-02", api.Rejection{RolloutID: rid, Attempt: 1, Reason: api.Code(reason), Detail: strings.Repeat("x", 5000), At: w.now}, w.now)
	}
	entries := say("stale")
	if len(entries) != 1 || len(entries[0].Body.(Rejected).Detail) != api.MaxRejectDetail {
		t.Fatalf("got %v", show(entries))
	}
	w.apply(entries)
	w.plan()
	if again := say("stale"); len(again) > 0 {
		t.Errorf("a repeat while nothing is offered is recorded: %v", show(again))
	}
	for i := range 100 {
		w.apply(say("reason-" + strings.Repeat("y", i)))
		w.plan()
	}
	m := w.f.hosts["web-02"].members[0]
	if len(m.reasons) > maxRefusals {
		t.Errorf("%d reasons are kept", len(m.reasons))
	}
	for _, r := range []api.Rejection{
		{RolloutID: "../../etc/passwd", Attempt: 1, Reason: "stale"},
		{RolloutID: rid, Attempt: 7, Reason: "stale"},
		{RolloutID: rid, Attempt: -1, Reason: "stale"},
	} {
		if entries := w.f.Reject("web-02", r, w.now); len(entries) > 0 {
			t.Errorf("%+v is recorded: %v", r, show(entries))
		}
	}
	w.check()
}

func TestAHeartbeatIsRecordedWhenItSaysSomethingNew(t *testing.T) {
	w := accepted(t)
	w.out = nil
	w.story("heartbeat web-01")
	if len(w.out) > 0 {
		t.Errorf("the same again is recorded: %s", show(w.out))
	}
	w.agents["web-01"].boots++
	w.story("heartbeat web-01")
	if len(w.out) != 1 || w.out[0].Kind() != KindHeartbeat {
		t.Errorf("got %s", show(w.out))
	}
}

func TestAHostThatComesBackToAnOlderJournalGoesOnThere(t *testing.T) {
	w := accepted(t)
	w.story("wipe web-01")
	w.story("heartbeat web-01")
	a := w.agents["web-01"]
	a.journal, a.events[rid] = 0, []api.Event{{Seq: 1, At: w.now, Kind: api.ProbesDeclared}}
	reply := w.heartbeat("web-01")
	if len(reply.ReplayFrom) > 0 {
		t.Errorf("asked to replay %v", reply.ReplayFrom)
	}
	if got := w.f.hosts["web-01"].journal; got.ID != "web-01-journal-0" || got.Last[rid] != 1 {
		t.Errorf("the stream is at %+v", got)
	}
	w.check()
}

func TestAnEventOfAnOverdueHostIsBeingHeardBeforeAnythingElseIsDecided(t *testing.T) {
	w := accepted(t)
	w.story("live 11m web-02")
	m := w.f.hosts["web-01"].members[0]
	if m.overdue == nil {
		t.Fatal("web-01 is not overdue")
	}
	entries, _, err := w.f.Events("web-01", batch(api.Event{Seq: 2, At: w.now, Kind: api.ActivationStarted, Method: "switch"}), w.now)
	if err != nil {
		t.Fatal(err)
	}
	w.apply(entries)
	if m.overdue != nil || m.counted.failure {
		t.Error("it still counts as a failure")
	}
}
