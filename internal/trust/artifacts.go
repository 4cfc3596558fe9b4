package trust

import (
	"regexp"
	"time"

	"nixfleet.dev/nixfleet/api"
)

var (
	digestPattern   = regexp.MustCompile(`^[0-9a-f]{64}$`)
	noncePattern    = regexp.MustCompile(`^[0-9a-f]{32}$`)
	hostnamePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
)

// VerifyIndex verifies a release repository's index at now: signature, shape, rejectSignedBefore and
// freshness. That it is not below the last one accepted is CheckAdvance's to say.
func VerifyIndex(root *Root, envelope []byte, now time.Time) (Verified[api.Index], error) {
	const what = "index"
	v, err := VerifyStoredIndex(root, envelope, now)
	if err != nil {
		return v, err
	}
	index := v.Value()
	if err := CheckFresh(what, index.SignedAt, index.FreshnessWindow.Std(), now); err != nil {
		return Verified[api.Index]{}, err
	}
	return v, nil
}

// VerifyStoredIndex verifies an index that was accepted before: like VerifyIndex, however old it is by
// now. Only an index that this accepts counts as the highest accepted.
func VerifyStoredIndex(root *Root, envelope []byte, now time.Time) (Verified[api.Index], error) {
	const what = "index"
	v, err := Verify(what, envelope, api.PayloadIndex, api.MaxIndex, root.ReleaseRule(), now, decodeIndex)
	if err != nil {
		return v, err
	}
	if err := CheckNotBefore(root, what, v.Value().SignedAt); err != nil {
		return Verified[api.Index]{}, err
	}
	return v, nil
}

// IndexPosition returns where index stands among the indexes of its repository.
func IndexPosition(index api.Index) Position {
	return Position{Sequence: index.Sequence, SignedAt: index.SignedAt}
}

func decodeIndex(payload []byte) (api.Index, error) {
	const what = "index"
	index, err := DecodePayload(what, payload, api.MaxIndex, func(i api.Index) int { return i.SchemaVersion })
	if err != nil {
		return index, err
	}
	if index.Sequence < 1 {
		return index, Refuse(api.CodeMalformed, what, "sequence is %d", index.Sequence)
	}
	if err := checkObject(what, "fleet", index.Fleet); err != nil {
		return index, err
	}
	if index.Revocations != nil {
		if err := checkObject(what, "revocations", *index.Revocations); err != nil {
			return index, err
		}
	}
	for name, c := range index.Channels {
		if !channelPattern.MatchString(name) {
			return index, Refuse(api.CodeMalformed, what, "channels: %.80q is no channel name", name)
		}
		for _, field := range []struct{ name, object string }{{"manifest", c.Manifest}, {"hosts", c.Hosts}, {"fleet", c.Fleet}} {
			if err := checkObject(what, "channels."+name+"."+field.name, field.object); err != nil {
				return index, err
			}
		}
	}
	return index, nil
}

// checkObject holds what names an object to the form of a digest: it becomes part of a path.
func checkObject(what, field, object string) error {
	if !digestPattern.MatchString(object) {
		return Refuse(api.CodeMalformed, what, "%s is not the SHA-256 of an object", field)
	}
	return nil
}

// VerifyRevocations verifies a revocation list at now: signature, shape, rejectSignedBefore, and that
// it was not signed in the future. It never grows stale; that it does not go back is CheckAdvance's.
func VerifyRevocations(root *Root, envelope []byte, now time.Time) (Verified[api.Revocations], error) {
	const what = "revocations"
	v, err := Verify(what, envelope, api.PayloadRevocations, api.MaxRevocations, root.ReleaseRule(), now, decodeRevocations)
	if err != nil {
		return v, err
	}
	signedAt := v.Value().SignedAt
	if err := CheckNotBefore(root, what, signedAt); err != nil {
		return Verified[api.Revocations]{}, err
	}
	if err := CheckNotFuture(what, signedAt, now); err != nil {
		return Verified[api.Revocations]{}, err
	}
	return v, nil
}

