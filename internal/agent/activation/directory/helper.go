package directory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// helperCommand is the argument that makes a program a helper; the one after it is the job's folder.
const helperCommand = "switch-helper"

// jobVariable is in the environment of a helper and of all that its script starts.
const jobVariable = "NIXFLEET_SWITCH_JOB"

// currentVariable tells the script where the current-system link is: its path, which is the machine's
// own where several share one.
const currentVariable = "NIXFLEET_CURRENT_SYSTEM"

const script = "bin/switch-to-configuration"

// Caps and pauses of a helper.
const (
	maxOutput  = 256 << 10
	outputWait = 2 * time.Second // for what the script left running to let go of its output
)

// HelperMain runs the helper if that is what args, a program's whole os.Args, ask for, and says whether
// it was. A main that can be a Backend's Helper calls it first, and ends where it returns true: what
// came of the switch is in the job's folder.
func HelperMain(args []string) (ran bool) {
	if len(args) != 3 || args[1] != helperCommand {
		return false
	}
	// Whoever ends the agent means the agent. Handlers, unlike ignored signals, are not inherited.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
	if err := help(args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "switch-helper:", err) // nobody reads it but who calls it by hand
	}
	return true
}

// help does the job in the folder at path, once.
func help(path string) error {
	lock := os.NewFile(3, lockFile)
	if lock == nil {
		return errors.New("it is not for calling by hand")
	}
	syscall.CloseOnExec(3) // the script must not keep the job's lock
	defer lock.Close()
	if err := flock(lock, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("the job's lock is not passed on: %w", err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	j, found, err := readJSON[job](root, jobFile)
	if err != nil || !found {
		return errors.Join(err, errors.New("there is no job"))
	}
	self := thisProcess(j.Job)
	if err := writeJSON(root, processFile, self); err != nil {
		return err
	}
	turn, err := takeTurn(filepath.Dir(path), self)
	if err != nil {
		return err
	}
	defer turn.Close()
	if there, err := exists(root, begunFile); there || err != nil {
		return err
	}
	if err := writeJSON(root, begunFile, struct{}{}); err != nil {
		return err
	}
	return writeJSON(root, resultFile, j.run(root))
}

// takeTurn waits until no other switch runs, and ends what a helper that was killed left behind.
func takeTurn(dir string, self process) (*os.File, error) {
	jobs, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer jobs.Close()
	turn, err := jobs.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = flock(turn, syscall.LOCK_EX)
	if err == nil {
		err = clearUp(jobs)
	}
	if err == nil {
		err = writeJSON(jobs, activeFile, self)
	}
	if err != nil {
		return nil, errors.Join(err, turn.Close())
	}
	return turn, nil
}

// clearUp kills what is left of the switch before, unless that came to its end: then what its script
// started is meant to stay.
func clearUp(jobs *os.Root) error {
	before, found, err := readJSON[process](jobs, activeFile)
	if err != nil || !found || checkJob(before.Job) != nil {
		return err
	}
	if done, err := exists(jobs, filepath.Join(before.Job, resultFile)); done || err != nil {
		return err
	}
	pause := time.NewTicker(stopPause)
	defer pause.Stop()
	for before.killSession(false) {
		<-pause.C
	}
	return nil
}

// run runs the script, if there is one, and then moves the link.
func (j job) run(root *os.Root) result {
	if err := checkClosure(j.Store, j.Closure); err != nil {
		return failed(fmt.Errorf("finding the closure: %w", err))
	}
	closure := filepath.Join(j.Store, j.Closure)
	path := filepath.Join(closure, script)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		if r := j.runScript(root, path, closure); r.ExitCode != 0 {
			return r
		}
	}
	if err := pointAt(j.CurrentSystem, closure); err != nil {
		return failed(fmt.Errorf("moving the current-system link: %w", err))
	}
	return result{}
}

func failed(err error) result {
	return result{ExitCode: 1, StderrTail: strings.ToValidUTF8(err.Error(), "")}
}

func (j job) runScript(root *os.Root, path, closure string) result {
	output, err := root.OpenFile(outputFile, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return failed(fmt.Errorf("keeping the script's output: %w", err))
	}
	defer output.Close()
	log := &capped{w: output, left: maxOutput}
	tail := &tail{}
	cmd := exec.CommandContext(context.Background(), path, "switch")
	cmd.Dir = closure
	cmd.Env = []string{"PATH=" + searchPath(), jobVariable + "=" + j.Job, currentVariable + "=" + j.CurrentSystem}
	cmd.Stdout = log
	cmd.Stderr = io.MultiWriter(log, tail)
	cmd.WaitDelay = outputWait
	cmd.SysProcAttr = dieWithParent()
	runtime.LockOSThread() // its end, not the process's, is what a child may die with
	err = cmd.Run()
	runtime.UnlockOSThread()
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return result{}
	case errors.As(err, &exit):
		return result{ExitCode: exitCode(exit), StderrTail: tail.String()}
	}
	r := failed(fmt.Errorf("running the script: %w", err))
	r.ExitCode = 127
	return r
}

// exitCode is the script's, or what a shell says of one that a signal ended.
func exitCode(e *exec.ExitError) int {
	if s, ok := e.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return 128 + int(s.Signal())
	}
	return e.ExitCode()
}

// searchPath is where scripts find programs: where the agent does.
func searchPath() string {
	if path := os.Getenv("PATH"); path != "" {
		return path
	}
	return "/run/current-system/sw/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

// capped keeps the beginning of what is written and says where it stopped. It never fails: a full disk
// must not end a script. It may be written to concurrently.
type capped struct {
	mu   sync.Mutex
	w    io.Writer
	left int
}

// Write implements io.Writer.
func (c *capped) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left > 0 {
		_, _ = c.w.Write(b[:min(len(b), c.left)])
		if c.left -= len(b); c.left <= 0 {
			_, _ = io.WriteString(c.w, "\n[more was printed]\n")
		}
	}
	return len(b), nil
}

// tail keeps the end of what is written.
type tail struct{ end []byte }

// Write implements io.Writer.
func (t *tail) Write(b []byte) (int, error) {
	t.end = append(t.end, b[max(0, len(b)-api.MaxStderrTail):]...)
	if over := len(t.end) - api.MaxStderrTail; over > 0 {
		t.end = append(t.end[:0], t.end[over:]...)
	}
	return len(b), nil
}

// String returns it as text.
func (t *tail) String() string { return strings.ToValidUTF8(string(bytes.TrimSpace(t.end)), "") }
