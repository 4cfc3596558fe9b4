package rollout

import (
	"time"

	"nixfleet.dev/nixfleet/api"
)

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
func (f *Fleet) Hosts(filter HostFilter, now time.Time) api.List[api.Host] {
	return api.List[api.Host]{}
}

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
