package trust

import (
	"time"

	"nixfleet.dev/nixfleet/api"
)

// ClockTolerance is how far in the future something may have been signed.
const ClockTolerance = 60 * time.Second

// CheckNotBefore refuses as stale what was signed before root's rejectSignedBefore: like what has
// aged out, it is of use again once CI has signed it afresh.
func CheckNotBefore(root *Root, what string, signedAt time.Time) error {
	if limit := root.RejectSignedBefore(); signedAt.Before(limit) {
		return Refuse(api.CodeStale, what, "signed at %s; nothing signed before %s is accepted", stamp(signedAt), stamp(limit))
	}
	return nil
}

// CheckFresh refuses what was signed more than ClockTolerance after now (signed-in-future), or more
// than window before it (stale).
func CheckFresh(what string, signedAt time.Time, window time.Duration, now time.Time) error {
	if err := CheckNotFuture(what, signedAt, now); err != nil {
		return err
	}
	if signedAt.Add(window).Before(now) {
		return Refuse(api.CodeStale, what, "signed at %s, fresh until %s, and now it is %s", stamp(signedAt), stamp(signedAt.Add(window)), stamp(now))
	}
	return nil
}

// CheckNotFuture is the first half of CheckFresh, for what never grows stale.
func CheckNotFuture(what string, signedAt, now time.Time) error {
	if signedAt.After(now.Add(ClockTolerance)) {
		return Refuse(api.CodeSignedInFuture, what, "signed at %s, and now it is %s", stamp(signedAt), stamp(now))
	}
	return nil
}

// Position orders the versions of an artifact: by sequence, then by when it was signed.
type Position struct {
	Sequence int64
	SignedAt time.Time
}

// Compare returns -1, 0 or 1: whether p is before q, equal to it or after it.
func (p Position) Compare(q Position) int {
	switch {
	case p.Sequence < q.Sequence:
		return -1
	case p.Sequence > q.Sequence:
		return 1
	}
	return p.SignedAt.Compare(q.SignedAt)
}

// CheckAdvance refuses, as rollback-refused, a next that is below last; an equal one is accepted.
func CheckAdvance(what string, last, next Position) error {
	if next.Compare(last) >= 0 {
		return nil
	}
	return Refuse(api.CodeRollbackRefused, what, "sequence %d of %s is older than sequence %d of %s, accepted before",
		next.Sequence, stamp(next.SignedAt), last.Sequence, stamp(last.SignedAt))
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
