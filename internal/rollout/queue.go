package rollout

import (
	"container/heap"
	"time"
)

// memberQueue holds members in the order in which they have their turn, as it was when they were put
// in. A member is in at most one.
type memberQueue struct{ list []*member }

// Len implements sort.Interface.
func (q *memberQueue) Len() int { return len(q.list) }

// Less implements sort.Interface.
func (q *memberQueue) Less(i, j int) bool { return q.list[i].before(q.list[j]) }

// Swap implements sort.Interface.
func (q *memberQueue) Swap(i, j int) {
	q.list[i], q.list[j] = q.list[j], q.list[i]
	q.list[i].at, q.list[j].at = i, j
}

// Push implements heap.Interface.
func (q *memberQueue) Push(x any) {
	m := x.(*member)
	m.at = len(q.list)
	q.list = append(q.list, m)
}

// Pop implements heap.Interface.
func (q *memberQueue) Pop() any {
	last := len(q.list) - 1
	m := q.list[last]
	q.list[last] = nil
	q.list = q.list[:last]
	m.at = -1
	return m
}

// put moves m into q, out of the queue it is in.
func (q *memberQueue) put(m *member) {
	if m.queue == q {
		return
	}
	m.unqueue()
	m.queue, m.rank = q, m.turn()
	heap.Push(q, m)
}

// take removes and returns the first member, or nil.
func (q *memberQueue) take() *member {
	if len(q.list) == 0 {
		return nil
	}
	m := heap.Pop(q).(*member)
	m.queue = nil
	return m
}

// unqueue takes m out of the queue that it is in.
func (m *member) unqueue() {
	if m.queue != nil {
		heap.Remove(m.queue, m.at)
		m.queue = nil
	}
	if m.waits != nil {
		delete(m.waits.own, m)
		m.waits = nil
	}
}

// timerQueue holds hosts by the time at which time alone may change something for them.
type timerQueue struct{ list []*host }

// Len implements sort.Interface.
func (q *timerQueue) Len() int { return len(q.list) }

// Less implements sort.Interface.
func (q *timerQueue) Less(i, j int) bool { return q.list[i].wake.Before(q.list[j].wake) }

// Swap implements sort.Interface.
func (q *timerQueue) Swap(i, j int) {
	q.list[i], q.list[j] = q.list[j], q.list[i]
	q.list[i].wakeIndex, q.list[j].wakeIndex = i, j
}

// Push implements heap.Interface.
func (q *timerQueue) Push(x any) {
	h := x.(*host)
	h.wakeIndex = len(q.list)
	q.list = append(q.list, h)
}

// Pop implements heap.Interface.
func (q *timerQueue) Pop() any {
	last := len(q.list) - 1
	h := q.list[last]
	q.list[last] = nil
	q.list = q.list[:last]
	h.wakeIndex = -1
	return h
}

// wakeAt has the host looked at again at t at the latest.
func (f *Fleet) wakeAt(h *host, t time.Time) {
	switch {
	case t.IsZero():
	case h.wakeIndex < 0:
		h.wake = t
		heap.Push(&f.timers, h)
	case t.Before(h.wake):
		h.wake = t
		heap.Fix(&f.timers, h.wakeIndex)
	}
}

// wakeDue has all hosts looked at whose time has come.
func (f *Fleet) wakeDue(now time.Time) {
	for len(f.timers.list) > 0 && !f.timers.list[0].wake.After(now) {
		h := heap.Pop(&f.timers).(*host)
		if h.awaited {
			f.recount(h)
		}
		for _, m := range h.members {
			f.touch(m)
		}
	}
}

// NextWake returns when time alone may make a decision due, or zero for never.
func (f *Fleet) NextWake() time.Time {
	if len(f.timers.list) == 0 {
		return time.Time{}
	}
	return f.timers.list[0].wake
}

// touch has the planner look at m.
func (f *Fleet) touch(m *member) {
	m.unqueue()
	if !m.dirty {
		m.dirty = true
		f.dirty = append(f.dirty, m)
	}
}
