package outbound_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/client"
	"nixfleet.dev/nixfleet/internal/agent/outbound"
	"nixfleet.dev/nixfleet/internal/agent/standin"
	"nixfleet.dev/nixfleet/internal/clock"
)

const eventsPath = "POST /v1/agent/events"

// queue is a reducer's outbox: events of several rollouts in one order, and how far each is acknowledged.
type queue struct {
	mu      sync.Mutex
	order   []entry
	acked   map[string]int64
	refused map[string][]int64
	aside   []string
	replays []map[string]int64
	ready   chan struct{}
}

type entry struct {
	rollout string
	event   api.Event
}

// add appends the next events of rollouts, by name.
func (q *queue) add(rollouts ...string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, id := range rollouts {
		seq := int64(1)
		for _, e := range q.order {
			if e.rollout == id {
				seq++
			}
		}
		q.order = append(q.order, entry{id, api.Event{Seq: seq, Kind: api.ActivationStarted, At: clock.System{}.Now(), Method: "switch"}})
	}
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

func (q *queue) NextBatch(skip ...string) (api.EventBatch, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := api.EventBatch{Hostname: "web-01", JournalID: strings.Repeat("0", 32)}
	for _, e := range q.order {
		if slices.Contains(skip, e.rollout) || e.event.Seq <= q.acked[e.rollout] {
			continue
		}
		if b.RolloutID != "" && b.RolloutID != e.rollout {
			break
		}
		b.RolloutID = e.rollout
		b.Events = append(b.Events, e.event)
	}
	return b, len(b.Events) > 0
}

func (q *queue) OutboundReady() <-chan struct{} { return q.ready }

func (q *queue) Acked(_ context.Context, rolloutID string, seq int64, refused []api.RefusedEvent) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.acked[rolloutID] = max(seq, q.acked[rolloutID])
	for _, r := range refused {
		q.refused[rolloutID] = append(q.refused[rolloutID], r.Seq)
	}
	return nil
}

func (q *queue) SetAside(_ context.Context, rolloutID string, from, to int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.aside = append(q.aside, fmt.Sprintf("%s %d-%d", rolloutID, from, to))
	q.acked[rolloutID] = to
	return nil
}

func (q *queue) Replay(_ context.Context, from map[string]int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.replays = append(q.replays, from)
	for id, seq := range from {
		q.acked[id] = seq - 1
	}
	return nil
}

type rig struct {
	*queue
	t      *testing.T
	dir    string
	cp     *standin.ControlPlane
	worker *outbound.Worker
	log    bytes.Buffer
}

func inBubble(t *testing.T, test func(t *testing.T, r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		ca := standin.NewCA(t)
		r := &rig{
			queue: &queue{acked: map[string]int64{}, refused: map[string][]int64{}, ready: make(chan struct{}, 1)},
			t:     t, dir: t.TempDir(), cp: standin.StartInMemory(t, ca),
		}
		f := ca.WriteHost(r.dir, "web-01")
		logger := slog.New(slog.NewTextHandler(&r.log, nil))
		c, err := client.New(client.Options{
			ControlPlanes: []string{r.cp.URL}, CA: f.CA, Cert: f.Cert, Key: f.Key, Clock: clock.System{}, Logger: logger, Dial: r.cp.Dial,
		})
		if err != nil {
			t.Fatal(err)
		}
		folder, err := outbound.OpenFolder(r.dir)
		if err != nil {
			t.Fatal(err)
		}
		r.worker = outbound.New(outbound.Options{
			ControlPlane: c, Reducer: r.queue, SetAside: folder, ErrorBackoff: 5 * time.Second,
			Clock: clock.System{}, Logger: logger, Random: func() float64 { return 0 },
		})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- r.worker.Run(ctx) }()
		t.Cleanup(func() {
			begin := clock.System{}.Now()
			cancel()
			err := <-done
			if took := (clock.System{}).Now().Sub(begin); !errors.Is(err, context.Canceled) || took > time.Second {
				t.Errorf("ended with %v after %v", err, took)
			}
			folder.Close()
			c.Close()
		})
		test(t, r)
	})
}

func (r *rig) pass(d time.Duration) {
	clock.System{}.Sleep(context.Background(), d)
	synctest.Wait()
}

