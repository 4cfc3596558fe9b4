package rollout

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/hoststate"
)

// rollout is one rollout with all its hosts.
type rollout struct {
	id       string
	order    int64 // in which it was adopted, among all rollouts
	ch       *channel
	adopted  Adopted
	manifest api.Manifest
	offline  api.Offline
	refusing map[*member]struct{}

	state      api.RolloutState
	stateSince time.Time
	adoptedAt  time.Time
	open       int // waves 0 to open-1 are
	openedAt   time.Time
	endedAt    time.Time
	reason     string // of the halt, the cancellation

	members    []member // in the order of the host list, by name
	waves      []wave
	budgets    []*budget         // by index in the manifest
	dependents map[int32][]int32 // member to those that have it in their after list
	byClosure  []int32           // members by target closure

	// Sums of the members' tallies.
	failures, unfinal, moving int
}

// wave is one wave of a rollout.
type wave struct {
	members   []int32
	opensAt   time.Time // releasedAt plus the soaks of all earlier waves: agents refuse before
	openedAt  time.Time
	counts    [states]int
	unsettled int // hosts that hold the next wave back
	proof     int // hosts that show that the release works: Converged or Deferred
}

const states = 10 // len(api.HostStates)

func stateIndex(s api.HostState) int { return slices.Index(api.HostStates, s) }

// tally is what of one member is counted in its rollout.
type tally struct {
	state   int8
	failure bool // towards maxFailures
	settled bool // does not hold back the next wave
	final   bool // does not hold back the end
	proof   bool
	moving  bool // a rollout that rolls back waits for it
}

// tallyOf computes a member's tally from its durable state alone.
func (m *member) tallyOf() tally {
	t := tally{state: int8(stateIndex(m.rec.State)), proof: m.rec.State == api.HostConverged || m.rec.State == api.Deferred}
	failed := false
	switch m.rec.State {
	case api.Pending:
		failed = m.quarantined()
	case api.Failed, api.Reverted:
		failed = true
	case api.Reverting:
		t.failure = true
	}
	failed = failed || m.overdue != nil
	t.failure = t.failure || failed
	t.final = failed || m.rec.State == api.HostConverged || m.rec.State == api.Skipped || m.rec.State == api.HostSuperseded
	t.settled = t.final || m.rec.Done()
	t.moving = m.overdue == nil && m.stays == "" && m.toGoBack()
	return t
}

// toGoBack says whether a rollout that rolls back has something to wait for in this member.
func (m *member) toGoBack() bool {
	return m.rec.State == api.Activating || m.rec.State == api.Reverting || m.revertible()
}

// revertible says whether the rollout moved the host and may take it back: not once the host has moved on.
func (m *member) revertible() bool {
	switch m.rec.State {
	case api.Soaking, api.Deferred, api.HostConverged:
		return m.moved && m.latest()
	}
	return false
}

// quarantined says whether the channel refuses the member's target.
func (m *member) quarantined() bool {
	_, ok := m.ro.ch.quarantine[m.rec.TargetClosure]
	return ok
}

// live says whether the rollout may give work to hosts.
func (r *rollout) live() bool { return r.state == api.RolloutActive || r.state == api.RolloutConverged }

// holdsOpen says whether the rollout is one that is Active, Paused, Halted or RollingBack: its channel
// has at most one such, and its budgets count.
func (r *rollout) holdsOpen() bool {
	switch r.state {
	case api.RolloutActive, api.RolloutPaused, api.RolloutHalted, api.RolloutRollingBack:
		return true
	}
	return false
}

// tolerated is how many failures the policy tolerates.
func (r *rollout) tolerated() int {
	if r.manifest.Policy.MaxFailures == nil {
		return 0
	}
	return r.manifest.Policy.MaxFailures.Of(len(r.members))
}

// find returns the member with that host name.
func (r *rollout) find(name string) *member {
	i, ok := slices.BinarySearchFunc(r.members, name, func(m member, name string) int {
		return strings.Compare(m.rec.Hostname, name)
	})
	if !ok {
		return nil
	}
	return &r.members[i]
}

// older orders rollouts of any channels by age: as they were adopted. Neither sequence nor releasedAt will
// do, since a thief's key may have signed any, and what comes after it was removed is newer all the same.
func older(a, b *rollout) int { return cmp.Compare(a.order, b.order) }

// newest returns the newest rollout of the channel, or nil.
func (c *channel) newest() *rollout {
	if c == nil || len(c.rollouts) == 0 {
		return nil
	}
	return c.rollouts[len(c.rollouts)-1]
}

// newRollout makes the rollout that comes after all others: it waits, its hosts Pending.
func (f *Fleet) newRollout(a Adopted, r Release, now time.Time) *rollout {
	ch := f.channelOf(a.Channel)
	f.adoptions++
	ro := &rollout{
		id: r.manifest.RolloutID, order: f.adoptions, ch: ch, adopted: a, manifest: r.manifest,
		state: api.RolloutWaiting, stateSince: now, adoptedAt: now, refusing: map[*member]struct{}{},
		members: make([]member, r.lines.Len()), waves: make([]wave, len(r.manifest.Policy.Waves)),
		dependents: map[int32][]int32{},
	}
	if o := r.manifest.Policy.Offline; o != nil {
		ro.offline = *o
	}
	opensAt := r.manifest.ReleasedAt
	for w, p := range r.manifest.Policy.Waves {
		ro.waves[w].opensAt = opensAt
		opensAt = opensAt.Add(p.Soak.Std())
	}
	for i := range ro.members {
		line := r.lines.Line(i)
		ro.members[i] = member{ro: ro, line: i, at: -1, rec: hoststate.New(line, ro.id, r.manifest.Policy, now)}
	}
	ro.link(r.lines)
	f.rollouts[ro.id] = ro
	ch.rollouts = append(ch.rollouts, ro)
	return ro
}

// link makes the indexes over the host list, which never change.
func (r *rollout) link(lines Lines) {
	r.byClosure = make([]int32, len(r.members))
	for i := range r.members {
		m, line := &r.members[i], lines.Line(i)
		r.byClosure[i] = int32(i)
		r.waves[m.rec.Wave].members = append(r.waves[m.rec.Wave].members, int32(i))
		for _, name := range line.After {
			if b := r.find(name); b != nil {
				r.dependents[int32(b.line)] = append(r.dependents[int32(b.line)], int32(i))
				m.after = append(m.after, b)
			}
		}
		m.budgetIndexes = line.Budgets
	}
	slices.SortFunc(r.byClosure, func(a, b int32) int {
		return cmp.Or(strings.Compare(r.members[a].rec.TargetClosure, r.members[b].rec.TargetClosure), cmp.Compare(a, b))
	})
}

// onClosure returns the members whose target is closure.
func (r *rollout) onClosure(closure string) []int32 {
	compare := func(i int32, c string) int { return strings.Compare(r.members[i].rec.TargetClosure, c) }
	from, _ := slices.BinarySearchFunc(r.byClosure, closure, compare)
	to := from
	for to < len(r.byClosure) && r.members[r.byClosure[to]].rec.TargetClosure == closure {
		to++
	}
	return r.byClosure[from:to]
}

func (f *Fleet) channelOf(name string) *channel {
	c := f.channels[name]
	if c == nil {
		c = &channel{name: name, quarantine: map[string]quarantine{}}
		f.channels[name] = c
	}
	return c
}
