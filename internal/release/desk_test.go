package release

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

const hash = "0c2fa4zsdl5hw9xj3pkmq7vnr8iy6b1g"

// refs of commits, in the order in which they are made.
const (
	ref1 = "1111111"
	ref2 = "2222222"
	ref3 = "3333333"
)

// desk is a CI with its repository, its keys and a clock that stands still until it is moved.
type desk struct {
	t       *testing.T
	repo    string
	trusted api.Trust
	signers []trust.Signer
	now     time.Time
	fleet   api.Fleet
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	host := func(channel, name string) api.FleetHost {
		return api.FleetHost{System: "x86_64-linux", Channel: channel, Closure: hash + "-" + name}
	}
	window := api.Duration(72 * time.Hour)
	return &desk{
		t: t, repo: filepath.Join(t.TempDir(), "releases"), trusted: manifesttest.Trust(),
		signers: []trust.Signer{manifesttest.Key(manifesttest.ReleaseKey)}, now: manifesttest.Time,
		fleet: api.Fleet{
			SchemaVersion: 1,
			Hosts:         map[string]api.FleetHost{"web-01": host("stable", "web-01"), "web-02": host("stable", "web-02"), "lab-01": host("edge", "lab-01")},
			Channels: map[string]api.FleetChannel{
				"stable": {RolloutPolicy: "p", FreshnessWindow: window}, "edge": {RolloutPolicy: "p", FreshnessWindow: window / 3},
			},
			RolloutPolicies: map[string]api.Policy{"p": {}, "urgent": {IgnoreWindows: true}},
		},
	}
}

func (d *desk) root() *trust.Root {
	d.t.Helper()
	data, err := json.Marshal(d.trusted)
	if err != nil {
		d.t.Fatal(err)
	}
	root, err := trust.ParseRoot("trust.json", data)
	if err != nil {
		d.t.Fatal(err)
	}
	return root
}

func (d *desk) options() Options {
	return Options{Repo: d.repo, Root: d.root(), Signers: d.signers, Now: d.now}
}

func (d *desk) creation(commit string, change ...func(*CreateOptions)) CreateOptions {
	d.t.Helper()
	data, err := json.Marshal(d.fleet, json.OmitZeroStructFields(true))
	if err != nil {
		d.t.Fatal(err)
	}
	opts := CreateOptions{Options: d.options(), Fleet: data, FleetName: "fleet.json", Commit: commit}
	for _, c := range change {
		c(&opts)
	}
	return opts
}

func (d *desk) create(commit string, change ...func(*CreateOptions)) Report {
	d.t.Helper()
	report, err := Create(context.Background(), d.creation(commit, change...))
	if err != nil {
		d.t.Fatalf("releasing %s: %v", commit, err)
	}
	return report
}

// index returns the published index, verified.
func (d *desk) index() api.Index {
	d.t.Helper()
	return d.published().index
}

func (d *desk) published() *published {
	d.t.Helper()
	r, err := OpenRepo(d.repo)
	if err != nil {
		d.t.Fatal(err)
	}
	defer r.Close()
	p, err := readPublished(r, d.root(), d.now, false)
	if err != nil {
		d.t.Fatal(err)
	}
	return p
}

// mustBeWhole checks everything that is published, as a control plane would.
func (d *desk) mustBeWhole() Verdict {
	d.t.Helper()
	r, err := OpenRepo(d.repo)
	if err != nil {
		d.t.Fatal(err)
	}
	defer r.Close()
	v, err := VerifyRepo(r, d.root(), d.now)
	if err != nil || v.State != Good || len(v.Warnings) > 0 {
		d.t.Fatalf("the repository is %s: %+v, error %v", v.State, v, err)
	}
	return v
}

func channels(names ...string) func(*CreateOptions) {
	return func(o *CreateOptions) { o.Channels = names }
}

func changes(r Report) map[string]string {
	m := map[string]string{}
	for _, c := range r.Channels {
		m[c.Channel] = c.Change
	}
	return m
}

func (d *desk) overwrite(object string, data []byte) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.repo, objectsFolder, object), data, 0o644); err != nil {
		d.t.Fatal(err)
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
