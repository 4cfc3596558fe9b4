package writer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane/store"
	"nixfleet.dev/nixfleet/internal/rollout"
)

func agents(n int) []*agent {
	all := make([]*agent, n)
	for i := range all {
		all[i] = newAgent(i)
	}
	return all
}

// converge has the agents do what they are offered until the rollout is Converged, all at once or one
// after the other. It returns the first error of the control plane.
func (wd *world) converge(id string, agents []*agent, batch int) error {
	wd.t.Helper()
	ctx := wd.t.Context()
	for range 20 {
		for _, a := range agents {
			if err := a.beat(ctx, wd.w); err != nil {
				return err
			}
			a.follow(wd.registry.offer(a.host))
			if err := a.tell(ctx, wd.w, batch); err != nil {
				return err
			}
		}
		state := api.RolloutState("")
		if err := wd.w.View(ctx, func(f *rollout.Fleet) {
			r, _ := f.Rollout(id, time.Now())
			state = r.State
		}); err != nil {
			return err
		}
		if state == api.RolloutConverged {
			return nil
		}
	}
	wd.t.Fatalf("%s does not converge: it is %s", id, wd.state(id))
	return nil
}

func TestARolloutGoesThroughTheLog(t *testing.T) {
	wd := newWorld(t)
	wd.start()
	all, r := agents(12), newRelease(t, 12, 1, 2)
	wd.adopt(r)
	if err := wd.converge(r.id, all, 4); err != nil {
		t.Fatal(err)
	}
	wd.checkLog(all)
	history, err := wd.w.History(t.Context(), r.id, 0, 1000)
	if err != nil || len(history) < 12*6 {
		t.Errorf("the history has %d entries, %v", len(history), err)
	}
	if !slices.IsSortedFunc(history, func(a, b api.LoggedEvent) int { return int(a.LogSeq - b.LogSeq) }) {
		t.Error("the history is not in order")
	}
	if part, err := wd.w.History(t.Context(), r.id, history[9].LogSeq, 5); err != nil || len(part) != 5 || part[0].LogSeq != history[10].LogSeq {
		t.Errorf("a part of the history came as %+v, %v", part, err)
	}
}

func TestARestartGoesOnWhereItStopped(t *testing.T) {
	for name, forget := range map[string]string{
		"from the snapshot that was left":          "",
		"from the log alone":                       "DELETE FROM snapshots",
		"from the log, as the snapshot is damaged": "UPDATE chunks SET data = x'00' WHERE digest IN (SELECT digest FROM snapshots)",
	} {
		t.Run(name, func(t *testing.T) {
			wd := newWorld(t)
			wd.start()
			all, r := agents(10), newRelease(t, 10, 1, 2)
			wd.adopt(r)
			for _, a := range all {
				if err := a.beat(t.Context(), wd.w); err != nil {
					t.Fatal(err)
				}
			}
			var before []byte
			offered := wd.registry.offer(all[0].host)
			if offered == nil {
				t.Fatal("the first wave is not offered anything")
			}
			if err := wd.w.View(t.Context(), func(f *rollout.Fleet) { before, _ = f.Snapshot() }); err != nil {
				t.Fatal(err)
			}
			if err := wd.end(); err != nil {
				t.Fatal(err)
			}
			if forget != "" {
				execute(t, wd.dir, forget)
			}
			wd.start()
			if again := wd.registry.offer(all[0].host); again == nil || *again != *offered {
				t.Errorf("offered %+v, before the restart %+v", again, offered)
			}
			var after []byte
			if err := wd.w.View(t.Context(), func(f *rollout.Fleet) { after, _ = f.Snapshot() }); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(before, after) {
				t.Errorf("the fleet is not what it was:\n%s\n%s", before, after)
			}
			if err := wd.converge(r.id, all, 4); err != nil {
				t.Fatal(err)
			}
			wd.checkLog(all)
		})
	}
}

// failing is a Store whose n-th Append, counted from 1, fails before or after it has done its work, and
// all that follow too: as when the process is killed there.
type failing struct {
	store.Store
	n     int
	after bool
	count *atomic.Int64
}

