package heartbeat_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/accept"
	"nixfleet.dev/nixfleet/internal/agent/client"
	"nixfleet.dev/nixfleet/internal/agent/heartbeat"
	"nixfleet.dev/nixfleet/internal/agent/reducer"
	"nixfleet.dev/nixfleet/internal/agent/standin"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

const beatPath = "POST /v1/agent/heartbeat"

var host = manifesttest.Hostname(0)

// rig is a worker between a stand-in control plane and a reducer that writes down what it is asked.
type rig struct {
	t       *testing.T
	cp      *standin.ControlPlane
	keeper  *accept.Keeper
	options heartbeat.Options
	worker  *heartbeat.Worker
	log     lockedBuffer
	heard   int

	mu    sync.Mutex
	view  reducer.View
	asked []string
}

func (r *rig) View() *reducer.View {
	v := r.view
	return &v
}

func (r *rig) ask(what string, args any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, fmt.Sprintf("%s %v", what, args))
	return nil
}

func (r *rig) Replay(_ context.Context, from map[string]int64) error { return r.ask("replay", from) }
func (r *rig) Forget(_ context.Context, ids []string) error          { return r.ask("forget", ids) }
func (r *rig) Withdraw(_ context.Context, ids []string) error        { return r.ask("withdraw", ids) }

func (r *rig) Current(context.Context) (string, error) { return "running", nil }
func (r *rig) Boot(context.Context) (string, error)    { return "boots", nil }

func (r *rig) RebootPending(context.Context) ([]string, error) { return []string{"kernel"}, nil }

func inBubble(t *testing.T, test func(t *testing.T, r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		ca := standin.NewCA(t)
		r := &rig{t: t, cp: standin.StartInMemory(t, ca)}
		dir := t.TempDir()
		f := ca.WriteHost(dir, host)
		logger := slog.New(slog.NewTextHandler(&r.log, nil))
		c, err := client.New(client.Options{
			ControlPlanes: []string{r.cp.URL}, CA: f.CA, Cert: f.Cert, Key: f.Key, Clock: clock.System{}, Logger: logger, Dial: r.cp.Dial,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		state, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { state.Close() })
		root := manifesttest.Root(manifesttest.Trust())
		r.keeper, err = accept.Open(accept.Options{
			Dir: state, Root: func() *trust.Root { return root }, Hostname: host, Clock: clock.System{}, Logger: logger,
		})
		if err != nil {
			t.Fatal(err)
		}
		r.view = reducer.View{JournalID: strings.Repeat("ab", 16), LastSeq: map[string]int64{"stable@0a1b2c3d": 7}, Rollouts: map[string]reducer.RolloutView{"stable@0a1b2c3d": {}}}
		r.options = heartbeat.Options{
			Hostname: host, Version: "1.2", BootID: "boot", TrustSHA256: func() string { return "digest" }, Uptime: func() time.Duration { return 90 * time.Second },
			ErrorBackoff: 5 * time.Second, ControlPlane: c, Reducer: r, Keeper: r.keeper, Machine: r, Heard: func() { r.heard++ },
			Clock: clock.System{}, Logger: logger, Random: func() float64 { return 0 },
		}
		test(t, r)
	})
}

// start runs the worker until the test ends.
func (r *rig) start() {
	r.worker = heartbeat.New(r.options)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.worker.Run(ctx) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			r.t.Errorf("ended with %v", err)
		}
	})
}

func (r *rig) pass(d time.Duration) {
	clock.System{}.Sleep(context.Background(), d)
	synctest.Wait()
}

func (r *rig) beats() []time.Time {
	var at []time.Time
	for _, req := range r.cp.Requests(beatPath) {
		at = append(at, req.At)
	}
	return at
}

func TestAHeartbeatSaysWhatTheHostIs(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		select {
		case <-r.worker.First():
			t.Error("the first heartbeat is said to be answered before it was sent")
		default:
		}
		r.pass(time.Second)
		<-r.worker.First()
		hb := r.cp.Heartbeats()[0]
		if hb.Hostname != host || hb.JournalID != r.view.JournalID || hb.AgentVersion != "1.2" || hb.BootID != "boot" ||
			hb.CurrentClosure != "running" || hb.BootClosure != "boots" || hb.TrustSHA256 != "digest" || hb.UptimeSeconds != 90 ||
			hb.LastSeq["stable@0a1b2c3d"] != 7 || !slices.Equal(hb.RebootPending, []string{"kernel"}) || hb.At.IsZero() {
			t.Errorf("said %+v", hb)
		}
		if r.heard != 1 {
			t.Errorf("outbound was told %d times", r.heard)
		}
	})
}

func TestTheIntervalIsWhatTheControlPlaneSaysClamped(t *testing.T) {
	for told, want := range map[time.Duration]time.Duration{
		0: time.Minute, time.Nanosecond: 10 * time.Second, time.Second: 10 * time.Second, 42 * time.Second: 42 * time.Second,
		15 * time.Minute: 15 * time.Minute, 1000 * time.Hour: 15 * time.Minute,
	} {
		inBubble(t, func(t *testing.T, r *rig) {
			r.cp.Reply(api.HeartbeatReply{Interval: api.Duration(told)})
			r.start()
			r.pass(20 * time.Minute)
			beats := r.beats()
			if gap := beats[1].Sub(beats[0]); gap != want {
				t.Errorf("told %v: every %v, want %v", told, gap, want)
			}
		})
	}
}

