package rollout

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/api"
)

// fataler is testing.TB or *rapid.T.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// start is when every world begins.
var start = time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)

// world is a Fleet with a clock, a log on "disk", a repository, and agents that do as they are told.
// After every step it compares Plan with PlanFull.
type world struct {
	t          fataler
	now        time.Time
	f          *Fleet
	log        []string // entries as JSON
	out        []Entry  // since it was last printed
	repo       *repo
	agents     map[string]*agent
	index      Adoption
	objects    int
	onDispatch func(before *Fleet, entries []Entry)
	refusals   []string // events that were refused, and batches that had no place
}

// repo holds every release and fleet that there ever was: a Loader.
type repo struct {
	releases map[Objects]Release
	fleets   map[string]api.Fleet
}

func (r *repo) Release(id string, o Objects) (Release, error) {
	release, ok := r.releases[o]
	if !ok {
		return Release{}, fmt.Errorf("no release %s", id)
	}
	release.verified = false
	return release, nil
}

func (r *repo) Fleet(object string) (api.Fleet, error) { return r.fleets[object], nil }

type lineList []api.HostLine

func (l lineList) Len() int                { return len(l) }
func (l lineList) Line(i int) api.HostLine { return l[i] }

// agent is what a host keeps of its own.
type agent struct {
	name     string
	journal  int
	running  string
	boot     string
	events   map[string][]api.Event // of the current journal, by rollout
	previous string
	boots    int
}

func newWorld(t fataler) *world {
	w := &world{
		t: t, now: start, repo: &repo{releases: map[Objects]Release{}, fleets: map[string]api.Fleet{}},
		agents: map[string]*agent{},
	}
	w.f = New(Options{Loader: w.repo})
	w.f.Started(w.now)
	return w
}

// apply gives entries their numbers, has them go through JSON, and applies them.
func (w *world) apply(entries []Entry) {
	w.t.Helper()
	for _, e := range entries {
		e.LogSeq = w.f.LogSeq() + 1
		line, err := json.Marshal(e)
		if err != nil {
			w.t.Fatalf("marshal %+v: %v", e, err)
		}
		var back Entry
		if err := json.Unmarshal(line, &back); err != nil {
			w.t.Fatalf("unmarshal %s: %v", line, err)
		}
		if again, _ := json.Marshal(back); string(again) != string(line) {
			w.t.Fatalf("an entry does not survive JSON:\n%s\n%s", line, again)
		}
		w.log = append(w.log, string(line))
		if err := w.f.Apply(back); err != nil {
			w.t.Fatalf("%v\n%s", err, line)
		}
		w.out = append(w.out, back)
	}
}

// plan applies decisions until there are none, and compares each round with the full plan.
func (w *world) plan() {
	w.t.Helper()
	for round := 0; ; round++ {
		if round > 1000 {
			w.t.Fatalf("the planner does not come to rest: %s", show(w.f.Plan(w.now)))
		}
		full := show(w.f.PlanFull(w.now))
		entries := w.f.Plan(w.now)
		if diff := cmp.Diff(full, show(entries)); diff != "" {
			w.t.Fatalf("Plan differs from PlanFull (-full +incremental):\n%s", diff)
		}
		if again := show(w.f.Plan(w.now)); again != show(entries) {
			w.t.Fatalf("Plan without Apply in between says something else:\n%s\n%s", show(entries), again)
		}
		if len(entries) == 0 {
			return
		}
		if w.onDispatch != nil && entries[0].Kind() == KindDispatch {
			w.onDispatch(w.f, entries)
		}
		w.apply(entries)
	}
}

func (w *world) advance(d time.Duration) {
	w.t.Helper()
	until := w.now.Add(d)
	for {
		wake := w.f.NextWake()
		if wake.IsZero() || wake.After(until) {
			break
		}
		if wake.After(w.now) {
			w.now = wake
		}
		w.plan()
		if next := w.f.NextWake(); !next.IsZero() && !next.After(wake) {
			w.t.Fatalf("NextWake stays at %s", next)
		}
	}
	w.now = until
	w.plan()
}

// release is a release in the making.
type release struct {
	id       string
	sequence int64
	policy   api.Policy
	lines    []api.HostLine
	budgets  []api.ManifestBudget
	signedAt time.Time
}

// publish puts a release into the repository and has the fleet adopt the new index.
func (w *world) publish(r release) error {
	w.t.Helper()
	channel, ref, _ := strings.Cut(r.id, "@")
	slices.SortFunc(r.lines, func(a, b api.HostLine) int { return strings.Compare(a.Hostname, b.Hostname) })
	if r.signedAt.IsZero() {
		r.signedAt = w.now
	}
	m := api.Manifest{
		SchemaVersion: 1, RolloutID: r.id, Channel: channel, Ref: ref, Sequence: r.sequence,
		ReleasedAt: w.now, SignedAt: r.signedAt, FreshnessWindow: api.Duration(72 * time.Hour), PolicyName: "test",
		Policy: r.policy, HostSet: api.HostSet{Size: int64(len(r.lines))}, DisruptionBudgets: r.budgets,
	}
	if known := w.f.rollouts[r.id]; known != nil {
		m.ReleasedAt = known.adopted.ReleasedAt
	}
	w.objects++
	o := Objects{Manifest: fmt.Sprintf("m%d", w.objects), Hosts: "h-" + r.id, Fleet: "f-" + r.id}
	next := Release{manifest: m, lines: lineList(r.lines), objects: o, verified: true}
	w.repo.releases[o] = next
	fleet := w.declared()
	for name, h := range fleet.Hosts {
		if h.Channel == channel {
			delete(fleet.Hosts, name)
		}
	}
	for _, line := range r.lines {
		fleet.Hosts[line.Hostname] = api.FleetHost{Channel: channel}
	}
	releases := slices.DeleteFunc(slices.Clone(w.index.Releases), func(r Release) bool { return r.manifest.Channel == channel })
	return w.adopt(append(releases, next), fleet)
}

