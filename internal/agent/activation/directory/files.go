package directory

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/internal/agent/durable"
	"nixfleet.dev/nixfleet/internal/strictjson"
)

// Names in a job's folder.
const (
	jobFile     = "job.json"
	lockFile    = "lock"
	processFile = "process.json"
	begunFile   = "begun"
	outputFile  = "output.log"
	resultFile  = "result.json"
)

// activeFile, beside the folders of the jobs, names the job whose turn it is or was last.
const activeFile = "active.json"

const maxFile = 64 << 10 // of any of these but the output

// job is what a helper is to do.
type job struct {
	Job           string `json:"job"`
	Closure       string `json:"closure"`
	Store         string `json:"store"`
	CurrentSystem string `json:"currentSystem"`
}

// process is a helper, told apart from another of the same number by its start.
type process struct {
	Job    string `json:"job"`
	PID    int    `json:"pid"`
	Start  string `json:"start"`  // what the kernel says, "" where it does not
	BootID string `json:"bootId"` // "" where there is none
}

// result is how a job ended.
type result struct {
	ExitCode   int    `json:"exitCode"`
	StderrTail string `json:"stderrTail"`
}

var jobPattern = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

func checkJob(name string) error {
	if !jobPattern.MatchString(name) {
		return fmt.Errorf("%q is not the name of a switch", name)
	}
	return nil
}

// readJSON reads one of the files; one that is not there is no error.
func readJSON[T any](root *os.Root, name string) (v T, found bool, err error) {
	data, err := durable.ReadFile(root, name, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return v, false, nil
	}
	if err == nil {
		v, err = strictjson.Decode[T](name, data, maxFile)
	}
	return v, err == nil, err
}

// writeJSON writes one of the files whole, durably.
func writeJSON(root *os.Root, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return durable.WriteFile(root, name, data, 0o600)
}

func exists(root *os.Root, name string) (bool, error) {
	_, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// tryLock takes the lock file if nobody has it. The lock belongs to the open file, in whichever
// processes that is open.
func tryLock(root *os.Root, name string) (f *os.File, taken bool, err error) {
	f, err = root.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, err
	}
	switch err = flock(f, syscall.LOCK_EX|syscall.LOCK_NB); {
	case err == nil:
		return f, true, nil
	case errors.Is(err, syscall.EWOULDBLOCK):
		return nil, false, f.Close()
	}
	return nil, false, errors.Join(fmt.Errorf("locking %s: %w", name, err), f.Close())
}

func flock(f *os.File, how int) error {
	for {
		if err := syscall.Flock(int(f.Fd()), how); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// openJob opens the folder of a job.
func openJob(dir, name string) (*os.Root, error) {
	if err := checkJob(name); err != nil {
		return nil, err
	}
	return os.OpenRoot(filepath.Join(dir, name))
}
