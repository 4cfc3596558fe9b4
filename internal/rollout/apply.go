package rollout

import (
	"fmt"
	"slices"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/hoststate"
)

// Apply folds one entry into the picture. Entries must come in the order of their LogSeq, without
// gaps. An error means that the log and the picture do not belong together: the Fleet must not be used
// any more.
func (f *Fleet) Apply(e Entry) error {
	if e.LogSeq != f.logSeq+1 {
		return fmt.Errorf("apply log entry %d after %d: entries are missing or come twice", e.LogSeq, f.logSeq)
	}
	e.RecordedAt = wall(e.RecordedAt)
	if err := f.apply(e); err != nil {
		return fmt.Errorf("apply log entry %d (%s): %w", e.LogSeq, e.Kind(), err)
	}
	f.logSeq = e.LogSeq
	f.nameHosts(e.Hostname)
	return nil
}

// nameHosts brings the sorted names up to date. One host that is new, of the entry just applied, is put
// in its place: sorting anew for each would cost a fleet that introduces itself minutes.
func (f *Fleet) nameHosts(name string) {
	i, found := slices.BinarySearch(f.names, name)
	if len(f.hosts) == len(f.names)+1 && f.hosts[name] != nil && !found {
		f.names = slices.Insert(f.names, i, name)
		return
	}
	f.names = f.sortedNames()
}

func (f *Fleet) apply(e Entry) error {
	switch b := e.Body.(type) {
	case FleetDeclared:
		return f.applyFleet(b)
	case Adopted:
		return f.applyAdopted(e, b)
	case HostSeen:
		return f.applySeen(e, b)
	case TokenUsed:
		f.applyToken(e, b)
		return nil
	case Quarantined:
		f.applyQuarantine(e, b)
		return nil
	case Allowed:
		f.applyAllow(e, b)
		return nil
	}
	ro := f.rollouts[e.RolloutID]
	if ro == nil {
		return fmt.Errorf("rollout %q is not known", e.RolloutID)
	}
	if e.Hostname == "" {
		return f.applyToRollout(ro, e)
	}
	m := ro.find(e.Hostname)
	if m == nil {
		return fmt.Errorf("host %q is not in rollout %q", e.Hostname, e.RolloutID)
	}
	if err := f.applyToMember(m, e); err != nil {
		return fmt.Errorf("host %s in rollout %s: %w", e.Hostname, e.RolloutID, err)
	}
	f.account(m)
	return nil
}

func (f *Fleet) applyToRollout(ro *rollout, e Entry) error {
	at := e.RecordedAt
	switch b := e.Body.(type) {
	case Opened:
		ro.openedAt, ro.open = at, min(1, len(ro.waves))
		if ro.open > 0 {
			ro.waves[0].openedAt = at
		}
		f.setState(ro, api.RolloutActive, "", at)
	case Promoted:
		if b.Wave != ro.open || b.Wave >= len(ro.waves) {
			return fmt.Errorf("wave %d of rollout %s cannot open after %d of %d", b.Wave, ro.id, ro.open, len(ro.waves))
		}
		ro.open++
		ro.waves[b.Wave].openedAt = at
		f.dirtyChannels[ro.ch] = struct{}{}
		for _, i := range ro.waves[b.Wave].members {
			f.touch(&ro.members[i])
		}
	case Halted:
		f.setState(ro, api.RolloutHalted, b.Reason, at)
	case RollingBack:
		f.setState(ro, api.RolloutRollingBack, b.Reason, at)
	case RolledBack:
		f.end(ro, api.RolloutRolledBack, ro.reason, at)
	case Converged:
		f.end(ro, api.RolloutConverged, "", at)
	case Cancelled:
		f.end(ro, api.RolloutCancelled, b.Reason, at)
	case Superseded:
		f.end(ro, api.RolloutSuperseded, ro.reason, at)
		f.prune(ro.ch)
	default:
		return fmt.Errorf("it names no host")
	}
	return nil
}

