package rollout

import (
	"slices"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// budget is a disruption budget; they are the same by name over all rollouts.
type budget struct {
	name   string
	limits map[*rollout]int   // of the rollouts that are open
	limit  int                // the lowest of them; -1 where there is none
	in     map[*host]struct{} // hosts that count
	queue  memberQueue        // members that this budget holds back, whose hosts do not count
	own    map[*member]struct{}
}

func (f *Fleet) budgetOf(name string) *budget {
	b := f.budgets[name]
	if b == nil {
		b = &budget{name: name, limit: -1, limits: map[*rollout]int{}, in: map[*host]struct{}{}, own: map[*member]struct{}{}}
		f.budgets[name] = b
	}
	return b
}

// others counts the members of b that are disrupted, other than h.
func (b *budget) others(h *host) int {
	if _, counts := b.in[h]; counts {
		return len(b.in) - 1
	}
	return len(b.in)
}

// limitBudgets makes ro's budgets count while it is open.
func (f *Fleet) limitBudgets(ro *rollout) {
	for i, b := range ro.budgets {
		if ro.holdsOpen() {
			b.limits[ro] = ro.manifest.DisruptionBudgets[i].MaxInFlight
		} else {
			delete(b.limits, ro)
		}
		b.limit = -1
		for _, n := range b.limits {
			if b.limit < 0 || n < b.limit {
				b.limit = n
			}
		}
		f.free(b)
	}
}

// free has the members that b holds back looked at again.
func (f *Fleet) free(b *budget) {
	if len(b.queue.list) > 0 {
		f.freed[b] = struct{}{}
	}
	for m := range b.own {
		f.touch(m)
	}
}

// disrupts says whether the member's host counts in budgets because of it.
func (m *member) disrupts() bool {
	switch {
	case m.offer != nil || m.rec.InFlight():
		return true
	case m.overdue != nil:
		return m.ro.state != api.RolloutSuperseded
	case m.rec.State == api.Failed:
		return m.latest()
	}
	return false
}

// canBeOverdue says whether silence of the host means anything in its state.
func (m *member) canBeOverdue() bool {
	return m.rec.InFlight() || m.wants() == api.ActionRevert
}

// latest says whether the host took part in no newer rollout.
func (m *member) latest() bool {
	for _, o := range slices.Backward(m.host.members) {
		if o == m {
			return true
		}
		if o.took {
			return false
		}
	}
	return true
}

// counts returns the budgets in which the host counts: those that name it in a rollout that disrupts
// it or that it is in. One that is awaited counts as disrupted.
func (h *host) counts(awaited bool) []*budget {
	var list []*budget
	disrupted := awaited
	for _, m := range h.members {
		if m.disrupts() {
			disrupted = true
			list = m.appendBudgets(list)
		}
	}
	if !disrupted {
		return nil
	}
	if m := h.current(); m != nil && m.rec.State != api.HostSuperseded {
		list = m.appendBudgets(list)
	}
	return list
}

// countsWith returns the budgets in which the host counts once m is dispatched.
func (h *host) countsWith(m *member) []*budget {
	list := m.appendBudgets(nil)
	if c := h.current(); c != nil && c != m && c.rec.State != api.HostSuperseded {
		list = c.appendBudgets(list)
	}
	return list
}

func (m *member) appendBudgets(list []*budget) []*budget {
	for _, i := range m.budgetIndexes {
		if b := m.ro.budgets[i]; !slices.Contains(list, b) {
			list = append(list, b)
		}
	}
	return list
}

// recount brings the budgets up to date with the host.
func (f *Fleet) recount(h *host) {
	if h.awaited = f.isAwaited(h, f.now); h.awaited {
		f.wakeAt(h, f.givenUpAt(h))
	}
	next := h.counts(h.awaited)
	changed := false
	for _, b := range h.in {
		if !slices.Contains(next, b) {
			delete(b.in, h)
			f.free(b)
			changed = true
		}
	}
	for _, b := range next {
		if !slices.Contains(h.in, b) {
			b.in[h] = struct{}{}
			changed = true
		}
	}
	if h.in = next; !changed {
		return
	}
	for _, m := range h.members {
		if m.waits != nil {
			f.touch(m)
		}
	}
}

// account brings what is counted of m up to date, and has those looked at that depend on it.
func (f *Fleet) account(m *member) {
	if m.overdue != nil && !m.canBeOverdue() {
		m.overdue = nil
	}
	next := m.tallyOf()
	last := m.counted
	f.recount(m.host)
	f.touch(m)
	if next == last {
		return
	}
	m.counted = next
	ro := m.ro
	w := &ro.waves[m.rec.Wave]
	w.counts[last.state]--
	w.counts[next.state]++
	w.unsettled += one(!next.settled) - one(!last.settled)
	w.proof += one(next.proof) - one(last.proof)
	ro.failures += one(next.failure) - one(last.failure)
	ro.unfinal += one(!next.final) - one(!last.final)
	ro.moving += one(next.moving) - one(last.moving)
	f.dirtyChannels[ro.ch] = struct{}{}
	for _, o := range m.host.members {
		f.touch(o)
	}
	for _, i := range ro.dependents[int32(m.line)] {
		f.touch(&ro.members[i])
	}
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}

// enrol makes a new or restored rollout count, which comes after all others.
func (f *Fleet) enrol(ro *rollout) {
	for _, b := range ro.manifest.DisruptionBudgets {
		ro.budgets = append(ro.budgets, f.budgetOf(b.Name))
	}
	f.limitBudgets(ro)
	for i := range ro.members {
		m := &ro.members[i]
		h := f.hostOf(m.rec.Hostname)
		m.host = h
		h.members = append(h.members, m)
		m.counted = m.tallyOf()
		w := &ro.waves[m.rec.Wave]
		w.counts[m.counted.state]++
		w.unsettled += one(!m.counted.settled)
		w.proof += one(m.counted.proof)
		ro.failures += one(m.counted.failure)
		ro.unfinal += one(!m.counted.final)
		ro.moving += one(m.counted.moving)
		f.recount(h)
		f.touch(m)
		if m.took {
			f.accountOthers(m) // in a rollout that is restored: they are not the host's latest
		}
	}
	f.dirtyChannels[ro.ch] = struct{}{}
}

// accountOthers brings up to date what is counted of the host in other rollouts.
func (f *Fleet) accountOthers(m *member) {
	for _, o := range m.host.members {
		if o != m {
			f.account(o)
		}
	}
}

// isAwaited says whether the host was never heard since this log began, and may be yet: it then counts
// in budgets.
func (f *Fleet) isAwaited(h *host, now time.Time) bool {
	if h.heard() || len(h.members) == 0 {
		return false
	}
	until := f.givenUpAt(h)
	return until.IsZero() || now.Before(until)
}

// givenUpAt is when a host that was never heard no longer counts; zero while this control plane is not
// ready.
func (f *Fleet) givenUpAt(h *host) time.Time {
	if f.startedAt.IsZero() {
		return time.Time{}
	}
	return f.startedAt.Add(h.current().policyAfter())
}
