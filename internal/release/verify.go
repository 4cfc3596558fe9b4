package release

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/fleet"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/trust"
)

// State is what verifying found, from best to worst.
type State string

// States of what was verified.
const (
	Good State = "good"
	// Stale is what is rightly made, but too old by now, or from the future: nobody would act on it.
	Stale State = "stale"
	// Invalid is what nobody should ever act on.
	Invalid State = "invalid"
)

// Verdict is what was found out about an artifact or a repository. It is what `nixfleet verify` prints.
type Verdict struct {
	What     string    `json:"what"`
	State    State     `json:"state"`
	Findings []Finding `json:"findings"`
	Warnings []string  `json:"warnings"`

	SignedAt   *time.Time       `json:"signedAt,omitzero"`
	FreshUntil *time.Time       `json:"freshUntil,omitzero"`
	Sequence   int64            `json:"sequence,omitzero"`
	Channels   []ChannelVerdict `json:"channels,omitempty"`
	Hosts      int              `json:"hosts,omitzero"`
}

// Finding is one thing that is not good.
type Finding struct {
	What   string   `json:"what"`
	Code   api.Code `json:"code"`
	Detail string   `json:"detail"`
}

// ChannelVerdict is what was found out about one channel's release.
type ChannelVerdict struct {
	Channel    string    `json:"channel"`
	State      State     `json:"state"`
	RolloutID  string    `json:"rolloutId"`
	Sequence   int64     `json:"sequence"`
	Hosts      int64     `json:"hosts"`
	SignedAt   time.Time `json:"signedAt"`
	FreshUntil time.Time `json:"freshUntil"`
}

// found notes an error and returns the state that it means.
func (v *Verdict) found(what string, err error) State {
	if err == nil {
		return Good
	}
	code := trust.CodeOf(err)
	state := Invalid
	if code == api.CodeStale || code == api.CodeSignedInFuture {
		state = Stale
	}
	if v.State != Invalid {
		v.State = state
	}
	detail := strings.TrimPrefix(err.Error(), string(code)+": ") // the code stands beside it
	v.Findings = append(v.Findings, Finding{What: what, Code: code, Detail: detail})
	return state
}

func (v *Verdict) signed(at time.Time, window api.Duration) {
	until := at.Add(window.Std())
	v.SignedAt, v.FreshUntil = &at, &until
}

// VerifyManifest verifies the envelope of a manifest at a time, of the rollout that it says it is of; and
// hosts.jsonl against it, unless that is nil.
func VerifyManifest(root *trust.Root, envelope, hosts []byte, now time.Time) Verdict {
	v := Verdict{What: "manifest", State: Good}
	id, err := claimedID(envelope)
	if v.found("manifest", err) != Good {
		return v
	}
	m, err := manifest.VerifyStored(root, id, envelope, now)
	if v.found("manifest", err) != Good {
		return v
	}
	v.What = "manifest of " + id
	v.signed(m.Value().SignedAt, m.Value().FreshnessWindow)
	v.Sequence, v.Hosts = m.Value().Sequence, int(m.Value().HostSet.Size)
	v.found("manifest", trust.CheckFresh(v.What, m.Value().SignedAt, m.Value().FreshnessWindow.Std(), now))
	if hosts != nil {
		v.found("hosts.jsonl", checkHosts(m.Value(), hosts))
	}
	return v
}

func checkHosts(m api.Manifest, data []byte) error {
	hosts, err := manifest.ParseHosts(data, len(m.Policy.Waves), len(m.DisruptionBudgets))
	if err != nil {
		return err
	}
	if hosts.Set() != m.HostSet {
		return trust.Refuse(api.CodeIdentityMismatch, "hosts.jsonl", "it is not what the manifest of %s commits to", m.RolloutID)
	}
	return nil
}

// VerifyFleet verifies the envelope of a fleet at a time, and what it declares.
func VerifyFleet(root *trust.Root, envelope []byte, now time.Time) Verdict {
	v := Verdict{What: "fleet", State: Good}
	f, err := trust.VerifyFleet(root, envelope, now)
	if v.found("fleet", err) != Good {
		return v
	}
	at := f.Value().SignedAt
	v.SignedAt, v.Hosts = &at, len(f.Value().Hosts)
	v.found("fleet", trust.CheckNotFuture("fleet", at, now))
	value := f.Value()
	problems, warnings := fleet.Validate(&value)
	v.problems(problems)
	v.Warnings = warnings
	return v
}

// CheckFleet checks a fleet that is not signed: what `release create` would say of it.
func CheckFleet(what string, data []byte) Verdict {
	v := Verdict{What: "fleet, not signed", State: Good}
	f, warnings, err := fleet.Load(what, data)
	v.Warnings = warnings
	if problems, ok := errors.AsType[fleet.Problems](err); ok {
		v.problems(problems)
		return v
	}
	if v.found("fleet", err) == Good {
		v.Hosts = len(f.Hosts)
	}
	return v
}