func (f *Fleet) end(ro *rollout, s api.RolloutState, reason string, at time.Time) {
	if ro.endedAt.IsZero() {
		ro.endedAt = at
	}
	f.setState(ro, s, reason, at)
}

// setState moves the rollout on, and has all that depends on its state looked at: every host of it.
func (f *Fleet) setState(ro *rollout, s api.RolloutState, reason string, at time.Time) {
	ro.state, ro.reason, ro.stateSince = s, reason, at
	f.limitBudgets(ro)
	f.dirtyChannels[ro.ch] = struct{}{}
	for i := range ro.members {
		f.account(&ro.members[i])
	}
}

func (f *Fleet) applyToMember(m *member, e Entry) error {
	at := e.RecordedAt
	switch b := e.Body.(type) {
	case HostEvent:
		return f.applyEvent(m, b, at)
	case Rejected:
		f.applyRejected(m, b, at)
	case Dispatched:
		m.offer = &b
		f.changed[m.host] = struct{}{}
	case Withdrawn:
		if !b.RetryAt.IsZero() {
			m.refuse(b.Code, at)
			m.retryAt = b.RetryAt
		}
		f.unoffer(m)
	case Skipped:
		f.unoffer(m)
		return m.step(hoststate.Skip{By: b.By}, at)
	case Returned:
		m.overdue = nil
		if m.rec.State == api.Skipped {
			return m.step(hoststate.Heard{}, at)
		}
	case Overdue:
		m.overdue = &b
	case Stayed:
		m.stays = b.Reason
		f.unoffer(m)
	case Superseded:
		f.unoffer(m)
		return m.step(hoststate.Supersede{}, at)
	case Converged:
		f.unoffer(m)
		m.took = true
		m.rec.State, m.rec.ChangedAt, m.rec.ObservedClosure = api.HostConverged, at, m.rec.TargetClosure
		f.supersedeOlder(m.host, at)
	default:
		return fmt.Errorf("it is about no host")
	}
	return nil
}

// step takes the member's record on by one of the control plane's own inputs.
func (m *member) step(in hoststate.Input, at time.Time) error {
	attempt := m.rec.Attempt
	rec, _, err := hoststate.Step(m.rec, in, at)
	if err != nil {
		return err
	}
	if m.rec = rec; rec.Attempt != attempt {
		m.accept()
	}
	return nil
}

// unoffer forgets what the host is offered.
func (f *Fleet) unoffer(m *member) {
	if m.offer != nil {
		m.offer = nil
		f.changed[m.host] = struct{}{}
		for _, o := range m.host.members {
			f.touch(o)
		}
	}
}

func (f *Fleet) applyEvent(m *member, b HostEvent, at time.Time) error {
	h := m.host
	if h.journal.ID == "" {
		h.journal = journal{ID: b.JournalID, Last: map[string]int64{}}
	}
	if b.JournalID != h.journal.ID || b.Event.Seq != h.journal.Last[m.ro.id]+1 {
		return fmt.Errorf("event %d of journal %s does not go on after %d of %s",
			b.Event.Seq, b.JournalID, h.journal.Last[m.ro.id], h.journal.ID)
	}
	h.journal.Last[m.ro.id] = b.Event.Seq
	m.overdue = nil
	if b.Refused != "" {
		return nil
	}
	rec, effects, err := hoststate.Step(m.rec, hoststate.Reported{Event: b.Event}, at)
	if err != nil {
		return err
	}
	m.rec = rec
	f.answer(m, b.Event, at)
	for _, effect := range effects {
		f.judge(m, effect)
	}
	return nil
}

// answer takes in what an accepted event says beside the record: that the host answered what it was
// offered.
func (f *Fleet) answer(m *member, e api.Event, at time.Time) {
	switch e.Kind {
	case api.DispatchAck:
		m.took, m.stays = true, ""
		m.accept()
		f.unoffer(m)
		f.supersedeOlder(m.host, at)
	case api.ActivationStarted:
		m.moved = m.moved || e.Method != api.MethodNone
	case api.RollbackStarted, api.RebootStarted:
		m.accept()
		f.unoffer(m)
	}
	m.observe(e)
	for _, o := range m.host.members {
		f.touch(o)
	}
	if m.rec.State != api.HostSuperseded && !m.latest() {
		f.supersede(m, at)
	}
}

