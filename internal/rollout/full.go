package rollout

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
)

// PlanFull returns what Plan returns, from nothing but the state itself: every rollout and every host
// is looked at, and every sum is made anew. It changes nothing. Tests compare the two; it costs a pass
// over the fleet.
func (f *Fleet) PlanFull(now time.Time) []Entry {
	now = wall(now)
	entries := f.planClosures()
	if len(entries) == 0 {
		for _, name := range slices.Sorted(maps.Keys(f.channels)) {
			entries = append(entries, f.decide(f.channels[name], summedUp)...)
		}
	}
	if len(entries) == 0 {
		entries = f.fullHosts(now)
	}
	if len(entries) == 0 {
		entries = f.fullDispatches(now)
	}
	return recorded(entries, now)
}

// summedUp adds the sums up host by host.
func summedUp(r *rollout) sums {
	var s sums
	for i := range r.members {
		t := r.members[i].tallyOf()
		wave := r.members[i].rec.Wave
		s.failures += one(t.failure)
		s.unfinal += one(!t.final)
		s.moving += one(t.moving)
		s.unsettled += one(!t.settled && wave < r.open)
		s.proof += one(t.proof && wave == r.open-1)
	}
	return s
}

func (f *Fleet) fullHosts(now time.Time) []Entry {
	var entries []Entry
	for _, r := range f.rollouts {
		for i := range r.members {
			if body, _ := f.settle(&r.members[i], now); body != nil {
				entries = append(entries, Entry{RolloutID: r.id, Hostname: r.members[i].rec.Hostname, Body: body})
			}
		}
	}
	return f.oneEach(entries)
}

// fullLedger counts budgets by name from the state of every host.
type fullLedger struct {
	in     map[string]map[*host]bool
	limits map[string]int
}

func (l *fullLedger) others(b *budget, h *host) int {
	in := l.in[b.name]
	return len(in) - one(in[h])
}

func (l *fullLedger) limit(b *budget) int {
	if n, open := l.limits[b.name]; open {
		return n
	}
	return -1
}

func (l *fullLedger) count(h *host, budgets []*budget) {
	for _, b := range budgets {
		if l.in[b.name] == nil {
			l.in[b.name] = map[*host]bool{}
		}
		l.in[b.name][h] = true
	}
}

func (f *Fleet) countAll(now time.Time) *fullLedger {
	l := &fullLedger{in: map[string]map[*host]bool{}, limits: map[string]int{}}
	for _, r := range f.rollouts {
		for _, b := range r.manifest.DisruptionBudgets {
			if low, there := l.limits[b.Name]; r.holdsOpen() && (!there || b.MaxInFlight < low) {
				l.limits[b.Name] = b.MaxInFlight
			}
		}
	}
	for _, h := range f.hosts {
		l.count(h, h.counts(f.isAwaited(h, now)))
	}
	return l
}

func (f *Fleet) fullDispatches(now time.Time) []Entry {
	var candidates []*member
	for _, r := range f.rollouts {
		for i := range r.members {
			if m := &r.members[i]; m.wants() != "" && m.host.offered() == nil {
				candidates = append(candidates, m)
			}
		}
	}
	slices.SortFunc(candidates, func(a, b *member) int {
		return cmp.Or(cmp.Compare(a.turn(), b.turn()), strings.Compare(a.rec.Hostname, b.rec.Hostname), strings.Compare(a.ro.id, b.ro.id))
	})
	ledger := f.countAll(now)
	taken := map[*host]bool{}
	var entries []Entry
	for _, m := range candidates {
		if taken[m.host] || f.held(m, ledger, now).gate != "" {
			continue
		}
		taken[m.host] = true
		ledger.count(m.host, m.host.countsWith(m))
		entries = append(entries, dispatchOf(m, now))
	}
	return entries
}
