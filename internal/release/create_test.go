package release

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/fleet"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

func TestAReleaseIsWholeAndGood(t *testing.T) {
	d := newDesk(t)
	report := d.create(ref1)
	if !report.Published || !cmp.Equal(changes(report), map[string]string{"stable": Released, "edge": Released}) {
		t.Errorf("reported %+v", report)
	}
	v := d.mustBeWhole()
	if len(v.Channels) != 2 || v.Channels[1].RolloutID != "stable@"+ref1 || v.Channels[1].Hosts != 2 {
		t.Errorf("verified %+v", v.Channels)
	}
	if window := d.index().FreshnessWindow.Std(); window != 24*time.Hour {
		t.Errorf("the index is fresh for %s, longer than the shortest of its channels", window)
	}
}

func TestChannelsThatAreNotReleasedKeepWhatTheyHave(t *testing.T) {
	d := newDesk(t)
	d.create(ref1)
	before := d.index().Channels["stable"]
	d.now = d.now.Add(time.Hour)
	report := d.create(ref2, channels("edge"))
	after := d.index()
	if after.Channels["stable"] != before || after.Channels["edge"].RolloutID != "edge@"+ref2 {
		t.Errorf("the index has %+v", after.Channels)
	}
	if after.Fleet == before.Fleet {
		t.Error("the newest fleet is still the old one")
	}
	if !cmp.Equal(changes(report), map[string]string{"stable": Kept, "edge": Released}) {
		t.Errorf("reported %v", changes(report))
	}
	d.mustBeWhole()
}

func TestAChannelThatTheFleetNoLongerHasIsCancelled(t *testing.T) {
	d := newDesk(t)
	d.create(ref1)
	delete(d.fleet.Channels, "edge")
	delete(d.fleet.Hosts, "lab-01")
	report := d.create(ref2)
	if _, there := d.index().Channels["edge"]; there {
		t.Error("edge is still in the index")
	}
	if changes(report)["edge"] != Removed || len(report.Warnings) != 1 {
		t.Errorf("reported %+v", report)
	}
	d.mustBeWhole()
}

func TestARefIsReleasedOnceInAChannelForEver(t *testing.T) {
	d := newDesk(t)
	d.create(ref1, channels("stable"))
	d.create(ref2)
	d.create(ref3)
	for _, used := range []string{ref1, ref2, ref3} {
		_, err := Create(context.Background(), d.creation(used, channels("stable")))
		if err == nil || !strings.Contains(err.Error(), used+" was released in channel stable before") {
			t.Errorf("%s again: %v", used, err)
		}
	}
	d.create(ref1, channels("edge")) // edge never had it
	delete(d.fleet.Channels, "edge")
	delete(d.fleet.Hosts, "lab-01")
	d.create("4444444")
	d.fleet.Channels["edge"] = api.FleetChannel{RolloutPolicy: "p", FreshnessWindow: api.Duration(time.Hour)}
	if _, err := Create(context.Background(), d.creation(ref1, channels("edge"))); err == nil {
		t.Error("a channel that was gone for a while forgot its refs")
	}
}

func TestSequencesAreTheGreaterOfTheNextAndTheUnixTime(t *testing.T) {
	d := newDesk(t)
	unix := d.now.Unix()
	sequences := func() [3]int64 {
		p := d.published()
		return [3]int64{p.index.Sequence, p.manifests["stable"].Value().Sequence, p.manifests["edge"].Value().Sequence}
	}
	d.create(ref1)
	if got := sequences(); got != [3]int64{unix, unix, unix} {
		t.Errorf("first: %v, want the Unix time %d", got, unix)
	}
	d.create(ref2, channels("edge")) // in the same second
	if got := sequences(); got != [3]int64{unix + 1, unix, unix + 1} {
		t.Errorf("in the same second: %v", got)
	}
	d.now = d.now.Add(-30 * time.Second) // a clock that was set back a little
	d.create(ref3)
	if got := sequences(); got != [3]int64{unix + 2, unix + 1, unix + 2} {
		t.Errorf("with the clock set back: %v", got)
	}
	d.now = d.now.Add(time.Hour)
	d.create("4444444")
	if got, want := sequences(), d.now.Unix(); got != [3]int64{want, want, want} {
		t.Errorf("an hour later: %v, want the Unix time %d", got, want)
	}
}

func TestAClockThatIsFarBehindReleasesNothing(t *testing.T) {
	d := newDesk(t)
	d.create(ref1)
	d.now = d.now.Add(-time.Hour)
	if _, err := Create(context.Background(), d.creation(ref2)); err == nil || !strings.Contains(err.Error(), "clock is behind") {
		t.Errorf("got %v", err)
	}
}

