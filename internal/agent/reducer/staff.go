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
	job
	cancel context.CancelCauseFunc
	err    error
}

// job is an effect that the state asks for.
type job struct {
	kind jobKind
	id   int64 // of the task or soak
	run  func(context.Context) error
}

// jobKind is what a job works on. Of each kind one is running at a time.
type jobKind string

const (
	jobTask   jobKind = "task"   // works on the machine
	jobLook   jobKind = "look"   // reads what it runs
	jobProbes jobKind = "probes" // looks at its health
)

func (j job) key() string { return fmt.Sprintf("%s %d", j.kind, j.id) }

// assign stops the workers whose effect is gone, and starts those that are missing; but none is started
// while one of its kind that was stopped is still running, so that no two work on the machine at once.
// Probes do not work on it: the way back does not wait for one that hangs.
func (r *Reducer) assign(ctx context.Context) {
	jobs := r.jobs()
	leaving := map[jobKind]bool{}
	for key, w := range r.staff.running {
		if !wanted(jobs, key) {
			w.cancel(activation.ErrStopped)
			leaving[w.kind] = true
		}
	}
	for _, j := range jobs {
		if r.staff.running[j.key()] == nil && !leaving[j.kind] {
			r.staff.start(ctx, j)
		}
	}
}

func wanted(jobs []job, key string) bool {
	return slices.ContainsFunc(jobs, func(j job) bool { return j.key() == key })
}

func (s *staff) start(ctx context.Context, j job) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &worker{job: j, cancel: cancel}
	s.running[j.key()] = w
	go func() {
		w.err = j.run(ctx)
		s.done <- w
	}()
}

// leave takes note that a worker ended. One that ended by itself while its effect is still to be run
// would leave the host standing: that ends the reducer, and with it the process.
func (r *Reducer) leave(ctx context.Context, w *worker) error {
	delete(r.staff.running, w.key())
	w.cancel(nil)
	if !wanted(r.jobs(), w.key()) || ctx.Err() != nil || errors.Is(w.err, activation.ErrStopped) {
		return nil //nolint:nilerr // it was told to end
	}
	return fmt.Errorf("worker %s ended before its work did: %w", w.key(), errors.Join(w.err, errEarly))
}

var errEarly = errors.New("its effect is still to be run")

// dismiss stops every worker and waits for it.
func (s *staff) dismiss() {
	for _, w := range s.running {
		w.cancel(nil)
	}
	for len(s.running) > 0 {
		delete(s.running, (<-s.done).key())
	}
}

// jobs lists what the state asks for.
func (r *Reducer) jobs() []job {
	var jobs []job
	for id, ro := range r.state.rollouts {
		if task := ro.status.Task; task != nil {
			l := &ledger{r: r, rolloutID: id, taskID: ro.status.TaskID, ackSeq: ro.status.AckSeq}
			jobs = append(jobs, job{jobTask, l.taskID, func(ctx context.Context) error {
				return r.proc.Run(ctx, *task, l)
			}})
		}
		if ro.status.Soak != nil {
			jobs = append(jobs, r.soakJobs(id, ro)...)
		}
	}
	return jobs
}
