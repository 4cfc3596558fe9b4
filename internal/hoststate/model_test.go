package hoststate

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"nixfleet.dev/nixfleet/api"
)

// model is design/state.md read a second time, as plainly as it can be: no table, no shared code.
type model struct {
	state            api.HostState
	attempt          int
	previous         string
	policy           api.OnHealthFailure
	soak             time.Duration
	soakDue, soakEnd time.Time
	last             time.Time
	byOperator       bool
	declared         map[string]string // name to mode; nil: not known
	passes           map[string]bool
	quarantined      bool
}

func (m *model) reverting() {
	m.state = api.Reverting
	if m.previous == "" {
		m.state = api.Failed
	}
}

func (m *model) goesBack() bool { return m.policy != api.Halt }

// step says whether the input is accepted, and takes it.
func (m *model) step(in Input) bool {
	switch in := in.(type) {
	case Reported:
		if in.At.Before(m.last) || !m.event(in.Event) {
			return false
		}
		m.last = in.At
		return true
	case Skip:
		if m.state != api.Pending {
			return false
		}
		m.state, m.byOperator = api.Skipped, in.By == "operator"
		return true
	case Heard:
		if m.state != api.Skipped || m.byOperator {
			return false
		}
		m.state = api.Pending
		return true
	case Retry:
		switch m.state {
		case api.Failed, api.Reverted, api.Skipped:
			m.again()
			return true
		}
		return false
	case Supersede:
		switch m.state {
		case api.HostConverged, api.Reverted, api.HostSuperseded:
			return false
		}
		m.state = api.HostSuperseded
		return true
	case NewJournal:
		m.newJournal(in)
		return true
	}
	return false
}

func (m *model) again() {
	m.state = api.Pending
	m.attempt++
	m.declared, m.passes = nil, nil
}

func (m *model) newJournal(in NewJournal) {
	m.last = time.Time{}
	switch m.state {
	case api.Activating, api.Deferred, api.Soaking:
		m.again()
	case api.HostConverged:
		if in.Running != target || in.Boot != target {
			m.again()
		}
	case api.Reverting, api.Failed:
		if m.previous != "" && in.Running == m.previous && in.Boot == m.previous {
			m.state = api.Reverted
		} else {
			m.again()
		}
	}
}

func (m *model) event(e api.Event) bool {
	s := m.state
	if s == api.HostSuperseded {
		return true
	}
	activating, deferred, soaking := s == api.Activating, s == api.Deferred, s == api.Soaking
	reverting, failed, reverted, converged := s == api.Reverting, s == api.Failed, s == api.Reverted, s == api.HostConverged
	switch e.Kind {
	case api.DispatchAck:
		if e.TargetClosure != target || e.Wave != 0 || e.Attempt < 1 {
			return false
		}
		if !(s == api.Pending || s == api.Skipped || (failed || reverted) && e.Attempt > m.attempt) {
			return false
		}
		m.state, m.previous, m.soakDue = api.Activating, e.PreviousClosure, e.SoakDueAt
		if m.previous == target {
			m.previous = ""
		}
		m.attempt = max(m.attempt, e.Attempt)
		m.declared, m.passes = nil, nil
		return true
	case api.ActivationStarted:
		return activating
	case api.ActivationProgress:
		return activating || converged || reverted || failed
	case api.ActivationCompleted:
		if !(activating || deferred) || e.ObservedClosure != target {
			return false
		}
		m.state, m.declared, m.passes = api.Soaking, nil, nil
		if m.soakEnd = e.At.Add(m.soak); m.soakDue.After(m.soakEnd) {
			m.soakEnd = m.soakDue
		}
		return true
	case api.ActivationDeferred:
		if activating {
			m.state = api.Deferred
		}
		return activating
	case api.RebootStarted:
		if deferred {
			m.state = api.Activating
		}
		return deferred
	case api.ActivationFailed:
		return m.activationFailed(e)
	case api.ProbesDeclared:
		if !(soaking || converged || reverted || failed) {
			return false
		}
		old := m.declared
		m.declared = map[string]string{}
		for _, p := range e.Probes {
			m.declared[p.Name] = p.Mode
			if _, kept := old[p.Name]; !kept {
				delete(m.passes, p.Name)
			}
		}
		return true
	case api.ProbeResult:
		if !(soaking || converged || reverted || failed) {
			return false
		}
		if _, ok := m.declared[e.Probe]; ok {
			if m.passes == nil {
				m.passes = map[string]bool{}
			}
			m.passes[e.Probe] = e.Status == "pass"
		}
		return true
	case api.HealthFailed:
		if !soaking {
			return false
		}
		m.quarantined = true
		if m.goesBack() {
			m.reverting()
		} else {
			m.state = api.Failed
		}
		return true
	case api.RollbackStarted:
		return m.rollbackStarted(e)
	case api.RollbackCompleted:
		if !reverting || e.ObservedClosure != m.previous {
			return false
		}
		m.state = api.Reverted
		return true
	case api.RollbackFailed:
		if reverting {
			m.state = api.Failed
		}
		return reverting
	case api.Converged:
		if !soaking || e.ObservedClosure != target || e.At.Before(m.soakEnd) || m.declared == nil {
			return false
		}
		for name, mode := range m.declared {
			if mode == "enforce" && !m.passes[name] {
				return false
			}
		}
		m.state = api.HostConverged
		return true
	}
	return false
}

