package fleet

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"nixfleet.dev/nixfleet/api"
)

// picks is selectors by sets: each selector is the set of names it picks, computed from the fleet and
// nothing shared with the code under test.
func picks(f *api.Fleet, sel api.Selector) map[string]bool {
	set := map[string]bool{}
	switch {
	case sel.And != nil:
		for name := range f.Hosts {
			set[name] = true
		}
		for _, part := range sel.And {
			inner := picks(f, part)
			maps.DeleteFunc(set, func(name string, _ bool) bool { return !inner[name] })
		}
	case sel.Not != nil:
		inner := picks(f, *sel.Not)
		for name := range f.Hosts {
			if !inner[name] {
				set[name] = true
			}
		}
	default:
		for name, host := range f.Hosts {
			n := 0
			for _, tag := range host.Tags {
				if slices.Contains(sel.Tags, tag) || slices.Contains(sel.TagsAny, tag) {
					n++
				}
			}
			set[name] = sel.All || sel.Channel == host.Channel || slices.Contains(sel.Hosts, name) ||
				len(sel.TagsAny) > 0 && n > 0 || len(sel.Tags) > 0 && n == len(sel.Tags)
		}
	}
	return set
}

func genSelector(depth int) *rapid.Generator[api.Selector] {
	some := func(of ...string) *rapid.Generator[[]string] {
		return rapid.SliceOfNDistinct(rapid.SampledFrom(of), 1, len(of), rapid.ID)
	}
	tags := some("a", "b", "c")
	kinds := []*rapid.Generator[api.Selector]{
		rapid.Map(tags, func(s []string) api.Selector { return api.Selector{Tags: s} }),
		rapid.Map(tags, func(s []string) api.Selector { return api.Selector{TagsAny: s} }),
		rapid.Map(some("h0", "h1", "h2", "h9"), func(s []string) api.Selector { return api.Selector{Hosts: s} }),
		rapid.Map(rapid.SampledFrom([]string{"stable", "edge"}), func(s string) api.Selector { return api.Selector{Channel: s} }),
		rapid.Just(api.Selector{All: true}),
	}
	if depth > 1 {
		inner := rapid.Deferred(func() *rapid.Generator[api.Selector] { return genSelector(depth - 1) })
		kinds = append(kinds,
			rapid.Map(inner, func(s api.Selector) api.Selector { return api.Selector{Not: &s} }),
			rapid.Map(rapid.SliceOfN(inner, 1, 3), func(s []api.Selector) api.Selector { return api.Selector{And: s} }))
	}
	return rapid.OneOf(kinds...)
}

func genFleet(t *rapid.T) *api.Fleet {
	f := &api.Fleet{Hosts: map[string]api.FleetHost{}}
	for _, name := range []string{"h0", "h1", "h2", "h3", "h4"} {
		f.Hosts[name] = api.FleetHost{
			Channel: rapid.SampledFrom([]string{"stable", "edge"}).Draw(t, name+" channel"),
			Tags:    rapid.SliceOfDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), rapid.ID).Draw(t, name+" tags"),
		}
	}
	return f
}

func TestSelectorsPickWhatTheSetModelPicks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, sel := genFleet(t), genSelector(4).Draw(t, "selector")
		want := picks(f, sel)
		for name, host := range f.Hosts {
			if got := Matches(&sel, name, host); got != want[name] {
				t.Errorf("%s: Matches says %v, the model %v", name, got, want[name])
			}
		}
	})
}

func TestAHostIsInTheFirstWaveThatPicksIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := genFleet(t)
		var policy api.Policy
		for range rapid.IntRange(0, 4).Draw(t, "waves") {
			sel := genSelector(3).Draw(t, "selector")
			policy.Waves = append(policy.Waves, api.Wave{Selector: &sel})
		}
		got := Waves(f, "stable", policy)
		for name, host := range f.Hosts {
			wave, there := got[name]
			if there != (host.Channel == "stable") {
				t.Fatalf("%s of channel %s: in a wave: %v", name, host.Channel, there)
			}
			if !there {
				continue
			}
			want := NoWave
			for i := len(policy.Waves) - 1; i >= 0; i-- {
				if picks(f, *policy.Waves[i].Selector)[name] {
					want = i
				}
			}
			if wave != want {
				t.Errorf("%s is in wave %d, not %d", name, wave, want)
			}
		}
	})
}

func TestNamesAreCheckedByTheContractsPatterns(t *testing.T) {
	label63 := "a23456789012345678901234567890123456789012345678901234567890123"
	for _, test := range []struct {
		valid func(string) bool
		good  []string
		bad   []string
	}{
		{ValidHostname, []string{"a", "web-01", "web-01.example.org", label63, "1"},
			[]string{"", "-a", "a-", "A", "a..b", ".a", "a.", "a_b", label63 + "x", "a b", "a\n"}},
		{ValidChannel, []string{"stable", "s_1-x", "0"}, []string{"", "-a", "_a", "Stable", "a.b", label63 + "x"}},
		{ValidRef, []string{"0a1b2c3", label63[:0] + "0123456789012345678901234567890123456789"}, []string{"", "0a1b2c", "0A1B2C3", "main"}},
		{ValidClosure, []string{hash + "-nixos-system-web-01-25.11"},
			[]string{"", hash, hash + "-", hash + "-a/b", "../" + hash + "-a", hash[1:] + "-a", "e" + hash[1:] + "-a"}},
	} {
		for _, s := range test.good {
			if !test.valid(s) {
				t.Errorf("%q was refused", s)
			}
		}
		for _, s := range test.bad {
			if test.valid(s) {
				t.Errorf("%q was accepted", s)
			}
		}
	}
}
