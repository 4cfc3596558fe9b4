package manifest_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

// scenario is an acceptance in the making: everything that a rule may be broken in.
type scenario struct {
	release manifesttest.Options
	trust   api.Trust
	last    []func(a *manifest.Acceptance)
}

func (s scenario) accept() (manifest.Accepted, error) {
	r := manifesttest.New(s.release)
	a := acceptance(r, manifesttest.Root(s.trust))
	for _, edit := range s.last {
		edit(&a)
	}
	return manifest.Accept(a)
}

func acceptance(r manifesttest.Release, root *trust.Root) manifest.Acceptance {
	host := manifesttest.Hostname(1)
	return manifest.Acceptance{Root: root, RolloutID: r.ID, Hostname: host, Now: now, Envelope: r.Envelope, Proof: r.Proof(host)}
}

func (s *scenario) then(edit func(a *manifest.Acceptance)) { s.last = append(s.last, edit) }

// acceptRules are the rules of artifacts.md, in its order, each with a way to break it and nothing else.
var acceptRules = []struct {
	name   string
	group  string // rules of one group cannot be broken together
	code   api.Code
	want   string
	broken func(s *scenario)
}{
	{"cap", "", api.CodeTooLarge, "the envelope is", func(s *scenario) {
		s.then(func(a *manifest.Acceptance) {
			a.Envelope = append([]byte(strings.Repeat(" ", trust.MaxEnvelope(api.MaxManifest))), a.Envelope...)
		})
	}},
	{"signatures", "", api.CodeSignatureInvalid, "signed by 0 of", func(s *scenario) {
		s.release.Signers = []trust.Signer{manifesttest.Key("mallory")}
	}},
	{"shape", "", api.CodeMalformed, "policyName is empty", func(s *scenario) {
		s.release.Edit = func(m *api.Manifest) { m.PolicyName = "" }
	}},
	{"rejectSignedBefore", "", api.CodeStale, "nothing signed before", func(s *scenario) {
		at := now.Add(time.Second)
		s.trust.Release.RejectSignedBefore = &at
	}},
	{"future", "clock", api.CodeSignedInFuture, "signed at", func(s *scenario) {
		s.then(func(a *manifest.Acceptance) { a.Now = now.Add(-61 * time.Second) })
	}},
	{"freshness", "clock", api.CodeStale, "fresh until", func(s *scenario) {
		s.then(func(a *manifest.Acceptance) { a.Now = now.Add(hours(72) + time.Second) })
	}},
	{"id", "", api.CodeIdentityMismatch, "it is the manifest of stable@0a1b2c3d", func(s *scenario) {
		s.then(func(a *manifest.Acceptance) { a.RolloutID = "stable@fffffff" })
	}},
	{"sequence", "", api.CodeRollbackRefused, "is older than sequence", func(s *scenario) {
		s.then(func(a *manifest.Acceptance) {
			a.Last = stored(manifesttest.Options{Sequence: manifesttest.Sequence + 1, ReleasedAt: now.Add(-hours(1))})
		})
	}},
	{"channel", "", api.CodeRollbackRefused, "does not allow channel stable", func(s *scenario) {
		s.then(func(a *manifest.Acceptance) { a.AllowedChannels = []string{"edge"} })
	}},
	{"proof", "", api.CodeNotInManifest, "does not lead", func(s *scenario) {
		s.then(func(a *manifest.Acceptance) { a.Proof.Line += " " })
	}},
	{"own line", "", api.CodeNotInManifest, "it is the line of host-000001, not of host-000002", func(s *scenario) {
		s.then(func(a *manifest.Acceptance) { a.Hostname = manifesttest.Hostname(2) })
	}},
}

func TestAManifestIsAcceptedByTheRulesInTheirOrder(t *testing.T) {
	good := func() scenario { return scenario{trust: manifesttest.Trust()} }
	accepted, err := good().accept()
	if err != nil {
		t.Fatal(err)
	}
	if accepted.Line.Hostname != manifesttest.Hostname(1) || accepted.Manifest.Value().RolloutID != "stable@0a1b2c3d" {
		t.Errorf("accepted %+v", accepted)
	}
	for i, rule := range acceptRules {
		t.Run(rule.name, func(t *testing.T) {
			s := good()
			rule.broken(&s)
			accepted, err := s.accept()
			wantRefusal(t, err, rule.code, rule.want)
			if accepted.Line.Hostname != "" || accepted.Manifest.Payload() != nil {
				t.Errorf("refused, but gave %+v", accepted)
			}
		})
		for _, later := range acceptRules[i+1:] {
			if rule.group != "" && rule.group == later.group {
				continue
			}
			t.Run(fmt.Sprintf("%s before %s", rule.name, later.name), func(t *testing.T) {
				s := good()
				later.broken(&s)
				rule.broken(&s)
				_, err := s.accept()
				wantRefusal(t, err, rule.code, rule.want)
			})
		}
	}
}

