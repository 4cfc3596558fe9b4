package rollout

import (
	"slices"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// A rejected dispatch is offered again after minBackoff, doubling to maxBackoff (wire.md, rejections).
const (
	minBackoff = 30 * time.Second
	maxBackoff = 15 * time.Minute
)

// Caps on what rejections leave behind: one host cannot fill the log.
const (
	maxRefusals = 32 // recorded for one host in one rollout
	maxReason   = 64
)

func backoff(refusals int) time.Duration {
	d := minBackoff
	for i := 1; i < refusals && d < maxBackoff; i++ {
		d *= 2
	}
	return min(d, maxBackoff)
}

// Reject takes in that host refused a dispatch. Each attempt and reason is recorded once; the same
// again only withdraws the offer until the next try.
func (f *Fleet) Reject(host string, r api.Rejection, now time.Time) []Entry {
	now = wall(now)
	f.Heard(host, now)
	h := f.hosts[host]
	if h == nil {
		return nil
	}
	m := h.memberIn(r.RolloutID)
	if m == nil || r.Attempt < 1 || r.Attempt > m.rec.Attempt {
		return nil
	}
	entry := Entry{RecordedAt: now, RolloutID: m.ro.id, Hostname: h.name}
	key := refusal{r.Attempt, api.Code(clip(string(r.Reason), maxReason))}
	if !slices.Contains(m.reasons, key) && len(m.reasons) < maxRefusals {
		entry.Body = Rejected{Attempt: key.Attempt, Reason: key.Reason, Detail: clip(r.Detail, api.MaxRejectDetail), At: wall(r.At)}
		return []Entry{entry}
	}
	if m.offer == nil || m.offer.Attempt != r.Attempt {
		return nil
	}
	retryAt := now.Add(backoff(m.refusals + 1))
	entry.Body = Withdrawn{
		Action: m.offer.Action, Attempt: m.offer.Attempt, RetryAt: retryAt, Code: key.Reason,
		Reason: "refused again as " + string(key.Reason) + "; offered again at " + clock(retryAt),
	}
	return []Entry{entry}
}

func (f *Fleet) applyRejected(m *member, b Rejected, at time.Time) {
	m.reasons = append(m.reasons, refusal{b.Attempt, b.Reason})
	m.host.refused = &api.Failure{Code: b.Reason, Detail: b.Detail, At: at}
	if m.offer != nil && m.offer.Attempt == b.Attempt {
		m.refuse(b.Reason, at)
		m.retryAt = at.Add(backoff(m.refusals))
		f.unoffer(m)
	}
}

// refuse counts one more refusal in a row.
func (m *member) refuse(code api.Code, at time.Time) {
	m.refusedAs = code
	if m.refusals++; m.refusals == 1 {
		m.refusedSince = at
	}
	m.ro.refusing[m] = struct{}{}
}

// clock writes a time for people.
func clock(t time.Time) string { return t.UTC().Format("15:04:05") }
