package reducer

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/api"
)

// events makes the stream of one rollout from places in the journal's order.
func events(places ...int64) stream {
	var s stream
	for i, n := range places {
		s.events = append(s.events, logged{N: n, Event: api.Event{Seq: int64(i + 1), Kind: api.Converged}})
	}
	return s
}

func seqs(b api.EventBatch) (out []int64) {
	for _, e := range b.Events {
		out = append(out, e.Seq)
	}
	return out
}

func TestBatchesKeepTheJournalsOrderOverAllRollouts(t *testing.T) {
	o := newOutbox(hostname, "id")
	streams := map[string]stream{rollout1: events(0, 1, 4, 5), rollout2: events(2, 3, 6)}
	for id, s := range streams {
		o.set(id, s)
	}
	var got []string
	for {
		b, ok := o.next(nil)
		if !ok {
			break
		}
		for _, e := range b.Events {
			got = append(got, b.RolloutID[7:8]+":"+string(rune('0'+e.Seq)))
		}
		s := streams[b.RolloutID]
		s.acked = b.Events[len(b.Events)-1].Seq
		streams[b.RolloutID] = s
		o.set(b.RolloutID, s)
	}
	if diff := cmp.Diff([]string{"1:1", "1:2", "2:1", "2:2", "1:3", "1:4", "2:3"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestARolloutThatIsNotKnownHoldsUpNoOther(t *testing.T) {
	o := newOutbox(hostname, "id")
	o.set(rollout1, events(0, 1, 4))
	o.set(rollout2, events(2, 3))
	b, ok := o.next([]string{rollout1})
	if !ok || b.RolloutID != rollout2 || len(b.Events) != 2 {
		t.Errorf("%+v", b)
	}
	if _, ok := o.next([]string{rollout1, rollout2}); ok {
		t.Error("there is a batch of nothing")
	}
}

func TestABatchKeepsItsLimits(t *testing.T) {
	o := newOutbox(hostname, "id")
	places := make([]int64, 1000)
	for i := range places {
		places[i] = int64(i)
	}
	many := events(places...)
	o.set(rollout1, many)
	if b, _ := o.next(nil); len(b.Events) != api.MaxBatchEvents {
		t.Errorf("%d events", len(b.Events))
	}
	for i := range many.events {
		many.events[i].Event = api.Event{Seq: int64(i + 1), Kind: api.ActivationFailed, StderrTail: strings.Repeat("\"", api.MaxStderrTail)}
	}
	o.set(rollout1, many)
	b, _ := o.next(nil)
	data, err := json.Marshal(b)
	if err != nil || len(data) > api.MaxBatchBytes || len(data) < api.MaxBatchBytes*9/10 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

func TestWhatWasSentIsSentAgainWhenItIsAskedFor(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.untilState(rollout1, api.HostConverged)
		sleep(time.Second)
		if _, ok := l.agent.NextBatch(); ok {
			t.Fatal("there is something to send")
		}
		l.cp.answer(false)
		if err := l.agent.Replay(l.t.Context(), map[string]int64{rollout1: 3, rollout2: 1, "": -4}); err != nil {
			t.Fatal(err)
		}
		b, _ := l.agent.NextBatch()
		want := []int64{3, 4, 5, 6, 7}
		if got := seqs(b); !slices.Equal(got[:min(5, len(got))], want) {
			t.Errorf("sent again: %d", got)
		}
		l.restart()
		if again, _ := l.agent.NextBatch(); len(again.Events) != len(b.Events) {
			t.Errorf("after a restart %d, not %d", len(again.Events), len(b.Events))
		}
		for _, from := range []int64{0, -1, 1 << 50} {
			if err := l.agent.Replay(l.t.Context(), map[string]int64{rollout1: from}); err != nil {
				t.Error(err)
			}
		}
		if again, _ := l.agent.NextBatch(); again.Events[0].Seq != 3 {
			t.Errorf("nonsense moved it to %d", again.Events[0].Seq)
		}
	})
}

func TestOnlyWhatHasEndedAndIsAcknowledgedIsForgotten(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.cp.give(activate(rollout1, closureB, soaking(time.Hour)))
		l.untilState(rollout1, api.Soaking)
		if err := l.agent.Forget(l.t.Context(), []string{rollout1, rollout2}); err != nil {
			t.Fatal(err)
		}
		if n := len(l.agent.state.rollouts[rollout1].events); n == 0 {
			t.Error("the events of a rollout in progress are forgotten")
		}
		l.cp.answer(false)
		l.until("it converges", 2*time.Hour, func() bool {
			return l.agent.View().Rollouts[rollout1].State == api.HostConverged
		})
		if err := l.agent.Forget(l.t.Context(), []string{rollout1}); err != nil {
			t.Fatal(err)
		}
		l.cp.answer(true)
		l.untilState(rollout1, api.HostConverged)
	})
}

