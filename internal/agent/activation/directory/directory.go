package directory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/fleet"
)

// Options is where things are. All paths but HealthChecks are required.
type Options struct {
	StateDir      string // the agent's; jobs are kept below it
	Store         string // a closure is the folder Store/<closure>
	Profile       string // the link that is the default at the next boot
	CurrentSystem string // the link to what runs now
	HealthChecks  string // instead of <current system>/etc/nixfleet/health-checks.json
	// Helper is the command that HelperMain is reached by, without its last two arguments; empty means
	// this very program.
	Helper []string
	Clock  clock.Clock // nil means the machine's
}

// Backend is an activation.Backend.
type Backend struct {
	o   Options
	dir string // of the jobs

	mu      sync.Mutex   // a job's lock is looked at, or taken for its helper
	helpers map[int]bool // started by this process and not yet waited for
}

var _ activation.Backend = (*Backend)(nil)

// New returns the backend. It makes the folder of the jobs, and touches nothing else.
func New(o Options) (*Backend, error) {
	for _, p := range []*string{&o.StateDir, &o.Store, &o.Profile, &o.CurrentSystem} {
		if *p == "" {
			return nil, errors.New("the directory backend needs a state directory, store, profile and current system")
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return nil, fmt.Errorf("finding %s: %w", *p, err)
		}
		*p = abs
	}
	if len(o.Helper) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("finding the program to switch with: %w", err)
		}
		o.Helper = []string{self}
	}
	if o.Clock == nil {
		o.Clock = clock.System{}
	}
	b := &Backend{o: o, dir: filepath.Join(o.StateDir, "switch"), helpers: map[int]bool{}}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of switches: %w", err)
	}
	return b, nil
}

// Current implements activation.Backend.
func (b *Backend) Current(context.Context) (string, error) { return closureAt(b.o.CurrentSystem) }

// Boot implements activation.Backend.
func (b *Backend) Boot(context.Context) (string, error) { return closureAt(b.o.Profile) }

// closureAt returns the base name of what a link points at, "" where there is no link.
func closureAt(link string) (string, error) {
	to, err := os.Readlink(link)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading which closure is live: %w", err)
	}
	return strings.ToValidUTF8(filepath.Base(to), "\uFFFD"), nil // a name that is no text is no closure's
}

// Realise implements activation.Backend: the folder is there, or it is not.
func (b *Backend) Realise(_ context.Context, closure string, _ func(done, total int64)) error {
	return b.check(closure, api.CodeRealiseFailed, api.PhaseRealise)
}

// check says whether closure is a folder of the store. One that is not there will not come by waiting.
func (b *Backend) check(closure string, code api.Code, phase string) error {
	if err := checkClosure(b.o.Store, closure); err != nil {
		temporary := !errors.Is(err, errBadName) && !errors.Is(err, errNoFolder) && !errors.Is(err, fs.ErrNotExist)
		return &activation.Error{Code: code, Phase: phase, Detail: "the closure is not in the store", Temporary: temporary, Cause: err}
	}
	return nil
}

var (
	errBadName  = errors.New("it is not the name of a closure")
	errNoFolder = errors.New("it is not a folder")
)

// checkClosure looks for the closure in the store and nowhere else.
func checkClosure(store, closure string) error {
	if !fleet.ValidClosure(closure) {
		return fmt.Errorf("%q: %w", closure, errBadName)
	}
	root, err := os.OpenRoot(store)
	if err != nil {
		return fmt.Errorf("opening the store: %w", err)
	}
	defer root.Close()
	info, err := root.Lstat(closure)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s: %w", closure, errNoFolder)
	}
	return nil
}

// Protect implements activation.Backend: nothing here collects garbage.
func (b *Backend) Protect(context.Context, []string) error { return nil }

// SetProfile implements activation.Backend.
func (b *Backend) SetProfile(_ context.Context, closure string) error {
	if err := b.check(closure, api.CodeSwitchFailed, api.PhaseSetProfile); err != nil {
		return err
	}
	if err := pointAt(b.o.Profile, filepath.Join(b.o.Store, closure)); err != nil {
		code := api.CodeSwitchFailed
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			code = api.CodeDiskFull // which is not the closure's fault
		}
		return &activation.Error{Code: code, Phase: api.PhaseSetProfile, Detail: "the profile cannot be set", Temporary: true, Cause: err}
	}
	return nil
}

// Health implements activation.Backend.
func (b *Backend) Health(context.Context) (string, error) {
	if b.o.HealthChecks != "" {
		return b.o.HealthChecks, nil
	}
	return filepath.Join(b.o.CurrentSystem, "etc", "nixfleet", "health-checks.json"), nil
}

// pointAt has link point at target, durably and at no moment at nothing.
func pointAt(link, target string) error {
	folder := filepath.Dir(link)
	if at, err := os.Readlink(link); err == nil && at == target {
		return syncFolder(folder) // whoever set it may not have come to that
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	next := link + ".new-" + strconv.Itoa(os.Getpid())
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, next); err != nil {
		return err
	}
	if err := os.Rename(next, link); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return syncFolder(folder)
}

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
