package reducer

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
	"nixfleet.dev/nixfleet/internal/hoststate"
)

// soak is the probing of a host that is live on its target, from ActivationCompleted to its end. Its
// times are moved by the time that the machine slept.
type soak struct {
	Until   time.Time          `json:"until"` // not before the record's SoakEndsAt
	Broken  string             `json:"broken,omitzero"`
	Watched map[string]watched `json:"watched,omitempty"` // by probe
}

// watched is what is known of one probe since the activation. It is journalled when it changes what
// may happen next: a run that only confirms the one before is not.
type watched struct {
	Kind   string               `json:"kind"`
	Mode   string               `json:"mode"`
	Status string               `json:"status"` // of the newest run
	Reason string               `json:"reason,omitzero"`
	Sub    []api.ProbeSubResult `json:"sub,omitempty"`

	Fails        int       `json:"fails,omitzero"` // in a row, counted to 2
	FailingSince time.Time `json:"failingSince,omitzero"`

	Reported   string    `json:"reported,omitzero"` // the status of the newest ProbeResult
	ReportedAt time.Time `json:"reportedAt,omitzero"`
}

// reportEvery is the least time between two ProbeResults of one probe (wire.md). Once a rollout has
// manyEvents it is reportSeldom, so that a probe that flaps for weeks does not fill the journal.
const (
	reportEvery  = 30 * time.Second
	reportSeldom = time.Hour
	manyEvents   = 4096
)

func (s *soak) clone() *soak {
	if s == nil {
		return nil
	}
	c := *s
	c.Watched = maps.Clone(s.Watched)
	return &c
}

// shift moves the soak's times. None is moved to where the clock itself rules it out: a time that was
// recorded in an earlier boot is not wrong because this boot's clock began in 1970.
func (s *soak) shift(gap time.Duration, now time.Time, r hoststate.Record) {
	whole := r.SoakEndsAt.Sub(r.CompletedAt)
	s.Until = earlier(s.Until.Add(gap), now.Add(whole))
	if s.Until.Before(r.SoakEndsAt) {
		s.Until = r.SoakEndsAt
	}
	for name, w := range s.Watched {
		if !w.FailingSince.IsZero() {
			w.FailingSince = earlier(w.FailingSince.Add(gap), now)
		}
		if !w.ReportedAt.IsZero() {
			w.ReportedAt = earlier(w.ReportedAt.Add(gap), now)
		}
		s.Watched[name] = w
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// sustained says since when an enforce probe has failed at least twice in a row.
func (w watched) sustained() (time.Time, bool) {
	return w.FailingSince, w.Mode == api.ModeEnforce && w.Fails >= 2
}

// reportDue says when a result that is not reported yet may be.
func (w watched) reportDue(events int) (time.Time, bool) {
	every := reportEvery
	if events >= manyEvents {
		every = reportSeldom
	}
	switch {
	case w.Status == "" || w.Status == w.Reported:
		return time.Time{}, false
	case w.Reported == "":
		return time.Time{}, true
	}
	return w.ReportedAt.Add(every), true
}

// outlook is what a soak has come to.
type outlook int

const (
	goesOn  outlook = iota
	failing         // HealthFailed, if the host is still on its target
	healthy         // Converged, the same
)

// outlook says what the soak has come to at now.
func (st *status) outlook(policy api.Policy, now time.Time) outlook {
	s := st.Soak
	if s.Broken != "" {
		return failing
	}
	passing := true
	for _, w := range s.Watched {
		if since, ok := w.sustained(); ok && !now.Before(since.Add(policy.FailureThreshold.Std())) {
			return failing
		}
		passing = passing && (w.Mode != api.ModeEnforce || w.Status == api.ProbePass)
	}
	_, blocked := st.Record.Blocking()
	if passing && !blocked && st.Record.ProbesDeclared && !now.Before(s.Until) {
		return healthy
	}
	return goesOn
}

// due is when time alone changes something next.
func (s *state) due(now time.Time) (due time.Time, ok bool) {
	sooner := func(at time.Time) {
		if !ok || at.Before(due) {
			due, ok = at, true
		}
	}
	for _, ro := range s.rollouts {
		if ro.status.Soak == nil {
			continue
		}
		if until := ro.status.Soak.Until; until.After(now) {
			sooner(until)
		}
		for _, w := range ro.status.Soak.Watched {
			if at, ok := w.reportDue(len(ro.events)); ok {
				sooner(at)
			}
			if since, ok := w.sustained(); ok {
				if at := since.Add(ro.terms.Policy.FailureThreshold.Std()); at.After(now) {
					sooner(at)
				}
			}
		}
	}
	return due, ok
}

// tick does what time alone brings.
func (t *tx) tick() error {
	for _, id := range t.ids() {
		if err := t.report(id); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) startSoak(id string) {
	st, g := t.edit(id), t.globals()
	g.NextTask++
	st.SoakID = g.NextTask
	st.Soak = &soak{Until: st.Record.SoakEndsAt, Watched: map[string]watched{}}
}

// soaking returns the status to be changed, or ErrStopped where that soak is over.
func (t *tx) soaking(id string, soakID int64) (*status, error) {
	if st, ok := t.status(id); !ok || st.Soak == nil || st.SoakID != soakID {
		return nil, activation.ErrStopped
	}
	return t.edit(id), nil
}

// declare notes the probe set that was read, or that it cannot be read, which is a health failure.
func (t *tx) declare(id string, soakID int64, set api.HealthChecks, broken error) error {
	st, err := t.soaking(id, soakID)
	if err != nil {
		return err
	}
	if broken != nil {
		st.Soak.Broken = clip(broken.Error())
		return nil //nolint:nilerr // what is broken is now part of the state
	}
	probes := make([]api.DeclaredProbe, len(set.Probes))
	known := map[string]watched{}
	for i, p := range set.Probes {
		probes[i] = api.DeclaredProbe{Name: p.Name, Kind: p.Kind, Mode: p.Mode}
		if p.Mode == api.ModeDisabled {
			continue
		}
		w := st.Soak.Watched[p.Name]
		if w.Kind != p.Kind {
			w = watched{}
		}
		w.Kind, w.Mode = p.Kind, p.Mode
		known[p.Name] = w
	}
	st.Soak.Watched = known
	same := slices.EqualFunc(st.Record.Probes, probes, func(a api.ProbeStatus, b api.DeclaredProbe) bool {
		return a.Name == b.Name && a.Kind == b.Kind && a.Mode == b.Mode
	})
	if st.Record.ProbesDeclared && same {
		return nil
	}
	return t.emit(id, api.Event{Kind: api.ProbesDeclared, Probes: probes})
}

// maxBroken is how much of what is wrong with health-checks.json is kept, in bytes: each of its probes
// may have many faults.
const maxBroken = 1 << 10

func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxBroken)], "") }