func TestAcknowledgementsAreChecked(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.waiting()
		ctx, last := l.t.Context(), l.agent.View().LastSeq[rollout1]
		if err := l.agent.Acked(ctx, rollout1, last+1, nil); err == nil {
			t.Error("an acknowledgement of what was never sent was taken")
		}
		if err := l.agent.Acked(ctx, rollout2, 9, nil); err != nil {
			t.Errorf("of a rollout that is not known: %v", err)
		}
		if err := l.agent.SetAside(ctx, rollout2, 1, 9); err != nil {
			t.Errorf("setting events of a rollout aside that was dropped meanwhile: %v", err)
		}
		short, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := l.agent.AckWait(short, rollout1, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting returned %v", err)
		}
		if err := l.agent.Acked(ctx, rollout1, last, nil); err != nil {
			t.Error(err)
		}
		if err := l.agent.AckWait(ctx, rollout1, last); err != nil {
			t.Error(err)
		}
		if err := l.agent.Acked(ctx, rollout1, 1, nil); err != nil || l.agent.state.rollouts[rollout1].status.AckedSeq < last {
			t.Errorf("an old acknowledgement took it back: %v", err)
		}
		l.cp.lastSeq[rollout1] = last // it was this test that took them
		l.cp.records[rollout1].State = api.Activating
		l.cp.answer(true)
	})
}

func TestADispatchAckThatIsSetAsideStopsTheActivation(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.waiting()
		if err := l.agent.SetAside(l.t.Context(), rollout1, 1, 2); err != nil {
			t.Fatal(err)
		}
		sleep(time.Second)
		if s := l.agent.View().Rollouts[rollout1].State; s != api.Pending {
			t.Errorf("the host is %s", s)
		}
		if b, ok := l.agent.NextBatch(); !ok || b.Events[0].Seq != 3 {
			t.Errorf("next is %+v", b)
		}
		if err := l.agent.SetAside(l.t.Context(), rollout1, 1, 99); err == nil {
			t.Error("events that do not exist were set aside")
		}
	})
}

func TestTheJournalIsCompactedAndReplaysToTheSameState(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.untilState(rollout1, api.HostConverged)
		sleep(time.Second)
		most := int64(0)
		for i := range 5_000 {
			if err := l.agent.Hold(l.t.Context(), time.Now().Add(time.Duration(i)), strings.Repeat("x", 1000)); err != nil {
				t.Fatal(err)
			}
			if i%100 == 0 {
				most = max(most, l.agent.o.Journal.Size())
			}
		}
		if most > 3*compactAbove {
			t.Errorf("the journal grew to %d bytes", most)
		}
		wantSame(t, l)
		l.restart()
		wantSame(t, l)
	})
}

// wantSame checks that the journal holds the state that the agent has.
func wantSame(t *testing.T, l *lab) {
	t.Helper()
	again, err := replay(l.disk.read())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := encoded(t, again), encoded(t, l.agent.state); !bytes.Equal(got, want) {
		t.Errorf("replaying gives\n%s\nnot\n%s", got, want)
	}
}

func encoded(t *testing.T, s *state) []byte {
	t.Helper()
	data, err := json.Marshal(s.snapshot(), json.Deterministic(true))
	if err != nil {
		t.Fatal(err)
	}
	return data
}