func (m *model) activationFailed(e api.Event) bool {
	activating, deferred := m.state == api.Activating, m.state == api.Deferred
	switch {
	case e.Reason == "cancelled" && e.Changed:
		return false
	case e.Reason == "changed-locally" && (activating || deferred || m.state == api.Soaking):
		m.state = api.Failed
		return true
	case !activating && !deferred:
		return false
	}
	switch e.Reason {
	case "switch-failed", "verify-mismatch", "closure-signature-invalid", "confirm-timeout":
		m.quarantined = true
	case "timeout":
		m.quarantined = m.quarantined || e.Phase == "switch" || e.Phase == "confirm"
	}
	switch {
	case activating && e.Reason == "cancelled":
		m.state, m.declared, m.passes = api.Pending, nil, nil
	case !e.Changed:
		m.state = api.Reverted
	case e.Reason == "confirm-timeout", m.goesBack():
		m.reverting()
	default:
		m.state = api.Failed
	}
	return true
}

func (m *model) rollbackStarted(e api.Event) bool {
	if e.ToClosure != m.previous {
		return false
	}
	switch m.state {
	case api.Soaking, api.HostConverged:
		if e.Cause != "revert" || m.policy != api.RollbackAll {
			return false
		}
	case api.Deferred:
		if e.Cause != "revert" && e.Cause != "unstage" {
			return false
		}
	case api.Reverting, api.Failed:
	default:
		return false
	}
	m.reverting()
	return true
}

// inputs draws from a small world, so that sequences go far into the machine and off its paths.
type inputs struct {
	pick func(n int) int
	now  time.Time
}

func choose[T any](g *inputs, from ...T) T { return from[g.pick(len(from))] }

func (g *inputs) next(r Record) Input {
	if g.pick(12) == 0 {
		closures := []string{target, previous, other, ""}
		return choose[Input](g, Skip{choose(g, "offline", "operator", "edge")}, Heard{}, Retry{}, Supersede{},
			NewJournal{choose(g, closures...), choose(g, closures...)}, NewJournal{previous, previous})
	}
	g.now = g.now.Add(time.Duration(choose(g, 0, 1, 5, 20, 20, 40, -1)) * time.Minute)
	e := api.Event{At: g.now, Kind: g.kind(r.State)}
	closures := []string{target, target, target, previous, previous, other, ""}
	e.Attempt = choose(g, r.Attempt, r.Attempt, r.Attempt+1, r.Attempt+1, 0, 7)
	e.TargetClosure = choose(g, target, target, target, other)
	e.PreviousClosure = choose(g, previous, previous, previous, "", target)
	e.SoakDueAt = g.now.Add(time.Duration(choose(g, -30, 0, 30, 60)) * time.Minute)
	e.ObservedClosure = choose(g, closures...)
	e.ToClosure = choose(g, r.PreviousClosure, r.PreviousClosure, r.PreviousClosure, other)
	e.Cause = choose(g, "health", "activation", "confirm", "revert", "revert", "unstage")
	e.Changed = g.pick(2) == 0
	e.Phase = choose(g, "preflight", "realise", "set-profile", "switch", "confirm")
	e.Reason = choose[api.Code](g, "realise-failed", "switch-failed", "verify-mismatch", "closure-signature-invalid", "timeout",
		"timeout", "confirm-timeout", "disk-full", "cancelled", "changed-locally")
	e.Probe, e.Status = choose(g, "a", "b", "c"), choose(g, "pass", "pass", "fail")
	for _, name := range []string{"a", "b"}[:g.pick(3)] {
		e.Probes = append(e.Probes, api.DeclaredProbe{Name: name, Kind: "tcp", Mode: choose(g, "enforce", "enforce", "observe", "disabled")})
	}
	return Reported{e}
}

// kind favours the way to Converged.
func (g *inputs) kind(s api.HostState) api.EventKind {
	if g.pick(2) == 0 {
		switch s {
		case api.Pending:
			return api.DispatchAck
		case api.Activating:
			return choose(g, api.ActivationCompleted, api.ActivationCompleted, api.ActivationFailed, api.ActivationDeferred)
		case api.Soaking:
			return choose(g, api.ProbesDeclared, api.ProbeResult, api.ProbeResult, api.Converged, api.Converged)
		case api.Reverting:
			return choose(g, api.RollbackStarted, api.RollbackCompleted, api.RollbackFailed)
		}
	}
	return choose(g, api.DispatchAck, api.ActivationStarted, api.ActivationProgress, api.ActivationCompleted, api.ActivationDeferred,
		api.RebootStarted, api.ActivationFailed, api.ProbesDeclared, api.ProbeResult, api.HealthFailed, api.RollbackStarted,
		api.RollbackCompleted, api.RollbackFailed, api.Converged, api.EventKind("Sang"))
}