// observe takes in what an event says of what the host runs now: it is late where the host has moved on.
func (m *member) observe(e api.Event) {
	if !m.latest() || m.rec.State == api.HostSuperseded {
		return
	}
	switch e.Kind {
	case api.ActivationCompleted, api.RollbackCompleted:
		m.host.seen.CurrentClosure, m.host.seen.BootClosure = e.ObservedClosure, e.ObservedClosure
	case api.ActivationDeferred:
		m.host.seen.BootClosure = m.rec.TargetClosure
	}
}

// accept forgets refusals: the host accepted, or is to be asked for something new.
func (m *member) accept() {
	m.refusals, m.refusedAs, m.refusedSince, m.retryAt = 0, "", time.Time{}, time.Time{}
	delete(m.ro.refusing, m)
}

// supersedeOlder ends the host's part in all rollouts before the newest that it took part in.
func (f *Fleet) supersedeOlder(h *host, at time.Time) {
	for _, m := range h.members {
		if !m.latest() {
			f.supersede(m, at)
		}
	}
}

// supersede ends the member's record, if it has not ended. Nothing of that rollout is for the host any more.
func (f *Fleet) supersede(m *member, at time.Time) {
	_ = m.step(hoststate.Supersede{}, at) // refused where it has ended
	f.unoffer(m)
	f.account(m)
}

// judge keeps what a step says of a closure for the planner, which quarantines it or allows it again.
func (f *Fleet) judge(m *member, effect hoststate.Effect) {
	v := verdict{Channel: m.ro.ch.name, Hostname: m.rec.Hostname, RolloutID: m.ro.id}
	switch effect := effect.(type) {
	case hoststate.Quarantine:
		v.Closure, v.Code = effect.Closure, effect.Code
	case hoststate.Exonerate:
		v.Closure, v.Allow = effect.Closure, true
	default:
		return
	}
	f.verdicts = append(f.verdicts, v)
}

func (f *Fleet) applyQuarantine(e Entry, b Quarantined) {
	f.settleVerdict(b.Channel, b.Closure, false)
	ch := f.channelOf(b.Channel)
	q, there := ch.quarantine[b.Closure]
	if !there {
		q = quarantine{Code: b.Code, Reason: b.Reason, At: e.RecordedAt}
	}
	if !slices.Contains(q.Hosts, e.Hostname) {
		q.Hosts = append(slices.Clip(q.Hosts), e.Hostname)
	}
	ch.quarantine[b.Closure] = q
	f.accountClosure(ch, b.Closure)
}

// applyAllow takes back what a host said of a closure; without a host, what all of them said.
func (f *Fleet) applyAllow(e Entry, b Allowed) {
	f.settleVerdict(b.Channel, b.Closure, true)
	ch := f.channelOf(b.Channel)
	q, there := ch.quarantine[b.Closure]
	if !there {
		return
	}
	q.Hosts = slices.DeleteFunc(slices.Clone(q.Hosts), func(h string) bool { return h == e.Hostname })
	if ch.quarantine[b.Closure] = q; e.Hostname == "" || len(q.Hosts) == 0 {
		delete(ch.quarantine, b.Closure)
	}
	f.accountClosure(ch, b.Closure)
}

// settleVerdict takes the first verdict on a closure off the list: it was decided on.
func (f *Fleet) settleVerdict(channel, closure string, allow bool) {
	i := slices.IndexFunc(f.verdicts, func(v verdict) bool {
		return v.Channel == channel && v.Closure == closure && v.Allow == allow
	})
	if i >= 0 {
		f.verdicts = slices.Delete(f.verdicts, i, i+1)
	}
}

func (f *Fleet) accountClosure(ch *channel, closure string) {
	for _, ro := range ch.rollouts {
		for _, i := range ro.onClosure(closure) {
			f.account(&ro.members[i])
		}
	}
}
