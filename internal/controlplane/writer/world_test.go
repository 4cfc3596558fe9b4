package writer

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane/store"
	"nixfleet.dev/nixfleet/internal/controlplane/store/sqlite"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/rollout"
	"nixfleet.dev/nixfleet/internal/trust"
)

// release is a release of channel stable with all that it takes to adopt it.
type release struct {
	id       string
	adoption rollout.Adoption
	objects  [][]byte
}

// newRelease makes one for n hosts in so many waves without a soak, the generation-th of its channel.
func newRelease(t testing.TB, n, generation, waves int) release {
	t.Helper()
	now := time.Now().UTC().Truncate(time.Second).Add(time.Duration(generation) * time.Second)
	declared := api.Fleet{
		SchemaVersion: api.SchemaVersion, SignedAt: now, Commit: fmt.Sprintf("0a1b2c3d%02d", generation),
		Hosts:    map[string]api.FleetHost{},
		Channels: map[string]api.FleetChannel{"stable": {RolloutPolicy: "all", FreshnessWindow: api.Duration(72 * time.Hour)}},
	}
	for i := range n {
		declared.Hosts[manifesttest.Hostname(i)] = api.FleetHost{
			System: "x86_64-linux", Channel: "stable", Closure: manifesttest.Closure(manifesttest.Hostname(i), declared.Commit),
		}
	}
	payload, err := json.Marshal(declared, json.Deterministic(true))
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := trust.Sign(api.PayloadFleet, payload, manifesttest.Key(manifesttest.ReleaseKey))
	if err != nil {
		t.Fatal(err)
	}
	made := manifesttest.New(manifesttest.Options{
		Ref: declared.Commit, Sequence: now.Unix(), ReleasedAt: now.Add(-time.Hour), SignedAt: now.Add(-time.Hour), Hosts: n,
		Policy: api.Policy{Waves: make([]api.Wave, waves)},
		Edit:   func(m *api.Manifest) { m.FleetDigest = trust.Digest(payload) },
	})
	root := manifesttest.Root(manifesttest.Trust())
	verified, err := manifest.VerifyStored(root, made.ID, made.Envelope, now)
	if err != nil {
		t.Fatal(err)
	}
	objects := rollout.Objects{
		Manifest: trust.Digest(made.Envelope), Hosts: trust.Digest(made.HostsFile), Fleet: trust.Digest(envelope),
	}
	return release{
		id:      made.ID,
		objects: [][]byte{envelope, made.Envelope, made.HostsFile},
		adoption: rollout.Adoption{
			Sequence: now.Unix(), SignedAt: now, Fleet: declared, Object: objects.Fleet,
			Releases: []rollout.Release{rollout.NewRelease(verified, made.Hosts, objects)},
		},
	}
}

// registry is a Registry that remembers what is offered.
type registry struct {
	mu     sync.Mutex
	offers map[string]*api.Dispatch
	sets   int
}

func newRegistry() *registry { return &registry{offers: map[string]*api.Dispatch{}} }

func (r *registry) Set(host string, d *api.Dispatch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sets++
	r.offers[host] = d
}

func (r *registry) offer(host string) *api.Dispatch {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.offers[host]
}

// agent is a host that does at once what it is offered. What it has to tell is kept until it is
// acknowledged, as a journal would.
type agent struct {
	host      string
	journalID string
	current   string
	streams   map[string]*stream
}

type stream struct {
	events []api.Event
	acked  int64 // as the control plane last said
	most   int64 // that it ever said
}

func newAgent(i int) *agent {
	host := manifesttest.Hostname(i)
	return &agent{
		host: host, journalID: fmt.Sprintf("%032x", i+1), current: manifesttest.Closure(host, "old"),
		streams: map[string]*stream{},
	}
}

func (a *agent) heartbeat() api.Heartbeat {
	hb := api.Heartbeat{
		Hostname: a.host, JournalID: a.journalID, At: time.Now().UTC(), AgentVersion: "1", BootID: "b",
		CurrentClosure: a.current, BootClosure: a.current, TrustSHA256: strings.Repeat("0", 64), LastSeq: map[string]int64{},
	}
	for id, s := range a.streams {
		hb.LastSeq[id] = int64(len(s.events))
	}
	return hb
}

// beat sends a heartbeat and takes to heart what the answer asks for.
func (a *agent) beat(ctx context.Context, w *Writer) error {
	reply, err := w.Heartbeat(ctx, a.heartbeat())
	if err != nil {
		return err
	}
	for id, from := range reply.ReplayFrom {
		a.streams[id].acked = from - 1
	}
	return nil
}

// follow does what the host is offered, and journals it.
func (a *agent) follow(d *api.Dispatch) {
	if d == nil || d.Action != api.ActionActivate {
		return
	}
	s := a.streams[d.RolloutID]
	if s == nil {
		s = &stream{}
		a.streams[d.RolloutID] = s
	}
	for _, e := range s.events {
		if e.Kind == api.DispatchAck && e.Attempt == d.Attempt {
			return
		}
	}
	now := time.Now().UTC()
	s.events = append(s.events, activation(int64(len(s.events)), a.current, *d, now)...)
	a.current = d.TargetClosure
}

