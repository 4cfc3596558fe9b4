// Package manifesttest makes signed releases for tests: keys, trust.json, manifests of any number of
// hosts, their lines and fleets, all deterministic. Only tests import it; what goes wrong in it panics.
package manifesttest

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/fleet"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/trust"
)

// Time is when releases are made and signed unless Options says otherwise.
var Time = time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)

// Sequence is the sequence of a release unless Options says otherwise: Time in Unix seconds.
const Sequence = 1795420800

// Names of the keys in Trust.
const (
	ReleaseKey    = "ci-2026"
	EnrollmentKey = "root-2026"
)

// Key returns the Ed25519 key that belongs to name, always the same one.
func Key(name string) *trust.KeySigner {
	seed := sha256.Sum256([]byte("nixfleet test key " + name))
	return must(trust.NewSigner(ed25519.NewKeyFromSeed(seed[:])))
}

// ECDSAKey returns the P-256 key that belongs to name, always the same one. Its signatures differ from
// one to the next.
func ECDSAKey(name string) *trust.KeySigner {
	secret := sha256.Sum256([]byte("nixfleet test key " + name))
	return must(trust.NewSigner(must(ecdsa.ParseRawPrivateKey(elliptic.P256(), secret[:]))))
}

// Trusted returns key as trust.json has it.
func Trusted(name string, key *trust.KeySigner) api.TrustKey {
	return api.TrustKey{Name: name, PublicKey: key.Public().PEM()}
}

// Trust returns a trust.json with one release key and one enrollment key, to be edited.
func Trust() api.Trust {
	return api.Trust{
		SchemaVersion: api.SchemaVersion,
		Release:       api.TrustRelease{Threshold: 1, Keys: []api.TrustKey{Trusted(ReleaseKey, Key(ReleaseKey))}},
		Enrollment:    api.TrustEnrollment{Keys: []api.TrustKey{Trusted(EnrollmentKey, Key(EnrollmentKey))}},
	}
}

// TrustJSON returns the bytes of a trust.json.
func TrustJSON(t api.Trust) []byte { return must(json.Marshal(t)) }

// Root parses a trust.json.
func Root(t api.Trust) *trust.Root { return must(trust.ParseRoot("trust.json", TrustJSON(t))) }

// Hostname returns the name of host i.
func Hostname(i int) string { return fmt.Sprintf("host-%06d", i) }

// Closure returns a store base name that differs by name and version.
func Closure(name, version string) string {
	const digits = "0123456789abcdfghijklmnpqrsvwxyz"
	sum := sha256.Sum256([]byte(name + "\x00" + version))
	var hash strings.Builder
	for _, b := range sum {
		hash.WriteByte(digits[b%32])
	}
	return hash.String() + "-nixos-system-" + name + "-" + version
}

// Lines returns n lines, spread over so many waves in blocks of rising size: a tenth of what is left in
// each wave but the last.
func Lines(n, waves int, version string) []api.HostLine {
	lines := make([]api.HostLine, n)
	wave, until := 0, max(1, n/10)
	for i := range lines {
		if i == until && wave < waves-1 {
			wave++
			until += max(1, (n-until)/10)
		}
		if wave == waves-1 {
			until = n
		}
		lines[i] = api.HostLine{Hostname: Hostname(i), Wave: wave, Closure: Closure(Hostname(i), version)}
	}
	return lines
}

// Options says what is to be released. The zero Options is ref 0a1b2c3d of channel stable for 3 hosts
// in two waves with a soak of 30m, by ReleaseKey.
type Options struct {
	Channel    string
	Ref        string
	Sequence   int64
	ReleasedAt time.Time
	SignedAt   time.Time           // ReleasedAt unless given
	Hosts      int                 // how many lines, where Lines is nil
	Lines      []api.HostLine      // the lines themselves
	Policy     api.Policy          // fleet.WithDefaults fills it in; waves: two of 30m
	Signers    []trust.Signer      // ReleaseKey where nil
	Edit       func(*api.Manifest) // the last word before it is signed
}

