package writer

import (
	"context"
	"fmt"
	"log/slog"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/controlplane/store"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/rollout"
	"nixfleet.dev/nixfleet/internal/strictjson"
	"nixfleet.dev/nixfleet/internal/trust"
)

// folded is a fleet as it was read from the disk.
type folded struct {
	fleet    *rollout.Fleet
	snapshot int64 // place of the snapshot that it came from, 0 for none
	size     int64 // of that snapshot, in bytes
	tail     int64 // bytes of the entries after it
}

// fold reads the fleet: the newest snapshot that is good, and the entries after it. A snapshot that
// cannot be used costs time, not data.
func fold(ctx context.Context, s store.Store, options rollout.Options, log *slog.Logger) (folded, error) {
	f, err := restore(ctx, s, options, log)
	if err != nil {
		return f, err
	}
	for e, err := range s.Entries(ctx, f.fleet.LogSeq()) {
		if err != nil {
			return f, err
		}
		entry, err := decode(e)
		if err == nil {
			err = f.fleet.Apply(entry)
		}
		if err != nil {
			return f, fmt.Errorf("entry %d (%s): %w", e.Seq, e.Kind, err)
		}
		f.tail += sizeOf(e)
	}
	return f, nil
}

// restore reads the newest good snapshot, or starts with nothing.
func restore(ctx context.Context, s store.Store, options rollout.Options, log *slog.Logger) (folded, error) {
	last, err := s.LastSeq(ctx)
	if err != nil {
		return folded{}, err
	}
	seqs, err := s.Snapshots(ctx)
	if err != nil {
		return folded{}, err
	}
	for _, seq := range seqs {
		fleet, size, err := restoreOne(ctx, s, options, seq, last)
		if err == nil {
			return folded{fleet: fleet, snapshot: seq, size: size}, nil
		}
		if ctx.Err() != nil {
			return folded{}, context.Cause(ctx)
		}
		log.Warn("a snapshot of the log cannot be used; reading more of the log instead", "snapshot", seq, "err", err)
	}
	return folded{fleet: rollout.New(options)}, nil
}

// restoreOne reads the snapshot of entry seq of a log that ends at last.
func restoreOne(ctx context.Context, s store.Store, options rollout.Options, seq, last int64) (*rollout.Fleet, int64, error) {
	if seq > last {
		return nil, 0, fmt.Errorf("the log ends at entry %d: %w", last, store.ErrDamaged)
	}
	snap, err := s.Snapshot(ctx, seq)
	if err != nil {
		return nil, 0, err
	}
	fleet, err := rollout.Restore(options, snap.Data)
	if err == nil && fleet.LogSeq() != seq {
		err = fmt.Errorf("it is of entry %d: %w", fleet.LogSeq(), store.ErrDamaged)
	}
	return fleet, int64(len(snap.Data)), err
}

// loader finds the artifacts that entries name, which were verified before they were recorded.
type loader struct{ store store.Store }

// Release implements rollout.Loader.
func (l loader) Release(rolloutID string, objects rollout.Objects) (rollout.Release, error) {
	none := rollout.Release{}
	m, err := payload[api.Manifest](l.store, "manifest of "+rolloutID, objects.Manifest, api.MaxManifest)
	if err != nil {
		return none, err
	}
	data, err := l.store.Object(context.Background(), objects.Hosts)
	if err != nil {
		return none, fmt.Errorf("hosts of %s: %w", rolloutID, err)
	}
	hosts, err := manifest.ParseHosts(data, len(m.Policy.Waves), len(m.DisruptionBudgets))
	if err != nil {
		return none, fmt.Errorf("hosts of %s: %w", rolloutID, err)
	}
	return rollout.StoredRelease(m, hosts, objects), nil
}

// Fleet implements rollout.Loader.
func (l loader) Fleet(object string) (api.Fleet, error) {
	return payload[api.Fleet](l.store, "fleet", object, api.MaxFleet)
}

// payload reads what an envelope in the store holds, without verifying it again: keys may have been
// removed since it was adopted, and the log must fold all the same.
func payload[T any](s store.Store, what, object string, limit int) (T, error) {
	var none T
	data, err := s.Object(context.Background(), object)
	if err != nil {
		return none, fmt.Errorf("%s: %w", what, err)
	}
	envelope, err := strictjson.Decode[api.Envelope](what, data, trust.MaxEnvelope(limit))
	if err != nil {
		return none, err
	}
	text, err := trust.DecodeBase64(envelope.Payload)
	if err != nil {
		return none, fmt.Errorf("%s: payload %w", what, err)
	}
	return strictjson.Decode[T](what, text, limit)
}
