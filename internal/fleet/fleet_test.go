package fleet

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/api"
)

const hash = "0c2fa4zsdl5hw9xj3pkmq7vnr8iy6b1g"

// small is a fleet that is right; tests change one thing about it.
const small = `{"schemaVersion": 1,
 "hosts": {
  "web-01": {"system": "x86_64-linux", "channel": "stable", "tags": ["web", "canary"], "closure": "HASH-web-01"},
  "web-02": {"system": "x86_64-linux", "channel": "stable", "tags": ["web"], "closure": "HASH-web-02"},
  "db-01": {"system": "x86_64-linux", "channel": "stable", "tags": ["db"], "closure": "HASH-db-01"},
  "lab-01": {"system": "x86_64-linux", "channel": "edge", "closure": "HASH-lab-01"}},
 "channels": {
  "stable": {"rolloutPolicy": "canary", "freshnessWindow": "72h"},
  "edge": {"rolloutPolicy": "fast", "freshnessWindow": "5m"}},
 "rolloutPolicies": {
  "canary": {"waves": [{"selector": {"tags": ["canary"]}, "soak": "30m"}, {"selector": {"all": true}}]},
  "fast": {}},
 "edges": [{"before": "web-02", "after": "db-01", "reason": "schema"}],
 "channelEdges": [{"before": "edge", "after": "stable"}],
 "disruptionBudgets": [{"name": "web", "selector": {"tags": ["web"]}, "maxInFlight": "50%"}]}`

func smallFleet() string { return strings.ReplaceAll(small, "HASH", hash) }

// changed is small with the first occurrence of each old replaced by the new that follows it.
func changed(t *testing.T, pairs ...string) string {
	t.Helper()
	text := small
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("the small fleet has no %s", pairs[i])
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	return strings.ReplaceAll(text, "HASH", hash)
}

func TestARightFleetHasNoProblemsAndNoWarnings(t *testing.T) {
	f, warnings, err := Load("fleet.json", []byte(smallFleet()))
	if err != nil || len(warnings) > 0 {
		t.Fatalf("got warnings %v, error %v", warnings, err)
	}
	if f.Hosts["web-01"].Closure != hash+"-web-01" {
		t.Errorf("web-01 has closure %q", f.Hosts["web-01"].Closure)
	}
}

