package manifest

import (
	"slices"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/strictjson"
	"nixfleet.dev/nixfleet/internal/trust"
)

// Acceptance is everything that an agent's decision to accept a manifest depends on.
type Acceptance struct {
	Root      *trust.Root
	RolloutID string        // the rollout that was dispatched, and so asked for
	Hostname  string        // this host
	Now       time.Time     // by this host's clock
	Envelope  []byte        // the manifest as it was served
	Proof     api.HostProof // this host's line as it was served

	// Last is the highest manifest accepted for the channel of RolloutID, verified again by
	// VerifyStored under Root; nil where there is none, or none that still verifies.
	Last *trust.Verified[api.Manifest]
	// PreviousChannel is the channel of the last manifest that this host accepted, "" where there was
	// none. It is known by the record's name even when the record itself no longer verifies.
	PreviousChannel string
	// PreviousLast is like Last, of PreviousChannel. It is looked at where that is another channel.
	PreviousLast *trust.Verified[api.Manifest]
	// LatestSignedAt is the latest signedAt of any manifest that this host accepted and that still
	// verifies; zero where there is none. Now is never taken to be earlier.
	LatestSignedAt time.Time
	// AllowedChannels is agent.toml's channels: the only ones this host may follow. Empty allows all.
	AllowedChannels []string
}

// Accepted is a manifest that an agent accepted, with its own line.
type Accepted struct {
	Manifest trust.Verified[api.Manifest]
	Line     api.HostLine
	// NotEarlierThan is the time that "now" may not be taken to be before, from here on.
	NotEarlierThan time.Time
}

// Accept decides, by the ordered list of design/artifacts.md ("An agent accepts a manifest when"),
// whether an agent accepts a manifest; the first rule that is broken is the error.
func Accept(a Acceptance) (Accepted, error) {
	now := a.now()
	v, err := Verify(a.Root, a.RolloutID, a.Envelope, now)
	if err != nil {
		return Accepted{}, err
	}
	m := v.Value()
	what := "manifest of " + m.RolloutID
	if a.Last != nil {
		if err := checkAdvance(what, *a.Last, m); err != nil {
			return Accepted{}, err
		}
	}
	if err := a.checkChannel(what, v, now); err != nil {
		return Accepted{}, err
	}
	if err := VerifyProof(a.Proof, m.HostSet); err != nil {
		return Accepted{}, err
	}
	line, err := a.line(m)
	if err != nil {
		return Accepted{}, err
	}
	return Accepted{Manifest: v, Line: line, NotEarlierThan: latest(now, m.SignedAt)}, nil
}

// now is the host's clock, but never earlier than what it has accepted: a clock that was set back does
// not make an old manifest fresh.
func (a Acceptance) now() time.Time {
	now := latest(a.Now, a.LatestSignedAt)
	for _, record := range []*trust.Verified[api.Manifest]{a.Last, a.PreviousLast} {
		if record != nil {
			now = latest(now, record.Value().SignedAt)
		}
	}
	return now
}

// checkChannel holds a host to its channel: it leaves it only by a manifest that its old channel's keys
// signed too and that was released later than the last one it accepted there.
func (a Acceptance) checkChannel(what string, v trust.Verified[api.Manifest], now time.Time) error {
	m := v.Value()
	if len(a.AllowedChannels) > 0 && !slices.Contains(a.AllowedChannels, m.Channel) {
		return trust.Refuse(api.CodeRollbackRefused, what, "this host's configuration does not allow channel %s", m.Channel)
	}
	if a.PreviousChannel == "" || a.PreviousChannel == m.Channel {
		return nil
	}
	old := a.Root.ChannelRule(a.PreviousChannel)
	if err := trust.Satisfies(what, v, api.PayloadRollout, api.MaxManifest, old, now); err != nil {
		return trust.Refuse(api.CodeRollbackRefused, what, "this host may not leave channel %s by it: %w", a.PreviousChannel, err)
	}
	if a.PreviousLast == nil {
		return nil
	}
	if last := a.PreviousLast.Value(); !m.ReleasedAt.After(last.ReleasedAt) {
		return trust.Refuse(api.CodeRollbackRefused, what, "this host may not leave channel %s by it: it was released at %s, not after %s of %s",
			a.PreviousChannel, stamp(m.ReleasedAt), stamp(last.ReleasedAt), last.RolloutID)
	}
	return nil
}

// line reads the line that is proven to be in m, and checks that it is this host's.
func (a Acceptance) line(m api.Manifest) (api.HostLine, error) {
	const what = "host line"
	line, err := decodeLine([]byte(a.Proof.Line))
	if err == nil {
		err = checkBounds(line, len(m.Policy.Waves), len(m.DisruptionBudgets))
	}
	if err != nil {
		return api.HostLine{}, trust.Refuse(api.CodeMalformed, what, "%w", err)
	}
	if line.Hostname != a.Hostname {
		return api.HostLine{}, trust.Refuse(api.CodeNotInManifest, what, "it is the line of %s, not of %s", line.Hostname, a.Hostname)
	}
	return line, nil
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// ParseProof reads the body of GET /v1/rollouts/{id}/hosts/{hostname}.
func ParseProof(data []byte) (api.HostProof, error) {
	p, err := strictjson.Decode[api.HostProof]("host line", data, MaxHostProof)
	if err != nil {
		return p, trust.Malformed(err)
	}
	return p, nil
}

// MaxHostProof is the cap on a host's line with its proof, in bytes of JSON: the line may need six
// bytes of it for each of its own.
const MaxHostProof = 6*api.MaxLine + 64*api.MaxProof + 1<<10
