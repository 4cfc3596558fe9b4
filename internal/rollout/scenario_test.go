package rollout

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/api"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the outcomes in testdata/scenarios")

// TestScenarios runs the stories in testdata/scenarios: lines that begin with "> " are steps, the
// indented ones below them what follows from the step. See step for the language.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/scenarios/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			have := runScenario(t, string(want))
			if *rewrite {
				if err := os.WriteFile(file, []byte(have), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(want), have); diff != "" {
				t.Errorf("the story goes otherwise now (-file +now); run with -rewrite if that is right:\n%s", diff)
			}
		})
	}
}

func runScenario(t *testing.T, text string) string {
	w := newWorld(t)
	var out bytes.Buffer
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("so far:\n%s%s%s", out.String(), show(w.out), strings.Join(w.refusals, "\n"))
		}
	})
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		switch {
		case strings.HasPrefix(line, "  "):
		case !strings.HasPrefix(line, "> "):
			fmt.Fprintln(&out, line)
		default:
			fmt.Fprintln(&out, line)
			var hosts []string
			for i+1 < len(lines) && strings.HasPrefix(lines[i+1], ">   ") {
				i++
				fmt.Fprintln(&out, lines[i])
				hosts = append(hosts, strings.TrimSpace(lines[i][1:]))
			}
			w.out, w.refusals = nil, nil
			answer := w.step(strings.Fields(line[2:]), hosts)
			for _, e := range w.out {
				if s := tell(e); s != "" {
					fmt.Fprintln(&out, "  "+s)
				}
			}
			for _, s := range append(w.refusals, answer...) {
				fmt.Fprintln(&out, "  "+s)
			}
		}
	}
	w.check()
	return out.String()
}

// step takes one step of a story:
//
//	release ID [waves=30m,0s] [approval=1] [policy=halt] [max=0] [offline=10m:skip] [budgets=etcd:1]
//	    NAME [wave=0] CLOSURE [after=NAME,…] [budgets=etcd]     one line a host
//	refresh ID · withdraw CHANNEL · undeclare NAME
//	heartbeat|poll|ack|activate|converge|succeed|sicken|fail|wipe NAME…, reject NAME REASON
//	say NAME ID KIND [field=value]…
//	advance 10m (nobody is heard) · live 10m [NAME…] (these, or all, send heartbeats) · restart · lose-log
//	why NAME · host NAME · rollout ID · reply NAME · outstanding
func (w *world) step(args, hosts []string) []string {
	w.t.Helper()
	switch verb := args[0]; verb {
	case "release":
		if err := w.publish(w.parseRelease(args[1:], hosts)); err != nil {
			return []string{"refused: " + err.Error()}
		}
	case "refresh", "withdraw", "undeclare":
		return w.stepIndex(verb, args[1])
	case "advance":
		d, err := time.ParseDuration(args[1])
		if err != nil {
			w.t.Fatalf("%v", err)
		}
		w.advance(d)
	case "live":
		d, err := time.ParseDuration(args[1])
		if err != nil {
			w.t.Fatalf("%v", err)
		}
		w.live(d, args[2:])
	case "restart":
		w.restart()
	case "lose-log":
		w.loseLog()
	case "say":
		w.say(args[1], args[2], parseEvent(w, args[3:]))
	case "reject":
		w.reject(args[1], api.Code(args[2]))
	case "why", "host", "rollout", "reply", "outstanding":
		return w.ask(verb, args[1:])
	default:
		for _, name := range args[1:] {
			w.act(verb, name)
		}
	}
	return nil
}

// live lets time pass with a heartbeat of each of names a minute.
func (w *world) live(d time.Duration, names []string) {
	w.t.Helper()
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(w.agents))
	}
	for until := w.now.Add(d); w.now.Before(until); {
		w.advance(min(time.Minute, until.Sub(w.now)))
		for _, name := range names {
			w.heartbeat(name)
		}
	}
}

func (w *world) stepIndex(verb, what string) []string {
	releases, fleet := w.index.Releases, w.declared()
	switch verb {
	case "refresh":
		return w.refresh(what)
	case "withdraw":
		var left []Release
		for _, r := range releases {
			if r.manifest.Channel != what {
				left = append(left, r)
			}
		}
		releases = left
	case "undeclare":
		delete(fleet.Hosts, what)
	}
	if err := w.adopt(releases, fleet); err != nil {
		return []string{"refused: " + err.Error()}
	}
	return nil
}

