package probe

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
)

// Result is what one run of one probe found.
type Result struct {
	Probe      api.Probe
	At         time.Time // when the run ended
	Status     string    // api.ProbePass or api.ProbeFail
	Reason     string    // why it failed, at most maxReason bytes
	SubResults []api.ProbeSubResult
}

const maxReason = 512

// atOnce is how many probes run at the same time.
const atOnce = 8

// startWithin is how long the first runs are spread over.
const startWithin = time.Second

// Runner runs probes.
type Runner struct {
	clock clock.Clock
	kinds map[string]kind
}

// kind runs a probe once; nil means that it passes. ctx ends with the probe's timeout.
type kind func(ctx context.Context, p api.Probe) error

// NewRunner returns a runner of every kind of probe that this agent has.
func NewRunner(c clock.Clock) *Runner {
	return &Runner{clock: c, kinds: map[string]kind{api.ProbeHTTP: checkHTTP, api.ProbeTCP: checkTCP, api.ProbeExec: checkExec}}
}

var errNotSupported = errors.New("kind not supported by this agent")

// giveUp is how long a run may take to end once its time is over. One that takes longer cannot be ended
// (a command that hangs in the kernel, on a disk that is gone) and is left behind.
const giveUp = letGo + 500*time.Millisecond

// Run runs the probes that are not disabled until ctx ends, and calls report after each run, from
// several goroutines. A run that ctx cut off is not reported. It returns only once all of it has ended,
// but for runs that cannot be ended, and always nil.
func (r *Runner) Run(ctx context.Context, set api.HealthChecks, report func(Result)) error {
	var probes []api.Probe
	for _, p := range set.Probes {
		if p.Mode != api.ModeDisabled {
			probes = append(probes, p)
		}
	}
	turns := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for i, p := range probes {
		all.Go(func() {
			share := func(d time.Duration) time.Duration { return d / time.Duration(len(probes)) * time.Duration(i) }
			r.repeat(ctx, p, share(startWithin), share(p.Interval.Std()), turns, report)
		})
	}
	<-ctx.Done()
	all.Wait()
	return nil
}

// repeat runs one probe after delay and then every interval, the first of these early by lead, so that
// the probes of a host do not stay together. A run that takes longer than its interval has the ones
// that it missed left out.
func (r *Runner) repeat(ctx context.Context, p api.Probe, delay, lead time.Duration, turns chan struct{}, report func(Result)) {
	if r.clock.Sleep(ctx, delay) != nil {
		return
	}
	next := r.clock.Now().Add(-lead)
	var left leftBehind
	for {
		select {
		case turns <- struct{}{}:
		case <-ctx.Done():
			return
		}
		result := r.once(ctx, p, &left)
		<-turns
		if ctx.Err() != nil {
			return
		}
		report(result)
		now := r.clock.Now()
		for interval := p.Interval.Std(); !next.After(now); {
			next = next.Add(max(interval, minInterval))
		}
		if r.clock.Sleep(ctx, next.Sub(now)) != nil {
			return
		}
	}
}

// leftBehind is a run of a probe that did not end, nil where there is none.
type leftBehind <-chan error

// still says whether it has not ended to this day.
func (l *leftBehind) still() bool {
	if *l == nil {
		return false
	}
	select {
	case <-*l: //nolint:errcheck // what it ended with matters to nobody any more
		*l = nil
		return false
	default:
		return true
	}
}

var errNoEnd = errors.New("the run does not end")

func (r *Runner) once(ctx context.Context, p api.Probe, left *leftBehind) Result {
	limit, cancel := context.WithTimeout(ctx, p.Timeout.Std())
	defer cancel()
	err := errNotSupported
	if run, ok := r.kinds[p.Kind]; ok {
		if err = errNoEnd; !left.still() { // of one probe there is one run
			err = r.try(limit, p, run, left)
		}
	}
	result := Result{Probe: p, At: r.clock.Now(), Status: api.ProbePass}
	if err != nil {
		if errors.Is(limit.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("timed out after %v: %w", p.Timeout, err)
		}
		result.Status, result.Reason = api.ProbeFail, clip(err.Error())
	}
	return result
}

// try runs a probe once and waits for its end, but not for ever.
func (r *Runner) try(limit context.Context, p api.Probe, run kind, left *leftBehind) error {
	done := make(chan error, 1)
	go func() { done <- run(limit, p) }()
	select {
	case err := <-done:
		return err
	case <-limit.Done():
	}
	timer := r.clock.NewTimer(giveUp)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		*left = done
		return errNoEnd
	}
}

func clip(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxReason)], "")
}
