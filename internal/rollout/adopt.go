package rollout

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// Adopt takes in a verified index with all that it names. An index that says nothing new makes no
// entries. The error is a *RefusedRelease.
//
// That sequences do not go back is for the caller to have checked (manifest.CheckAdoption): only those
// count that keys trusted now have signed, which this log cannot tell.
func (f *Fleet) Adopt(a Adoption, now time.Time) ([]Entry, error) {
	now = wall(now)
	declared := FleetDeclared{Sequence: a.Sequence, SignedAt: wall(a.SignedAt), Fleet: a.Object, Channels: map[string]string{}}
	clear(f.givenReleases)
	clear(f.givenFleets)
	var adopted []Entry
	for _, r := range a.Releases {
		if _, twice := declared.Channels[r.manifest.Channel]; twice {
			return nil, &RefusedRelease{r.ID(), "the index has its channel twice"}
		}
		declared.Channels[r.manifest.Channel] = r.ID()
		news, err := f.checkRelease(r)
		if err != nil {
			return nil, err
		}
		if news {
			adopted = append(adopted, Entry{RecordedAt: now, RolloutID: r.ID(), Body: adoptedBody(r)})
		}
		if f.rollouts[r.ID()] == nil {
			f.givenReleases[r.ID()] = r
		}
	}
	slices.SortFunc(adopted, byRelease)
	if f.index.Fleet != declared.Fleet || !maps.Equal(f.index.Channels, declared.Channels) ||
		f.index.Sequence != declared.Sequence || !f.index.SignedAt.Equal(declared.SignedAt) {
		f.givenFleets[a.Object] = a.Fleet
		adopted = append(adopted, Entry{RecordedAt: now, Body: declared})
	}
	return adopted, nil
}

// byRelease orders what is adopted at once, which from an empty log is the whole fleet, as it was released.
func byRelease(a, b Entry) int {
	x, y := a.Body.(Adopted), b.Body.(Adopted)
	return cmp.Or(x.ReleasedAt.Compare(y.ReleasedAt), cmp.Compare(x.Sequence, y.Sequence), strings.Compare(a.RolloutID, b.RolloutID))
}

func adoptedBody(r Release) Adopted {
	m := r.manifest
	return Adopted{
		Channel: m.Channel, Ref: m.Ref, Sequence: m.Sequence, ReleasedAt: wall(m.ReleasedAt),
		SignedAt: wall(m.SignedAt), Objects: r.objects,
	}
}

// checkRelease says whether a release is news, or why it must not be adopted.
func (f *Fleet) checkRelease(r Release) (news bool, err error) {
	m := r.manifest
	refuse := func(format string, args ...any) (bool, error) {
		return false, &RefusedRelease{r.ID(), fmt.Sprintf(format, args...)}
	}
	if !r.verified {
		return refuse("it was not verified now")
	}
	if reason := r.mismatch(); reason != "" {
		return refuse("%s", reason)
	}
	newest := f.channels[m.Channel].newest()
	if known := f.rollouts[r.ID()]; known != nil {
		switch {
		case known != newest:
			return refuse("%s is newer; going back is a new release", newest.id)
		case known.adopted.Objects.Manifest == r.objects.Manifest:
			return false, nil
		case !sameButSignedAt(known.manifest, m):
			return refuse("a known release differs in more than signedAt")
		}
		return !m.SignedAt.Before(known.adopted.SignedAt), nil // at the same time, a signature was added
	}
	return true, nil
}

// applyAdopted makes a new rollout, or refreshes one that is known.
func (f *Fleet) applyAdopted(e Entry, b Adopted) error {
	if ro := f.rollouts[e.RolloutID]; ro != nil {
		ro.adopted = b
		ro.manifest.SignedAt = b.SignedAt
		for m := range ro.refusing {
			m.retryAt = time.Time{}
			f.touch(m)
		}
		return nil
	}
	r, err := f.release(e.RolloutID, b.Objects)
	if err != nil {
		return err
	}
	ro := f.newRollout(b, r, e.RecordedAt)
	f.enrol(ro)
	return nil
}

