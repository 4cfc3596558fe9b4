// Package manifestcache keeps the rollouts' manifests and this host's lines on disk, as
// <state_dir>/rollouts/<rolloutId>/{manifest.dsse.json,host.json}, so that a dispatch can be verified
// while no control plane can be asked (design/agent.md, "Manifest cache").
//
// It is no record of trust: what it returns is bytes, which internal/agent/longpoll verifies at every
// dispatch. What cannot be read is the same as what is not there.
package manifestcache

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/durable"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/trust"
)

// Kept is how many finished rollouts Prune leaves.
const Kept = 10

const (
	manifestFile = "manifest.dsse.json"
	hostFile     = "host.json"
)

// Cache is one host's cache. One goroutine at a time may store and prune; loading may be concurrent.
type Cache struct{ root *os.Root }

// Open opens the cache below stateDir and makes its folder where it is missing.
func Open(stateDir string) (*Cache, error) {
	root, err := durable.OpenDir(filepath.Join(stateDir, "rollouts"))
	if err != nil {
		return nil, fmt.Errorf("open the manifest cache: %w", err)
	}
	return &Cache{root}, nil
}

// Close releases the folder.
func (c *Cache) Close() error { return c.root.Close() }

// Load returns what is kept of a rollout, unverified, and false where that is not a manifest and a line.
func (c *Cache) Load(rolloutID string) (envelope []byte, proof api.HostProof, ok bool) {
	if !manifest.ValidID(rolloutID) {
		return nil, proof, false
	}
	envelope, err := durable.ReadFile(c.root, filepath.Join(rolloutID, manifestFile), trust.MaxEnvelope(api.MaxManifest))
	if err != nil {
		return nil, proof, false
	}
	host, err := durable.ReadFile(c.root, filepath.Join(rolloutID, hostFile), manifest.MaxHostProof)
	if err != nil {
		return nil, proof, false
	}
	proof, err = manifest.ParseProof(host)
	return envelope, proof, err == nil
}

// Store keeps a rollout's manifest and line: each file is written whole or not at all.
func (c *Cache) Store(rolloutID string, envelope []byte, proof api.HostProof) error {
	if _, _, err := manifest.ParseID(rolloutID); err != nil {
		return err
	}
	host, err := json.Marshal(proof)
	if err != nil {
		return err
	}
	if err := c.root.Mkdir(rolloutID, 0o700); err == nil {
		err = durable.SyncDir(c.root, ".")
		if err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := durable.WriteFile(c.root, filepath.Join(rolloutID, hostFile), host, 0o600); err != nil {
		return err
	}
	return durable.WriteFile(c.root, filepath.Join(rolloutID, manifestFile), envelope, 0o600)
}

// Prune removes the finished rollouts but for the last Kept, by when they were stored.
func (c *Cache) Prune(finished func(rolloutID string) bool) error {
	type entry struct {
		id string
		at time.Time
	}
	listed, err := fs.ReadDir(c.root.FS(), ".")
	if err != nil {
		return fmt.Errorf("prune the manifest cache: %w", err)
	}
	var done []entry
	for _, d := range listed {
		if info, err := d.Info(); err == nil && manifest.ValidID(d.Name()) && finished(d.Name()) {
			done = append(done, entry{d.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(done, func(a, b entry) int { return cmp.Or(b.at.Compare(a.at), cmp.Compare(a.id, b.id)) })
	for _, e := range done[min(Kept, len(done)):] {
		err = errors.Join(err, c.root.RemoveAll(e.id))
	}
	if err != nil {
		return fmt.Errorf("prune the manifest cache: %w", err)
	}
	return nil
}
