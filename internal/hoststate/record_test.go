package hoststate

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/api"
)

func step(t *testing.T, r Record, in Input) (Record, []Effect) {
	t.Helper()
	next, effects, err := Step(r, in, at(60))
	if err != nil {
		t.Fatal(err)
	}
	return next, effects
}

func TestSoakEndsAtTheLaterOfSoakDueAtAndCompletionPlusTheSignedSoak(t *testing.T) {
	for name, test := range map[string]struct{ due, completed, want int }{
		"the signed soak is longer":     {due: 45, completed: 50, want: 80},
		"soakDueAt is later":            {due: 90, completed: 50, want: 90},
		"soakDueAt has passed long ago": {due: -1000, completed: 50, want: 80},
	} {
		t.Run(name, func(t *testing.T) {
			r := record(api.Activating, func(r *Record) { r.SoakDueAt = at(test.due) })
			r, _ = step(t, r, event(api.ActivationCompleted, minute(test.completed)))
			if !r.SoakEndsAt.Equal(at(test.want)) || !r.CompletedAt.Equal(at(test.completed)) {
				t.Errorf("the soak of a completion at %v ends at %v, want %v", r.CompletedAt, r.SoakEndsAt, at(test.want))
			}
		})
	}
}

func TestATimeThatCannotBeWrittenIsNeverInARecord(t *testing.T) {
	last := time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("", -14*3600))
	r, _ := step(t, record(api.Activating), event(api.ActivationCompleted, func(e *api.Event) { e.At = last }))
	if r.SoakEndsAt.Year() != 9999 || r.LastAt.Year() != 9999 {
		t.Errorf("got %v and %v", r.SoakEndsAt, r.LastAt)
	}
	deepCopy(t, r)
}

func TestAtNeverDecreasesWithinAStream(t *testing.T) {
	r := record(api.Activating)
	for _, state := range []api.HostState{api.Activating, api.HostSuperseded} {
		r.State = state
		if _, _, err := Step(r, event(api.ActivationProgress, minute(9)), at(60)); err == nil {
			t.Errorf("an event before the one before it was accepted in %s", state)
		}
		if _, _, err := Step(r, event(api.ActivationProgress, minute(10)), at(60)); err != nil {
			t.Errorf("an event at the same time as the one before it was refused: %v", err)
		}
	}
	if got := r.NextAt(at(5)); !got.Equal(at(10)) {
		t.Errorf("after the clock was set back the next event is at %v", got)
	}
	if got := r.NextAt(at(11)); !got.Equal(at(11)) {
		t.Errorf("the next event is at %v, not now", got)
	}
	r, _ = step(t, r, NewJournal{previous, previous})
	if _, _, err := Step(r, event(api.ActivationProgress, minute(1)), at(60)); err != nil {
		t.Errorf("the first event of a new journal was refused: %v", err)
	}
}

func TestAnAttemptNeverGoesDown(t *testing.T) {
	r := record(api.Skipped, func(r *Record) { r.Attempt = 5 })
	if r, _ = step(t, r, event(api.DispatchAck, attempt(2))); r.Attempt != 5 {
		t.Errorf("a late acknowledgement of attempt 2 made it attempt %d", r.Attempt)
	}
	r, _ = step(t, record(api.Pending), event(api.DispatchAck, attempt(3)))
	if r.Attempt != 3 {
		t.Errorf("a rebuilt log has attempt %d, the host acknowledged 3", r.Attempt)
	}
	failed, _ := step(t, r, event(api.ActivationFailed, reason(api.CodeChangedLocally)))
	retried, _ := step(t, failed, Retry{})
	if retried.Attempt != 4 || retried.State != api.Pending {
		t.Errorf("a retry of attempt 3 is attempt %d, %s", retried.Attempt, retried.State)
	}
}

func TestANewAttemptForgetsTheOldOne(t *testing.T) {
	r := record(api.Soaking)
	r, _ = step(t, r, event(api.HealthFailed))
	r, _ = step(t, r, event(api.RollbackCompleted))
	if r.Failure == nil || r.Failure.Code != api.CodeHealthFailed || !strings.Contains(r.Failure.Detail, "http") {
		t.Errorf("the failure of a host that went back is %+v", r.Failure)
	}
	r, _ = step(t, r, event(api.DispatchAck, attempt(2)))
	want := Record{
		Hostname: "web-01", RolloutID: "stable@0a1b2c3d", State: api.Activating, Attempt: 2, TargetClosure: target,
		Soak: api.Duration(30 * time.Minute), OnHealthFailure: api.RollbackAndHalt,
		PreviousClosure: previous, SoakDueAt: at(45), LastAt: at(50), ChangedAt: at(60),
	}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("attempt 2 (-want +got):\n%s", diff)
	}
}

func TestTheTargetIsNeverThePreviousClosure(t *testing.T) {
	r, _ := step(t, record(api.Pending), event(api.DispatchAck, func(e *api.Event) { e.PreviousClosure = target }))
	if r.PreviousClosure != "" {
		t.Errorf("the host would go back to its target, %s", r.PreviousClosure)
	}
	r, effects := step(t, r, event(api.ActivationFailed))
	if r.State != api.Failed || len(effects) != 1 {
		t.Errorf("its failure leads to %s with %v", r.State, effects)
	}
}

