package manifest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

func TestRolloutIDs(t *testing.T) {
	for id, good := range map[string]bool{
		"stable@0a1b2c3": true, "s@" + strings.Repeat("f", 64): true, strings.Repeat("c", 63) + "@0a1b2c3": true, "0-_@0a1b2c3": true,
		"": false, "@": false, "stable": false, "stable@": false, "@0a1b2c3": false, "stable@0a1b2c": false,
		"s@" + strings.Repeat("f", 65): false, strings.Repeat("c", 64) + "@0a1b2c3": false, "Stable@0a1b2c3": false,
		"stable@0A1B2C3": false, "-s@0a1b2c3": false, "../x@0a1b2c3": false, "s@0a1b2c3\n": false, "s@0a1b2c3@0a1b2c3": false, "s@0a1b2c3/..": false,
	} {
		channel, ref, err := manifest.ParseID(id)
		if good != (err == nil) || good != manifest.ValidID(id) {
			t.Errorf("%q: %v", id, err)
		}
		if good && manifest.ID(channel, ref) != id {
			t.Errorf("%q was split into %q and %q", id, channel, ref)
		}
		if !good {
			wantRefusal(t, err, api.CodeMalformed, "rollout id: ")
		}
	}
}

// full returns a release that uses every field.
func full() manifesttest.Options {
	lines := manifesttest.Lines(5, 2, "1")
	lines[2].After = []string{manifesttest.Hostname(0), manifesttest.Hostname(1)}
	lines[2].Budgets, lines[3].Budgets = []int{0, 1}, []int{1}
	return manifesttest.Options{
		Lines:    lines,
		SignedAt: now.Add(time.Hour),
		Edit: func(m *api.Manifest) {
			m.MaintenanceWindows = []api.MaintenanceWindow{{Cron: "0 2 * * 6", Duration: api.Duration(4 * time.Hour), TimeZone: "Europe/Paris"}}
			m.Freezes = []api.Freeze{{From: now.AddDate(0, 1, 0), Until: now.AddDate(0, 1, 7), Reason: "end of year"}}
			m.DisruptionBudgets = []api.ManifestBudget{{Name: "etcd", MaxInFlight: 1}, {Name: "half", MaxInFlight: 2}}
			m.ChannelAfter = []string{"edge"}
		},
	}
}

func TestGoldenRelease(t *testing.T) {
	r := manifesttest.New(full())
	file := golden(t, "hosts.jsonl", r.HostsFile)
	payload := encode(t, r.Manifest)
	golden(t, "manifest.json", payload)
	envelope := golden(t, "manifest.dsse.json", r.Envelope)
	proof := golden(t, "host.json", encode(t, r.Proof(manifesttest.Hostname(2))))

	hosts, err := manifest.ParseHosts(file, 2, 2)
	if err != nil || hosts.Set() != r.Manifest.HostSet {
		t.Errorf("hosts.jsonl: %+v, %v", hosts, err)
	}
	p, err := manifest.ParseProof(proof)
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := manifest.Accept(manifest.Acceptance{
		Root: root(), RolloutID: r.ID, Hostname: manifesttest.Hostname(2), Now: now.Add(hours(1)), Envelope: envelope, Proof: p,
	})
	if err != nil {
		t.Fatal(err)
	}
	if string(accepted.Manifest.Payload()) != string(payload) || len(accepted.Line.After) != 2 || len(accepted.Line.Budgets) != 2 {
		t.Errorf("accepted %s, %+v", accepted.Manifest.Payload(), accepted.Line)
	}
}