// stored returns a record of a release as its own time verified it.
func stored(o manifesttest.Options) *trust.Verified[api.Manifest] {
	return manifesttest.New(o).Stored(root())
}

func TestAntiRollback(t *testing.T) {
	const sequence = manifesttest.Sequence
	last := manifesttest.Options{Sequence: sequence, SignedAt: now.Add(hours(1))}
	other := manifesttest.Lines(3, 2, "other")
	for name, test := range map[string]struct {
		next manifesttest.Options
		want string // "" is accepted
	}{
		"the same":                       {last, ""},
		"signed again":                   {manifesttest.Options{Sequence: sequence, SignedAt: now.Add(hours(2))}, ""},
		"signed earlier":                 {manifesttest.Options{Sequence: sequence, SignedAt: now}, "is older than"},
		"the next":                       {manifesttest.Options{Ref: "fffffff", Sequence: sequence + 1, SignedAt: now.Add(hours(2)), Lines: other}, ""},
		"the next, signed earlier":       {manifesttest.Options{Ref: "fffffff", Sequence: sequence + 1, SignedAt: now, Lines: other}, ""},
		"the one before":                 {manifesttest.Options{Ref: "fffffff", Sequence: sequence - 1, SignedAt: now.Add(hours(2))}, "is older than"},
		"equal sequence, another tree":   {manifesttest.Options{Sequence: sequence, SignedAt: now.Add(hours(2)), Lines: other}, "another merkleRoot"},
		"equal sequence, ref and tree":   {manifesttest.Options{Ref: "fffffff", Sequence: sequence, SignedAt: now.Add(hours(2)), Lines: other}, "another merkleRoot"},
		"equal sequence, one host moved": {manifesttest.Options{Sequence: sequence, SignedAt: now.Add(hours(2)), Lines: manifesttest.Lines(3, 1, "0a1b2c3d")}, "another merkleRoot"},
		"the smallest sequence there is": {manifesttest.Options{Ref: "fffffff", Sequence: 1, SignedAt: now.Add(hours(3))}, "is older than"},
		"the largest sequence there is":  {manifesttest.Options{Ref: "fffffff", Sequence: 1<<53 - 1, SignedAt: now.Add(hours(3))}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := acceptance(manifesttest.New(test.next), root())
			a.Now = now.Add(hours(3))
			a.Last = stored(last)
			_, err := manifest.Accept(a)
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantRefusal(t, err, api.CodeRollbackRefused, test.want)
		})
	}
}

func TestRemovingAStolenKeyUndoesItsJumpAhead(t *testing.T) {
	// A thief with a release key jumped to the last sequence there is.
	before := manifesttest.Trust()
	before.Release.Keys = append(before.Release.Keys, manifesttest.Trusted("stolen", manifesttest.Key("stolen")))
	thiefs := manifesttest.New(manifesttest.Options{Ref: "badbad0", Sequence: 1<<53 - 1, Signers: []trust.Signer{manifesttest.Key("stolen")}})
	record, err := manifest.VerifyStored(manifesttest.Root(before), thiefs.ID, thiefs.Envelope, now)
	if err != nil {
		t.Fatal(err)
	}
	good := manifesttest.New(manifesttest.Options{})
	a := acceptance(good, manifesttest.Root(before))
	a.Last = &record
	_, err = manifest.Accept(a)
	wantRefusal(t, err, api.CodeRollbackRefused, "is older than")

	// Once the key is removed the record no longer verifies, and so no longer counts.
	_, err = manifest.VerifyStored(root(), thiefs.ID, thiefs.Envelope, now)
	wantRefusal(t, err, api.CodeSignatureInvalid, "")
	if _, err := manifest.Accept(acceptance(good, root())); err != nil {
		t.Error(err)
	}
}

