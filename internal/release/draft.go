package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/trust"
)

// Names of a draft's files.
const (
	fleetFile       = "fleet.dsse.json"
	revocationsFile = "revocations.dsse.json"
	manifestSuffix  = ".manifest.dsse.json"
	hostsSuffix     = ".hosts.jsonl"
	envelopeSuffix  = ".dsse.json"
)

// draft is a release that is being made: everything that will be published, each part until the last
// signature is on it. An object's name depends on its signatures, so the index can be signed only when
// all others have signed: until then it names files of the draft instead of objects.
type draft struct {
	// Base is the digest of the index that this is made from, "" for none.
	Base string `json:"base"`
	// Index is the index to be: where it names something that is in files, the name is that file's.
	Index api.Index `json:"index"`

	files  map[string][]byte
	sealed []byte // the index's envelope, once everything else is signed
}

// newDraft returns a draft that publishes what is published again, in a newer index.
func newDraft(p *published, at time.Time) *draft {
	index := p.index
	index.SchemaVersion = api.SchemaVersion
	index.SignedAt = at
	index.Channels = maps.Clone(p.index.Channels)
	index.Released = maps.Clone(p.index.Released)
	return &draft{Base: p.base, Index: index, files: map[string][]byte{}}
}

// envelopes returns the names of the files that carry signatures, sorted.
func (d *draft) envelopes() []string {
	return slices.DeleteFunc(sortedKeys(d.files), func(name string) bool { return !strings.HasSuffix(name, envelopeSuffix) })
}

// add puts a payload into the draft as a new envelope signed by signers.
func (d *draft) add(name string, t api.PayloadType, payload []byte, signers []trust.Signer) error {
	envelope, err := trust.Sign(t, payload, signers...)
	if err != nil {
		return fmt.Errorf("signing %s: %w", name, err)
	}
	d.files[name] = envelope
	return nil
}

// sign adds signatures to everything that is not signed yet by these signers, as far as the draft has
// come: to its parts, and once those have all they need to the index.
func (d *draft) sign(signers []trust.Signer, root *trust.Root, now time.Time) error {
	if d.sealed == nil {
		for _, name := range d.envelopes() {
			if err := addSignatures(d.files, name, signers); err != nil {
				return err
			}
		}
	}
	return d.seal(signers, root, now)
}

func addSignatures(files map[string][]byte, name string, signers []trust.Signer) error {
	for _, signer := range signers {
		envelope, err := trust.AddSignature(files[name], signer)
		if err != nil {
			return fmt.Errorf("signing %s: %w", name, err)
		}
		files[name] = envelope
	}
	return nil
}

// seal signs the index, if all that it names is signed as trust.json asks.
func (d *draft) seal(signers []trust.Signer, root *trust.Root, now time.Time) error {
	if d.sealed != nil {
		sealed := map[string][]byte{indexFile: d.sealed}
		if err := addSignatures(sealed, indexFile, signers); err != nil {
			return err
		}
		d.sealed = sealed[indexFile]
		return nil
	}
	if len(d.missing(root, now)) > 0 {
		return nil
	}
	payload, err := d.payload()
	if err != nil {
		return err
	}
	if d.sealed, err = trust.Sign(api.PayloadIndex, payload, signers...); err != nil {
		return fmt.Errorf("signing the index: %w", err)
	}
	return nil
}

// payload returns the index as it is signed.
func (d *draft) payload() ([]byte, error) {
	payload, err := json.Marshal(d.resolved(), json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("encoding the index: %w", err)
	}
	if len(payload) > api.MaxIndex {
		return nil, fmt.Errorf("the index would be %d bytes; at most %d are allowed", len(payload), api.MaxIndex)
	}
	return payload, nil
}

// resolved returns the index with the names of objects in place of the names of files.
func (d *draft) resolved() api.Index {
	object := func(name string) string {
		if data, ours := d.files[name]; ours {
			return trust.Digest(data)
		}
		return name
	}
	index := d.Index
	index.Fleet = object(index.Fleet)
	index.Channels = make(map[string]api.IndexChannel, len(d.Index.Channels))
	for name, c := range d.Index.Channels {
		c.Manifest, c.Hosts, c.Fleet = object(c.Manifest), object(c.Hosts), object(c.Fleet)
		index.Channels[name] = c
	}
	if index.Revocations != nil {
		revocations := object(*index.Revocations)
		index.Revocations = &revocations
	}
	return index
}

