// Package accept decides for one host which manifests it accepts, and remembers the highest of each
// channel and the channel that it is on (design/artifacts.md, "An agent accepts a manifest when";
// security.md, "rollback", "fast forward", "channel confusion").
//
// The rules are internal/manifest's; this package has the record, accepted.json in the state folder,
// which is on disk before anybody acts on what it lets pass. It fetches nothing and dispatches nothing.
// Its callers are longpoll, for every dispatch, and heartbeat, for what the channel is at.
package accept

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/durable"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/strictjson"
	"nixfleet.dev/nixfleet/internal/trust"
)

const (
	fileName = "accepted.json"
	maxFile  = 64 << 20
)

// record is accepted.json.
type record struct {
	SchemaVersion int `json:"schemaVersion"`
	// Channel is the one whose dispatch this host acted on last, "" before the first.
	Channel string `json:"channel" strict:"optional"`
	// Accepted holds the highest accepted manifest of each channel: the envelope itself, so that it
	// counts only while the keys trusted now verify it.
	Accepted map[string]accepted `json:"accepted"`
}

type accepted struct {
	RolloutID string `json:"rolloutId"`
	Envelope  []byte `json:"envelope"`
}

// Options configure a Keeper.
type Options struct {
	Dir      *os.Root           // the agent's state folder
	Root     func() *trust.Root // trust.json as it is now
	Hostname string
	Channels []string // the only channels this host may follow; empty allows all
	Clock    clock.Clock
	Logger   *slog.Logger
}

// Keeper accepts manifests for one host. It may be used concurrently.
type Keeper struct {
	o  Options
	mu sync.Mutex
	r  record
}

// Open reads the record. One that cannot be read is set aside, loudly: what it protected from is then
// only bounded by the freshness window until the next manifest is accepted.
func Open(o Options) (*Keeper, error) {
	k := &Keeper{o: o, r: record{SchemaVersion: api.SchemaVersion, Accepted: map[string]accepted{}}}
	data, err := durable.ReadFile(o.Dir, fileName, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	var r record
	if err == nil {
		r, err = strictjson.Decode[record](fileName, data, maxFile)
	}
	if err == nil && r.SchemaVersion != api.SchemaVersion {
		err = fmt.Errorf("%s: schemaVersion %d is not known", fileName, r.SchemaVersion)
	}
	if err == nil {
		k.r = r
		return k, nil
	}
	aside := fileName + ".corrupt"
	o.Logger.Error("the record of accepted manifests cannot be read; it is set aside and a new one begun", "file", aside, "err", err)
	if err := o.Dir.Rename(fileName, aside); err != nil {
		return nil, fmt.Errorf("set %s aside: %w", fileName, err)
	}
	return k, durable.SyncDir(o.Dir, ".")
}

// Channel returns the channel that this host is on, "" where it has not been on one.
func (k *Keeper) Channel() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.r.Channel
}

// Follow records that this host acts on a dispatch of channel. It is durable on return.
func (k *Keeper) Follow(channel string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.r.Channel == channel {
		return nil
	}
	next := k.r
	next.Channel = channel
	return k.save(next)
}

// Highest returns the highest manifest of a channel that was accepted and that the keys trusted now
// still verify, nil where there is none.
func (k *Keeper) Highest(channel string) *trust.Verified[api.Manifest] {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.highest(k.o.Root(), channel, k.o.Clock.Now())
}

// Accept verifies a rollout's manifest and this host's line now, by all of the rules, and records it
// where it is higher than what was accepted before. A refusal is a *trust.Error; another error means
// that the record could not be written, and nothing may be acted on.
func (k *Keeper) Accept(rolloutID string, envelope []byte, proof api.HostProof) (manifest.Accepted, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	channel, _, err := manifest.ParseID(rolloutID)
	if err != nil {
		return manifest.Accepted{}, err
	}
	now, root := k.o.Clock.Now(), k.o.Root()
	records, latest := k.records(root, now)
	a := manifest.Acceptance{
		Root: root, RolloutID: rolloutID, Hostname: k.o.Hostname, Now: now, Envelope: envelope, Proof: proof,
		Last: records[channel], PreviousChannel: k.r.Channel, LatestSignedAt: latest, AllowedChannels: k.o.Channels,
	}
	if k.r.Channel != channel {
		a.PreviousLast = records[k.r.Channel]
	}
	ok, err := manifest.Accept(a)
	if err != nil {
		return manifest.Accepted{}, err
	}
	if a.Last == nil || manifest.PositionOf(ok.Manifest.Value()).Compare(manifest.PositionOf(a.Last.Value())) > 0 {
		err = k.remember(channel, accepted{RolloutID: rolloutID, Envelope: envelope})
	}
	return ok, err
}

// highest is Highest with the lock held.
func (k *Keeper) highest(root *trust.Root, channel string, now time.Time) *trust.Verified[api.Manifest] {
	a, ok := k.r.Accepted[channel]
	if !ok {
		return nil
	}
	v, err := manifest.VerifyStored(root, a.RolloutID, a.Envelope, now)
	if err != nil {
		k.o.Logger.Warn("the highest manifest accepted before no longer verifies; it does not count", "channel", channel, "rollout", a.RolloutID, "err", err)
		return nil
	}
	return &v
}

// records returns the highest manifest of every channel, and the time before which it cannot be now:
// the latest at which one of them was signed.
func (k *Keeper) records(root *trust.Root, now time.Time) (map[string]*trust.Verified[api.Manifest], time.Time) {
	records := make(map[string]*trust.Verified[api.Manifest], len(k.r.Accepted))
	var latest time.Time
	for channel := range k.r.Accepted {
		v := k.highest(root, channel, now)
		if v == nil {
			continue
		}
		records[channel] = v
		if v.Value().SignedAt.After(latest) {
			latest = v.Value().SignedAt
		}
	}
	return records, latest
}

func (k *Keeper) remember(channel string, a accepted) error {
	next := k.r
	next.Accepted = map[string]accepted{channel: a}
	for name, other := range k.r.Accepted {
		if name != channel {
			next.Accepted[name] = other
		}
	}
	return k.save(next)
}

// save makes next the record, on disk first.
func (k *Keeper) save(next record) error {
	data, err := json.Marshal(next)
	if err == nil {
		err = durable.WriteFile(k.o.Dir, fileName, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("record what was accepted: %w", err)
	}
	k.r = next
	return nil
}
