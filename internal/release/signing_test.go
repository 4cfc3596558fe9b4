package release

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

// people makes stable a channel that two of alice, bob and carol must sign.
func (d *desk) people() {
	for _, name := range []string{"alice", "bob", "carol"} {
		d.trusted.Release.Keys = append(d.trusted.Release.Keys, manifesttest.Trusted(name, manifesttest.Key(name)))
	}
	d.trusted.Channels = map[string]api.TrustChannel{"stable": {Threshold: 2, Keys: []string{"alice", "bob", "carol"}}}
}

func (d *desk) draft() string { return filepath.Join(filepath.Dir(d.repo), "draft") }

func (d *desk) sign(names ...string) Report {
	d.t.Helper()
	opts := Options{Root: d.root(), Now: d.now, DraftDir: d.draft()}
	for _, name := range names {
		opts.Signers = append(opts.Signers, manifesttest.Key(name))
	}
	report, err := Sign(opts)
	if err != nil {
		d.t.Fatal(err)
	}
	return report
}

func (d *desk) publish() error {
	_, err := Publish(context.Background(), Options{Repo: d.repo, Root: d.root(), Now: d.now, DraftDir: d.draft()})
	return err
}

func TestWhatNeedsOthersSignaturesIsNotPublishedWithout(t *testing.T) {
	d := newDesk(t)
	d.people()
	_, err := Create(context.Background(), d.creation(ref1))
	unsigned, ok := errors.AsType[*UnsignedError](err)
	if !ok || len(unsigned.Missing) != 1 || !strings.Contains(err.Error(), "stable@"+ref1) {
		t.Errorf("got %v", err)
	}
	if entries, _ := os.ReadDir(filepath.Join(d.repo, objectsFolder)); len(entries) > 0 {
		t.Errorf("%d objects were written", len(entries))
	}
}

func TestSeveralPeopleSignADraft(t *testing.T) {
	d := newDesk(t)
	d.people()
	report := d.create(ref1, func(o *CreateOptions) { o.DraftDir = d.draft() })
	if report.Published || len(report.Missing) == 0 {
		t.Fatalf("reported %+v", report)
	}
	if err := d.publish(); err == nil {
		t.Fatal("it was published by the CI's key alone")
	}
	if report := d.sign("alice"); len(report.Missing) == 0 {
		t.Fatal("one of two is taken for enough")
	}
	if report := d.sign("bob"); len(report.Missing) != 0 {
		t.Fatalf("with two of two, missing: %q", report.Missing)
	}
	if err := d.publish(); err != nil {
		t.Fatal(err)
	}
	d.mustBeWhole()
}

func TestAnIndexThatNeedsTwoIsSignedOnceItsPartsAre(t *testing.T) {
	d := newDesk(t)
	d.people()
	d.trusted.Release.Threshold = 2
	d.create(ref1, func(o *CreateOptions) { o.DraftDir = d.draft() })
	d.sign("alice")
	if report := d.sign("bob"); len(report.Missing) != 1 || !strings.Contains(report.Missing[0], "index") {
		t.Fatalf("missing: %q, want the index", report.Missing)
	}
	if report := d.sign("alice"); len(report.Missing) != 0 {
		t.Fatalf("missing: %q", report.Missing)
	}
	if err := d.publish(); err != nil {
		t.Fatal(err)
	}
	d.mustBeWhole()
}

func TestADraftThatWasTamperedWithIsNotPublished(t *testing.T) {
	for name, tamper := range map[string]func(t *testing.T, dir string){
		"a part was changed after the index was signed": func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, "stable"+hostsSuffix), `"wave":0`, `"wave":1`)
		},
		"a channel was put under another name": func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, draftFile), `"stable": {`, `"other": {`)
		},
		"a manifest is of another draft": func(t *testing.T, dir string) {
			data, err := os.ReadFile(filepath.Join(dir, "edge"+manifestSuffix))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "stable"+manifestSuffix), data, 0o644); err != nil {
				t.Fatal(err)
			}
		},
		"its index is described otherwise than it was signed": func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, draftFile), `"freshnessWindow": "24h"`, `"freshnessWindow": "48h"`)
		},
		"a file is outside": func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, draftFile), `"stable`+manifestSuffix, `"../stable`+manifestSuffix)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.create(ref1, func(o *CreateOptions) { o.DraftDir = d.draft() })
			tamper(t, d.draft())
			if err := d.publish(); err == nil {
				t.Error("it was published")
			}
			if _, err := os.Stat(filepath.Join(d.repo, indexFile)); err == nil {
				t.Error("there is an index")
			}
		})
	}
}

