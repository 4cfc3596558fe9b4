package trust

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// Rule is who must have signed: so many different ones of these keys. The zero Rule is met by nothing.
type Rule struct {
	name      string // "the release keys", for errors
	threshold int
	keys      []trustedKey
}

type trustedKey struct {
	name     string
	public   PublicKey
	retireAt time.Time // zero: never
}

// Threshold returns how many different keys must have signed.
func (r Rule) Threshold() int { return r.threshold }

// Has says whether the key with that id is one of the rule's, retired or not.
func (r Rule) Has(keyID string) bool {
	return slices.ContainsFunc(r.keys, func(k trustedKey) bool { return k.public.ID() == keyID })
}

// Verified is a value whose signature was checked by Verify; nothing else makes one. Its bytes must
// not be changed. The zero Verified holds the zero T and no bytes.
type Verified[T any] struct {
	value    T
	payload  []byte
	envelope []byte
}

// Value returns what was parsed from the payload.
func (v Verified[T]) Value() T { return v.value }

// Payload returns the exact bytes that were signed.
func (v Verified[T]) Payload() []byte { return v.payload }

// Envelope returns the envelope as it was given to Verify.
func (v Verified[T]) Envelope() []byte { return v.envelope }

// PayloadSHA256 returns the digest of the payload, lower-case hex, computed at each call.
func (v Verified[T]) PayloadSHA256() string { return Digest(v.payload) }

// EnvelopeSHA256 returns the digest of the envelope, lower-case hex, computed at each call. It is the
// name of the envelope's object in a release repository.
func (v Verified[T]) EnvelopeSHA256() string { return Digest(v.envelope) }

// Digest returns the SHA-256 of data in lower-case hex.
func Digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// Verify checks, in this order, that envelope is under its cap (limit is the payload's), is a DSSE
// envelope, has payload type t, and is signed at now as rule asks; only then does it call decode on the
// bytes that were signed. what names the envelope in errors. An error of decode that is no *Error
// becomes one with code malformed.
func Verify[T any](what string, envelope []byte, t api.PayloadType, limit int, rule Rule, now time.Time, decode func(payload []byte) (T, error)) (Verified[T], error) {
	var none Verified[T]
	payload, err := open(what, envelope, t, limit, rule, now)
	if err != nil {
		return none, err
	}
	value, err := decode(payload)
	if err != nil {
		if CodeOf(err) == "" {
			err = Malformed(err)
		}
		return none, err
	}
	return Verified[T]{value: value, payload: payload, envelope: envelope}, nil
}

// Satisfies checks that the envelope of v is signed as rule asks at now too.
func Satisfies[T any](what string, v Verified[T], t api.PayloadType, limit int, rule Rule, now time.Time) error {
	_, err := open(what, v.envelope, t, limit, rule, now)
	return err
}

// open returns the payload of an envelope that is signed as rule asks.
func open(what string, envelope []byte, t api.PayloadType, limit int, rule Rule, now time.Time) ([]byte, error) {
	e, payload, err := parseEnvelope(what, envelope, limit)
	if err != nil {
		return nil, err
	}
	if e.PayloadType != t {
		return nil, Refuse(api.CodeSignatureInvalid, what, "the envelope's payload type is %.80q, not %q", string(e.PayloadType), string(t))
	}
	if err := rule.check(what, PAE(t, payload), e.Signatures, now); err != nil {
		return nil, err
	}
	return payload, nil
}

// check counts the different keys of r that signed message and are not retired at now.
func (r Rule) check(what string, message []byte, signatures []api.Signature, now time.Time) error {
	signed := make([]bool, len(r.keys))
	valid, retired := 0, 0
	for _, s := range signatures {
		sig, err := DecodeBase64(s.Sig)
		if err != nil {
			continue
		}
		i := r.signer(message, sig, s.KeyID, signed)
		if i < 0 {
			continue
		}
		signed[i] = true
		if r.keys[i].retiredAt(now) {
			retired++
			continue
		}
		valid++
		if valid >= r.threshold && r.threshold > 0 {
			return nil
		}
	}
	if retired > 0 {
		return Refuse(api.CodeSignatureInvalid, what, "signed by %d of %s, by %d that are retired; %d are needed", valid, r.name, retired, r.threshold)
	}
	return Refuse(api.CodeSignatureInvalid, what, "signed by %d of %s; %d are needed", valid, r.name, r.threshold)
}

// signer returns the index of the key that made sig and has not signed yet, or -1. The key that hint
// names is tried first; hint decides nothing else.
func (r Rule) signer(message, sig []byte, hint string, signed []bool) int {
	hinted := slices.IndexFunc(r.keys, func(k trustedKey) bool { return k.public.ID() == hint })
	if hinted >= 0 && !signed[hinted] && r.keys[hinted].public.Verify(message, sig) {
		return hinted
	}
	for i, k := range r.keys {
		if i != hinted && !signed[i] && k.public.Verify(message, sig) {
			return i
		}
	}
	return -1
}

func (k trustedKey) retiredAt(now time.Time) bool {
	return !k.retireAt.IsZero() && !now.Before(k.retireAt)
}