// check runs one random history through the machine and the model, and returns the states it saw.
func check(t interface{ Fatalf(string, ...any) }, g *inputs, steps int) map[api.HostState]bool {
	policy := choose(g, api.Halt, api.RollbackAndHalt, api.RollbackAll)
	r := New(api.HostLine{Hostname: "web-01", Closure: target}, "stable@0a1b2c3d",
		api.Policy{OnHealthFailure: policy, Waves: []api.Wave{{Soak: api.Duration(30 * time.Minute)}}}, start)
	m := &model{state: api.Pending, attempt: 1, policy: policy, soak: 30 * time.Minute}
	seen := map[api.HostState]bool{}
	g.now = start
	quarantined := false
	for i := range steps {
		in := g.next(r)
		before := deepCopy(t, r)
		next, effects, err := Step(r, in, g.now)
		again, effectsAgain, errAgain := Step(r, in, g.now)
		if diff := cmp.Diff(before, r); diff != "" {
			t.Fatalf("step %d %#v changed its argument:\n%s", i, in, diff)
		}
		if diff := cmp.Diff(next, again) + cmp.Diff(effects, effectsAgain); diff != "" || (err == nil) != (errAgain == nil) {
			t.Fatalf("step %d %#v has two outcomes:\n%s", i, in, diff)
		}
		if matching(&r, in) > 1 {
			t.Fatalf("step %d %#v in %s fits more than one row", i, in, r.State)
		}
		accepted := m.step(in)
		for _, e := range effects {
			if _, ok := e.(Quarantine); ok {
				quarantined = true
			}
		}
		if accepted != (err == nil) || m.state != next.State || m.attempt != next.Attempt || quarantined != m.quarantined ||
			m.previous != next.PreviousClosure {
			t.Fatalf("step %d %#v in %+v: the machine says %s attempt %d, quarantined %v, %v; the model %s attempt %d, quarantined %v, accepted %v",
				i, in, before, next.State, next.Attempt, quarantined, err, m.state, m.attempt, m.quarantined, accepted)
		}
		if next.State == api.Soaking && !next.SoakEndsAt.Equal(m.soakEnd) {
			t.Fatalf("step %d: the soak ends at %v, not %v", i, next.SoakEndsAt, m.soakEnd)
		}
		if next.LastAt.Before(r.LastAt) && inputOf(in) != "NewJournal" {
			t.Fatalf("step %d: at went back from %v to %v", i, r.LastAt, next.LastAt)
		}
		r = next
		seen[r.State] = true
	}
	return seen
}

// matching counts the rows that apply.
func matching(r *Record, in Input) int {
	e, ok := in.(Reported)
	if !ok || contradiction(&e.Event) != "" {
		return 0
	}
	n := 0
	g := given{kind: kindOf(e.Kind), event: &e.Event}
	for _, row := range rowsOf[g.kind] {
		if row.from.has(r.State) && row.fails(r, &g) == "" {
			n++
		}
	}
	return n
}

func deepCopy(t interface{ Fatalf(string, ...any) }, r Record) Record {
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatalf("a record cannot be written: %v", err)
	}
	var out Record
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatalf("a record cannot be read back: %v", err)
	}
	return out
}

func TestStepAgreesWithADumberModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.IntRange(0, 1<<20)
		check(t, &inputs{pick: func(n int) int { return number.Draw(t, "pick") % n }}, 40)
	})
}

func TestRandomHistoriesReachEveryState(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	seen := map[api.HostState]bool{}
	for range 2000 {
		for s := range check(t, &inputs{pick: random.IntN}, 40) {
			seen[s] = true
		}
	}
	for _, s := range api.HostStates {
		if !seen[s] {
			t.Errorf("no history came to %s", s)
		}
	}
}

func FuzzStep(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		check(t, &inputs{pick: rand.New(rand.NewPCG(a, b)).IntN}, 60)
	})
}

// FuzzStepAnyEvent takes whatever the wire can carry: no panic, and what comes out can be written.
func FuzzStepAnyEvent(f *testing.F) {
	for kind := range map[api.EventKind]bool{api.DispatchAck: true, api.ProbesDeclared: true, api.HealthFailed: true, api.RollbackCompleted: true} {
		data, err := json.Marshal(event(kind).Event)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"seq":1,"kind":"ActivationCompleted","at":"9999-12-31T23:59:59-14:00","observedClosure":"` + target + `"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var e api.Event
		if json.Unmarshal(data, &e) != nil {
			return
		}
		for _, s := range api.HostStates {
			r := record(s)
			next, _, err := Step(r, Reported{e}, start)
			if err != nil && err.Error() == "" {
				t.Error("an error without words")
			}
			deepCopy(t, next)
		}
	})
}
