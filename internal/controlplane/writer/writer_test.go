package writer

import (
	"bytes"
	"errors"
	"slices"
	"strings"
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

func TestASnapshotAheadOfTheLogIsNotUsed(t *testing.T) {
	wd := newWorld(t)
	wd.start()
	for _, a := range agents(3) {
		if err := a.beat(t.Context(), wd.w); err != nil {
			t.Fatal(err)
		}
	}
	if err := wd.end(); err != nil {
		t.Fatal(err)
	}
	execute(t, wd.dir, "DELETE FROM log WHERE seq = 3") // as an older backup of the log alone would
	wd.start()
	var seq int64
	if err := wd.w.View(t.Context(), func(f *rollout.Fleet) { seq = f.LogSeq() }); err != nil || seq != 2 {
		t.Errorf("the fleet is at entry %d (%v), and the log ends at 2", seq, err)
	}
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
		wait(t, 10*time.Minute)
		if err := a.beat(t.Context(), wd.w); err != nil {
			t.Fatal(err)
		}
		want := time.Now()
		wait(t, heardEvery)
		if saved, err := wd.store.Heard(t.Context()); err != nil || !saved[a.host].Equal(want) {
			t.Errorf("saved as %v, %v, want %v", saved[a.host], err, want)
		}
		if err := wd.end(); err != nil {
			t.Fatal(err)
		}
		wait(t, time.Hour)
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

// wait lets time pass in a bubble.
func wait(t *testing.T, d time.Duration) {
	t.Helper()
	if err := (clock.System{}).Sleep(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
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
		wait(t, 100*time.Hour)
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