var errKilled = errors.New("killed")

func (s failing) Append(ctx context.Context, entries []store.Entry) error {
	n := int(s.count.Add(1))
	if s.n > 0 && n >= s.n && !(n == s.n && s.after) {
		return errKilled
	}
	if err := s.Store.Append(ctx, entries); err != nil || n != s.n {
		return err
	}
	return errKilled
}

func TestAKillAtAnyGroupLosesNoAcknowledgedEventAndDoublesNone(t *testing.T) {
	run := func(t *testing.T, n int, after bool) int64 {
		wd := newWorld(t)
		var count atomic.Int64
		wd.wrap = func(s store.Store) store.Store { return failing{s, n, after, &count} }
		wd.start()
		all, r := agents(4), newRelease(t, 4, 1, 2)
		err := wd.w.Adopt(t.Context(), r.adoption, r.objects...)
		if err == nil {
			err = wd.converge(r.id, all, 2)
		}
		if n == 0 {
			return count.Load()
		}
		if !errors.Is(err, ErrStopped) {
			t.Fatalf("group %d was killed, and the control plane says %v", n, err)
		}
		if err := wd.end(); !errors.Is(err, errKilled) {
			t.Fatalf("the writer ended with %v", err)
		}
		wd.wrap = func(s store.Store) store.Store { return s }
		wd.start()
		wd.adopt(r)
		if err := wd.converge(r.id, all, 3); err != nil {
			t.Fatal(err)
		}
		wd.checkLog(all)
		return count.Load()
	}
	groups := int(run(t, 0, false))
	if groups < 10 {
		t.Fatalf("only %d groups", groups)
	}
	for n := 1; n <= groups; n++ {
		for _, after := range []bool{false, true} {
			if !t.Run(fmt.Sprintf("group %d, after %v", n, after), func(t *testing.T) { run(t, n, after) }) {
				return
			}
		}
	}
}

func TestAKillUnderLoadLosesNoAcknowledgedEvent(t *testing.T) {
	const hosts = 60
	wd := newWorld(t)
	all, r := agents(hosts), newRelease(t, hosts, 1, 2)
	for kill := 1; ; kill++ {
		var count atomic.Int64
		wd.wrap = func(s store.Store) store.Store { return failing{s, 3 * kill, kill%2 == 0, &count} }
		wd.start()
		err := wd.w.Adopt(t.Context(), r.adoption, r.objects...)
		for range 20 {
			var wg sync.WaitGroup
			for _, a := range all {
				wg.Go(func() {
					if a.beat(t.Context(), wd.w) == nil {
						a.follow(wd.registry.offer(a.host))
						_ = a.tell(t.Context(), wd.w, 2) // it is told again after the restart
					}
				})
			}
			wg.Wait()
			if err = wd.w.View(t.Context(), func(*rollout.Fleet) {}); err != nil || wd.state(r.id) == api.RolloutConverged {
				break
			}
		}
		if err == nil {
			break
		}
		if err := wd.end(); !errors.Is(err, errKilled) {
			t.Fatalf("the writer ended with %v", err)
		}
	}
	if s := wd.state(r.id); s != api.RolloutConverged {
		t.Errorf("the rollout is %s", s)
	}
	wd.checkLog(all)
}

