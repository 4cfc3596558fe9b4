package rollout

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/hoststate"
)

// snapshot is the durable state as of an entry. What is in it may be added to, never changed.
type snapshot struct {
	Version  int                   `json:"version"`
	LogSeq   int64                 `json:"logSeq"`
	Index    FleetDeclared         `json:"index"`
	Hosts    []hostSnapshot        `json:"hosts"`    // by name
	Rollouts []rolloutSnapshot     `json:"rollouts"` // by age
	Channels map[string]refusedSet `json:"channels"`
	Tokens   map[string]token      `json:"tokens"`
	Verdicts []verdict             `json:"verdicts"`
}

const snapshotVersion = 1

// refusedSet is a channel's quarantine, by closure.
type refusedSet map[string]quarantine

type hostSnapshot struct {
	Name    string       `json:"name"`
	Seen    HostSeen     `json:"seen"`
	SeenAt  time.Time    `json:"seenAt,omitzero"`
	Journal journal      `json:"journal"`
	Past    []journal    `json:"past,omitempty"`
	Refused *api.Failure `json:"refused,omitzero"`
}

type rolloutSnapshot struct {
	ID         string           `json:"id"`
	Adopted    Adopted          `json:"adopted"`
	AdoptedAt  time.Time        `json:"adoptedAt"`
	State      api.RolloutState `json:"state"`
	StateSince time.Time        `json:"stateSince"`
	Open       int              `json:"open"`
	OpenedAt   time.Time        `json:"openedAt,omitzero"`
	EndedAt    time.Time        `json:"endedAt,omitzero"`
	Reason     string           `json:"reason,omitzero"`
	Waves      []time.Time      `json:"waves"` // when each open one opened
	Members    []memberSnapshot `json:"members"`
}

// memberSnapshot is a member that anything happened to; the others are as the manifest has them.
type memberSnapshot struct {
	Record       hoststate.Record `json:"record"`
	Offer        *Dispatched      `json:"offer,omitzero"`
	Took         bool             `json:"took,omitzero"`
	Moved        bool             `json:"moved,omitzero"`
	Overdue      *Overdue         `json:"overdue,omitzero"`
	Stays        string           `json:"stays,omitzero"`
	Refusals     int              `json:"refusals,omitzero"`
	RefusedAs    api.Code         `json:"refusedAs,omitzero"`
	RefusedSince time.Time        `json:"refusedSince,omitzero"`
	RetryAt      time.Time        `json:"retryAt,omitzero"`
	Reasons      []refusal        `json:"reasons,omitempty"`
}

// Still is the durable state of a Fleet as it was at one moment. The Fleet may change meanwhile: nothing
// of a Still does.
type Still struct{ s snapshot }

// Snapshot returns the durable state as JSON. The same state gives the same bytes.
func (f *Fleet) Snapshot() ([]byte, error) { return f.Still().JSON() }

// Still copies the durable state, which takes a small part of the time that encoding it does.
func (f *Fleet) Still() Still {
	s := snapshot{
		Version: snapshotVersion, LogSeq: f.logSeq, Index: f.index, Tokens: maps.Clone(f.tokens),
		Verdicts: slices.Clone(f.verdicts), Channels: make(map[string]refusedSet, len(f.channels)),
		Hosts: make([]hostSnapshot, 0, len(f.hosts)),
	}
	for name, ch := range f.channels {
		s.Channels[name] = maps.Clone(ch.quarantine)
	}
	for _, h := range f.hosts {
		s.Hosts = append(s.Hosts, h.snapshot())
	}
	for _, r := range slices.SortedFunc(maps.Values(f.rollouts), older) {
		s.Rollouts = append(s.Rollouts, r.snapshot())
	}
	return Still{s}
}

// LogSeq returns the number of the newest entry that is in it.
func (s Still) LogSeq() int64 { return s.s.LogSeq }

// JSON encodes it for Restore.
func (s Still) JSON() ([]byte, error) {
	slices.SortFunc(s.s.Hosts, func(a, b hostSnapshot) int { return strings.Compare(a.Name, b.Name) })
	data, err := json.Marshal(s.s, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("encode snapshot at log entry %d: %w", s.s.LogSeq, err)
	}
	return data, nil
}

func (h *host) snapshot() hostSnapshot {
	s := hostSnapshot{
		Name: h.name, Seen: h.seen, SeenAt: h.seenAt, Journal: h.journal.clone(), Past: slices.Clone(h.past), Refused: h.refused,
	}
	for i, j := range s.Past {
		s.Past[i] = j.clone()
	}
	return s
}

