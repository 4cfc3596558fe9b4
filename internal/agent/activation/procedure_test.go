package activation_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
	"nixfleet.dev/nixfleet/internal/agent/activation/activationtest"
	"nixfleet.dev/nixfleet/internal/clock"
)

const (
	closureA = "00000000000000000000000000000000-a"
	closureB = "00000000000000000000000000000000-b"
)

// notes is a Ledger that writes down what it is told. What goes on with crashes is tested in
// internal/agent/reducer, with the real one.
type notes struct {
	mu     sync.Mutex
	lines  []string
	failed activation.Failure
	done   activation.Outcome
	stopAt string // the call that is refused
}

func (n *notes) note(line string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if line == n.stopAt {
		return activation.ErrStopped
	}
	n.lines = append(n.lines, line)
	return nil
}

func (n *notes) Started(_ context.Context, method string) error { return n.note("started " + method) }
func (n *notes) Progress(context.Context, string, int64, int64) {}
func (n *notes) AwaitAck(context.Context) error                 { return n.note("acknowledged") }
func (n *notes) Mark(_ context.Context, t activation.Task) error {
	return n.note("mark " + string(t.Stage))
}
func (n *notes) Deferred(_ context.Context, c []string) error {
	return n.note("deferred " + strings.Join(c, ","))
}
func (n *notes) Completed(_ context.Context, o activation.Outcome) error {
	n.done = o
	return n.note("completed")
}
func (n *notes) Failed(_ context.Context, f activation.Failure) error {
	n.failed = f
	return n.note("failed " + string(f.Reason))
}

// units is a machine that switches as NixOS does.
type units struct {
	*activationtest.Machine
	before, after []string
}

func (u *units) FailedUnits(context.Context) ([]string, error) {
	if len(u.Switches()) > 0 {
		return u.after, nil
	}
	return u.before, nil
}

func task(kind activation.Kind, closure string) activation.Task {
	return activation.Task{
		Kind: kind, RolloutID: "stable@1111111", Attempt: 1, Closure: closure, From: closureA, Began: time.Now(),
		Timeout: api.Duration(time.Hour), ConfirmTimeout: api.Duration(time.Minute),
	}
}

// run runs a task in a bubble and returns what was noted.
func run(t *testing.T, b func(*activationtest.Machine) activation.Backend, kind activation.Kind, closure string, n *notes) (err error) {
	synctest.Test(t, func(t *testing.T) {
		machine := activationtest.New(closureA)
		p := activation.Procedure{
			Backend: b(machine), Clock: clock.System{}, BootID: "boot-1", Logger: slog.New(slog.DiscardHandler),
			Heartbeat: func(context.Context) error { return n.note("heartbeat") },
			Confirm:   func(context.Context) error { return n.note("confirmed") },
		}
		err = p.Run(t.Context(), task(kind, closure), n)
		machine.Wait()
		if v := machine.Violations(); len(v) > 0 {
			t.Error(v)
		}
	})
	return err
}

func plain(m *activationtest.Machine) activation.Backend { return m }

func TestAnActivationTakesItsStepsInOrder(t *testing.T) {
	n := &notes{}
	if err := run(t, plain, activation.Activate, closureB, n); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"started switch", "acknowledged", "heartbeat", "mark profile", "mark switch", "mark confirm", "confirmed", "completed",
	}
	if diff := cmp.Diff(want, n.lines); diff != "" {
		t.Error(diff)
	}
}

func TestAnActivationThatTheLedgerRefusesEndsAtOnce(t *testing.T) {
	for _, at := range []string{"started switch", "acknowledged", "mark profile"} {
		n := &notes{stopAt: at}
		var machine *activationtest.Machine
		err := run(t, func(m *activationtest.Machine) activation.Backend { machine = m; return m }, activation.Activate, closureB, n)
		if !errors.Is(err, activation.ErrStopped) {
			t.Errorf("refused at %q it returned %v", at, err)
		}
		if running, boot := machine.Links(); running != closureA || boot != closureA || len(machine.Switches()) > 0 {
			t.Errorf("refused at %q it went on to %q, %q", at, running, boot)
		}
	}
}