func TestADeletedDatabaseIsRebuiltFromTheSourceAndTheAgents(t *testing.T) {
	wd := newWorld(t)
	wd.start()
	all, r := agents(10), newRelease(t, 10, 1, 2)
	wd.adopt(r)
	for _, a := range all {
		if err := a.beat(t.Context(), wd.w); err != nil {
			t.Fatal(err)
		}
		a.follow(wd.registry.offer(a.host))
		if err := a.tell(t.Context(), wd.w, 10); err != nil {
			t.Fatal(err)
		}
	}
	if err := wd.end(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(wd.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	wd.start()
	wd.adopt(r)
	if err := wd.converge(r.id, all, 10); err != nil {
		t.Fatal(err)
	}
	wd.checkLog(all)
	for _, a := range all {
		if n := len(a.streams[r.id].events); n != 6 {
			t.Errorf("%s has %d events: it was activated again", a.host, n)
		}
	}
}

// held is a Store whose Append waits until it is let go.
type held struct {
	store.Store
	entered chan int // how many entries
	release chan error
}

func (s held) Append(ctx context.Context, entries []store.Entry) error {
	s.entered <- len(entries)
	if err := <-s.release; err != nil {
		return err
	}
	return s.Store.Append(ctx, entries)
}

func newHeld() held { return held{entered: make(chan int), release: make(chan error)} }

func (s held) on(inner store.Store) store.Store { s.Store = inner; return s }

// beats sends first heartbeats of n hosts at once and returns where their errors come.
func (wd *world) beats(from, n int) chan error {
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- newAgent(from+i).beat(context.WithoutCancel(wd.t.Context()), wd.w) }()
	}
	return errs
}

// TestNothingIsToldBeforeItIsOnDisk holds the commit of a release's first dispatches back.
func TestNothingIsToldBeforeItIsOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wd := newWorld(t)
		h := newHeld()
		wd.wrap = h.on
		wd.start()
		a, r := newAgent(0), newRelease(t, 1, 1, 2)
		beat := make(chan error, 1)
		go func() { beat <- a.beat(t.Context(), wd.w) }()
		<-h.entered
		h.release <- nil
		if err := <-beat; err != nil {
			t.Fatal(err)
		}

		adopted, viewed, again := make(chan error, 1), make(chan error, 1), make(chan error, 1)
		go func() { adopted <- wd.w.Adopt(t.Context(), r.adoption, r.objects...) }()
		<-h.entered
		go func() { viewed <- wd.w.View(t.Context(), func(*rollout.Fleet) {}) }()
		go func() { again <- a.beat(t.Context(), wd.w) }()
		synctest.Wait()
		if d := wd.registry.offer(a.host); d != nil {
			t.Errorf("offered before it is on disk: %+v", d)
		}
		select {
		case <-adopted:
			t.Error("the release was acknowledged before it is on disk")
		case <-viewed:
			t.Error("a view returned before what it saw is on disk")
		case <-again:
			t.Error("a heartbeat was answered from what is not on disk")
		default:
		}
		h.release <- nil
		for _, c := range []chan error{adopted, viewed, again} {
			if err := <-c; err != nil {
				t.Error(err)
			}
		}
		if wd.registry.offer(a.host) == nil {
			t.Error("the host is offered nothing")
		}
	})
}

func TestWhatComesInDuringACommitIsCommittedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wd := newWorld(t)
		h := newHeld()
		wd.wrap = h.on
		wd.start()
		first := wd.beats(0, 1)
		if n := <-h.entered; n != 1 {
			t.Errorf("the first group has %d entries, want 1", n)
		}
		rest := wd.beats(1, 700)
		synctest.Wait()
		h.release <- nil
		if n := <-h.entered; n != GroupSize {
			t.Errorf("the second group has %d entries, want %d", n, GroupSize)
		}
		h.release <- nil
		if n := <-h.entered; n != 700-GroupSize {
			t.Errorf("the third group has %d entries, want %d", n, 700-GroupSize)
		}
		h.release <- nil
		for range 700 {
			if err := <-rest; err != nil {
				t.Error(err)
			}
		}
		if err := <-first; err != nil {
			t.Error(err)
		}
	})
}

func TestAFullQueueIsOverloadedAndShutdownDrainsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wd := newWorld(t)
		h := newHeld()
		wd.wrap = h.on
		wd.start()
		first := wd.beats(0, 1)
		<-h.entered
		const full = GroupSize + QueueLength
		taken := wd.beats(1, GroupSize) // into the next group
		synctest.Wait()
		waiting := wd.beats(1+GroupSize, QueueLength)
		synctest.Wait()
		if err := newAgent(full+1).beat(t.Context(), wd.w); !errors.Is(err, ErrOverloaded) {
			t.Errorf("got %v, want ErrOverloaded", err)
		}
		wd.stop()
		h.release <- nil
		for committed := 0; committed < full; {
			committed += <-h.entered
			h.release <- nil
		}
		for c, n := range map[chan error]int{first: 1, taken: GroupSize, waiting: QueueLength} {
			for range n {
				if err := <-c; err != nil {
					t.Fatal("a heartbeat that was taken before the end got", err)
				}
			}
		}
		synctest.Wait()
		if err := newAgent(0).beat(t.Context(), wd.w); !errors.Is(err, ErrStopped) {
			t.Errorf("after the end got %v, want ErrStopped", err)
		}
	})
}