func edit(t *testing.T, path, old, now string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(data), old) {
		t.Fatalf("%s has no %s: %v", path, old, err)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(data), old, now)), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestADraftIsOfTheRepositoryThatItWasMadeFrom(t *testing.T) {
	d := newDesk(t)
	d.create(ref1, func(o *CreateOptions) { o.DraftDir = d.draft() })
	d.create(ref2)
	if err := d.publish(); !errors.Is(err, ErrChanged) {
		t.Errorf("got %v, not ErrChanged", err)
	}
}

func TestADraftIsNotWrittenOverOtherFiles(t *testing.T) {
	d := newDesk(t)
	if err := os.Mkdir(d.draft(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.draft(), "mine"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(context.Background(), d.creation(ref1, func(o *CreateOptions) { o.DraftDir = d.draft() })); err == nil {
		t.Error("it was")
	}
}

func TestADraftThatOthersSignedIsNotMadeAnew(t *testing.T) {
	d := newDesk(t)
	intoDraft := func(o *CreateOptions) { o.DraftDir = d.draft() }
	d.create(ref1, intoDraft)
	before, err := os.ReadFile(filepath.Join(d.draft(), draftFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(context.Background(), d.creation(ref2, intoDraft)); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("a second release into the same draft gave %v", err)
	}
	if after, err := os.ReadFile(filepath.Join(d.draft(), draftFile)); err != nil || string(after) != string(before) {
		t.Errorf("the draft was changed (%v)", err)
	}
}

func TestADraftThatCannotBeKeptLeavesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "draft")
	half := &draft{files: map[string][]byte{"a": nil, "no/such/folder": nil}}
	if err := half.create(dir); err == nil {
		t.Fatal("a file in a folder that is not there was written")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it left %v (%v)", left, err)
	}
}

func TestADraftThatLayAroundForTooLongIsStale(t *testing.T) {
	d := newDesk(t)
	d.create(ref1, func(o *CreateOptions) { o.DraftDir = d.draft() })
	d.now = d.now.Add(100 * time.Hour)
	err := d.publish()
	if _, ok := errors.AsType[*UnsignedError](err); !ok || !strings.Contains(err.Error(), "stale") {
		t.Errorf("got %v", err)
	}
}

func TestRevocationsOnlyGrow(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		base := manifesttest.Time
		names := []string{"a", "b", "c"}
		latest := map[string]time.Time{}
		list := &published{}
		for range rapid.IntRange(1, 6).Draw(rt, "revocations") {
			picked := rapid.SliceOfN(rapid.SampledFrom(names), 1, 3).Draw(rt, "hosts")
			before := base.Add(time.Duration(rapid.IntRange(-5, 5).Draw(rt, "before")) * time.Hour)
			opts := RevokeOptions{Options: Options{Now: base}, Hosts: picked, Before: before}
			var sequence int64
			if list.revocations != nil {
				sequence = list.revocations.Value().Sequence
			}
			merged := opts.merged(list, base)
			if merged.Sequence <= sequence {
				rt.Fatalf("sequence %d after %d", merged.Sequence, sequence)
			}
			for _, name := range picked {
				if latest[name].Before(before) {
					latest[name] = before
				}
			}
			got := map[string]time.Time{}
			for _, h := range merged.Hosts {
				got[h.Hostname] = h.CertificatesIssuedBefore
			}
			if len(merged.Hosts) != len(got) || !cmp.Equal(latest, got) {
				rt.Fatalf("revoked %v, the list is %+v", latest, merged.Hosts)
			}
			list.revocations = verified(t, merged)
		}
	})
}

// verified passes a revocation list through a signature, which is the only way to a Verified.
func verified(t *testing.T, list api.Revocations) *trust.Verified[api.Revocations] {
	d := newDesk(t)
	dr := &draft{files: map[string][]byte{}}
	if err := dr.add("r", api.PayloadRevocations, mustJSON(t, list), d.signers); err != nil {
		t.Fatal(err)
	}
	v, err := trust.VerifyRevocations(d.root(), dr.files["r"], d.now)
	if err != nil {
		t.Fatal(err)
	}
	return &v
}

