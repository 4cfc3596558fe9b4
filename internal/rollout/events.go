package rollout

import (
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/hoststate"
)

// maxAhead is how far a host's clock may be ahead of the control plane's before its events are refused:
// a stream whose at ran away could never go on.
const maxAhead = 24 * time.Hour

// Events judges events of host, which is who the certificate says sent them. The error is a
// *SequenceGap, *UnknownRollout or *Malformed, and nothing of the batch is then kept. Events that were
// seen before are acknowledged and make no entries.
func (f *Fleet) Events(host string, b api.EventBatch, now time.Time) ([]Entry, api.EventsAck, error) {
	now = wall(now)
	if err := checkBatch(host, b); err != nil {
		return nil, api.EventsAck{}, err
	}
	h := f.hosts[host]
	if h == nil {
		return nil, api.EventsAck{}, &UnknownRollout{b.RolloutID, "this host is not known"}
	}
	f.Heard(host, now)
	m := h.memberIn(b.RolloutID)
	switch {
	case m == nil && f.rollouts[b.RolloutID] == nil:
		return nil, api.EventsAck{}, &UnknownRollout{b.RolloutID, "the rollout is not known here"}
	case m == nil:
		return nil, api.EventsAck{}, &UnknownRollout{b.RolloutID, "this host is not in the rollout"}
	case h.journal.ID != "" && h.journal.ID != b.JournalID:
		return nil, api.EventsAck{}, &UnknownRollout{b.RolloutID, "no heartbeat has shown this journal"}
	}
	last := h.journal.Last[m.ro.id]
	if b.Events[0].Seq > last+1 {
		return nil, api.EventsAck{}, &SequenceGap{Expected: last + 1}
	}
	entries, ack := m.judgeEvents(b, last, now)
	return entries, ack, nil
}

// checkBatch refuses what makes no sense in any state.
func checkBatch(host string, b api.EventBatch) error {
	switch {
	case b.Hostname != host:
		return &Malformed{"hostname", "is not the host that sent this"}
	case b.JournalID == "" || len(b.JournalID) > 64:
		return &Malformed{"journalId", "is not 32 hex characters"}
	case len(b.Events) == 0 || len(b.Events) > api.MaxBatchEvents:
		return &Malformed{"events", fmt.Sprintf("are %d; 1 to %d are allowed", len(b.Events), api.MaxBatchEvents)}
	}
	for i, e := range b.Events {
		switch {
		case e.Seq < 1:
			return &Malformed{fmt.Sprintf("events.%d.seq", i), "is below 1"}
		case i > 0 && e.Seq != b.Events[i-1].Seq+1:
			return &Malformed{fmt.Sprintf("events.%d.seq", i), "does not follow the one before it"}
		}
	}
	return nil
}

// judgeEvents tries events on a copy of the record, one after the other.
func (m *member) judgeEvents(b api.EventBatch, last int64, now time.Time) ([]Entry, api.EventsAck) {
	ack := api.EventsAck{AckedSeq: last, Refused: []api.RefusedEvent{}}
	var entries []Entry
	rec := m.rec
	for _, e := range b.Events {
		if e.Seq <= last {
			continue
		}
		body := HostEvent{JournalID: b.JournalID, Event: trimmed(e)}
		next, _, err := hoststate.Step(rec, hoststate.Reported{Event: body.Event}, now)
		if body.Event.At.After(now.Add(maxAhead)) {
			err = fmt.Errorf("it is dated %s, which is far ahead of the control plane's clock", clip(e.At.String(), 64))
		}
		if err != nil {
			body.Refused, body.Detail = api.CodeInvalidTransition, clip(err.Error(), 512)
			ack.Refused = append(ack.Refused, api.RefusedEvent{Seq: e.Seq, Code: body.Refused, Detail: body.Detail})
		} else {
			rec = next
			if ended, _, err := hoststate.Step(rec, hoststate.Supersede{}, now); err == nil && !m.latest() {
				rec = ended
			}
		}
		ack.AckedSeq = e.Seq
		entries = append(entries, Entry{RecordedAt: now, RolloutID: m.ro.id, Hostname: m.rec.Hostname, Body: body})
	}
	return entries, ack
}

// trimmed makes an event one that can be written down: times without a monotonic reading, and within
// the years that JSON has.
func trimmed(e api.Event) api.Event {
	e.At, e.SoakDueAt, e.EnqueuedAt = sane(e.At), sane(e.SoakDueAt), sane(e.EnqueuedAt)
	e.Kind = api.EventKind(clip(string(e.Kind), 64))
	e.StderrTail = clip(e.StderrTail, api.MaxStderrTail)
	return e
}

func sane(t time.Time) time.Time {
	if y := t.Year(); y < 1 || y > 9999 {
		return time.Time{}
	}
	return wall(t)
}

// clip cuts outside text at n bytes, on its own memory, and drops what is not UTF-8.
func clip(s string, n int) string {
	if len(s) > n {
		s = strings.Clone(s[:n])
	}
	return strings.ToValidUTF8(s, "")
}

// canonical writes a value so that equal values give equal texts.
func canonical(v any) string {
	data, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return err.Error()
	}
	return string(data)
}
