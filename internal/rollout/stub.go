package rollout

import (
	"time"

	"nixfleet.dev/nixfleet/api"
)

// Options configure a Fleet.
type Options struct {
	Loader            Loader        // needed by Apply and Restore
	HeartbeatInterval time.Duration // what agents are told; 60 s when zero
}

// Fleet is the control plane's picture of the fleet. See the package comment for who may call what
// when.
type Fleet struct{}

// New returns an empty Fleet.
func New(o Options) *Fleet { return &Fleet{} }

// Apply folds one entry into the picture. Entries must come in the order of their LogSeq, without
// gaps. An error means that the log and the picture do not belong together: the Fleet must not be used
// any more.
func (f *Fleet) Apply(e Entry) error { return nil }

// LogSeq returns the number of the newest entry applied, 0 when there is none.
func (f *Fleet) LogSeq() int64 { return 0 }

// Started says that the control plane is ready from now on: silence of hosts counts only from here.
// Until it is called, no decision is made from silence.
func (f *Fleet) Started(now time.Time) {}

// Events judges events of host, which is who the certificate says sent them. The error is a
// *SequenceGap, *UnknownRollout or *Malformed, and nothing of the batch is then kept. Events that were
// seen before are acknowledged and make no entries.
func (f *Fleet) Events(host string, b api.EventBatch, now time.Time) ([]Entry, api.EventsAck, error) {
	return nil, api.EventsAck{}, nil
}

// Heartbeat takes in a heartbeat of the host that it names, which the caller has compared with the
// certificate. It counts as being heard.
func (f *Fleet) Heartbeat(hb api.Heartbeat, now time.Time) ([]Entry, api.HeartbeatReply) {
	return nil, api.HeartbeatReply{}
}

// Reject takes in that host refused a dispatch.
func (f *Fleet) Reject(host string, r api.Rejection, now time.Time) []Entry { return nil }

// Adopt takes in a verified index with all that it names. An index that says nothing new makes no
// entries. The error is a *RefusedRelease.
func (f *Fleet) Adopt(a Adoption, now time.Time) ([]Entry, error) { return nil, nil }

// UseToken records that host shows the enrollment token nonce with a key. The same key again is no
// news; for another the error is a *TokenSpent. A token that is bound to a key need not be recorded.
func (f *Fleet) UseToken(host, nonce, publicKeySHA256 string, expiresAt *time.Time, now time.Time) ([]Entry, error) {
	return nil, nil
}

// Heard says that a host polled, or parks a poll. It returns true when that may change a decision:
// the caller should then Plan.
func (f *Fleet) Heard(host string, now time.Time) bool { return false }

// Plan returns the decisions that are due at now, in the order to apply them. It is deterministic, and
// calling it again without applying gives the same again. Applying them may make others due: call it
// until it returns nothing. Its cost follows what has changed since, not the size of the fleet.
func (f *Fleet) Plan(now time.Time) []Entry { return nil }

// PlanFull returns what Plan returns, from nothing but the state itself: every rollout and every host
// is looked at. Tests compare the two.
func (f *Fleet) PlanFull(now time.Time) []Entry { return nil }

// NextWake returns when time alone may make a decision due, or zero for never.
func (f *Fleet) NextWake() time.Time { return time.Time{} }

// ChangedDispatches returns, sorted, the hosts whose outstanding dispatch may have changed since it
// was last called.
func (f *Fleet) ChangedDispatches() []string { return nil }

// Outstanding returns what a host is offered, or nil.
func (f *Fleet) Outstanding(host string) *api.Dispatch { return nil }

// OutstandingHosts returns, sorted, all hosts that are offered something: what a registry starts from
// after Restore.
func (f *Fleet) OutstandingHosts() []string { return nil }

// HostFilter picks hosts for a list. Zero fields pick all.
type HostFilter struct {
	Channel string
	State   api.HostState
	Tag     string
	Query   string // part of the name
	Limit   int    // 100 when zero, at most 1,000
	Cursor  string // NextCursor of the page before
}

// Host returns what operators see of a host.
func (f *Fleet) Host(name string, now time.Time) (api.Host, bool) { return api.Host{}, false }

// Hosts returns a page of hosts, by name.
func (f *Fleet) Hosts(filter HostFilter, now time.Time) api.List[api.Host] { return api.List[api.Host]{} }

// Rollout returns what operators see of a rollout.
func (f *Fleet) Rollout(id string, now time.Time) (api.Rollout, bool) { return api.Rollout{}, false }

// Rollouts returns all rollouts that are known, the newest first.
func (f *Fleet) Rollouts(now time.Time) []api.Rollout { return nil }

// RolloutObjects names the artifacts of a rollout, to serve them.
func (f *Fleet) RolloutObjects(id string) (Objects, bool) { return Objects{}, false }

// LineIndex returns which line of its host list is a host's.
func (f *Fleet) LineIndex(id, host string) (int, bool) { return 0, false }

// Channels returns all channels of the newest index, and those that still have a rollout, by name.
func (f *Fleet) Channels(now time.Time) []api.Channel { return nil }

// Why says why a host is where it is: every gate and its verdict.
func (f *Fleet) Why(host string, now time.Time) (api.Why, bool) { return api.Why{}, false }

// Logged turns an entry into what operators see of it. The second result is false for entries that
// are no part of any rollout's history.
func Logged(e Entry) (api.LoggedEvent, bool) { return api.LoggedEvent{}, false }

// Position returns the sequence and time of signing of the newest index applied.
func (f *Fleet) Position() (sequence int64, signedAt time.Time) { return 0, time.Time{} }

// Snapshot returns the durable state as JSON. The same state gives the same bytes.
func (f *Fleet) Snapshot() ([]byte, error) { return nil, nil }

// Restore returns the Fleet that a snapshot was made of.
func Restore(o Options, snapshot []byte) (*Fleet, error) { return nil, nil }
