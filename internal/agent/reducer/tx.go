package reducer

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
	"nixfleet.dev/nixfleet/internal/hoststate"
)

// tx is one step: it reads the state and gathers what is to change, which becomes one journal record.
// A step that returns an error has changed nothing.
type tx struct {
	state  *state
	now    time.Time // wall clock
	bootID string

	editedTerms  map[string]terms
	editedStatus map[string]*status
	editedGlobal *global
	events       []newEvent
	forgotten    []string
	dropped      []string
	log          []logLine // said once the record is durable
}

type logLine struct {
	msg  string
	args []any
}

func newTx(s *state, now time.Time, bootID string) *tx {
	return &tx{state: s, now: now.UTC(), bootID: bootID, editedTerms: map[string]terms{}, editedStatus: map[string]*status{}}
}

func (t *tx) say(msg string, args ...any) { t.log = append(t.log, logLine{msg, args}) }

// status returns the rollout's status as this step has left it so far, not to be changed.
func (t *tx) status(id string) (status, bool) {
	if st := t.editedStatus[id]; st != nil {
		return *st, true
	}
	ro := t.state.rollouts[id]
	if ro == nil {
		return status{}, false
	}
	return ro.status, true
}

// edit returns the rollout's status to be changed.
func (t *tx) edit(id string) *status {
	st := t.editedStatus[id]
	if st == nil {
		st = new(status)
		if ro := t.state.rollouts[id]; ro != nil {
			*st = ro.status.clone()
		}
		t.editedStatus[id] = st
	}
	return st
}

func (t *tx) terms(id string) terms {
	if tm, ok := t.editedTerms[id]; ok {
		return tm
	}
	return t.state.rollouts[id].terms
}

// globals returns what belongs to no rollout, to be changed.
func (t *tx) globals() *global {
	if t.editedGlobal == nil {
		g := t.state.global
		g.Quarantine = maps.Clone(g.Quarantine)
		g.Unconverged = slices.Clone(g.Unconverged)
		t.editedGlobal = &g
	}
	return t.editedGlobal
}

func (t *tx) ids() []string { return t.state.byOrder() }

// change returns the record of the step, nil where nothing changed.
func (t *tx) change() *change {
	if len(t.editedTerms)+len(t.editedStatus)+len(t.forgotten)+len(t.dropped) == 0 && t.editedGlobal == nil {
		return nil
	}
	c := &change{
		Version: version, Global: t.editedGlobal, Terms: t.editedTerms, Events: t.events,
		Forget: t.forgotten, Drop: t.dropped, Status: map[string]status{},
	}
	for id, st := range t.editedStatus {
		c.Status[id] = *st
	}
	return c
}

// touched lists the rollouts that a change says something about.
func (c *change) touched() []string {
	ids := slices.Concat(slices.Collect(maps.Keys(c.Status)), c.Forget, c.Drop)
	slices.Sort(ids)
	return slices.Compact(ids)
}

// emit numbers an event, takes the host machine's step on it, and has its effects recorded. An event
// that contradicts the record is an error and gets no number.
func (t *tx) emit(id string, e api.Event) error {
	st := t.edit(id)
	e.Seq, e.At = st.LastSeq+1, st.Record.NextAt(t.now)
	record, effects, err := hoststate.Step(st.Record, hoststate.Reported{Event: e}, t.now)
	if err != nil {
		return fmt.Errorf("rollout %s: %w", id, err)
	}
	t.say("event", "rollout", id, "seq", e.Seq, "kind", e.Kind, "state", record.State)
	st.Record, st.LastSeq = record, e.Seq
	g := t.globals()
	t.events = append(t.events, newEvent{RolloutID: id, N: g.NextN, Event: e})
	g.NextN++
	return t.enact(id, effects)
}

// enact records a step's effects: those that take time stay in the status until they are done.
func (t *tx) enact(id string, effects []hoststate.Effect) error {
	st := t.edit(id)
	if !working(st.Record.State) {
		st.Task = nil
	}
	if st.Record.State != api.Soaking {
		st.Soak = nil
	}
	for _, effect := range effects {
		switch effect := effect.(type) {
		case hoststate.Activate:
			t.assign(id, activation.Task{Kind: activation.Activate, Closure: st.Record.TargetClosure, From: st.Record.PreviousClosure})
		case hoststate.RollBack:
			if err := t.goBack(id, effect.Cause); err != nil {
				return err
			}
		case hoststate.StartProbes:
			t.startSoak(id)
		case hoststate.Quarantine:
			t.quarantine(id, effect)
		case hoststate.Exonerate:
			t.exonerate(id, effect.Closure)
		}
	}
	return nil
}

