package fleet

import (
	"fmt"
	"slices"
	"strings"

	"nixfleet.dev/nixfleet/api"
)

func (v *validator) policies() {
	names := sortedKeys(v.fleet.RolloutPolicies)
	v.differInMoreThanCase("rolloutPolicies", names)
	for _, name := range names {
		path := at("rolloutPolicies", name)
		if !validLabel(name) {
			v.problemf(path, "is not a name: 1 to %d bytes that print", maxLabel)
		}
		policy := WithDefaults(v.fleet.RolloutPolicies[name])
		v.policyWaves(policy.Waves, path)
		oneOf(v, policy.OnHealthFailure, healthFailurePolicies, append(path, "onHealthFailure"))
		oneOf(v, policy.Offline.Action, offlineActions, append(path, "offline", "action"))
		oneOf(v, policy.Reboot.Mode, rebootModes, append(path, "reboot", "mode"))
		oneOf(v, policy.Preflight, preflights, append(path, "preflight"))
		if policy.MaxFailures.Percent && policy.MaxFailures.Value > 100 {
			v.problemf(append(path, "maxFailures"), "is %s; make it 100%% or less", policy.MaxFailures)
		}
		if *policy.Offline.After == 0 {
			v.problem("is 0s, in which no host can be heard, so that each would be skipped; leave it out for the default", append(path, "offline", "after")...)
		}
		if *policy.ActivationTimeout == 0 {
			v.problem("is 0s, in which no host can be activated; leave it out for the default", append(path, "activationTimeout")...)
		}
		if *policy.ConfirmTimeout == 0 {
			v.problem("is 0s, in which no host can confirm, so that each would go back; leave it out for the default", append(path, "confirmTimeout")...)
		}
	}
}

func oneOf[S ~string](v *validator, value S, words []S, path []string) {
	if slices.Contains(words, value) {
		return
	}
	list := make([]string, len(words))
	for i, word := range words {
		list[i] = string(word)
	}
	v.problemf(path, "is %s; use one of %s", quoteName(string(value)), strings.Join(list, ", "))
}

func (v *validator) policyWaves(waves []api.Wave, path []string) {
	if len(waves) == 0 {
		v.problem(`has no waves; give at least {"selector": {"all": true}}, or leave waves out`, append(path, "waves")...)
	}
	if len(waves) > api.MaxWaves {
		v.problemf(append(path, "waves"), "has %d waves; at most %d are allowed", len(waves), api.MaxWaves)
	}
	for i, wave := range waves {
		field := append(slices.Clone(path), "waves", fmt.Sprint(i), "selector")
		if wave.Selector == nil {
			v.problem(`is missing; say which hosts go in this wave, such as {"all": true}`, field...)
		} else if v.selector(wave.Selector, 1, field...) && !matchesAny(v.fleet, wave.Selector) {
			v.warnf(field, "matches no host")
		}
	}
}

// selector checks one selector, which is depth deep, and says whether it is right.
func (v *validator) selector(sel *api.Selector, depth int, path ...string) bool {
	if depth > api.MaxSelector {
		v.problemf(path, "nests over %d deep; say it more simply, for instance with a tag", api.MaxSelector)
		return false
	}
	if keys := selectorKeys(sel); len(keys) != 1 {
		v.problem(countedKeys(keys), path...)
		return false
	}
	switch {
	case sel.Not != nil:
		return v.selector(sel.Not, depth+1, append(slices.Clone(path), "not")...)
	case sel.And != nil:
		good := v.notEmpty(len(sel.And), append(path, "and"))
		for i := range sel.And {
			good = v.selector(&sel.And[i], depth+1, append(slices.Clone(path), "and", fmt.Sprint(i))...) && good
		}
		return good
	case sel.Tags != nil:
		return v.notEmpty(len(sel.Tags), append(path, "tags"))
	case sel.TagsAny != nil:
		return v.notEmpty(len(sel.TagsAny), append(path, "tagsAny"))
	case sel.Hosts != nil:
		return v.selectorHosts(sel.Hosts, append(path, "hosts"))
	case sel.Channel != "":
		return v.knownChannel(sel.Channel, append(path, "channel")...)
	}
	return true
}

func (v *validator) notEmpty(n int, path []string) bool {
	if n == 0 {
		v.problem(`is an empty list; list something, or use {"all": true} for every host`, path...)
	}
	return n > 0
}

// selectorHosts warns of names that are no host's beside ones that are; a selector that picks nothing
// at all gets its own warning.
func (v *validator) selectorHosts(names []string, path []string) bool {
	unknown := []string{}
	for _, name := range names {
		if _, known := v.fleet.Hosts[name]; !known {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) > 0 && len(unknown) < len(names) {
		v.warnf(path, "names hosts that are not in the fleet: %s", sample(unknown))
	}
	return v.notEmpty(len(names), path)
}

// selectorKeys lists the keys that a selector has, of those whose value says something.
func selectorKeys(sel *api.Selector) []string {
	keys := []string{}
	for _, key := range []struct {
		name string
		set  bool
	}{
		{"tags", sel.Tags != nil}, {"tagsAny", sel.TagsAny != nil}, {"hosts", sel.Hosts != nil},
		{"channel", sel.Channel != ""}, {"all", sel.All}, {"not", sel.Not != nil}, {"and", sel.And != nil},
	} {
		if key.set {
			keys = append(keys, key.name)
		}
	}
	return keys
}

// countedKeys says what is wrong with a selector that has these keys.
func countedKeys(keys []string) string {
	const use = "use exactly one of tags, tagsAny, hosts, channel, all, not, and"
	if len(keys) == 0 {
		return "says nothing; " + use
	}
	return fmt.Sprintf("has %d keys (%s); %s, and put several conditions in {\"and\": […]}", len(keys), sample(keys), use)
}
