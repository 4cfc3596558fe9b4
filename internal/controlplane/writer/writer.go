package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane/store"
	"nixfleet.dev/nixfleet/internal/rollout"
)

// Limits of design/control-plane.md.
const (
	// QueueLength is how many inputs may wait; one more is ErrOverloaded.
	QueueLength = 4096
	// GroupSize is how many entries are committed at once, but where one input makes more.
	GroupSize = 512
)

// Errors of calls that were not taken. None of them left anything behind.
var (
	// ErrStarting is returned until the log is read.
	ErrStarting = errors.New("the control plane is starting")
	// ErrOverloaded is returned while the queue is full.
	ErrOverloaded = errors.New("the control plane has too much to do")
)

// ErrStopped is returned once the writer ends. A call that was waiting then may have been recorded or
// not: nothing was acknowledged.
var ErrStopped = errors.New("the control plane is stopping")

// Registry is told what each host is offered; a nil dispatch means nothing any more. It is called by
// one goroutine at a time, must not block, and must not call the Writer.
type Registry interface {
	Set(host string, d *api.Dispatch)
}

// Options configure a Writer; all but the last two are needed.
type Options struct {
	Store    store.Store
	Registry Registry
	Clock    clock.Clock
	Logger   *slog.Logger
	Metrics  prometheus.Registerer // nil for none

	HeartbeatInterval time.Duration // what agents are told; rollout's default when zero
}

// Writer owns the fleet's state. Its methods may be called concurrently, Run once.
type Writer struct {
	store    store.Store
	registry Registry
	clock    clock.Clock
	log      *slog.Logger
	metrics  *metrics
	options  rollout.Options

	intake intake
	polled polled
	ready  chan struct{}

	mu    sync.RWMutex   // held by the core while it changes the fleet, and shared by View
	fleet *rollout.Fleet // nil until the log is read

	committed committed
	snapshots snapshots
	groups    sync.Pool // of *group, empty
}

// New returns a Writer that does nothing until Run.
func New(o Options) *Writer {
	w := &Writer{
		store: o.Store, registry: o.Registry, clock: o.Clock, log: o.Logger,
		options: rollout.Options{Loader: loader{o.Store}, HeartbeatInterval: o.HeartbeatInterval},
		intake:  intake{queue: make(chan *input, QueueLength)},
		polled:  polled{hosts: map[string]struct{}{}, wake: make(chan struct{}, 1)},
		ready:   make(chan struct{}),
	}
	w.groups.New = func() any { return &group{} }
	w.committed.changed = make(chan struct{})
	w.snapshots.due, w.snapshots.least = make(chan struct{}, 1), minTail
	w.metrics = newMetrics(o.Metrics, w.intake.queue)
	return w
}

// Ready is closed once the log is read and inputs are taken.
func (w *Writer) Ready() <-chan struct{} { return w.ready }

// Run reads the log and then takes inputs until ctx ends; what was taken by then is still committed
// and answered, and a snapshot is left for the next start. It returns nil after that. Any other return is
// an error that the process must end with: memory may be ahead of the disk.
func (w *Writer) Run(ctx context.Context) (err error) {
	defer func() { w.stop(err) }()
	fleet, err := w.start(ctx)
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	upkeep, stopUpkeep := context.WithCancel(context.WithoutCancel(ctx))
	var background sync.WaitGroup
	background.Go(func() { w.upkeep(upkeep) })
	err = w.serve(ctx, fleet)
	stopUpkeep()
	background.Wait()
	if err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	w.leave(context.WithoutCancel(ctx), fleet)
	return nil
}

// start folds the log and makes the Writer ready.
func (w *Writer) start(ctx context.Context) (*rollout.Fleet, error) {
	folded, err := fold(ctx, w.store, w.options, w.log)
	if err != nil {
		return nil, err
	}
	fleet := folded.fleet
	w.restoreHeard(ctx, fleet)
	fleet.Started(w.now())
	for _, host := range fleet.OutstandingHosts() {
		w.registry.Set(host, fleet.Outstanding(host))
	}
	fleet.ChangedDispatches() // all of them are in the registry now
	w.snapshots.started(folded)
	w.committed.advance(fleet.LogSeq())
	w.metrics.logSeq.Set(float64(fleet.LogSeq()))
	w.mu.Lock()
	w.fleet = fleet
	w.mu.Unlock()
	w.intake.open()
	close(w.ready)
	w.log.Info("the log is read", "logSeq", fleet.LogSeq(), "snapshot", folded.snapshot)
	return fleet, nil
}

// serve runs core and committer until ctx ends and all is written, or something fails.
func (w *Writer) serve(ctx context.Context, fleet *rollout.Fleet) error {
	failed, fail := context.WithCancelCause(context.WithoutCancel(ctx))
	defer fail(nil)
	c := &core{w: w, fleet: fleet, groups: make(chan *group), where: map[string]*group{}}
	var committer sync.WaitGroup
	committer.Go(func() {
		if err := w.commit(context.WithoutCancel(ctx), c.groups); err != nil {
			fail(err)
		}
	})
	err := c.run(ctx, failed)
	close(c.groups)
	committer.Wait()
	if err == nil {
		err = context.Cause(failed)
	}
	for _, g := range c.pending {
		g.answer(stopped(err))
	}
	return err
}

// stop refuses whatever comes from now on, and whoever is still in the queue.
func (w *Writer) stop(cause error) {
	err := stopped(cause)
	for _, in := range w.intake.close(err) {
		in.done <- err
	}
	w.committed.stop(err)
}

func stopped(cause error) error {
	if cause == nil {
		return ErrStopped
	}
	return fmt.Errorf("%w: %w", ErrStopped, cause)
}

// now is the time of what is decided and recorded: what the log keeps of it is all there is.
func (w *Writer) now() time.Time { return w.clock.Now().UTC().Truncate(time.Millisecond) }
