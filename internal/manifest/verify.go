package manifest

import (
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/trust"
)

// Verify verifies the manifest of the rollout that was asked for by id, at now, in the order of
// design/artifacts.md: cap, signatures by the rule of the id's channel, shape, rejectSignedBefore,
// future, freshness, id. What was accepted before is not looked at: Accept and CheckAdoption do that.
func Verify(root *trust.Root, id string, envelope []byte, now time.Time) (trust.Verified[api.Manifest], error) {
	return verify(root, id, envelope, now, true)
}

// VerifyStored verifies a manifest that was accepted before and is kept as the record of the highest
// one: like Verify, but it may be of any age by now. A record counts only while this accepts it; what
// a stolen key had pushed ahead stops counting when that key is removed.
func VerifyStored(root *trust.Root, id string, envelope []byte, now time.Time) (trust.Verified[api.Manifest], error) {
	return verify(root, id, envelope, now, false)
}

func verify(root *trust.Root, id string, envelope []byte, now time.Time, fresh bool) (trust.Verified[api.Manifest], error) {
	var none trust.Verified[api.Manifest]
	channel, _, err := ParseID(id)
	if err != nil {
		return none, err
	}
	what := "manifest of " + id
	v, err := trust.Verify(what, envelope, api.PayloadRollout, api.MaxManifest, root.ChannelRule(channel), now,
		func(payload []byte) (api.Manifest, error) { return decode(what, payload) })
	if err != nil {
		return none, err
	}
	m := v.Value()
	if err := trust.CheckNotBefore(root, what, m.SignedAt); err != nil {
		return none, err
	}
	if fresh {
		if err := trust.CheckFresh(what, m.SignedAt, m.FreshnessWindow.Std(), now); err != nil {
			return none, err
		}
	}
	if m.RolloutID != id {
		return none, trust.Refuse(api.CodeIdentityMismatch, what, "it is the manifest of %s", m.RolloutID)
	}
	return v, nil
}

// PositionOf returns where m stands among the manifests of its channel.
func PositionOf(m api.Manifest) trust.Position {
	return trust.Position{Sequence: m.Sequence, SignedAt: m.SignedAt}
}

// checkAdvance refuses an m that is below the highest manifest accepted for its channel, or that has
// its sequence with other hosts.
func checkAdvance(what string, last trust.Verified[api.Manifest], m api.Manifest) error {
	highest := last.Value()
	if err := trust.CheckAdvance(what, PositionOf(highest), PositionOf(m)); err != nil {
		return err
	}
	if m.Sequence == highest.Sequence && m.HostSet.MerkleRoot != highest.HostSet.MerkleRoot {
		return trust.Refuse(api.CodeRollbackRefused, what, "sequence %d was accepted before with another merkleRoot", m.Sequence)
	}
	return nil
}

func decode(what string, payload []byte) (api.Manifest, error) {
	m, err := trust.DecodePayload(what, payload, api.MaxManifest, func(m api.Manifest) int { return m.SchemaVersion })
	if err != nil {
		return m, err
	}
	return m, Validate(what, m)
}
