package source

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane/cptest"
	"nixfleet.dev/nixfleet/internal/controlplane/store"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/rollout"
	"nixfleet.dev/nixfleet/internal/trust"
)

// fakeWriter adopts what it is given and keeps objects like a store.
type fakeWriter struct {
	mu      sync.Mutex
	objects map[string][]byte
	known   map[string]rollout.Objects
	adopted []rollout.Adoption
	stored  int // objects given
	err     error
}

func newWriter() *fakeWriter {
	return &fakeWriter{objects: map[string][]byte{}, known: map[string]rollout.Objects{}}
}

func (w *fakeWriter) Adopt(_ context.Context, a rollout.Adoption, objects ...[]byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	for _, data := range objects {
		w.objects[store.Digest(data)] = data
		w.stored++
	}
	for _, r := range a.Releases {
		w.known[r.ID()] = r.Objects()
	}
	w.adopted = append(w.adopted, a)
	return nil
}

func (w *fakeWriter) Known(_ context.Context, id string) (rollout.Objects, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o, ok := w.known[id]
	return o, ok, nil
}

func (w *fakeWriter) Object(_ context.Context, digest string) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if data, ok := w.objects[digest]; ok {
		return data, nil
	}
	return nil, store.ErrNotFound
}

// clockAt is the system's clock, put forward.
type clockAt struct {
	clock.System
	ahead time.Duration
}

func (c *clockAt) Now() time.Time { return c.System.Now().Add(c.ahead) }

// fixture is a repository and a source that reads it.
type fixture struct {
	t       *testing.T
	repo    *cptest.Repo
	writer  *fakeWriter
	clock   *clockAt
	trusted api.Trust
	root    *trust.Root
	dir     string
	log     *bytes.Buffer
	revoked []api.Revocations
	source  *Source
	now     time.Time
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, repo: cptest.NewRepo(t), writer: newWriter(), clock: &clockAt{}, trusted: manifesttest.Trust(), dir: t.TempDir(), log: &bytes.Buffer{}, now: time.Now()}
	f.root = manifesttest.Root(f.trusted)
	f.restart()
	return f
}

