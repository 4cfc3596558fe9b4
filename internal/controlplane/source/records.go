package source

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/trust"
)

// Names below the records' directory. A manifest's name is its rollout id, whose pattern makes it safe.
const (
	revocationsName = "revocations.dsse.json"
	manifestsDir    = "manifests"
	suffix          = ".dsse.json"
)

// records are the highest envelopes that were accepted, as files: one index, one revocation list, and
// each channel's manifest, also of channels that have left the index.
type records struct{ dir string }

// accepted is what of the records the keys trusted now verify. Nothing else counts.
type accepted struct {
	index       *trust.Verified[api.Index]
	revocations *trust.Verified[api.Revocations]
	manifests   map[string]*trust.Verified[api.Manifest] // by channel
	ignored     []error                                  // what does not verify any more, and why
}

// load reads the records and verifies them. Files that are not there are no error; one that does not
// verify is ignored, which undoes the jump ahead of a stolen key.
func (r records) load(root *trust.Root, now time.Time) (accepted, error) {
	a := accepted{manifests: map[string]*trust.Verified[api.Manifest]{}}
	dir, err := os.OpenRoot(r.dir)
	if err != nil {
		return a, fmt.Errorf("opening the records of what was accepted: %w", err)
	}
	defer dir.Close()
	err = errors.Join(
		read(dir, indexName, trust.MaxEnvelope(api.MaxIndex), func(data []byte) error {
			v, err := trust.VerifyStoredIndex(root, data, now)
			return keep(&a.index, v, err)
		}, &a.ignored),
		read(dir, revocationsName, trust.MaxEnvelope(api.MaxRevocations), func(data []byte) error {
			v, err := trust.VerifyRevocations(root, data, now)
			return keep(&a.revocations, v, err)
		}, &a.ignored),
		a.loadManifests(dir, root, now),
	)
	if err != nil {
		return a, fmt.Errorf("reading the records of what was accepted: %w", err)
	}
	return a, nil
}

func (a *accepted) loadManifests(dir *os.Root, root *trust.Root, now time.Time) error {
	ids, err := manifestsIn(dir)
	if err != nil {
		return err
	}
	for _, id := range ids {
		err := read(dir, manifestName(id), trust.MaxEnvelope(api.MaxManifest), func(data []byte) error {
			v, err := manifest.VerifyStored(root, id, data, now)
			if err != nil {
				return err
			}
			m := v.Value()
			if old := a.manifests[m.Channel]; old == nil || manifest.PositionOf(old.Value()).Compare(manifest.PositionOf(m)) < 0 {
				a.manifests[m.Channel] = &v
			}
			return nil
		}, &a.ignored)
		if err != nil {
			return err
		}
	}
	return nil
}

func keep[T any](to **trust.Verified[T], v trust.Verified[T], err error) error {
	if err == nil {
		*to = &v
	}
	return err
}

// read gives the bytes of a file to verify, if there is such a file, and notes its refusal.
func read(dir *os.Root, name string, limit int, verify func([]byte) error, ignored *[]error) error {
	file, err := dir.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	data, err := readAll(file, name, limit, 0)
	if err != nil {
		return err
	}
	if err := verify(data); err != nil {
		*ignored = append(*ignored, fmt.Errorf("%s: %w", name, err))
	}
	return nil
}

func manifestName(id string) string { return path.Join(manifestsDir, id+suffix) }

// manifestsIn lists the rollout ids of the manifests that are kept.
func manifestsIn(dir *os.Root) ([]string, error) {
	entries, err := fs.ReadDir(dir.FS(), manifestsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), suffix); ok && manifest.ValidID(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// save writes down what was accepted: the index last, since it names the others.
func (r records) save(c candidate) error {
	dir, err := os.OpenRoot(r.dir)
	if err != nil {
		return fmt.Errorf("opening the records of what was accepted: %w", err)
	}
	defer dir.Close()
	if err := r.saveAll(dir, c); err != nil {
		return fmt.Errorf("writing down what was accepted: %w", err)
	}
	return nil
}

func (r records) saveAll(dir *os.Root, c candidate) error {
	if err := dir.Mkdir(manifestsDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if c.revocations != nil {
		if err := replace(dir, revocationsName, c.revocations.Envelope()); err != nil {
			return err
		}
	}
	current := map[string]string{}
	for _, release := range c.releases {
		m := release.Manifest.Value()
		current[m.Channel] = m.RolloutID
		if err := replace(dir, manifestName(m.RolloutID), release.Manifest.Envelope()); err != nil {
			return err
		}
	}
	ids, err := manifestsIn(dir)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if channel, _, err := manifest.ParseID(id); err == nil && current[channel] != "" && current[channel] != id {
			if err := dir.Remove(manifestName(id)); err != nil {
				return err
			}
		}
	}
	return replace(dir, indexName, c.index.Envelope())
}

// replace puts data in a file's place, whole or not at all, and durably.
func replace(dir *os.Root, name string, data []byte) error {
	temporary := name + ".new"
	file, err := dir.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = dir.Rename(temporary, name)
	}
	if err != nil {
		return err
	}
	return syncDir(dir, path.Dir(name))
}

func syncDir(dir *os.Root, name string) error {
	d, err := dir.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
