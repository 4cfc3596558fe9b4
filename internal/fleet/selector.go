package fleet

import (
	"slices"

	"nixfleet.dev/nixfleet/api"
)

// Matches says whether a selector picks a host. A selector that Validate refuses picks nothing it
// should not: none of its keys set matches no host, and of several only the first counts.
func Matches(sel *api.Selector, name string, host api.FleetHost) bool {
	return compile(sel)(name, host)
}

// predicate is a selector made ready for many hosts.
type predicate func(name string, host api.FleetHost) bool

// compile turns the lists of host names in a selector into sets, so that matching a whole fleet costs
// its size and not its square.
func compile(sel *api.Selector) predicate {
	switch {
	case sel == nil:
		return matchNothing
	case sel.All:
		return func(string, api.FleetHost) bool { return true }
	case sel.Tags != nil:
		return func(_ string, h api.FleetHost) bool { return containsAll(h.Tags, sel.Tags) }
	case sel.TagsAny != nil:
		return func(_ string, h api.FleetHost) bool { return containsAny(h.Tags, sel.TagsAny) }
	case sel.Hosts != nil:
		names := make(map[string]bool, len(sel.Hosts))
		for _, name := range sel.Hosts {
			names[name] = true
		}
		return func(name string, _ api.FleetHost) bool { return names[name] }
	case sel.Channel != "":
		return func(_ string, h api.FleetHost) bool { return h.Channel == sel.Channel }
	case sel.Not != nil:
		inner := compile(sel.Not)
		return func(name string, h api.FleetHost) bool { return !inner(name, h) }
	case sel.And != nil:
		return compileAnd(sel.And)
	}
	return matchNothing
}

func compileAnd(parts []api.Selector) predicate {
	all := make([]predicate, len(parts))
	for i := range parts {
		all[i] = compile(&parts[i])
	}
	return func(name string, h api.FleetHost) bool {
		return !slices.ContainsFunc(all, func(p predicate) bool { return !p(name, h) })
	}
}

func matchNothing(string, api.FleetHost) bool { return false }

func containsAll(have, want []string) bool {
	return !slices.ContainsFunc(want, func(tag string) bool { return !slices.Contains(have, tag) })
}

func containsAny(have, want []string) bool {
	return slices.ContainsFunc(want, func(tag string) bool { return slices.Contains(have, tag) })
}

// Select returns the names of the hosts of a fleet that a selector picks, sorted.
func Select(f *api.Fleet, sel *api.Selector) []string {
	picked := []string{}
	match := compile(sel)
	for name, host := range f.Hosts {
		if match(name, host) {
			picked = append(picked, name)
		}
	}
	slices.Sort(picked)
	return picked
}

// matchesAny says whether a selector picks any host at all.
func matchesAny(f *api.Fleet, sel *api.Selector) bool {
	match := compile(sel)
	for name, host := range f.Hosts {
		if match(name, host) {
			return true
		}
	}
	return false
}

// NoWave is the wave of a host that no wave's selector picks.
const NoWave = -1

// Waves returns the wave of each host of a channel under a policy with its defaults filled in: the
// first whose selector picks the host, or NoWave.
func Waves(f *api.Fleet, channel string, policy api.Policy) map[string]int {
	matches := make([]predicate, len(policy.Waves))
	for i, wave := range policy.Waves {
		matches[i] = compile(wave.Selector)
	}
	waves := map[string]int{}
	for name, host := range f.Hosts {
		if host.Channel != channel {
			continue
		}
		waves[name] = slices.IndexFunc(matches, func(p predicate) bool { return p(name, host) })
	}
	return waves
}
