// Package demo runs a whole fleet in one process over loopback sockets, with every part real: keys and
// certificates, a release repository, the control plane on SQLite with its mTLS API, an agent a host
// that enrols itself, activation scripts, health probes. It releases something good, something bad
// that rolls itself back, and the fix, and says after each what it shows. It is what a newcomer runs
// first; `nixfleet demo` is its only caller.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/lab"
	"nixfleet.dev/nixfleet/internal/operator"
)

// MinHosts and MaxHosts bound how many hosts a demo has.
const (
	MinHosts = 2
	MaxHosts = 1000
)

// Options says how to run.
type Options struct {
	Hosts   int
	JSON    bool   // the result as one line of JSON on Stdout, and nothing else there
	Keep    string // folder to keep everything in; "" for a temporary one
	Serve   bool   // stay up afterwards, until ctx ends
	Version string
	Stdout  io.Writer
	Clock   clock.Clock

	// The terminals that standard output and error are, nil where they are none.
	Terminal, TerminalErr *os.File

	Helper  []string // the command that runs the detached switch helper
	Command string   // how the user runs nixfleet, for the commands to try next
}

// Result is what --json prints.
type Result struct {
	OK    bool         `json:"ok"`
	Hosts int          `json:"hosts"`
	Steps []StepResult `json:"steps"`
}

// StepResult is one release. Converged, Reverted and Untouched are counted on the hosts themselves:
// those that run the release, those that tried it and are back, those that never left their closure.
type StepResult struct {
	Name      string           `json:"name"`
	RolloutID string           `json:"rolloutId"`
	State     api.RolloutState `json:"state"`
	Converged int              `json:"converged"`
	Reverted  int              `json:"reverted"`
	Untouched int              `json:"untouched"`
}

// step is one release of the demo and what must come of it.
type step struct {
	name, title, what string
	version           lab.Version
	state             api.RolloutState
	want              func(hosts, canaries int) StepResult // the counts alone
	outcome           func(r StepResult) string
}

// counted writes a number of things.
func counted(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}

const switchTakes = 300 * time.Millisecond

var steps = []step{
	{
		name: "good", title: "A good release",
		what: "CI signs one manifest for the channel. The canaries go first; the other hosts follow once the " +
			"canaries have passed their health probes through a soak. Every host checks the signature, its own " +
			"line and its turn itself: the control plane only says when.",
		version: lab.Version{Number: "26.11.1", Switch: switchTakes},
		state:   api.RolloutConverged,
		want:    func(hosts, _ int) StepResult { return StepResult{Converged: hosts} },
		outcome: func(r StepResult) string { return fmt.Sprintf("all %d hosts run it and are healthy", r.Converged) },
	},
	{
		name: "bad", title: "A bad release",
		what: "This one starts, but its health check fails. Nobody is told to do anything: the signed policy says " +
			"rollback-and-halt, so each canary goes back to what it ran before, by itself, and the rollout stops " +
			"there.",
		version: lab.Version{Number: "26.11.2", Switch: switchTakes, Broken: true},
		state:   api.RolloutHalted,
		want: func(hosts, canaries int) StepResult {
			return StepResult{Reverted: canaries, Untouched: hosts - canaries}
		},
		outcome: func(r StepResult) string {
			return fmt.Sprintf("rolled back by themselves: %s; never touched: %s", counted(r.Reverted, "canary", "canaries"), counted(r.Untouched, "host", "hosts"))
		},
	},
	{
		name: "fix", title: "The fix",
		what: "A new commit, signed again, takes the place of the halted rollout. Nothing has to be cleaned up by " +
			"hand. The bad closures stay in quarantine: no host will try them again.",
		version: lab.Version{Number: "26.11.3", Switch: switchTakes},
		state:   api.RolloutConverged,
		want:    func(hosts, _ int) StepResult { return StepResult{Converged: hosts} },
		outcome: func(r StepResult) string { return fmt.Sprintf("all %d hosts run the fix and are healthy", r.Converged) },
	},
}

// ErrNotAsExpected is returned when the fleet did not end as the demo says it must.
var ErrNotAsExpected = errors.New("the fleet did not end as it should")

