package hoststate

import (
	"testing"

	"nixfleet.dev/nixfleet/api"
)

// BenchmarkStep takes the steps that a healthy host takes in one rollout.
func BenchmarkStep(b *testing.B) {
	inputs := []Input{
		event(api.DispatchAck), event(api.ActivationStarted), event(api.ActivationCompleted), event(api.ProbesDeclared),
		event(api.ProbeResult), event(api.Converged, minute(90)),
	}
	first := record(api.Pending)
	b.ReportAllocs()
	for b.Loop() {
		r := first
		for _, in := range inputs {
			next, _, err := Step(r, in, at(60))
			if err != nil {
				b.Fatal(err)
			}
			r = next
		}
	}
}