func TestAFailedCommitAnswersEverybodyWithAnErrorAndEndsTheWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wd := newWorld(t)
		h := newHeld()
		wd.wrap = h.on
		wd.start()
		first := wd.beats(0, 1)
		<-h.entered
		waiting := wd.beats(1, 2000)
		synctest.Wait()
		viewed := make(chan error, 1)
		go func() { viewed <- wd.w.View(t.Context(), func(*rollout.Fleet) {}) }()
		synctest.Wait()
		h.release <- store.ErrFull
		for range 2000 {
			if err := <-waiting; !errors.Is(err, ErrStopped) {
				t.Fatalf("a waiting heartbeat got %v", err)
			}
		}
		for _, c := range []chan error{first, viewed} {
			if err := <-c; !errors.Is(err, ErrStopped) || !errors.Is(err, store.ErrFull) {
				t.Errorf("got %v, want ErrStopped for ErrFull", err)
			}
		}
		if err := wd.end(); !errors.Is(err, store.ErrFull) {
			t.Errorf("the writer ended with %v", err)
		}
		wd.wrap = func(s store.Store) store.Store { return s }
		wd.start()
		if n := len(wd.entries()); n != 0 {
			t.Errorf("%d entries of a failed commit are on the log", n)
		}
	})
}

func TestAPollOrAHeartbeatThatSaysNothingNewWritesNothing(t *testing.T) {
	wd := newWorld(t)
	wd.start()
	all := agents(5)
	for range 3 {
		for _, a := range all {
			if err := a.beat(t.Context(), wd.w); err != nil {
				t.Fatal(err)
			}
			wd.w.Heard(a.host)
		}
	}
	wd.w.Heard("a-host-that-nobody-knows")
	if n := len(wd.entries()); n != 5 {
		t.Errorf("5 hosts with 3 heartbeats each made %d entries, want 5", n)
	}
}

func TestWhenHostsWereLastHeardSurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wd := newWorld(t)
		wd.start()
		a, r := newAgent(0), newRelease(t, 1, 1, 2)
		wd.adopt(r)
		if err := a.beat(t.Context(), wd.w); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if err := a.beat(t.Context(), wd.w); err != nil {
			t.Fatal(err)
		}
		want := time.Now()
		time.Sleep(heardEvery)
		synctest.Wait()
		if saved, err := wd.store.Heard(t.Context()); err != nil || !saved[a.host].Equal(want) {
			t.Errorf("saved as %v, %v, want %v", saved[a.host], err, want)
		}
		if err := wd.end(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		wd.start()
		var got api.Host
		if err := wd.w.View(t.Context(), func(f *rollout.Fleet) { got, _ = f.Host(a.host, time.Now()) }); err != nil {
			t.Fatal(err)
		}
		if got.LastHeartbeatAt == nil || !got.LastHeartbeatAt.Equal(want) {
			t.Errorf("last heard at %v, want %v", got.LastHeartbeatAt, want)
		}
	})
}

func TestCallsBeforeTheLogIsReadAreTurnedAway(t *testing.T) {
	w := New(Options{Clock: clock.System{}})
	if err := newAgent(0).beat(t.Context(), w); !errors.Is(err, ErrStarting) {
		t.Errorf("a heartbeat got %v, want ErrStarting", err)
	}
	if err := w.View(t.Context(), func(*rollout.Fleet) {}); !errors.Is(err, ErrStarting) {
		t.Errorf("a view got %v, want ErrStarting", err)
	}
	if err := w.Adopt(t.Context(), rollout.Adoption{}); !errors.Is(err, ErrStarting) {
		t.Errorf("a release got %v, want ErrStarting", err)
	}
	select {
	case <-w.Ready():
		t.Error("it says that it is ready")
	default:
	}
}