func (j journal) clone() journal { return journal{ID: j.ID, Last: maps.Clone(j.Last)} }

func (r *rollout) snapshot() rolloutSnapshot {
	s := rolloutSnapshot{
		ID: r.id, Adopted: r.adopted, AdoptedAt: r.adoptedAt, State: r.state, StateSince: r.stateSince,
		Open: r.open, OpenedAt: r.openedAt, EndedAt: r.endedAt, Reason: r.reason,
	}
	for i := range r.open {
		s.Waves = append(s.Waves, r.waves[i].openedAt)
	}
	touched := 0
	for i := range r.members {
		if !r.members[i].untouched() {
			touched++
		}
	}
	s.Members = slices.Grow(s.Members, touched) // each is large: growing bit by bit would copy them all twice
	for i := range r.members {
		if m := &r.members[i]; !m.untouched() {
			s.Members = append(s.Members, memberSnapshot{
				Record: m.rec, Offer: m.offer, Took: m.took, Moved: m.moved, Overdue: m.overdue, Stays: m.stays,
				Refusals: m.refusals, RefusedAs: m.refusedAs, RefusedSince: m.refusedSince, RetryAt: m.retryAt, Reasons: m.reasons,
			})
		}
	}
	return s
}

// untouched says whether nothing has happened to the member since its rollout was adopted.
func (m *member) untouched() bool {
	r := &m.rec
	return r.State == api.Pending && r.Attempt == 1 && r.ChangedAt.Equal(m.ro.adoptedAt) && r.LastAt.IsZero() &&
		m.offer == nil && !m.took && !m.moved && m.overdue == nil && m.stays == "" && len(m.reasons) == 0 && m.refusals == 0
}

// Restore returns the Fleet that a snapshot was made of.
func Restore(o Options, data []byte) (*Fleet, error) {
	var s snapshot
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("decode snapshot: %w", err)
	}
	if s.Version != snapshotVersion {
		return nil, fmt.Errorf("snapshot is of version %d; this program knows %d", s.Version, snapshotVersion)
	}
	f := New(o)
	f.logSeq, f.index, f.verdicts = s.LogSeq, s.Index, s.Verdicts
	maps.Copy(f.tokens, s.Tokens)
	for name, q := range s.Channels {
		maps.Copy(f.channelOf(name).quarantine, q)
	}
	for _, hs := range s.Hosts {
		h := f.hostOf(hs.Name)
		h.seen, h.seenAt, h.journal, h.past, h.refused = hs.Seen, hs.SeenAt, hs.Journal, hs.Past, hs.Refused
	}
	if s.Index.Fleet != "" {
		if err := f.declare(s.Index.Fleet); err != nil {
			return nil, fmt.Errorf("restore snapshot: %w", err)
		}
	}
	for _, rs := range s.Rollouts {
		if err := f.restoreRollout(rs); err != nil {
			return nil, fmt.Errorf("restore snapshot: %w", err)
		}
	}
	f.names = f.sortedNames()
	return f, nil
}

func (f *Fleet) restoreRollout(s rolloutSnapshot) error {
	release, err := f.release(s.ID, s.Adopted.Objects)
	if err != nil {
		return err
	}
	r := f.newRollout(s.Adopted, release, s.AdoptedAt)
	r.state, r.stateSince, r.open, r.reason = s.State, s.StateSince, s.Open, s.Reason
	r.openedAt, r.endedAt = s.OpenedAt, s.EndedAt
	if len(s.Waves) != s.Open || s.Open > len(r.waves) {
		return fmt.Errorf("rollout %s: %d waves are open of %d", s.ID, s.Open, len(r.waves))
	}
	for i, at := range s.Waves {
		r.waves[i].openedAt = at
	}
	for _, ms := range s.Members {
		m := r.find(ms.Record.Hostname)
		if m == nil {
			return fmt.Errorf("rollout %s: host %s is not in it", s.ID, strings.TrimSpace(ms.Record.Hostname))
		}
		m.rec, m.offer, m.took, m.moved, m.overdue, m.stays = ms.Record, ms.Offer, ms.Took, ms.Moved, ms.Overdue, ms.Stays
		m.refusals, m.refusedAs, m.refusedSince, m.retryAt, m.reasons = ms.Refusals, ms.RefusedAs, ms.RefusedSince, ms.RetryAt, ms.Reasons
		if m.refusals > 0 {
			r.refusing[m] = struct{}{}
		}
	}
	f.enrol(r)
	return nil
}
