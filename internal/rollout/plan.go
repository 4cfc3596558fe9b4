package rollout

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// Plan returns the decisions that are due at now, in the order to apply them. It is deterministic, and
// calling it again without applying gives the same again. Applying them may make others due: call it
// until it returns nothing. Its cost follows what has changed since, not the size of the fleet.
//
// It goes by stages, and a later one waits until an earlier one has nothing to decide: closures,
// rollouts, hosts, dispatches. So no host is dispatched by a rollout that is about to halt.
func (f *Fleet) Plan(now time.Time) []Entry {
	now = wall(now)
	f.now = now
	f.wakeDue(now)
	entries := f.planClosures()
	if len(entries) == 0 {
		entries = f.planRollouts()
	}
	if len(entries) == 0 {
		entries = f.planHosts(now)
	}
	if len(entries) == 0 {
		entries = f.planDispatches(now)
	}
	return recorded(entries, now)
}

// MaxRounds is how often in a row Plan can have something to decide at one moment. Each decision may make
// others due, but never for ever: a host that is left out takes along those that come after it, one link
// of the chain in a round, and comes back in the same way.
func (f *Fleet) MaxRounds() int { return 1000 + 2*len(f.hosts) }

func recorded(entries []Entry, now time.Time) []Entry {
	for i := range entries {
		entries[i].RecordedAt = now
	}
	return entries
}

// planClosures turns what events say of closures into decisions.
func (f *Fleet) planClosures() []Entry {
	var entries []Entry
	for _, v := range f.verdicts {
		e := Entry{RolloutID: v.RolloutID, Hostname: v.Hostname}
		if v.Allow {
			e.Body = Allowed{v.Channel, v.Closure, v.Hostname + " cannot reach a control plane on its previous closure either"}
		} else {
			e.Body = Quarantined{v.Channel, v.Closure, v.Code, string(v.Code) + " on " + v.Hostname}
		}
		entries = append(entries, e)
	}
	return entries
}

func (f *Fleet) planRollouts() []Entry {
	var entries []Entry
	dirty := slices.SortedFunc(maps.Keys(f.dirtyChannels), func(a, b *channel) int { return strings.Compare(a.name, b.name) })
	for _, ch := range dirty {
		decided := f.decide(ch, countedSums)
		if len(decided) == 0 {
			delete(f.dirtyChannels, ch)
		}
		entries = append(entries, decided...)
	}
	return entries
}

func (f *Fleet) planHosts(now time.Time) []Entry {
	var entries []Entry
	var kept []*member
	for _, m := range f.dirty {
		body, again := f.settle(m, now)
		if body != nil {
			entries = append(entries, Entry{RolloutID: m.ro.id, Hostname: m.rec.Hostname, Body: body})
			kept = append(kept, m)
			continue
		}
		m.dirty = false
		f.wakeAt(m.host, again)
		if m.offer == nil && m.wants() != "" {
			f.ready.put(m)
		}
	}
	clear(f.dirty[len(kept):])
	f.dirty = append(f.dirty[:0], kept...)
	return f.oneEach(entries)
}

// oneEach orders decisions about hosts by wave, then host name, and leaves the first of each host: one
// may end what another was decided on. The next round has the others, if they still stand.
func (f *Fleet) oneEach(entries []Entry) []Entry {
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(
			cmp.Compare(f.rollouts[a.RolloutID].find(a.Hostname).rec.Wave, f.rollouts[b.RolloutID].find(b.Hostname).rec.Wave),
			strings.Compare(a.Hostname, b.Hostname), strings.Compare(a.RolloutID, b.RolloutID),
		)
	})
	seen := make(map[string]struct{}, len(entries))
	return slices.DeleteFunc(entries, func(e Entry) bool {
		_, twice := seen[e.Hostname]
		seen[e.Hostname] = struct{}{}
		return twice
	})
}

// dispatching is one round of dispatches: it is the ledger that also counts what the round itself
// hands out.
type dispatching struct {
	f       *Fleet
	planned map[*budget]int
	hosts   map[*host]struct{}
	entries []Entry
}

func (d *dispatching) others(b *budget, h *host) int { return b.others(h) + d.planned[b] }
func (d *dispatching) limit(b *budget) int           { return b.limit }

// dispatch decides to offer m what it wants.
func (d *dispatching) dispatch(m *member, now time.Time) {
	d.hosts[m.host] = struct{}{}
	for _, b := range m.host.countsWith(m) {
		if _, counts := b.in[m.host]; !counts {
			d.planned[b]++
		}
	}
	d.entries = append(d.entries, dispatchOf(m, now))
}

func dispatchOf(m *member, now time.Time) Entry {
	soak := m.rec.Soak.Std()
	return Entry{RolloutID: m.ro.id, Hostname: m.rec.Hostname, Body: Dispatched{
		Action: m.wants(), Attempt: m.rec.Attempt, TargetClosure: m.rec.TargetClosure, Wave: m.rec.Wave,
		SoakDueAt: now.Add(soak), EnqueuedAt: now, Reason: m.reasonToDispatch(),
	}}
}

func (m *member) reasonToDispatch() string {
	switch m.wants() {
	case api.ActionRevert:
		return "the rollout goes back"
	case api.ActionUnstage:
		return "the rollout is " + string(m.ro.state) + " and the host has yet to reboot into it"
	}
	return "every gate lets it"
}

// planDispatches asks the gates of every host that something changed for, and of those that a budget
// held back which has room again, in the order in which hosts have their turn.
func (f *Fleet) planDispatches(now time.Time) []Entry {
	d := &dispatching{f: f, planned: map[*budget]int{}, hosts: map[*host]struct{}{}}
	fed := map[*member]*budget{}
	feed := func(b *budget) {
		if len(b.queue.list) > 0 && (b.limit < 0 || len(b.in)+d.planned[b] < b.limit) {
			m := b.queue.take()
			m.waits = nil
			fed[m] = b
			f.ready.put(m)
		}
	}
	for b := range f.freed { // in any order: what is fed first does not decide who goes first
		feed(b)
	}
	clear(f.freed)
	var decided, blocked []*member
	for m := f.ready.take(); m != nil; m = f.ready.take() {
		if _, taken := d.hosts[m.host]; taken {
			decided = append(decided, m)
			continue
		}
		if m.host.offered() != nil {
			continue
		}
		hold := f.held(m, d, now)
		switch {
		case hold.gate == "":
			d.dispatch(m, now)
			decided = append(decided, m)
		case hold.budget != nil:
			m.waits = hold.budget
			blocked = append(blocked, m)
		default:
			f.wakeAt(m.host, hold.until)
		}
		if b := fed[m]; b != nil {
			feed(b)
		}
	}
	for _, m := range blocked {
		f.waitFor(m, m.waits)
	}
	for _, m := range decided {
		f.ready.put(m)
	}
	return d.entries
}

// waitFor leaves m until b has room.
func (f *Fleet) waitFor(m *member, b *budget) {
	m.waits = nil
	if _, counts := b.in[m.host]; counts {
		b.own[m] = struct{}{}
	} else {
		b.queue.put(m)
	}
	m.waits = b
}
