package rollout

import (
	"slices"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/hoststate"
)

// gate is one of the planner's gates, in the order in which they are asked (state.md, Planner). The gate
// for windows has its place between wave and edges, those for the dispatch rate and preflight after budget.
type gate string

const (
	gateHeard      gate = "heard"
	gateRollout    gate = "rollout"
	gateQuarantine gate = "quarantine"
	gateWave       gate = "wave"
	gateEdges      gate = "edges"
	gateBudget     gate = "budget"
	gateBackoff    gate = "backoff" // not one of state.md's: a refused dispatch waits
)

// block is a gate's refusal, with what words needs to say why. The zero block is a pass.
type block struct {
	gate   gate
	until  time.Time // time alone opens the gate then; zero where it does not
	other  *member   // edges: the host it waits for
	budget *budget
	limit  int  // budget: what is allowed
	others int  // budget: who counts
	skip   bool // edges: it does not wait but is left out
}

// ledger is what the budget gate goes by: who counts at present, and what this very plan adds.
type ledger interface {
	// others counts the members of b that are disrupted, other than h.
	others(b *budget, h *host) int
	// limit is the lowest open value of b, negative where there is none.
	limit(b *budget) int
}

// wants returns what the host should be offered by its state and its rollout's alone, "" for nothing.
func (m *member) wants() api.Action {
	switch m.rec.State {
	case api.Pending:
		if m.ro.live() {
			return api.ActionActivate
		}
	case api.Deferred:
		switch m.ro.state {
		case api.RolloutHalted, api.RolloutCancelled, api.RolloutRolledBack:
			return api.ActionUnstage
		}
	}
	if m.ro.state == api.RolloutRollingBack && m.stays == "" && m.revertible() {
		return api.ActionRevert
	}
	return ""
}

// held returns the first gate that holds the host back from what it wants.
func (f *Fleet) held(m *member, l ledger, now time.Time) block {
	if m.wants() == api.ActionActivate {
		for _, g := range [...]func(*member, time.Time) block{
			heardGate, rolloutGate, quarantineGate, waveGate, edgesGate,
		} {
			if b := g(m, now); b.gate != "" {
				return b
			}
		}
	}
	if b := backoffGate(m, now); b.gate != "" {
		return b
	}
	return budgetGate(m, l)
}

func heardGate(m *member, _ time.Time) block {
	if m.host.heard() {
		return block{}
	}
	return block{gate: gateHeard}
}

func rolloutGate(m *member, _ time.Time) block {
	if m.ro.live() {
		return block{}
	}
	return block{gate: gateRollout}
}

func quarantineGate(m *member, _ time.Time) block {
	if !m.quarantined() {
		return block{}
	}
	return block{gate: gateQuarantine}
}

func waveGate(m *member, now time.Time) block {
	if m.rec.Wave >= m.ro.open {
		return block{gate: gateWave}
	}
	if at := m.ro.waves[m.rec.Wave].opensAt; now.Before(at) {
		return block{gate: gateWave, until: at}
	}
	return block{}
}

// edgesGate waits for the hosts that this one comes after. One that failed or was skipped leaves this
// one out; one that is no longer in the rollout does not matter.
func edgesGate(m *member, _ time.Time) block {
	waits := block{}
	for _, b := range m.after {
		switch b.rec.State {
		case api.HostConverged, api.Deferred, api.HostSuperseded:
			continue
		case api.Skipped:
			return block{gate: gateEdges, other: b, skip: true}
		}
		if t := b.tallyOf(); t.failure && t.settled {
			return block{gate: gateEdges, other: b, skip: true}
		}
		if waits.gate == "" {
			waits = block{gate: gateEdges, other: b}
		}
	}
	return waits
}

func backoffGate(m *member, now time.Time) block {
	if now.Before(m.retryAt) {
		return block{gate: gateBackoff, until: m.retryAt}
	}
	return block{}
}

// budgetGate keeps each budget that names the host under its cap, without the host itself.
func budgetGate(m *member, l ledger) block {
	for _, i := range m.budgetIndexes {
		b := m.ro.budgets[i]
		limit := m.ro.manifest.DisruptionBudgets[i].MaxInFlight
		if open := l.limit(b); open >= 0 {
			limit = min(limit, open)
		}
		if n := l.others(b, m.host); n >= limit {
			return block{gate: gateBudget, budget: b, limit: limit, others: n}
		}
	}
	return block{}
}

// settle returns what is to be decided about the member, other than to dispatch it, and the time at
// which time alone may change that. It reads the state and changes nothing.
func (f *Fleet) settle(m *member, now time.Time) (Body, time.Time) {
	switch m.rec.State {
	case api.HostSuperseded, api.Reverted:
		return f.withdrawal(m), time.Time{}
	case api.HostConverged:
	default:
		if reason := m.elsewhere(f); reason != "" {
			return Superseded{Reason: reason}, time.Time{}
		}
	}
	if b := f.withdrawal(m); b != nil {
		return b, time.Time{}
	}
	switch m.rec.State {
	case api.Skipped:
		return f.settleSkipped(m, now)
	case api.Pending:
		return f.settlePending(m, now)
	}
	return f.settleMoved(m, now)
}

