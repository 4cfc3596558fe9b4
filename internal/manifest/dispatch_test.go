package manifest_test

import (
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
)

func accept(t *testing.T, r manifesttest.Release, host string) manifest.Accepted {
	t.Helper()
	accepted, err := manifest.Accept(manifest.Acceptance{
		Root: root(), RolloutID: r.ID, Hostname: host, Now: r.Manifest.SignedAt, Envelope: r.Envelope, Proof: r.Proof(host),
	})
	if err != nil {
		t.Fatal(err)
	}
	return accepted
}

func TestADispatchIsActedOnByTheRulesInTheirOrder(t *testing.T) {
	host := manifesttest.Hostname(2) // of the second wave: 30 minutes after the release
	r := manifesttest.New(manifesttest.Options{Edit: func(m *api.Manifest) {
		m.Freezes = []api.Freeze{{From: now.Add(hours(10)), Until: now.Add(hours(11)), Reason: "a talk"}}
	}})
	early := manifesttest.New(manifesttest.Options{Edit: func(m *api.Manifest) {
		m.Freezes = []api.Freeze{{From: now, Until: now.Add(hours(11))}}
	}})
	due := now.Add(30 * time.Minute)
	type change = func(d *api.Dispatch)
	for _, test := range []struct {
		name    string
		release manifesttest.Release
		changes []change
		at      time.Time
		code    api.Code
		want    string
	}{
		{"good", r, nil, due, "", ""},
		{"another host's", r, []change{func(d *api.Dispatch) { d.Hostname = manifesttest.Hostname(1); d.RolloutID = "x" }}, due, api.CodeIdentityMismatch, "it is for host"},
		{"another rollout's", r, []change{func(d *api.Dispatch) { d.RolloutID = "stable@fffffff"; d.Action = "dance" }}, due, api.CodeIdentityMismatch, "it is of rollout"},
		{"an unknown action", r, []change{func(d *api.Dispatch) { d.Action = "dance"; d.Wave = 0 }}, due, api.CodeUnsupportedAction, `"dance" is not known`},
		{"no action", r, []change{func(d *api.Dispatch) { d.Action = "" }}, due, api.CodeUnsupportedAction, ""},
		{"another closure", r, []change{func(d *api.Dispatch) { d.TargetClosure = manifesttest.Closure("evil", "1") }}, now, api.CodeTargetMismatch, "its closure is"},
		{"another wave", r, []change{func(d *api.Dispatch) { d.Wave = 0 }}, now, api.CodeTargetMismatch, "its wave is 0"},
		{"a revert that the policy forbids", r, []change{func(d *api.Dispatch) { d.Action = api.ActionRevert }}, now, api.CodeNotPermitted, "a revert needs policy rollback-all"},
		{"a reboot that the policy forbids", r, []change{func(d *api.Dispatch) { d.Action = api.ActionReboot }}, now, api.CodeNotPermitted, "a reboot needs"},
		{"a preflight that the policy forbids", r, []change{func(d *api.Dispatch) { d.Action = api.ActionPreflight }}, now, api.CodeNotPermitted, "a preflight needs"},
		{"a second early", r, nil, due.Add(-time.Second), api.CodeTooEarly, "wave 1 may begin at 2026-11-23T08:30:00Z"},
		{"early and in a freeze", early, nil, due.Add(-time.Second), api.CodeTooEarly, "wave 1"},
		{"in a freeze", r, nil, now.Add(hours(10)), api.CodeOutsideWindow, `a freeze is on until 2026-11-23T19:00:00Z: "a talk"`},
		{"after the freeze", r, nil, now.Add(hours(11)), "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := test.release.Dispatch(host)
			for _, change := range test.changes {
				change(&d)
			}
			err := manifest.CheckDispatch(accept(t, test.release, host), d, test.at)
			if test.code == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantRefusal(t, err, test.code, test.want)
		})
	}
}

func TestAWindowGatesADispatchUnlessThePolicyIgnoresIt(t *testing.T) {
	for _, ignore := range []bool{false, true} {
		r := manifesttest.New(manifesttest.Options{
			Policy: api.Policy{IgnoreWindows: ignore},
			Edit: func(m *api.Manifest) {
				m.MaintenanceWindows = []api.MaintenanceWindow{{Cron: "0 2 * * *", Duration: api.Duration(hours(1)), TimeZone: "Europe/Paris"}}
			},
		})
		host := manifesttest.Hostname(0)
		accepted, d := accept(t, r, host), r.Dispatch(host)
		err := manifest.CheckDispatch(accepted, d, now)
		if ignore {
			if err != nil {
				t.Errorf("the policy ignores windows: %v", err)
			}
			continue
		}
		wantRefusal(t, err, api.CodeOutsideWindow, "the next opens at 2026-11-24T01:00:00Z")
		if err := manifest.CheckDispatch(accepted, d, now.Add(hours(17))); err != nil {
			t.Errorf("at two in the morning in Paris: %v", err)
		}
	}
}

func TestActionsThatThePolicyPermits(t *testing.T) {
	r := manifesttest.New(manifesttest.Options{
		Policy: api.Policy{OnHealthFailure: api.RollbackAll, Reboot: &api.Reboot{Mode: manifest.RebootWindow}, Preflight: manifest.PreflightReport},
	})
	host := manifesttest.Hostname(2)
	accepted := accept(t, r, host)
	for _, action := range []api.Action{api.ActionActivate, api.ActionRevert, api.ActionReboot, api.ActionUnstage, api.ActionPreflight} {
		d := r.Dispatch(host)
		d.Action = action
		if err := manifest.CheckDispatch(accepted, d, now.Add(hours(1))); err != nil {
			t.Errorf("%s: %v", action, err)
		}
		// Only what takes the host forward waits for its wave.
		waits := action == api.ActionActivate || action == api.ActionReboot
		if err := manifest.CheckDispatch(accepted, d, now); (err != nil) != waits {
			t.Errorf("%s before its wave: %v", action, err)
		}
	}
}

func TestTheEarliestDispatchIsTheReleasePlusTheEarlierSoaks(t *testing.T) {
	century := api.Duration(100 * 365 * 24 * time.Hour)
	waves := make([]api.Wave, api.MaxWaves)
	for i := range waves {
		waves[i].Soak = century // all together more than a time.Duration holds
	}
	r := manifesttest.New(manifesttest.Options{Policy: api.Policy{Waves: waves}})
	last := now
	for i := range waves {
		at := manifest.EarliestDispatch(r.Manifest, i)
		if want := last.Add(century.Std()); i > 0 && !at.Equal(want) {
			t.Fatalf("wave %d: %s, want %s", i, at, want)
		}
		last = at
	}
	if !manifest.EarliestDispatch(r.Manifest, 0).Equal(now) {
		t.Error("the first wave waits for something")
	}
}

func TestAClockThatWasSetBackOnlyDelays(t *testing.T) {
	r := manifesttest.New(manifesttest.Options{SignedAt: now.Add(hours(2))})
	host := manifesttest.Hostname(2)
	// What was accepted proves that it is at least two hours after the release.
	if err := manifest.CheckDispatch(accept(t, r, host), r.Dispatch(host), now.AddDate(-1, 0, 0)); err != nil {
		t.Error(err)
	}
}
