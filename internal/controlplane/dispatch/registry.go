package dispatch

import (
	"context"
	"sync"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// Outcome says why a poll ended.
type Outcome int

// Outcomes of a poll.
const (
	// Given: there is a dispatch for the host.
	Given Outcome = iota + 1
	// Superseded: a newer poll of the same host took this one's place.
	Superseded
	// Drained: the control plane is shutting down.
	Drained
	// TimedOut: the wait is over; only Wait returns it.
	TimedOut
	// Abandoned: the caller's context ended; only Wait returns it.
	Abandoned
)

// Answer is what a poll gets. Dispatch is set for Given alone, and must not be changed.
type Answer struct {
	Outcome  Outcome
	Dispatch *api.Dispatch
}

// Waiter is a parked poll. Wake is called at most once, by whoever ends the poll (Set, another Park,
// Drain) and outside the registry's lock; it must not block.
type Waiter interface{ Wake(Answer) }

// Registry holds one entry a host. The zero value is not ready; use New. It may be used concurrently.
type Registry struct {
	mu          sync.Mutex
	hosts       map[string]*entry
	parked      int
	outstanding int
	drained     bool
}

type entry struct {
	dispatch *api.Dispatch
	waiter   Waiter
}

// New returns an empty registry.
func New() *Registry { return &Registry{hosts: map[string]*entry{}} }

// Set makes d the outstanding dispatch of host and ends the host's parked poll with it. A nil d clears
// the dispatch and leaves the poll parked. d must not be changed afterwards.
func (r *Registry) Set(host string, d *api.Dispatch) {
	if w := r.set(host, d); w != nil {
		w.Wake(Answer{Outcome: Given, Dispatch: d})
	}
}

func (r *Registry) set(host string, d *api.Dispatch) Waiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.hosts[host]
	if e == nil {
		if d == nil {
			return nil
		}
		e = &entry{}
		r.hosts[host] = e
	}
	r.outstanding += count(d != nil) - count(e.dispatch != nil)
	e.dispatch = d
	if d == nil {
		r.drop(host, e)
		return nil
	}
	return r.take(e)
}

// take removes the parked poll of e, if any, and returns it.
func (r *Registry) take(e *entry) Waiter {
	w := e.waiter
	if w != nil {
		e.waiter = nil
		r.parked--
	}
	return w
}

// drop forgets an entry that holds nothing, so that the map does not outgrow the fleet.
func (r *Registry) drop(host string, e *entry) {
	if e.dispatch == nil && e.waiter == nil {
		delete(r.hosts, host)
	}
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Park parks w as the poll of host, ending an older one as Superseded, and returns parked = true. Where
// the poll can be answered at once it is not parked, w is not woken, and the answer is returned.
func (r *Registry) Park(host string, w Waiter) (answer Answer, parked bool) {
	old, answer, parked := r.park(host, w)
	if old != nil {
		old.Wake(Answer{Outcome: Superseded})
	}
	return answer, parked
}

func (r *Registry) park(host string, w Waiter) (old Waiter, answer Answer, parked bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.drained {
		return nil, Answer{Outcome: Drained}, false
	}
	e := r.hosts[host]
	if e == nil {
		e = &entry{}
		r.hosts[host] = e
	}
	old = r.take(e)
	if e.dispatch != nil {
		return old, Answer{Outcome: Given, Dispatch: e.dispatch}, false
	}
	e.waiter = w
	r.parked++
	return old, Answer{}, true
}

// Leave takes w out again, when its time is over or its peer went away. It returns false when w is not
// parked any more: then Wake has been called, or is about to be. w must be comparable.
func (r *Registry) Leave(host string, w Waiter) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.hosts[host]
	if e == nil || e.waiter != w {
		return false
	}
	r.take(e)
	r.drop(host, e)
	return true
}

// Outstanding returns the dispatch that host would get now, or nil.
func (r *Registry) Outstanding(host string) *api.Dispatch {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.hosts[host]; e != nil {
		return e.dispatch
	}
	return nil
}

// ParkedHosts appends the names of the hosts that have a poll parked to buf, in no order, and returns it.
func (r *Registry) ParkedHosts(buf []string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for host, e := range r.hosts {
		if e.waiter != nil {
			buf = append(buf, host)
		}
	}
	return buf
}

// Counts returns how many polls are parked and how many dispatches are outstanding.
func (r *Registry) Counts() (parked, outstanding int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.parked, r.outstanding
}

// Drain ends every parked poll as Drained, and from now on every new one at once.
func (r *Registry) Drain() {
	for _, w := range r.drain() {
		w.Wake(Answer{Outcome: Drained})
	}
}

func (r *Registry) drain() []Waiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drained = true
	waiters := make([]Waiter, 0, r.parked)
	for host, e := range r.hosts {
		if w := r.take(e); w != nil {
			waiters = append(waiters, w)
		}
		r.drop(host, e)
	}
	return waiters
}

// chanWaiter is a Waiter with a one-slot channel.
type chanWaiter struct{ wake chan Answer }

func (w *chanWaiter) Wake(a Answer) { w.wake <- a }

// Wait parks a poll of host and blocks until it is answered, until timeout fires (TimedOut), or until
// ctx ends (Abandoned).
func (r *Registry) Wait(ctx context.Context, host string, timeout <-chan time.Time) Answer {
	w := &chanWaiter{wake: make(chan Answer, 1)}
	answer, parked := r.Park(host, w)
	if !parked {
		return answer
	}
	ended := Answer{Outcome: TimedOut}
	select {
	case answer := <-w.wake:
		return answer
	case <-timeout:
	case <-ctx.Done():
		ended.Outcome = Abandoned
	}
	if r.Leave(host, w) {
		return ended
	}
	return <-w.wake
}
