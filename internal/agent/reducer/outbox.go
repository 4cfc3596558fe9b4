package reducer

import (
	"context"
	"math"
	"slices"
	"sync"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
)

// logged is an event with its place in the journal's order over all rollouts.
type logged struct {
	N     int64     `json:"n"`
	Event api.Event `json:"event"`
}

// outbox is what outbound sees of the state: every rollout's events that are still kept, and how far
// each was acknowledged. The reducer alone changes it, after the journal has the change; it may be read
// concurrently. A stream's slice is only ever appended to, so readers may go on with an older one.
type outbox struct {
	hostname, journalID string

	mu      sync.Mutex
	streams map[string]stream
	changed chan struct{} // closed and renewed whenever acked or events changed
	ready   chan struct{} // one slot: there may be something to send
}

type stream struct {
	acked  int64
	events []logged // contiguous by seq
}

func newOutbox(hostname, journalID string) *outbox {
	return &outbox{
		hostname: hostname, journalID: journalID, streams: map[string]stream{},
		changed: make(chan struct{}), ready: make(chan struct{}, 1),
	}
}

// set replaces a rollout's stream; drop removes it.
func (o *outbox) set(rolloutID string, s stream) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.streams[rolloutID] = s
	close(o.changed)
	o.changed = make(chan struct{})
	if s.pending() != nil {
		o.nudge()
	}
}

func (o *outbox) drop(rolloutID string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.streams, rolloutID)
}

func (o *outbox) nudge() {
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

// pending returns the events that are not acknowledged.
func (s stream) pending() []logged {
	if len(s.events) == 0 {
		return nil
	}
	skip := s.acked + 1 - s.events[0].Event.Seq
	if skip >= int64(len(s.events)) {
		return nil
	}
	return s.events[max(skip, 0):]
}

// next returns the oldest unacknowledged events, in the journal's order over all rollouts but skip: a
// batch is of one rollout, and ends before an event of another one that is older than the rest.
func (o *outbox) next(skip []string) (api.EventBatch, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var first string
	oldest, second := int64(math.MaxInt64), int64(math.MaxInt64)
	for id, s := range o.streams {
		pending := s.pending()
		if len(pending) == 0 || slices.Contains(skip, id) {
			continue
		}
		if n := pending[0].N; n < oldest {
			first, oldest, second = id, n, oldest
		} else {
			second = min(second, n)
		}
	}
	if first == "" {
		return api.EventBatch{}, false
	}
	return api.EventBatch{
		Hostname: o.hostname, JournalID: o.journalID, RolloutID: first,
		Events: batch(o.streams[first].pending(), second),
	}, true
}

// batch takes events older than before, within the limits of a batch; at least one.
func batch(pending []logged, before int64) []api.Event {
	const envelope = 1 << 10 // room for what is around the events
	size := envelope
	var out []api.Event
	for _, l := range pending {
		data, err := json.Marshal(l.Event)
		size += len(data) + 1
		full := len(out) == api.MaxBatchEvents || size > api.MaxBatchBytes || l.N > before
		if err != nil || (full && len(out) > 0) {
			break
		}
		out = append(out, l.Event)
	}
	return out
}

// wait returns once seq of the rollout is acknowledged.
func (o *outbox) wait(ctx context.Context, rolloutID string, seq int64) error {
	for {
		o.mu.Lock()
		s, changed := o.streams[rolloutID], o.changed
		o.mu.Unlock()
		if s.acked >= seq {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
