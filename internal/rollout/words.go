package rollout

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/hoststate"
)

// named is how many hosts a sentence names before it ends in "…".
const named = 3

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func isAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

// ago writes how long ago t was, to the second.
func ago(t, now time.Time) string {
	return api.Duration(max(0, now.Sub(t).Round(time.Second))).String()
}

// listed writes the first few of names.
func listed(names []string) string {
	if len(names) > named {
		names = append(slices.Clone(names[:named]), "…")
	}
	return strings.Join(names, ", ")
}

// sinceWords says for how long a host has not been heard.
func (f *Fleet) sinceWords(h *host, now time.Time) string {
	since := f.silentSince(h)
	if since.IsZero() {
		return "so far"
	}
	return "for " + ago(since, now)
}

// words says in plain words what a gate waits for.
func (f *Fleet) words(m *member, b block, now time.Time) string {
	switch b.gate {
	case gateHeard:
		return "waits for its first heartbeat"
	case gateRollout:
		return m.ro.stateWords()
	case gateQuarantine:
		q := m.ro.ch.quarantine[m.rec.TargetClosure]
		return fmt.Sprintf("its closure %s is quarantined on channel %s: %s", m.rec.TargetClosure, m.ro.ch.name, q.Reason)
	case gateWave:
		return m.ro.waveWords(m.rec.Wave, now)
	case gateEdges:
		if b.skip {
			return fmt.Sprintf("%s, which it comes after, is %s", b.other.rec.Hostname, b.other.stateWord())
		}
		return fmt.Sprintf("waits for %s, which is %s since %s", b.other.rec.Hostname, b.other.stateWord(), ago(b.other.rec.ChangedAt, now))
	case gateBudget:
		return fmt.Sprintf("waits for budget %s: %d of %d in flight: %s", b.budget.name, b.others, b.limit, listed(f.disruptedWords(b.budget, m.host, now)))
	case gateBackoff:
		return fmt.Sprintf("it refused as %s, %s in a row; offered again in %s", m.refusedAs, times(m.refusals), ago(now, b.until))
	}
	return ""
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// stateWord is the host's state with its marks.
func (m *member) stateWord() string {
	switch {
	case m.overdue != nil:
		return string(m.rec.State) + " and overdue"
	case m.rec.State == api.Pending && m.offer != nil:
		return "Pending and offered"
	case m.rec.State == api.Pending && m.quarantined():
		return "Pending with a quarantined closure"
	}
	return string(m.rec.State)
}

// disruptedWords names the hosts that count in a budget, other than h, by name.
func (f *Fleet) disruptedWords(b *budget, h *host, now time.Time) []string {
	var who []string
	for o := range b.in {
		if o != h {
			who = append(who, o.name)
		}
	}
	slices.Sort(who)
	for i, name := range who[:min(len(who), named)] {
		who[i] = name + " " + f.hosts[name].disruptedSince(now)
	}
	return who
}

func (h *host) disruptedSince(now time.Time) string {
	for _, m := range slices.Backward(h.members) {
		switch {
		case !m.disrupts():
		case m.offer != nil:
			return "since " + ago(m.offer.EnqueuedAt, now)
		default:
			return m.stateWord() + " since " + ago(m.rec.ChangedAt, now)
		}
	}
	return "not heard yet"
}

// stateWords says what a rollout's state means for its hosts.
func (r *rollout) stateWords() string {
	switch r.state {
	case api.RolloutWaiting:
		return "the rollout has not opened yet"
	case api.RolloutSuperseded:
		return "a newer rollout took over"
	}
	if r.reason != "" {
		return fmt.Sprintf("the rollout is %s: %s", r.state, r.reason)
	}
	return fmt.Sprintf("the rollout is %s", r.state)
}

// waveWords says what a wave waits for.
func (r *rollout) waveWords(wave int, now time.Time) string {
	if wave < r.open {
		return fmt.Sprintf("waits until %s, in %s: agents refuse wave %d until the soaks of the earlier waves have passed since the release",
			clock(r.waves[wave].opensAt), ago(now, r.waves[wave].opensAt), wave)
	}
	for w := range r.open {
		n := r.waves[w].unsettled
		if n == 0 {
			continue
		}
		var who []string
		for _, i := range r.waves[w].members {
			if m := &r.members[i]; !m.counted.settled && len(who) <= named {
				who = append(who, m.sinceWord(now))
			}
		}
		return fmt.Sprintf("waits for wave %d: %d of %s of wave %d %s not done: %s",
			wave, n, plural(len(r.waves[w].members), "host"), w, isAre(n), listed(who))
	}
	if reason := r.needsApproval(countedSums(r)); reason != "" {
		return "waits for wave " + fmt.Sprint(wave) + ": " + reason
	}
	return fmt.Sprintf("waits for wave %d, which opens next", wave)
}

// sinceWord names the host, its state and since when.
func (m *member) sinceWord(now time.Time) string {
	return m.rec.Hostname + " " + m.stateWord() + " since " + ago(m.rec.ChangedAt, now)
}

// summary says in one sentence why the host is where it is.
func (f *Fleet) summary(m *member, held block, now time.Time) string {
	rec := &m.rec
	since := "since " + ago(rec.ChangedAt, now)
	s := ""
	switch rec.State {
	case api.Pending:
		s = f.pendingWords(m, held, now)
	case api.Activating:
		s = "is activating " + rec.TargetClosure + " " + since
	case api.Deferred:
		s = "has " + rec.TargetClosure + " staged: it is live at the next reboot, which nobody has done " + since
	case api.Soaking:
		s = soakWords(rec, now)
	case api.HostConverged:
		s = "converged on " + rec.TargetClosure + " " + ago(rec.ChangedAt, now) + " ago"
	case api.Reverting:
		s = "is going back to " + rec.PreviousClosure + " " + since + failureWords(rec)
	case api.Reverted:
		s = "is back on " + rec.PreviousClosure + " " + since + failureWords(rec)
	case api.Failed:
		s = "failed " + ago(rec.ChangedAt, now) + " ago and stays where it is" + failureWords(rec)
	case api.HostSuperseded:
		s = "is no longer part of " + m.ro.id
	case api.Skipped:
		s = skippedWords(m, since)
	}
	if m.overdue != nil {
		s = "is overdue: not heard since " + stamp(m.overdue.Since) + ", while it " + s
	}
	if m.offer != nil && rec.State != api.Pending {
		s += "; it is offered " + string(m.offer.Action) + " since " + ago(m.offer.EnqueuedAt, now)
	}
	if f.drifted(m.host) {
		s += "; it runs " + m.host.seen.CurrentClosure + ", which nobody gave it"
	}
	return s
}

func (f *Fleet) pendingWords(m *member, held block, now time.Time) string {
	switch {
	case m.offer != nil:
		return fmt.Sprintf("is offered %s since %s and has not answered yet", m.rec.TargetClosure, ago(m.offer.EnqueuedAt, now))
	case held.gate == "":
		return "is next: every gate lets it"
	}
	return f.words(m, held, now)
}

func soakWords(rec *hoststate.Record, now time.Time) string {
	s := "soaks until " + clock(rec.SoakEndsAt) + ", " + ago(now, rec.SoakEndsAt) + " to go"
	if !now.Before(rec.SoakEndsAt) {
		s = "has soaked and is about to converge"
	}
	if !rec.ProbesDeclared {
		return s + "; its probes are not known yet"
	}
	if p, blocking := rec.Blocking(); blocking {
		return s + fmt.Sprintf("; probe %s has not passed", p.Name)
	}
	return s
}

func failureWords(rec *hoststate.Record) string {
	switch {
	case rec.Failure == nil && rec.RevertCause != "":
		return ": " + rec.RevertCause
	case rec.Failure == nil:
		return ""
	case rec.Failure.Detail == "":
		return ": " + string(rec.Failure.Code)
	}
	return ": " + string(rec.Failure.Code) + ", " + rec.Failure.Detail
}

func skippedWords(m *member, since string) string {
	switch {
	case m.rec.SkippedBy == hoststate.SkippedByEdge:
		return "is left out " + since + ": a host that it comes after failed or was skipped"
	case m.rec.SkippedBy == hoststate.SkippedByOperator:
		return "is left out " + since + " by an operator"
	case m.refusals > 0:
		return "is left out " + since + ": it only refuses"
	}
	return "is left out " + since + ": it was not heard; it will be dispatched when it is back"
}