func TestTheHostsOwnIntervalIsNotTheControlPlanesToChange(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.options.Interval = time.Second
		r.cp.Reply(api.HeartbeatReply{Interval: api.Duration(time.Minute)})
		r.start()
		r.pass(10*time.Second + time.Millisecond)
		if n := len(r.beats()); n != 11 {
			t.Errorf("%d heartbeats in 10 s", n)
		}
	})
}

func TestHeartbeatsAreSpreadAndGoBetweenPollsWhereTheyCan(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.options.Random = func() float64 { return 0.999999 }
		r.start()
		r.pass(time.Second)
		r.worker.Between(t.Context())
		if n := len(r.beats()); n != 1 {
			t.Errorf("%d heartbeats: a poll that ended early had one sent", n)
		}
		r.pass(59 * time.Second)
		if n := len(r.beats()); n != 1 {
			t.Errorf("%d heartbeats before the jitter was over", n)
		}
		r.worker.Between(t.Context())
		if n := len(r.beats()); n != 2 {
			t.Errorf("%d heartbeats: none between polls although it was due", n)
		}
		r.pass(70 * time.Second)
		if n := len(r.beats()); n != 2 {
			t.Errorf("%d heartbeats: the one between polls did not count", n)
		}
		r.pass(10 * time.Second)
		if n := len(r.beats()); n != 3 {
			t.Errorf("%d heartbeats: without a poll that ends, none was sent", n)
		}
	})
}

func TestAFailedHeartbeatIsTriedAgainWithGrowingWaits(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.options.Random = func() float64 { return 0.999999 }
		r.cp.Handle(beatPath, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
		r.start()
		r.pass(10 * time.Minute)
		beats := r.beats()
		if n := len(beats); n < 5 || n > 12 {
			t.Errorf("%d heartbeats in ten minutes of failures", n)
		}
		select {
		case <-r.worker.First():
			t.Error("the first heartbeat is said to be answered")
		default:
		}
		r.cp.Handle(beatPath, nil)
		r.pass(5 * time.Minute)
		<-r.worker.First()
	})
}

func TestAdviceIsPassedOnOnlyForRolloutsThatThisHostKnows(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		known, strange := "stable@0a1b2c3d", "edge@0a1b2c3d"
		r.cp.Reply(api.HeartbeatReply{
			ReplayFrom: map[string]int64{known: -5, strange: 3},
			Forget:     []string{strange, known}, Withdrawn: []string{known, strange, "../x"},
		})
		r.options.Interval = time.Hour
		r.view.Acked = map[string]int64{known: 5}
		r.start()
		r.pass(time.Second)
		want := []string{"withdraw [" + known + "]", "replay map[" + known + ":1]", "forget [" + known + "]"}
		if !slices.Equal(r.asked, want) {
			t.Errorf("asked %q, want %q", r.asked, want)
		}
	})
}

func TestEventsThatWereOnTheirWayWhenTheHeartbeatWasSentAreNotSentAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		const known = "stable@0a1b2c3d"
		r.view.Acked = map[string]int64{known: 4} // of 7
		r.cp.Handle(beatPath, func(w http.ResponseWriter, req *http.Request) {
			r.view = reducer.View{Rollouts: r.view.Rollouts, Acked: map[string]int64{known: 7}} // meanwhile
			r.cp.Honest(w, req)
		})
		worker := heartbeat.New(r.options)
		for _, seq := range []int64{5, 7, 4, 1} {
			r.asked, r.view.Acked = nil, map[string]int64{known: 4}
			r.cp.Reply(api.HeartbeatReply{ReplayFrom: map[string]int64{known: seq}})
			if err := worker.Beat(t.Context()); err != nil {
				t.Fatal(err)
			}
			if asked := len(r.asked) > 0; asked != (seq <= 4) {
				t.Errorf("from %d: asked %q", seq, r.asked)
			}
		}
		if strings.Contains(r.log.String(), "from=map["+known+":5]") {
			t.Errorf("it is said aloud:\n%s", r.log.String())
		}
	})
}

func TestAHeartbeatThatFailedIsNotTriedAgainAfterEachPoll(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		r.pass(50 * time.Second)
		r.cp.Handle(beatPath, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "300")
			w.WriteHeader(503)
		})
		for range 60 { // a control plane that answers polls at once
			r.worker.Between(t.Context())
			r.pass(time.Second)
		}
		if n := len(r.beats()); n > 5 {
			t.Errorf("%d heartbeats", n)
		}
	})
}

func TestBeatReturnsOnceTheAnswerWasActedOn(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.cp.Reply(api.HeartbeatReply{Withdrawn: []string{"stable@0a1b2c3d"}})
		worker := heartbeat.New(r.options)
		if err := worker.Beat(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(r.asked) != 1 {
			t.Errorf("asked %q by then", r.asked)
		}
		r.cp.Handle(beatPath, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
		if err := worker.Beat(t.Context()); err == nil {
			t.Error("503 was taken for an answer")
		}
		if err := worker.Confirm(t.Context()); err != nil {
			t.Errorf("503 confirms that a control plane can be reached, but: %v", err)
		}
	})
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
