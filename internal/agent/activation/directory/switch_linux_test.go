package directory

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
)

// fifo makes a pipe in the file system: a script that reads it waits until release writes to it.
func (m *machine) fifo(name string) (path string, release func()) {
	m.t.Helper()
	path = m.path(name)
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		m.t.Fatal(err)
	}
	return path, func() {
		m.t.Helper()
		if err := os.WriteFile(path, []byte("go\n"), 0); err != nil {
			m.t.Fatal(err)
		}
	}
}

func TestASwitchRunsTheScriptAndThenMovesTheLink(t *testing.T) {
	m := newMachine(t)
	m.closure(alpha, "")
	m.start("first", alpha)
	if s := m.await("first", activation.JobExited); s.ExitCode != 0 || m.current() != alpha {
		t.Fatalf("a closure without a script: %+v, and it runs %q", s, m.current())
	}
	m.closure(beta, fmt.Sprintf(`echo "$# $1" > %[1]s/args; pwd > %[1]s/pwd; env > %[1]s/env; readlink "$NIXFLEET_CURRENT_SYSTEM" > %[1]s/was; echo said; echo warned >&2`, m.dir))
	m.start("second", beta)
	s := m.await("second", activation.JobExited)
	if s.ExitCode != 0 || s.StderrTail != "" || m.current() != beta {
		t.Errorf("%+v, and it runs %q", s, m.current())
	}
	if got := m.read("args"); got != "1 switch" {
		t.Errorf("arguments: %q", got)
	}
	if got := m.read("pwd"); got != filepath.Join(m.o.Store, beta) {
		t.Errorf("folder: %q", got)
	}
	if got := filepath.Base(m.read("was")); got != alpha {
		t.Errorf("while the script ran the link was at %q", got)
	}
	names := []string{}
	for line := range strings.Lines(m.read("env")) {
		name, _, _ := strings.Cut(line, "=")
		names = append(names, name)
	}
	names = slices.DeleteFunc(names, func(n string) bool { return n == "PWD" || n == "SHLVL" || n == "_" || n == "OLDPWD" }) // the shell's
	slices.Sort(names)
	if want := []string{currentVariable, jobVariable, "PATH"}; !slices.Equal(names, want) {
		t.Errorf("environment: %q", names)
	}
	log, err := os.ReadFile(filepath.Join(m.Backend.dir, "second", outputFile))
	if err != nil || !strings.Contains(string(log), "said\n") || !strings.Contains(string(log), "warned\n") {
		t.Errorf("the log has %q, %v", log, err)
	}
}

func TestAFailedScriptLeavesTheLink(t *testing.T) {
	for name, test := range map[string]struct {
		body, stderr string
		code         int
	}{
		"it fails":              {"echo no >&2; exit 3", "no", 3},
		"it is killed":          {"echo bye >&2; kill -TERM $$", "bye", 128 + 15},
		"it prints very much":   {"seq 100000 >&2; exit 1", "100000", 1},
		"it prints no text":     {`printf 'a\377b' >&2; exit 1`, "ab", 1},
		"another exit code":     {"exit 100", "", 100},
		"its program is absent": {"exec /nonexistent/program", "program", 127},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.closure(alpha, test.body)
			m.start("job", alpha)
			s := m.await("job", activation.JobExited)
			if s.ExitCode != test.code && !(test.code == 127 && s.ExitCode == 126) || !strings.Contains(s.StderrTail, test.stderr) {
				t.Errorf("%+v", s)
			}
			if len(s.StderrTail) > api.MaxStderrTail || m.current() != "" {
				t.Errorf("a tail of %d bytes, and it runs %q", len(s.StderrTail), m.current())
			}
			if info, err := os.Stat(filepath.Join(m.Backend.dir, "job", outputFile)); err != nil || info.Size() > maxOutput+64 {
				t.Errorf("the log: %v, %v", info, err)
			}
		})
	}
}