func TestEachProblemNamesItsFieldAndWhatToDo(t *testing.T) {
	long := strings.Repeat("a", 64)
	for name, test := range map[string]struct {
		change []string
		want   string
	}{
		"an unknown channel":       {[]string{`"channel": "edge"`, `"channel": "egde"`}, `hosts.lab-01.channel: is the unknown channel egde; declare it under channels, or use one that is: edge, stable`},
		"an unknown policy":        {[]string{`"rolloutPolicy": "fast"`, `"rolloutPolicy": "quick"`}, `channels.edge.rolloutPolicy: is the unknown policy quick; declare it under rolloutPolicies, or use one that is: canary, fast`},
		"a host in no wave":        {[]string{`{"all": true}`, `{"tags": ["db"]}`}, `hosts.web-02: is in no wave of policy canary, which channel stable uses`},
		"a cycle of hosts":         {[]string{`"edges": [`, `"edges": [{"before": "db-01", "after": "web-02"}, `}, `edges: go round in a circle: db-01 → web-02 → db-01`},
		"a host before itself":     {[]string{`"after": "db-01"`, `"after": "web-02"`}, `edges: go round in a circle: web-02 → web-02`},
		"a cycle of channels":      {[]string{`"channelEdges": [`, `"channelEdges": [{"before": "stable", "after": "edge"}, `}, `channelEdges: go round in a circle: edge → stable → edge`},
		"an edge over channels":    {[]string{`"after": "db-01"`, `"after": "lab-01"`}, `edges.0: orders web-02 of channel stable and lab-01 of channel edge`},
		"an edge against waves":    {[]string{`"after": "db-01"`, `"after": "web-01"`}, `edges.0: puts web-02 of wave 1 before web-01 of wave 0, which is earlier`},
		"an offline.after of 0s":   {[]string{`"fast": {}`, `"fast": {"offline": {"after": "0s"}}`}, `rolloutPolicies.fast.offline.after: is 0s, in which no host can be heard`},
		"an edge of nobody":        {[]string{`"before": "web-02"`, `"before": "web-09"`}, `edges.0.before: is web-09, which is no host of the fleet`},
		"a channel edge of none":   {[]string{`{"before": "edge"`, `{"before": "none"`}, `channelEdges.0.before: is the unknown channel none`},
		"a selector with no key":   {[]string{`{"tags": ["canary"]}`, `{}`}, `rolloutPolicies.canary.waves.0.selector: says nothing; use exactly one of`},
		"one with two keys":        {[]string{`{"tags": ["canary"]}`, `{"tags": ["canary"], "all": true}`}, `rolloutPolicies.canary.waves.0.selector: has 2 keys (tags, all)`},
		"one with a false key":     {[]string{`{"tags": ["canary"]}`, `{"tags": ["canary"], "all": false}`}, `rolloutPolicies.canary.waves.0.selector: has 2 keys (tags, all)`},
		"one with a misspelt key":  {[]string{`{"tags": ["canary"]}`, `{"tag": ["canary"]}`}, `rolloutPolicies.canary.waves.0.selector: says nothing`},
		"one that is missing":      {[]string{`{"selector": {"tags": ["canary"]}, `, `{`}, `rolloutPolicies.canary.waves.0.selector: is missing`},
		"one of an empty list":     {[]string{`{"tags": ["web"]}`, `{"tags": []}`}, `disruptionBudgets.0.selector.tags: is an empty list`},
		"a bad one inside another": {[]string{`{"tags": ["web"]}`, `{"and": [{"all": true}, {"not": {}}]}`}, `disruptionBudgets.0.selector.and.1.not: says nothing`},
		"one of a channel of none": {[]string{`{"tags": ["web"]}`, `{"channel": "none"}`}, `disruptionBudgets.0.selector.channel: is the unknown channel none`},
		"a short freshness":        {[]string{`"5m"`, `"4m59s"`}, `channels.edge.freshnessWindow: is 4m59s; make it 5m or longer`},
		"a budget of nothing":      {[]string{`"50%"`, `0`}, `disruptionBudgets.0.maxInFlight: is 0, under which no host could ever move`},
		"a budget of 0%":           {[]string{`"50%"`, `"0%"`}, `disruptionBudgets.0.maxInFlight: is 0%`},
		"a budget over all":        {[]string{`"50%"`, `"101%"`}, `disruptionBudgets.0.maxInFlight: is 101%; make it 100% or less`},
		"two budgets of one name":  {[]string{`"disruptionBudgets": [`, `"disruptionBudgets": [{"name": "web", "selector": {"all": true}, "maxInFlight": 1}, `}, `disruptionBudgets.1.name: is web, which an earlier budget is called already`},
		"a closure that is none":   {[]string{`HASH-lab-01`, `/nix/store/HASH-lab-01`}, `hosts.lab-01.closure: is /nix/store/` + hash + `-lab-01, which is not the base name of a store path`},
		"a closure with an e":      {[]string{`HASH-lab-01`, strings.Repeat("e", 32) + `-lab-01`}, `hosts.lab-01.closure: is `},
		"a pin that is none":       {[]string{`"closure": "HASH-lab-01"`, `"closure": "HASH-lab-01", "pin": {"closure": "x", "reason": "bug"}`}, `hosts.lab-01.pin.closure: is x, which`},
		"a pin for no reason":      {[]string{`"closure": "HASH-lab-01"`, `"closure": "HASH-lab-01", "pin": {"closure": "HASH-x", "reason": ""}`}, `hosts.lab-01.pin.reason: is empty`},
		"a host name that is none": {[]string{`"lab-01"`, `"lab_01"`}, `hosts.lab_01: is not a host name`},
		"a label over 63":          {[]string{`"lab-01"`, `"` + long + `"`}, `hosts.` + long + `: is not a host name`},
		"hosts in another case":    {[]string{`"lab-01"`, `"WEB-01"`}, `hosts.web-01: differs from WEB-01 only in case; rename one`},
		"policies in another case": {[]string{`"fast": {}`, `"fast": {}, "Fast": {}`}, `rolloutPolicies.fast: differs from Fast only in case`},
		"a channel name":           {[]string{`"edge": {`, `"ed.ge": {`}, `channels.ed.ge: is not a channel name`},
		"an empty tag":             {[]string{`["db"]`, `[""]`}, `hosts.db-01.tags: has the tag ""`},
		"a tag that breaks lines":  {[]string{`["db"]`, `["a\nb"]`}, `hosts.db-01.tags: has the tag "a\nb"`},
		"an unknown word":          {[]string{`"fast": {}`, `"fast": {"onHealthFailure": "explode"}`}, `rolloutPolicies.fast.onHealthFailure: is explode; use one of rollback-and-halt, halt, rollback-all`},
		"an offline action":        {[]string{`"fast": {}`, `"fast": {"offline": {"action": "cry"}}`}, `rolloutPolicies.fast.offline.action: is cry; use one of skip, wait`},
		"a reboot mode":            {[]string{`"fast": {}`, `"fast": {"reboot": {"mode": "always"}}`}, `rolloutPolicies.fast.reboot.mode: is always; use one of never, window`},
		"a preflight":              {[]string{`"fast": {}`, `"fast": {"preflight": "on"}`}, `rolloutPolicies.fast.preflight: is on; use one of off, report, require`},
		"failures over all":        {[]string{`"fast": {}`, `"fast": {"maxFailures": "200%"}`}, `rolloutPolicies.fast.maxFailures: is 200%`},
		"no time to confirm":       {[]string{`"fast": {}`, `"fast": {"confirmTimeout": "0s"}`}, `rolloutPolicies.fast.confirmTimeout: is 0s`},
		"no waves":                 {[]string{`"fast": {}`, `"fast": {"waves": []}`}, `rolloutPolicies.fast.waves: has no waves`},
		"a bad cron":               {[]string{`"freshnessWindow": "5m"`, `"freshnessWindow": "5m", "maintenanceWindows": [{"cron": "61 * * * *", "duration": "1h"}]`}, `channels.edge.maintenanceWindows.0: `},
		"a freeze that ends first": {[]string{`"freshnessWindow": "5m"`, `"freshnessWindow": "5m", "freezes": [{"from": "2026-12-02T00:00:00Z", "until": "2026-12-01T00:00:00Z"}]`}, `channels.edge.freezes.0: ends before it begins`},
		"a commit":                 {[]string{`"schemaVersion": 1,`, `"schemaVersion": 1, "commit": "main",`}, `commit: is not a commit`},
		"no platform":              {[]string{`"system": "x86_64-linux", "channel": "edge"`, `"system": "", "channel": "edge"`}, `hosts.lab-01.system: is empty`},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := Load("fleet.json", []byte(changed(t, test.change...)))
			problems, ok := errors.AsType[Problems](err)
			if !ok {
				t.Fatalf("got %v, no Problems", err)
			}
			for _, p := range problems {
				if strings.HasPrefix(p.String(), test.want) {
					return
				}
			}
			t.Errorf("got %v\nwant %s…", err, test.want)
		})
	}
}

