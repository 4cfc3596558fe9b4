package rollout

import (
	"fmt"
	"slices"

	"nixfleet.dev/nixfleet/api"
)

// sums are what a rollout's hosts add up to, as far as its state depends on it.
type sums struct {
	failures  int
	unfinal   int // hosts that hold the end back
	moving    int // hosts that a rollout which rolls back waits for
	unsettled int // hosts in open waves that hold the next one back
	proof     int // hosts of the newest open wave that show that the release works
}

// countedSums reads the sums that are kept up to date.
func countedSums(r *rollout) sums {
	s := sums{failures: r.failures, unfinal: r.unfinal, moving: r.moving}
	for i := range r.open {
		s.unsettled += r.waves[i].unsettled
		s.proof = r.waves[i].proof
	}
	return s
}

// decide returns what is to be decided about the rollouts of a channel.
func (f *Fleet) decide(ch *channel, sumsOf func(*rollout) sums) []Entry {
	var entries []Entry
	add := func(r *rollout, b Body) { entries = append(entries, Entry{RolloutID: r.id, Body: b}) }
	newest := ch.newest()
	if newest == nil {
		return nil
	}
	if _, there := f.index.Channels[ch.name]; !there && f.index.Fleet != "" {
		for _, r := range ch.rollouts {
			if r.holdsOpen() || r.state == api.RolloutWaiting {
				add(r, Cancelled{Reason: "the channel left the index"})
			}
		}
		return entries
	}
	if newest.state == api.RolloutWaiting {
		for _, r := range ch.rollouts {
			if r != newest && r.state != api.RolloutSuperseded {
				add(r, Superseded{By: newest.id, Reason: newest.id + " opens"})
			}
		}
		add(newest, Opened{Reason: "it is the channel's newest release"})
		return entries
	}
	if body := newest.next(sumsOf(newest)); body != nil {
		add(newest, body)
	}
	return entries
}

// next returns the decision that moves an open rollout on, or nil.
func (r *rollout) next(s sums) Body {
	switch r.state {
	case api.RolloutActive:
		tolerated := r.tolerated()
		switch {
		case s.failures > tolerated && r.manifest.Policy.OnHealthFailure == api.RollbackAll:
			return RollingBack{Failures: s.failures, Tolerated: tolerated, Reason: r.haltWords(s.failures, tolerated)}
		case s.failures > tolerated:
			return Halted{Failures: s.failures, Tolerated: tolerated, Reason: r.haltWords(s.failures, tolerated)}
		case s.unfinal == 0:
			return Converged{Reason: "every host is done"}
		case r.open < len(r.waves) && s.unsettled == 0 && r.needsApproval(s) == "":
			return Promoted{Wave: r.open, Reason: fmt.Sprintf("every host up to wave %d is done", r.open-1)}
		}
	case api.RolloutRollingBack:
		if s.moving == 0 {
			return RolledBack{Reason: "every host that it moved is back, failed, overdue, or cannot go back"}
		}
	}
	return nil
}

// needsApproval says why the next wave opens only when an operator approves it, or "". Approvals will
// be an entry of their own, and end here.
func (r *rollout) needsApproval(s sums) string {
	switch {
	case r.open >= len(r.waves):
		return ""
	case r.manifest.Policy.Waves[r.open].Approval:
		return fmt.Sprintf("wave %d asks for an operator's approval", r.open)
	case s.proof == 0:
		return fmt.Sprintf("wave %d asks for an operator's approval: no host of wave %d converged, which proves nothing", r.open, r.open-1)
	}
	return ""
}

// haltWords says who failed, the first few by name.
func (r *rollout) haltWords(failures, tolerated int) string {
	var who []string
	for i := range r.members {
		m := &r.members[i]
		if m.counted.failure && len(who) <= named {
			who = append(who, m.failureWords())
		}
	}
	return fmt.Sprintf("%d of %s failed, %d %s tolerated: %s",
		failures, plural(len(r.members), "host"), tolerated, isAre(tolerated), listed(who))
}

// failureWords says in a few words how the host failed.
func (m *member) failureWords() string {
	how := string(m.rec.State)
	switch {
	case m.overdue != nil:
		how = "overdue"
	case m.rec.State == api.Pending:
		how = "closure quarantined"
	case m.rec.Failure != nil:
		how += ", " + string(m.rec.Failure.Code)
	}
	return m.rec.Hostname + " (" + how + ")"
}

// keepRollouts is how many superseded rollouts of a channel are kept to look back at.
const keepRollouts = 10

// prune forgets the oldest superseded rollouts of a channel, as long as no host is still busy with them.
func (f *Fleet) prune(ch *channel) {
	superseded := 0
	for _, r := range ch.rollouts {
		superseded += one(r.state == api.RolloutSuperseded)
	}
	for _, r := range slices.Clone(ch.rollouts) {
		if superseded <= keepRollouts {
			return
		}
		if r.state != api.RolloutSuperseded || r.busy() {
			continue
		}
		f.forget(r)
		superseded--
	}
}

func (r *rollout) busy() bool {
	return slices.ContainsFunc(r.members, func(m member) bool {
		return m.offer != nil || m.rec.InFlight() || m.overdue != nil || m.rec.State == api.Failed
	})
}

func (f *Fleet) forget(r *rollout) {
	for i := range r.members {
		m := &r.members[i]
		m.unqueue()
		h := m.host
		h.members = slices.DeleteFunc(slices.Clone(h.members), func(o *member) bool { return o == m })
		delete(h.journal.Last, r.id)
		for _, j := range h.past {
			delete(j.Last, r.id)
		}
		f.recount(h)
		f.accountOthers(m)
	}
	f.dirty = slices.DeleteFunc(f.dirty, func(m *member) bool { return m.ro == r })
	r.ch.rollouts = slices.DeleteFunc(slices.Clone(r.ch.rollouts), func(o *rollout) bool { return o == r })
	delete(f.rollouts, r.id)
}
