// Package trustfile is trust.json as it is now (design/artifacts.md): it is read again whenever what it
// says is needed. Removing a stolen key is an emergency, and must count at the next dispatch, whether
// or not whoever removes it can have the agent restarted.
//
// It decides nothing about what the keys are good for: internal/trust does. Its callers are
// internal/agent, and through it the keeper of accepted manifests and the heartbeats.
package trustfile

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/trust"
)

// File is one trust.json. It may be used concurrently.
type File struct {
	path string
	log  *slog.Logger

	mu   sync.Mutex
	data []byte // what root was read from
	root *trust.Root
	bad  string // why the file cannot be used now, as it was logged; "" while it can
}

// Open reads the file, without which no agent starts.
func Open(path string, log *slog.Logger) (*File, error) {
	data, root, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("read the trust file: %w", err)
	}
	return &File{path: path, log: log, data: data, root: root}, nil
}

// Root returns what the file says now; where it cannot be read, what it said last, which is logged once.
// A file that is being replaced, or was written with a mistake, must not leave a host that believes
// nobody and cannot be mended by a release.
func (f *File) Root() *trust.Root {
	f.mu.Lock()
	defer f.mu.Unlock()
	data, root, err := read(f.path)
	switch {
	case err != nil && err.Error() != f.bad:
		f.bad = err.Error()
		f.log.Error("the trust file cannot be used; what it said before still counts", "trustSha256", f.root.SHA256(), "err", err)
	case err == nil:
		f.bad = ""
		if !bytes.Equal(data, f.data) {
			f.log.Warn("the trust file changed; what it says now counts", "from", f.root.SHA256(), "trustSha256", root.SHA256())
			f.data, f.root = data, root
		}
	}
	return f.root
}

// SHA256 returns the digest of the file that Root goes by.
func (f *File) SHA256() string { return f.Root().SHA256() }

func read(path string) ([]byte, *trust.Root, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, api.MaxTrust+1))
	if err != nil {
		return nil, nil, err
	}
	if len(data) > api.MaxTrust {
		return nil, nil, fmt.Errorf("%s is over %d bytes", path, api.MaxTrust)
	}
	root, err := trust.ParseRoot(path, data)
	return data, root, err
}
