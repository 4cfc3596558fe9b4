package rollout

import (
	"maps"
	"slices"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/hoststate"
)

// Caps on what a heartbeat leaves behind, and on how much of it is answered.
const (
	maxSeenText  = 256
	maxSeenList  = 64
	maxAnswered  = 256 // rollouts of lastSeq
	pastJournals = 4
)

// Heartbeat takes in a heartbeat of the host that it names, which the caller has compared with the
// certificate. It counts as being heard.
func (f *Fleet) Heartbeat(hb api.Heartbeat, now time.Time) ([]Entry, api.HeartbeatReply) {
	now = wall(now)
	h := f.hostOf(hb.Hostname)
	f.Heard(h.name, now)
	h.lastHeartbeat = now
	var entries []Entry
	if seen := seenOf(hb); !seen.equal(h.seen) {
		entries = append(entries, Entry{RecordedAt: now, Hostname: h.name, Body: seen})
	}
	return entries, f.reply(h, hb, now)
}

func seenOf(hb api.Heartbeat) HostSeen {
	s := HostSeen{
		JournalID: clip(hb.JournalID, maxSeenText), AgentVersion: clip(hb.AgentVersion, maxSeenText),
		BootID: clip(hb.BootID, maxSeenText), CurrentClosure: clip(hb.CurrentClosure, maxSeenText),
		BootClosure: clip(hb.BootClosure, maxSeenText), Specialisation: clip(hb.Specialisation, maxSeenText),
		TrustSHA256: clip(hb.TrustSHA256, maxSeenText),
	}
	for _, c := range hb.RebootPending[:min(len(hb.RebootPending), maxSeenList)] {
		s.RebootPending = append(s.RebootPending, clip(c, maxSeenText))
	}
	return s
}

func (s HostSeen) equal(o HostSeen) bool {
	same := slices.Equal(s.RebootPending, o.RebootPending)
	return same && s.JournalID == o.JournalID && s.AgentVersion == o.AgentVersion && s.BootID == o.BootID &&
		s.CurrentClosure == o.CurrentClosure && s.BootClosure == o.BootClosure &&
		s.Specialisation == o.Specialisation && s.TrustSHA256 == o.TrustSHA256
}

// applySeen takes in what is new of a host. With a new journal the agent lost its records: every
// record of the host moves as state.md says.
func (f *Fleet) applySeen(e Entry, b HostSeen) error {
	h := f.hostOf(e.Hostname)
	h.seen, h.seenAt = b, e.RecordedAt
	switch h.journal.ID {
	case b.JournalID:
	case "":
		h.journal = journal{ID: b.JournalID, Last: map[string]int64{}}
	default:
		h.newJournal(b.JournalID)
		for _, m := range h.members {
			if err := f.applyNewJournal(m, b, e.RecordedAt); err != nil {
				return err
			}
		}
	}
	for _, m := range h.members {
		m.overdue = nil
		f.account(m)
	}
	return nil
}

// newJournal starts the host's streams afresh, or goes on with those of a journal that was here before.
func (h *host) newJournal(id string) {
	next := journal{ID: id, Last: map[string]int64{}}
	if i := slices.IndexFunc(h.past, func(j journal) bool { return j.ID == id }); i >= 0 {
		next = h.past[i]
		h.past = slices.Delete(h.past, i, i+1)
	}
	h.past = append(h.past, h.journal)
	h.past = h.past[max(0, len(h.past)-pastJournals):]
	h.journal = next
}

func (f *Fleet) applyNewJournal(m *member, b HostSeen, at time.Time) error {
	in := hoststate.NewJournal{Running: b.CurrentClosure, Boot: b.BootClosure}
	if m.rec.State == api.HostConverged && m.ro.state == api.RolloutSuperseded {
		in.Running, in.Boot = m.rec.TargetClosure, m.rec.TargetClosure // it is elsewhere by right
	}
	attempt := m.rec.Attempt
	if err := m.step(in, at); err != nil {
		return err
	}
	if m.rec.Attempt != attempt {
		f.unoffer(m)
	}
	return nil
}

// reply answers a heartbeat. What it says of the journal is true whether or not the heartbeat's own
// entry was applied.
func (f *Fleet) reply(h *host, hb api.Heartbeat, now time.Time) api.HeartbeatReply {
	r := api.HeartbeatReply{
		ReceivedAt: now, Interval: api.Duration(f.opts.HeartbeatInterval),
		ReplayFrom: map[string]int64{}, Forget: []string{}, Withdrawn: []string{}, Current: map[string]string{},
	}
	if id, there := f.index.Channels[h.channel]; h.declared && there {
		r.Current[h.channel] = id
	}
	ids := slices.Sorted(maps.Keys(hb.LastSeq))
	for _, id := range ids[:min(len(ids), maxAnswered)] {
		m := h.memberIn(id)
		if m == nil {
			if f.passed(id) {
				r.Forget = append(r.Forget, id)
			}
			continue
		}
		last := h.recorded(hb.JournalID, id)
		switch {
		case hb.LastSeq[id] > last:
			r.ReplayFrom[id] = last + 1
		case m.forgettable():
			r.Forget = append(r.Forget, id)
		}
		if m.withdrawn() {
			r.Withdrawn = append(r.Withdrawn, id)
		}
	}
	return r
}

// recorded returns the number of the last event that the log has of a stream.
func (h *host) recorded(journalID, rolloutID string) int64 {
	if h.journal.ID == journalID {
		return h.journal.Last[rolloutID]
	}
	for _, j := range h.past {
		if j.ID == journalID {
			return j.Last[rolloutID]
		}
	}
	return 0
}

// passed says whether a rollout that this log does not know was over before the log began: its channel
// is at another one. Its events can never be recorded.
func (f *Fleet) passed(rolloutID string) bool {
	channel, _, _ := strings.Cut(rolloutID, "@")
	return f.rollouts[rolloutID] == nil && f.channels[channel].newest() != nil
}

// forgettable says whether the agent needs none of the rollout's events any more: the host took part
// in a newer rollout, and here it has ended.
func (m *member) forgettable() bool {
	switch m.rec.State {
	case api.HostConverged, api.Reverted, api.Failed, api.HostSuperseded:
		return !m.latest()
	}
	return false
}

// withdrawn says whether an activation that has not begun to change the host is to stop.
func (m *member) withdrawn() bool {
	switch m.rec.State {
	case api.Pending, api.Activating:
		return !m.ro.live()
	case api.HostSuperseded:
		return m.latest()
	}
	return false
}