func TestAReleaseWhoseArtifactsAreMissingIsNotRecorded(t *testing.T) {
	wd := newWorld(t)
	wd.start()
	r := newRelease(t, 3, 1, 2)
	if err := wd.w.Adopt(t.Context(), r.adoption, r.objects[:2]...); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	if n := len(wd.entries()); n != 0 {
		t.Errorf("%d entries were recorded", n)
	}
	wd.adopt(r)
}

func TestAnEnrollmentTokenServesOneKeyForEver(t *testing.T) {
	wd := newWorld(t)
	wd.start()
	use := func(key string) error {
		return wd.w.UseToken(t.Context(), "host-000000", strings.Repeat("a", 32), strings.Repeat(key, 64), nil)
	}
	if err := use("1"); err != nil {
		t.Fatal(err)
	}
	if err := wd.end(); err != nil {
		t.Fatal(err)
	}
	wd.start()
	var spent *rollout.TokenSpent
	if err := use("2"); !errors.As(err, &spent) {
		t.Errorf("another key got %v, want TokenSpent", err)
	}
	if err := use("1"); err != nil {
		t.Errorf("the same key got %v", err)
	}
}

func TestTimeAloneWakesThePlanner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wd := newWorld(t)
		wd.start()
		all, r := agents(2), newRelease(t, 2, 1, 2)
		wd.adopt(r)
		if err := all[1].beat(t.Context(), wd.w); err != nil {
			t.Fatal(err)
		}
		// The canary is never heard: it is skipped when its time is up, and nobody calls meanwhile.
		time.Sleep(100 * time.Hour)
		synctest.Wait()
		var canary api.Host
		if err := wd.w.View(t.Context(), func(f *rollout.Fleet) { canary, _ = f.Host(all[0].host, time.Now()) }); err != nil {
			t.Fatal(err)
		}
		if canary.State != api.Skipped {
			t.Errorf("a canary that was not heard for 100 hours is %s, want Skipped", canary.State)
		}
	})
}

func TestSnapshotsAreTakenInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wd := newWorld(t)
		wd.start()
		wd.w.snapshots.least = 4 << 10 // nothing was written yet: the committer does not look
		all, r := agents(20), newRelease(t, 20, 1, 2)
		wd.adopt(r)
		if err := wd.converge(r.id, all, 6); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		seqs, err := wd.store.Snapshots(t.Context())
		if err != nil || len(seqs) == 0 {
			t.Fatalf("no snapshot was taken: %v", err)
		}
		snap, err := wd.store.Snapshot(t.Context(), seqs[0])
		if err != nil {
			t.Fatal(err)
		}
		fold := rollout.New(wd.w.options)
		for _, e := range wd.entries()[:seqs[0]] {
			if err := fold.Apply(e); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := fold.Snapshot(); err != nil || !bytes.Equal(snap.Data, want) {
			t.Errorf("the snapshot is not what the log adds up to:\n%s\n%s, %v", snap.Data, want, err)
		}
	})
}

func TestMetricsCountWhatIsOnDisk(t *testing.T) {
	wd := newWorld(t)
	r := prometheus.NewPedanticRegistry()
	wd.metrics = r
	wd.start()
	if err := newAgent(0).beat(t.Context(), wd.w); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		got[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetHistogram().GetSampleSum()
		if !strings.HasPrefix(f.GetName(), "nixfleet_") {
			t.Errorf("%s does not begin with nixfleet_", f.GetName())
		}
	}
	for name, want := range map[string]float64{
		"nixfleet_log_seq": 1, "nixfleet_log_entries_total": 1, "nixfleet_log_group_entries": 1,
		"nixfleet_writer_queue_inputs": 0, "nixfleet_writer_queue_limit": QueueLength,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, want %v", name, v, want)
		}
	}
	if got["nixfleet_log_commit_seconds"] <= 0 {
		t.Error("the commit took no time")
	}
}
