package reducer

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
	"nixfleet.dev/nixfleet/internal/hoststate"
)

// state is what replaying the journal gives. Only apply changes it, live and on replay alike.
type state struct {
	journalID string
	global    global
	rollouts  map[string]*rollout
}

// global is what belongs to no rollout. It is a value: a step changes a copy.
type global struct {
	NextN    int64 `json:"nextN"`    // place of the next event in the journal's order
	NextTask int64 `json:"nextTask"` // number of the next task
	Orders   int64 `json:"orders"`   // dispatches accepted so far

	Quarantine  map[string]quarantined `json:"quarantine,omitempty"`  // by closure
	Converged   string                 `json:"converged,omitzero"`    // see View.Converged
	HasOwn      bool                   `json:"hasOwn,omitzero"`       // Converged is one that the host converged on
	Unconverged []string               `json:"unconverged,omitempty"` // targets not converged in, oldest first
	Hold        *Hold                  `json:"hold,omitzero"`
}

// quarantined says why a closure is not tried again on this host.
type quarantined struct {
	Code      api.Code  `json:"code"`
	RolloutID string    `json:"rolloutId"`
	At        time.Time `json:"at"`
}

// rollout is one rollout that this host takes part in.
type rollout struct {
	terms  terms
	status status
	events []logged // contiguous, up to status.LastSeq; none once forgotten
}

// terms are what was verified when the dispatch was accepted; they never change within an attempt.
type terms struct {
	Channel        string       `json:"channel"`
	Line           api.HostLine `json:"line"`
	Policy         api.Policy   `json:"policy"`
	ReleasedAt     time.Time    `json:"releasedAt"`
	ManifestSHA256 string       `json:"manifestSha256"`
}

// status is what changes about a rollout. It is a value: a step changes a copy, made by clone.
type status struct {
	Record   hoststate.Record `json:"record"`
	Order    int64            `json:"order"` // of its newest accepted dispatch
	LastSeq  int64            `json:"lastSeq"`
	AckedSeq int64            `json:"ackedSeq"`
	AckSeq   int64            `json:"ackSeq"` // of this attempt's DispatchAck

	// Effects still to run. The reducer has them run as long as they are here.
	Task   *activation.Task `json:"task,omitzero"`
	TaskID int64            `json:"taskId,omitzero"`
	Soak   *soak            `json:"soak,omitzero"`
	SoakID int64            `json:"soakId,omitzero"`

	StagedIn   string    `json:"stagedIn,omitzero"` // boot in which it was deferred
	Reverted   bool      `json:"reverted,omitzero"` // a revert was accepted: it is done once
	ProgressAt time.Time `json:"progressAt,omitzero"`
}

func (st status) clone() status {
	if st.Task != nil {
		task := *st.Task
		st.Task = &task
	}
	st.Soak = st.Soak.clone()
	return st
}

// version of the journal's records.
const version = 1

// change is one journal record: what a step did. Values replace the ones before; events are appended.
type change struct {
	Version   int               `json:"v"`
	Snapshot  bool              `json:"snapshot,omitzero"` // forget everything before
	JournalID string            `json:"journalId,omitzero"`
	Global    *global           `json:"global,omitzero"`
	Terms     map[string]terms  `json:"terms,omitempty"`
	Status    map[string]status `json:"status,omitempty"`
	Events    []newEvent        `json:"events,omitempty"`
	Forget    []string          `json:"forget,omitempty"` // their events are dropped
	Drop      []string          `json:"drop,omitempty"`   // all of them is dropped
}

// newEvent is one new event of a rollout.
type newEvent struct {
	RolloutID string    `json:"rolloutId"`
	N         int64     `json:"n"`
	Event     api.Event `json:"event"`
}

func newState(journalID string) *state {
	return &state{journalID: journalID, rollouts: map[string]*rollout{}}
}

