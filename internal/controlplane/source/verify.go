package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/controlplane/store"
	"nixfleet.dev/nixfleet/internal/fleet"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/rollout"
	"nixfleet.dev/nixfleet/internal/strictjson"
	"nixfleet.dev/nixfleet/internal/trust"
)

// candidate is an index with all that it names, every bit of it verified.
type candidate struct {
	index       trust.Verified[api.Index]
	revocations *trust.Verified[api.Revocations] // nil where there never were any
	fleet       trust.Verified[api.Fleet]
	releases    []manifest.Adopted // in order of their channels
	fetched     [][]byte           // the objects that were not in the store
	warnings    []string
}

// check is the verification of one candidate.
type check struct {
	s    *Source
	root *trust.Root
	now  time.Time
	last accepted
	read map[string][]byte // objects, by digest
	candidate
}

// verify fetches what an index names and verifies all of it. An error refuses the whole.
func (s *Source) verify(ctx context.Context, root *trust.Root, envelope []byte) (candidate, error) {
	c := check{s: s, root: root, now: s.clock.Now(), read: map[string][]byte{}}
	var err error
	if c.last, err = s.records.load(root, c.now); err != nil {
		return candidate{}, err
	}
	for _, ignored := range c.last.ignored {
		c.warnings = append(c.warnings, "a record no longer counts: "+ignored.Error())
	}
	if c.index, err = trust.VerifyIndex(root, envelope, c.now); err != nil {
		return candidate{}, err
	}
	if c.last.index != nil {
		if err := advances("index", *c.last.index, c.index, indexPosition); err != nil {
			return candidate{}, err
		}
	}
	if err := c.checkRevocations(ctx); err != nil {
		return candidate{}, err
	}
	if err := c.checkFleet(ctx); err != nil {
		return candidate{}, err
	}
	for _, channel := range slices.Sorted(maps.Keys(c.index.Value().Channels)) {
		release, err := c.checkChannel(ctx, channel)
		if err != nil {
			return candidate{}, fmt.Errorf("channel %s: %w", channel, err)
		}
		c.releases = append(c.releases, release)
	}
	return c.candidate, nil
}

func indexPosition(i api.Index) trust.Position {
	return trust.Position{Sequence: i.Sequence, SignedAt: i.SignedAt}
}

func revocationsPosition(r api.Revocations) trust.Position {
	return trust.Position{Sequence: r.Sequence, SignedAt: r.SignedAt}
}

// advances refuses a next that goes back behind last, or that says something else in its place.
func advances[T any](what string, last, next trust.Verified[T], position func(T) trust.Position) error {
	before, after := position(last.Value()), position(next.Value())
	if err := trust.CheckAdvance(what, before, after); err != nil {
		return err
	}
	if before.Compare(after) == 0 && !bytes.Equal(last.Payload(), next.Payload()) {
		return trust.Refuse(api.CodeRollbackRefused, what, "sequence %d of the same time was accepted before and said something else", after.Sequence)
	}
	return nil
}

func (c *check) checkRevocations(ctx context.Context) error {
	object := c.index.Value().Revocations
	if object == nil {
		if c.last.revocations != nil {
			return trust.Refuse(api.CodeRollbackRefused, "index", "it names no revocations, and there were some")
		}
		return nil
	}
	data, err := c.object(ctx, "revocations", *object, trust.MaxEnvelope(api.MaxRevocations))
	if err != nil {
		return err
	}
	v, err := trust.VerifyRevocations(c.root, data, c.now)
	if err != nil {
		return err
	}
	if c.last.revocations != nil {
		if err := advances("revocations", *c.last.revocations, v, revocationsPosition); err != nil {
			return err
		}
	}
	c.revocations = &v
	return nil
}

func (c *check) checkFleet(ctx context.Context) error {
	data, err := c.object(ctx, "fleet", c.index.Value().Fleet, trust.MaxEnvelope(api.MaxFleet))
	if err != nil {
		return err
	}
	if c.fleet, err = trust.VerifyFleet(c.root, data, c.now); err != nil {
		return err
	}
	declared := c.fleet.Value()
	problems, warnings := fleet.Validate(&declared)
	c.warnings = append(c.warnings, warnings...)
	if len(problems) > 0 {
		return fmt.Errorf("the fleet: %w", fleet.Problems(problems))
	}
	return nil
}

