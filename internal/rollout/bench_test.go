package rollout

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// The targets of design/performance.md, P5: one event at 100,000 hosts costs at most 20 µs at the
// median and at most twice what it costs at 1,000, planning included; opening a rollout at most 1 s.

var sizes = []int{1_000, 10_000, 100_000}

// benchFleet is a fleet of n hosts in 20 channels and 50 budgets, all of them heard, with one rollout
// open in each channel, in two waves, and room in each budget for every tenth member.
func benchFleet(b *testing.B, n int) *world {
	b.Helper()
	w := newWorld(b)
	for ch := range 20 {
		w.releaseOf(b, fmt.Sprintf("ch%02d@%07x", ch, 1), ch, n/20)
	}
	for ch := range 20 {
		for i := range n / 20 {
			w.beatOnce(b, hostIn(ch, i))
		}
	}
	w.planOnly(b)
	return w
}

func hostIn(ch, i int) string { return fmt.Sprintf("host-%02d-%06d", ch, i) }

func (w *world) releaseOf(b *testing.B, id string, ch, n int) {
	b.Helper()
	adoption := w.benchRelease(id, ch, n)
	entries, err := w.f.Adopt(adoption, w.now)
	if err != nil {
		b.Fatal(err)
	}
	w.index = adoption
	w.applyOnly(b, entries)
	w.planOnly(b)
}

// benchRelease makes a release for n hosts of a channel, and an index with it.
func (w *world) benchRelease(id string, ch, n int) Adoption {
	w.objects++
	policy := policyOf(api.RollbackAndHalt, 0, 0)
	policy.MaxFailures = &api.Amount{Value: 100, Percent: true}
	m := api.Manifest{
		RolloutID: id, Channel: fmt.Sprintf("ch%02d", ch), Sequence: int64(w.objects), ReleasedAt: w.now, SignedAt: w.now,
		Policy: policy, HostSet: api.HostSet{Size: int64(n)},
	}
	for i := range 50 {
		m.DisruptionBudgets = append(m.DisruptionBudgets, api.ManifestBudget{Name: fmt.Sprintf("b%02d", i), MaxInFlight: max(1, n*20/500)})
	}
	lines := make(lineList, n)
	fleet := w.declared()
	for i := range lines {
		name := hostIn(ch, i)
		lines[i] = api.HostLine{Hostname: name, Closure: fmt.Sprintf("%032d-%s-%s", i, name, id), Wave: min(1, i*10/n), Budgets: []int{i % 50}}
		fleet.Hosts[name] = api.FleetHost{Channel: m.Channel}
	}
	object := fmt.Sprint("fleet", w.objects)
	releases := append([]Release{}, w.index.Releases...)
	for i := range releases {
		if releases[i].manifest.Channel == m.Channel {
			releases[i] = releases[len(releases)-1]
			releases = releases[:len(releases)-1]
			break
		}
	}
	return Adoption{
		Sequence: int64(w.objects), SignedAt: w.now, Object: object, Fleet: fleet,
		Releases: append(releases, Release{manifest: m, lines: lines, objects: Objects{Manifest: object}, verified: true}),
	}
}

func (w *world) beatOnce(b *testing.B, name string) {
	entries, _ := w.f.Heartbeat(api.Heartbeat{Hostname: name, JournalID: "j-" + name, CurrentClosure: "old", BootClosure: "old"}, w.now)
	w.applyOnly(b, entries)
}

// applyOnly applies without keeping a log.
func (w *world) applyOnly(b testing.TB, entries []Entry) {
	for _, e := range entries {
		e.LogSeq = w.f.LogSeq() + 1
		if err := w.f.Apply(e); err != nil {
			b.Fatal(err)
		}
	}
}

func (w *world) planOnly(b *testing.B) {
	for {
		entries := w.f.Plan(w.now)
		if len(entries) == 0 {
			return
		}
		w.applyOnly(b, entries)
	}
}

// BenchmarkEvent takes hosts from their dispatch to Converged: each iteration is one event, judged,
// applied, and planned upon.
func BenchmarkEvent(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := &stream{w: benchFleet(b, n)}
			round := 1
			var took []time.Duration
			b.ReportAllocs()
			for b.Loop() {
				start := time.Now()
				if s.next(b) {
					took = append(took, time.Since(start))
					continue
				}
				b.StopTimer()
				round++
				for ch := range 20 {
					s.w.releaseOf(b, fmt.Sprintf("ch%02d@%07x", ch, round), ch, n/20)
				}
				b.StartTimer()
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2]), "ns-median")
		})
	}
}

// stream plays the events of all hosts that are offered something, one host after the other.
type stream struct {
	w       *world
	waiting []string
	host    string
	d       *api.Dispatch
	seq     int64
}

// next plays one event; it returns false when nobody is offered anything.
func (s *stream) next(b *testing.B) bool {
	if s.d == nil && !s.turn() {
		return false
	}
	s.seq++
	e := api.Event{Seq: s.seq, At: s.w.now}
	switch s.seq {
	case 1:
		e.Kind, e.Attempt, e.Wave, e.PreviousClosure = api.DispatchAck, s.d.Attempt, s.d.Wave, "old"
		e.TargetClosure, e.SoakDueAt, e.EnqueuedAt = s.d.TargetClosure, s.d.SoakDueAt, s.d.EnqueuedAt
	case 2:
		e.Kind, e.Method = api.ActivationStarted, api.MethodSwitch
	case 3:
		e.Kind, e.ObservedClosure = api.ActivationCompleted, s.d.TargetClosure
	case 4:
		e.Kind = api.ProbesDeclared
	case 5:
		e.Kind, e.ObservedClosure = api.Converged, s.d.TargetClosure
	}
	entries, _, err := s.w.f.Events(s.host, api.EventBatch{Hostname: s.host, JournalID: "j-" + s.host, RolloutID: s.d.RolloutID, Events: []api.Event{e}}, s.w.now)
	if err != nil {
		b.Fatal(err)
	}
	s.w.applyOnly(b, entries)
	s.w.planOnly(b)
	if s.seq == 5 {
		s.d = nil
	}
	return true
}

func (s *stream) turn() bool {
	s.waiting = append(s.waiting, s.w.f.ChangedDispatches()...)
	for len(s.waiting) > 0 {
		s.host, s.waiting = s.waiting[0], s.waiting[1:]
		if s.d = s.w.f.Outstanding(s.host); s.d != nil {
			s.seq = 0
			return true
		}
	}
	return false
}

// BenchmarkOpen opens one rollout of all hosts, from the adoption to the dispatches of its first wave.
func BenchmarkOpen(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := newWorld(b)
			w.releaseOf(b, "ch00@0000001", 0, n)
			for i := range n {
				w.beatOnce(b, hostIn(0, i))
			}
			w.planOnly(b)
			round := 1
			for b.Loop() {
				round++
				w.now = w.now.Add(time.Second)
				b.StopTimer()
				adoption := w.benchRelease(fmt.Sprintf("ch00@%07x", round), 0, n)
				b.StartTimer()
				entries, err := w.f.Adopt(adoption, w.now)
				if err != nil {
					b.Fatal(err)
				}
				w.index = adoption
				w.applyOnly(b, entries)
				w.planOnly(b)
			}
		})
	}
}
