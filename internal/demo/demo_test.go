package demo

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation/directory"
	"nixfleet.dev/nixfleet/internal/clock"
)

func TestMain(m *testing.M) {
	if directory.HelperMain(os.Args) {
		return
	}
	os.Exit(m.Run())
}

func options(t *testing.T, out *bytes.Buffer) Options {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Options{Hosts: 5, Stdout: out, Clock: clock.System{}, Helper: []string{self}, Command: "nixfleet", Version: "test"}
}

func TestTheDemoEndsAsItSays(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("NIXFLEET_CONTROL_PLANE", "https://elsewhere.example") // of another fleet: it must not count here
	var out bytes.Buffer
	o := options(t, &out)
	o.JSON = true
	if err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if strings.Count(out.String(), "\n") != 1 {
		t.Errorf("--json printed more than its one line:\n%s", out.String())
	}
	var got Result
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := Result{OK: true, Hosts: 5, Steps: []StepResult{
		{Name: "good", State: api.RolloutConverged, Converged: 5},
		{Name: "bad", State: api.RolloutHalted, Reverted: 1, Untouched: 4},
		{Name: "fix", State: api.RolloutConverged, Converged: 5},
	}}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(StepResult{}, "RolloutID")); diff != "" {
		t.Error(diff)
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("it left %v behind (%v)", left, err)
	}
}

// TestTheDemoLeavesNothingWhenItIsInterrupted interrupts it while the canaries switch.
func TestTheDemoLeavesNothingWhenItIsInterrupted(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	ctx, interrupt := context.WithCancelCause(t.Context())
	defer interrupt(nil)
	stop := errors.New("somebody pressed Ctrl-C")
	out := &watched{want: "Activating", found: func() { interrupt(stop) }}
	o := options(t, &out.Buffer)
	o.Stdout = out
	if err := Run(ctx, o); !errors.Is(err, stop) {
		t.Errorf("it ended with %v", err)
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("it left %v behind (%v)", left, err)
	}
}

// watched is a buffer that says when something was written to it.
type watched struct {
	bytes.Buffer
	want  string
	found func()
}

func (w *watched) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(w.want)) {
		w.found()
	}
	return w.Buffer.Write(p)
}

// TestTheDemoSaysWhichPartEnded has a part of the fleet end by itself, as on a full disk.
func TestTheDemoSaysWhichPartEnded(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	var out bytes.Buffer
	o := options(t, &out)
	ctx := t.Context()
	dir, cleanUp, err := folder(o)
	if err != nil {
		t.Fatal(err)
	}
	d := &demo{Options: o, dir: dir, screen: silent{}}
	defer func() {
		if err := errors.Join(d.stop(), cleanUp()); err != nil {
			t.Error(err)
		}
	}()
	running, err := d.start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	d.work(running, "the extra part", func(context.Context) error { return errors.New("no space left on device") })
	_, err = d.follow(running, "stable@0000000")
	if err = cause(running, err); err == nil || !strings.Contains(err.Error(), "the extra part ended: no space left on device") {
		t.Errorf("it says %v", err)
	}
}

func TestTheDemoKeepsWhatItIsAskedToKeep(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/precious", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	o := options(t, &out)
	o.Keep = dir
	if err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a folder with something in it gave %v", err)
	}
}