// sent lists the batches so far as "rollout first-last".
func (r *rig) sent() []string {
	var out []string
	for _, req := range r.cp.Requests(eventsPath) {
		var b api.EventBatch
		if err := json.Unmarshal(req.Body, &b); err != nil {
			r.t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s %d-%d", b.RolloutID, b.Events[0].Seq, b.Events[len(b.Events)-1].Seq))
	}
	return out
}

func (r *rig) want(what string, got, want []string) {
	r.t.Helper()
	if !slices.Equal(got, want) {
		r.t.Errorf("%s: got %q, want %q; the log:\n%s", what, got, want, &r.log)
	}
}

// answer has one rollout's batches answered by h.
func (r *rig) answer(rolloutID string, h http.HandlerFunc) {
	r.cp.Handle(eventsPath, func(w http.ResponseWriter, req *http.Request) {
		if strings.Contains(string(standin.Of(req).Body), `"rolloutId":"`+rolloutID+`"`) {
			h(w, req)
			return
		}
		r.cp.Honest(w, req)
	})
}

func problem(status int, code api.Code) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { standin.Problem(w, status, code, "") }
}

func TestEventsGoOutInTheJournalsOrderUntilEachIsAcknowledged(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.add("a", "a", "b", "a", "b")
		r.pass(time.Second)
		r.add("b")
		r.pass(time.Second)
		r.want("sent", r.sent(), []string{"a 1-2", "b 1-1", "a 3-3", "b 2-2", "b 3-3"})
		if want := map[string]int64{"a": 3, "b": 3}; !maps.Equal(r.acked, want) {
			t.Errorf("acknowledged %v, want %v", r.acked, want)
		}
	})
}

func TestAfterAnErrorTheSameBatchIsSentAgainWithGrowingWaits(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.cp.Handle(eventsPath, problem(500, api.CodeInternal))
		r.add("a")
		r.pass(21 * time.Second)
		r.want("sent", r.sent(), []string{"a 1-1", "a 1-1", "a 1-1", "a 1-1", "a 1-1"})
		r.cp.Handle(eventsPath, nil)
		r.worker.Resend() // the control plane gave the dispatch again: no waiting now
		synctest.Wait()
		r.pass(time.Millisecond)
		if r.acked["a"] != 1 || len(r.sent()) != 6 {
			t.Errorf("sent %v, acknowledged %v", r.sent(), r.acked)
		}
	})
}

func TestAGapIsFilledFromWhereTheControlPlaneSays(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.add("a", "a", "a")
		r.pass(time.Second)
		asked := false
		r.cp.Handle(eventsPath, func(w http.ResponseWriter, req *http.Request) {
			if asked {
				r.cp.Honest(w, req)
				return
			}
			asked = true
			w.Header().Set("Content-Type", api.ProblemType)
			w.WriteHeader(http.StatusConflict)
			data, _ := json.Marshal(api.Problem{Status: 409, Code: api.CodeSequenceGap, ExpectedSeq: 2})
			w.Write(data)
		})
		r.add("a")
		r.pass(time.Second)
		r.want("sent", r.sent(), []string{"a 1-3", "a 4-4", "a 2-4"})
	})
}

func TestAControlPlaneThatOnlySeesGapsNeitherLoopsNorHoldsUpOthers(t *testing.T) {
	for _, expected := range []int64{1, 0, 2, 1 << 50, -1} {
		inBubble(t, func(t *testing.T, r *rig) {
			r.answer("a", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", api.ProblemType)
				w.WriteHeader(http.StatusConflict)
				data, _ := json.Marshal(api.Problem{Status: 409, Code: api.CodeSequenceGap, ExpectedSeq: expected})
				w.Write(data)
			})
			if err := r.Acked(t.Context(), "a", 1, nil); err != nil {
				t.Fatal(err)
			}
			r.add("a", "a", "b")
			r.pass(time.Minute)
			if n := len(r.sent()); n > 4 || r.acked["b"] != 1 {
				t.Errorf("expected %d: sent %v, acknowledged %v", expected, r.sent(), r.acked)
			}
		})
	}
}

func TestARolloutThatTheControlPlaneDoesNotKnowWaitsForTheNextHeartbeat(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.answer("a", problem(404, api.CodeUnknownRollout))
		r.add("a", "b", "a")
		r.pass(time.Hour)
		r.want("before the heartbeat", r.sent(), []string{"a 1-1", "b 1-1"})
		r.worker.Heard()
		r.pass(time.Minute)
		r.cp.Handle(eventsPath, nil)
		r.worker.Heard()
		r.pass(time.Minute)
		r.want("after it", r.sent(), []string{"a 1-1", "b 1-1", "a 1-2", "a 1-2"})
		r.answer("a", problem(404, api.CodeUnknownRollout))
		r.add("a")
		r.pass(time.Minute)
		r.cp.Handle(eventsPath, nil)
		r.worker.Resend() // it dispatches the rollout, so it knows it
		r.pass(time.Second)
		r.want("when it is dispatched again", r.sent()[4:], []string{"a 3-3", "a 3-3"})
		if r.acked["a"] != 3 {
			t.Errorf("acknowledged %v", r.acked)
		}
	})
}