// Run runs the demo. It returns ErrNotAsExpected, wrapped, where a step did not come out as it must,
// and removes its files unless they are to be kept or something went wrong.
func Run(ctx context.Context, o Options) (err error) {
	if o.Hosts < MinHosts || o.Hosts > MaxHosts {
		return fmt.Errorf("a demo has %d to %d hosts, not %d", MinHosts, MaxHosts, o.Hosts)
	}
	if err := lab.ClearEnvironment(); err != nil {
		return err
	}
	dir, cleanUp, err := folder(o)
	if err != nil {
		return err
	}
	d := &demo{Options: o, dir: dir}
	defer func() {
		err = errors.Join(err, d.stop())
		if err == nil || ctx.Err() != nil { // done, or interrupted
			err = errors.Join(err, cleanUp())
		} else {
			err = fmt.Errorf("%w\neverything it wrote is in %s", err, dir)
		}
	}()
	d.screen = d.chooseScreen(ctx)
	defer d.screen.close()
	result, err := d.run(ctx)
	if err != nil {
		return err
	}
	return d.finish(ctx, result)
}

// folder makes the demo's folder, and returns what removes it again where it is not to be kept.
func folder(o Options) (string, func() error, error) {
	if o.Keep == "" {
		dir, err := os.MkdirTemp("", "nixfleet-demo-")
		if err != nil {
			return "", nil, fmt.Errorf("making a temporary folder (TMPDIR says where, or --keep DIR): %w", err)
		}
		return dir, func() error { return removeAll(o.Clock, dir) }, nil
	}
	dir, err := filepath.Abs(o.Keep)
	if err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, fmt.Errorf("making the folder of --keep: %w", err)
	}
	if entries, err := os.ReadDir(dir); err != nil {
		return "", nil, err
	} else if len(entries) > 0 {
		return "", nil, fmt.Errorf("--keep %s: the folder is not empty; name a new one", dir)
	}
	return dir, func() error { return nil }, nil
}

// removeAll removes a folder in which a detached script may just be writing its last line.
func removeAll(clk clock.Clock, dir string) error {
	for range 20 {
		if os.RemoveAll(dir) == nil {
			return nil
		}
		_ = clk.Sleep(context.Background(), scriptPoll) // its context does not end
	}
	return os.RemoveAll(dir)
}

// demo is one run.
type demo struct {
	Options
	dir    string
	screen screen
	lab    *lab.Lab
	client *operator.Client

	cancel  context.CancelCauseFunc
	workers sync.WaitGroup
	logs    []*os.File
}

// chooseScreen returns what shows the run: redrawn in place on a terminal, lines elsewhere, and with
// --json nothing but on the terminal of standard error.
func (d *demo) chooseScreen(ctx context.Context) screen {
	switch {
	case d.JSON && d.TerminalErr != nil:
		return newLive(ctx, d.TerminalErr, d.Clock)
	case d.JSON:
		return silent{}
	}
	fmt.Fprintf(d.Stdout, "nixfleet demo: %d hosts on this machine, every part real\n", d.Hosts)
	if d.Terminal != nil {
		return newLive(ctx, d.Terminal, d.Clock)
	}
	return &plain{out: d.Stdout, clock: d.Clock}
}

func (d *demo) run(ctx context.Context) (Result, error) {
	ctx, err := d.start(ctx)
	if err != nil {
		return Result{}, cause(ctx, err)
	}
	result := Result{OK: true, Hosts: d.Hosts}
	for _, s := range steps {
		got, err := d.step(ctx, s)
		if err != nil {
			return Result{}, fmt.Errorf("%s release: %w", s.name, cause(ctx, err))
		}
		result.OK = result.OK && got == d.expected(s, got.RolloutID)
		result.Steps = append(result.Steps, got)
	}
	return result, nil
}

// cause is why ctx ended where it did, since all else failed only for that, and otherwise err.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// expected is what must come of a step.
func (d *demo) expected(s step, id string) StepResult {
	want := s.want(len(d.lab.Machines), d.lab.Canaries())
	want.Name, want.RolloutID, want.State = s.name, id, s.state
	return want
}

