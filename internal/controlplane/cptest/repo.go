package cptest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/fleet"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

// Repo is a release repository in a directory, which can be made wrong in any way. Everything in it is
// signed by manifesttest.ReleaseKey unless a test says otherwise.
type Repo struct {
	tb  testing.TB
	Dir string
}

// NewRepo makes an empty repository.
func NewRepo(tb testing.TB) *Repo {
	tb.Helper()
	return NewRepoIn(tb, tb.TempDir())
}

// NewRepoIn makes an empty repository in a directory.
func NewRepoIn(tb testing.TB, dir string) *Repo {
	tb.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "objects"), 0o755); err != nil {
		tb.Fatal(err)
	}
	return &Repo{tb: tb, Dir: dir}
}

// URL is the repository's, as in [source] url.
func (r *Repo) URL() string { return "file://" + r.Dir }

// Put writes an object and returns its name.
func (r *Repo) Put(data []byte) string {
	r.tb.Helper()
	digest := trust.Digest(data)
	r.write(filepath.Join("objects", digest), data)
	return digest
}

// Object returns the path of an object.
func (r *Repo) Object(digest string) string { return filepath.Join(r.Dir, "objects", digest) }

func (r *Repo) write(name string, data []byte) {
	r.tb.Helper()
	if err := os.WriteFile(filepath.Join(r.Dir, name), data, 0o600); err != nil {
		r.tb.Fatal(err)
	}
}

// Release is what one channel releases.
type Release struct {
	ID       string
	Entry    api.IndexChannel
	Manifest api.Manifest
	Envelope []byte
	Lines    []byte
	Fleet    api.Fleet
}

// Fleet returns a declared fleet of n hosts on one channel, host-000000 and so on.
func Fleet(channel string, n int, version string) api.Fleet {
	f := api.Fleet{
		SchemaVersion: api.SchemaVersion,
		Hosts:         map[string]api.FleetHost{},
		Channels:      map[string]api.FleetChannel{channel: {RolloutPolicy: "all", FreshnessWindow: api.Duration(72 * time.Hour)}},
		RolloutPolicies: map[string]api.Policy{"all": fleet.WithDefaults(api.Policy{
			Waves: []api.Wave{{Selector: &api.Selector{All: true}}},
		})},
	}
	for i := range n {
		name := manifesttest.Hostname(i)
		f.Hosts[name] = api.FleetHost{System: "x86_64-linux", Channel: channel, Closure: manifesttest.Closure(name, version)}
	}
	return f
}

// Add writes the objects of a release of a fleet's channel. Edit, which may be nil, has the last word on
// the manifest.
func (r *Repo) Add(f api.Fleet, channel, ref string, sequence int64, now time.Time, edit func(*api.Manifest), signers ...trust.Signer) Release {
	r.tb.Helper()
	if len(signers) == 0 {
		signers = []trust.Signer{manifesttest.Key(manifesttest.ReleaseKey)}
	}
	f.SignedAt, f.Commit = now.UTC().Truncate(time.Second), ref
	declared := r.encode(f)
	m, lines, err := manifest.Project(manifest.Projection{
		Fleet: &f, FleetDigest: trust.Digest(declared), Channel: channel, Ref: ref, Sequence: sequence,
		ReleasedAt: f.SignedAt, SignedAt: f.SignedAt,
	})
	if err != nil {
		r.tb.Fatal(err)
	}
	if edit != nil {
		edit(&m)
	}
	release := Release{ID: m.RolloutID, Manifest: m, Lines: lines, Fleet: f, Envelope: manifesttest.Sign(m, signers...)}
	release.Entry = api.IndexChannel{
		RolloutID: m.RolloutID, Manifest: r.Put(release.Envelope), Hosts: r.Put(lines),
		Fleet: r.Put(r.Sign(api.PayloadFleet, f, signers...)),
	}
	return release
}

// Index returns an index of releases; the newest fleet is that of the last.
func (r *Repo) Index(sequence int64, now time.Time, releases ...Release) api.Index {
	index := api.Index{
		SchemaVersion: api.SchemaVersion, Sequence: sequence, SignedAt: now.UTC().Truncate(time.Second),
		FreshnessWindow: api.Duration(72 * time.Hour), Channels: map[string]api.IndexChannel{},
	}
	for _, release := range releases {
		index.Channels[release.Manifest.Channel] = release.Entry
		index.Fleet = release.Entry.Fleet
	}
	return index
}

// Publish signs an index and puts it in place.
func (r *Repo) Publish(index api.Index, signers ...trust.Signer) {
	r.tb.Helper()
	r.PublishRaw(r.Sign(api.PayloadIndex, index, signers...))
}

// PublishRaw puts bytes in the index's place.
func (r *Repo) PublishRaw(data []byte) {
	r.tb.Helper()
	r.write("index.new", data)
	if err := os.Rename(filepath.Join(r.Dir, "index.new"), filepath.Join(r.Dir, "index.dsse.json")); err != nil {
		r.tb.Fatal(err)
	}
}

// Sign returns an envelope of v, by the release key where no signers are given.
func (r *Repo) Sign(t api.PayloadType, v any, signers ...trust.Signer) []byte {
	r.tb.Helper()
	if len(signers) == 0 {
		signers = []trust.Signer{manifesttest.Key(manifesttest.ReleaseKey)}
	}
	envelope, err := trust.Sign(t, r.encode(v), signers...)
	if err != nil {
		r.tb.Fatal(err)
	}
	return envelope
}

func (r *Repo) encode(v any) []byte {
	r.tb.Helper()
	data, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		r.tb.Fatal(err)
	}
	return data
}
