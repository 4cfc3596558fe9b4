//go:build !race

package manifest_test

import (
	"runtime"
	"testing"
)

// The race detector allocates beside what it watches, so this runs without it.
func TestADispatchInALargeFleetStaysInItsBudget(t *testing.T) {
	const runs, maxWire, maxAllocated = 50, 8 << 10, 64 << 10
	wire, verify := oneDispatch(t, largeRelease())
	if wire > maxWire {
		t.Errorf("%d bytes over the wire; at most %d are allowed", wire, maxWire)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		if err := verify(); err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / runs; each > maxAllocated {
		t.Errorf("%d bytes allocated a dispatch; at most %d are allowed", each, maxAllocated)
	}
}
