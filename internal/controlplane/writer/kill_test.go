package writer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/controlplane/store"
	"nixfleet.dev/nixfleet/internal/rollout"
)

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
