package reducer

import (
	"errors"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation/activationtest"
)

// jumps has the reducer find, from its next step on, that the wall clock ran ahead of the monotonic one.
func (l *lab) jumps(by func() time.Duration) {
	l.t.Helper()
	err := l.agent.do(l.t.Context(), func(*tx) error {
		l.agent.meter.monotonic = func(anchor, at time.Time) time.Duration { return at.Sub(anchor) - by() }
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

func TestADiskThatFillsUpWhileTheMachineSleepsEndsTheReducer(t *testing.T) {
	inBubble(t, func(l *lab) {
		full := errors.New("disk full")
		disk := &fillable{}
		l.probed(api.ModeObserve, 10*time.Minute)
		quiet := l.options
		l.options = func(o *Options) { quiet(o); disk.Journal = o.Journal; o.Journal = disk }
		l.restart()
		sleep(time.Minute)
		var slept time.Duration
		l.jumps(func() time.Duration { return slept })
		disk.err, slept = full, time.Hour
		sleep(20 * time.Minute) // the soak's end is a step that nobody asked for
		a := l.agent
		if !errors.Is(a.err, full) {
			t.Errorf("Run returned %v", a.err)
		}
		if _, err := a.Offer(l.t.Context(), Offer{}); !errors.Is(err, ErrEnded) {
			t.Errorf("a call afterwards returned %v", err)
		}
		a.cancel(nil)
		a.wg.Wait()
		l.agent = nil
	})
}

// fillable is a journal whose disk can fill up.
type fillable struct {
	Journal
	err error
}

func (j *fillable) Append(record []byte) error {
	if j.err != nil {
		return j.err
	}
	return j.Journal.Append(record)
}

func TestAFailureThatIsNoTextIsStillRecordedAndGoneBackFrom(t *testing.T) {
	inBubble(t, func(l *lab) {
		l.machine.Script(closureB, activationtest.Script{Takes: time.Second, ExitCode: 1, Stderr: "caf\xe9\n"})
		l.cp.give(activate(rollout1, closureB, soaking(time.Minute)))
		l.wantEnd(api.Reverted, closureB, closureA)
		if e := l.event(api.ActivationFailed); e.StderrTail != "caf\ufffd\n" {
			t.Errorf("what was printed: %q", e.StderrTail)
		}
	})
}

