package rollout

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// HostFilter picks hosts for a list. Zero fields pick all.
type HostFilter struct {
	Channel string
	State   api.HostState
	Tag     string
	Query   string // part of the name
	Limit   int    // 100 when zero, at most 1,000
	Cursor  string // NextCursor of the page before
}

// Host returns what operators see of a host.
func (f *Fleet) Host(name string, now time.Time) (api.Host, bool) {
	h := f.hosts[name]
	if h == nil {
		return api.Host{}, false
	}
	return f.viewHost(h, now), true
}

// Hosts returns a page of hosts, by name.
func (f *Fleet) Hosts(filter HostFilter, now time.Time) api.List[api.Host] {
	limit := filter.Limit
	if limit <= 0 {
		limit = api.DefaultListLimit
	}
	limit = min(limit, api.MaxListLimit)
	list := api.List[api.Host]{Items: []api.Host{}}
	names := f.sortedNames()
	from, found := slices.BinarySearch(names, filter.Cursor)
	if found && filter.Cursor != "" {
		from++
	}
	for _, name := range names[from:] {
		h := f.hosts[name]
		if !filter.picks(h) {
			continue
		}
		if len(list.Items) == limit {
			list.NextCursor = list.Items[limit-1].Hostname
			return list
		}
		list.Items = append(list.Items, f.viewHost(h, now))
	}
	return list
}

func (q HostFilter) picks(h *host) bool {
	return (q.Channel == "" || h.channelName() == q.Channel) && (q.State == "" || h.state() == q.State) &&
		(q.Tag == "" || slices.Contains(h.tags, q.Tag)) && strings.Contains(h.name, q.Query)
}

// sortedNames returns the names of all hosts; nobody may change the list.
func (f *Fleet) sortedNames() []string {
	if len(f.names) == len(f.hosts) {
		return f.names
	}
	return slices.Sorted(maps.Keys(f.hosts))
}

// channelName is the channel that a host is declared on, or was last.
func (h *host) channelName() string {
	if m := h.current(); h.channel == "" && m != nil {
		return m.ro.ch.name
	}
	return h.channel
}

func (h *host) state() api.HostState {
	if m := h.current(); m != nil {
		return m.rec.State
	}
	return api.Idle
}

func (f *Fleet) viewHost(h *host, now time.Time) api.Host {
	v := api.Host{
		Hostname: h.name, Channel: h.channelName(), Tags: nonNil(h.tags), Declared: h.declared, State: h.state(),
		CurrentClosure: h.seen.CurrentClosure, BootClosure: h.seen.BootClosure, Drifted: f.drifted(h),
		Reachable: f.reachable(h, now), LastRejection: h.refused, Probes: []api.ProbeStatus{},
		AgentVersion: h.seen.AgentVersion, TrustSHA256: h.seen.TrustSHA256, RebootPending: nonNil(h.seen.RebootPending),
	}
	if at := h.heartbeatAt(); !at.IsZero() {
		v.LastHeartbeatAt = &at
	}
	if m := h.current(); m != nil {
		v.Overdue, v.RolloutID, v.Attempt, v.Wave = m.overdue != nil, m.ro.id, m.rec.Attempt, m.rec.Wave
		v.TargetClosure, v.PreviousClosure, v.LastFailure = m.rec.TargetClosure, m.rec.PreviousClosure, m.rec.Failure
		v.Probes = nonNil(m.rec.Probes)
		if end := m.rec.SoakEndsAt; m.rec.State == api.Soaking && !end.IsZero() {
			v.SoakEndsAt = &end
		}
	}
	if v.LastFailure == nil {
		v.LastFailure = h.lastFailure()
	}
	return v
}

// lastFailure is the newest failure of the host in any rollout.
func (h *host) lastFailure() *api.Failure {
	for _, m := range slices.Backward(h.members) {
		if m.rec.Failure != nil {
			return m.rec.Failure
		}
	}
	return nil
}

// heartbeatAt is when the newest heartbeat came: the newest with news, where this process had none.
func (h *host) heartbeatAt() time.Time {
	if h.lastHeartbeat.After(h.seenAt) {
		return h.lastHeartbeat
	}
	return h.seenAt
}

// reachable says whether the host was heard within three heartbeats.
func (f *Fleet) reachable(h *host, now time.Time) bool {
	last := h.lastHeard
	if h.seenAt.After(last) {
		last = h.seenAt
	}
	return !last.IsZero() && now.Sub(last) <= 3*f.opts.HeartbeatInterval
}