func TestOfTwoConcurrentJobsOneFails(t *testing.T) {
	for range 20 {
		d := newDesk(t)
		d.create(ref1)
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i, ref := range []string{ref2, ref3} {
			opts := d.creation(ref)
			wg.Go(func() { _, errs[i] = Create(context.Background(), opts) })
		}
		wg.Wait()
		failed := slices.IndexFunc(errs, func(err error) bool { return err != nil })
		switch {
		case failed < 0:
			continue // one began after the other had ended, which is fine
		case errs[1-failed] != nil:
			t.Fatalf("both failed: %v", errs)
		case !errors.Is(errs[failed], ErrChanged):
			t.Fatalf("got %v, not ErrChanged", errs[failed])
		}
		d.mustBeWhole()
	}
}

func TestAJobThatReadTheRepositoryBeforeAnotherPublishedFails(t *testing.T) {
	d := newDesk(t)
	d.create(ref1)
	late := d.creation(ref2)
	r, p, err := open(late.Options, true)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	d.create(ref3)
	draft := newDraft(p, d.now)
	if err := draft.seal(d.signers, d.root(), d.now); err != nil {
		t.Fatal(err)
	}
	if err := draft.publish(context.Background(), r, d.root(), d.now); !errors.Is(err, ErrChanged) {
		t.Errorf("got %v, not ErrChanged", err)
	}
	if d.index().Channels["stable"].RolloutID != "stable@"+ref3 {
		t.Error("the other job's release is gone")
	}
}

func TestWhatIsPublishedIsVerifiedBeforeAnythingIsMadeOfIt(t *testing.T) {
	for name, spoil := range map[string]func(d *desk){
		"an index by an unknown key": func(d *desk) { d.trusted.Release.Keys[0].PublicKey = manifesttest.Key("other").Public().PEM() },
		"a damaged manifest": func(d *desk) {
			d.overwrite(d.index().Channels["stable"].Manifest, []byte("{}"))
		},
		"a manifest that is gone": func(d *desk) {
			if err := os.Remove(filepath.Join(d.repo, objectsFolder, d.index().Channels["stable"].Manifest)); err != nil {
				d.t.Fatal(err)
			}
		},
		"garbage": func(d *desk) {
			if err := os.WriteFile(filepath.Join(d.repo, indexFile), []byte("null"), 0o644); err != nil {
				d.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.create(ref1)
			spoil(d)
			before, err := os.ReadFile(filepath.Join(d.repo, indexFile))
			if err != nil {
				t.Fatal(err)
			}
			d.signers = []trust.Signer{manifesttest.Key("other"), manifesttest.Key(manifesttest.ReleaseKey)}
			if _, err := Create(context.Background(), d.creation(ref2)); err == nil {
				t.Error("a release was made of it")
			}
			after, err := os.ReadFile(filepath.Join(d.repo, indexFile))
			if err != nil || string(before) != string(after) {
				t.Errorf("the index was changed, error %v", err)
			}
		})
	}
}

func TestAfterAStolenKeyWasRemovedEverythingCanBeReleasedAnew(t *testing.T) {
	d := newDesk(t)
	d.create(ref1)
	d.trusted.Release.Keys = []api.TrustKey{manifesttest.Trusted("new", manifesttest.Key("new"))}
	d.signers = []trust.Signer{manifesttest.Key("new")}
	discard := func(o *CreateOptions) { o.DiscardUntrusted = true }
	if _, err := Create(context.Background(), d.creation(ref2)); err == nil {
		t.Error("a release was made of what nobody trusts")
	}
	if _, err := Create(context.Background(), d.creation(ref2, discard, channels("edge"))); err == nil || !strings.Contains(err.Error(), "stable must be released too") {
		t.Errorf("a channel would have been cancelled by the way: %v", err)
	}
	if report := d.create(ref2, discard); len(report.Warnings) != 1 {
		t.Errorf("warned %q", report.Warnings)
	}
	d.mustBeWhole()
}

func TestAnotherPolicyIsForOneReleaseOnly(t *testing.T) {
	d := newDesk(t)
	d.create(ref1, func(o *CreateOptions) { o.Policies = map[string]string{"stable": "urgent"} })
	if m := d.published().manifests["stable"].Value(); m.PolicyName != "urgent" || !m.Policy.IgnoreWindows {
		t.Errorf("the manifest has policy %s", m.PolicyName)
	}
	d.create(ref2)
	if m := d.published().manifests["stable"].Value(); m.PolicyName != "p" {
		t.Errorf("the next one has policy %s", m.PolicyName)
	}
	_, err := Create(context.Background(), d.creation(ref3, func(o *CreateOptions) { o.Policies = map[string]string{"stable": "none"} }))
	if _, ok := errors.AsType[fleet.Problems](err); !ok {
		t.Errorf("an unknown policy: %v", err)
	}
	d.mustBeWhole()
}