func TestAllProblemsAreListedAtOnceAndEachOnce(t *testing.T) {
	_, _, err := Load("fleet.json", []byte(changed(t,
		`"channel": "edge"`, `"channel": "egde"`,
		`HASH-db-01`, `nothing`,
		`{"tags": ["canary"]}`, `{"tags": ["canary"], "all": true}`,
		`"5m"`, `"1m"`,
		`"50%"`, `0`)))
	problems, _ := errors.AsType[Problems](err)
	if len(problems) != 5 {
		t.Errorf("got %d problems, want 5: %v", len(problems), err)
	}
	if n := strings.Count(err.Error(), "\n"); n != 5 {
		t.Errorf("the error has %d lines after the first, want 5: %v", n, err)
	}
}

func TestWhatIsAllowedButOddIsWarnedOf(t *testing.T) {
	for name, test := range map[string]struct {
		change []string
		want   string
	}{
		"a wave's selector that matches no host":   {[]string{`{"tags": ["canary"]}`, `{"tags": ["kanary"]}`}, "rolloutPolicies.canary.waves.0.selector: matches no host"},
		"a budget's":                               {[]string{`{"tags": ["web"]}`, `{"tags": ["wbe"]}`}, "disruptionBudgets.0.selector: matches no host"},
		"a name among others that is no host's":    {[]string{`{"tags": ["web"]}`, `{"hosts": ["web-01", "web-77"]}`}, "disruptionBudgets.0.selector.hosts: names hosts that are not in the fleet: web-77"},
		"a wave that this channel has no host for": {[]string{`"rolloutPolicy": "fast"`, `"rolloutPolicy": "canary"`}, "rolloutPolicies.canary.waves.0: has no host of channel edge, so that the next wave will wait for someone's approval"},
		"a field that nothing reads":               {[]string{`"fast": {}`, `"fast": {"maxFailure": 3}`}, "rolloutPolicies.fast.maxFailure: is no field that nixfleet knows, and is ignored"},
	} {
		t.Run(name, func(t *testing.T) {
			_, warnings, err := Load("fleet.json", []byte(changed(t, test.change...)))
			if err != nil || len(warnings) != 1 || warnings[0] != test.want {
				t.Errorf("got warnings %q, error %v; want only %q", warnings, err, test.want)
			}
		})
	}
}

