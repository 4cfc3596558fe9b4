package reducer

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
	"nixfleet.dev/nixfleet/internal/agent/activation/activationtest"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/hoststate"
)

// Closures and rollouts of the tests.
const (
	closureA = "00000000000000000000000000000000-a"
	closureB = "00000000000000000000000000000000-b"
	closureC = "00000000000000000000000000000000-c"
	rollout1 = "stable@1111111"
	rollout2 = "stable@2222222"
	hostname = "web-01"
)

// lab is one host and one control plane in a synctest bubble. The machine, the disk and the control
// plane outlive the agent, which is killed and started as a test likes.
type lab struct {
	t       *testing.T
	machine *activationtest.Machine
	disk    *disk
	cp      *controlPlane
	health  *health
	agent   *agent
	options func(*Options)

	// The fault: the agent is killed when it comes to this point, counted from 1 over all agents.
	killAt int
	killOn string // or when it comes to the first point of this name
	points []string
}

func newLab(t *testing.T, running string) *lab {
	l := &lab{
		t: t, machine: activationtest.New(running), disk: &disk{}, health: &health{sick: map[string]bool{}},
		cp: &controlPlane{records: map[string]*hoststate.Record{}, lastSeq: map[string]int64{}, given: map[string]int{}, answers: true},
	}
	t.Cleanup(func() {
		l.machine.Wait()
		if v := l.machine.Violations(); len(v) > 0 {
			t.Errorf("the machine saw what it never may: %q", v)
		}
		if len(l.cp.broken) > 0 {
			t.Errorf("the events contradict: %q", l.cp.broken)
		}
	})
	return l
}

// inBubble runs a test of a lab that starts on closureA, in fake time.
func inBubble(t *testing.T, f func(*lab)) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, closureA)
		defer l.stop()
		f(l)
	})
}

// sleep lets fake time pass.
func sleep(d time.Duration) { _ = clock.System{}.Sleep(context.Background(), d); synctest.Wait() }

// agent is one incarnation: a reducer, and stand-ins for longpoll and outbound.
type agent struct {
	*Reducer
	lab    *lab
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	err    error

	mu   sync.Mutex
	dead bool
}

var errKilled = errors.New("kill -9")

func (l *lab) start() *agent {
	l.t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	a := &agent{lab: l, cancel: cancel}
	o := Options{
		Hostname: hostname, BootID: l.machine.BootID(), Journal: &gatedJournal{a}, Records: l.disk.read(),
		Backend: &gatedMachine{l.machine, a}, Probes: l.health, Clock: clock.System{},
		Logger:    slog.New(slog.NewTextHandler(l.t.Output(), nil)),
		Heartbeat: func(ctx context.Context) error { return a.heartbeat(ctx) },
		Confirm:   func(ctx context.Context) error { return a.gate("confirm", func() error { return l.cp.reach() }) },
	}
	l.agent = a
	if l.options != nil {
		l.options(&o)
	}
	r, err := New(o)
	if errors.Is(err, errKilled) {
		return a
	}
	if err != nil {
		l.t.Fatal(err)
	}
	a.Reducer = r
	a.wg.Go(func() { a.err = r.Run(ctx) })
	a.wg.Go(func() { a.outbound(ctx) })
	a.wg.Go(func() { a.longpoll(ctx) })
	return a
}

// stop ends the agent as a signal would.
func (l *lab) stop() {
	if a := l.agent; a != nil {
		a.cancel(nil)
		a.wg.Wait()
		l.agent = nil
		if a.err != nil && !errors.Is(a.err, errKilled) {
			l.t.Errorf("Run returned %v", a.err)
		}
	}
}

// kill ends the agent as kill -9 would: from now on nothing of it reaches the machine, the disk or the
// control plane.
func (l *lab) kill() {
	a := l.agent
	a.mu.Lock()
	a.dead = true
	a.mu.Unlock()
	l.stop()
}

func (l *lab) restart() *agent { l.kill(); return l.start() }

// until runs the host until ok, starting the agent again whenever it was killed.
func (l *lab) until(what string, limit time.Duration, ok func() bool) {
	l.t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); sleep(time.Second) {
		if l.agent == nil {
			l.start()
		}
		synctest.Wait()
		if l.agent.isDead() {
			l.stop()
			continue
		}
		if ok() {
			return
		}
	}
	l.t.Fatalf("not within %v: %s; %s\n%s", limit, what, l.cp.summary(), strings.Join(l.cp.history, "\n"))
}

func (l *lab) untilState(rolloutID string, want api.HostState) {
	l.t.Helper()
	l.until(rolloutID+" is "+string(want), 3*time.Hour, func() bool { return l.cp.state(rolloutID) == want })
}

func (a *agent) isDead() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.dead
}

// gate passes a call of the agent to the world outside it, with a point right before and right after at
// which the agent may be killed.
func (a *agent) gate(what string, call func() error) error {
	if a.point("before " + what) {
		return errKilled
	}
	err := call()
	if a.point("after " + what) {
		return errKilled
	}
	return err
}

