package directory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
)

// agentCommand makes this test program an agent that starts a switch and is then to be killed.
const agentCommand = "start-and-hang"

func TestMain(m *testing.M) {
	if HelperMain(os.Args) {
		os.Exit(0)
	}
	if len(os.Args) == 5 && os.Args[1] == agentCommand {
		b, err := New(optionsIn(os.Args[2]))
		if err == nil {
			err = b.StartSwitch(context.Background(), os.Args[3], os.Args[4])
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("started")
		select {}
	}
	os.Exit(m.Run())
}

const (
	alpha = "0c2s7dq1p8m6x9y4z5v3w0a1b2c3d4f5-alpha"
	beta  = "1c2s7dq1p8m6x9y4z5v3w0a1b2c3d4f5-beta"
)

func optionsIn(dir string) Options {
	return Options{
		StateDir: filepath.Join(dir, "state"), Store: filepath.Join(dir, "store"),
		Profile: filepath.Join(dir, "profile"), CurrentSystem: filepath.Join(dir, "current"),
	}
}

// machine is a directory machine with a store.
type machine struct {
	*Backend
	t   *testing.T
	dir string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	dir := t.TempDir()
	b, err := New(optionsIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{Backend: b, t: t, dir: dir}
	t.Cleanup(m.stopAll)
	return m
}

// stopAll ends what a failed test left running.
func (m *machine) stopAll() {
	entries, err := os.ReadDir(m.Backend.dir)
	if err != nil {
		m.t.Error(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := m.StopSwitch(context.Background(), e.Name()); err != nil {
				m.t.Error(err)
			}
		}
	}
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

// closure adds a closure to the store, with this script unless it is "".
func (m *machine) closure(name, body string) {
	m.t.Helper()
	path := filepath.Join(m.o.Store, name, script)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if body == "" {
		return
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) start(job, closure string) {
	m.t.Helper()
	if err := m.StartSwitch(context.Background(), job, closure); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) job(job string) activation.JobStatus {
	m.t.Helper()
	s, err := m.Job(context.Background(), job)
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

// await waits until the job is in the state.
func (m *machine) await(job string, want activation.JobState) activation.JobStatus {
	m.t.Helper()
	var s activation.JobStatus
	eventually(m.t, fmt.Sprintf("%s in state %d", job, want), func() bool { s = m.job(job); return s.State == want })
	return s
}

func (m *machine) current() string {
	m.t.Helper()
	c, err := m.Current(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

// read returns what a script wrote into a file, "" while there is none.
func (m *machine) read(name string) string {
	data, _ := os.ReadFile(m.path(name))
	return strings.TrimSpace(string(data))
}

// eventually looks again and again, since what it waits for is another process.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for !holds() {
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

func TestAFreshMachineRunsAndBootsNothing(t *testing.T) {
	m := newMachine(t)
	boot, err := m.Boot(t.Context())
	if m.current() != "" || boot != "" || err != nil {
		t.Errorf("it runs %q and boots %q, %v", m.current(), boot, err)
	}
}

func TestALinkToWhatIsNoTextIsReadAsText(t *testing.T) {
	m := newMachine(t)
	if err := os.Symlink("/somewhere/caf\xe9", m.path("current")); err != nil {
		t.Fatal(err)
	}
	// It goes into heartbeats and events, and what is no text cannot be written there.
	if got, err := m.Current(t.Context()); err != nil || got != "caf\ufffd" {
		t.Errorf("it runs %q, %v", got, err)
	}
}

func TestSetProfilePointsTheLinkAtTheFolder(t *testing.T) {
	m := newMachine(t)
	m.closure(alpha, "")
	m.closure(beta, "")
	for _, c := range []string{alpha, alpha, beta, alpha} {
		if err := m.SetProfile(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		boot, err := m.Boot(t.Context())
		to, _ := filepath.EvalSymlinks(m.o.Profile)
		if boot != c || err != nil || filepath.Base(to) != c {
			t.Errorf("it boots %q (%s), %v; want %s", boot, to, err, c)
		}
	}
	if m.current() != "" {
		t.Errorf("setting the profile switched to %s", m.current())
	}
}

func TestALinkIsAtNoMomentMissing(t *testing.T) {
	m := newMachine(t)
	m.closure(alpha, "")
	m.closure(beta, "")
	if err := m.SetProfile(t.Context(), alpha); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 200 {
			if err := m.SetProfile(context.Background(), []string{alpha, beta}[i%2]); err != nil {
				t.Error(err)
			}
		}
	}()
	for {
		select {
		case <-done:
			return
		default:
		}
		if boot, err := m.Boot(t.Context()); boot == "" || err != nil {
			t.Fatalf("it boots %q, %v", boot, err)
		}
	}
}

func TestOnlyFoldersOfTheStoreAreClosures(t *testing.T) {
	m := newMachine(t)
	m.closure(alpha, "touch "+m.path("ran"))
	if err := os.Symlink(alpha, filepath.Join(m.o.Store, beta)); err != nil {
		t.Fatal(err)
	}
	file := "2c2s7dq1p8m6x9y4z5v3w0a1b2c3d4f5-file"
	if err := os.WriteFile(filepath.Join(m.o.Store, file), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"", ".", "..", "../store/" + alpha, alpha + "/bin", alpha + "/../" + alpha, m.o.Store + "/" + alpha,
		"short-name", strings.ToUpper(alpha), alpha + "\n", "3c2s7dq1p8m6x9y4z5v3w0a1b2c3d4f5-absent", beta, file} {
		var failure *activation.Error
		if err := m.Realise(t.Context(), c, nil); !errors.As(err, &failure) || failure.Code != api.CodeRealiseFailed || failure.Temporary {
			t.Errorf("realising %q: %v", c, err)
		}
		if err := m.SetProfile(t.Context(), c); !errors.As(err, &failure) || failure.Phase != api.PhaseSetProfile || failure.Temporary {
			t.Errorf("booting %q: %v", c, err)
		}
		if err := m.StartSwitch(t.Context(), "job", c); !errors.As(err, &failure) || failure.Phase != api.PhaseSwitch || failure.Temporary {
			t.Errorf("switching to %q: %v", c, err)
		}
	}
	if err := m.Realise(t.Context(), alpha, nil); err != nil {
		t.Error(err)
	}
	if m.read("ran") != "" || m.job("job").State != activation.JobUnknown {
		t.Error("something was switched to")
	}
}

func TestHealthChecksAreTheCurrentSystems(t *testing.T) {
	m := newMachine(t)
	if path, err := m.Health(t.Context()); err != nil || path != m.path("current/etc/nixfleet/health-checks.json") {
		t.Errorf("%s, %v", path, err)
	}
	o := optionsIn(m.dir)
	o.HealthChecks = "/etc/checks.json"
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if path, err := b.Health(t.Context()); err != nil || path != "/etc/checks.json" {
		t.Errorf("%s, %v", path, err)
	}
}

func TestAMachineNeedsItsPaths(t *testing.T) {
	o := optionsIn(t.TempDir())
	o.Store = ""
	if _, err := New(o); err == nil {
		t.Error("a machine without a store was made")
	}
}
