package reducer

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
)

// recover is the first step after a start. Tasks and soaks that are in the state go on by themselves,
// each from its stage; what is left is a host that was deferred, and has been booted since.
func (t *tx) recover() error {
	for _, id := range t.ids() {
		st, _ := t.status(id)
		if st.Record.State == api.Deferred && st.Task == nil && st.StagedIn != t.bootID {
			t.assign(id, t.rebootTask(id, st.StagedIn))
		}
	}
	return nil
}

// soakJobs are the workers of a soak: a look at the machine before anything else, and again before the
// soak ends either way; and the probes, once it is known that the host is on its target.
func (r *Reducer) soakJobs(id string, ro *rollout) []job {
	soakID, st := ro.status.SoakID, ro.status
	var jobs []job
	if !r.onTarget[soakID] || st.outlook(ro.terms.Policy, r.meter.now()) != goesOn {
		jobs = append(jobs, job{jobLook, soakID, func(ctx context.Context) error {
			return r.look(ctx, id, soakID)
		}})
	}
	if r.onTarget[soakID] {
		jobs = append(jobs, job{jobProbes, soakID, func(ctx context.Context) error {
			return r.probe(ctx, id, soakID)
		}})
	}
	return jobs
}

// lookAgain is the pause between two looks at the machine while one is needed.
const lookAgain = time.Second

// look reads what the host runs and has the soak judged by it, until that is no longer needed.
func (r *Reducer) look(ctx context.Context, id string, soakID int64) error {
	for {
		running, err := r.o.Backend.Current(ctx)
		boot, err2 := r.o.Backend.Boot(ctx)
		switch {
		case err != nil || err2 != nil:
			r.log.Warn("cannot read what the host runs", "rollout", id, "err", cmp.Or(err, err2))
		default:
			err := r.do(ctx, func(t *tx) error {
				if err := t.judgeSoak(id, soakID, running, boot); err != nil {
					return err
				}
				r.onTarget[soakID] = true
				return nil
			})
			if err != nil {
				return err
			}
		}
		if err := r.o.Clock.Sleep(ctx, lookAgain); err != nil {
			return err
		}
	}
}

// healthTries is how often it is tried to find the health checks before they count as unreadable.
const healthTries = 3

// probe reads the health checks of the running system, declares them, and runs them until ctx ends.
func (r *Reducer) probe(ctx context.Context, id string, soakID int64) error {
	set, broken := r.loadChecks(ctx)
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := r.do(ctx, func(t *tx) error { return t.declare(id, soakID, set, broken) }); err != nil {
		return err
	}
	if broken == nil && len(set.Probes) > 0 {
		err := r.o.Probes.Run(ctx, set, func(run ProbeRun) {
			// An error is the end of the soak or of the reducer, which ends ctx too.
			_ = r.do(ctx, func(t *tx) error { return t.probed(id, soakID, run) })
		})
		if err != nil {
			return fmt.Errorf("running probes: %w", err)
		}
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

func (r *Reducer) loadChecks(ctx context.Context) (api.HealthChecks, error) {
	var err error
	for try := range healthTries {
		if r.o.Clock.Sleep(ctx, time.Duration(try)*time.Second) != nil {
			break
		}
		var path string
		if path, err = r.o.Backend.Health(ctx); err != nil {
			continue
		}
		set, err := r.o.Probes.Load(path)
		return set, err
	}
	return api.HealthChecks{}, err
}

var _ activation.Ledger = (*ledger)(nil)
