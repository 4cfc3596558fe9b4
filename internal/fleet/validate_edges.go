package fleet

import (
	"fmt"
	"strings"

	"nixfleet.dev/nixfleet/api"
)

// waves checks, for each channel under its own policy, that every host is in a wave, and warns of
// waves that nobody is in.
func (v *validator) waves() {
	for _, channel := range sortedKeys(v.fleet.Channels) {
		name := v.fleet.Channels[channel].RolloutPolicy
		if policy, known := v.fleet.RolloutPolicies[name]; known {
			v.channelWaves(channel, name, WithDefaults(policy))
		}
	}
}

func (v *validator) channelWaves(channel, policyName string, policy api.Policy) {
	waves := Waves(v.fleet, channel, policy)
	counts := make([]int, len(policy.Waves))
	for _, host := range sortedKeys(waves) {
		if waves[host] == NoWave {
			v.problemf(at("hosts", host), "is in no wave of policy %s, which channel %s uses; end its waves with {\"selector\": {\"all\": true}}",
				quoteName(policyName), quoteName(channel))
			continue
		}
		counts[waves[host]]++
	}
	for i, n := range counts {
		// A selector that matches no host of the whole fleet is warned of where it stands.
		if n == 0 && len(waves) > 0 && i < len(counts)-1 && matchesAny(v.fleet, policy.Waves[i].Selector) {
			v.warnf(at("rolloutPolicies", policyName, "waves", fmt.Sprint(i)),
				"has no host of channel %s, so that the next wave will wait for someone's approval", quoteName(channel))
		}
	}
}

// CheckPolicy lists what would be wrong with releasing a channel under another policy than its own
// (release create --rollout-policy).
func CheckPolicy(f *api.Fleet, channel, policy string) []Problem {
	other := *f
	other.Channels = map[string]api.FleetChannel{}
	for name, c := range f.Channels {
		if name == channel {
			c.RolloutPolicy = policy
		}
		other.Channels[name] = c
	}
	problems, _ := Validate(&other)
	return problems
}

func (v *validator) edges() {
	waves := map[string]map[string]int{}
	edges := []api.Edge{}
	for i, edge := range v.fleet.Edges {
		path := at("edges", fmt.Sprint(i))
		if !v.knownHost(edge.Before, append(path, "before")) || !v.knownHost(edge.After, append(path, "after")) {
			continue
		}
		edges = append(edges, edge)
		before, after := v.fleet.Hosts[edge.Before], v.fleet.Hosts[edge.After]
		if before.Channel != after.Channel {
			v.problemf(path, "orders %s of channel %s and %s of channel %s; only hosts of one channel can be ordered, use channelEdges",
				quoteName(edge.Before), quoteName(before.Channel), quoteName(edge.After), quoteName(after.Channel))
			continue
		}
		if waves[before.Channel] == nil {
			waves[before.Channel] = v.wavesOf(before.Channel)
		}
		first, then := waves[before.Channel][edge.Before], waves[before.Channel][edge.After]
		if then != NoWave && first > then {
			v.problemf(path, "puts %s of wave %d before %s of wave %d, which is earlier; turn the edge round or move one of the hosts",
				quoteName(edge.Before), first, quoteName(edge.After), then)
		}
	}
	v.cycles("edges", edges)
}

func (v *validator) wavesOf(channel string) map[string]int {
	policy, known := v.fleet.RolloutPolicies[v.fleet.Channels[channel].RolloutPolicy]
	if !known {
		return map[string]int{}
	}
	return Waves(v.fleet, channel, WithDefaults(policy))
}

func (v *validator) knownHost(name string, path []string) bool {
	_, known := v.fleet.Hosts[name]
	if !known {
		v.problemf(path, "is %s, which is no host of the fleet", quoteName(name))
	}
	return known
}

func (v *validator) channelEdges() {
	edges := []api.Edge{}
	for i, edge := range v.fleet.ChannelEdges {
		path := at("channelEdges", fmt.Sprint(i))
		before := v.knownChannel(edge.Before, append(path, "before")...)
		if v.knownChannel(edge.After, append(path, "after")...) && before {
			edges = append(edges, edge)
		}
	}
	v.cycles("channelEdges", edges)
}

func (v *validator) cycles(field string, edges []api.Edge) {
	for _, cycle := range findCycles(edges) {
		v.problemf(at(field), "go round in a circle: %s; take one of these edges away", drawCycle(cycle))
	}
}

// drawCycle writes a cycle as a path that ends where it began.
func drawCycle(cycle []string) string {
	const most = 12
	names := []string{}
	for i, name := range cycle {
		if i == most {
			names = append(names, fmt.Sprintf("… %d more …", len(cycle)-most))
			break
		}
		names = append(names, quoteName(name))
	}
	return strings.Join(append(names, quoteName(cycle[0])), " → ")
}
