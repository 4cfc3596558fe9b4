// Package activationtest is a machine made up for tests: links, a store, boots, and switches that go on
// when the agent that began them is gone. It holds what no machine may ever see (two switches at once,
// one begun again after it was done) and says so in Violations.
//
// It is for tests of internal/agent only, best inside a testing/synctest bubble.
package activationtest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
	"nixfleet.dev/nixfleet/internal/clock"
)

// Script is how the switch to a closure goes.
type Script struct {
	Takes    time.Duration
	ExitCode int
	Stderr   string // the end of what it prints; "" is a word or two
	Hangs    bool   // it never ends by itself
	Dies     int    // so many times it ends without a result
	Shows    string // the closure that the link shows meanwhile; "" leaves it
}

// Machine implements activation.Backend. Its fields may be set before it is used; all methods may be
// called concurrently.
type Machine struct {
	Clock clock.Clock

	mu         sync.Mutex
	running    string
	boot       string
	boots      int
	scripts    map[string]Script
	realiseErr []error // given to the next calls of Realise, in turn
	jobs       map[string]*job
	switches   []string // closures that a switch to was begun
	kept       []string
	violations []string
	idle       sync.WaitGroup
}

type job struct {
	closure string
	status  activation.JobStatus
	stop    chan struct{}
	ended   chan struct{}
}

// New returns a machine that runs and boots the closure.
func New(closure string) *Machine {
	return &Machine{
		Clock: clock.System{}, running: closure, boot: closure, boots: 1,
		scripts: map[string]Script{}, jobs: map[string]*job{},
	}
}

// Script has switches to the closure go like this; without one they take 2 s and succeed.
func (m *Machine) Script(closure string, s Script) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.scripts[closure] = s
}

// FailRealise gives these errors to the next calls of Realise.
func (m *Machine) FailRealise(errs ...error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.realiseErr = append(m.realiseErr, errs...)
}

// Set has someone else put the machine on closures.
func (m *Machine) Set(running, boot string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running, m.boot = running, boot
}

// Links returns what the machine runs and boots.
func (m *Machine) Links() (running, boot string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running, m.boot
}

// BootID names the boot that is running.
func (m *Machine) BootID() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return fmt.Sprint("boot-", m.boots)
}

// Restart cuts the power: running switches end without a result, and the machine comes up with its boot
// default, or with other where that is not "".
func (m *Machine) Restart(other string) {
	m.mu.Lock()
	m.boots++
	for _, j := range m.jobs {
		if j.status.State == activation.JobRunning {
			j.status = activation.JobStatus{}
			close(j.stop)
		}
	}
	m.mu.Unlock()
	m.idle.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running = m.boot
	if other != "" {
		m.running = other
	}
}

// Wait returns once no switch runs.
func (m *Machine) Wait() { m.idle.Wait() }

// Switches returns the closures that switches were begun to, in order.
func (m *Machine) Switches() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.switches)
}

// Violations returns what must never happen and did.
func (m *Machine) Violations() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.violations)
}

// Current implements activation.Backend.
func (m *Machine) Current(ctx context.Context) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running, context.Cause(ctx)
}

// Boot implements activation.Backend.
func (m *Machine) Boot(ctx context.Context) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.boot, context.Cause(ctx)
}

// Realise implements activation.Backend.
func (m *Machine) Realise(ctx context.Context, closure string, progress func(done, total int64)) error {
	progress(1, 2)
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.realiseErr) > 0 {
		err := m.realiseErr[0]
		m.realiseErr = m.realiseErr[1:]
		return err
	}
	return context.Cause(ctx)
}

// Protect implements activation.Backend.
func (m *Machine) Protect(ctx context.Context, closures []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kept = slices.Clone(closures)
	return context.Cause(ctx)
}

// Protected returns what was protected last.
func (m *Machine) Protected() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.kept)
}

// SetProfile implements activation.Backend.
func (m *Machine) SetProfile(ctx context.Context, closure string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if m.busy() {
		m.violations = append(m.violations, "the profile was set to "+closure+" during a switch")
	}
	m.boot = closure
	return nil
}