// stepTimeout bounds one release: a minute, and half a second for each host on this one machine.
func (d *demo) stepTimeout() time.Duration {
	return time.Minute + time.Duration(d.Hosts)*500*time.Millisecond
}

func (d *demo) step(ctx context.Context, s step) (StepResult, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.stepTimeout(), fmt.Errorf("no end within %s", d.stepTimeout()))
	defer cancel()
	d.screen.begin(s.title, s.what)
	before, err := d.look()
	if err != nil {
		return StepResult{}, err
	}
	if err := d.lab.Build(s.version); err != nil {
		return StepResult{}, err
	}
	id, err := d.lab.Release(ctx, s.version)
	if err != nil {
		return StepResult{}, err
	}
	rollout, err := d.follow(ctx, id)
	if err != nil {
		return StepResult{}, err
	}
	result := StepResult{Name: s.name, RolloutID: id, State: rollout.State}
	if err := d.count(&result, before, s.version); err != nil {
		return StepResult{}, err
	}
	if result == d.expected(s, id) {
		d.screen.end(true, s.outcome(result))
	} else {
		d.screen.end(false, fmt.Sprintf("%s; %d converged, %d reverted, %d untouched: not what must come of it",
			rollout.State, result.Converged, result.Reverted, result.Untouched))
	}
	return result, nil
}

// follow shows the rollout until nothing of it moves any more.
func (d *demo) follow(ctx context.Context, id string) (api.Rollout, error) {
	for {
		rollout, err := d.client.Rollout(ctx, id)
		switch {
		case err == nil:
			d.screen.waves(rollout)
			if settled(rollout) {
				return rollout, nil
			}
		case !operator.IsCode(err, api.CodeNotFound) && !operator.IsCode(err, api.CodeUnknownRollout):
			// Where the control plane ended, its own error says why; it is here in a moment.
			return api.Rollout{}, errors.Join(d.Clock.Sleep(ctx, time.Second), err)
		}
		if err := d.Clock.Sleep(ctx, 150*time.Millisecond); err != nil {
			return api.Rollout{}, err
		}
	}
}

// settled says whether a rollout has ended and no host of it is under way.
func settled(r api.Rollout) bool {
	if r.State == api.RolloutActive || r.State == api.RolloutWaiting || r.State == api.RolloutRollingBack {
		return false
	}
	for _, w := range r.Waves {
		if w.Counts[api.Activating]+w.Counts[api.Soaking]+w.Counts[api.Reverting] > 0 {
			return false
		}
	}
	return true
}

// seen is what one machine shows of itself.
type seen struct {
	running  string
	switches int
}

func (d *demo) look() ([]seen, error) {
	var all []seen
	for _, m := range d.lab.Machines {
		running, err := m.Running()
		if err != nil {
			return nil, err
		}
		switches, err := m.Switches()
		if err != nil {
			return nil, err
		}
		all = append(all, seen{running, len(switches)})
	}
	return all, nil
}

// count asks every machine what became of it.
func (d *demo) count(r *StepResult, before []seen, v lab.Version) error {
	after, err := d.look()
	if err != nil {
		return err
	}
	for i, m := range d.lab.Machines {
		switch {
		case after[i].running == m.Closure(v):
			r.Converged++
		case after[i] == before[i]:
			r.Untouched++
		case after[i].running == before[i].running:
			r.Reverted++
		}
	}
	return nil
}

// finish prints the end, and with --serve waits for ctx to end.
func (d *demo) finish(ctx context.Context, r Result) error {
	if d.JSON {
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(d.Stdout, "%s\n", line); err != nil {
			return err
		}
	} else {
		d.conclude(r)
	}
	if !r.OK {
		return ErrNotAsExpected
	}
	if d.Serve {
		<-ctx.Done()
	}
	return nil
}

// logger writes to a file of the demo's folder.
func (d *demo) logger(name string) (*slog.Logger, error) {
	f, err := os.OpenFile(filepath.Join(d.dir, "logs", name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	d.logs = append(d.logs, f)
	return slog.New(slog.NewTextHandler(f, nil)), nil
}
