package release

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/fleet"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/trust"
)

// How many refs an index remembers: of each channel years of releases, of all so few that it stays
// well under its cap.
const (
	maxReleased    = 1000
	maxReleasedAll = 8000
)

// ErrNoCommit is the error of a release of a fleet that names no commit, with none given beside it.
var ErrNoCommit = errors.New("the fleet names no commit; give the commit that it was built from")

// CreateOptions is what Create makes a release of.
type CreateOptions struct {
	Options
	Fleet     []byte // fleet.json
	FleetName string // what to call it in errors
	Commit    string // instead of the fleet's own
	// Channels are released; all of the fleet's where there are none. Others keep what they have.
	Channels []string
	// Policies name, for a channel, another policy than its own.
	Policies map[string]string
	// CarryMissing takes what the newest released fleet has for hosts that are missing from this one, or
	// whose closure is empty: for a CI that could not build some.
	CarryMissing bool
	// Cache, where set, is the URL of a binary cache that must have every closure that is released.
	Cache string
	HTTP  *http.Client // for Cache; http.DefaultClient where nil
}

// Create releases channels of a fleet. The error is a fleet.Problems where the fleet is not right, wraps
// ErrNoCommit or ErrChanged, or is an *UnsignedError or *CacheError; then nothing was published.
func Create(ctx context.Context, opts CreateOptions) (Report, error) {
	r, p, err := open(opts.Options, true)
	if err != nil {
		return Report{}, err
	}
	defer r.Close()
	at, err := p.signingTime(opts.Now, 0)
	if err != nil {
		return Report{}, err
	}
	f, warnings, err := declared(r, p, opts)
	if err != nil {
		return Report{Warnings: warnings}, err
	}
	c := &creation{opts: opts, published: p, fleet: f, at: at, draft: newDraft(p, at)}
	c.report.Warnings = warnings
	if err := c.build(); err != nil {
		return c.report, err
	}
	if opts.Cache != "" {
		if err := requireCached(ctx, opts.HTTP, opts.Cache, c.closures); err != nil {
			return c.report, err
		}
	}
	return finish(ctx, r, c.draft, opts.Options, c.report)
}

// declared reads the fleet to release, with what is carried over from the newest released one.
func declared(r *Repo, p *published, opts CreateOptions) (*api.Fleet, []string, error) {
	var carried []string
	amend := []func(*api.Fleet){func(f *api.Fleet) {
		if opts.Commit != "" {
			f.Commit = opts.Commit
		}
	}}
	if opts.CarryMissing && p.base != "" && p.index.Fleet != "" {
		last, err := p.fleet(r, opts.Root, p.index.Fleet, opts.Now)
		if err != nil {
			return nil, nil, err
		}
		amend = append(amend, func(f *api.Fleet) { carried = carryMissing(f, last.Value()) })
	}
	f, warnings, err := fleet.Load(opts.FleetName, opts.Fleet, amend...)
	for _, name := range carried {
		warnings = append(warnings, fmt.Sprintf("hosts.%s: is missing; what was released last for it is carried over", name))
	}
	if err == nil && f.Commit == "" {
		err = ErrNoCommit
	}
	return f, warnings, err
}

// carryMissing fills f with what last has for hosts that f lacks, or has no closure for, and returns
// their names. A host whose channel is gone is not carried.
func carryMissing(f *api.Fleet, last api.Fleet) []string {
	carried := []string{}
	for _, name := range sortedKeys(last.Hosts) {
		was := last.Hosts[name]
		host, there := f.Hosts[name]
		_, channelThere := f.Channels[was.Channel]
		switch {
		case there && host.Closure == "":
			host.Closure = was.Closure
			f.Hosts[name] = host
		case !there && channelThere:
			f.Hosts[name] = was
		default:
			continue
		}
		carried = append(carried, name)
	}
	return carried
}

// creation is one run of Create.
type creation struct {
	opts      CreateOptions
	published *published
	fleet     *api.Fleet
	at        time.Time

	draft    *draft
	report   Report
	closures []string // of all released lines
}

func (c *creation) build() error {
	channels, err := c.channels()
	if err != nil {
		return err
	}
	payload, err := c.addFleet()
	if err != nil {
		return err
	}
	c.dropChannels()
	for _, channel := range channels {
		if err := c.release(channel, trust.Digest(payload)); err != nil {
			return err
		}
	}
	for _, channel := range sortedKeys(c.published.manifests) {
		if _, there := c.draft.Index.Channels[channel]; there && !slices.Contains(channels, channel) {
			c.report.Channels = append(c.report.Channels, channelReport(Kept, c.published.manifests[channel].Value()))
		}
	}
	return nil
}