func (a *agent) point(name string) (killed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dead {
		return true
	}
	a.lab.points = append(a.lab.points, name)
	if len(a.lab.points) == a.lab.killAt || name == a.lab.killOn {
		a.lab.killOn = ""
		a.dead = true
		a.cancel(errKilled)
	}
	return a.dead
}

func (a *agent) heartbeat(ctx context.Context) error {
	err := a.gate("heartbeat", a.lab.cp.reach)
	if err == nil {
		err = a.Withdraw(ctx, a.lab.cp.withdrawals())
	}
	return err
}

// longpoll takes what the control plane offers.
func (a *agent) longpoll(ctx context.Context) {
	for ctx.Err() == nil {
		if o, ok := a.lab.cp.offered(); ok {
			running, _ := a.lab.machine.Links()
			o.PreviousClosure = a.View().PreviousFor(running, o.Line.Closure)
			answer, err := a.Offer(ctx, o)
			if err == nil {
				a.lab.cp.answered(o, answer)
			}
		}
		_ = clock.System{}.Sleep(ctx, 5*time.Second)
	}
}

// outbound sends what there is to send, once everything else has come to rest, so that a run of a test
// comes by the same points as the one before.
func (a *agent) outbound(ctx context.Context) {
	for ctx.Err() == nil {
		_ = clock.System{}.Sleep(ctx, 10*time.Millisecond)
		b, ok := a.NextBatch()
		if !ok {
			select {
			case <-a.OutboundReady():
			case <-ctx.Done():
			}
			continue
		}
		if a.lab.cp.reach() != nil {
			_ = clock.System{}.Sleep(ctx, 5*time.Second)
			continue
		}
		var ack api.EventsAck
		err := a.gate("events", func() error { ack = a.lab.cp.take(b); return nil })
		if err == nil {
			_ = a.Acked(ctx, b.RolloutID, ack.AckedSeq, ack.Refused)
		}
	}
}

// disk is the journal's file.
type disk struct {
	mu      sync.Mutex
	records [][]byte
}

func (d *disk) read() [][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.records)
}

type gatedJournal struct{ a *agent }

func (j *gatedJournal) Append(record []byte) error {
	return j.a.gate("append", func() error {
		d := j.a.lab.disk
		d.mu.Lock()
		defer d.mu.Unlock()
		d.records = append(d.records, slices.Clone(record))
		return nil
	})
}

func (j *gatedJournal) Compact(snapshot []byte) error {
	return j.a.gate("compact", func() error {
		d := j.a.lab.disk
		d.mu.Lock()
		defer d.mu.Unlock()
		d.records = [][]byte{slices.Clone(snapshot)}
		return nil
	})
}

func (j *gatedJournal) Size() (n int64) {
	for _, r := range j.a.lab.disk.read() {
		n += int64(len(r))
	}
	return n
}

// gatedMachine is the machine as one agent reaches it.
type gatedMachine struct {
	*activationtest.Machine
	a *agent
}

func (m *gatedMachine) Realise(ctx context.Context, closure string, progress func(done, total int64)) error {
	return m.a.gate("realise", func() error { return m.Machine.Realise(ctx, closure, progress) })
}

func (m *gatedMachine) SetProfile(ctx context.Context, closure string) error {
	return m.a.gate("set profile", func() error { return m.Machine.SetProfile(ctx, closure) })
}

func (m *gatedMachine) StartSwitch(ctx context.Context, name, closure string) error {
	return m.a.gate("start switch", func() error { return m.Machine.StartSwitch(ctx, name, closure) })
}

func (m *gatedMachine) StopSwitch(ctx context.Context, name string) error {
	return m.a.gate("stop switch", func() error { return m.Machine.StopSwitch(ctx, name) })
}

var _ activation.Backend = (*gatedMachine)(nil)

// health is a Probes: one enforce probe a closure, every 10 s, that fails where the closure is sick.
type health struct {
	mu     sync.Mutex
	sick   map[string]bool
	broken error
	extra  []api.Probe
	path   string
}

func (h *health) set(closure string, sick bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sick[closure] = sick
}

func (h *health) Load(path string) (api.HealthChecks, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.path = path
	probes := []api.Probe{{Name: "up", Kind: api.ProbeTCP, Mode: api.ModeEnforce, Interval: api.Duration(10 * time.Second)}}
	return api.HealthChecks{SchemaVersion: 1, Probes: append(probes, h.extra...)}, h.broken
}

func (h *health) Run(ctx context.Context, set api.HealthChecks, report func(ProbeRun)) error {
	for ctx.Err() == nil {
		h.mu.Lock()
		run := ProbeRun{Probe: set.Probes[0], At: time.Now(), Status: api.ProbePass}
		if h.sick[h.path] {
			run.Status, run.Reason = api.ProbeFail, "refused"
		}
		h.mu.Unlock()
		report(run)
		_ = clock.System{}.Sleep(ctx, set.Probes[0].Interval.Std())
	}
	return nil
}
