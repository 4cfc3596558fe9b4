package attack

import (
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
)

func TestBadAdviceInHeartbeatsDoesNotMoveAHost(t *testing.T) {
	t.Parallel()
	h := newTarget(t)
	first := h.release(nil)
	h.converges(first)
	stays := dispatch(first).TargetClosure
	strange := "edge@ffffffff"
	h.cp.Reply(api.HeartbeatReply{
		Interval:   api.Duration(time.Nanosecond),
		ReplayFrom: map[string]int64{first.ID: -1, strange: 1 << 52, "../../x": 1},
		Forget:     []string{strange, "../../x"},
		Withdrawn:  []string{first.ID, strange},
		Current:    map[string]string{"stable": "../../../etc/passwd", "edge": strange},
	})
	beats := len(h.cp.Heartbeats())
	h.cp.Wait("the advice was given", func() bool { return len(h.cp.Heartbeats()) > beats+2 })
	h.watch()
	h.stays(stays)
	h.cp.Reply(api.HeartbeatReply{})
	h.converges(h.release(nil))
}

func TestAnActivationIsWithdrawnOnlyBeforeItTouchesTheMachine(t *testing.T) {
	t.Parallel()
	h := newTarget(t)
	rel := h.release(nil)
	h.publish(rel)
	h.cp.Reply(api.HeartbeatReply{Withdrawn: []string{rel.ID}})
	d := dispatch(rel)
	h.cp.Offer(&d)
	h.cp.Wait("the activation was cancelled", func() bool {
		for _, e := range h.cp.Events(rel.ID) {
			if e.Kind == api.ActivationFailed && e.Reason == api.CodeCancelled && !e.Changed {
				return true
			}
		}
		return false
	})
	h.stays(before)
	h.cp.Reply(api.HeartbeatReply{})
	h.converges(h.release(nil))
}
