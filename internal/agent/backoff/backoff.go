// Package backoff says how long an agent's worker waits after an error: from a floor on, growing, with
// jitter, so that a fleet that lost its control plane at one moment does not come back at one moment.
package backoff

import (
	"math/rand/v2"
	"time"
)

// Max is the longest wait that a Backoff grows to.
const Max = 5 * time.Minute

// Backoff counts failures in a row. It is for one goroutine.
type Backoff struct {
	// Floor is the least wait. It may be over Max, and is then every wait.
	Floor time.Duration
	// Random returns a number in [0, 1); nil is math/rand/v2's.
	Random func() float64

	failures int
}

// Next counts a failure and returns how long to wait: at least the floor and at least atLeast, with
// full jitter up to twice the floor, which doubles with each failure, to at most Max.
func (b *Backoff) Next(atLeast time.Duration) time.Duration {
	ceiling := b.Floor
	for range b.failures + 1 {
		if ceiling >= Max {
			break
		}
		ceiling *= 2
	}
	b.failures++
	least := max(b.Floor, atLeast)
	spread := max(min(ceiling, Max)-least, least/4)
	wait := least + time.Duration(b.random()*float64(spread))
	return max(min(wait, Max), least)
}

// Reset forgets the failures: something went well.
func (b *Backoff) Reset() { b.failures = 0 }

func (b *Backoff) random() float64 {
	if b.Random != nil {
		return b.Random()
	}
	return rand.Float64()
}