func TestRevocationsArePublishedAndSurviveReleases(t *testing.T) {
	d := newDesk(t)
	if _, err := Revoke(context.Background(), RevokeOptions{Options: d.options(), Hosts: []string{"web-09"}, Before: d.now}); err == nil {
		t.Error("there was nothing to revoke in")
	}
	d.create(ref1)
	before := d.index()
	nonce := strings.Repeat("0a", 16)
	report, err := Revoke(context.Background(), RevokeOptions{
		Options: d.options(), Hosts: []string{"web-09"}, Operators: []string{"bob"}, Tokens: []string{nonce}, Before: d.now, Reason: "left",
	})
	if err != nil || *report.Revoked != (RevocationCount{1, 1, 1}) {
		t.Fatalf("reported %+v, error %v", report, err)
	}
	d.create(ref2)
	p := d.published()
	if p.index.Sequence <= before.Sequence || p.revocations == nil || p.revocations.Value().Operators[0].Name != "bob" {
		t.Errorf("the revocations are %+v", p.revocations)
	}
	d.mustBeWhole()
	for name, opts := range map[string]RevokeOptions{
		"nothing":     {},
		"a bad host":  {Hosts: []string{"Web"}},
		"a bad nonce": {Tokens: []string{"x"}},
		"no name":     {Operators: []string{""}},
	} {
		opts.Options = d.options()
		if _, err := Revoke(context.Background(), opts); err == nil {
			t.Errorf("%s was revoked", name)
		}
	}
}

func TestVerifyingTellsWhatIsOldFromWhatIsWrong(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(d *desk)
		want  State
	}{
		"fresh":           {func(*desk) {}, Good},
		"a day later":     {func(d *desk) { d.now = d.now.Add(25 * time.Hour) }, Stale}, // edge and the index
		"from the future": {func(d *desk) { d.now = d.now.Add(-time.Hour) }, Stale},
		"a lost object": {func(d *desk) {
			if err := os.Remove(filepath.Join(d.repo, objectsFolder, d.index().Channels["stable"].Hosts)); err != nil {
				d.t.Fatal(err)
			}
		}, Invalid},
		"a damaged object that is also old": {func(d *desk) {
			d.overwrite(d.index().Channels["edge"].Hosts, []byte("x\n"))
			d.now = d.now.Add(1000 * time.Hour)
		}, Invalid},
		"hosts of another channel, also old": {func(d *desk) {
			d.reindex(func(index *api.Index) {
				entry := index.Channels["stable"]
				entry.Hosts = index.Channels["edge"].Hosts
				index.Channels["stable"] = entry
			})
			d.now = d.now.Add(1000 * time.Hour)
		}, Invalid},
		"another key": {func(d *desk) { d.trusted.Release.Keys[0].PublicKey = manifesttest.Key("other").Public().PEM() }, Invalid},
		"nothing there": {func(d *desk) {
			if err := os.Remove(filepath.Join(d.repo, indexFile)); err != nil {
				d.t.Fatal(err)
			}
		}, Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.create(ref1)
			test.spoil(d)
			r, err := OpenRepo(d.repo)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			v, err := VerifyRepo(r, d.root(), d.now)
			if err != nil || v.State != test.want || (test.want == Good) != (len(v.Findings) == 0) {
				t.Errorf("got %s with %+v, error %v; want %s", v.State, v.Findings, err, test.want)
			}
		})
	}
}

// reindex publishes an index that is rightly signed, and says what no job would make it say.
func (d *desk) reindex(change func(*api.Index)) {
	d.t.Helper()
	r, err := OpenRepo(d.repo)
	if err != nil {
		d.t.Fatal(err)
	}
	defer r.Close()
	dr := newDraft(d.published(), d.now)
	change(&dr.Index)
	if err := dr.seal(d.signers, d.root(), d.now); err != nil {
		d.t.Fatal(err)
	}
	if err := r.publish(context.Background(), dr.Base, nil, dr.sealed); err != nil {
		d.t.Fatal(err)
	}
}

func TestAManifestUnderAnotherChannelIsRefused(t *testing.T) {
	d := newDesk(t)
	d.create(ref1)
	d.reindex(func(index *api.Index) { index.Channels["stable"] = index.Channels["edge"] })
	if _, err := Create(context.Background(), d.creation(ref2)); trust.CodeOf(err) != api.CodeIdentityMismatch {
		t.Errorf("got %v", err)
	}
}
