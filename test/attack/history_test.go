package attack

import (
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
)

// These lies are about a host's past: it has converged on a release before they are told.
var rewrites = []struct {
	name string
	code api.Code
	edit func(first manifesttest.Release, o *manifesttest.Options)
}{
	{"an older sequence than before", api.CodeRollbackRefused, func(first manifesttest.Release, o *manifesttest.Options) {
		o.Sequence = first.Manifest.Sequence - 1
	}},
	{"an equal sequence with another tree", api.CodeRollbackRefused, func(first manifesttest.Release, o *manifesttest.Options) {
		o.Sequence = first.Manifest.Sequence
	}},
	{"the same release signed earlier", api.CodeRollbackRefused, func(first manifesttest.Release, o *manifesttest.Options) {
		o.Sequence, o.SignedAt = first.Manifest.Sequence, first.Manifest.SignedAt.Add(-time.Minute)
		o.ReleasedAt = o.SignedAt
	}},
	{"a channel that was released earlier", api.CodeRollbackRefused, func(first manifesttest.Release, o *manifesttest.Options) {
		o.Channel, o.ReleasedAt = "edge", first.Manifest.ReleasedAt.Add(-time.Minute)
	}},
}

func TestAHostsPastCannotBeRewritten(t *testing.T) {
	for _, r := range rewrites {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			h := newTarget(t)
			first := h.release(nil)
			h.converges(first)
			stays := dispatch(first).TargetClosure
			rel := h.release(func(o *manifesttest.Options) { r.edit(first, o) })
			h.publish(rel)
			h.insist(dispatch(rel))
			h.tells(r.code)
			h.watch()
			h.stays(stays)
			h.relents()
			h.converges(h.release(nil))
		})
	}
}

func TestTheSameDispatchForEverChangesNothing(t *testing.T) {
	t.Parallel()
	h := newTarget(t)
	first := h.release(nil)
	h.converges(first)
	events := len(h.cp.Events(first.ID))
	h.insist(dispatch(first))
	h.watch()
	h.stays(dispatch(first).TargetClosure)
	if n := len(h.cp.Events(first.ID)); n != events {
		t.Errorf("%d new events", n-events)
	}
	h.relents()
	h.converges(h.release(nil))
}

func TestAttemptsThatNobodyOrderedAreRefused(t *testing.T) {
	t.Parallel()
	h := newTarget(t)
	first := h.release(nil)
	h.converges(first)
	d := dispatch(first)
	d.Attempt = 1 << 52
	h.insist(d)
	h.watch()
	h.stays(d.TargetClosure)
	h.relents()
	h.converges(h.release(nil))
}