// declared returns a copy of the newest fleet.
func (w *world) declared() api.Fleet {
	hosts := maps.Clone(w.index.Fleet.Hosts)
	if hosts == nil {
		hosts = map[string]api.FleetHost{}
	}
	return api.Fleet{Hosts: hosts}
}

func (w *world) adopt(releases []Release, fleet api.Fleet) error {
	w.t.Helper()
	w.objects++
	object := fmt.Sprintf("fleet%d", w.objects)
	a := Adoption{Sequence: int64(w.objects), SignedAt: w.now, Fleet: fleet, Object: object, Releases: releases}
	entries, err := w.f.Adopt(a, w.now)
	if err != nil {
		return err
	}
	w.index = a
	w.repo.fleets[object] = fleet
	w.apply(entries)
	w.plan()
	return nil
}

// refold folds the whole log into a new Fleet.
func (w *world) refold() *Fleet {
	w.t.Helper()
	f := New(Options{Loader: w.repo})
	for _, line := range w.log {
		var e Entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			w.t.Fatalf("%v", err)
		}
		if err := f.Apply(e); err != nil {
			w.t.Fatalf("fold: %v", err)
		}
	}
	return f
}

func (w *world) snapshot(f *Fleet) string {
	w.t.Helper()
	data, err := f.Snapshot()
	if err != nil {
		w.t.Fatalf("%v", err)
	}
	return string(data)
}

// check compares the picture with one folded from the beginning of the log and one that was restored.
func (w *world) check() {
	w.t.Helper()
	have := w.snapshot(w.f)
	if diff := cmp.Diff(durable(w.f), durable(w.refold())); diff != "" {
		w.t.Fatalf("folding the log lands elsewhere:\n%s", diff)
	}
	if folded := w.snapshot(w.refold()); folded != have {
		w.t.Fatalf("folding the log lands elsewhere:\n%s", cmp.Diff(have, folded))
	}
	restored, err := Restore(Options{Loader: w.repo}, []byte(have))
	if err != nil {
		w.t.Fatalf("%v", err)
	}
	if diff := cmp.Diff(durable(w.f), durable(restored)); diff != "" {
		w.t.Fatalf("restoring the snapshot lands elsewhere:\n%s", diff)
	}
	if again := w.snapshot(restored); again != have {
		w.t.Fatalf("restoring the snapshot lands elsewhere:\n%s", cmp.Diff(have, again))
	}
}

// durable writes all that must be the same after a fold and after a restore, field by field: what a
// snapshot leaves out is found here.
func durable(f *Fleet) map[string]string {
	out := map[string]string{"index": fmt.Sprintf("%+v %+v %+v", f.index, f.verdicts, f.tokens)}
	for name, h := range f.hosts {
		out[name] = fmt.Sprintf("%+v %v %+v %+v %v %v %v", h.seen, h.seenAt, h.journal, h.past, h.refused, h.declared, h.channel)
	}
	for name, ch := range f.channels {
		out["channel "+name] = fmt.Sprintf("%+v", ch.quarantine)
	}
	for id, r := range f.rollouts {
		out[id] = fmt.Sprintf("%+v %v %v %v %v %v %v", r.adopted, r.state, r.stateSince, r.open, r.openedAt, r.endedAt, r.reason)
		for i := range r.members {
			m := &r.members[i]
			rec, _ := json.Marshal(m.rec)
			offer, _ := json.Marshal(m.offer)
			overdue, _ := json.Marshal(m.overdue)
			out[id+" "+m.rec.Hostname] = fmt.Sprint(string(rec), string(offer), m.took, m.moved, string(overdue), m.stays,
				m.refusals, m.refusedAs, m.refusedSince, m.retryAt, m.reasons)
		}
	}
	return out
}

// restart goes on with a restored picture.
func (w *world) restart() {
	w.t.Helper()
	w.check()
	f, err := Restore(Options{Loader: w.repo}, []byte(w.snapshot(w.f)))
	if err != nil {
		w.t.Fatalf("%v", err)
	}
	w.f = f
	w.f.Started(w.now)
	w.plan()
}

// loseLog goes on from an empty database, with the current index.
func (w *world) loseLog() {
	w.t.Helper()
	w.log = nil
	w.f = New(Options{Loader: w.repo})
	w.f.Started(w.now)
	if err := w.adopt(w.index.Releases, w.index.Fleet); err != nil {
		w.t.Fatalf("%v", err)
	}
}

// show writes entries for people and for comparison.
func show(entries []Entry) string {
	var b strings.Builder
	for _, e := range entries {
		body, err := json.Marshal(e.Body, json.Deterministic(true))
		if err != nil {
			return err.Error()
		}
		fmt.Fprintf(&b, "%s %s %s %s\n", e.Kind(), e.RolloutID, e.Hostname, body)
	}
	return b.String()
}
