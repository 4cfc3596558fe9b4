package writer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"nixfleet.dev/nixfleet/internal/controlplane/store"
	"nixfleet.dev/nixfleet/internal/rollout"
)

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

func TestASnapshotIsNeverAheadOfTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wd := newWorld(t)
		h := newHeld()
		wd.wrap = h.on
		wd.start()
		beat := wd.beats(0, 1)
		<-h.entered
		wd.w.snapshots.due <- struct{}{}
		synctest.Wait()
		if seqs, err := wd.store.Snapshots(t.Context()); err != nil || len(seqs) > 0 {
			t.Errorf("there are snapshots of %v (%v), and nothing is on the log", seqs, err)
		}
		h.release <- nil
		if err := <-beat; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if seqs, err := wd.store.Snapshots(t.Context()); err != nil || len(seqs) != 1 || seqs[0] != 1 {
			t.Errorf("there are snapshots of %v (%v), want one of entry 1", seqs, err)
		}
	})
}
