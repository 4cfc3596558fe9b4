package writer

import (
	"context"
	"fmt"
	"sync"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/rollout"
)

// input is something to be judged by the fleet. The core calls step, and done is answered once,
// when its entries are on disk or never will be.
type input struct {
	host string // who is heard by it, "" for nobody
	step func(f *rollout.Fleet, now time.Time) ([]rollout.Entry, error)
	done chan error // holds one
}

// submit puts an input into the queue and waits for its answer. When ctx ends first, the input may be
// recorded all the same.
func submit[T any](ctx context.Context, w *Writer, host string, step func(f *rollout.Fleet, now time.Time) ([]rollout.Entry, T, error)) (T, error) {
	var none, reply T
	in := &input{host: host, done: make(chan error, 1)}
	in.step = func(f *rollout.Fleet, now time.Time) (entries []rollout.Entry, err error) {
		entries, reply, err = step(f, now)
		return entries, err
	}
	if err := w.intake.put(in); err != nil {
		return none, err
	}
	select {
	case err := <-in.done:
		if err != nil {
			return none, err
		}
		return reply, nil
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}

// Events records events of host, which is who the certificate says sent them, and returns when they
// are on disk. Besides this package's errors it returns those of rollout.Fleet.Events.
func (w *Writer) Events(ctx context.Context, host string, b api.EventBatch) (api.EventsAck, error) {
	return submit(ctx, w, host, func(f *rollout.Fleet, now time.Time) ([]rollout.Entry, api.EventsAck, error) {
		return f.Events(host, b, now)
	})
}

// Heartbeat takes in a heartbeat of the host that it names, which the caller has compared with the
// certificate. One that says nothing new writes nothing.
func (w *Writer) Heartbeat(ctx context.Context, hb api.Heartbeat) (api.HeartbeatReply, error) {
	return submit(ctx, w, hb.Hostname, func(f *rollout.Fleet, now time.Time) ([]rollout.Entry, api.HeartbeatReply, error) {
		entries, reply := f.Heartbeat(hb, now)
		return entries, reply, nil
	})
}

// Reject records that host refused a dispatch.
func (w *Writer) Reject(ctx context.Context, host string, r api.Rejection) error {
	_, err := submit(ctx, w, host, func(f *rollout.Fleet, now time.Time) ([]rollout.Entry, struct{}, error) {
		return f.Reject(host, r, now), struct{}{}, nil
	})
	return err
}

// UseToken records that host shows the enrollment token nonce with a key; see rollout.Fleet.UseToken
// for the rest and its errors.
func (w *Writer) UseToken(ctx context.Context, host, nonce, publicKeySHA256 string, expiresAt *time.Time) error {
	_, err := submit(ctx, w, "", func(f *rollout.Fleet, now time.Time) ([]rollout.Entry, struct{}, error) {
		entries, err := f.UseToken(host, nonce, publicKeySHA256, expiresAt, now)
		return entries, struct{}{}, err
	})
	return err
}

// Adopt takes in a verified index with all that it names. Objects are the bytes of the fleet and of
// each release's artifacts; they are stored before anything on the log names them, and may be left out
// where they were stored before. The error may be a *rollout.RefusedRelease.
func (w *Writer) Adopt(ctx context.Context, a rollout.Adoption, objects ...[]byte) error {
	if err := w.intake.check(); err != nil {
		return err
	}
	if err := w.keep(ctx, a, objects); err != nil {
		return fmt.Errorf("keep the artifacts of index %d: %w", a.Sequence, err)
	}
	_, err := submit(ctx, w, "", func(f *rollout.Fleet, now time.Time) ([]rollout.Entry, struct{}, error) {
		entries, err := f.Adopt(a, now)
		return entries, struct{}{}, err
	})
	return err
}

// keep stores objects, and checks that all that a names are there to be found by the next start.
func (w *Writer) keep(ctx context.Context, a rollout.Adoption, objects [][]byte) error {
	there := map[string]bool{}
	for _, data := range objects {
		digest, err := w.store.PutObject(ctx, data)
		if err != nil {
			return err
		}
		there[digest] = true
	}
	named := []string{a.Object}
	for _, r := range a.Releases {
		o := r.Objects()
		named = append(named, o.Manifest, o.Hosts, o.Fleet)
	}
	for _, digest := range named {
		if there[digest] {
			continue
		}
		if _, err := w.store.Object(ctx, digest); err != nil {
			return err
		}
		there[digest] = true
	}
	return nil
}

// Heard says that host polled, or parks a poll. It never blocks and never writes.
func (w *Writer) Heard(host string) { w.polled.add(host) }

// View calls read with the fleet, which it must only read and not keep, and returns when everything
// that it saw is on disk. Only then may what was read be told to anybody.
func (w *Writer) View(ctx context.Context, read func(f *rollout.Fleet)) error {
	seq, err := w.look(read)
	if err != nil {
		return err
	}
	return w.committed.wait(ctx, seq)
}

func (w *Writer) look(read func(f *rollout.Fleet)) (int64, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.fleet == nil {
		return 0, w.intake.check()
	}
	read(w.fleet)
	return w.fleet.LogSeq(), nil
}

// History returns up to limit entries of a rollout's recorded history after the log's entry after,
// oldest first.
func (w *Writer) History(ctx context.Context, rolloutID string, after int64, limit int) ([]api.LoggedEvent, error) {
	history := []api.LoggedEvent{}
	for len(history) < limit {
		entries, err := w.store.RolloutEntries(ctx, rolloutID, after, limit)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			after = e.Seq
			entry, err := decode(e)
			if err != nil {
				return nil, err
			}
			if logged, ok := rollout.Logged(entry); ok && len(history) < limit {
				history = append(history, logged)
			}
		}
		if len(entries) < limit {
			break
		}
	}
	return history, nil
}

// intake is the queue and the door to it.
type intake struct {
	queue chan *input

	mu   sync.RWMutex
	is   int   // starting, taking or closed
	shut error // why it is closed
}

const (
	starting = iota
	taking
	closed
)

// put takes an input or says why not. It does not block.
func (q *intake) put(in *input) error {
	q.mu.RLock()
	defer q.mu.RUnlock()
	if err := q.refusal(); err != nil {
		return err
	}
	select {
	case q.queue <- in:
		return nil
	default:
		return ErrOverloaded
	}
}

// check returns why nothing is taken, if so.
func (q *intake) check() error {
	q.mu.RLock()
	defer q.mu.RUnlock()
	return q.refusal()
}

func (q *intake) refusal() error {
	switch q.is {
	case starting:
		return ErrStarting
	case closed:
		return q.shut
	}
	return nil
}

func (q *intake) open() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.is == starting {
		q.is = taking
	}
}

// close refuses inputs from now on with err and returns those that nobody has taken.
func (q *intake) close(err error) []*input {
	q.shutWith(err)
	var left []*input
	for {
		select {
		case in := <-q.queue:
			left = append(left, in)
		default:
			return left
		}
	}
}

// shutWith refuses inputs from now on; those that are in the queue stay.
func (q *intake) shutWith(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.is, q.shut = closed, err
}

// polled collects which hosts polled since the core last looked.
type polled struct {
	wake chan struct{} // holds one

	mu    sync.Mutex
	hosts map[string]struct{}
}

func (p *polled) add(host string) {
	p.mu.Lock()
	p.hosts[host] = struct{}{}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take returns them and starts anew.
func (p *polled) take() map[string]struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.hosts) == 0 {
		return nil
	}
	hosts := p.hosts
	p.hosts = make(map[string]struct{})
	return hosts
}
