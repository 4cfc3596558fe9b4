package release

import (
	"fmt"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/trust"
)

// published is what a repository holds now, verified but for its age: a repository that CI forgot for a
// month can still be released to.
type published struct {
	base        string // the digest of the index's bytes, "" where there is none
	index       api.Index
	manifests   map[string]trust.Verified[api.Manifest] // by channel
	revocations *trust.Verified[api.Revocations]
	// discarded names what the keys trusted now do not verify, where that was asked for.
	discarded []string
}

// readPublished reads and verifies a repository. With discard, what does not verify is left out instead of
// being an error: the way back after a stolen key was removed from trust.json.
func readPublished(r *Repo, root *trust.Root, now time.Time, discard bool) (*published, error) {
	data, err := r.Index()
	if err != nil {
		return nil, err
	}
	p := &published{base: digestOrNone(data), manifests: map[string]trust.Verified[api.Manifest]{}}
	p.index.Channels = map[string]api.IndexChannel{}
	if data == nil {
		return p, nil
	}
	index, err := trust.VerifyStoredIndex(root, data, now)
	if err != nil && discard {
		p.discarded = append(p.discarded, "the whole index")
		return p, nil
	}
	if err != nil {
		return nil, fmt.Errorf("verifying what %s holds: %w; after a stolen key was taken out of trust.json, release create --discard-untrusted releases anew", r.path, err)
	}
	p.index = index.Value()
	if err := p.readChannels(r, root, now, discard); err != nil {
		return nil, err
	}
	return p, p.readRevocations(r, root, now, discard)
}

func (p *published) readChannels(r *Repo, root *trust.Root, now time.Time, discard bool) error {
	for _, channel := range sortedKeys(p.index.Channels) {
		m, err := readManifest(r, root, p.index.Channels[channel], now)
		if err == nil && m.Value().Channel != channel {
			err = trust.Refuse(api.CodeIdentityMismatch, "index", "channel %s has the manifest of %s", channel, m.Value().RolloutID)
		}
		if err != nil && discard {
			p.discarded = append(p.discarded, "channel "+channel)
			delete(p.index.Channels, channel)
			continue
		}
		if err != nil {
			return fmt.Errorf("verifying channel %s of %s: %w", channel, r.path, err)
		}
		p.manifests[channel] = m
	}
	return nil
}

func readManifest(r *Repo, root *trust.Root, entry api.IndexChannel, now time.Time) (trust.Verified[api.Manifest], error) {
	envelope, err := r.Object(entry.Manifest, trust.MaxEnvelope(api.MaxManifest))
	if err != nil {
		return trust.Verified[api.Manifest]{}, err
	}
	return manifest.VerifyStored(root, entry.RolloutID, envelope, now)
}

func (p *published) readRevocations(r *Repo, root *trust.Root, now time.Time, discard bool) error {
	if p.index.Revocations == nil {
		return nil
	}
	envelope, err := r.Object(*p.index.Revocations, trust.MaxEnvelope(api.MaxRevocations))
	if err != nil {
		return fmt.Errorf("reading the revocations of %s: %w", r.path, err)
	}
	v, err := trust.VerifyRevocations(root, envelope, now)
	if err != nil && discard {
		p.discarded = append(p.discarded, "the revocations")
		p.index.Revocations = nil
		return nil
	}
	if err != nil {
		return fmt.Errorf("verifying the revocations of %s: %w", r.path, err)
	}
	p.revocations = &v
	return nil
}

// fleet reads and verifies one of the repository's fleets.
func (p *published) fleet(r *Repo, root *trust.Root, object string, now time.Time) (trust.Verified[api.Fleet], error) {
	envelope, err := r.Object(object, trust.MaxEnvelope(api.MaxFleet))
	if err != nil {
		return trust.Verified[api.Fleet]{}, fmt.Errorf("reading the fleet of %s: %w", r.path, err)
	}
	v, err := trust.VerifyFleet(root, envelope, now)
	if err != nil {
		return v, fmt.Errorf("verifying the fleet of %s: %w", r.path, err)
	}
	return v, nil
}

// nextSequence is the rule for all sequences: they only rise, and a CI that forgot the last one is most
// likely past it.
func nextSequence(last int64, now time.Time) int64 { return max(last+1, now.Unix()) }

// signingTime returns the time to sign at: now, in whole seconds, and not before anything that is
// published. A clock that is behind what is published makes releases that nobody would accept.
func (p *published) signingTime(now time.Time, after time.Duration) (time.Time, error) {
	at := now.UTC().Truncate(time.Second)
	last := p.index.SignedAt
	for _, m := range p.manifests {
		if signed := m.Value().SignedAt; signed.After(last) {
			last = signed
		}
	}
	if last.IsZero() || !last.Add(after).After(at) {
		return at, nil
	}
	at = last.Add(after)
	if err := trust.CheckNotFuture("the published release", at, now); err != nil {
		return time.Time{}, fmt.Errorf("this machine's clock is behind: %w", err)
	}
	return at, nil
}
