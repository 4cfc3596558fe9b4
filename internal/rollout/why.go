package rollout

import (
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet.dev/nixfleet/api"
)

// Why says why a host is where it is: every gate and its verdict. A host that has had its turn has no
// gates before it.
func (f *Fleet) Why(name string, now time.Time) (api.Why, bool) {
	h := f.hosts[name]
	if h == nil {
		return api.Why{}, false
	}
	w := api.Why{Hostname: name, State: h.state(), Gates: []api.GateVerdict{}}
	m := h.current()
	if m == nil {
		w.Summary = "is in no rollout"
		return w, true
	}
	w.RolloutID = m.ro.id
	var held block
	for _, g := range f.gates(m, now) {
		w.Gates = append(w.Gates, f.viewGate(m, g, now))
		if held.gate == "" && g.block.gate != "" {
			held = g.block
		}
	}
	w.Summary = f.summary(m, held, now)
	return w, true
}

// answer is one gate's.
type answer struct {
	gate  gate
	block block // zero where it lets the host pass
}

// gates asks every gate of a host that waits for its turn, in order.
func (f *Fleet) gates(m *member, now time.Time) []answer {
	if m.rec.State != api.Pending && m.rec.State != api.Skipped {
		return nil
	}
	list := []answer{
		{gateHeard, heardGate(m, now)}, {gateRollout, rolloutGate(m, now)}, {gateQuarantine, quarantineGate(m, now)},
		{gateWave, waveGate(m, now)}, {gateEdges, edgesGate(m, now)}, {gateBudget, budgetGate(m, standing{})},
	}
	if b := backoffGate(m, now); b.gate != "" {
		list = append(list, answer{gateBackoff, b})
	}
	return list
}

// standing is the ledger as it stands.
type standing struct{}

func (standing) others(b *budget, h *host) int { return b.others(h) }
func (standing) limit(b *budget) int           { return b.limit }

func (f *Fleet) viewGate(m *member, a answer, now time.Time) api.GateVerdict {
	v := api.GateVerdict{Gate: string(a.gate), Pass: a.block.gate == ""}
	if v.Pass {
		return v
	}
	v.Reason = f.words(m, a.block, now)
	if since := f.blockedSince(m, a.block); !since.IsZero() {
		v.Since = &since
	}
	return v
}

// blockedSince is when what the gate waits for began, as far as that is known.
func (f *Fleet) blockedSince(m *member, b block) time.Time {
	switch b.gate {
	case gateHeard:
		return m.ro.adoptedAt
	case gateRollout:
		return m.ro.stateSince
	case gateQuarantine:
		return m.ro.ch.quarantine[m.rec.TargetClosure].At
	case gateWave:
		if m.ro.open > 0 {
			return m.ro.waves[m.ro.open-1].openedAt
		}
		return m.ro.openedAt
	case gateEdges:
		return b.other.rec.ChangedAt
	case gateBudget:
		var first time.Time
		for h := range b.budget.in {
			for _, o := range h.members {
				if h != m.host && o.disrupts() {
					first = earlier(first, o.rec.ChangedAt)
				}
			}
		}
		return first
	case gateBackoff:
		return m.refusedSince
	}
	return time.Time{}
}

// Logged turns an entry into what operators see of it. The second result is false for entries that
// are no part of any rollout's history.
func Logged(e Entry) (api.LoggedEvent, bool) {
	if e.RolloutID == "" || e.Body == nil {
		return api.LoggedEvent{}, false
	}
	v := api.LoggedEvent{
		LogSeq: e.LogSeq, At: e.RecordedAt, RecordedAt: e.RecordedAt, Hostname: e.Hostname,
		RolloutID: e.RolloutID, Kind: string(e.Kind()),
	}
	var body any = e.Body
	var more map[string]string
	switch b := e.Body.(type) {
	case HostEvent:
		v.At, v.Kind, body = b.Event.At, string(b.Event.Kind), b.Event
		more = map[string]string{"journalId": b.JournalID}
		if b.Refused != "" {
			more["refused"], more["refusedBecause"] = string(b.Refused), b.Detail
		}
	case Rejected:
		v.At = b.At
	}
	v.Fields = fields(body, more)
	return v, true
}

// fields writes a body as an object without the fields that a LoggedEvent has already.
func fields(body any, more map[string]string) jsontext.Value {
	data, err := json.Marshal(body)
	if err != nil {
		return nil
	}
	members := map[string]jsontext.Value{}
	if err := json.Unmarshal(data, &members); err != nil {
		return nil
	}
	for _, name := range []string{"logSeq", "at", "recordedAt", "hostname", "rolloutId", "kind"} {
		delete(members, name)
	}
	for name, text := range more {
		if quoted, err := json.Marshal(text); err == nil {
			members[name] = quoted
		}
	}
	out, err := json.Marshal(members, json.Deterministic(true))
	if err != nil {
		return nil
	}
	return out
}
