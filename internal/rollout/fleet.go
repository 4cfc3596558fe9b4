package rollout

import (
	"cmp"
	"slices"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/hoststate"
)

// Options configure a Fleet.
type Options struct {
	Loader            Loader        // needed by Apply and Restore
	HeartbeatInterval time.Duration // what agents are told; 60 s when zero
}

// Fleet is the control plane's picture of the fleet. See the package comment for who may call what
// when.
type Fleet struct {
	opts Options

	// Durable: what the log says.
	logSeq    int64
	index     FleetDeclared
	hosts     map[string]*host
	names     []string // of all hosts, sorted, as of the last Apply
	rollouts  map[string]*rollout
	channels  map[string]*channel
	adoptions int64 // so far, for the order of rollouts
	tokens    map[string]token
	verdicts  []verdict // of events on closures, not decided on yet, in order

	// Not durable: what only tells "still there".
	startedAt time.Time // zero until Started
	now       time.Time // of the newest Plan

	// Releases and the fleet that Adopt was just given, until Apply takes them.
	givenReleases map[string]Release
	givenFleets   map[string]api.Fleet

	// Indexes: a Fleet that was restored has them made again, and every host to be looked at.
	budgets       map[string]*budget
	dirtyChannels map[*channel]struct{}
	freed         map[*budget]struct{}
	dirty         []*member   // to be looked at, in any respect
	ready         memberQueue // to be dispatched when the gates let them
	timers        timerQueue
	changed       map[*host]struct{} // outstanding dispatch changed
}

// channel is a channel that some rollout was on.
type channel struct {
	name       string
	rollouts   []*rollout // the oldest first
	quarantine map[string]quarantine
}

