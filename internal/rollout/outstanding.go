package rollout

import (
	"maps"
	"slices"

	"nixfleet.dev/nixfleet/api"
)

// ChangedDispatches returns, sorted, the hosts whose outstanding dispatch may have changed since it
// was last called.
func (f *Fleet) ChangedDispatches() []string {
	if len(f.changed) == 0 {
		return nil
	}
	names := make([]string, 0, len(f.changed))
	for h := range f.changed {
		names = append(names, h.name)
	}
	clear(f.changed)
	slices.Sort(names)
	return names
}

// Outstanding returns what a host is offered, or nil.
func (f *Fleet) Outstanding(name string) *api.Dispatch {
	h := f.hosts[name]
	if h == nil {
		return nil
	}
	m := h.offered()
	if m == nil {
		return nil
	}
	o := m.offer
	return &api.Dispatch{
		Hostname: h.name, RolloutID: m.ro.id, Action: o.Action, Attempt: o.Attempt, TargetClosure: o.TargetClosure,
		Wave: o.Wave, SoakDueAt: o.SoakDueAt, EnqueuedAt: o.EnqueuedAt,
	}
}

// OutstandingHosts returns, sorted, all hosts that are offered something: what a registry starts from
// after Restore.
func (f *Fleet) OutstandingHosts() []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(f.hosts)) {
		if f.hosts[name].offered() != nil {
			names = append(names, name)
		}
	}
	return names
}
