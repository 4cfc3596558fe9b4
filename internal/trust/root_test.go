package trust_test

import (
	"strings"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

func TestATrustFileListsEveryProblem(t *testing.T) {
	tr := trustOf(3, "a", "b")
	tr.Release.Keys[1].Name = "a"
	tr.Release.Keys = append(tr.Release.Keys,
		manifesttest.Trusted("again", manifesttest.Key("a")), api.TrustKey{Name: "broken", PublicKey: "x"}, api.TrustKey{PublicKey: "y"})
	tr.Release.Threshold = 6
	tr.Channels = map[string]api.TrustChannel{
		"Prod":  {Threshold: 1, Keys: []string{"a"}},
		"empty": {Threshold: 0},
		"prod":  {Threshold: 3, Keys: []string{"a", "a", "nobody"}},
	}
	tr.Enrollment.Keys = append(tr.Enrollment.Keys, tr.Enrollment.Keys[0])
	_, err := trust.ParseRoot("trust.json", manifesttest.TrustJSON(tr))
	for _, want := range []string{
		"trust.json: ",
		"release.threshold is 6, of 5 keys",
		`release.keys.1 ("a"): another key has that name`,
		`release.keys.2 ("again") is the same key as "a"`,
		`release.keys.3 ("broken"): publicKey is not PEM`,
		"release.keys.4.name is empty",
		`"Prod" is no channel name`,
		"channels.empty.threshold is 0, of 0 keys",
		`channels.prod.keys names "a" twice`,
		`channels.prod.keys: no release key is named "nobody"`,
		`enrollment.keys.1 ("root-2026"): another key has that name`,
	} {
		wantRefusal(t, err, api.CodeMalformed, want)
	}
}

func TestATrustFileIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		data []byte
		code api.Code
		want string
	}{
		"no keys":           {manifesttest.TrustJSON(trustOf(1)), api.CodeMalformed, "release.keys is empty"},
		"threshold 0":       {manifesttest.TrustJSON(trustOf(0, "a")), api.CodeMalformed, "release.threshold is 0"},
		"another version":   {[]byte(`{"schemaVersion":2,"news":true}`), api.CodeUnsupportedSchema, "schemaVersion is 2; only 1 is known"},
		"no version":        {[]byte(`{}`), api.CodeMalformed, "missing"},
		"a duplicate":       {[]byte(`{"schemaVersion":1,"schemaVersion":1}`), api.CodeMalformed, "there twice"},
		"nothing":           {nil, api.CodeMalformed, "is empty"},
		"too large":         {make([]byte, api.MaxTrust+1), api.CodeMalformed, "at most"},
		"too many keys":     {manifesttest.TrustJSON(trustOf(1, strings.Split(strings.Repeat("k,", 70), ",")...)), api.CodeMalformed, "71 keys; at most 64"},
		"a widened channel": {narrowed(trustOf(2, "a", "b"), "dev", 1, "a"), api.CodeMalformed, "below the release threshold of 2"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := trust.ParseRoot("trust.json", test.data)
			wantRefusal(t, err, test.code, test.want)
		})
	}
}

func narrowed(tr api.Trust, channel string, threshold int, keys ...string) []byte {
	tr.Channels = map[string]api.TrustChannel{channel: {Threshold: threshold, Keys: keys}}
	return manifesttest.TrustJSON(tr)
}

func TestAChannelNarrowsTheReleaseRule(t *testing.T) {
	root, err := trust.ParseRoot("trust.json", narrowed(trustOf(1, "ci", "alice", "bob"), "prod", 2, "alice", "bob"))
	if err != nil {
		t.Fatal(err)
	}
	byCI, byPeople := sign(t, api.PayloadRollout, []byte("p"), "ci", "alice"), sign(t, api.PayloadRollout, []byte("p"), "alice", "bob")
	if _, err := verifyText(byCI, 100, root.ChannelRule("stable"), now); err != nil {
		t.Errorf("another channel: %v", err)
	}
	_, err = verifyText(byCI, 100, root.ChannelRule("prod"), now)
	wantRefusal(t, err, api.CodeSignatureInvalid, `signed by 1 of the keys of channel "prod"; 2 are needed`)
	if _, err := verifyText(byPeople, 100, root.ChannelRule("prod"), now); err != nil {
		t.Error(err)
	}
	if root.ChannelRule("prod").Threshold() != 2 || root.ReleaseRule().Threshold() != 1 {
		t.Error("the thresholds are not those of the file")
	}
}

func TestTheRootKnowsItsFile(t *testing.T) {
	tr := manifesttest.Trust()
	before := now.Add(-time.Hour)
	tr.Release.RejectSignedBefore = &before
	tr.CacheKeys = []string{"cache.example-1:abc"}
	data := manifesttest.TrustJSON(tr)
	root := manifesttest.Root(tr)
	if root.SHA256() != trust.Digest(data) || !root.RejectSignedBefore().Equal(before) || root.CacheKeys()[0] != tr.CacheKeys[0] {
		t.Errorf("got %+v", root)
	}
	if !manifesttest.Root(manifesttest.Trust()).RejectSignedBefore().IsZero() {
		t.Error("a file without rejectSignedBefore has one")
	}
}

func FuzzParseRoot(f *testing.F) {
	f.Add(manifesttest.TrustJSON(manifesttest.Trust()))
	f.Add(narrowed(trustOf(1, "ci", "alice", "bob"), "prod", 2, "alice", "bob"))
	f.Add([]byte(`{"schemaVersion":2}`))
	nobody := sign(f, api.PayloadRollout, []byte("p"), "mallory")
	f.Fuzz(func(t *testing.T, data []byte) {
		root, err := trust.ParseRoot("trust.json", data)
		if err != nil {
			if trust.CodeOf(err) == "" {
				t.Errorf("%v is no refusal", err)
			}
			return
		}
		for _, rule := range []trust.Rule{root.ReleaseRule(), root.ChannelRule("prod"), root.EnrollmentRule()} {
			if rule.Threshold() < 1 {
				t.Error("a rule that needs nobody")
			}
			if _, err := verifyText(nobody, 100, rule, now); err == nil && !strings.Contains(string(data), "PUBLIC KEY") {
				t.Error("signed by nobody, and verified")
			}
		}
	})
}
