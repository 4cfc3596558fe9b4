package release

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/trust"
)

const (
	indexFile     = "index.dsse.json"
	objectsFolder = "objects"
	lockFile      = ".lock"
	tempPrefix    = ".tmp-"
)

// ErrChanged is wrapped by the error of a job whose repository was published to by another job since it
// was read, or is being published to at this moment.
var ErrChanged = errors.New("the release repository was changed by someone else meanwhile")

// Repo is a release repository in a directory of this machine.
type Repo struct {
	root *os.Root
	path string
	// before, where set, is called before each change on disk; tests make it fail.
	before func(step string) error
}

// OpenRepo opens the repository at a path or file:// URL. The directory must exist; an empty one is a
// repository that nothing was published to yet.
func OpenRepo(location string) (*Repo, error) {
	path, err := repoPath(location)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("opening the release repository: %w", err)
	}
	return &Repo{root: root, path: path}, nil
}

// openOrMakeRepo is OpenRepo, but makes the directory where only that is missing.
func openOrMakeRepo(location string) (*Repo, error) {
	path, err := repoPath(location)
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("making the release repository: %w", err)
	}
	return OpenRepo(path)
}

// repoPath returns the absolute path of a repository.
func repoPath(location string) (string, error) {
	if !strings.Contains(location, "://") {
		return filepath.Abs(location)
	}
	u, err := url.Parse(location)
	if err != nil {
		return "", fmt.Errorf("repository %q is not a URL: %w", location, err)
	}
	if u.Scheme != "file" || u.Host != "" && u.Host != "localhost" || u.Path == "" {
		return "", fmt.Errorf("repository %q is neither a path nor a file:///path URL; publish to a directory, and let what serves it copy from there", location)
	}
	return filepath.FromSlash(u.Path), nil
}

// Close releases the repository.
func (r *Repo) Close() { _ = r.root.Close() } // only read through: what is written has its own files

// Path returns the absolute path of the repository's directory.
func (r *Repo) Path() string { return r.path }

// Index returns the bytes of the index, nil where nothing was published yet.
func (r *Repo) Index() ([]byte, error) {
	data, err := r.read(indexFile, trust.MaxEnvelope(api.MaxIndex))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the index of %s: %w", r.path, err)
	}
	return data, nil
}

// Object returns the bytes of an object of at most limit bytes, after checking them against its name.
func (r *Repo) Object(name string, limit int) ([]byte, error) {
	data, err := r.read(objectPath(name), limit)
	if err != nil {
		return nil, fmt.Errorf("reading object %s: %w", name, err)
	}
	if digest := trust.Digest(data); digest != name {
		return nil, fmt.Errorf("object %s is damaged: its SHA-256 is %s", name, digest)
	}
	return data, nil
}

// has says whether an object is there; its bytes are checked where they are read.
func (r *Repo) has(name string) bool {
	info, err := r.root.Stat(objectPath(name))
	return err == nil && info.Mode().IsRegular()
}

func objectPath(name string) string { return objectsFolder + "/" + name }

func (r *Repo) read(name string, limit int) ([]byte, error) {
	file, err := r.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > limit {
		return nil, fmt.Errorf("%s is over %d bytes", name, limit)
	}
	return data, nil
}
