package release

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/strictjson"
	"nixfleet.dev/nixfleet/internal/trust"
)

// RefreshOptions says what Refresh signs again.
type RefreshOptions struct {
	Options
	Channels []string // all where there are none
}

// Refresh signs what is published again, so that it stays fresh: nothing of it changes but signedAt and
// the signatures. Fleets, which have no age, get new signatures only where one of the signers' is not on
// them, as when keys are rotated.
func Refresh(ctx context.Context, opts RefreshOptions) (Report, error) {
	r, p, err := open(opts.Options, false)
	if err != nil {
		return Report{}, err
	}
	defer r.Close()
	if p.base == "" {
		return Report{}, fmt.Errorf("%s holds no release to refresh", r.path)
	}
	if len(p.discarded) > 0 {
		return Report{}, errors.New("what is not trusted any more cannot be refreshed, only released anew")
	}
	// Were it signed at the same second as before, a reader could not tell which one is newer.
	at, err := p.signingTime(opts.Now, time.Second)
	if err != nil {
		return Report{}, err
	}
	f := &refresh{opts: opts, repo: r, published: p, at: at, draft: newDraft(p, at)}
	if err := f.build(); err != nil {
		return f.report, err
	}
	return finish(ctx, r, f.draft, opts.Options, f.report)
}

// refresh is one run of Refresh.
type refresh struct {
	opts      RefreshOptions
	repo      *Repo
	published *published
	at        time.Time
	draft     *draft
	report    Report
}

func (f *refresh) build() error {
	for _, channel := range f.opts.Channels {
		if _, there := f.draft.Index.Channels[channel]; !there {
			return fmt.Errorf("channel %s is not in %s", channel, f.repo.path)
		}
	}
	for _, channel := range sortedKeys(f.draft.Index.Channels) {
		if len(f.opts.Channels) > 0 && !slices.Contains(f.opts.Channels, channel) {
			f.report.Channels = append(f.report.Channels, channelReport(Kept, f.published.manifests[channel].Value()))
			continue
		}
		if err := f.channel(channel); err != nil {
			return err
		}
	}
	name, err := f.fleet(f.draft.Index.Fleet)
	if err != nil {
		return err
	}
	f.draft.Index.Fleet = name
	return f.revocations()
}

func (f *refresh) channel(channel string) error {
	old := f.published.manifests[channel]
	payload, err := resigned(old.Payload(), f.at)
	if err != nil {
		return fmt.Errorf("refreshing the manifest of %s: %w", old.Value().RolloutID, err)
	}
	entry := f.draft.Index.Channels[channel]
	entry.Manifest = channel + manifestSuffix
	if err := f.draft.add(entry.Manifest, api.PayloadRollout, payload, f.opts.Signers); err != nil {
		return err
	}
	if entry.Fleet, err = f.fleet(entry.Fleet); err != nil {
		return err
	}
	f.draft.Index.Channels[channel] = entry
	report := old.Value()
	report.SignedAt = f.at
	f.report.Channels = append(f.report.Channels, channelReport(Refreshed, report))
	return nil
}

// fleet returns what the index is to name for a fleet: the same object, or a file with the same payload
// and newer signatures.
func (f *refresh) fleet(object string) (string, error) {
	v, err := f.published.fleet(f.repo, f.opts.Root, object, f.opts.Now)
	if err != nil {
		return "", err
	}
	if signedBy(v.Envelope(), f.opts.Signers) {
		return object, nil
	}
	name := "fleet-" + v.PayloadSHA256()[:16] + envelopeSuffix
	return name, f.draft.add(name, api.PayloadFleet, v.Payload(), f.opts.Signers)
}

func (f *refresh) revocations() error {
	old := f.published.revocations
	if old == nil {
		return nil
	}
	payload, err := resigned(old.Payload(), f.at)
	if err != nil {
		return fmt.Errorf("refreshing the revocations: %w", err)
	}
	name := revocationsFile
	f.draft.Index.Revocations = &name
	return f.draft.add(name, api.PayloadRevocations, payload, f.opts.Signers)
}

// signedBy says whether an envelope has a signature that says it is by each signer. What it is for costs
// nothing but a needless signature when that is a lie, and readers verify.
func signedBy(envelope []byte, signers []trust.Signer) bool {
	e, err := strictjson.Decode[api.Envelope]("envelope", envelope, len(envelope))
	if err != nil {
		return false
	}
	return !slices.ContainsFunc(signers, func(signer trust.Signer) bool {
		return !slices.ContainsFunc(e.Signatures, func(s api.Signature) bool { return s.KeyID == signer.KeyID() })
	})
}

// resigned returns a payload with another signedAt and every other byte as it was, so that fields which
// this version does not know are refreshed too.
func resigned(payload []byte, at time.Time) ([]byte, error) {
	dec := jsontext.NewDecoder(bytes.NewReader(payload))
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	for dec.PeekKind() == '"' {
		key, err := dec.ReadToken()
		if err != nil {
			return nil, err
		}
		found := key.String() == "signedAt"
		value, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		if !found {
			continue
		}
		end := int(dec.InputOffset())
		out := append([]byte{}, payload[:end-len(value)]...)
		out = append(out, `"`+at.UTC().Format(time.RFC3339)+`"`...)
		return append(out, payload[end:]...), nil
	}
	return nil, errors.New("signedAt is missing")
}

// PayloadOf returns the payload of an envelope without verifying anything, for what must be known before
// it can be: which rollout a manifest claims to be of.
func PayloadOf(envelope []byte) ([]byte, error) {
	e, err := strictjson.Decode[api.Envelope]("envelope", envelope, trust.MaxEnvelope(api.MaxFleet))
	if err != nil {
		return nil, err
	}
	payload, err := base64.StdEncoding.DecodeString(e.Payload)
	if err != nil {
		return nil, fmt.Errorf("envelope: payload: %w", err)
	}
	return payload, nil
}

// claimedID returns the rollout id that a manifest's envelope claims, unverified.
func claimedID(envelope []byte) (string, error) {
	payload, err := PayloadOf(envelope)
	if err != nil {
		return "", err
	}
	claim, err := strictjson.Decode[struct {
		RolloutID string `json:"rolloutId"`
	}]("manifest", payload, api.MaxManifest)
	if err != nil {
		return "", err
	}
	_, _, err = manifest.ParseID(claim.RolloutID)
	return claim.RolloutID, err
}