func (f *Fleet) release(id string, o Objects) (Release, error) {
	if r, ok := f.givenReleases[id]; ok && r.objects == o {
		delete(f.givenReleases, id)
		return r, nil
	}
	if f.opts.Loader == nil {
		return Release{}, fmt.Errorf("no loader for release %s", id)
	}
	r, err := f.opts.Loader.Release(id, o)
	switch {
	case err != nil:
		return Release{}, fmt.Errorf("load release %s: %w", id, err)
	case r.ID() != id:
		return Release{}, fmt.Errorf("load release %s: its objects are those of %s", id, r.ID())
	}
	if reason := r.mismatch(); reason != "" {
		return Release{}, fmt.Errorf("load release %s: %s", id, reason)
	}
	return r, nil
}

// applyFleet takes in which host is declared where, and which channels there are.
func (f *Fleet) applyFleet(b FleetDeclared) error {
	if f.index.Fleet != b.Fleet {
		if err := f.declare(b.Fleet); err != nil {
			return err
		}
	}
	delete(f.givenFleets, b.Fleet)
	f.index = b
	for _, ch := range f.channels {
		f.dirtyChannels[ch] = struct{}{}
	}
	return nil
}

func (f *Fleet) declare(object string) error {
	fleet, given := f.givenFleets[object]
	if !given {
		if f.opts.Loader == nil {
			return fmt.Errorf("no loader for fleet %s", object)
		}
		var err error
		if fleet, err = f.opts.Loader.Fleet(object); err != nil {
			return fmt.Errorf("load fleet %s: %w", object, err)
		}
	}
	for name := range fleet.Hosts {
		f.hostOf(name)
	}
	for name, h := range f.hosts {
		d, declared := fleet.Hosts[name]
		if moved := h.declared != declared || h.channel != d.Channel; moved {
			for _, m := range h.members {
				f.touch(m)
			}
		}
		h.declared, h.channel, h.tags = declared, d.Channel, d.Tags
	}
	return nil
}

// elsewhere says why the newest fleet does not have the host in this rollout's channel, or "".
func (m *member) elsewhere(f *Fleet) string {
	switch {
	case f.index.Fleet == "":
		return ""
	case !m.host.declared:
		return "the newest fleet no longer has it"
	case m.host.channel != m.ro.ch.name:
		return "the newest fleet has it on channel " + m.host.channel
	}
	return ""
}

// UseToken records that host shows the enrollment token nonce with a key. The same key again is no
// news; for another the error is a *TokenSpent. A token that is bound to a key need not be recorded.
func (f *Fleet) UseToken(host, nonce, publicKeySHA256 string, expiresAt *time.Time, now time.Time) ([]Entry, error) {
	if t, used := f.tokens[nonce]; used {
		if t.PublicKeySHA256 == publicKeySHA256 && t.Hostname == host {
			return nil, nil
		}
		return nil, &TokenSpent{Nonce: nonce}
	}
	b := TokenUsed{Nonce: nonce, PublicKeySHA256: publicKeySHA256}
	if expiresAt != nil {
		b.ExpiresAt = wall(*expiresAt)
	}
	return []Entry{{RecordedAt: wall(now), Hostname: host, Body: b}}, nil
}

// applyToken keeps a token for as long as it can be shown again, and drops those whose end has come.
func (f *Fleet) applyToken(e Entry, b TokenUsed) {
	maps.DeleteFunc(f.tokens, func(_ string, t token) bool {
		return !t.ExpiresAt.IsZero() && t.ExpiresAt.Before(e.RecordedAt.Add(-tokenGrace))
	})
	f.tokens[b.Nonce] = token{Hostname: e.Hostname, TokenUsed: b}
}

// tokenGrace is more than clocks differ by.
const tokenGrace = 24 * time.Hour

// sameButSignedAt compares two manifests as decoded.
func sameButSignedAt(a, b api.Manifest) bool {
	a.SignedAt, b.SignedAt = time.Time{}, time.Time{}
	return canonical(a) == canonical(b)
}