func TestExitCodesOfSwitchToConfiguration(t *testing.T) {
	cases := []struct {
		what          string
		code          int
		before, after []string
		moved         bool
		end           string
		detail        string
	}{
		{"done", 0, nil, nil, true, "completed", ""},
		{"a unit is failed that was failed before", 4, []string{"old.service"}, []string{"old.service"}, true, "completed", ""},
		{"a unit is newly failed", 4, []string{"old.service"}, []string{"old.service", "new.service"}, true, "failed switch-failed", "new.service"},
		{"units failed but the link is not on the target", 4, nil, nil, false, "failed verify-mismatch", ""},
		{"a reboot is needed", 100, nil, nil, false, "deferred ", ""},
		{"anything else", 2, nil, nil, true, "failed switch-failed", "said by the script"},
	}
	for _, c := range cases {
		t.Run(c.what, func(t *testing.T) {
			n := &notes{}
			err := run(t, func(m *activationtest.Machine) activation.Backend {
				s := activationtest.Script{Takes: time.Second, ExitCode: c.code}
				if c.moved {
					s.Shows = closureB
				}
				m.Script(closureB, s)
				return &units{m, c.before, c.after}
			}, activation.Activate, closureB, n)
			if err != nil {
				t.Fatal(err)
			}
			if got := n.lines[len(n.lines)-1]; got != c.end {
				t.Errorf("it ended as %q, not %q", got, c.end)
			}
			if !strings.Contains(n.failed.StderrTail, c.detail) {
				t.Errorf("the failure does not say %q: %q", c.detail, n.failed.StderrTail)
			}
			if c.end == "completed" && n.done.ExitCode != c.code {
				t.Errorf("exit code %d", n.done.ExitCode)
			}
		})
	}
}

func TestARollbackIsCompleteWithFailedUnits(t *testing.T) {
	n := &notes{}
	err := run(t, func(m *activationtest.Machine) activation.Backend {
		m.Script(closureB, activationtest.Script{Takes: time.Second, ExitCode: 4, Shows: closureB})
		return &units{m, nil, []string{"new.service"}}
	}, activation.RollBack, closureB, n)
	if err != nil || n.done.Observed != closureB || n.done.ExitCode != 4 {
		t.Errorf("%v, %+v, %q", err, n.done, n.lines)
	}
}

func TestALongStderrIsCutToItsEnd(t *testing.T) {
	n := &notes{}
	err := run(t, func(m *activationtest.Machine) activation.Backend {
		m.FailRealise(&activation.Error{Code: api.CodeDiskFull, Detail: strings.Repeat("x", 10_000) + "the end"})
		return m
	}, activation.Activate, closureB, n)
	if err != nil || len(n.failed.StderrTail) != api.MaxStderrTail || !strings.HasSuffix(n.failed.StderrTail, "the end") {
		t.Errorf("%v, %d bytes", err, len(n.failed.StderrTail))
	}
}

// deaf is a machine that does what it is told also when the time for it is over.
type deaf struct{ *activationtest.Machine }

func (d deaf) SetProfile(ctx context.Context, closure string) error {
	return d.Machine.SetProfile(context.WithoutCancel(ctx), closure)
}

func (d deaf) StartSwitch(ctx context.Context, job, closure string) error {
	return d.Machine.StartSwitch(context.WithoutCancel(ctx), job, closure)
}

func TestASwitchThatWasNotBegunInTimeIsNotBegunAnyMore(t *testing.T) {
	for _, stage := range []activation.Stage{activation.StageProfile, activation.StageSwitch} {
		synctest.Test(t, func(t *testing.T) {
			n, machine := &notes{}, activationtest.New(closureA)
			p := activation.Procedure{Backend: deaf{machine}, Clock: clock.System{}, BootID: "boot-1", Logger: slog.New(slog.DiscardHandler)}
			late := task(activation.Activate, closureB)
			late.Stage, late.Job, late.Try, late.BootID = stage, "activate-1", 1, "boot-1"
			late.Began = late.Began.Add(-2 * time.Hour)
			if err := p.Run(t.Context(), late, n); err != nil {
				t.Fatal(err)
			}
			machine.Wait()
			if got := machine.Switches(); len(got) > 0 {
				t.Errorf("stage %s: switches to %q", stage, got)
			}
			// A timeout before the switch began quarantines nothing (state.md, Quarantine): the phase says which.
			if n.failed.Reason != api.CodeTimeout || n.failed.Phase != api.PhaseSetProfile || !n.failed.Changed {
				t.Errorf("stage %s: %+v", stage, n.failed)
			}
		})
	}
}