// drifted says whether the host runs a closure that nobody gave it: neither what it is to run now nor
// what it may be on the way from.
func (f *Fleet) drifted(h *host) bool {
	if !h.heard() || h.seen.CurrentClosure == "" {
		return false
	}
	for _, m := range slices.Backward(h.members) {
		if !m.took {
			continue
		}
		onTarget, onPrevious := h.seen.CurrentClosure == m.rec.TargetClosure, h.seen.CurrentClosure == m.rec.PreviousClosure
		switch m.rec.State {
		case api.HostConverged, api.Soaking:
			return !onTarget
		case api.Reverted:
			return !onPrevious
		}
		return !onTarget && !onPrevious && m.rec.PreviousClosure != ""
	}
	return false
}

func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// Rollout returns what operators see of a rollout.
func (f *Fleet) Rollout(id string, now time.Time) (api.Rollout, bool) {
	r := f.rollouts[id]
	if r == nil {
		return api.Rollout{}, false
	}
	return f.viewRollout(r, now), true
}

// Rollouts returns all rollouts that are known, the newest first.
func (f *Fleet) Rollouts(now time.Time) []api.Rollout {
	list := []api.Rollout{}
	for _, r := range slices.SortedFunc(maps.Values(f.rollouts), func(a, b *rollout) int { return older(b, a) }) {
		list = append(list, f.viewRollout(r, now))
	}
	return list
}

func (f *Fleet) viewRollout(r *rollout, now time.Time) api.Rollout {
	v := api.Rollout{
		RolloutID: r.id, Channel: r.ch.name, Ref: r.adopted.Ref, Sequence: r.adopted.Sequence,
		PolicyName: r.manifest.PolicyName, State: r.state, CurrentWave: max(0, r.open-1), Hosts: len(r.members),
		Failed: r.failures, HaltReason: r.reason, Waves: []api.WaveStatus{}, Blocks: r.blocks(now),
	}
	if at := r.openedAt; !at.IsZero() {
		v.OpenedAt = &at
	}
	if at := r.endedAt; !at.IsZero() {
		v.EndedAt = &at
	}
	for i := range r.waves {
		w := api.WaveStatus{Index: i, Open: i < r.open, Counts: map[api.HostState]int{}}
		for s, n := range r.waves[i].counts {
			if n > 0 {
				w.Counts[api.HostStates[s]] = n
			}
		}
		v.Waves = append(v.Waves, w)
	}
	return v
}

// blocks says what the rollout waits for, other than hosts whose turn it is.
func (r *rollout) blocks(now time.Time) []api.GateVerdict {
	verdict := func(g gate, reason string) []api.GateVerdict {
		since := r.stateSince
		return []api.GateVerdict{{Gate: string(g), Reason: reason, Since: &since}}
	}
	switch {
	case r.state == api.RolloutConverged || r.state == api.RolloutSuperseded:
	case r.state != api.RolloutActive:
		return verdict(gateRollout, r.stateWords())
	case r.open < len(r.waves):
		return verdict(gateWave, r.waveWords(r.open, now))
	}
	return []api.GateVerdict{}
}

// RolloutObjects names the artifacts of a rollout, to serve them.
func (f *Fleet) RolloutObjects(id string) (Objects, bool) {
	r := f.rollouts[id]
	if r == nil {
		return Objects{}, false
	}
	return r.adopted.Objects, true
}

// LineIndex returns which line of its host list is a host's.
func (f *Fleet) LineIndex(id, host string) (int, bool) {
	if r := f.rollouts[id]; r != nil {
		if m := r.find(host); m != nil {
			return m.line, true
		}
	}
	return 0, false
}

// Channels returns all channels that have or had a rollout, by name.
func (f *Fleet) Channels(now time.Time) []api.Channel {
	list := []api.Channel{}
	for _, name := range slices.Sorted(maps.Keys(f.channels)) {
		ch := f.channels[name]
		v := api.Channel{Channel: name, Quarantine: []api.QuarantinedClosure{}}
		if r := ch.newest(); r != nil {
			v.Ref, v.Sequence, v.RolloutID, v.State = r.adopted.Ref, r.adopted.Sequence, r.id, r.state
			v.SignedAt = r.adopted.SignedAt
			v.ExpiresAt = r.adopted.SignedAt.Add(r.manifest.FreshnessWindow.Std())
		}
		for closure, q := range ch.quarantine {
			v.Quarantine = append(v.Quarantine, api.QuarantinedClosure{Closure: closure, Reason: q.Reason, At: q.At})
		}
		slices.SortFunc(v.Quarantine, func(a, b api.QuarantinedClosure) int { return cmp.Compare(a.Closure, b.Closure) })
		list = append(list, v)
	}
	return list
}
