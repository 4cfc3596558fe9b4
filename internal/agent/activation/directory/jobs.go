package directory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
)

// keptJobs is how many jobs that ended are kept, for people to read.
const keptJobs = 20

// StartSwitch implements activation.Backend. A job that was started and never came to its script, since
// the machine or the helper was ended first, is started again.
func (b *Backend) StartSwitch(_ context.Context, name, closure string) error {
	if err := checkJob(name); err != nil {
		return &activation.Error{Code: api.CodeSwitchFailed, Phase: api.PhaseSwitch, Detail: "the switch cannot be started", Cause: err}
	}
	if err := b.check(closure, api.CodeSwitchFailed, api.PhaseSwitch); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reap()
	if err := b.start(name, closure); err != nil {
		temporary := !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.ENOEXEC)
		return &activation.Error{Code: api.CodeSwitchFailed, Phase: api.PhaseSwitch, Detail: "the switch cannot be started", Temporary: temporary, Cause: err}
	}
	return nil
}

func (b *Backend) start(name, closure string) error {
	b.prune(name)
	path := filepath.Join(b.dir, name)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	lock, taken, err := tryLock(root, lockFile)
	if err != nil || !taken { // taken by its helper: it runs
		return err
	}
	defer lock.Close()
	for _, sign := range []string{begunFile, resultFile} {
		if there, err := exists(root, sign); there || err != nil {
			return err
		}
	}
	if err := writeJSON(root, jobFile, job{Job: name, Closure: closure, Store: b.o.Store, CurrentSystem: b.o.CurrentSystem}); err != nil {
		return err
	}
	return b.spawn(name, path, lock)
}

// spawn starts the helper in a session of its own, with the job's lock as its file 3, and nothing else
// of this process.
func (b *Backend) spawn(name, path string, lock *os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	argv := append(slices.Clone(b.o.Helper), helperCommand, path)
	p, err := os.StartProcess(argv[0], argv, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=" + searchPath(), jobVariable + "=" + name},
		Files: []*os.File{null, null, null, lock},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	b.helpers[p.Pid] = true
	return p.Release()
}

// reap takes note of helpers that ended, so that they do not linger as zombies. It waits for none.
func (b *Backend) reap() {
	for pid := range b.helpers {
		ended, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
		if ended == pid || errors.Is(err, syscall.ECHILD) {
			delete(b.helpers, pid)
		}
	}
}

// Job implements activation.Backend.
func (b *Backend) Job(_ context.Context, name string) (activation.JobStatus, error) {
	root, err := openJob(b.dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return activation.JobStatus{State: activation.JobUnknown}, nil
	}
	if err != nil {
		return activation.JobStatus{}, fmt.Errorf("reading switch %s: %w", name, err)
	}
	defer root.Close()
	status, err := b.status(root)
	if err != nil {
		return activation.JobStatus{}, fmt.Errorf("reading switch %s: %w", name, err)
	}
	return status, nil
}

// status looks at the lock before the result: a helper that is gone has left one, or never will.
func (b *Backend) status(root *os.Root) (activation.JobStatus, error) {
	runs, err := b.held(root)
	if err != nil {
		return activation.JobStatus{}, err
	}
	r, found, err := readJSON[result](root, resultFile)
	switch {
	case err != nil:
		return activation.JobStatus{}, err
	case found:
		return activation.JobStatus{State: activation.JobExited, ExitCode: r.ExitCode, StderrTail: r.StderrTail}, nil
	case runs:
		return activation.JobStatus{State: activation.JobRunning}, nil
	}
	return activation.JobStatus{State: activation.JobUnknown}, nil
}

// held says whether the job's helper lives.
func (b *Backend) held(root *os.Root) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reap()
	lock, taken, err := tryLock(root, lockFile)
	if taken {
		lock.Close()
	}
	return !taken, err
}

// Pauses between looks at whether a switch that was killed is gone. One that hangs in the kernel, on a
// disk that is gone, say, may take for ever.
const (
	stopPause     = 10 * time.Millisecond
	stopPauseMost = time.Second
)

// StopSwitch implements activation.Backend: it kills the helper, the script, and all that is left in
// their session.
func (b *Backend) StopSwitch(ctx context.Context, name string) error {
	root, err := openJob(b.dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stopping switch %s: %w", name, err)
	}
	defer root.Close()
	for pause := stopPause; ; pause = min(2*pause, stopPauseMost) {
		gone, err := b.kill(root)
		if err != nil {
			return fmt.Errorf("stopping switch %s: %w", name, err)
		}
		if gone {
			return nil
		}
		if err := b.o.Clock.Sleep(ctx, pause); err != nil {
			return fmt.Errorf("waiting for switch %s to stop: %w", name, err)
		}
	}
}

// kill kills what runs of a job, and says whether nothing does.
func (b *Backend) kill(root *os.Root) (bool, error) {
	runs, err := b.held(root)
	if err != nil {
		return false, err
	}
	if !runs { // what its script left behind after a proper end is meant to stay
		if done, err := exists(root, resultFile); done || err != nil {
			return done, err
		}
	}
	p, found, err := readJSON[process](root, processFile)
	if err != nil || !found { // a helper that has only just been started says who it is in a moment
		return !runs, err
	}
	left := p.killSession(runs)
	return !runs && !left, nil
}

// prune removes the oldest jobs that do not run. What cannot be removed stays.
func (b *Backend) prune(keep string) {
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return
	}
	type old struct {
		name string
		at   time.Time
	}
	var jobs []old
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.IsDir() && e.Name() != keep {
			jobs = append(jobs, old{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(jobs, func(x, y old) int { return cmp.Or(x.at.Compare(y.at), cmp.Compare(x.name, y.name)) })
	for len(jobs) >= keptJobs {
		b.remove(jobs[0].name)
		jobs = jobs[1:]
	}
}

func (b *Backend) remove(name string) {
	path := filepath.Join(b.dir, name)
	root, err := os.OpenRoot(path)
	if err != nil {
		return
	}
	defer root.Close()
	if lock, taken, err := tryLock(root, lockFile); err == nil && taken {
		defer lock.Close()
		os.RemoveAll(path)
	}
}