func TestAManifestsFieldsAreChecked(t *testing.T) {
	type edit = func(m *api.Manifest)
	many := func(n int) []api.Wave { return make([]api.Wave, n) }
	for name, test := range map[string]struct {
		edit edit
		want string
	}{
		"a channel that is none":    {func(m *api.Manifest) { m.Channel = "Stable" }, "channel"},
		"a ref that is none":        {func(m *api.Manifest) { m.Ref = "main" }, "ref"},
		"an id of something else":   {func(m *api.Manifest) { m.Ref = "fffffff" }, "rolloutId"},
		"sequence 0":                {func(m *api.Manifest) { m.Sequence = 0 }, "sequence is 0"},
		"a negative sequence":       {func(m *api.Manifest) { m.Sequence = -1 }, "sequence is -1"},
		"a huge sequence":           {func(m *api.Manifest) { m.Sequence = 1 << 53 }, "sequence: is not a whole number"},
		"no time":                   {func(m *api.Manifest) { m.ReleasedAt = time.Time{} }, "no time"},
		"released after signing":    {func(m *api.Manifest) { m.ReleasedAt = m.SignedAt.Add(time.Second) }, "releasedAt is after signedAt"},
		"a tiny freshness window":   {func(m *api.Manifest) { m.FreshnessWindow = api.Duration(299 * time.Second) }, "at least 5m"},
		"a fleetDigest cut off":     {func(m *api.Manifest) { m.FleetDigest = m.FleetDigest[1:] }, "fleetDigest"},
		"an upper-case digest":      {func(m *api.Manifest) { m.FleetDigest = strings.Repeat("A", 64) }, "fleetDigest"},
		"no policy name":            {func(m *api.Manifest) { m.PolicyName = "" }, "policyName"},
		"no waves":                  {func(m *api.Manifest) { m.Policy.Waves = nil }, "0 waves; 1 to 100"},
		"101 waves":                 {func(m *api.Manifest) { m.Policy.Waves = many(101) }, "101 waves"},
		"a wave with a selector":    {func(m *api.Manifest) { m.Policy.Waves = []api.Wave{{Selector: &api.Selector{All: true}}} }, "policy.waves.0.selector"},
		"no maxFailures":            {func(m *api.Manifest) { m.Policy.MaxFailures = nil }, "policy.maxFailures is missing"},
		"no failureThreshold":       {func(m *api.Manifest) { m.Policy.FailureThreshold = nil }, "policy.failureThreshold is missing"},
		"no activationTimeout":      {func(m *api.Manifest) { m.Policy.ActivationTimeout = nil }, "policy.activationTimeout is missing"},
		"no confirmTimeout":         {func(m *api.Manifest) { m.Policy.ConfirmTimeout = nil }, "policy.confirmTimeout is missing"},
		"no revertWindow":           {func(m *api.Manifest) { m.Policy.RevertWindow = nil }, "policy.revertWindow is missing"},
		"no offline":                {func(m *api.Manifest) { m.Policy.Offline = nil }, "policy.offline is missing"},
		"no reboot":                 {func(m *api.Manifest) { m.Policy.Reboot = nil }, "policy.reboot is missing"},
		"over 100% failures":        {func(m *api.Manifest) { m.Policy.MaxFailures = &api.Amount{Value: 101, Percent: true} }, "policy.maxFailures is 101%"},
		"no onHealthFailure":        {func(m *api.Manifest) { m.Policy.OnHealthFailure = "" }, `policy.onHealthFailure is "", not one of`},
		"an unknown one":            {func(m *api.Manifest) { m.Policy.OnHealthFailure = "pray" }, `policy.onHealthFailure is "pray"`},
		"no offline.after":          {func(m *api.Manifest) { m.Policy.Offline.After = nil }, "policy.offline.after is missing"},
		"an unknown offline.action": {func(m *api.Manifest) { m.Policy.Offline.Action = "nag" }, "policy.offline.action"},
		"an unknown reboot.mode":    {func(m *api.Manifest) { m.Policy.Reboot = &api.Reboot{Mode: "always"} }, "policy.reboot.mode"},
		"an unknown preflight":      {func(m *api.Manifest) { m.Policy.Preflight = "maybe" }, "policy.preflight"},
		"a window without cron":     {func(m *api.Manifest) { m.MaintenanceWindows = []api.MaintenanceWindow{{Duration: 1}} }, "maintenanceWindows.0: cron"},
		"too many windows":          {func(m *api.Manifest) { m.MaintenanceWindows = make([]api.MaintenanceWindow, 257) }, "257 windows"},
		"a freeze that ends first":  {func(m *api.Manifest) { m.Freezes = []api.Freeze{{From: now, Until: now}} }, "freezes.0.until"},
		"too many freezes":          {func(m *api.Manifest) { m.Freezes = make([]api.Freeze, 1025) }, "1025 freezes"},
		"a negative size":           {func(m *api.Manifest) { m.HostSet.Size = -1 }, "hostSet.size is -1"},
		"a huge size":               {func(m *api.Manifest) { m.HostSet.Size = 1 << 40 }, "hostSet.size"},
		"a sha256 that is none":     {func(m *api.Manifest) { m.HostSet.SHA256 = "x" }, "hostSet.sha256"},
		"a merkleRoot in hex":       {func(m *api.Manifest) { m.HostSet.MerkleRoot = m.HostSet.SHA256 }, "hostSet.merkleRoot is 48 bytes, not 32"},
		"a budget without a name":   {func(m *api.Manifest) { m.DisruptionBudgets = []api.ManifestBudget{{MaxInFlight: 1}} }, "disruptionBudgets.0.name"},
		"a budget of nothing":       {func(m *api.Manifest) { m.DisruptionBudgets = []api.ManifestBudget{{Name: "etcd"}} }, "disruptionBudgets.0.maxInFlight is 0"},
		"two budgets of one name": {func(m *api.Manifest) {
			m.DisruptionBudgets = []api.ManifestBudget{{Name: "e", MaxInFlight: 1}, {Name: "e", MaxInFlight: 2}}
		}, "two budgets"},
		"after no channel": {func(m *api.Manifest) { m.ChannelAfter = []string{"."} }, "channelAfter.0"},
		"after itself":     {func(m *api.Manifest) { m.ChannelAfter = []string{"stable"} }, "channelAfter.0 is the channel itself"},
		"after one twice":  {func(m *api.Manifest) { m.ChannelAfter = []string{"edge", "edge"} }, "channelAfter.1 is there twice"},
	} {
		t.Run(name, func(t *testing.T) {
			r := manifesttest.New(manifesttest.Options{Edit: test.edit})
			_, err := manifest.Verify(root(), "stable@0a1b2c3d", r.Envelope, now)
			wantRefusal(t, err, api.CodeMalformed, test.want)
		})
	}
}

