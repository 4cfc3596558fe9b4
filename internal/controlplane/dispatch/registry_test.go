package dispatch

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
)

func TestAPollGetsTheOutstandingDispatchAtOnceAndEveryTime(t *testing.T) {
	r := New()
	d := &api.Dispatch{Hostname: "web-01", Attempt: 1}
	r.Set("web-01", d)
	for range 3 {
		if got := r.Wait(t.Context(), "web-01", nil); got.Outcome != Given || got.Dispatch != d {
			t.Fatalf("got %+v", got)
		}
	}
	newer := &api.Dispatch{Hostname: "web-01", Attempt: 2}
	r.Set("web-01", newer)
	if got := r.Wait(t.Context(), "web-01", nil); got.Dispatch != newer {
		t.Errorf("got %+v after it was replaced", got)
	}
}

func TestAParkedPollIsWokenByItsOwnHostsDispatchAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		var mu sync.Mutex
		woken := map[string]Answer{}
		for i := range 100 {
			go func() {
				host := fmt.Sprintf("host-%d", i)
				answer := r.Wait(t.Context(), host, time.After(time.Minute))
				mu.Lock()
				defer mu.Unlock()
				woken[host] = answer
			}()
		}
		synctest.Wait()
		d := &api.Dispatch{Hostname: "host-7"}
		r.Set("host-7", d)
		synctest.Wait()
		if len(woken) != 1 || woken["host-7"].Dispatch != d {
			t.Fatalf("woken: %v", woken)
		}
		if parked, outstanding := r.Counts(); parked != 99 || outstanding != 1 {
			t.Errorf("%d parked, %d outstanding", parked, outstanding)
		}
		if err := (clock.System{}).Sleep(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for host, answer := range woken {
			if host != "host-7" && answer.Outcome != TimedOut {
				t.Errorf("%s ended with %+v", host, answer)
			}
		}
		if parked, _ := r.Counts(); parked != 0 || len(r.hosts) != 1 {
			t.Errorf("%d parked and %d entries are left", parked, len(r.hosts))
		}
	})
}

func TestTheNewestPollSupersedesTheOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		const polls = 1000
		answers := make(chan Answer, polls)
		for range polls {
			go func() { answers <- r.Wait(t.Context(), "web-01", nil) }()
		}
		synctest.Wait()
		if parked, _ := r.Counts(); parked != 1 || len(answers) != polls-1 {
			t.Fatalf("%d parked, %d ended", parked, len(answers))
		}
		for range polls - 1 {
			if a := <-answers; a.Outcome != Superseded {
				t.Fatalf("a superseded poll got %+v", a)
			}
		}
		r.Set("web-01", &api.Dispatch{})
		if a := <-answers; a.Outcome != Given {
			t.Errorf("the newest got %+v", a)
		}
	})
}

func TestClearingADispatchLeavesThePollParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		r.Set("web-01", &api.Dispatch{})
		r.Set("web-01", nil)
		r.Set("nobody", nil)
		done := make(chan Answer, 1)
		go func() { done <- r.Wait(t.Context(), "web-01", nil) }()
		synctest.Wait()
		r.Set("web-01", nil)
		synctest.Wait()
		if hosts := r.ParkedHosts(nil); len(hosts) != 1 || hosts[0] != "web-01" || len(done) != 0 {
			t.Fatalf("parked: %v", hosts)
		}
		d := &api.Dispatch{}
		r.Set("web-01", d)
		if a := <-done; a.Dispatch != d {
			t.Errorf("got %+v", a)
		}
	})
}

func TestAPollWhosePeerWentAwayLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan Answer, 1)
		go func() { done <- r.Wait(ctx, "web-01", nil) }()
		synctest.Wait()
		cancel()
		if a := <-done; a.Outcome != Abandoned {
			t.Errorf("got %+v", a)
		}
		if len(r.hosts) != 0 {
			t.Errorf("%d entries are left", len(r.hosts))
		}
	})
}

func TestDrainEndsParkedPollsAndEveryLaterOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		done := make(chan Answer, 1)
		go func() { done <- r.Wait(t.Context(), "web-01", nil) }()
		synctest.Wait()
		r.Drain()
		if a := <-done; a.Outcome != Drained {
			t.Errorf("the parked poll got %+v", a)
		}
		r.Set("web-02", &api.Dispatch{})
		if a := r.Wait(t.Context(), "web-02", nil); a.Outcome != Drained {
			t.Errorf("a later poll got %+v", a)
		}
	})
}

// TestEveryPollEndsOnce runs polls, dispatches and leavers against each other: no poll may hang, and a
// dispatch that is never cleared must reach the last poll.
func TestEveryPollEndsOnce(t *testing.T) {
	r := New()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(i)))
			for range 2000 {
				host := string(rune('a' + random.IntN(3)))
				ctx, cancel := context.WithCancel(t.Context())
				switch random.IntN(4) {
				case 0:
					r.Set(host, &api.Dispatch{Hostname: host})
				case 1:
					r.Set(host, nil)
				case 2:
					cancel()
					fallthrough
				case 3:
					timeout := make(chan time.Time)
					close(timeout)
					if a := r.Wait(ctx, host, timeout); a.Outcome == Given && a.Dispatch.Hostname != host {
						t.Errorf("%s got the dispatch of %s", host, a.Dispatch.Hostname)
					}
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if parked, _ := r.Counts(); parked != 0 {
		t.Errorf("%d are still parked", parked)
	}
}