// refresh signs a release again.
func (w *world) refresh(id string) []string {
	var releases []Release
	for _, r := range w.index.Releases {
		if r.ID() == id {
			r.manifest.SignedAt = w.now
			w.objects++
			r.objects.Manifest = fmt.Sprintf("m%d", w.objects)
			w.repo.releases[r.objects] = r
		}
		releases = append(releases, r)
	}
	if err := w.adopt(releases, w.declared()); err != nil {
		return []string{"refused: " + err.Error()}
	}
	return nil
}

// act has a host do something.
func (w *world) act(verb, name string) {
	w.t.Helper()
	switch verb {
	case "heartbeat":
		w.heartbeat(name)
	case "poll":
		w.poll(name)
	case "wipe":
		w.wipe(name)
	case "ack":
		w.accept(name)
	case "succeed":
		w.succeed(name)
	case "activate":
		d := w.accept(name)
		w.activate(name, d)
	case "converge":
		w.converge(name, w.f.hosts[name].current().ro.id)
	case "sicken":
		w.sicken(name, w.f.hosts[name].current().ro.id)
	case "fail":
		d := w.accept(name)
		w.activate(name, d)
		w.sicken(name, d.RolloutID)
	case "revert":
		d := w.f.Outstanding(name)
		if d == nil || d.Action != api.ActionRevert && d.Action != api.ActionUnstage {
			w.t.Fatalf("%s is offered %+v", name, d)
		}
		w.goBack(name, d.RolloutID, string(d.Action))
	default:
		w.t.Fatalf("no such step: %s", verb)
	}
}

func (w *world) reject(name string, reason api.Code) {
	w.t.Helper()
	d := w.f.Outstanding(name)
	if d == nil {
		w.t.Fatalf("%s is offered nothing", name)
	}
	w.apply(w.f.Reject(name, api.Rejection{Hostname: name, RolloutID: d.RolloutID, Attempt: d.Attempt, Reason: reason, At: w.now}, w.now))
	w.plan()
}

func (w *world) ask(verb string, args []string) []string {
	switch verb {
	case "why":
		y, _ := w.f.Why(args[0], w.now)
		out := []string{fmt.Sprintf("%s %s: %s", y.Hostname, y.State, y.Summary)}
		for _, g := range y.Gates {
			if !g.Pass {
				out = append(out, "  "+g.Gate+": "+g.Reason)
			}
		}
		return out
	case "host":
		h, _ := w.f.Host(args[0], w.now)
		return []string{fmt.Sprintf("%s %s in %s attempt %d: runs %s, target %s, previous %q, drifted %v, overdue %v, reachable %v",
			h.Hostname, h.State, h.RolloutID, h.Attempt, h.CurrentClosure, h.TargetClosure, h.PreviousClosure, h.Drifted, h.Overdue, h.Reachable)}
	case "rollout":
		r, _ := w.f.Rollout(args[0], w.now)
		out := []string{fmt.Sprintf("%s %s, %d failed %s", r.RolloutID, r.State, r.Failed, r.HaltReason)}
		for _, v := range r.Waves {
			out = append(out, fmt.Sprintf("  wave %d open %v %v", v.Index, v.Open, v.Counts))
		}
		for _, b := range r.Blocks {
			out = append(out, "  "+b.Gate+": "+b.Reason)
		}
		return out
	case "reply":
		r := w.heartbeat(args[0])
		return []string{fmt.Sprintf("replayFrom %v forget %v withdrawn %v current %v", r.ReplayFrom, r.Forget, r.Withdrawn, r.Current)}
	}
	var out []string
	for _, name := range w.f.OutstandingHosts() {
		d := w.f.Outstanding(name)
		out = append(out, fmt.Sprintf("%s %s %s attempt %d", name, d.Action, d.RolloutID, d.Attempt))
	}
	return append(out, fmt.Sprintf("(%d offered)", len(out)))
}

