package manifest_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/fleet"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/trust"
)

// loadFleet returns a fleet that has everything that a projection depends on.
func loadFleet(t *testing.T) (*api.Fleet, string) {
	t.Helper()
	data, err := os.ReadFile("testdata/project/fleet.json")
	if err != nil {
		t.Fatal(err)
	}
	f, warnings, err := fleet.Load("fleet.json", data)
	if err != nil || len(warnings) > 0 {
		t.Fatalf("warnings %q, error %v", warnings, err)
	}
	return f, trust.Digest(data)
}

func projection(f *api.Fleet, digest, channel string) manifest.Projection {
	at := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	return manifest.Projection{
		Fleet: f, FleetDigest: digest, Channel: channel, Ref: "0a1b2c3d4e5f",
		Sequence: at.Unix(), ReleasedAt: at, SignedAt: at,
	}
}

func TestAFleetIsProjectedAsTheGoldenFilesSay(t *testing.T) {
	f, digest := loadFleet(t)
	for channel := range f.Channels {
		m, hosts, err := manifest.Project(projection(f, digest, channel))
		if err != nil {
			t.Fatal(err)
		}
		if err := manifest.Validate(m.RolloutID, m); err != nil {
			t.Errorf("what was projected is not valid: %v", err)
		}
		text, err := json.Marshal(m, json.Deterministic(true), jsontext.WithIndent(" "))
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "project/"+channel+".manifest.json", append(text, '\n'))
		golden(t, "project/"+channel+".hosts.jsonl", hosts)
	}
}

func TestAPinHoldsUntilItEnds(t *testing.T) {
	end := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	host := api.FleetHost{Closure: "declared", Pin: &api.Pin{Closure: "pinned", ExpiresAt: &end}}
	for at, want := range map[time.Time]string{end.Add(-time.Second): "pinned", end: "declared", end.Add(time.Hour): "declared"} {
		if got := manifest.ClosureOf(host, at); got != want {
			t.Errorf("at %s it runs what is %s, not %s", at, got, want)
		}
	}
	host.Pin.ExpiresAt = nil
	if got := manifest.ClosureOf(host, end); got != "pinned" {
		t.Errorf("with a pin without an end it runs what is %s", got)
	}
}

func TestABudgetInPercentIsOfAllMatchingHostsRoundedDownAtLeastOne(t *testing.T) {
	f, digest := loadFleet(t)
	for cap, want := range map[api.Amount]int{
		{Value: 50, Percent: true}: 2, {Value: 1, Percent: true}: 1, {Value: 100, Percent: true}: 5, {Value: 7}: 7,
	} {
		// Five hosts in two channels have the tag.
		f.DisruptionBudgets = []api.Budget{{Name: "b", Selector: api.Selector{Tags: []string{"always-on"}}, MaxInFlight: cap}}
		m, _, err := manifest.Project(projection(f, digest, "stable"))
		if err != nil {
			t.Fatal(err)
		}
		if got := m.DisruptionBudgets[0].MaxInFlight; got != want {
			t.Errorf("%s of five hosts is %d, not %d", cap, got, want)
		}
	}
}

func TestProjectingWhatIsNotThereIsRefused(t *testing.T) {
	f, digest := loadFleet(t)
	for name, change := range map[string]func(*manifest.Projection){
		"no such channel": func(p *manifest.Projection) { p.Channel = "none" },
		"no such policy":  func(p *manifest.Projection) { p.Policy = "none" },
		"no commit":       func(p *manifest.Projection) { p.Ref = "main" },
		"in no wave":      func(p *manifest.Projection) { p.Policy = "db-only" },
	} {
		p := projection(f, digest, "stable")
		change(&p)
		p.Fleet.RolloutPolicies["db-only"] = api.Policy{Waves: []api.Wave{{Selector: &api.Selector{Tags: []string{"db"}}}}}
		if _, _, err := manifest.Project(p); err == nil {
			t.Errorf("%s: it was projected", name)
		}
	}
}