func TestAScriptThatCannotBeRunIsAFailedSwitch(t *testing.T) {
	m := newMachine(t)
	m.closure(alpha, "exit 0")
	if err := os.Chmod(filepath.Join(m.o.Store, alpha, script), 0o644); err != nil {
		t.Fatal(err)
	}
	m.start("job", alpha)
	if s := m.await("job", activation.JobExited); s.ExitCode != 127 || s.StderrTail == "" || m.current() != "" {
		t.Errorf("%+v, and it runs %q", s, m.current())
	}
}

func TestALinkThatCannotBeMovedIsAFailedSwitch(t *testing.T) {
	m := newMachine(t)
	m.closure(alpha, "")
	if err := os.MkdirAll(filepath.Join(m.o.CurrentSystem, "full"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.start("job", alpha)
	if s := m.await("job", activation.JobExited); s.ExitCode != 1 || !strings.Contains(s.StderrTail, "current-system") {
		t.Errorf("%+v", s)
	}
}

func TestASwitchSurvivesTheAgentThatStartedIt(t *testing.T) {
	m := newMachine(t)
	wait, release := m.fifo("wait")
	m.closure(alpha, fmt.Sprintf("touch %s/running; read x < %s; echo done >> %s/ran", m.dir, wait, m.dir))
	agent := exec.Command(os.Args[0], agentCommand, m.dir, "job", alpha)
	out, err := agent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "started\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if s := m.job("job"); s.State != activation.JobRunning {
		t.Fatalf("as soon as it is started it is in state %d", s.State)
	}
	eventually(t, "the script", func() bool { _, err := os.Stat(m.path("running")); return err == nil })
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	agent.Wait()
	m.start("job", alpha) // the next agent takes it up
	if s := m.job("job"); s.State != activation.JobRunning {
		t.Errorf("after the agent was killed it is in state %d", s.State)
	}
	release()
	if s := m.await("job", activation.JobExited); s.ExitCode != 0 || m.current() != alpha || m.read("ran") != "done" {
		t.Errorf("%+v, it runs %q, the script ran %q", s, m.current(), m.read("ran"))
	}
}

func TestAJobIsRunAtMostOnce(t *testing.T) {
	m := newMachine(t)
	m.closure(alpha, fmt.Sprintf("echo once >> %s/ran", m.dir))
	for range 5 {
		m.start("job", alpha)
	}
	m.await("job", activation.JobExited)
	m.start("job", alpha)
	if s := m.job("job"); s.State != activation.JobExited || m.read("ran") != "once" {
		t.Errorf("state %d, it ran %q", s.State, m.read("ran"))
	}
}

func TestTwoSwitchesNeverRunAtOnce(t *testing.T) {
	m := newMachine(t)
	body := fmt.Sprintf("mkdir %[1]s/busy || echo twice >> %[1]s/clash; echo $$ >> %[1]s/ran; rmdir %[1]s/busy", m.dir)
	m.closure(alpha, body)
	m.closure(beta, body)
	const jobs = 12
	for i := range jobs {
		m.start(fmt.Sprintf("job-%d", i), []string{alpha, beta}[i%2])
	}
	for i := range jobs {
		m.await(fmt.Sprintf("job-%d", i), activation.JobExited)
	}
	if n := len(strings.Fields(m.read("ran"))); n != jobs || m.read("clash") != "" {
		t.Errorf("%d of %d ran, clashes: %q", n, jobs, m.read("clash"))
	}
}

// helperOf returns the process number of a job's helper.
func (m *machine) helperOf(job string) int {
	m.t.Helper()
	var p process
	eventually(m.t, "the helper to say who it is", func() bool {
		root, err := openJob(m.Backend.dir, job)
		if err != nil {
			return false
		}
		defer root.Close()
		var found bool
		p, found, err = readJSON[process](root, processFile)
		return found && err == nil
	})
	return p.PID
}

func alive(pid int) bool {
	stat := statOf(pid)
	return len(stat) > 0 && stat[0] != "Z"
}

// pidIn waits for a script to write a process number.
func (m *machine) pidIn(name string) int {
	m.t.Helper()
	pid := 0
	eventually(m.t, name, func() bool { pid, _ = strconv.Atoi(m.read(name)); return pid > 0 })
	return pid
}

func TestAHelperThatIsKilledTakesItsScriptWithItAndLeavesNoResult(t *testing.T) {
	m := newMachine(t)
	// The child stays behind, as the kernel kills only the script itself.
	m.closure(alpha, fmt.Sprintf("sleep 1000 & echo $! > %[1]s/child; echo $$ > %[1]s/script; wait", m.dir))
	m.start("lost", alpha)
	child, scriptPID := m.pidIn("child"), m.pidIn("script")
	if err := syscall.Kill(m.helperOf("lost"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.await("lost", activation.JobUnknown)
	eventually(t, "the script to die", func() bool { return !alive(scriptPID) })
	if !alive(child) {
		t.Fatal("this machine kills the script's children too, and the test shows nothing")
	}
	m.start("lost", alpha)
	if s := m.job("lost"); s.State != activation.JobUnknown {
		t.Errorf("a switch that was lost was run again: state %d", s.State)
	}
	m.closure(beta, fmt.Sprintf("grep '(sleep) [^Z]' /proc/%d/stat > %s/clash; exit 0", child, m.dir))
	m.start("next", beta)
	if s := m.await("next", activation.JobExited); s.ExitCode != 0 || m.read("clash") != "" || alive(child) {
		t.Errorf("%+v; what was left of the switch before: %q", s, m.read("clash"))
	}
}

func TestWhatASuccessfulScriptStartedIsLeftAlone(t *testing.T) {
	m := newMachine(t)
	m.closure(alpha, fmt.Sprintf("sleep 1000 & echo $! > %s/child", m.dir)) // it even holds on to the output
	m.start("first", alpha)
	child := m.pidIn("child")
	t.Cleanup(func() { syscall.Kill(child, syscall.SIGKILL) })
	m.await("first", activation.JobExited)
	m.closure(beta, "")
	m.start("second", beta)
	m.await("second", activation.JobExited)
	for _, job := range []string{"first", "second"} {
		if err := m.StopSwitch(t.Context(), job); err != nil {
			t.Error(err)
		}
	}
	if !alive(child) {
		t.Error("a service that a script started was killed")
	}
}

func TestStopSwitchEndsAllOfIt(t *testing.T) {
	m := newMachine(t)
	m.closure(alpha, fmt.Sprintf("trap '' TERM; sleep 1000 & echo $! > %[1]s/child; echo $$ > %[1]s/script; wait; sleep 1000", m.dir))
	m.start("job", alpha)
	child, scriptPID, helper := m.pidIn("child"), m.pidIn("script"), m.helperOf("job")
	m.closure(beta, fmt.Sprintf("touch %s/ran", m.dir))
	m.start("waiting", beta) // for its turn
	if err := m.StopSwitch(t.Context(), "waiting"); err != nil {
		t.Fatal(err)
	}
	if err := m.StopSwitch(t.Context(), "job"); err != nil {
		t.Fatal(err)
	}
	for name, pid := range map[string]int{"helper": helper, "script": scriptPID, "child": child} {
		if alive(pid) {
			t.Errorf("the %s is still there", name)
		}
	}
	for _, job := range []string{"job", "waiting"} {
		if s := m.job(job); s.State != activation.JobUnknown {
			t.Errorf("%s is in state %d", job, s.State)
		}
	}
	if m.read("ran") != "" || m.current() != "" {
		t.Errorf("it runs %q", m.current())
	}
	m.start("next", beta)
	m.await("next", activation.JobExited)
}

func TestStopSwitchOfWhatDoesNotRunIsNoError(t *testing.T) {
	m := newMachine(t)
	m.closure(alpha, "")
	m.start("done", alpha)
	m.await("done", activation.JobExited)
	for _, job := range []string{"done", "never"} {
		if err := m.StopSwitch(t.Context(), job); err != nil {
			t.Errorf("%s: %v", job, err)
		}
	}
	if s := m.job("done"); s.State != activation.JobExited {
		t.Errorf("a switch that had ended is in state %d", s.State)
	}
}

func TestStopSwitchReturnsWhenItsContextEnds(t *testing.T) {
	m := newMachine(t)
	wait, release := m.fifo("wait")
	m.closure(alpha, "read x < "+wait)
	m.start("job", alpha)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	root, err := openJob(m.Backend.dir, "job")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	m.helperOf("job")
	if err := root.Remove(processFile); err != nil { // so that there is nobody to kill
		t.Fatal(err)
	}
	if err := m.StopSwitch(ctx, "job"); err == nil {
		t.Error("it says that the switch was stopped")
	}
	release()
	m.await("job", activation.JobExited)
}

func TestAStrangerWithTheHelpersNumberIsNotKilled(t *testing.T) {
	stranger := exec.Command("sleep", "1000")
	stranger.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stranger.Process.Kill(); stranger.Wait() })
	pid := stranger.Process.Pid
	for name, p := range map[string]process{
		"started at another time": {Job: "job", PID: pid, Start: "1", BootID: bootID()},
		"of another boot":         {Job: "job", PID: pid, Start: startOf(pid), BootID: "another"},
		"no number":               {Job: "job", PID: 0, BootID: bootID()},
	} {
		if p.killSession(false) || !alive(pid) {
			t.Errorf("%s: it was taken for the helper", name)
		}
	}
	if own := (process{Job: "job", PID: pid, Start: startOf(pid), BootID: bootID()}); !own.killSession(false) {
		t.Error("the helper itself was not found")
	}
}

func TestNamesOfJobsAreChecked(t *testing.T) {
	m := newMachine(t)
	m.closure(alpha, "")
	for _, name := range []string{"", ".", "..", "a/b", "../x", "A", strings.Repeat("a", 65), "a\n"} {
		if err := m.StartSwitch(t.Context(), name, alpha); err == nil {
			t.Errorf("%q was started", name)
		}
		if _, err := m.Job(t.Context(), name); err == nil {
			t.Errorf("%q was looked at", name)
		}
		if err := m.StopSwitch(t.Context(), name); err == nil {
			t.Errorf("%q was stopped", name)
		}
	}
}

func TestOldJobsArePruned(t *testing.T) {
	m := newMachine(t)
	m.closure(alpha, "")
	wait, release := m.fifo("wait")
	m.closure(beta, "read x < "+wait)
	for i := range keptJobs + 5 {
		name := fmt.Sprintf("job-%d", i)
		m.start(name, alpha)
		m.await(name, activation.JobExited)
	}
	m.start("running", beta)
	entries, err := filepath.Glob(filepath.Join(m.Backend.dir, "*", jobFile))
	if err != nil || len(entries) != keptJobs {
		t.Errorf("%d jobs are kept, %v", len(entries), err)
	}
	if s := m.job("job-0"); s.State != activation.JobUnknown {
		t.Errorf("the oldest is still there")
	}
	m.Backend.remove("running")
	if s := m.job("running"); s.State != activation.JobRunning {
		t.Errorf("a job that runs was removed: state %d", s.State)
	}
	release()
	m.await("running", activation.JobExited)
}

func TestAHelperThatCannotBeStartedIsToldAtOnce(t *testing.T) {
	o := optionsIn(t.TempDir())
	o.Helper = []string{"/nonexistent/agent"}
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{Backend: b, t: t, dir: filepath.Dir(o.Store)}
	m.closure(alpha, "")
	if err := b.StartSwitch(t.Context(), "job", alpha); err == nil {
		t.Error("it was started")
	}
	if s := m.job("job"); s.State != activation.JobUnknown {
		t.Errorf("state %d", s.State)
	}
}

func TestHelpersLeaveNoZombies(t *testing.T) {
	m := newMachine(t)
	m.closure(alpha, "")
	m.start("job", alpha)
	pid := m.helperOf("job")
	m.await("job", activation.JobExited)
	eventually(t, "the helper to be gone", func() bool { m.job("job"); return statOf(pid) == nil })
}