func (w *world) parseRelease(args, hosts []string) release {
	w.t.Helper()
	r := release{id: args[0], sequence: int64(w.objects) + 1, policy: policyOf(api.RollbackAndHalt, 0)}
	for _, arg := range args[1:] {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "waves":
			r.policy.Waves = nil
			for soak := range strings.SplitSeq(value, ",") {
				d, _ := time.ParseDuration(soak)
				r.policy.Waves = append(r.policy.Waves, api.Wave{Soak: api.Duration(d)})
			}
		case "approval":
			n, _ := strconv.Atoi(value)
			r.policy.Waves[n].Approval = true
		case "policy":
			r.policy.OnHealthFailure = api.OnHealthFailure(value)
		case "max":
			n, err := strconv.Atoi(strings.TrimSuffix(value, "%"))
			if err != nil {
				w.t.Fatalf("%v", err)
			}
			r.policy.MaxFailures = &api.Amount{Value: n, Percent: strings.HasSuffix(value, "%")}
		case "offline":
			after, action, _ := strings.Cut(value, ":")
			d, _ := time.ParseDuration(after)
			r.policy.Offline = &api.Offline{After: new(api.Duration(d)), Action: action}
		case "budgets":
			for b := range strings.SplitSeq(value, ",") {
				name, n, _ := strings.Cut(b, ":")
				limit, _ := strconv.Atoi(n)
				r.budgets = append(r.budgets, api.ManifestBudget{Name: name, MaxInFlight: limit})
			}
		default:
			w.t.Fatalf("no such setting: %s", arg)
		}
	}
	for _, line := range hosts {
		r.lines = append(r.lines, r.parseLine(strings.Fields(line)))
	}
	return r
}

func (r *release) parseLine(args []string) api.HostLine {
	line := api.HostLine{Hostname: args[0]}
	for _, arg := range args[1:] {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "wave":
			line.Wave, _ = strconv.Atoi(value)
		case "after":
			line.After = strings.Split(value, ",")
		case "budgets":
			for name := range strings.SplitSeq(value, ",") {
				for i, b := range r.budgets {
					if b.Name == name {
						line.Budgets = append(line.Budgets, i)
					}
				}
			}
		default:
			line.Closure = arg
		}
	}
	return line
}

func policyOf(p api.OnHealthFailure, soaks ...time.Duration) api.Policy {
	none, window := api.Amount{}, api.Duration(24*time.Hour)
	policy := api.Policy{
		OnHealthFailure: p, MaxFailures: &none, RevertWindow: &window,
		Offline: &api.Offline{After: new(api.Duration(10 * time.Minute)), Action: "skip"},
	}
	for _, s := range soaks {
		policy.Waves = append(policy.Waves, api.Wave{Soak: api.Duration(s)})
	}
	return policy
}

func parseEvent(w *world, args []string) api.Event {
	e := api.Event{Kind: api.EventKind(args[0])}
	for _, arg := range args[1:] {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "reason":
			e.Reason = api.Code(value)
		case "changed":
			e.Changed = value == "true"
		case "phase":
			e.Phase = value
		case "observed":
			e.ObservedClosure = value
		case "to":
			e.ToClosure = value
		case "cause":
			e.Cause = value
		default:
			w.t.Fatalf("no such field: %s", arg)
		}
	}
	return e
}

// tell writes an entry as a line of a story.
func tell(e Entry) string {
	who := strings.TrimSpace(e.RolloutID + " " + e.Hostname)
	line := func(format string, args ...any) string {
		return fmt.Sprintf("%-11s %s: ", e.Kind(), who) + fmt.Sprintf(format, args...)
	}
	switch b := e.Body.(type) {
	case HostEvent:
		if b.Refused != "" {
			return line("%d %s REFUSED", b.Event.Seq, b.Event.Kind)
		}
		return line("%d %s", b.Event.Seq, b.Event.Kind)
	case HostSeen:
		return line("runs %s, journal %s", b.CurrentClosure, b.JournalID)
	case Dispatched:
		return line("%s, attempt %d, wave %d", b.Action, b.Attempt, b.Wave)
	case Withdrawn:
		return line("%s", b.Reason)
	case Promoted:
		return line("wave %d, %s", b.Wave, b.Reason)
	case Rejected:
		return line("attempt %d, %s", b.Attempt, b.Reason)
	case Quarantined:
		return line("%s on channel %s, %s", b.Closure, b.Channel, b.Code)
	case Allowed:
		return line("%s on channel %s", b.Closure, b.Channel)
	case Opened:
		return line("%s", b.Reason)
	case Halted:
		return line("%s", b.Reason)
	case RollingBack:
		return line("%s", b.Reason)
	case RolledBack:
		return line("%s", b.Reason)
	case Converged:
		return line("%s", b.Reason)
	case Cancelled:
		return line("%s", b.Reason)
	case Superseded:
		return line("%s", b.Reason)
	case Skipped:
		return line("%s", b.Reason)
	case Returned:
		return line("%s", b.Reason)
	case Overdue:
		return line("%s", b.Reason)
	case Stayed:
		return line("%s", b.Reason)
	case Adopted:
		return line("sequence %d", b.Sequence)
	}
	return ""
}