// genProjected draws a fleet of one policy whose selectors are tags, which the model can follow.
func genProjected(t *rapid.T) *api.Fleet {
	f := &api.Fleet{
		Hosts: map[string]api.FleetHost{}, RolloutPolicies: map[string]api.Policy{},
		Channels: map[string]api.FleetChannel{"a": {RolloutPolicy: "p", FreshnessWindow: api.Duration(time.Hour)}, "b": {RolloutPolicy: "p", FreshnessWindow: api.Duration(time.Hour)}},
	}
	names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z0-9]{1,3}(-[a-z]|\.[0-9])?`), 1, 12, rapid.ID).Draw(t, "hosts")
	tags := []string{"x", "y", "z"}
	for i, name := range names {
		f.Hosts[name] = api.FleetHost{
			System: "s", Channel: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "channel"),
			Tags:    rapid.SliceOfDistinct(rapid.SampledFrom(tags), rapid.ID).Draw(t, "tags"),
			Closure: fmt.Sprintf("%s-c%d", strings.Repeat("0", 32), i),
		}
	}
	policy := api.Policy{}
	for range rapid.IntRange(0, 3).Draw(t, "waves") {
		tag := rapid.SampledFrom(tags).Draw(t, "wave")
		policy.Waves = append(policy.Waves, api.Wave{Selector: &api.Selector{Tags: []string{tag}}})
	}
	f.RolloutPolicies["p"] = api.Policy{Waves: append(policy.Waves, api.Wave{Selector: &api.Selector{All: true}})}
	for i := range rapid.IntRange(0, 3).Draw(t, "budgets") {
		f.DisruptionBudgets = append(f.DisruptionBudgets, api.Budget{
			Name: fmt.Sprint(i), Selector: api.Selector{Tags: []string{rapid.SampledFrom(tags).Draw(t, "budget")}},
			MaxInFlight: api.Amount{Value: rapid.IntRange(1, 100).Draw(t, "cap"), Percent: true},
		})
	}
	for range rapid.IntRange(0, 4).Draw(t, "edges") {
		f.Edges = append(f.Edges, api.Edge{Before: rapid.SampledFrom(names).Draw(t, "before"), After: rapid.SampledFrom(names).Draw(t, "after")})
	}
	return f
}

func TestProjectionsAgreeWithADumberModelAndAreDeterministic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := genProjected(t)
		if problems, _ := fleet.Validate(f); len(problems) > 0 {
			t.Skip("not a fleet")
		}
		p := projection(f, strings.Repeat("0", 64), "a")
		m, data, err := manifest.Project(p)
		if err != nil {
			t.Fatal(err)
		}
		again, dataAgain, err := manifest.Project(p)
		if err != nil || !bytes.Equal(data, dataAgain) || !cmp.Equal(m, again) {
			t.Fatal("projecting twice gives two things")
		}
		hosts, err := manifest.ParseHosts(data, len(m.Policy.Waves), len(m.DisruptionBudgets))
		if err != nil {
			t.Fatal(err)
		}
		var got []api.HostLine
		for i := range hosts.Len() {
			got = append(got, hosts.Line(i))
		}
		for _, line := range got {
			for _, i := range line.Budgets {
				if i >= len(m.DisruptionBudgets) {
					t.Fatalf("%s is in budget %d of %d", line.Hostname, i, len(m.DisruptionBudgets))
				}
			}
		}
		if diff := cmp.Diff(modelLines(f, "a"), readable(got, m)); diff != "" {
			t.Errorf("model and projection differ: %s", diff)
		}
	})
}

// readable writes lines with their budgets' names and caps instead of indexes.
func readable(lines []api.HostLine, m api.Manifest) []string {
	out := []string{}
	for _, l := range lines {
		text := fmt.Sprint(l.Hostname, " ", l.Wave, " ", l.Closure, " after", l.After, " budgets")
		for _, i := range l.Budgets {
			text += fmt.Sprint(" ", m.DisruptionBudgets[i].Name, "=", m.DisruptionBudgets[i].MaxInFlight)
		}
		out = append(out, text)
	}
	return out
}

func modelLines(f *api.Fleet, channel string) []string {
	hasTag := func(name string, sel *api.Selector) bool {
		return sel.All || slices.Contains(f.Hosts[name].Tags, sel.Tags[0])
	}
	out := []string{}
	for _, name := range slices.Sorted(maps.Keys(f.Hosts)) {
		host := f.Hosts[name]
		if host.Channel != channel {
			continue
		}
		wave := 0
		for !hasTag(name, f.RolloutPolicies["p"].Waves[wave].Selector) {
			wave++
		}
		before := map[string]bool{}
		for _, edge := range f.Edges {
			if edge.After == name {
				before[edge.Before] = true
			}
		}
		text := fmt.Sprint(name, " ", wave, " ", host.Closure, " after", slices.Sorted(maps.Keys(before)), " budgets")
		for _, budget := range f.DisruptionBudgets {
			if !hasTag(name, &budget.Selector) {
				continue
			}
			members := 0
			for other := range f.Hosts {
				if hasTag(other, &budget.Selector) {
					members++
				}
			}
			text += fmt.Sprint(" ", budget.Name, "=", max(1, members*budget.MaxInFlight.Value/100))
		}
		out = append(out, text)
	}
	return out
}