// restart is a new process with the same disk.
func (f *fixture) restart() {
	f.t.Helper()
	f.revoked = nil
	var err error
	f.source, err = New(Options{
		URL: f.repo.URL(), Interval: 30 * time.Second, Dir: f.dir, Root: func() *trust.Root { return f.root }, Adopter: f.writer, Objects: f.writer,
		Revoked: func(r api.Revocations) { f.revoked = append(f.revoked, r) }, Clock: f.clock,
		Logger: slog.New(slog.NewTextHandler(f.log, nil)), Metrics: prometheus.NewRegistry(), Random: func() float64 { return .5 },
	})
	if err == nil {
		err = f.source.Restore()
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) add(channel, ref string, sequence int64, edit func(*api.Manifest), signers ...trust.Signer) cptest.Release {
	return f.repo.Add(cptest.Fleet(channel, 3, ref), channel, ref, sequence, f.now, edit, signers...)
}

// expect polls once and checks what comes of it; a refusal must have the code, if any is given.
func (f *fixture) expect(result string, code api.Code) {
	f.t.Helper()
	before := len(f.writer.adopted)
	got, err := f.source.look(f.t.Context())
	if got != result || (code != "" && trust.CodeOf(err) != code) {
		f.t.Fatalf("got %s (%v), want %s %s", got, err, result, code)
	}
	if news := len(f.writer.adopted) > before; news != (result == adopted) {
		f.t.Fatalf("%s, and adopted: %v", got, news)
	}
}

func TestAReleaseIsAdoptedWholeAndOnce(t *testing.T) {
	f := newFixture(t)
	f.expect(unreachable, "")
	r := f.add("stable", "0a1b2c3d", 100, nil)
	f.repo.Publish(f.repo.Index(100, f.now, r))
	f.expect(adopted, "")
	a := f.writer.adopted[0]
	if a.Sequence != 100 || len(a.Releases) != 1 || a.Releases[0].ID() != r.ID || len(a.Fleet.Hosts) != 3 || f.writer.stored != 3 {
		t.Fatalf("adopted %+v with %d objects", a, f.writer.stored)
	}
	f.expect(unchanged, "")

	// Another channel: only its objects are fetched.
	both := cptest.Fleet("stable", 3, "0a1b2c3d")
	edge := f.add("edge", "0b1b2c3d", 101, nil)
	f.repo.Publish(f.repo.Index(101, f.now, r, edge))
	if err := os.Remove(f.repo.Object(r.Entry.Manifest)); err != nil {
		t.Fatal(err)
	}
	f.expect(adopted, "")
	if f.writer.stored != 6 || len(f.writer.adopted[1].Releases) != 2 {
		t.Errorf("%d objects, of %d channels", f.writer.stored, len(both.Channels))
	}
	// After a restart the same index is adopted again, without fetching anything, for the log may be gone.
	f.restart()
	f.expect(adopted, "")
	if f.writer.stored != 6 {
		t.Errorf("%d objects", f.writer.stored)
	}
}

func TestAnythingWrongRefusesTheWhole(t *testing.T) {
	stranger := manifesttest.Key("stranger")
	for name, test := range map[string]struct {
		publish func(f *fixture, good, r cptest.Release)
		code    api.Code
	}{
		"garbage":      {func(f *fixture, _, _ cptest.Release) { f.repo.PublishRaw([]byte("garbage")) }, api.CodeSignatureInvalid},
		"another type": {func(f *fixture, _, r cptest.Release) { f.repo.PublishRaw(r.Envelope) }, ""},
		"too large": {func(f *fixture, _, _ cptest.Release) {
			f.repo.PublishRaw(make([]byte, trust.MaxEnvelope(api.MaxIndex)+1))
		}, ""},
		"a strange key": {func(f *fixture, g, r cptest.Release) { f.repo.Publish(f.repo.Index(101, f.now, g, r), stranger) }, api.CodeSignatureInvalid},
		"a stale index": {func(f *fixture, g, r cptest.Release) {
			f.repo.Publish(f.repo.Index(101, f.now.Add(-100*time.Hour), g, r))
		}, api.CodeStale},
		"an index of the future": {func(f *fixture, g, r cptest.Release) {
			f.repo.Publish(f.repo.Index(101, f.now.Add(time.Hour), g, r))
		}, api.CodeSignedInFuture},
		"a lower sequence":                      {func(f *fixture, g, r cptest.Release) { f.repo.Publish(f.repo.Index(99, f.now, g, r)) }, api.CodeRollbackRefused},
		"the same position with something else": {func(f *fixture, g, r cptest.Release) { f.repo.Publish(f.repo.Index(100, f.now, g, r)) }, api.CodeRollbackRefused},
		"a missing object": {func(f *fixture, g, r cptest.Release) {
			must(f.t, os.Remove(f.repo.Object(r.Entry.Hosts)))
			f.repo.Publish(f.repo.Index(101, f.now, g, r))
		}, ""},
		"an altered object": {func(f *fixture, g, r cptest.Release) {
			must(f.t, os.WriteFile(f.repo.Object(r.Entry.Hosts), []byte("x"), 0o600))
			f.repo.Publish(f.repo.Index(101, f.now, g, r))
		}, api.CodeIdentityMismatch},
		"a signed object in another's place": {func(f *fixture, g, r cptest.Release) {
			index := f.repo.Index(101, f.now, g, r)
			declared := cptest.Fleet("stable", 5, "2")
			declared.SignedAt = f.now.UTC()
			index.Fleet = f.repo.Put(f.repo.Sign(api.PayloadFleet, declared))
			must(f.t, os.Rename(f.repo.Object(g.Entry.Fleet), f.repo.Object(index.Fleet)))
			f.repo.Publish(index)
		}, api.CodeIdentityMismatch},
		"an object that is a folder": {func(f *fixture, g, r cptest.Release) {
			must(f.t, os.Remove(f.repo.Object(r.Entry.Hosts)))
			must(f.t, os.Mkdir(f.repo.Object(r.Entry.Hosts), 0o755))
			f.repo.Publish(f.repo.Index(101, f.now, g, r))
		}, ""},
		"an object that leads outside": {func(f *fixture, g, r cptest.Release) {
			outside := filepath.Join(f.t.TempDir(), "x")
			must(f.t, os.Rename(f.repo.Object(r.Entry.Hosts), outside))
			must(f.t, os.Symlink(outside, f.repo.Object(r.Entry.Hosts)))
			f.repo.Publish(f.repo.Index(101, f.now, g, r))
		}, ""},
		"other hosts": {func(f *fixture, g, r cptest.Release) {
			r.Entry.Hosts = g.Entry.Hosts
			f.repo.Publish(f.repo.Index(101, f.now, g, r))
		}, api.CodeIdentityMismatch},
		"another fleet": {func(f *fixture, g, r cptest.Release) {
			r.Entry.Fleet = g.Entry.Fleet
			f.repo.Publish(f.repo.Index(101, f.now, g, r))
		}, api.CodeIdentityMismatch},
		"a manifest under another id": {func(f *fixture, g, r cptest.Release) {
			r.Entry.RolloutID = "edge@ffffffff"
			f.repo.Publish(f.repo.Index(101, f.now, g, r))
		}, api.CodeIdentityMismatch},
		"a manifest of a strange key": {func(f *fixture, g, _ cptest.Release) {
			f.repo.Publish(f.repo.Index(101, f.now, g, f.add("edge", "0c1b2c3d", 101, nil, stranger)))
		}, api.CodeSignatureInvalid},
		"an older manifest": {func(f *fixture, _, _ cptest.Release) {
			f.repo.Publish(f.repo.Index(101, f.now, f.add("stable", "0c1b2c3d", 50, nil)))
		}, api.CodeRollbackRefused},
		"a known id with other hosts": {func(f *fixture, _, _ cptest.Release) {
			f.repo.Publish(f.repo.Index(101, f.now, f.repo.Add(cptest.Fleet("stable", 2, "x"), "stable", "0a1b2c3d", 101, f.now, nil)))
		}, api.CodeIdentityMismatch},
		"a fleet that contradicts itself": {func(f *fixture, g, r cptest.Release) {
			bad := r.Fleet
			bad.Channels = nil
			index := f.repo.Index(101, f.now, g, r)
			index.Fleet = f.repo.Put(f.repo.Sign(api.PayloadFleet, bad))
			f.repo.Publish(index)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			good := f.add("stable", "0a1b2c3d", 100, nil)
			f.repo.Publish(f.repo.Index(100, f.now, good))
			f.expect(adopted, "")
			r := f.add("edge", "0b1b2c3d", 101, nil)
			test.publish(f, good, r)
			result, err := f.source.look(t.Context())
			if err == nil || result == adopted || len(f.writer.adopted) != 1 {
				t.Fatalf("got %s, %v", result, err)
			}
			if test.code != "" && trust.CodeOf(err) != test.code {
				t.Errorf("refused with %v, want %s", err, test.code)
			}
			// It stays refused after a restart, and what is good is adopted then.
			f.restart()
			if result, _ := f.source.look(t.Context()); result == adopted {
				t.Error("adopted after a restart")
			}
			f.repo.Publish(f.repo.Index(102, f.now, good, f.add("edge", "0d1b2c3d", 102, nil)))
			f.expect(adopted, "")
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) revocations(sequence int64, hosts ...string) *string {
	list := api.Revocations{SchemaVersion: 1, Sequence: sequence, SignedAt: f.now.UTC().Truncate(time.Second)}
	for _, host := range hosts {
		list.Hosts = append(list.Hosts, api.RevokedHost{Hostname: host, CertificatesIssuedBefore: f.now.UTC().Truncate(time.Second)})
	}
	object := f.repo.Put(f.repo.Sign(api.PayloadRevocations, list))
	return &object
}

func TestRevocationsNeitherGoBackNorAway(t *testing.T) {
	f := newFixture(t)
	r := f.add("stable", "0a1b2c3d", 100, nil)
	sequence := int64(100)
	publish := func(revocations *string) {
		sequence++
		index := f.repo.Index(sequence, f.now, r)
		index.Revocations = revocations
		f.repo.Publish(index)
	}
	publish(nil)
	f.expect(adopted, "")
	two, one := f.revocations(2, "web-09", "web-10"), f.revocations(1, "web-09")
	publish(two)
	f.expect(adopted, "")
	for name, object := range map[string]*string{"gone": nil, "older": one, "the same sequence with fewer": f.revocations(2, "web-09")} {
		publish(object)
		if result, err := f.source.look(t.Context()); result != refused || trust.CodeOf(err) != api.CodeRollbackRefused {
			t.Errorf("%s: %s, %v", name, result, err)
		}
		f.restart()
		if len(f.revoked) != 1 || len(f.revoked[0].Hosts) != 2 {
			t.Errorf("%s: after a restart %v count", name, f.revoked)
		}
		if result, err := f.source.look(t.Context()); result != refused || trust.CodeOf(err) != api.CodeRollbackRefused {
			t.Errorf("%s, after a restart: %s, %v", name, result, err)
		}
	}
	publish(f.revocations(3, "web-09"))
	f.expect(adopted, "")
	if last := f.revoked[len(f.revoked)-1]; last.Sequence != 3 {
		t.Errorf("in force: %+v", last)
	}
}

// TestRemovingAStolenKeyUndoesItsJumpAhead lets a thief push index, revocations and a channel far into
// the future; then the key is removed, and releases with ordinary sequences are adopted again.
func TestRemovingAStolenKeyUndoesItsJumpAhead(t *testing.T) {
	f := newFixture(t)
	thief := manifesttest.Key("stolen")
	f.trusted.Release.Keys = append(f.trusted.Release.Keys, manifesttest.Trusted("stolen", thief))
	f.root = manifesttest.Root(f.trusted)
	good := f.add("stable", "0a1b2c3d", 100, nil)
	f.repo.Publish(f.repo.Index(100, f.now, good))
	f.expect(adopted, "")

	jump := f.add("stable", "0e1b2c3d", 1<<50, nil, thief)
	index := f.repo.Index(1<<50, f.now, jump)
	list := api.Revocations{SchemaVersion: 1, Sequence: 1 << 50, SignedAt: f.now.UTC().Truncate(time.Second)}
	object := f.repo.Put(f.repo.Sign(api.PayloadRevocations, list, thief))
	index.Revocations = &object
	f.repo.Publish(index, thief)
	f.expect(adopted, "")

	fixed := f.add("stable", "0f1b2c3d", 102, nil)
	f.repo.Publish(f.repo.Index(102, f.now, fixed))
	f.expect(refused, api.CodeRollbackRefused)

	f.trusted.Release.Keys = f.trusted.Release.Keys[:1]
	f.root = manifesttest.Root(f.trusted)
	f.expect(adopted, "")
	f.restart()
	f.expect(adopted, "")
}

func TestARemovedKeyIsNoticedWithoutANewIndex(t *testing.T) {
	f := newFixture(t)
	f.repo.Publish(f.repo.Index(100, f.now, f.add("stable", "0a1b2c3d", 100, nil)))
	f.expect(adopted, "")
	other := manifesttest.Trust()
	other.Release.Keys = []api.TrustKey{manifesttest.Trusted("other", manifesttest.Key("other"))}
	f.root = manifesttest.Root(other)
	f.expect(refused, api.CodeSignatureInvalid)
}

func TestARemovedKeyIsNoticedWhereTheServerSaysThatNothingChanged(t *testing.T) {
	f := newFixture(t)
	f.repo.Publish(f.repo.Index(100, f.now, f.add("stable", "0a1b2c3d", 100, nil)))
	files := http.FileServer(http.Dir(f.repo.Dir))
	unchanged304 := 0
	f.source.fetcher = web(t, "", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		if r.Header.Get("If-None-Match") != "" {
			unchanged304++
		}
		http.StripPrefix("/releases", files).ServeHTTP(w, r)
	})
	f.expect(adopted, "")
	f.expect(unchanged, "")
	f.root = manifesttest.Root(f.trusted) // the same keys, read again
	f.expect(adopted, "")
	other := manifesttest.Trust()
	other.Release.Keys = []api.TrustKey{manifesttest.Trusted("other", manifesttest.Key("other"))}
	f.root = manifesttest.Root(other)
	f.expect(refused, api.CodeSignatureInvalid)
	if unchanged304 != 3 {
		t.Errorf("asked %d times by entity tag", unchanged304)
	}
}

// TestAStaleChannelDoesNotHoldUpTheOthers leaves one channel without a refresh for longer than its
// window: it stays as it was, and another one is released.
func TestAStaleChannelDoesNotHoldUpTheOthers(t *testing.T) {
	f := newFixture(t)
	r := f.add("stable", "0a1b2c3d", 100, nil)
	f.repo.Publish(f.repo.Index(100, f.now, r))
	f.expect(adopted, "")
	f.clock.ahead = 100 * time.Hour
	f.now = f.now.Add(f.clock.ahead)
	edge := f.add("edge", "0b1b2c3d", 101, nil)
	f.repo.Publish(f.repo.Index(101, f.now, r, edge))
	f.expect(adopted, "")
	if !strings.Contains(f.log.String(), "it stays as it was") {
		t.Errorf("the log: %s", f.log)
	}
	// One that was never adopted is refused.
	f.dir = t.TempDir()
	f.writer = newWriter()
	f.restart()
	f.expect(refused, api.CodeStale)
}

func TestAFailedAdoptionIsTriedAgain(t *testing.T) {
	f := newFixture(t)
	f.repo.Publish(f.repo.Index(100, f.now, f.add("stable", "0a1b2c3d", 100, nil)))
	f.writer.err = errors.New("the disk is full")
	f.expect(refused, "")
	f.writer.err = nil
	f.expect(adopted, "")
}

func TestSignaturesThatGrowOldAreWarnedOfOnce(t *testing.T) {
	f := newFixture(t)
	f.repo.Publish(f.repo.Index(100, f.now, f.add("stable", "0a1b2c3d", 100, nil)))
	f.expect(adopted, "")
	count := func(text string) int {
		f.source.warn()
		f.source.warn()
		return strings.Count(f.log.String(), text)
	}
	const old, stale = "this channel's signature grows old", "agents refuse this channel's manifest"
	f.clock.ahead = 53 * time.Hour
	if n := count(old); n != 0 {
		t.Errorf("warned %d times too early", n)
	}
	f.clock.ahead = 55 * time.Hour
	if n := count(old); n != 1 {
		t.Errorf("warned %d times", n)
	}
	f.restart()
	f.clock.ahead = 73 * time.Hour
	if n := count(stale); n != 1 {
		t.Errorf("said %d times that it is stale", n)
	}
}

func TestAFailureIsLoggedWhenItChangesAndNowAndThen(t *testing.T) {
	f := newFixture(t)
	for range 5 {
		f.source.poll(t.Context())
	}
	if n := strings.Count(f.log.String(), "unreachable"); n != 1 {
		t.Errorf("logged %d times", n)
	}
	f.clock.ahead = repeatAfter
	f.source.poll(t.Context())
	if n := strings.Count(f.log.String(), "unreachable"); n != 2 {
		t.Errorf("logged %d times", n)
	}
	f.repo.Publish(f.repo.Index(100, f.now, f.add("stable", "0a1b2c3d", 100, nil)))
	f.source.poll(t.Context())
	if !strings.Contains(f.log.String(), "well again") {
		t.Error("the recovery is not logged")
	}
}

func TestPollsAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.source.clock = clock.System{}
		random := []float64{0, .999999, .5}
		var at []time.Time
		f.source.random = func() float64 {
			at = append(at, time.Now())
			return random[len(at)%3]
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		f.source.Run(ctx)
		for i := 1; i < len(at); i++ {
			if d := at[i].Sub(at[i-1]); d < 27*time.Second || d > 33*time.Second {
				t.Errorf("a pause of %v", d)
			}
		}
		if len(at) < 9 {
			t.Errorf("%d polls in 5 minutes", len(at))
		}
	})
}
