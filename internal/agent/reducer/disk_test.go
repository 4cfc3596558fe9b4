package reducer

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation/activationtest"
	"nixfleet.dev/nixfleet/internal/agent/activation/directory"
	"nixfleet.dev/nixfleet/internal/agent/journal"
	"nixfleet.dev/nixfleet/internal/agent/probe"
	"nixfleet.dev/nixfleet/internal/clock"
)

func TestMain(m *testing.M) {
	if directory.HelperMain(os.Args) {
		return
	}
	os.Exit(m.Run())
}

// realProbes is internal/agent/probe.
type realProbes struct{ *probe.Runner }

func (realProbes) Load(path string) (api.HealthChecks, error) { return probe.Load(path) }

func (p realProbes) Run(ctx context.Context, set api.HealthChecks, report func(ProbeRun)) error {
	return p.Runner.Run(ctx, set, func(r probe.Result) {
		report(ProbeRun{Probe: r.Probe, At: r.At, Status: r.Status, Reason: r.Reason, SubResults: r.SubResults})
	})
}

// folder makes a closure: its probe passes, or does not.
func folder(t *testing.T, store, closure string, healthy bool) {
	t.Helper()
	command := map[bool]string{true: "true", false: "false"}[healthy]
	files := map[string]string{
		"bin/switch-to-configuration":     "#!/bin/sh\nsleep 0.1\n",
		"etc/nixfleet/health-checks.json": fmt.Sprintf(`{"schemaVersion":1,"probes":[{"name":"up","kind":"exec","mode":"enforce","interval":"100ms","timeout":"5s","command":[%q]}]}`, command),
	}
	for name, text := range files {
		path := filepath.Join(store, closure, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOnARealDiskWithRealSwitches takes a host through a good release and back from a bad one, with
// nothing made up but the control plane, and a restart in between.
func TestOnARealDiskWithRealSwitches(t *testing.T) {
	dir := t.TempDir()
	store, links := filepath.Join(dir, "store"), filepath.Join(dir, "links")
	if err := os.Mkdir(links, 0o755); err != nil {
		t.Fatal(err)
	}
	for closure, healthy := range map[string]bool{closureA: true, closureB: true, closureC: false} {
		folder(t, store, closure, healthy)
	}
	for _, link := range []string{"current", "profile"} {
		if err := os.Symlink(filepath.Join(store, closureA), filepath.Join(links, link)); err != nil {
			t.Fatal(err)
		}
	}
	policy := activationtest.Policy(0, api.RollbackAndHalt)
	threshold := api.Duration(100 * time.Millisecond)
	policy.FailureThreshold = &threshold

	for _, step := range []struct {
		rollout, closure string
		want             api.HostState
		on               string
	}{
		{rollout1, closureB, api.HostConverged, closureB},
		{rollout2, closureC, api.Reverted, closureB},
	} {
		onDisk(t, dir, func(r *Reducer, backend *directory.Backend) {
			running, err := backend.Current(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			o := activate(step.rollout, step.closure, policy)
			o.PreviousClosure = r.View().PreviousFor(running, step.closure)
			if a, err := r.Offer(t.Context(), o); err != nil || a.Kind != Accepted {
				t.Fatalf("%+v, %v", a, err)
			}
			acknowledge(t, r, step.rollout, step.want)
			if running, _ := backend.Current(t.Context()); running != step.on {
				t.Errorf("%s ended on %q", step.rollout, running)
			}
		})
	}
}

// onDisk runs a reducer with everything real while f does.
func onDisk(t *testing.T, dir string, f func(*Reducer, *directory.Backend)) {
	t.Helper()
	j, held, err := journal.Open(journal.Options{Dir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	backend, err := directory.New(directory.Options{
		StateDir: filepath.Join(dir, "state"), Store: filepath.Join(dir, "store"),
		Profile: filepath.Join(dir, "links", "profile"), CurrentSystem: filepath.Join(dir, "links", "current"),
	})
	if err != nil {
		t.Fatal(err)
	}
	fine := func(context.Context) error { return nil }
	r, err := New(Options{
		Hostname: hostname, BootID: "boot-1", Journal: j, Records: held.Records, Backend: backend,
		Probes: realProbes{probe.NewRunner(clock.System{})}, Clock: clock.System{},
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Heartbeat: fine, Confirm: fine,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	f(r, backend)
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run returned %v", err)
	}
}

// acknowledge takes events until the rollout is in the state.
func acknowledge(t *testing.T, r *Reducer, id string, want api.HostState) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for r.View().Rollouts[id].State != want {
		b, ok := r.NextBatch()
		if ok {
			if err := r.Acked(ctx, b.RolloutID, b.Events[len(b.Events)-1].Seq, nil); err != nil {
				t.Fatal(err)
			}
			continue
		}
		select {
		case <-r.OutboundReady():
		case <-ctx.Done():
			t.Fatalf("%s is %s, not %s", id, r.View().Rollouts[id].State, want)
		}
	}
}