func TestMissingHostsAreCarriedOnlyIfAsked(t *testing.T) {
	d := newDesk(t)
	d.create(ref1)
	delete(d.fleet.Hosts, "web-02")
	broken := d.fleet.Hosts["web-01"]
	d.fleet.Hosts["web-01"] = api.FleetHost{System: broken.System, Channel: broken.Channel, Closure: ""}
	// An empty closure is written, not left out: that is how a CI says that it has none.
	unbuilt := func(o *CreateOptions) {
		o.Fleet = []byte(strings.Replace(string(o.Fleet), `"system":"x86_64-linux","channel":"stable"`, `"system":"x86_64-linux","channel":"stable","closure":""`, 1))
	}
	_, err := Create(context.Background(), d.creation(ref2, unbuilt))
	if _, ok := errors.AsType[fleet.Problems](err); !ok {
		t.Errorf("without being asked: %v", err)
	}
	report := d.create(ref2, unbuilt, func(o *CreateOptions) { o.CarryMissing = true })
	if len(report.Warnings) != 2 {
		t.Errorf("warned %q", report.Warnings)
	}
	for _, c := range report.Channels {
		if c.Channel == "stable" && c.Hosts != 2 {
			t.Errorf("stable has %d hosts, not the two it had", c.Hosts)
		}
	}
	d.mustBeWhole()
}

func TestEveryClosureMustBeInTheCacheThatIsRequired(t *testing.T) {
	missing := ""
	var asked sync.Map
	cache := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Method+" "+r.URL.Path, true)
		if strings.Contains(r.URL.Path, missing) && missing != "" {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer cache.Close()
	d := newDesk(t)
	require := func(url string) func(*CreateOptions) { return func(o *CreateOptions) { o.Cache = url } }
	missing = hash
	_, err := Create(context.Background(), d.creation(ref1, require(cache.URL+"/c")))
	lacking, ok := errors.AsType[*CacheError](err)
	if !ok || len(lacking.Missing) != 3 {
		t.Errorf("a cache without them: %v", err)
	}
	if _, ok := asked.Load("HEAD /c/" + hash + ".narinfo"); !ok {
		t.Error("no narinfo was asked for")
	}
	missing = ""
	d.create(ref1, require(cache.URL))
	for _, url := range []string{"ftp://cache", cache.URL + "?trusted=true", "cache", "http://127.0.0.1:1"} {
		if _, err := Create(context.Background(), d.creation(ref2, require(url))); err == nil {
			t.Errorf("%s was taken for a cache that has everything", url)
		}
	}
}

func TestAFleetThatIsNotRightIsNotReleased(t *testing.T) {
	d := newDesk(t)
	d.fleet.Hosts["web-01"] = api.FleetHost{System: "x", Channel: "none", Closure: "none"}
	_, err := Create(context.Background(), d.creation(ref1))
	problems, _ := errors.AsType[fleet.Problems](err)
	if len(problems) != 2 {
		t.Errorf("got %v", err)
	}
	if _, err := Create(context.Background(), d.creation("")); err == nil {
		t.Error("a fleet without a commit was released")
	}
	delete(d.fleet.Hosts, "web-01")
	if _, err := Create(context.Background(), d.creation("")); !errors.Is(err, ErrNoCommit) {
		t.Errorf("without a commit: %v", err)
	}
	if _, err := Create(context.Background(), d.creation(ref1, channels("none"))); err == nil {
		t.Error("a channel that is none was released")
	}
	if entries, err := os.ReadDir(d.repo); err != nil || len(entries) > 0 {
		t.Errorf("the repository has %d files, error %v", len(entries), err)
	}
}

func TestManyReleasesKeepTheIndexSmall(t *testing.T) {
	d := &draft{Index: api.Index{Channels: map[string]api.IndexChannel{}}}
	for i := range 20 {
		d.Index.Channels[fmt.Sprint(i)] = api.IndexChannel{}
	}
	for i := range 3000 {
		d.remember("0", fmt.Sprintf("%064x", i))
	}
	refs := d.Index.Released["0"]
	if len(refs) != 400 || refs[399] != fmt.Sprintf("%064x", 2999) {
		t.Errorf("%d refs are remembered, the last is %s", len(refs), refs[len(refs)-1])
	}
}