// missing says what the draft's parts still need before a reader who trusts root would accept them.
func (d *draft) missing(root *trust.Root, now time.Time) []error {
	missing := []error{}
	note := func(err error) {
		if err != nil {
			missing = append(missing, err)
		}
	}
	for _, channel := range sortedKeys(d.Index.Channels) {
		entry := d.Index.Channels[channel]
		if envelope, ours := d.files[entry.Manifest]; ours {
			_, err := manifest.Verify(root, entry.RolloutID, envelope, now)
			note(err)
		}
	}
	for _, name := range d.envelopes() {
		switch {
		case strings.HasSuffix(name, manifestSuffix): // above, by the rule of its channel
		case name == revocationsFile:
			_, err := trust.VerifyRevocations(root, d.files[name], now)
			note(err)
		default:
			_, err := trust.VerifyFleet(root, d.files[name], now)
			note(err)
		}
	}
	return missing
}

// check holds the whole draft to what its readers will hold it to; what it does not carry itself must be
// in the repository.
func (d *draft) check(r *Repo, root *trust.Root, now time.Time) error {
	if missing := d.missing(root, now); len(missing) > 0 {
		return &UnsignedError{Missing: missing}
	}
	if d.sealed == nil {
		return &UnsignedError{Missing: []error{errors.New("the index is not signed; sign the draft once more")}}
	}
	index, err := trust.VerifyIndex(root, d.sealed, now)
	if err != nil {
		return &UnsignedError{Missing: []error{err}}
	}
	if payload, err := d.payload(); err != nil || !bytes.Equal(payload, index.Payload()) {
		return errors.Join(errors.New("the draft is not what its index was signed for; make it again"), err)
	}
	carried := map[string]bool{}
	for _, data := range d.files {
		carried[trust.Digest(data)] = true
	}
	for _, object := range objectsOf(index.Value()) {
		if !carried[object] && !r.has(object) {
			return fmt.Errorf("object %s, which the index names, is neither new nor in %s", object, r.path)
		}
	}
	for channel, entry := range d.Index.Channels {
		if err := d.checkAdoption(root, channel, entry, now); err != nil {
			return fmt.Errorf("checking channel %s as a control plane would: %w", channel, err)
		}
	}
	return nil
}

// checkAdoption checks a channel that is released anew.
func (d *draft) checkAdoption(root *trust.Root, channel string, entry api.IndexChannel, now time.Time) error {
	hosts, ours := d.files[entry.Hosts]
	if !ours {
		return nil
	}
	_, err := manifest.CheckAdoption(manifest.Adoption{
		Root: root, Channel: channel, Entry: entry, Now: now,
		Manifest: d.files[entry.Manifest], Hosts: hosts, Fleet: d.files[entry.Fleet],
	})
	return err
}

// publish checks the draft and puts it into the repository, whole or not at all.
func (d *draft) publish(ctx context.Context, r *Repo, root *trust.Root, now time.Time) error {
	if err := d.check(r, root, now); err != nil {
		return err
	}
	objects := make([][]byte, 0, len(d.files))
	for _, name := range sortedKeys(d.files) {
		objects = append(objects, d.files[name])
	}
	return r.publish(ctx, d.Base, objects, d.sealed)
}

// objectsOf lists the objects that an index names, each once, sorted.
func objectsOf(index api.Index) []string {
	objects := []string{index.Fleet}
	for _, c := range index.Channels {
		objects = append(objects, c.Manifest, c.Hosts, c.Fleet)
	}
	if index.Revocations != nil {
		objects = append(objects, *index.Revocations)
	}
	slices.Sort(objects)
	return slices.Compact(objects)
}

// UnsignedError is the error of a release that does not carry the signatures that trust.json asks for, or
// no longer carries good ones. Nothing of it was published.
type UnsignedError struct{ Missing []error }

// Error implements error.
func (e *UnsignedError) Error() string {
	if len(e.Missing) == 1 {
		return "not published: " + e.Missing[0].Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "not published, %d parts are not signed as trust.json asks:", len(e.Missing))
	for _, err := range e.Missing {
		b.WriteString("\n  " + err.Error())
	}
	return b.String()
}

// Unwrap returns what is missing.
func (e *UnsignedError) Unwrap() []error { return e.Missing }

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