// replay folds the journal's records.
func replay(records [][]byte) (*state, error) {
	s := newState("")
	for i, data := range records {
		var c change
		if err := json.Unmarshal(data, &c); err != nil {
			return nil, fmt.Errorf("journal record %d: %w", i+1, err)
		}
		if c.Version != version {
			return nil, fmt.Errorf("journal record %d has version %d; this agent reads %d", i+1, c.Version, version)
		}
		s.apply(&c)
	}
	if s.journalID == "" {
		return nil, fmt.Errorf("the journal's %d records have no journal id", len(records))
	}
	for id, ro := range s.rollouts {
		if incomplete(ro.terms.Policy) {
			return nil, fmt.Errorf("the journal has no whole policy for rollout %s", id)
		}
	}
	return s, nil
}

func (s *state) apply(c *change) {
	if c.Snapshot {
		*s = *newState(c.JournalID)
	}
	if c.Global != nil {
		s.global = *c.Global
	}
	for id, t := range c.Terms {
		s.at(id).terms = t
	}
	for id, st := range c.Status {
		s.at(id).status = st
	}
	for _, e := range c.Events {
		r := s.at(e.RolloutID)
		r.events = append(r.events, logged{N: e.N, Event: e.Event})
	}
	for _, id := range c.Forget {
		s.at(id).events = nil
	}
	for _, id := range c.Drop {
		delete(s.rollouts, id)
	}
}

func (s *state) at(id string) *rollout {
	if s.rollouts[id] == nil {
		s.rollouts[id] = &rollout{}
	}
	return s.rollouts[id]
}

// snapshot is the whole state as one record.
func (s *state) snapshot() *change {
	g := s.global
	c := &change{
		Version: version, Snapshot: true, JournalID: s.journalID, Global: &g,
		Terms: map[string]terms{}, Status: map[string]status{},
	}
	for id, r := range s.rollouts {
		c.Terms[id], c.Status[id] = r.terms, r.status
		for _, e := range r.events {
			c.Events = append(c.Events, newEvent{RolloutID: id, N: e.N, Event: e.Event})
		}
	}
	slices.SortFunc(c.Events, func(a, b newEvent) int { return int(a.N - b.N) })
	return c
}

// size is how many bytes of JSON the rollout's events are.
func (s *state) size(id string) (n int) {
	if ro := s.rollouts[id]; ro != nil {
		for _, e := range ro.events {
			data, _ := json.Marshal(e.Event) // it was written to the journal before
			n += len(data)
		}
	}
	return n
}

// byOrder returns the rollouts, the one accepted last first.
func (s *state) byOrder() []string {
	ids := slices.Collect(maps.Keys(s.rollouts))
	slices.SortFunc(ids, func(a, b string) int { return int(s.rollouts[b].status.Order - s.rollouts[a].status.Order) })
	return ids
}

// newest returns the rollout that was accepted last, "" where there is none.
func (s *state) newest() string {
	if ids := s.byOrder(); len(ids) > 0 {
		return ids[0]
	}
	return ""
}

// view makes the View of a state.
func (s *state) view() *View {
	v := &View{
		JournalID: s.journalID, LastSeq: map[string]int64{}, Acked: map[string]int64{}, Rollouts: map[string]RolloutView{},
		Newest: s.newest(), Hold: s.global.Hold, Converged: s.global.Converged,
		quarantine: s.global.Quarantine, unconverged: map[string]bool{},
	}
	for _, c := range s.global.Unconverged {
		v.unconverged[c] = true
	}
	for id, r := range s.rollouts {
		rec := r.status.Record
		v.LastSeq[id], v.Acked[id] = r.status.LastSeq, r.status.AckedSeq
		v.Rollouts[id] = RolloutView{
			Channel: r.terms.Channel, State: rec.State, Attempt: rec.Attempt, TargetClosure: rec.TargetClosure,
			RebootPending: rec.RebootPending, Ended: rec.Ended(),
		}
	}
	return v
}