func TestNowIsNeverEarlierThanWhatWasAccepted(t *testing.T) {
	old := manifesttest.New(manifesttest.Options{})
	floor := now.Add(hours(73)) // by then old is stale
	for name, hold := range map[string]func(a *manifest.Acceptance){
		"any channel's latest": func(a *manifest.Acceptance) { a.LatestSignedAt = floor },
		"the channel's own":    func(a *manifest.Acceptance) { a.Last = stored(manifesttest.Options{SignedAt: floor}) },
		"the old channel's": func(a *manifest.Acceptance) {
			a.PreviousChannel = "stable"
			a.PreviousLast = stored(manifesttest.Options{SignedAt: floor})
		},
	} {
		a := acceptance(old, root())
		a.Now = now // a clock that was set back to when old was fresh
		hold(&a)
		_, err := manifest.Accept(a)
		wantRefusal(t, err, api.CodeStale, "now it is 2026-11-26T09:00:00Z")
		if t.Failed() {
			t.Fatal(name)
		}
	}

	// And a clock that starts in 1970 does not keep a host from its releases for ever.
	a := acceptance(manifesttest.New(manifesttest.Options{SignedAt: floor.Add(30 * time.Second)}), root())
	a.Now, a.LatestSignedAt = time.Unix(0, 0), floor
	accepted, err := manifest.Accept(a)
	if err != nil {
		t.Fatal(err)
	}
	if !accepted.NotEarlierThan.Equal(floor.Add(30 * time.Second)) {
		t.Errorf("from here on it is %s", accepted.NotEarlierThan)
	}
}

func TestLeavingAChannel(t *testing.T) {
	tr := manifesttest.Trust()
	for _, name := range []string{"alice", "bob"} {
		tr.Release.Keys = append(tr.Release.Keys, manifesttest.Trusted(name, manifesttest.Key(name)))
	}
	tr.Channels = map[string]api.TrustChannel{"prod": {Threshold: 2, Keys: []string{"alice", "bob"}}}
	root := manifesttest.Root(tr)
	ci := []trust.Signer{manifesttest.Key(manifesttest.ReleaseKey)}
	people := []trust.Signer{manifesttest.Key("alice"), manifesttest.Key("bob")}
	onProd := manifesttest.New(manifesttest.Options{Channel: "prod", Signers: people}).Stored(root)
	later := now.Add(time.Minute)
	for name, test := range map[string]struct {
		next     manifesttest.Options
		previous string
		last     *trust.Verified[api.Manifest]
		allowed  []string
		want     string // "" is accepted
	}{
		"the first ever":                        {manifesttest.Options{Signers: ci}, "", nil, nil, ""},
		"the first ever, not allowed":           {manifesttest.Options{Signers: ci}, "", nil, []string{"prod"}, "configuration does not allow"},
		"staying":                               {manifesttest.Options{Channel: "prod", Signers: people, ReleasedAt: later}, "prod", onProd, []string{"prod"}, ""},
		"the new channel's key alone":           {manifesttest.Options{Signers: ci, ReleasedAt: later}, "prod", onProd, nil, "may not leave channel prod"},
		"one of the old channel's people":       {manifesttest.Options{Signers: append(ci, people[0]), ReleasedAt: later}, "prod", onProd, nil, "may not leave channel prod"},
		"the old channel's people too":          {manifesttest.Options{Signers: append(ci, people...), ReleasedAt: later}, "prod", onProd, nil, ""},
		"and allowed":                           {manifesttest.Options{Signers: append(ci, people...), ReleasedAt: later}, "prod", onProd, []string{"prod", "stable"}, ""},
		"but not allowed here":                  {manifesttest.Options{Signers: append(ci, people...), ReleasedAt: later}, "prod", onProd, []string{"prod"}, "configuration does not allow"},
		"released at the same time":             {manifesttest.Options{Signers: append(ci, people...)}, "prod", onProd, nil, "not after"},
		"released before, signed after":         {manifesttest.Options{Signers: append(ci, people...), ReleasedAt: now.Add(-time.Hour), SignedAt: later}, "prod", onProd, nil, "not after"},
		"the record gone, the channel's keys":   {manifesttest.Options{Signers: ci, ReleasedAt: later}, "prod", nil, nil, "may not leave channel prod"},
		"the record gone, with the people":      {manifesttest.Options{Signers: append(ci, people...)}, "prod", nil, nil, ""},
		"to the channel with the stricter rule": {manifesttest.Options{Channel: "prod", Signers: people, ReleasedAt: later}, "stable", stored(manifesttest.Options{}), nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := acceptance(manifesttest.New(test.next), root)
			a.Now = now.Add(hours(1))
			a.PreviousChannel, a.PreviousLast, a.AllowedChannels = test.previous, test.last, test.allowed
			_, err := manifest.Accept(a)
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantRefusal(t, err, api.CodeRollbackRefused, test.want)
		})
	}
}

func TestALineThatIsProvenMustStillBeRight(t *testing.T) {
	// Signed by CI with a bug: the manifest has one wave, the line says the second.
	r := manifesttest.New(manifesttest.Options{Hosts: 3, Edit: func(m *api.Manifest) { m.Policy.Waves = m.Policy.Waves[:1] }})
	a := acceptance(r, root())
	a.Hostname = manifesttest.Hostname(2)
	a.Proof = r.Proof(a.Hostname)
	_, err := manifest.Accept(a)
	wantRefusal(t, err, api.CodeMalformed, "host line: wave is 1, of 1 waves")
}
