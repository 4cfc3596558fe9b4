// Package integration breaks a whole fleet of real processes: control planes and agents are killed
// with SIGKILL, databases are deleted, and what came of it is read from the machines themselves and
// from the recorded history. The small variants always run; the full ones when NIXFLEET_LONG is set.
package integration

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/internal/agent"
	"nixfleet.dev/nixfleet/internal/agent/activation/directory"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane"
	"nixfleet.dev/nixfleet/internal/lab"
	"nixfleet.dev/nixfleet/internal/operator"
)

// roleEnv makes the test binary be something else than a test: a control plane, or some agents.
const roleEnv = "NIXFLEET_TEST_ROLE"

func TestMain(m *testing.M) {
	if directory.HelperMain(os.Args) {
		return
	}
	var err error
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	switch os.Getenv(roleEnv) {
	case "control-plane":
		err = beControlPlane(ctx, os.Args[1])
	case "agents":
		err = beAgents(ctx, os.Args[1:])
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// long says whether the full variants run.
func long() bool { return os.Getenv("NIXFLEET_LONG") != "" }

// beControlPlane runs a control plane and prints "ready" once it is.
func beControlPlane(ctx context.Context, config string) error {
	c, err := controlplane.Load(config)
	if err != nil {
		return err
	}
	return controlplane.Run(ctx, c, controlplane.Options{
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)), Clock: clock.System{}, Version: "test",
		Ready: func(net.Addr, net.Addr) { fmt.Println("ready") },
	})
}

// beAgents runs an agent for each configuration and prints "ready" once they are started.
func beAgents(ctx context.Context, configs []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var workers sync.WaitGroup
	errs := make(chan error, len(configs))
	for _, path := range configs {
		c, err := agent.Load(path)
		if err != nil {
			return err
		}
		logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
		workers.Go(func() {
			errs <- agent.Run(ctx, c, agent.Options{Logger: logger, Clock: clock.System{}, Version: "test", Helper: []string{self}})
		})
	}
	fmt.Println("ready")
	err = <-errs // the first to end; with ctx all of them do
	if ctx.Err() == nil {
		return fmt.Errorf("an agent ended by itself: %w", err)
	}
	workers.Wait()
	return nil
}

// process is one child that can be killed.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// spawn starts the test binary in a role, returns once it is ready, and ends it with the test. What it
// logs goes to a file that is shown when the test fails.
func spawn(t *testing.T, role string, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	log, err := os.CreateTemp(t.TempDir(), role+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	ready := make(chan bool, 1)
	go func() {
		lines := bufio.NewScanner(out)
		ready <- lines.Scan() && lines.Text() == "ready"
		for lines.Scan() { // until it ends, so that Wait may close the pipe
		}
		_ = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("end of the log of %s %s:\n%s", role, filepath.Base(log.Name()), tail(log.Name()))
		}
	})
	select {
	case ok := <-ready:
		if !ok {
			t.Fatalf("%s did not start:\n%s", role, tail(log.Name()))
		}
	case <-time.After(time.Minute):
		t.Fatalf("%s is not ready after a minute:\n%s", role, tail(log.Name()))
	}
	return p
}

// kill ends the process as a power cut would, and returns once it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Signal(syscall.SIGKILL)
	<-p.done
}

func tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	const most = 8 << 10
	if len(data) > most {
		data = data[len(data)-most:]
	}
	return string(data)
}

// newLab makes a fleet for a test.
func newLab(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	o.Dir, o.Clock, o.Base = t.TempDir(), clock.System{}, lab.Version{Number: "0"}
	l, err := lab.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// client returns the operator's client of the fleet.
func client(t *testing.T, l *lab.Lab) *operator.Client {
	t.Helper()
	c, err := operator.New(l.Operator())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// release builds and publishes v and returns the rollout's id.
func release(t *testing.T, l *lab.Lab, v lab.Version) string {
	t.Helper()
	if err := l.Build(v); err != nil {
		t.Fatal(err)
	}
	id, err := l.Release(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// eventually asks until it is told true, at most for limit.
func eventually(t *testing.T, limit time.Duration, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, what)
		}
		<-tick.C
	}
}

// configs are the agents' configurations.
func configs(machines []lab.Machine) []string {
	var paths []string
	for _, m := range machines {
		paths = append(paths, m.Config())
	}
	return paths
}