// probed takes the result of one run of a probe.
func (t *tx) probed(id string, soakID int64, run ProbeRun) error {
	current, ok := t.status(id)
	if !ok || current.Soak == nil || current.SoakID != soakID {
		return activation.ErrStopped
	}
	w, ok := current.Soak.Watched[run.Probe.Name]
	if !ok {
		return nil
	}
	failed := run.Status != api.ProbePass
	if run.Status == w.Status && (!failed || w.Fails >= 2) {
		return nil // nothing new
	}
	w.Status, w.Reason, w.Sub = api.ProbePass, "", run.SubResults
	if failed {
		w.Status, w.Reason = api.ProbeFail, run.Reason
	}
	switch {
	case !failed:
		w.Fails, w.FailingSince = 0, time.Time{}
	case w.Fails == 0:
		w.Fails, w.FailingSince = 1, t.now
	default:
		w.Fails = 2
	}
	t.edit(id).Soak.Watched[run.Probe.Name] = w
	return t.report(id)
}

// report sends the results that are due, in the order of the probes' names.
func (t *tx) report(id string) error {
	st, ok := t.status(id)
	if !ok || st.Soak == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(st.Soak.Watched)) {
		w := st.Soak.Watched[name]
		at, ok := w.reportDue(len(t.state.rollouts[id].events))
		if !ok || t.now.Before(at) {
			continue
		}
		w.Reported, w.ReportedAt = w.Status, t.now
		t.edit(id).Soak.Watched[name] = w
		err := t.emit(id, api.Event{
			Kind: api.ProbeResult, Probe: name, ProbeKind: w.Kind, Mode: w.Mode, Status: w.Status,
			FailureReason: w.Reason, SubResults: w.Sub,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// judgeSoak ends a soak that has come to its end, now that it is known what the machine shows. A host
// that is not on its target was taken away by someone: that is nobody's failure.
func (t *tx) judgeSoak(id string, soakID int64, running, boot string) error {
	st, err := t.soaking(id, soakID)
	if err != nil {
		return err
	}
	target := st.Record.TargetClosure
	if running != target || boot != target {
		return t.emit(id, api.Event{
			Kind: api.ActivationFailed, Phase: api.PhaseConfirm, Changed: true, Reason: api.CodeChangedLocally,
			StderrTail: fmt.Sprintf("the host runs %q and boots %q, which nobody gave it", running, boot),
		})
	}
	policy := t.terms(id).Policy
	switch st.outlook(policy, t.now) {
	case failing:
		names, sustained := st.Soak.failures(t.now)
		return t.emit(id, api.Event{
			Kind: api.HealthFailed, FailingProbes: names, SustainedFor: sustained, PolicyApplied: policy.OnHealthFailure,
		})
	case healthy:
		t.converged(target)
		return t.emit(id, api.Event{Kind: api.Converged, ObservedClosure: running})
	}
	return nil
}

// failures names the enforce probes that fail now, and for how long the one that failed first has.
func (s *soak) failures(now time.Time) (names []string, sustained api.Duration) {
	if s.Broken != "" {
		return []string{"health-checks.json: " + s.Broken}, 0
	}
	for _, name := range slices.Sorted(maps.Keys(s.Watched)) {
		if w := s.Watched[name]; w.Mode == api.ModeEnforce && w.Status == api.ProbeFail {
			names = append(names, name)
			sustained = max(sustained, api.Duration(now.Sub(w.FailingSince)))
		}
	}
	return names, sustained
}
