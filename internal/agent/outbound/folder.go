package outbound

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/durable"
)

// MaxSetAside is how many batches a Folder keeps; the oldest give way. Each is at most
// api.MaxBatchBytes, so that a control plane that calls everything malformed fills no disk.
const MaxSetAside = 16

// Folder keeps batches that were set aside. It is for one goroutine.
type Folder struct {
	root *os.Root
	path string
}

// OpenFolder opens set-aside below stateDir and makes it where it is missing.
func OpenFolder(stateDir string) (*Folder, error) {
	path := filepath.Join(stateDir, "set-aside")
	root, err := durable.OpenDir(path)
	if err != nil {
		return nil, fmt.Errorf("open the folder of events set aside: %w", err)
	}
	return &Folder{root, path}, nil
}

// Close releases the folder.
func (f *Folder) Close() error { return f.root.Close() }

// Keep writes a batch and returns its file.
func (f *Folder) Keep(b api.EventBatch) (string, error) {
	data, err := json.Marshal(b)
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("%s-%s-%d.json", b.JournalID, b.RolloutID, b.Events[0].Seq)
	if err := f.prune(MaxSetAside - 1); err != nil {
		return "", err
	}
	if err := durable.WriteFile(f.root, name, data, 0o600); err != nil {
		return "", err
	}
	return filepath.Join(f.path, name), nil
}

// prune removes the oldest batches until at most keep are left.
func (f *Folder) prune(keep int) error {
	entries, err := fs.ReadDir(f.root.FS(), ".")
	if err != nil {
		return err
	}
	var kept []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil { // what a crash left half written too
			kept = append(kept, info)
		}
	}
	slices.SortFunc(kept, func(a, b fs.FileInfo) int {
		return cmp.Or(b.ModTime().Compare(a.ModTime()), cmp.Compare(b.Name(), a.Name()))
	})
	err = nil
	for _, info := range kept[min(keep, len(kept)):] {
		err = errors.Join(err, f.root.Remove(info.Name()))
	}
	return err
}
