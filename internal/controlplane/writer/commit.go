package writer

import (
	"context"
	"sync"
	"sync/atomic"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/controlplane/store"
	"nixfleet.dev/nixfleet/internal/rollout"
)

// group is what is committed at once, and what is told to whom after that.
type group struct {
	entries []store.Entry
	size    int64      // about how many bytes they take
	refused []api.Code // of the events among them that contradict the record
	inputs  []answered
	offers  []offer // in the order to make them in
}

// answered is an input with what its sender is told once its group is on disk: nil or a refusal.
type answered struct {
	*input
	refusal error
}

// offer is what a host is offered from now on, nil for nothing.
type offer struct {
	host     string
	dispatch *api.Dispatch
}

// answer tells everybody in the group that it failed, or what they are due where err is nil.
func (g *group) answer(err error) {
	for _, in := range g.inputs {
		if err != nil {
			in.done <- err
		} else {
			in.done <- in.refusal
		}
	}
}

// reset makes g an empty group that has its memory.
func (g *group) reset() {
	clear(g.entries)
	clear(g.inputs)
	clear(g.offers)
	*g = group{entries: g.entries[:0], refused: g.refused[:0], inputs: g.inputs[:0], offers: g.offers[:0]}
}

// commit writes groups as they come, until the channel is closed or one fails.
func (w *Writer) commit(ctx context.Context, groups <-chan *group) error {
	for g := range groups {
		if err := w.write(ctx, g); err != nil {
			g.answer(stopped(err))
			return err
		}
		for _, o := range g.offers {
			w.registry.Set(o.host, o.dispatch)
		}
		g.answer(nil)
		g.reset()
		w.groups.Put(g)
	}
	return nil
}

// write makes a group durable.
func (w *Writer) write(ctx context.Context, g *group) error {
	if len(g.entries) == 0 {
		return nil
	}
	began := w.clock.Now()
	if err := w.store.Append(ctx, g.entries); err != nil {
		return err
	}
	w.metrics.wrote(g, w.clock.Now().Sub(began))
	w.committed.advance(g.entries[len(g.entries)-1].Seq)
	w.snapshots.grown(g.size)
	return nil
}

// add puts an entry into the group, as the store keeps it.
func (g *group) add(e rollout.Entry, encode *rollout.Encoder) error {
	body, err := encode.Body(e.Body)
	if err != nil {
		return err
	}
	g.entries = append(g.entries, store.Entry{
		Seq: e.LogSeq, RecordedAt: e.RecordedAt, Kind: string(e.Kind()),
		RolloutID: e.RolloutID, Hostname: e.Hostname, Body: body,
	})
	g.size += sizeOf(g.entries[len(g.entries)-1])
	if event, ok := e.Body.(rollout.HostEvent); ok && event.Refused != "" {
		g.refused = append(g.refused, event.Refused)
	}
	return nil
}

func sizeOf(e store.Entry) int64 { return int64(len(e.Body) + len(e.RolloutID) + len(e.Hostname)) }

// decode is the reverse of add.
func decode(e store.Entry) (rollout.Entry, error) {
	body, err := rollout.DecodeBody(rollout.Kind(e.Kind), e.Body)
	return rollout.Entry{
		LogSeq: e.Seq, RecordedAt: e.RecordedAt, RolloutID: e.RolloutID, Hostname: e.Hostname, Body: body,
	}, err
}

// committed is how far the log is on disk.
type committed struct {
	seq atomic.Int64

	mu      sync.Mutex
	waiting int
	changed chan struct{} // closed and replaced whenever seq rises while somebody waits
	err     error         // why it never will again
}

func (c *committed) advance(seq int64) {
	c.seq.Store(seq)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting > 0 {
		c.waiting = 0
		close(c.changed)
		c.changed = make(chan struct{})
	}
}

func (c *committed) stop(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	close(c.changed)
	c.changed = make(chan struct{})
}

// wait returns when entry seq is on disk.
func (c *committed) wait(ctx context.Context, seq int64) error {
	for c.seq.Load() < seq {
		changed, err := c.watch(seq)
		if err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// watch returns what is closed when seq may have been reached.
func (c *committed) watch(seq int64) (<-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seq.Load() >= seq {
		return reached, nil
	}
	c.waiting++
	return c.changed, c.err
}

var reached = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()
