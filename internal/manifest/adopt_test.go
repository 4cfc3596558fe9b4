package manifest_test

import (
	"strings"
	"testing"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

func adoption(r manifesttest.Release) manifest.Adoption {
	return manifest.Adoption{
		Root: root(), Channel: "stable", Entry: api.IndexChannel{RolloutID: r.ID}, Now: now,
		Manifest: r.Envelope, Hosts: r.HostsFile, Fleet: r.Fleet,
	}
}

func TestAReleaseIsAdopted(t *testing.T) {
	r := manifesttest.New(manifesttest.Options{Hosts: 12})
	adopted, err := manifest.CheckAdoption(adoption(r))
	if err != nil {
		t.Fatal(err)
	}
	if adopted.Hosts.Len() != 12 || adopted.Manifest.Value().RolloutID != r.ID || adopted.Fleet.Value().Commit != "0a1b2c3d" {
		t.Errorf("adopted %+v", adopted)
	}
}

func TestAReleaseIsNotAdopted(t *testing.T) {
	other := manifesttest.Lines(3, 2, "other")
	set := func(edit func(s *api.HostSet)) manifesttest.Options {
		return manifesttest.Options{Edit: func(m *api.Manifest) { edit(&m.HostSet) }}
	}
	for name, test := range map[string]struct {
		release manifesttest.Options
		edit    func(a *manifest.Adoption)
		code    api.Code
		want    string
	}{
		"signed by nobody":       {manifesttest.Options{Signers: []trust.Signer{manifesttest.Key("mallory")}}, nil, api.CodeSignatureInvalid, "manifest of"},
		"stale":                  {manifesttest.Options{}, func(a *manifest.Adoption) { a.Now = now.AddDate(0, 1, 0) }, api.CodeStale, ""},
		"of another id":          {manifesttest.Options{}, func(a *manifest.Adoption) { a.Entry.RolloutID = "stable@fffffff" }, api.CodeIdentityMismatch, "it is the manifest of"},
		"an id that is none":     {manifesttest.Options{}, func(a *manifest.Adoption) { a.Entry.RolloutID = "../x" }, api.CodeMalformed, "rollout id"},
		"under another channel":  {manifesttest.Options{}, func(a *manifest.Adoption) { a.Channel = "edge" }, api.CodeIdentityMismatch, "the index has it under"},
		"older than adopted":     {manifesttest.Options{}, func(a *manifest.Adoption) { a.Last = stored(manifesttest.Options{Sequence: manifesttest.Sequence + 1}) }, api.CodeRollbackRefused, "older"},
		"equal, of another tree": {manifesttest.Options{}, func(a *manifest.Adoption) { a.Last = stored(manifesttest.Options{Lines: other}) }, api.CodeRollbackRefused, "another merkleRoot"},
		"a known id, changed":    {manifesttest.Options{}, func(a *manifest.Adoption) { a.Known = payload(manifesttest.Options{Sequence: 5}) }, api.CodeIdentityMismatch, "differs in more than signedAt"},
		"a known id, garbage":    {manifesttest.Options{}, func(a *manifest.Adoption) { a.Known = []byte("{") }, api.CodeIdentityMismatch, "differs in more than signedAt"},
		"other hosts":            {manifesttest.Options{}, func(a *manifest.Adoption) { a.Hosts = manifesttest.New(manifesttest.Options{Lines: other}).HostsFile }, api.CodeIdentityMismatch, "hostSet.sha256"},
		"hosts cut off":          {manifesttest.Options{}, func(a *manifest.Adoption) { a.Hosts = a.Hosts[:len(a.Hosts)-1] }, api.CodeIdentityMismatch, "hostSet.sha256"},
		"too many hosts":         {manifesttest.Options{}, func(a *manifest.Adoption) { a.Hosts = make([]byte, api.MaxHosts+1) }, api.CodeTooLarge, "hosts.jsonl"},
		"another size":           {set(func(s *api.HostSet) { s.Size++ }), nil, api.CodeIdentityMismatch, "hostSet.size is 4"},
		"another root":           {set(func(s *api.HostSet) { s.MerkleRoot = strings.Repeat("A", 43) + "=" }), nil, api.CodeIdentityMismatch, "hostSet.merkleRoot is"},
		"a wave that is not":     {manifesttest.Options{Edit: func(m *api.Manifest) { m.Policy.Waves = m.Policy.Waves[:1] }}, nil, api.CodeMalformed, "line 2: wave is 1"},
		"a fleet by nobody": {manifesttest.Options{}, func(a *manifest.Adoption) {
			a.Fleet = manifesttest.New(manifesttest.Options{Signers: []trust.Signer{manifesttest.Key("mallory")}}).Fleet
		}, api.CodeSignatureInvalid, "fleet: signed by 0"},
		"another fleet":           {manifesttest.Options{}, func(a *manifest.Adoption) { a.Fleet = manifesttest.New(manifesttest.Options{Ref: "fffffff"}).Fleet }, api.CodeIdentityMismatch, "fleetDigest is"},
		"a manifest for a fleet":  {manifesttest.Options{}, func(a *manifest.Adoption) { a.Fleet = a.Manifest }, api.CodeSignatureInvalid, "payload type"},
		"a fleet for a manifest":  {manifesttest.Options{}, func(a *manifest.Adoption) { a.Manifest = a.Fleet }, api.CodeSignatureInvalid, "payload type"},
		"hosts that are unsorted": {manifesttest.Options{}, unsorted, api.CodeMalformed, "line 2: host-000000 is not after"},
	} {
		t.Run(name, func(t *testing.T) {
			a := adoption(manifesttest.New(test.release))
			if test.edit != nil {
				test.edit(&a)
			}
			_, err := manifest.CheckAdoption(a)
			wantRefusal(t, err, test.code, test.want)
		})
	}
}

func payload(o manifesttest.Options) []byte { return stored(o).Payload() }

// unsorted gives a release whose hosts are what was signed, but against the rules of hosts.jsonl.
func unsorted(a *manifest.Adoption) {
	lines := strings.SplitAfter(string(a.Hosts), "\n")
	lines[0], lines[1] = lines[1], lines[0]
	a.Hosts = []byte(strings.Join(lines, ""))
	a.Manifest = manifesttest.New(manifesttest.Options{Edit: func(m *api.Manifest) { m.HostSet.SHA256 = trust.Digest(a.Hosts) }}).Envelope
}

func TestAKnownReleaseThatWasSignedAgainIsAdopted(t *testing.T) {
	a := adoption(manifesttest.New(manifesttest.Options{SignedAt: now.Add(hours(1))}))
	a.Now = now.Add(hours(2))
	a.Known = payload(manifesttest.Options{})
	a.Last = stored(manifesttest.Options{})
	if _, err := manifest.CheckAdoption(a); err != nil {
		t.Error(err)
	}
	a.Known = []byte(strings.ReplaceAll(string(a.Known), ",", ",\n  "))
	if _, err := manifest.CheckAdoption(a); err != nil {
		t.Errorf("laid out differently: %v", err)
	}
	a.Known = []byte(strings.Replace(string(a.Known), "{", `{"news":1,`, 1))
	_, err := manifest.CheckAdoption(a)
	wantRefusal(t, err, api.CodeIdentityMismatch, "differs in more than signedAt")
}