func TestAMalformedBatchIsSetAsideOnDiskAndTheRestGoesOn(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.answer("stable@0a1b2c3", problem(400, api.CodeMalformed))
		r.add("stable@0a1b2c3", "stable@0a1b2c3", "b")
		r.pass(time.Second)
		r.want("set aside", r.aside, []string{"stable@0a1b2c3 1-2"})
		if r.acked["b"] != 1 || !strings.Contains(r.log.String(), "level=ERROR") {
			t.Errorf("acknowledged %v; the log:\n%s", r.acked, &r.log)
		}
		for range 3 * outbound.MaxSetAside {
			r.add("stable@0a1b2c3")
			r.pass(time.Second)
		}
		files, err := filepath.Glob(filepath.Join(r.dir, "set-aside", "*"))
		if err != nil || len(files) != outbound.MaxSetAside {
			t.Fatalf("%d files, %v; at most %d are kept", len(files), err, outbound.MaxSetAside)
		}
		var b api.EventBatch
		data, err := os.ReadFile(files[0])
		if err == nil {
			err = json.Unmarshal(data, &b)
		}
		if err != nil || b.RolloutID != "stable@0a1b2c3" || len(b.Events) != 1 {
			t.Errorf("kept %+v, %v", b, err)
		}
	})
}

func TestARefusedEventIsReportedAndHasUsedItsNumber(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.cp.Handle(eventsPath, func(w http.ResponseWriter, _ *http.Request) {
			standin.JSON(w, api.EventsAck{AckedSeq: 3, Refused: []api.RefusedEvent{
				{Seq: 2, Code: api.CodeInvalidTransition, Detail: "no"}, {Seq: 900, Code: api.CodeInvalidTransition},
			}})
		})
		r.add("a", "a", "a")
		r.pass(time.Second)
		if r.acked["a"] != 3 || !slices.Equal(r.refused["a"], []int64{2}) || len(r.sent()) != 1 {
			t.Errorf("acknowledged %v, refused %v, sent %v", r.acked, r.refused, r.sent())
		}
		if !strings.Contains(r.log.String(), "code=invalid-transition") {
			t.Errorf("not reported:\n%s", &r.log)
		}
	})
}

func TestAnAcknowledgementCountsForWhatWasSentAndNotLess(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		acked := int64(1 << 52)
		r.cp.Handle(eventsPath, func(w http.ResponseWriter, _ *http.Request) { standin.JSON(w, api.EventsAck{AckedSeq: acked}) })
		r.add("a", "a")
		r.pass(time.Second)
		if r.acked["a"] != 2 {
			t.Errorf("acknowledged %v of 2", r.acked)
		}
		r.cp.Handle(eventsPath, func(w http.ResponseWriter, _ *http.Request) { standin.JSON(w, api.EventsAck{AckedSeq: 2}) })
		r.add("a")
		r.pass(time.Minute)
		if n := len(r.sent()); r.acked["a"] != 2 || n < 3 || n > 14 {
			t.Errorf("acknowledged %v, sent %d times in a minute", r.acked, n)
		}
	})
}

func TestAControlPlaneThatKeepsLosingWhatItAcknowledgedIsNotServedInAHotLoop(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		n := 0
		r.answer("a", func(w http.ResponseWriter, req *http.Request) {
			if n++; n%2 == 1 { // it takes every second batch
				r.cp.Honest(w, req)
				return
			}
			w.Header().Set("Content-Type", api.ProblemType)
			w.WriteHeader(http.StatusConflict)
			data, _ := json.Marshal(api.Problem{Status: 409, Code: api.CodeSequenceGap, ExpectedSeq: 1})
			w.Write(data)
		})
		for range 100 {
			r.add("a")
			r.pass(100 * time.Millisecond)
		}
		if sent := len(r.sent()); sent > 12 {
			t.Errorf("%d batches in 10 s", sent)
		}
		r.answer("a", r.cp.Honest)
		r.worker.Heard()
		r.pass(time.Minute)
		if got := r.acked["a"]; got != 100 {
			t.Errorf("once it behaves it has %d of 100", got)
		}
	})
}