func TestAnotherPolicyIsCheckedForItsChannelOnly(t *testing.T) {
	f, _, err := Load("fleet.json", []byte(changed(t, `"fast": {}`, `"fast": {"waves": [{"selector": {"hosts": ["lab-01"]}}]}`)))
	if err != nil {
		t.Fatal(err)
	}
	if problems := CheckPolicy(f, "edge", "fast"); len(problems) > 0 {
		t.Errorf("its own policy gives %v", problems)
	}
	if problems := CheckPolicy(f, "stable", "fast"); len(problems) != 3 {
		t.Errorf("a policy that has a wave for none of three hosts gives %v", problems)
	}
	if problems := CheckPolicy(f, "stable", "none"); len(problems) != 1 {
		t.Errorf("an unknown policy gives %v", problems)
	}
	if f.Channels["stable"].RolloutPolicy != "canary" {
		t.Error("the fleet was changed")
	}
}

func TestParseRefusesAnotherSchemaVersion(t *testing.T) {
	_, err := Parse("fleet.json", []byte(changed(t, `"schemaVersion": 1`, `"schemaVersion": 2`)))
	if err == nil || !strings.Contains(err.Error(), "fleet.json: schemaVersion: is 2") {
		t.Errorf("got %v", err)
	}
}

func TestSelectorsNestAtMostSixteenDeep(t *testing.T) {
	nested := func(depth int) string {
		return strings.Repeat(`{"not": `, depth-1) + `{"all": true}` + strings.Repeat(`}`, depth-1)
	}
	for depth, good := range map[int]bool{16: true, 17: false} {
		_, _, err := Load("fleet.json", []byte(changed(t, `{"tags": ["web"]}`, nested(depth))))
		if good != (err == nil) {
			t.Errorf("depth %d: %v", depth, err)
		}
	}
}

func TestDefaultsAreThoseOfTheContract(t *testing.T) {
	got := WithDefaults(api.Policy{})
	duration := func(s string) *api.Duration {
		var d api.Duration
		if err := d.UnmarshalText([]byte(s)); err != nil {
			t.Fatal(err)
		}
		return &d
	}
	want := api.Policy{
		Waves:             []api.Wave{{Selector: &api.Selector{All: true}}},
		OnHealthFailure:   "rollback-and-halt",
		MaxFailures:       &api.Amount{Value: 0},
		FailureThreshold:  duration("60s"),
		ActivationTimeout: duration("30m"),
		ConfirmTimeout:    duration("5m"),
		RevertWindow:      duration("24h"),
		Offline:           &api.Offline{After: duration("10m"), Action: "skip"},
		Reboot:            &api.Reboot{Mode: "never", For: []string{}},
		Preflight:         "off",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want, WithDefaults(want)); diff != "" {
		t.Errorf("a full policy was changed: %s", diff)
	}
}

func TestALongChainOfEdgesIsWalkedAndItsCycleFound(t *testing.T) {
	const n = 200_000
	edges := make([]api.Edge, 0, n+1)
	for i := range n {
		edges = append(edges, api.Edge{Before: fmt.Sprintf("h%06d", i), After: fmt.Sprintf("h%06d", i+1)})
	}
	if cycles := findCycles(edges); len(cycles) != 0 {
		t.Fatalf("found %d cycles in a chain", len(cycles))
	}
	cycles := findCycles(append(edges, api.Edge{Before: fmt.Sprintf("h%06d", n), After: "h000000"}))
	if len(cycles) != 1 || len(cycles[0]) != n+1 {
		t.Fatalf("found %d cycles", len(cycles))
	}
	if drawn := drawCycle(cycles[0]); len(drawn) > 400 {
		t.Errorf("a cycle of %d is drawn in %d bytes", n, len(drawn))
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(smallFleet()))
	f.Add([]byte(`{"schemaVersion":1,"hosts":{},"channels":{},"rolloutPolicies":{"p":{"waves":[{"selector":{"not":{"and":[{}]}}}]}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		fleet, _, err := Load("fleet", data)
		if err != nil {
			return
		}
		for channel, c := range fleet.Channels {
			for host, wave := range Waves(fleet, channel, WithDefaults(fleet.RolloutPolicies[c.RolloutPolicy])) {
				if wave == NoWave {
					t.Errorf("%q of %q is in no wave", host, channel)
				}
			}
		}
	})
}
