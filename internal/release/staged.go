package release

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/strictjson"
	"nixfleet.dev/nixfleet/internal/trust"
)

// draftFile is what makes a directory a draft; it names the others.
const draftFile = "draft.json"

// maxDraft is the cap on draft.json: an index and a digest.
const maxDraft = api.MaxIndex + 4096

// create writes the draft to a directory that is missing or empty: the signatures of others on another
// draft are not to be lost.
func (d *draft) create(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the draft: %w", err)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("making the draft: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("making the draft: %s is not empty; name a new directory", path)
	}
	if err := d.save(path); err != nil {
		return errors.Join(err, sweep(path))
	}
	return nil
}

// sweep empties a directory.
func sweep(path string) error {
	entries, err := os.ReadDir(path)
	for _, entry := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(path, entry.Name())))
	}
	return err
}

// save writes the draft to its directory, each file whole or not at all, and last the index: one that is
// there was signed for what is beside it.
func (d *draft) save(path string) error {
	root, err := os.OpenRoot(path)
	if err != nil {
		return fmt.Errorf("opening the draft: %w", err)
	}
	defer root.Close()
	described, err := json.Marshal(d, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		return fmt.Errorf("encoding the draft: %w", err)
	}
	files := maps.Clone(d.files)
	files[draftFile] = append(described, '\n')
	order := sortedKeys(files)
	if d.sealed != nil {
		files[indexFile] = d.sealed
		order = append(order, indexFile)
	}
	for _, name := range order {
		if err := replaceIn(root, name, files[name]); err != nil {
			return fmt.Errorf("saving the draft: %w", err)
		}
	}
	return nil
}

// replaceIn writes a file whole or not at all.
func replaceIn(root *os.Root, name string, data []byte) error {
	temp := tempPrefix + rand.Text()
	err := root.WriteFile(temp, data, 0o644)
	if err == nil {
		err = root.Rename(temp, name)
	}
	if err != nil {
		return errors.Join(err, root.RemoveAll(temp))
	}
	return nil
}

// loadDraft reads a draft that save wrote. Nothing in it is believed for being there: its signatures are
// checked like everything's.
func loadDraft(path string) (*draft, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("opening the draft: %w", err)
	}
	defer root.Close()
	described, err := readCapped(root, draftFile, maxDraft)
	if err != nil {
		return nil, fmt.Errorf("reading the draft %s: %w", path, err)
	}
	read, err := strictjson.Decode[draft](draftFile, described, maxDraft)
	if err != nil {
		return nil, err
	}
	d := &read
	d.files = map[string][]byte{}
	for _, name := range objectsOf(d.Index) {
		if isObject(name) {
			continue
		}
		if d.files[name], err = readCapped(root, name, draftLimit(name)); err != nil {
			return nil, fmt.Errorf("reading the draft %s: %w", path, err)
		}
	}
	sealed, err := readCapped(root, indexFile, trust.MaxEnvelope(api.MaxIndex))
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	d.sealed = sealed
	return d, err
}

func draftLimit(name string) int {
	if len(name) > len(hostsSuffix) && name[len(name)-len(hostsSuffix):] == hostsSuffix {
		return api.MaxHosts
	}
	return trust.MaxEnvelope(api.MaxFleet)
}

// isObject says whether a name in a draft's index is an object's, rather than one of the draft's files.
func isObject(name string) bool {
	if len(name) != 64 {
		return false
	}
	for _, c := range name {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func readCapped(root *os.Root, name string, limit int) ([]byte, error) {
	file, err := root.Open(name)
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

// Sign adds signatures to a draft that Create, Refresh or Revoke kept in opts.DraftDir. Once its parts have
// all they need it signs the index, which names them; whoever signed before that signs once more.
// opts.Repo is not used.
func Sign(opts Options) (Report, error) {
	d, err := loadDraft(opts.DraftDir)
	if err != nil {
		return Report{}, err
	}
	if len(opts.Signers) == 0 {
		return Report{}, errors.New("no key to sign with was given")
	}
	if err := d.sign(opts.Signers, opts.Root, opts.Now); err != nil {
		return Report{}, err
	}
	report := d.describe(opts)
	return report, d.save(opts.DraftDir)
}

// Publish publishes the draft in opts.DraftDir, whole or not at all, if it is signed as opts.Root asks and
// the repository is still what it was made from. It needs no signer.
func Publish(ctx context.Context, opts Options) (Report, error) {
	d, err := loadDraft(opts.DraftDir)
	if err != nil {
		return Report{}, err
	}
	r, err := openOrMakeRepo(opts.Repo)
	if err != nil {
		return Report{}, err
	}
	defer r.Close()
	report := d.describe(opts)
	report.Repository = r.path
	if err := d.publish(ctx, r, opts.Root, opts.Now); err != nil {
		return report, err
	}
	report.Published, report.Draft = true, ""
	return report, nil
}

// describe reports on a draft by what it would change.
func (d *draft) describe(opts Options) Report {
	report := Report{
		Draft: opts.DraftDir, Sequence: d.Index.Sequence, SignedAt: d.Index.SignedAt,
		Missing: d.stillNeeds(opts.Root, opts.Now),
	}
	for _, channel := range sortedKeys(d.Index.Channels) {
		entry := d.Index.Channels[channel]
		described := ChannelReport{Channel: channel, Change: Kept, RolloutID: entry.RolloutID}
		if envelope, ours := d.files[entry.Manifest]; ours {
			described.Change = Refreshed
			if _, ours := d.files[entry.Hosts]; ours {
				described.Change = Released
			}
			if v, err := manifest.Verify(opts.Root, entry.RolloutID, envelope, opts.Now); err == nil {
				described = channelReport(described.Change, v.Value())
			}
		}
		report.Channels = append(report.Channels, described)
	}
	return report
}
