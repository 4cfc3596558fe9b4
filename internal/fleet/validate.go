package fleet

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/schedule"
)

// minFreshness is the shortest freshness window: below it, an agent whose clock is a little off, or a
// CI that is a little late, stops a fleet.
const minFreshness = 5 * time.Minute

// Validate lists everything that is wrong with a fleet, and what a person should know though it is
// allowed, both in a stable order.
func Validate(f *api.Fleet) (problems []Problem, warnings []string) {
	v := &validator{fleet: f}
	if f.Commit != "" && !ValidRef(f.Commit) {
		v.problem("is not a commit: 7 to 64 lower-case hex digits", "commit")
	}
	v.hosts()
	v.channels()
	v.policies()
	v.waves()
	v.edges()
	v.channelEdges()
	v.budgets()
	return v.problems, v.warnings
}

type validator struct {
	fleet    *api.Fleet
	problems []Problem
	warnings []string
}

func (v *validator) problem(reason string, path ...string) {
	v.problems = append(v.problems, Problem{fieldPath(path...), reason})
}

func (v *validator) problemf(path []string, format string, args ...any) {
	v.problem(fmt.Sprintf(format, args...), path...)
}

func (v *validator) warnf(path []string, format string, args ...any) {
	v.warnings = append(v.warnings, fieldPath(path...)+": "+fmt.Sprintf(format, args...))
}

func at(path ...string) []string { return path }

func (v *validator) hosts() {
	names := sortedKeys(v.fleet.Hosts)
	v.differInMoreThanCase("hosts", names)
	for _, name := range names {
		host := v.fleet.Hosts[name]
		if !ValidHostname(name) {
			v.problem("is not a host name: lower-case letters, digits and hyphens, in labels joined by dots", "hosts", name)
		}
		if host.System == "" {
			v.problem(`is empty; name the platform, such as "x86_64-linux"`, "hosts", name, "system")
		}
		v.knownChannel(host.Channel, "hosts", name, "channel")
		v.closure(host.Closure, "hosts", name, "closure")
		for _, tag := range host.Tags {
			if !validLabel(tag) {
				v.problemf(at("hosts", name, "tags"), "has the tag %s; a tag is 1 to %d bytes that print", quoteName(tag), maxLabel)
			}
		}
		if host.Pin != nil {
			v.closure(host.Pin.Closure, "hosts", name, "pin", "closure")
			if host.Pin.Reason == "" {
				v.problem("is empty; say why the host is pinned", "hosts", name, "pin", "reason")
			}
		}
	}
}

func (v *validator) closure(closure string, path ...string) {
	if !ValidClosure(closure) {
		v.problemf(path, `is %s, which is not the base name of a store path, "<32 characters of hash>-<name>"`, quoteName(closure))
	}
}

func (v *validator) knownChannel(name string, path ...string) bool {
	if _, known := v.fleet.Channels[name]; known {
		return true
	}
	v.problemf(path, "is the unknown channel %s; declare it under channels, or use one that is: %s",
		quoteName(name), sample(sortedKeys(v.fleet.Channels)))
	return false
}

func (v *validator) channels() {
	names := sortedKeys(v.fleet.Channels)
	v.differInMoreThanCase("channels", names)
	for _, name := range names {
		channel := v.fleet.Channels[name]
		if !ValidChannel(name) {
			v.problem("is not a channel name: up to 63 of a-z, 0-9, _ and -, the first one a letter or a digit", "channels", name)
		}
		if _, known := v.fleet.RolloutPolicies[channel.RolloutPolicy]; !known {
			v.problemf(at("channels", name, "rolloutPolicy"), "is the unknown policy %s; declare it under rolloutPolicies, or use one that is: %s",
				quoteName(channel.RolloutPolicy), sample(sortedKeys(v.fleet.RolloutPolicies)))
		}
		if channel.FreshnessWindow.Std() < minFreshness {
			v.problemf(at("channels", name, "freshnessWindow"), "is %s; make it %s or longer", channel.FreshnessWindow, api.Duration(minFreshness))
		}
		for i, window := range channel.MaintenanceWindows {
			if err := schedule.Validate(window); err != nil {
				v.problem(err.Error(), "channels", name, "maintenanceWindows", fmt.Sprint(i))
			}
		}
		for i, freeze := range channel.Freezes {
			if !freeze.Until.After(freeze.From) {
				v.problem("ends before it begins; put until after from", "channels", name, "freezes", fmt.Sprint(i))
			}
		}
	}
}

func (v *validator) budgets() {
	seen := map[string]bool{}
	for i, budget := range v.fleet.DisruptionBudgets {
		path := at("disruptionBudgets", fmt.Sprint(i))
		if !validLabel(budget.Name) {
			v.problemf(append(path, "name"), "is not a name: 1 to %d bytes that print", maxLabel)
		} else if seen[budget.Name] {
			v.problemf(append(path, "name"), "is %s, which an earlier budget is called already; rename one", quoteName(budget.Name))
		}
		seen[budget.Name] = true
		if v.selector(&budget.Selector, 1, append(path, "selector")...) && !matchesAny(v.fleet, &budget.Selector) {
			v.warnf(append(path, "selector"), "matches no host")
		}
		most := budget.MaxInFlight
		if most.Value < 1 {
			v.problemf(append(path, "maxInFlight"), "is %s, under which no host could ever move; make it 1 or more", most)
		}
		if most.Percent && most.Value > 100 {
			v.problemf(append(path, "maxInFlight"), "is %s; make it 100%% or less", most)
		}
	}
	v.differInMoreThanCase("disruptionBudgets", sortedKeys(seen))
}

// differInMoreThanCase refuses names that a person, or a file system, could take for one another.
func (v *validator) differInMoreThanCase(what string, names []string) {
	first := map[string]string{}
	for _, name := range names {
		folded := strings.ToLower(name)
		if other, taken := first[folded]; taken {
			v.problemf(at(what, name), "differs from %s only in case; rename one", quoteName(other))
			continue
		}
		first[folded] = name
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
