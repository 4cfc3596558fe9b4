package longpoll

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/reducer"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/trust"
)

// handle takes a dispatch through every check to the reducer, in the order of L6 to L11. An error is a
// refusal, with its code where it is a *trust.Error.
func (w *Worker) handle(ctx context.Context, d api.Dispatch) (reducer.AnswerKind, error) {
	if d.Hostname != w.o.Hostname { // L6
		return 0, trust.Refuse(api.CodeIdentityMismatch, "dispatch", "it is for host %.80q, this is %s", d.Hostname, w.o.Hostname)
	}
	accepted, err := w.accept(ctx, d.RolloutID)
	if err != nil {
		return 0, err
	}
	if err := manifest.CheckDispatch(accepted, d, w.o.Clock.Now()); err != nil { // L8
		return 0, err
	}
	if w.o.Observe && d.Action != api.ActionPreflight {
		return 0, trust.Refuse(api.CodeObserveOnly, "dispatch", "this agent only observes")
	}
	running, err := w.o.Current(ctx) // L10: now, and never from the dispatch
	if err != nil {
		return 0, fmt.Errorf("read what runs: %w", err)
	}
	m := accepted.Manifest.Value()
	if err := w.o.Keeper.Follow(m.Channel); err != nil {
		return 0, err
	}
	answer, err := w.o.Reducer.Offer(ctx, w.offer(d, accepted, running))
	if err != nil {
		return 0, fmt.Errorf("hand the dispatch to the reducer: %w", err)
	}
	switch answer.Kind {
	case reducer.Rejected:
		return 0, trust.Refuse(answer.Code, "dispatch", "%s", answer.Detail)
	case reducer.Accepted:
		w.o.Logger.Info("dispatch accepted", "rollout", d.RolloutID, "closure", d.TargetClosure, "action", string(d.Action), "attempt", d.Attempt)
	}
	return answer.Kind, nil
}

// offer is what the reducer gets (L11): the signed line and policy, and from the dispatch only what it
// may decide, clamped.
func (w *Worker) offer(d api.Dispatch, accepted manifest.Accepted, running string) reducer.Offer {
	m := accepted.Manifest.Value()
	latest := w.o.Clock.Now().Add(m.Policy.ActivationTimeout.Std() + m.Policy.Waves[accepted.Line.Wave].Soak.Std())
	return reducer.Offer{
		RolloutID: m.RolloutID, Channel: m.Channel, Action: d.Action, Attempt: d.Attempt, AllowClosure: d.AllowClosure,
		Line: accepted.Line, Policy: m.Policy, ReleasedAt: m.ReleasedAt,
		ManifestSHA256:     accepted.Manifest.EnvelopeSHA256(),
		PreviousClosure:    w.o.Reducer.View().PreviousFor(running, accepted.Line.Closure),
		SoakDueAt:          earlier(d.SoakDueAt, latest),
		EnqueuedAt:         d.EnqueuedAt,
		MaintenanceWindows: m.MaintenanceWindows, Freezes: m.Freezes,
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b.UTC().Round(0)
	}
	return a
}

// accept returns the rollout's manifest and this host's line, verified now (L7, L9). What is on disk is
// tried first; where that no longer verifies, what the control plane has.
func (w *Worker) accept(ctx context.Context, rolloutID string) (manifest.Accepted, error) {
	if _, _, err := manifest.ParseID(rolloutID); err != nil {
		return manifest.Accepted{}, err
	}
	envelope, proof, cached := w.o.Cache.Load(rolloutID)
	var old error
	if cached {
		accepted, err := w.o.Keeper.Accept(rolloutID, envelope, proof)
		if err == nil || trust.CodeOf(err) == "" {
			return accepted, err
		}
		old = err
		w.o.Logger.Info("the copy on disk no longer verifies; fetching again", "rollout", rolloutID, "err", err)
	}
	envelope, proof, err := w.fetch(ctx, rolloutID)
	if err != nil {
		if old != nil {
			return manifest.Accepted{}, fmt.Errorf("%w; and no other copy: %w", old, err)
		}
		return manifest.Accepted{}, trust.Refuse(api.CodeManifestUnavailable, "manifest of "+rolloutID, "%w", err)
	}
	accepted, err := w.o.Keeper.Accept(rolloutID, envelope, proof)
	if err != nil {
		return manifest.Accepted{}, err
	}
	if err := w.o.Cache.Store(rolloutID, envelope, proof); err != nil {
		w.o.Logger.Warn("the manifest could not be kept on disk", "rollout", rolloutID, "err", err)
	}
	w.prune(rolloutID) // now, whatever becomes of the dispatch: a host that refuses all keeps no more
	return accepted, nil
}

func (w *Worker) fetch(ctx context.Context, rolloutID string) (envelope []byte, proof api.HostProof, err error) {
	if envelope, err = w.o.ControlPlane.Manifest(ctx, rolloutID); err == nil {
		proof, err = w.o.ControlPlane.HostProof(ctx, rolloutID, w.o.Hostname)
	}
	return envelope, proof, err
}

// refuse says that a dispatch is not acted on: here, and to the control plane, best effort (L12).
func (w *Worker) refuse(ctx context.Context, d api.Dispatch, reason error) {
	code := codeOf(reason)
	w.o.Logger.Warn("dispatch refused", "rollout", clip(d.RolloutID), "code", string(code), "err", reason)
	ctx, cancel := context.WithTimeout(ctx, rejectTimeout)
	defer cancel()
	err := w.o.ControlPlane.Reject(ctx, api.Rejection{
		Hostname: w.o.Hostname, RolloutID: d.RolloutID, Attempt: d.Attempt,
		Reason: code, Detail: reason.Error(), At: w.o.Clock.Now(),
	})
	if err != nil {
		w.o.Logger.Warn("the control plane could not be told of the refusal", "rollout", clip(d.RolloutID), "err", err)
	}
	if distrusts(code) {
		w.o.ControlPlane.Avoid()
	}
}

// codeOf returns the code of a refusal. What is wrong on this host alone has one too.
func codeOf(err error) api.Code {
	if code := trust.CodeOf(err); code != "" {
		return code
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return api.CodeDiskFull
	}
	return api.CodeInternal
}

// distrusts says whether a refusal with the code speaks against the control plane that the dispatch
// came from: another one may have what is right or fresh.
func distrusts(code api.Code) bool {
	switch code {
	case api.CodeTooEarly, api.CodeOutsideWindow, api.CodeQuarantined, api.CodeHeldLocally, api.CodeNotPermitted,
		api.CodeObserveOnly, api.CodeDiskFull, api.CodeInternal:
		return false
	}
	return true
}

func clip(s string) string { return s[:min(len(s), api.MaxRejectID)] }

// prune drops what is kept of rollouts that are over.
func (w *Worker) prune(current string) {
	view := w.o.Reducer.View()
	err := w.o.Cache.Prune(func(rolloutID string) bool {
		r, known := view.Rollouts[rolloutID]
		return rolloutID != current && (!known || r.Ended)
	})
	if err != nil {
		w.o.Logger.Warn("old manifests could not be removed", "err", err)
	}
}