// checkChannel verifies one channel's release with all that it is bound to.
func (c *check) checkChannel(ctx context.Context, channel string) (manifest.Adopted, error) {
	entry := c.index.Value().Channels[channel]
	a := manifest.Adoption{Root: c.root, Channel: channel, Entry: entry, Now: c.now, Last: c.last.manifests[channel]}
	var err error
	for _, part := range []struct {
		what, digest string
		limit        int
		to           *[]byte
	}{
		{"manifest", entry.Manifest, trust.MaxEnvelope(api.MaxManifest), &a.Manifest},
		{"hosts", entry.Hosts, api.MaxHosts, &a.Hosts},
		{"fleet", entry.Fleet, trust.MaxEnvelope(api.MaxFleet), &a.Fleet},
	} {
		if *part.to, err = c.object(ctx, part.what, part.digest, part.limit); err != nil {
			return manifest.Adopted{}, err
		}
	}
	if a.Known, err = c.known(ctx, entry.RolloutID); err != nil {
		return manifest.Adopted{}, err
	}
	adopted, err := manifest.CheckAdoption(a)
	if trust.CodeOf(err) == api.CodeStale && a.Last != nil && bytes.Equal(a.Last.Envelope(), a.Manifest) {
		return c.keepStale(a, err)
	}
	return adopted, err
}

// keepStale lets a release stay that was accepted before and has grown stale since, so that one channel
// that nobody refreshes does not hold up the others. Agents refuse it all the same. Its keys are checked
// as of now (c.last has only what they verify), its bindings as of when it was signed.
func (c *check) keepStale(a manifest.Adoption, stale error) (manifest.Adopted, error) {
	if _, err := trust.VerifyFleet(c.root, a.Fleet, c.now); err != nil {
		return manifest.Adopted{}, err
	}
	a.Now = a.Last.Value().SignedAt
	adopted, err := manifest.CheckAdoption(a)
	if err == nil {
		c.warnings = append(c.warnings, "it stays as it was: "+stale.Error())
	}
	return adopted, err
}

// known returns the payload that was adopted before under a rollout id, nil where there is none.
func (c *check) known(ctx context.Context, id string) ([]byte, error) {
	objects, ok, err := c.s.adopter.Known(ctx, id)
	if err != nil || !ok {
		return nil, err
	}
	envelope, err := c.s.objects.Object(ctx, objects.Manifest)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the manifest that was adopted as %s: %w", id, err)
	}
	// It was verified when it was adopted, perhaps by a key that is not trusted any more.
	e, err := strictjson.Decode[api.Envelope]("manifest of "+id, envelope, trust.MaxEnvelope(api.MaxManifest))
	if err != nil {
		return nil, err
	}
	return trust.DecodeBase64(e.Payload)
}

// object returns the bytes that have a digest: from the store where they are there, else from the
// repository.
func (c *check) object(ctx context.Context, what, digest string, limit int) ([]byte, error) {
	if data, ok := c.read[digest]; ok {
		return data, nil
	}
	data, err := c.s.objects.Object(ctx, digest)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDamaged) {
		data, err = c.s.fetcher.fetch(ctx, objectName(digest), limit)
		if err == nil && trust.Digest(data) != digest {
			err = trust.Refuse(api.CodeIdentityMismatch, what, "the repository's object %s has another digest", digest)
		}
		c.fetched = append(c.fetched, data)
	}
	if err != nil {
		return nil, fmt.Errorf("getting the %s: %w", what, err)
	}
	c.read[digest] = data
	return data, nil
}

// adoption is the candidate as the writer takes it.
func (c candidate) adoption() rollout.Adoption {
	index := c.index.Value()
	a := rollout.Adoption{Sequence: index.Sequence, SignedAt: index.SignedAt, Fleet: c.fleet.Value(), Object: index.Fleet}
	for _, release := range c.releases {
		entry := index.Channels[release.Manifest.Value().Channel]
		a.Releases = append(a.Releases, rollout.NewRelease(release.Manifest, release.Hosts, rollout.Objects{
			Manifest: entry.Manifest, Hosts: entry.Hosts, Fleet: entry.Fleet,
		}))
	}
	return a
}