func TestAHostAlreadyOnItsTargetSoaksLikeAnyOther(t *testing.T) {
	r, _ := step(t, record(api.Pending), event(api.DispatchAck))
	r, _ = step(t, r, event(api.ActivationStarted, func(e *api.Event) { e.Method = api.MethodNone }))
	r, effects := step(t, r, event(api.ActivationCompleted))
	if r.State != api.Soaking || !r.SoakEndsAt.Equal(at(80)) || len(effects) != 1 {
		t.Errorf("%s until %v with %v", r.State, r.SoakEndsAt, effects)
	}
	if _, _, err := Step(r, event(api.Converged, minute(79)), at(79)); err == nil {
		t.Error("it converged before its soak's end")
	}
}

func TestAConfirmTimeoutIsExoneratedByAPreviousSystemThatIsCutOffToo(t *testing.T) {
	for name, test := range map[string]struct {
		failed, rolledBack api.Code
		want               []Effect
	}{
		"cut off too":             {api.CodeConfirmTimeout, api.CodeConfirmTimeout, []Effect{Exonerate{target}}},
		"reachable again":         {api.CodeConfirmTimeout, "", nil},
		"failed for its own part": {api.CodeSwitchFailed, api.CodeConfirmTimeout, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := step(t, record(api.Activating), event(api.ActivationFailed, reason(test.failed)))
			r, _ = step(t, r, event(api.RollbackStarted, cause(api.CauseConfirm)))
			_, effects := step(t, r, event(api.RollbackCompleted, reason(test.rolledBack)))
			if diff := cmp.Diff(test.want, effects); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestDeclaringProbesAgainKeepsTheirResults(t *testing.T) {
	a := api.DeclaredProbe{Name: "a", Kind: "tcp", Mode: api.ModeEnforce}
	b := api.DeclaredProbe{Name: "b", Kind: "tcp", Mode: api.ModeEnforce}
	pass := func(name string) Reported { return event(api.ProbeResult, func(e *api.Event) { e.Probe = name }) }
	r, _ := step(t, record(api.Soaking, undeclared), pass("b")) // not declared yet: it counts for nothing
	r, _ = step(t, r, declares(a))
	r, _ = step(t, r, pass("a"))
	r, _ = step(t, r, declares(a, b))
	if p, ok := r.Blocking(); !ok || p.Name != "b" {
		t.Errorf("what holds convergence is %+v", p)
	}
	a.Kind = "exec" // another probe of the same name
	r, _ = step(t, r, declares(a))
	if p, ok := r.Blocking(); !ok || p.Name != "a" {
		t.Errorf("a result of another probe counts: %+v", p)
	}
}

func TestANewActivationDropsAllProbeResults(t *testing.T) {
	r := record(api.Soaking)
	r.State = api.Activating
	if r, _ = step(t, r, event(api.ActivationCompleted)); r.ProbesDeclared || r.Probes != nil {
		t.Errorf("left over: %+v", r.Probes)
	}
}

func TestARecordSharesNoMemoryWithItsEvent(t *testing.T) {
	units := []string{"kernel"}
	in := event(api.ActivationCompleted, func(e *api.Event) { e.RebootPending = units })
	r, _ := step(t, record(api.Activating), in)
	units[0] = "initrd"
	if r.RebootPending[0] != "kernel" {
		t.Error("the record changed with the event")
	}
	r, _ = step(t, r, event(api.ProbesDeclared))
	after, _ := step(t, r, event(api.ProbeResult))
	if r.Probes[0].Status != "" || after.Probes[0].Status != api.ProbePass {
		t.Error("a result was written into the older record")
	}
}

func TestAHostCannotFillTheRecord(t *testing.T) {
	long := strings.Repeat("ü", 200_000)
	r, _ := step(t, record(api.Activating), event(api.ActivationFailed, func(e *api.Event) { e.StderrTail, e.Phase, e.Reason = long, long, api.Code(long) }))
	if n := len(r.Failure.Detail) + len(r.Failure.Code); n > 2*maxText {
		t.Errorf("a failure of %d bytes", n)
	}
	r, _ = step(t, record(api.Activating), event(api.ActivationDeferred, func(e *api.Event) { e.Components = strings.Split(long, "ü") }))
	if len(r.RebootPending) > maxComponents {
		t.Errorf("%d components", len(r.RebootPending))
	}
	_, _, err := Step(record(api.Pending), event(api.DispatchAck, targetIs(long)), start)
	var invalid *InvalidTransition
	if !errors.As(err, &invalid) || len(err.Error()) > 2*maxText {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
	if _, _, err := Step(record(api.Pending), event(api.DispatchAck, func(e *api.Event) { e.PreviousClosure = long }), start); err == nil {
		t.Error("a previous closure of 400 KB was kept")
	}
	if _, _, err := Step(record(api.Soaking), event(api.EventKind(long)), start); len(err.Error()) > 2*maxText {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}

func TestTheFailureEndsWithWhatWasPrintedLast(t *testing.T) {
	r, _ := step(t, record(api.Activating), event(api.ActivationFailed, func(e *api.Event) { e.ExitCode, e.StderrTail = 3, strings.Repeat("x", 4000)+"no such unit\n" }))
	if !strings.HasPrefix(r.Failure.Detail, "switch, exit code 3: xxx") || !strings.HasSuffix(r.Failure.Detail, "no such unit") {
		t.Errorf("%q", r.Failure.Detail)
	}
}