// working says whether there is a task in the state; a deferred host has one after its next boot.
func working(s api.HostState) bool {
	return s == api.Activating || s == api.Reverting || s == api.Deferred
}

// assign gives the rollout a task, in place of the one it has.
func (t *tx) assign(id string, task activation.Task) {
	st, policy := t.edit(id), t.terms(id).Policy
	task.RolloutID, task.Attempt, task.Began = id, st.Record.Attempt, t.now
	task.Timeout, task.ConfirmTimeout = *policy.ActivationTimeout, *policy.ConfirmTimeout
	if policy.Reboot != nil {
		task.RebootFor = policy.Reboot.For
	}
	g := t.globals()
	g.NextTask++
	st.Task, st.TaskID = &task, g.NextTask
}

// rollback makes the task that takes a rollout's host back.
func (t *tx) rollback(id string) activation.Task {
	st := t.edit(id)
	task := activation.Task{
		Kind: activation.RollBack, Closure: st.Record.PreviousClosure,
		Confirm: st.Record.RevertCause == api.CauseConfirm, Unstage: st.Record.RevertCause == api.CauseUnstage,
	}
	if st.Task != nil {
		task.Stop = st.Task.Job
	}
	return task
}

// goBack records the rollback, and announces it where the event that began it did not.
func (t *tx) goBack(id, cause string) error {
	st := t.edit(id)
	t.assign(id, t.rollback(id))
	if last := t.events[len(t.events)-1]; last.RolloutID == id && last.Event.Kind == api.RollbackStarted {
		return nil
	}
	return t.emit(id, api.Event{Kind: api.RollbackStarted, ToClosure: st.Record.PreviousClosure, Cause: cause})
}

// Caps on what is remembered of closures.
const (
	maxQuarantine  = 256
	maxUnconverged = 64
)

func (t *tx) quarantine(id string, q hoststate.Quarantine) {
	g := t.globals()
	if g.Quarantine == nil {
		g.Quarantine = map[string]quarantined{}
	}
	g.Quarantine[q.Closure] = quarantined{Code: q.Code, RolloutID: id, At: t.now}
	t.say("closure quarantined", "rollout", id, "closure", q.Closure, "reason", q.Code)
	for len(g.Quarantine) > maxQuarantine {
		oldest := q.Closure
		for c, other := range g.Quarantine {
			if other.At.Before(g.Quarantine[oldest].At) {
				oldest = c
			}
		}
		if oldest == q.Closure {
			return
		}
		delete(g.Quarantine, oldest)
	}
}

// exonerate takes back the quarantine that this rollout's confirm-timeout led to, and no other.
func (t *tx) exonerate(id, closure string) {
	g := t.globals()
	if q, ok := g.Quarantine[closure]; ok && q.RolloutID == id && q.Code == api.CodeConfirmTimeout {
		delete(g.Quarantine, closure)
		t.say("closure exonerated: the previous system cannot reach a control plane either", "rollout", id, "closure", closure)
	}
}

// moving notes that the host is leaving for the closure without having converged on it.
func (t *tx) moving(closure string) {
	g := t.globals()
	g.Unconverged = slices.DeleteFunc(g.Unconverged, func(c string) bool { return c == closure })
	g.Unconverged = append(g.Unconverged, closure)
	if over := len(g.Unconverged) - maxUnconverged; over > 0 {
		g.Unconverged = slices.Delete(g.Unconverged, 0, over)
	}
}

// converged notes the closure that the host converged on.
func (t *tx) converged(closure string) {
	g := t.globals()
	g.Converged, g.HasOwn = closure, true
	g.Unconverged = slices.DeleteFunc(g.Unconverged, func(c string) bool { return c == closure })
}

// shift moves every recorded time that a timer counts from, now that the clock ran ahead by gap.
func (t *tx) shift(gap time.Duration) {
	for _, id := range t.ids() {
		st := t.state.rollouts[id].status
		if st.Task != nil {
			task := t.edit(id).Task
			task.Began = task.Began.Add(gap)
			if !task.ConfirmFrom.IsZero() {
				task.ConfirmFrom = task.ConfirmFrom.Add(gap)
			}
		}
		if st.Soak != nil {
			t.edit(id).Soak.shift(gap, t.now, st.Record)
		}
	}
}