// StartSwitch implements activation.Backend.
func (m *Machine) StartSwitch(ctx context.Context, name, closure string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if m.jobs[name] != nil {
		return nil
	}
	if m.busy() {
		m.violations = append(m.violations, "switch "+name+" was begun while another one ran")
	}
	if done := m.doneBefore(closure); done != "" {
		m.violations = append(m.violations, "switch "+name+" was begun though "+done+" had completed it")
	}
	j := &job{closure: closure, stop: make(chan struct{}), ended: make(chan struct{})}
	j.status.State = activation.JobRunning
	m.jobs[name] = j
	m.switches = append(m.switches, closure)
	script, ok := m.scripts[closure]
	if !ok {
		script = Script{Takes: 2 * time.Second}
	}
	if script.Dies > 0 {
		left := script
		left.Dies--
		m.scripts[closure] = left
	}
	m.idle.Add(1)
	go m.run(j, script)
	return nil
}

func (m *Machine) busy() bool {
	for _, j := range m.jobs {
		if j.status.State == activation.JobRunning {
			return true
		}
	}
	return false
}

// doneBefore names the switch that took the machine to the closure that it runs and boots.
func (m *Machine) doneBefore(closure string) string {
	for _, name := range slices.Sorted(maps.Keys(m.jobs)) {
		j := m.jobs[name]
		if j.closure == closure && j.status.State == activation.JobExited && j.status.ExitCode == 0 && m.running == closure {
			return name
		}
	}
	return ""
}

func (m *Machine) run(j *job, s Script) {
	defer m.idle.Done()
	defer close(j.ended)
	if s.Shows != "" {
		m.mu.Lock()
		m.running = s.Shows
		m.mu.Unlock()
	}
	var after <-chan time.Time
	if !s.Hangs {
		timer := m.Clock.NewTimer(s.Takes)
		defer timer.Stop()
		after = timer.C
	}
	select {
	case <-j.stop:
		return
	case <-after:
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.Dies > 0 {
		j.status = activation.JobStatus{}
		return
	}
	if j.status.State != activation.JobRunning {
		return
	}
	if s.ExitCode == 0 {
		m.running = j.closure
	}
	j.status = activation.JobStatus{State: activation.JobExited, ExitCode: s.ExitCode, StderrTail: cmp.Or(s.Stderr, "said by the script")}
}

// StopSwitch implements activation.Backend.
func (m *Machine) StopSwitch(ctx context.Context, name string) error {
	m.mu.Lock()
	j := m.jobs[name]
	if j != nil && j.status.State == activation.JobRunning {
		j.status = activation.JobStatus{}
		close(j.stop)
	}
	m.mu.Unlock()
	if j == nil {
		return nil
	}
	select {
	case <-j.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Job implements activation.Backend.
func (m *Machine) Job(ctx context.Context, name string) (activation.JobStatus, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := context.Cause(ctx); err != nil {
		return activation.JobStatus{}, err
	}
	if j := m.jobs[name]; j != nil {
		return j.status, nil
	}
	return activation.JobStatus{}, nil
}

// Health implements activation.Backend: the path is the closure that runs.
func (m *Machine) Health(ctx context.Context) (string, error) { return m.Current(ctx) }

// Policy returns a whole policy of one wave, for tests.
func Policy(soak time.Duration, onFailure api.OnHealthFailure) api.Policy {
	d := func(d time.Duration) *api.Duration { v := api.Duration(d); return &v }
	return api.Policy{
		Waves: []api.Wave{{Soak: api.Duration(soak)}}, OnHealthFailure: onFailure, MaxFailures: &api.Amount{},
		FailureThreshold: d(time.Minute), ActivationTimeout: d(30 * time.Minute), ConfirmTimeout: d(5 * time.Minute),
		RevertWindow: d(24 * time.Hour), Offline: &api.Offline{After: new(api.Duration(10 * time.Minute)), Action: "skip"},
		Reboot: &api.Reboot{Mode: "never"},
	}
}
