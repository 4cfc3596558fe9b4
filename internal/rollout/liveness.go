package rollout

import "time"

// LastHeartbeats returns when each host sent its last heartbeat, of those that have. It is no part of
// the durable state: whoever keeps it gives it to RestoreHeartbeats after a restart.
func (f *Fleet) LastHeartbeats() map[string]time.Time {
	last := make(map[string]time.Time, len(f.hosts))
	for name, h := range f.hosts {
		if !h.lastHeartbeat.IsZero() {
			last[name] = h.lastHeartbeat
		}
	}
	return last
}

// RestoreHeartbeats takes in what LastHeartbeats returned before a restart, for people to see. Nothing
// is decided from it: silence counts only from Started.
func (f *Fleet) RestoreHeartbeats(last map[string]time.Time) {
	for name, at := range last {
		if h := f.hosts[name]; h != nil && at.After(h.lastHeartbeat) {
			h.lastHeartbeat = wall(at)
		}
	}
}