func TestEveryFieldOfAManifestIsNeeded(t *testing.T) {
	good := encode(t, manifesttest.New(full()).Manifest)
	var members map[string]any
	if err := json.Unmarshal(good, &members); err != nil {
		t.Fatal(err)
	}
	for field, value := range members {
		for _, without := range []func(){func() { delete(members, field) }, func() { members[field] = nil }} {
			without()
			envelope, err := trust.Sign(api.PayloadRollout, encode(t, members), manifesttest.Key(manifesttest.ReleaseKey))
			if err != nil {
				t.Fatal(err)
			}
			_, err = manifest.Verify(root(), "stable@0a1b2c3d", envelope, now.Add(hours(1)))
			wantRefusal(t, err, api.CodeMalformed, field)
		}
		members[field] = value
	}
}

func TestAManifestOfTheFutureIsUnsupported(t *testing.T) {
	r := manifesttest.New(manifesttest.Options{Edit: func(m *api.Manifest) { m.SchemaVersion = 2 }})
	_, err := manifest.Verify(root(), r.ID, r.Envelope, now)
	wantRefusal(t, err, api.CodeUnsupportedSchema, "schemaVersion is 2")
}

func TestAStoredManifestMayBeOfAnyAgeButNotOfARemovedKey(t *testing.T) {
	r := manifesttest.New(manifesttest.Options{})
	later := now.AddDate(1, 0, 0)
	_, err := manifest.Verify(root(), r.ID, r.Envelope, later)
	wantRefusal(t, err, api.CodeStale, "fresh until")
	if _, err := manifest.VerifyStored(root(), r.ID, r.Envelope, later); err != nil {
		t.Error(err)
	}
	next := manifesttest.Trust()
	next.Release.Keys = []api.TrustKey{manifesttest.Trusted("next", manifesttest.Key("next"))}
	_, err = manifest.VerifyStored(manifesttest.Root(next), r.ID, r.Envelope, later)
	wantRefusal(t, err, api.CodeSignatureInvalid, "signed by 0 of")
}

func FuzzVerifyManifest(f *testing.F) {
	f.Add(encode(f, manifesttest.New(full()).Manifest))
	f.Add(encode(f, manifesttest.New(manifesttest.Options{}).Manifest))
	f.Add([]byte(`{"schemaVersion":2}`))
	root, key := root(), manifesttest.Key(manifesttest.ReleaseKey)
	f.Fuzz(func(t *testing.T, payload []byte) {
		envelope, err := trust.Sign(api.PayloadRollout, payload, key)
		if err != nil {
			t.Fatal(err)
		}
		v, err := manifest.Verify(root, "stable@0a1b2c3d", envelope, now)
		if err != nil {
			if trust.CodeOf(err) == "" {
				t.Errorf("%v is no refusal", err)
			}
			return
		}
		m := v.Value()
		if err := manifest.Validate("manifest", m); err != nil {
			t.Errorf("verified, but %v", err)
		}
		if manifest.EarliestDispatch(m, len(m.Policy.Waves)).Before(m.ReleasedAt) {
			t.Error("the soaks go back in time")
		}
	})
}
