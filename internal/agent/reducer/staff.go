package reducer

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"nixfleet.dev/nixfleet/internal/agent/activation"
)

// staff is the reducer's workers: what the state's effects ask for is running, and nothing else. Only
// Run's goroutine uses it.
type staff struct {
	running map[string]*worker
	done    chan *worker
}

// worker is one goroutine that runs an effect.
type worker struct {
	key    string
	cancel context.CancelCauseFunc
	err    error
}

// job is an effect that the state asks for.
type job struct {
	key string
	run func(context.Context) error
}

// assign stops the workers whose effect is gone, and starts those that are missing; but nothing is
// started while one that was stopped is still running, so that no two work on the machine at once.
func (r *Reducer) assign(ctx context.Context) {
	jobs := r.jobs()
	leaving := false
	for key, w := range r.staff.running {
		if !slices.ContainsFunc(jobs, func(j job) bool { return j.key == key }) {
			w.cancel(activation.ErrStopped)
			leaving = true
		}
	}
	if leaving {
		return
	}
	for _, j := range jobs {
		if r.staff.running[j.key] == nil {
			r.staff.start(ctx, j)
		}
	}
}

func (s *staff) start(ctx context.Context, j job) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &worker{key: j.key, cancel: cancel}
	s.running[j.key] = w
	go func() {
		w.err = j.run(ctx)
		s.done <- w
	}()
}

// leave takes note that a worker ended. One that ended by itself while its effect is still to be run
// would leave the host standing: that ends the reducer, and with it the process.
func (r *Reducer) leave(ctx context.Context, w *worker) error {
	delete(r.staff.running, w.key)
	w.cancel(nil)
	wanted := slices.ContainsFunc(r.jobs(), func(j job) bool { return j.key == w.key })
	if !wanted || ctx.Err() != nil || errors.Is(w.err, activation.ErrStopped) {
		return nil //nolint:nilerr // it was told to end
	}
	return fmt.Errorf("worker %s ended before its work did: %w", w.key, errors.Join(w.err, errEarly))
}

var errEarly = errors.New("its effect is still to be run")

// dismiss stops every worker and waits for it.
func (s *staff) dismiss() {
	for _, w := range s.running {
		w.cancel(nil)
	}
	for len(s.running) > 0 {
		delete(s.running, (<-s.done).key)
	}
}

// jobs lists what the state asks for.
func (r *Reducer) jobs() []job {
	var jobs []job
	for id, ro := range r.state.rollouts {
		if task := ro.status.Task; task != nil {
			l := &ledger{r: r, rolloutID: id, taskID: ro.status.TaskID, ackSeq: ro.status.AckSeq}
			jobs = append(jobs, job{fmt.Sprintf("task %d", l.taskID), func(ctx context.Context) error {
				return r.proc.Run(ctx, *task, l)
			}})
		}
		if ro.status.Soak != nil {
			jobs = append(jobs, r.soakJobs(id, ro)...)
		}
	}
	return jobs
}
