package reducer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
)

// progressEvery is the least time between two ActivationProgress of one host (wire.md).
const progressEvery = 10 * time.Second

// ledger is activation.Ledger for one task: every call is a step, refused once the task is gone.
type ledger struct {
	r         *Reducer
	rolloutID string
	taskID    int64
	ackSeq    int64
}

// task has a step taken on the rollout, if it still has this task.
func (l *ledger) task(ctx context.Context, step func(t *tx, st *status) error) error {
	return l.r.do(ctx, func(t *tx) error {
		if st, ok := t.status(l.rolloutID); !ok || st.Task == nil || st.TaskID != l.taskID {
			return activation.ErrStopped
		}
		return step(t, t.edit(l.rolloutID))
	})
}

// Started implements activation.Ledger.
func (l *ledger) Started(ctx context.Context, method string) error {
	return l.task(ctx, func(t *tx, st *status) error {
		st.Task.Started = true
		if method == api.MethodNone {
			t.moving(st.Record.TargetClosure)
		}
		return t.emit(l.rolloutID, api.Event{Kind: api.ActivationStarted, Method: method})
	})
}

// Progress implements activation.Ledger. It does not hold the procedure up, and what comes too soon
// after the one before is dropped.
func (l *ledger) Progress(ctx context.Context, phase string, done, total int64) {
	in := input{reply: make(chan error, 1), step: func(t *tx) error {
		st, ok := t.status(l.rolloutID)
		if !ok || st.Task == nil || st.TaskID != l.taskID || st.Record.State != api.Activating {
			return activation.ErrStopped
		}
		if t.now.Sub(st.ProgressAt) < progressEvery || len(t.state.rollouts[l.rolloutID].events) >= manyEvents {
			return nil
		}
		t.edit(l.rolloutID).ProgressAt = t.now
		return t.emit(l.rolloutID, api.Event{Kind: api.ActivationProgress, Phase: phase, BytesDone: done, BytesTotal: total})
	}}
	select {
	case l.r.inputs <- in:
	default:
	}
}

// AwaitAck implements activation.Ledger.
func (l *ledger) AwaitAck(ctx context.Context) error { return l.r.AckWait(ctx, l.rolloutID, l.ackSeq) }

// Mark implements activation.Ledger. The times that timers count from are the reducer's.
func (l *ledger) Mark(ctx context.Context, task activation.Task) error {
	return l.task(ctx, func(t *tx, st *status) error {
		old := *st.Task
		task.Began = old.Began
		if !old.ConfirmFrom.IsZero() && old.Stage == activation.StageConfirm {
			task.ConfirmFrom = old.ConfirmFrom
		}
		st.Task = &task
		if old.Stage == activation.StageBegin && task.Kind == activation.Activate {
			t.moving(task.Closure)
		}
		return nil
	})
}

// Deferred implements activation.Ledger.
func (l *ledger) Deferred(ctx context.Context, components []string) error {
	return l.task(ctx, func(t *tx, st *status) error {
		st.StagedIn = t.bootID
		if err := t.emit(l.rolloutID, api.Event{Kind: api.ActivationDeferred, Components: components}); err != nil {
			return err
		}
		st.Task = nil
		return nil
	})
}

// Completed implements activation.Ledger.
func (l *ledger) Completed(ctx context.Context, o activation.Outcome) error {
	return l.task(ctx, func(t *tx, st *status) error {
		if st.Task.Kind == activation.RollBack {
			return t.emit(l.rolloutID, api.Event{
				Kind: api.RollbackCompleted, ObservedClosure: o.Observed, ExitCode: o.ExitCode, RebootPending: o.RebootPending, Reason: o.Reason,
			})
		}
		return t.emit(l.rolloutID, api.Event{
			Kind: api.ActivationCompleted, ObservedClosure: o.Observed, ExitCode: o.ExitCode,
			FailedUnits: o.FailedUnits, RebootPending: o.RebootPending,
		})
	})
}

// Failed implements activation.Ledger.
func (l *ledger) Failed(ctx context.Context, f activation.Failure) error {
	return l.task(ctx, func(t *tx, st *status) error {
		e := api.Event{
			Kind: api.ActivationFailed, Phase: f.Phase, Changed: f.Changed, ExitCode: f.ExitCode, Reason: f.Reason, StderrTail: f.StderrTail,
		}
		if st.Task.Kind == activation.RollBack {
			e.Kind = api.RollbackFailed
		}
		return t.emit(l.rolloutID, e)
	})
}

// acked moves what is acknowledged on.
func (t *tx) acked(id string, seq int64, refused []api.RefusedEvent) error {
	st, ok := t.status(id)
	if !ok || seq <= st.AckedSeq {
		return nil
	}
	if seq > st.LastSeq {
		return fmt.Errorf("rollout %s: seq %d is acknowledged, but only %d were sent", id, seq, st.LastSeq)
	}
	t.edit(id).AckedSeq = seq
	if slices.ContainsFunc(refused, func(r api.RefusedEvent) bool { return r.Seq == st.AckSeq }) {
		return t.cancel(id)
	}
	return nil
}

func (t *tx) setAside(id string, from, to int64) error {
	st, ok := t.status(id)
	if !ok {
		return nil // dropped meanwhile
	}
	if to > st.LastSeq {
		return fmt.Errorf("rollout %s has no events up to %d to set aside", id, to)
	}
	t.edit(id).AckedSeq = max(st.AckedSeq, to)
	if from <= st.AckSeq && st.AckSeq <= to {
		return t.cancel(id)
	}
	return nil
}

func (t *tx) replay(from map[string]int64) error {
	for id, seq := range from {
		if st, ok := t.status(id); ok && seq >= 1 && seq <= st.AckedSeq && len(t.state.rollouts[id].events) > 0 {
			t.edit(id).AckedSeq = max(seq, t.state.rollouts[id].events[0].Event.Seq) - 1
			t.say("sending events again", "rollout", id, "from", seq)
		}
	}
	return nil
}

func (t *tx) forget(ids []string) error {
	for _, id := range ids {
		st, ok := t.status(id)
		if ok && finished(st) && st.AckedSeq == st.LastSeq && len(t.state.rollouts[id].events) > 0 {
			t.forgotten = append(t.forgotten, id)
		}
	}
	return nil
}