// Release is one channel's release, as a repository holds it.
type Release struct {
	ID        string
	Manifest  api.Manifest
	Envelope  []byte // of the manifest
	HostsFile []byte // hosts.jsonl
	Hosts     *manifest.Hosts
	Fleet     []byte // envelope
}

// New makes a release.
func New(o Options) Release {
	o = withDefaults(o)
	waves := len(o.Policy.Waves)
	file := must(manifest.EncodeHosts(o.Lines))
	hosts := must(manifest.ParseHosts(file, waves, api.MaxHosts))
	declared := must(json.Marshal(api.Fleet{
		SchemaVersion: api.SchemaVersion, SignedAt: o.ReleasedAt, Commit: o.Ref,
		Channels: map[string]api.FleetChannel{o.Channel: {RolloutPolicy: "canary", FreshnessWindow: api.Duration(72 * time.Hour)}},
	}))
	m := api.Manifest{
		SchemaVersion: api.SchemaVersion,
		RolloutID:     manifest.ID(o.Channel, o.Ref), Channel: o.Channel, Ref: o.Ref,
		Sequence: o.Sequence, ReleasedAt: o.ReleasedAt, SignedAt: o.SignedAt,
		FreshnessWindow: api.Duration(72 * time.Hour),
		FleetDigest:     trust.Digest(declared),
		PolicyName:      "canary", Policy: o.Policy,
		HostSet: hosts.Set(),
	}
	if o.Edit != nil {
		o.Edit(&m)
	}
	return Release{
		ID: m.RolloutID, Manifest: m, Envelope: Sign(m, o.Signers...), HostsFile: file, Hosts: hosts,
		Fleet: must(trust.Sign(api.PayloadFleet, declared, o.Signers...)),
	}
}

func withDefaults(o Options) Options {
	if o.Channel == "" {
		o.Channel = "stable"
	}
	if o.Ref == "" {
		o.Ref = "0a1b2c3d"
	}
	if o.Sequence == 0 {
		o.Sequence = Sequence
	}
	if o.ReleasedAt.IsZero() {
		o.ReleasedAt = Time
	}
	if o.SignedAt.IsZero() {
		o.SignedAt = o.ReleasedAt
	}
	if o.Policy.Waves == nil {
		soak := api.Duration(30 * time.Minute)
		o.Policy.Waves = []api.Wave{{Soak: soak}, {Soak: soak}}
	}
	o.Policy = fleet.WithDefaults(o.Policy)
	if o.Hosts == 0 {
		o.Hosts = 3
	}
	if o.Lines == nil {
		o.Lines = Lines(o.Hosts, len(o.Policy.Waves), o.Ref)
	}
	if o.Signers == nil {
		o.Signers = []trust.Signer{Key(ReleaseKey)}
	}
	return o
}

// Sign signs m as it is, right or wrong.
func Sign(m api.Manifest, signers ...trust.Signer) []byte {
	return must(trust.Sign(api.PayloadRollout, must(json.Marshal(m)), signers...))
}

// Proof returns hostname's line with its proof.
func (r Release) Proof(hostname string) api.HostProof {
	i, found := r.Hosts.Find(hostname)
	if !found {
		panic("manifesttest: no host " + hostname)
	}
	return r.Hosts.Proof(i)
}

// Dispatch returns the dispatch that a good control plane gives hostname.
func (r Release) Dispatch(hostname string) api.Dispatch {
	i, found := r.Hosts.Find(hostname)
	if !found {
		panic("manifesttest: no host " + hostname)
	}
	line := r.Hosts.Line(i)
	return api.Dispatch{
		Hostname: hostname, RolloutID: r.ID, Action: api.ActionActivate, Attempt: 1,
		TargetClosure: line.Closure, Wave: line.Wave,
		SoakDueAt: r.Manifest.ReleasedAt.Add(time.Hour), EnqueuedAt: r.Manifest.ReleasedAt,
	}
}

// Stored returns the release's manifest as an agent's or control plane's record of what it accepted.
func (r Release) Stored(root *trust.Root) *trust.Verified[api.Manifest] {
	v := must(manifest.VerifyStored(root, r.ID, r.Envelope, r.Manifest.SignedAt))
	return &v
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(fmt.Sprintf("manifesttest: %v", err))
	}
	return v
}
