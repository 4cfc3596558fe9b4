package manifest

import (
	"fmt"
	"slices"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/fleet"
)

// Projection is everything that the manifest of one rollout depends on.
type Projection struct {
	// Fleet is a fleet that fleet.Validate finds nothing wrong with, and FleetDigest the SHA-256 of its
	// payload's bytes.
	Fleet       *api.Fleet
	FleetDigest string

	Channel, Ref string
	// Policy is the name of the policy to roll out by, the channel's own where it is "".
	Policy string

	Sequence   int64
	ReleasedAt time.Time // also: pins that have ended by then do not count
	SignedAt   time.Time
}

// Project returns the manifest of a channel's release and its hosts.jsonl. The same projection always
// gives the same bytes. What it leaves out of a fleet, a rollout does not depend on: budgets that no
// host of the channel is in are not in the manifest.
func Project(p Projection) (api.Manifest, []byte, error) {
	var none api.Manifest
	what := ID(p.Channel, p.Ref)
	if _, _, err := ParseID(what); err != nil {
		return none, nil, fmt.Errorf("projecting: %w", err)
	}
	channel, known := p.Fleet.Channels[p.Channel]
	if !known {
		return none, nil, fmt.Errorf("projecting %s: the fleet has no such channel", what)
	}
	policyName := p.Policy
	if policyName == "" {
		policyName = channel.RolloutPolicy
	}
	declared, known := p.Fleet.RolloutPolicies[policyName]
	if !known {
		return none, nil, fmt.Errorf("projecting %s: the fleet has no policy %q", what, policyName)
	}
	policy := fleet.WithDefaults(declared)
	lines, budgets, err := projectLines(p, policy)
	if err != nil {
		return none, nil, fmt.Errorf("projecting %s: %w", what, err)
	}
	encoded, err := EncodeHosts(lines)
	if err != nil {
		return none, nil, fmt.Errorf("projecting %s: %w", what, err)
	}
	hosts, err := ParseHosts(encoded, len(policy.Waves), len(budgets))
	if err != nil {
		return none, nil, fmt.Errorf("projecting %s: %w", what, err)
	}
	return api.Manifest{
		SchemaVersion:      api.SchemaVersion,
		RolloutID:          what,
		Channel:            p.Channel,
		Ref:                p.Ref,
		Sequence:           p.Sequence,
		ReleasedAt:         p.ReleasedAt.UTC(),
		SignedAt:           p.SignedAt.UTC(),
		FreshnessWindow:    channel.FreshnessWindow,
		FleetDigest:        p.FleetDigest,
		PolicyName:         policyName,
		Policy:             withoutSelectors(policy),
		MaintenanceWindows: orEmpty(channel.MaintenanceWindows),
		Freezes:            orEmpty(channel.Freezes),
		HostSet:            hosts.Set(),
		DisruptionBudgets:  budgets,
		ChannelAfter:       orEmpty(predecessors(p.Fleet.ChannelEdges)[p.Channel]),
	}, encoded, nil
}

// projectLines returns the lines of a channel's hosts and the budgets that they are in, in the order in
// which the fleet declares them, with caps resolved against the whole fleet.
func projectLines(p Projection, policy api.Policy) ([]api.HostLine, []api.ManifestBudget, error) {
	waves := fleet.Waves(p.Fleet, p.Channel, policy)
	memberships := map[string][]int{}
	budgets := []api.ManifestBudget{}
	for _, budget := range p.Fleet.DisruptionBudgets {
		members := fleet.Select(p.Fleet, &budget.Selector)
		touched := false
		for _, name := range members {
			if _, ours := waves[name]; ours {
				touched = true
				memberships[name] = append(memberships[name], len(budgets))
			}
		}
		if touched {
			budgets = append(budgets, api.ManifestBudget{Name: budget.Name, MaxInFlight: max(1, budget.MaxInFlight.Of(len(members)))})
		}
	}
	after := predecessors(p.Fleet.Edges)
	lines := make([]api.HostLine, 0, len(waves))
	for name, wave := range waves {
		if wave == fleet.NoWave {
			return nil, nil, fmt.Errorf("host %s is in no wave", name)
		}
		lines = append(lines, api.HostLine{
			Hostname: name,
			Wave:     wave,
			Closure:  ClosureOf(p.Fleet.Hosts[name], p.ReleasedAt),
			After:    after[name],
			Budgets:  memberships[name],
		})
	}
	return lines, budgets, nil
}

// ClosureOf returns what a host is to run by a release at some time: what it is pinned to while the pin
// lasts, and what is declared for it otherwise.
func ClosureOf(host api.FleetHost, releasedAt time.Time) string {
	if host.Pin != nil && (host.Pin.ExpiresAt == nil || releasedAt.Before(*host.Pin.ExpiresAt)) {
		return host.Pin.Closure
	}
	return host.Closure
}

// predecessors returns, for each name that comes after others, those others: sorted, each once.
func predecessors(edges []api.Edge) map[string][]string {
	before := map[string][]string{}
	for _, edge := range edges {
		before[edge.After] = append(before[edge.After], edge.Before)
	}
	for name, list := range before {
		slices.Sort(list)
		before[name] = slices.Compact(list)
	}
	return before
}

func withoutSelectors(p api.Policy) api.Policy {
	p.Waves = slices.Clone(p.Waves)
	for i := range p.Waves {
		p.Waves[i].Selector = nil
	}
	return p
}

// orEmpty keeps a list that was left out comparable with what is read back from JSON: [].
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
