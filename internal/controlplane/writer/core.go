package writer

import (
	"context"
	"fmt"
	"time"

	"nixfleet.dev/nixfleet/internal/rollout"
)

// minPause is the least time between two turns that only time asks for.
const minPause = 10 * time.Millisecond

// core is the goroutine that owns the fleet.
type core struct {
	w      *Writer
	fleet  *rollout.Fleet
	groups chan *group // to the committer

	pending []*group          // not handed over yet, oldest first
	backlog int               // entries in pending
	where   map[string]*group // each host's last entry of this turn
	encode  rollout.Encoder
	due     time.Time // when time alone makes a decision due, or zero
}

// run takes turns until ctx ends and everything is handed over, or failed ends.
func (c *core) run(ctx, failed context.Context) error {
	if err := c.take(nil, true); err != nil {
		return err
	}
	for {
		timer := c.timer()
		err := c.next(ctx, failed, timer)
		if timer != nil {
			timer.Stop()
		}
		switch {
		case failed.Err() != nil:
			return context.Cause(failed)
		case err != nil:
			return err
		case ctx.Err() != nil:
			return c.drain(failed)
		}
	}
}

// next waits for something to happen and deals with it. While a group's worth of entries waits to be
// written nothing more is taken: the queue fills up behind it.
func (c *core) next(ctx, failed context.Context, timer *time.Timer) error {
	queue, wake := c.w.intake.queue, c.w.polled.wake
	if c.backlog >= GroupSize {
		queue, wake, timer = nil, nil, nil
	}
	handOver, oldest, entries := c.offer()
	select {
	case handOver <- oldest:
		c.handedOver(entries)
	case in := <-queue:
		return c.take(in, false)
	case <-wake:
		return c.take(nil, false)
	case <-timeOf(timer):
		return c.take(nil, true)
	case <-ctx.Done():
	case <-failed.Done():
	}
	return nil
}

// drain takes what is in the queue, nothing more, and hands everything over. What it leaves in the
// queue when it fails is answered by Writer.stop.
func (c *core) drain(failed context.Context) error {
	c.w.intake.shutWith(ErrStopped)
	for in := c.w.intake.more(); in != nil; in = c.w.intake.more() {
		if err := c.take(in, false); err != nil {
			return err
		}
		if err := c.flush(failed, GroupSize); err != nil {
			return err
		}
	}
	return c.flush(failed, 0)
}

// flush hands groups over until no more than so many entries are left.
func (c *core) flush(failed context.Context, entries int) error {
	for len(c.pending) > 0 && (entries == 0 || c.backlog > entries) {
		handOver, oldest, n := c.offer()
		select {
		case handOver <- oldest:
			c.handedOver(n)
		case <-failed.Done():
			return context.Cause(failed)
		}
	}
	return nil
}

// offer returns the oldest group and how many entries it has, and where to send it to if there is one.
func (c *core) offer() (chan<- *group, *group, int) {
	if len(c.pending) == 0 {
		return nil, nil, 0
	}
	return c.groups, c.pending[0], len(c.pending[0].entries)
}

// handedOver forgets the oldest group, which had so many entries: it is the committer's now.
func (c *core) handedOver(entries int) {
	c.backlog -= entries
	c.pending[0] = nil
	c.pending = c.pending[1:]
}

// timer returns one for when time alone makes a decision due, or nil.
func (c *core) timer() *time.Timer {
	if c.due.IsZero() {
		return nil
	}
	return c.w.clock.NewTimer(max(c.due.Sub(c.w.now()), minPause))
}

func timeOf(t *time.Timer) <-chan time.Time {
	if t == nil {
		return nil
	}
	return t.C
}

// take judges an input and those behind it in the queue, up to a group's worth, and the polls since the
// last time; then it plans if any of that calls for it, or if plan says so.
func (c *core) take(in *input, plan bool) error {
	now := c.w.now()
	clear(c.where)
	t := turn{core: c, now: now}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	for n := 0; in != nil; in = c.w.intake.more() {
		if err := t.judge(in); err != nil {
			return err
		}
		if n++; n == GroupSize || c.backlog >= GroupSize {
			break
		}
	}
	for host := range c.w.polled.take() {
		t.look = c.fleet.Heard(host, now) || t.look
	}
	if t.look || plan {
		if err := t.plan(); err != nil {
			return err
		}
	}
	t.offers()
	c.due = c.fleet.NextWake()
	return nil
}

// turn is what one turn of the core works with.
type turn struct {
	*core
	now  time.Time
	look bool // there may be something to decide
}

// judge has the fleet judge one input and records what comes of it, in one group.
func (t *turn) judge(in *input) error {
	if in.host != "" {
		t.look = t.fleet.Heard(in.host, t.now) || t.look
	}
	entries, refusal := in.step(t.fleet, t.now)
	g := t.room(len(entries))
	if err := t.record(g, entries); err != nil {
		in.done <- stopped(err)
		return err
	}
	g.inputs = append(g.inputs, answered{in, refusal})
	t.look = t.look || len(entries) > 0
	return nil
}

// plan decides until nothing more is due.
func (t *turn) plan() error {
	rounds := t.fleet.MaxRounds()
	for range rounds {
		decisions := t.fleet.Plan(t.now)
		if len(decisions) == 0 {
			return nil
		}
		for i := range decisions {
			if err := t.record(t.room(1), decisions[i:i+1]); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("the planner found something new to decide %d times in a row", rounds)
}

// record numbers entries, folds them into the fleet and puts them into a group.
func (t *turn) record(g *group, entries []rollout.Entry) error {
	for _, e := range entries {
		e.LogSeq, e.RecordedAt = t.fleet.LogSeq()+1, t.now
		if err := t.fleet.Apply(e); err != nil {
			return fmt.Errorf("apply entry %d (%s): %w", e.LogSeq, e.Kind(), err)
		}
		if err := g.add(e, &t.encode); err != nil {
			return err
		}
		if e.Hostname != "" {
			t.where[e.Hostname] = g
		}
	}
	t.backlog += len(entries)
	return nil
}

// offers puts each changed dispatch into the group that has the last entry of its host, so that of a
// large plan the first hosts are woken while the rest is being written.
func (t *turn) offers() {
	for _, host := range t.fleet.ChangedDispatches() {
		g := t.where[host]
		if g == nil {
			g = t.room(0)
		}
		g.offers = append(g.offers, offer{host, t.fleet.Outstanding(host)})
	}
}

// room returns the newest group that was not handed over if n more entries fit in, or else a new one.
func (c *core) room(n int) *group {
	if last := len(c.pending) - 1; last >= 0 {
		if g := c.pending[last]; len(g.entries)+n <= GroupSize {
			return g
		}
	}
	g := c.w.groups.Get().(*group)
	c.pending = append(c.pending, g)
	return g
}

// more returns the next input in the queue, or nil.
func (q *intake) more() *input {
	select {
	case in := <-q.queue:
		return in
	default:
		return nil
	}
}