func (v *Verdict) problems(problems []fleet.Problem) {
	for _, p := range problems {
		v.State = Invalid
		v.Findings = append(v.Findings, Finding{What: p.Field, Code: api.CodeMalformed, Detail: p.String()})
	}
}

// VerifyRepo verifies a repository at a time, down to the last line of the last object that its index
// names. The error is of reading it at all.
func VerifyRepo(r *Repo, root *trust.Root, now time.Time) (Verdict, error) {
	v := Verdict{What: r.path, State: Good}
	data, err := r.Index()
	if err != nil {
		return v, err
	}
	if data == nil {
		v.found("index", trust.Refuse(api.CodeNotFound, "index", "%s holds no release", r.path))
		return v, nil
	}
	verified, err := trust.VerifyStoredIndex(root, data, now)
	if v.found("index", err) != Good {
		return v, nil
	}
	index := verified.Value()
	v.signed(index.SignedAt, index.FreshnessWindow)
	v.Sequence = index.Sequence
	v.found("index", trust.CheckFresh("index", index.SignedAt, index.FreshnessWindow.Std(), now))
	v.found("fleet", errorOf(r.verifiedFleet(index.Fleet, root, now)))
	for _, channel := range sortedKeys(index.Channels) {
		v.channel(r, root, channel, index.Channels[channel], now)
	}
	if index.Revocations != nil {
		envelope, err := r.Object(*index.Revocations, trust.MaxEnvelope(api.MaxRevocations))
		if err == nil {
			_, err = trust.VerifyRevocations(root, envelope, now)
		}
		v.found("revocations", err)
	}
	return v, nil
}

func errorOf[T any](_ T, err error) error { return err }

func (r *Repo) verifiedFleet(object string, root *trust.Root, now time.Time) (trust.Verified[api.Fleet], error) {
	envelope, err := r.Object(object, trust.MaxEnvelope(api.MaxFleet))
	if err != nil {
		return trust.Verified[api.Fleet]{}, err
	}
	return trust.VerifyFleet(root, envelope, now)
}

func (v *Verdict) channel(r *Repo, root *trust.Root, channel string, entry api.IndexChannel, now time.Time) {
	what := "channel " + channel
	verdict := ChannelVerdict{Channel: channel, RolloutID: entry.RolloutID}
	defer func() { v.Channels = append(v.Channels, verdict) }()
	m, err := readManifest(r, root, entry, now)
	if verdict.State = v.found(what, err); verdict.State != Good {
		return
	}
	value := m.Value()
	verdict.Sequence, verdict.Hosts, verdict.SignedAt = value.Sequence, value.HostSet.Size, value.SignedAt
	verdict.FreshUntil = value.SignedAt.Add(value.FreshnessWindow.Std())
	// What is old must not hide what is wrong: the content is checked as of when it was signed.
	adopted, err := readAdoption(r, root, channel, entry, m, value.SignedAt)
	if verdict.State = v.found(what, err); verdict.State != Good {
		return
	}
	verdict.State = v.found(what, trust.CheckFresh("manifest of "+entry.RolloutID, value.SignedAt, value.FreshnessWindow.Std(), now))
	if err := sameProjection(adopted); err != nil {
		v.Warnings = append(v.Warnings, fmt.Sprintf("%s: %v", what, err))
	}
}

func readAdoption(r *Repo, root *trust.Root, channel string, entry api.IndexChannel, m trust.Verified[api.Manifest], now time.Time) (manifest.Adopted, error) {
	hosts, err := r.Object(entry.Hosts, api.MaxHosts)
	if err != nil {
		return manifest.Adopted{}, err
	}
	declared, err := r.Object(entry.Fleet, trust.MaxEnvelope(api.MaxFleet))
	if err != nil {
		return manifest.Adopted{}, err
	}
	return manifest.CheckAdoption(manifest.Adoption{
		Root: root, Channel: channel, Entry: entry, Now: now, Manifest: m.Envelope(), Hosts: hosts, Fleet: declared,
	})
}

// sameProjection projects the fleet of a release again, which must give the lines that were released.
func sameProjection(a manifest.Adopted) error {
	m, declared := a.Manifest.Value(), a.Fleet.Value()
	_, hosts, err := manifest.Project(manifest.Projection{
		Fleet: &declared, FleetDigest: m.FleetDigest, Channel: m.Channel, Ref: m.Ref, Policy: m.PolicyName,
		Sequence: m.Sequence, ReleasedAt: m.ReleasedAt, SignedAt: m.SignedAt,
	})
	if err != nil {
		return fmt.Errorf("its fleet cannot be projected again: %w", err)
	}
	if !bytes.Equal(hosts, a.Hosts.Bytes()) {
		return fmt.Errorf("its fleet, projected again, gives other lines than were released")
	}
	return nil
}