// RevocationsPosition returns where r stands among the revocation lists of its repository.
func RevocationsPosition(r api.Revocations) Position {
	return Position{Sequence: r.Sequence, SignedAt: r.SignedAt}
}

func decodeRevocations(payload []byte) (api.Revocations, error) {
	const what = "revocations"
	r, err := DecodePayload(what, payload, api.MaxRevocations, func(r api.Revocations) int { return r.SchemaVersion })
	if err != nil {
		return r, err
	}
	if r.Sequence < 1 {
		return r, Refuse(api.CodeMalformed, what, "sequence is %d", r.Sequence)
	}
	for i, h := range r.Hosts {
		if !hostnamePattern.MatchString(h.Hostname) {
			return r, Refuse(api.CodeMalformed, what, "hosts.%d.hostname is no host name", i)
		}
	}
	for i, o := range r.Operators {
		if o.Name == "" {
			return r, Refuse(api.CodeMalformed, what, "operators.%d.name is empty", i)
		}
	}
	for i, t := range r.Tokens {
		if !noncePattern.MatchString(t.Nonce) {
			return r, Refuse(api.CodeMalformed, what, "tokens.%d.nonce is not 32 hex characters", i)
		}
	}
	return r, nil
}

// VerifyFleet verifies a fleet's signature and shape at now. What it declares is internal/fleet's to
// judge. A channel keeps the fleet that it was released with, so a fleet has no age.
func VerifyFleet(root *Root, envelope []byte, now time.Time) (Verified[api.Fleet], error) {
	return Verify("fleet", envelope, api.PayloadFleet, api.MaxFleet, root.ReleaseRule(), now, decodeFleet)
}

func decodeFleet(payload []byte) (api.Fleet, error) {
	const what = "fleet"
	f, err := DecodePayload(what, payload, api.MaxFleet, func(f api.Fleet) int { return f.SchemaVersion })
	if err == nil && f.SignedAt.IsZero() {
		err = Refuse(api.CodeMalformed, what, "signedAt is missing")
	}
	return f, err
}

// VerifyToken verifies an enrollment token at now: signature by an enrollment key, shape,
// rejectSignedBefore, and that it has begun and not ended (stale). Whether its nonce was used or
// revoked, and whether the key that is shown with it is the one that it is bound to, is the issuer's
// to check.
func VerifyToken(root *Root, envelope []byte, now time.Time) (Verified[api.EnrollmentToken], error) {
	const what = "enrollment token"
	var none Verified[api.EnrollmentToken]
	v, err := Verify(what, envelope, api.PayloadToken, api.MaxToken, root.EnrollmentRule(), now, decodeToken)
	if err != nil {
		return v, err
	}
	token := v.Value()
	if err := CheckNotBefore(root, what, token.IssuedAt); err != nil {
		return none, err
	}
	if err := CheckNotFuture(what, token.IssuedAt, now); err != nil {
		return none, err
	}
	if token.ExpiresAt != nil && !now.Before(*token.ExpiresAt) {
		return none, Refuse(api.CodeStale, what, "it ended at %s, and now it is %s", stamp(*token.ExpiresAt), stamp(now))
	}
	return v, nil
}

func decodeToken(payload []byte) (api.EnrollmentToken, error) {
	const what = "enrollment token"
	t, err := DecodePayload(what, payload, api.MaxToken, func(t api.EnrollmentToken) int { return t.SchemaVersion })
	switch {
	case err != nil:
		return t, err
	case len(t.Hostname) > api.MaxHostname || !hostnamePattern.MatchString(t.Hostname):
		return t, Refuse(api.CodeMalformed, what, "hostname is no host name")
	case !noncePattern.MatchString(t.Nonce):
		return t, Refuse(api.CodeMalformed, what, "nonce is not 32 hex characters")
	case t.PublicKeySHA256 != "" && !digestPattern.MatchString(t.PublicKeySHA256):
		return t, Refuse(api.CodeMalformed, what, "publicKeySha256 is not a SHA-256")
	case t.PublicKeySHA256 == "" && t.ExpiresAt == nil:
		return t, Refuse(api.CodeMalformed, what, "it is bound to no key and has no end")
	}
	return t, nil
}
