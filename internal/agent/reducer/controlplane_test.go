package reducer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/hoststate"
)

// controlPlane folds what it is told, as the real one does, and offers one dispatch at a time.
type controlPlane struct {
	mu        sync.Mutex
	answers   bool
	offer     *Offer
	refuse    api.EventKind
	withdrawn []string
	records   map[string]*hoststate.Record
	lastSeq   map[string]int64
	given     map[string]int // in which order the rollouts were offered first
	last      Answer
	history   []string
	events    []api.Event
	broken    []string
}

var errAway = errors.New("connection refused")

func (c *controlPlane) reach() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.answers {
		return errAway
	}
	return nil
}

func (c *controlPlane) answer(yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers = yes
}

func (c *controlPlane) withdrawals() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.withdrawn)
}

func (c *controlPlane) withdraw(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.withdrawn = append(c.withdrawn, id)
	c.offer = nil
}

// give offers a dispatch until it has its answer.
func (c *controlPlane) give(o Offer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offer, c.last = &o, Answer{}
	if c.records[o.RolloutID] == nil {
		rec := hoststate.New(o.Line, o.RolloutID, o.Policy, time.Now())
		c.records[o.RolloutID], c.given[o.RolloutID] = &rec, len(c.given)
	}
}

func (c *controlPlane) offered() (Offer, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.offer == nil || !c.answers {
		return Offer{}, false
	}
	return *c.offer, true
}

func (c *controlPlane) answered(o Offer, a Answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = a
	if a.Kind == Rejected && c.offer != nil && c.offer.RolloutID == o.RolloutID {
		c.offer = nil
	}
}

func (c *controlPlane) answerKind() AnswerKind {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last.Kind
}

func (c *controlPlane) take(b api.EventBatch) api.EventsAck {
	c.mu.Lock()
	defer c.mu.Unlock()
	ack := api.EventsAck{AckedSeq: b.Events[len(b.Events)-1].Seq}
	for _, e := range b.Events {
		last := c.lastSeq[b.RolloutID]
		switch {
		case e.Seq <= last:
			continue
		case e.Seq > last+1:
			c.broken = append(c.broken, fmt.Sprintf("%s: a gap from %d to %d", b.RolloutID, last, e.Seq))
		}
		c.lastSeq[b.RolloutID] = e.Seq
		c.fold(b.RolloutID, e, &ack)
	}
	return ack
}

func (c *controlPlane) fold(id string, e api.Event, ack *api.EventsAck) {
	rec := c.records[id]
	if e.Kind == c.refuse {
		ack.Refused = append(ack.Refused, api.RefusedEvent{Seq: e.Seq, Code: api.CodeInvalidTransition})
		return
	}
	next, _, err := hoststate.Step(*rec, hoststate.Reported{Event: e}, time.Now())
	if err != nil {
		c.broken = append(c.broken, fmt.Sprintf("%s: %v", id, err))
		return
	}
	*rec = next
	c.events = append(c.events, e)
	c.history = append(c.history, fmt.Sprintf("%s %s %d %s → %s %s %s", e.At.Format("15:04:05"), id, e.Seq, e.Kind, next.State, e.Reason, e.Status))
	if e.Kind != api.DispatchAck {
		return
	}
	for other, r := range c.records {
		if c.given[other] < c.given[id] && !r.Ended() {
			*r, _, _ = hoststate.Step(*r, hoststate.Supersede{}, time.Now())
		}
	}
	if c.offer != nil && c.offer.RolloutID == id && c.offer.Action == api.ActionActivate {
		c.offer = nil
	}
}

func (c *controlPlane) state(id string) api.HostState {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.records[id]; r != nil {
		return r.State
	}
	return ""
}

func (c *controlPlane) failure(id string) api.Code {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.records[id].Failure; f != nil {
		return f.Code
	}
	return ""
}

func (c *controlPlane) summary() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for id, r := range c.records {
		out = append(out, fmt.Sprintf("%s is %s", id, r.State))
	}
	return strings.Join(out, ", ")
}

// kinds lists the kinds of the events that were taken, without the progress.
func (c *controlPlane) kinds() (out []api.EventKind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events {
		if e.Kind != api.ActivationProgress {
			out = append(out, e.Kind)
		}
	}
	return out
}

// activate makes the offer of a rollout.
func activate(id, closure string, policy api.Policy) Offer {
	now := time.Now().UTC().Round(0)
	return Offer{
		RolloutID: id, Channel: "stable", Action: api.ActionActivate, Attempt: 1, Policy: policy, ReleasedAt: now,
		Line:      api.HostLine{Hostname: hostname, Closure: closure},
		SoakDueAt: now.Add(policy.Waves[0].Soak.Std()), EnqueuedAt: now, ManifestSHA256: "abc",
	}
}

func hasEvent(record []byte, kind api.EventKind) bool {
	var c change
	return json.Unmarshal(record, &c) == nil && slices.ContainsFunc(c.Events, func(e newEvent) bool { return e.Event.Kind == kind })
}