// withdrawal says why what the host is offered is not to be offered any more, or nil.
func (f *Fleet) withdrawal(m *member) Body {
	if m.offer == nil {
		return nil
	}
	w := Withdrawn{Action: m.offer.Action, Attempt: m.offer.Attempt}
	switch {
	case m.offer.Action == api.ActionActivate && !m.ro.live():
		w.Reason = "the rollout is " + string(m.ro.state)
	case m.offer.Action == api.ActionActivate && m.quarantined():
		w.Reason = "its closure is quarantined"
	case m.wants() != m.offer.Action || m.offer.Attempt != m.rec.Attempt:
		w.Reason = "the host is " + string(m.rec.State) + " now"
	default:
		return nil
	}
	return w
}

// settleSkipped has a host that was left out come back.
func (f *Fleet) settleSkipped(m *member, now time.Time) (Body, time.Time) {
	if !m.ro.live() {
		return nil, time.Time{}
	}
	switch {
	case m.rec.SkippedBy == hoststate.SkippedByEdge:
		if !edgesGate(m, now).skip {
			return Returned{Reason: "no host that it comes after failed or is skipped any more"}, time.Time{}
		}
	case m.rec.SkippedBy != hoststate.SkippedByOffline:
	case now.Before(m.retryAt):
		return nil, m.retryAt
	case m.host.lastHeard.Before(m.rec.ChangedAt) || m.host.lastHeard.Before(m.retryAt):
	case m.refusals > 0:
		return Returned{Reason: "it is there, and its back-off is over"}, time.Time{}
	default:
		return Returned{Reason: "it was heard again"}, time.Time{}
	}
	return nil, time.Time{}
}

// settlePending finds hosts that need no dispatch, or that the rollout goes on without.
func (f *Fleet) settlePending(m *member, now time.Time) (Body, time.Time) {
	switch {
	case !m.ro.live():
		return nil, time.Time{}
	case m.offer == nil && m.host.runs(m.rec.TargetClosure) && m.convergedBefore():
		return Converged{Reason: "it runs this closure already and converged on it before"}, time.Time{}
	case m.rec.Wave >= m.ro.open:
		return nil, time.Time{}
	}
	if b := edgesGate(m, now); b.skip {
		return Skipped{By: hoststate.SkippedByEdge, Reason: f.words(m, b, now)}, time.Time{}
	}
	after := m.policyAfter()
	if m.ro.offline.Action != "skip" || after <= 0 {
		return nil, time.Time{}
	}
	silent, again := f.silent(m.host, after, now)
	if silent {
		return Skipped{By: hoststate.SkippedByOffline, Reason: "unheard " + f.sinceWords(m.host, now)}, time.Time{}
	}
	if m.refusals > 0 && now.Before(m.retryAt) {
		until := m.refusedSince.Add(after)
		if !now.Before(until) {
			return Skipped{By: hoststate.SkippedByOffline, Reason: "it has only refused since " + stamp(m.refusedSince)}, time.Time{}
		}
		again = earlier(again, until)
	}
	return nil, again
}

// convergedBefore says whether the host's latest record on its target closure is Converged.
func (m *member) convergedBefore() bool {
	members := m.host.members
	if m.took || slices.ContainsFunc(members, func(o *member) bool { return o.rec.InFlight() }) {
		return false
	}
	for i := len(members) - 1; i >= 0; i-- {
		o := members[i]
		if o != m && o.took && o.rec.TargetClosure == m.rec.TargetClosure && older(o.ro, m.ro) < 0 {
			return o.rec.State == api.HostConverged
		}
	}
	return false
}

// settleMoved watches over hosts that accepted: silent ones become overdue, and those that a rollout
// cannot take back stay.
func (f *Fleet) settleMoved(m *member, now time.Time) (Body, time.Time) {
	if m.overdue != nil {
		if m.host.lastHeard.After(m.overdue.Since) {
			return Returned{Reason: "it was heard again"}, time.Time{}
		}
		return nil, time.Time{}
	}
	if !m.canBeOverdue() {
		return nil, time.Time{}
	}
	var again time.Time
	if m.wants() == api.ActionRevert {
		var reason string
		if reason, again = m.cannotGoBack(now); reason != "" {
			return Stayed{Reason: reason}, time.Time{}
		}
	}
	if after := m.policyAfter(); after > 0 {
		silent, until := f.silent(m.host, after, now)
		if silent {
			return Overdue{Since: f.silentSince(m.host), Reason: "unheard " + f.sinceWords(m.host, now)}, time.Time{}
		}
		again = earlier(again, until)
	}
	return nil, again
}

// cannotGoBack says why an agent would not revert, now or ever.
func (m *member) cannotGoBack(now time.Time) (string, time.Time) {
	if m.rec.PreviousClosure == "" {
		return "it has no previous closure to go back to", time.Time{}
	}
	var again time.Time
	if w := m.ro.manifest.Policy.RevertWindow; w != nil && !m.rec.CompletedAt.IsZero() {
		until := m.rec.CompletedAt.Add(w.Std())
		if !now.Before(until) {
			return "it may be reverted for " + w.String() + " after its activation only", time.Time{}
		}
		again = until
	}
	if m.refusals > 0 && m.policyAfter() > 0 {
		until := m.refusedSince.Add(m.policyAfter())
		if !now.Before(until) {
			return "it has only refused since " + stamp(m.refusedSince), time.Time{}
		}
		again = earlier(again, until)
	}
	return "", again
}

// earlier returns the earlier of two times of which a zero one is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