// channels returns the channels to release, and refuses ones that cannot be.
func (c *creation) channels() ([]string, error) {
	channels := slices.Compact(slices.Sorted(slices.Values(c.opts.Channels)))
	if len(channels) == 0 {
		channels = sortedKeys(c.fleet.Channels)
	}
	problems := fleet.Problems{}
	for _, channel := range channels {
		if _, known := c.fleet.Channels[channel]; !known {
			problems = append(problems, fleet.Problem{Field: "channels." + channel, Reason: "is not in the fleet, and cannot be released"})
		}
	}
	for _, channel := range sortedKeys(c.opts.Policies) {
		if !slices.Contains(channels, channel) {
			return nil, fmt.Errorf("a rollout policy was given for channel %s, which is not released", channel)
		}
		problems = append(problems, fleet.CheckPolicy(c.fleet, channel, c.opts.Policies[channel])...)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	for _, channel := range channels {
		current := c.draft.Index.Channels[channel].RolloutID
		if current == manifest.ID(channel, c.fleet.Commit) || slices.Contains(c.draft.Index.Released[channel], c.fleet.Commit) {
			return nil, fmt.Errorf("%s was released in channel %s before; a ref is released once, so make a new commit, also to go back",
				c.fleet.Commit, channel)
		}
	}
	return channels, c.checkDiscarded(channels)
}

// checkDiscarded keeps channels from being cancelled only because what was published is not trusted any
// more: they must be released in the same go.
func (c *creation) checkDiscarded(channels []string) error {
	if len(c.published.discarded) == 0 {
		return nil
	}
	for _, channel := range sortedKeys(c.fleet.Channels) {
		if _, kept := c.draft.Index.Channels[channel]; !kept && !slices.Contains(channels, channel) {
			return fmt.Errorf("channel %s must be released too: what the repository has for it is not trusted any more", channel)
		}
	}
	for _, lost := range c.published.discarded {
		c.report.Warnings = append(c.report.Warnings, lost+" of the repository is not trusted any more, and is discarded")
	}
	return nil
}

// addFleet signs the fleet and makes it the newest one.
func (c *creation) addFleet() ([]byte, error) {
	f := *c.fleet
	f.SignedAt = c.at
	payload, err := json.Marshal(f, json.Deterministic(true), json.OmitZeroStructFields(true))
	if err != nil {
		return nil, fmt.Errorf("encoding the fleet: %w", err)
	}
	if len(payload) > api.MaxFleet {
		return nil, fmt.Errorf("the fleet is %d bytes; at most %d are allowed", len(payload), api.MaxFleet)
	}
	index := &c.draft.Index
	index.Sequence = nextSequence(c.published.index.Sequence, c.opts.Now)
	index.Fleet = fleetFile
	index.FreshnessWindow = shortestFreshness(f)
	return payload, c.draft.add(fleetFile, api.PayloadFleet, payload, c.opts.Signers)
}

// shortestFreshness is the index's window: an index must not outlive a channel's release.
func shortestFreshness(f api.Fleet) api.Duration {
	shortest := api.Duration(72 * time.Hour)
	for i, channel := range sortedKeys(f.Channels) {
		if window := f.Channels[channel].FreshnessWindow; i == 0 || window < shortest {
			shortest = window
		}
	}
	return shortest
}

// dropChannels takes channels that the fleet no longer has out of the index, which cancels them.
func (c *creation) dropChannels() {
	for _, channel := range sortedKeys(c.draft.Index.Channels) {
		if _, there := c.fleet.Channels[channel]; there {
			continue
		}
		delete(c.draft.Index.Channels, channel)
		c.report.Channels = append(c.report.Channels, channelReport(Removed, c.published.manifests[channel].Value()))
		c.report.Warnings = append(c.report.Warnings, "channel "+channel+" is not in the fleet any more; its rollout will be cancelled")
	}
}

func (c *creation) release(channel, fleetDigest string) error {
	m, hosts, err := manifest.Project(manifest.Projection{
		Fleet: c.fleet, FleetDigest: fleetDigest, Channel: channel, Ref: c.fleet.Commit, Policy: c.opts.Policies[channel],
		Sequence:   nextSequence(c.published.manifests[channel].Value().Sequence, c.opts.Now),
		ReleasedAt: c.at, SignedAt: c.at,
	})
	if err != nil {
		return err
	}
	payload, err := json.Marshal(m, json.Deterministic(true))
	if err != nil {
		return fmt.Errorf("encoding the manifest of %s: %w", m.RolloutID, err)
	}
	entry := api.IndexChannel{RolloutID: m.RolloutID, Manifest: channel + manifestSuffix, Hosts: channel + hostsSuffix, Fleet: fleetFile}
	if err := c.draft.add(entry.Manifest, api.PayloadRollout, payload, c.opts.Signers); err != nil {
		return err
	}
	c.draft.files[entry.Hosts] = hosts
	c.draft.Index.Channels[channel] = entry
	c.draft.remember(channel, m.Ref)
	c.noteClosures(channel)
	c.report.Channels = append(c.report.Channels, channelReport(Released, m))
	return nil
}

func (c *creation) noteClosures(channel string) {
	for _, host := range c.fleet.Hosts {
		if host.Channel == channel {
			c.closures = append(c.closures, manifest.ClosureOf(host, c.at))
		}
	}
}

// remember notes that a ref is used up.
func (d *draft) remember(channel, ref string) {
	refs := append(slices.Clone(d.Index.Released[channel]), ref)
	if d.Index.Released == nil {
		d.Index.Released = map[string][]string{}
	}
	most := min(maxReleased, max(1, maxReleasedAll/len(d.Index.Channels)))
	d.Index.Released[channel] = refs[max(0, len(refs)-most):]
}