// quarantine is a closure that the channel refuses.
type quarantine struct {
	Code   api.Code  `json:"code"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
	Hosts  []string  `json:"hosts"` // that blame it
}

// verdict is what an event says of a closure: to blame, or not after all.
type verdict struct {
	Channel   string   `json:"channel"`
	Closure   string   `json:"closure"`
	Code      api.Code `json:"code,omitzero"`
	Hostname  string   `json:"hostname"`
	RolloutID string   `json:"rolloutId"`
	Allow     bool     `json:"allow,omitzero"`
}

// token is an enrollment token that was used.
type token struct {
	Hostname string `json:"hostname"`
	TokenUsed
}

// host is all that is known of one host.
type host struct {
	name     string
	declared bool // in the newest fleet, on channel
	channel  string
	tags     []string

	seen    HostSeen // of its newest heartbeat with news; JournalID is "" until the first
	seenAt  time.Time
	journal journal
	past    []journal // earlier ones, the newest last
	members []*member // its place in each rollout, by age of the rollout
	refused *api.Failure

	lastHeard     time.Time // not durable, like the next two
	lastHeartbeat time.Time
	awaited       bool // never heard yet, and not silent for long enough to be given up
	in            []*budget
	wake          time.Time
	wakeIndex     int
}

// journal is an agent's journal with the number of the last event that is recorded of each rollout.
type journal struct {
	ID   string           `json:"id"`
	Last map[string]int64 `json:"last"`
}

// member is one host in one rollout.
type member struct {
	host *host
	ro   *rollout
	line int
	rec  hoststate.Record

	after         []*member // goes once these are done
	budgetIndexes []int     // in the manifest

	offer   *Dispatched // outstanding
	took    bool        // it accepted a dispatch of the rollout, or was taken as Converged
	moved   bool        // the rollout switched the host, or began to
	overdue *Overdue
	stays   string // why a rollout that rolls back leaves the host where it is

	refusals     int       // in a row, since it last accepted
	refusedAs    api.Code  // the newest of them
	refusedSince time.Time // the first of them
	retryAt      time.Time // not offered before
	reasons      []refusal // recorded, each once

	counted tally
	dirty   bool
	waits   *budget // holds it back
	queue   *memberQueue
	at      int // in queue
	rank    int // of its turn, as long as it is in queue
}

// refusal is what a rejection is recorded by.
type refusal struct {
	Attempt int      `json:"attempt"`
	Reason  api.Code `json:"reason"`
}

// New returns an empty Fleet.
func New(o Options) *Fleet {
	if o.HeartbeatInterval <= 0 {
		o.HeartbeatInterval = time.Minute
	}
	return &Fleet{
		opts: o, hosts: map[string]*host{}, rollouts: map[string]*rollout{}, channels: map[string]*channel{},
		tokens: map[string]token{}, givenReleases: map[string]Release{}, givenFleets: map[string]api.Fleet{},
		budgets: map[string]*budget{}, dirtyChannels: map[*channel]struct{}{}, freed: map[*budget]struct{}{},
		changed: map[*host]struct{}{},
	}
}

// LogSeq returns the number of the newest entry applied, 0 when there is none.
func (f *Fleet) LogSeq() int64 { return f.logSeq }

// Started says that the control plane is ready from now on: silence of hosts counts only from here.
// Until it is called, no decision is made from silence.
func (f *Fleet) Started(now time.Time) {
	f.startedAt, f.now = wall(now), wall(now)
	for _, h := range f.hosts {
		f.recount(h)
		for _, m := range h.members {
			f.touch(m)
		}
	}
}

// Heard says that a host polled, or parks a poll. It returns true when that may change a decision:
// the caller should then Plan.
func (f *Fleet) Heard(name string, now time.Time) bool {
	h := f.hosts[name]
	if h == nil {
		return false
	}
	if now = wall(now); now.After(h.lastHeard) {
		h.lastHeard = now
	}
	news := false
	for _, m := range h.members {
		if m.missed() {
			f.touch(m)
			news = true
		}
	}
	return news
}

// missed says whether hearing the host may bring it back.
func (m *member) missed() bool {
	skipped := m.rec.State == api.Skipped && m.rec.SkippedBy == hoststate.SkippedByOffline && m.ro.live()
	return skipped || m.overdue != nil
}

// hostOf returns the host, made when it is new.
func (f *Fleet) hostOf(name string) *host {
	h := f.hosts[name]
	if h == nil {
		h = &host{name: name, wakeIndex: -1}
		f.hosts[name] = h
	}
	return h
}

// heard says whether the host has sent a heartbeat since this log began.
func (h *host) heard() bool { return h.seen.JournalID != "" }

// runs says whether the host runs and boots a closure.
func (h *host) runs(closure string) bool {
	return h.heard() && h.seen.CurrentClosure == closure && h.seen.BootClosure == closure
}

// silentSince returns since when the host was not heard while this control plane was ready; zero while
// it is not.
func (f *Fleet) silentSince(h *host) time.Time {
	if f.startedAt.IsZero() || h.lastHeard.Before(f.startedAt) {
		return f.startedAt
	}
	return h.lastHeard
}

// silent says whether the host has been silent for d at now, and when it will have been.
func (f *Fleet) silent(h *host, d time.Duration, now time.Time) (bool, time.Time) {
	since := f.silentSince(h)
	if since.IsZero() {
		return false, time.Time{}
	}
	until := since.Add(d)
	return !now.Before(until), until
}

// current returns the host's place in the rollout that it is in: the newest that has opened and that
// it was not taken out of.
func (h *host) current() *member {
	for _, m := range slices.Backward(h.members) {
		if m.rec.State != api.HostSuperseded && m.ro.state != api.RolloutWaiting {
			return m
		}
	}
	if n := len(h.members); n > 0 {
		return h.members[n-1]
	}
	return nil
}

// memberIn returns the host's place in a rollout, or nil.
func (h *host) memberIn(rolloutID string) *member {
	for _, m := range slices.Backward(h.members) {
		if m.ro.id == rolloutID {
			return m
		}
	}
	return nil
}

// offered returns the host's place in the rollout whose dispatch is outstanding, or nil.
func (h *host) offered() *member {
	for _, m := range slices.Backward(h.members) {
		if m.offer != nil {
			return m
		}
	}
	return nil
}

// policyAfter is how long a host of this rollout may be silent; 0 is for ever.
func (m *member) policyAfter() time.Duration {
	if after := m.ro.offline.After; after != nil {
		return after.Std()
	}
	return 0
}

// before is the order in which hosts in a queue have their turn: by rank, and then by name.
func (m *member) before(o *member) bool {
	return cmp.Or(cmp.Compare(m.rank, o.rank), cmp.Compare(m.host.name, o.host.name), cmp.Compare(m.ro.id, o.ro.id)) < 0
}

// turn ranks members: those to be taken back first, the last wave of them first; then by wave.
func (m *member) turn() int {
	switch m.wants() {
	case api.ActionRevert, api.ActionUnstage:
		return -1 - m.rec.Wave
	}
	return m.rec.Wave
}

// wall drops the monotonic reading, which does not travel.
func wall(t time.Time) time.Time { return t.Round(0).UTC() }