// activation is what a host has to tell of one that went well, after the event seq.
func activation(seq int64, previous string, d api.Dispatch, at time.Time) []api.Event {
	events := []api.Event{
		{
			Kind: api.DispatchAck, Attempt: d.Attempt, Wave: d.Wave, PreviousClosure: previous, TargetClosure: d.TargetClosure,
			SoakDueAt: d.SoakDueAt, EnqueuedAt: d.EnqueuedAt, ManifestSHA256: strings.Repeat("0", 64),
		},
		{Kind: api.ActivationStarted, Method: api.MethodSwitch},
		{Kind: api.ActivationCompleted, ObservedClosure: d.TargetClosure},
		{Kind: api.ProbesDeclared, Probes: []api.DeclaredProbe{{Name: "up", Kind: api.ProbeHTTP, Mode: api.ModeEnforce}}},
		{Kind: api.ProbeResult, Probe: "up", ProbeKind: api.ProbeHTTP, Mode: api.ModeEnforce, Status: api.ProbePass},
		{Kind: api.Converged, ObservedClosure: d.TargetClosure},
	}
	for i := range events {
		events[i].Seq, events[i].At = seq+1+int64(i), at
	}
	if soaked := d.SoakDueAt; soaked.After(at) {
		events[5].At = soaked
	}
	return events
}

// tell sends what was not acknowledged, at most so many events at a time.
func (a *agent) tell(ctx context.Context, w *Writer, batch int) error {
	for _, id := range slices.Sorted(maps.Keys(a.streams)) {
		s := a.streams[id]
		for s.acked < int64(len(s.events)) {
			part := s.events[s.acked:min(s.acked+int64(batch), int64(len(s.events)))]
			ack, err := w.Events(ctx, a.host, api.EventBatch{Hostname: a.host, JournalID: a.journalID, RolloutID: id, Events: part})
			var gap *rollout.SequenceGap
			var unknown *rollout.UnknownRollout
			switch {
			case errors.As(err, &gap):
				s.acked = gap.Expected - 1
				continue
			case errors.As(err, &unknown):
				return a.beat(ctx, w)
			case err != nil:
				return err
			case len(ack.Refused) > 0:
				return fmt.Errorf("%s: event refused: %+v", a.host, ack.Refused)
			}
			s.acked = ack.AckedSeq
			s.most = max(s.most, s.acked)
		}
	}
	return nil
}

// world is a control plane's writer on a real database, which can be killed and started again.
type world struct {
	t        *testing.T
	dir      string
	store    store.Store
	wrap     func(store.Store) store.Store
	metrics  prometheus.Registerer
	registry *registry
	w        *Writer
	stop     context.CancelFunc
	done     chan error
}

func newWorld(t *testing.T) *world {
	t.Helper()
	wd := &world{t: t, dir: t.TempDir(), wrap: func(s store.Store) store.Store { return s }}
	t.Cleanup(func() {
		if wd.w != nil {
			wd.end()
		}
	})
	return wd
}

// start opens the database and runs a Writer on it until it is ready.
func (wd *world) start() {
	wd.t.Helper()
	s, err := sqlite.Open(wd.t.Context(), wd.dir, clock.System{})
	if err != nil {
		wd.t.Fatal(err)
	}
	wd.store, wd.registry = s, newRegistry()
	wd.w = New(Options{
		Store: wd.wrap(s), Registry: wd.registry, Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler), Metrics: wd.metrics,
	})
	var ctx context.Context
	ctx, wd.stop = context.WithCancel(context.WithoutCancel(wd.t.Context()))
	wd.done = make(chan error, 1)
	w, done := wd.w, wd.done
	go func() { done <- w.Run(ctx) }()
	select {
	case <-wd.w.Ready():
	case err := <-wd.done:
		wd.t.Fatal("the writer ended before it was ready:", err)
	}
}

// end stops the Writer and closes the database, and returns what Run returned.
func (wd *world) end() error {
	wd.t.Helper()
	wd.stop()
	err := <-wd.done
	if closeErr := wd.store.Close(); closeErr != nil {
		wd.t.Error(closeErr)
	}
	wd.w = nil
	return err
}

func (wd *world) adopt(r release) {
	wd.t.Helper()
	if err := wd.w.Adopt(wd.t.Context(), r.adoption, r.objects...); err != nil {
		wd.t.Fatal(err)
	}
}

func (wd *world) state(id string) api.RolloutState {
	wd.t.Helper()
	var state api.RolloutState
	if err := wd.w.View(wd.t.Context(), func(f *rollout.Fleet) {
		if r, ok := f.Rollout(id, time.Now()); ok {
			state = r.State
		}
	}); err != nil {
		wd.t.Fatal(err)
	}
	return state
}

// entries reads the log from the disk.
func (wd *world) entries() []rollout.Entry {
	wd.t.Helper()
	var all []rollout.Entry
	for e, err := range wd.store.Entries(wd.t.Context(), 0) {
		if err != nil {
			wd.t.Fatal(err)
		}
		entry, err := decode(e)
		if err != nil {
			wd.t.Fatal(err)
		}
		all = append(all, entry)
	}
	return all
}

// checkLog checks that no event of the agents was lost or doubled, and that the log folds.
func (wd *world) checkLog(agents []*agent) {
	wd.t.Helper()
	type key struct{ host, rollout string }
	logged := map[key][]int64{}
	for _, e := range wd.entries() {
		if event, ok := e.Body.(rollout.HostEvent); ok {
			k := key{e.Hostname, e.RolloutID}
			logged[k] = append(logged[k], event.Event.Seq)
		}
	}
	for _, a := range agents {
		for id, s := range a.streams {
			got := logged[key{a.host, id}]
			for i, seq := range got {
				if seq != int64(i+1) {
					wd.t.Errorf("%s in %s: events on the log are %v", a.host, id, got)
					break
				}
			}
			if int64(len(got)) < s.most {
				wd.t.Errorf("%s in %s: %d events were acknowledged, %d are on the log", a.host, id, s.most, len(got))
			}
		}
	}
}

// execute changes the database of a control plane that does not run.
func execute(t *testing.T, dir, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, sqlite.File))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement); err != nil {
		t.Fatal(err)
	}
}
