package integration

import (
	"testing"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
)

// seqOf returns the number of an event that a host reported; entries that the control plane made
// itself have none.
func seqOf(t *testing.T, e api.LoggedEvent) (int64, bool) {
	t.Helper()
	var fields struct {
		Seq int64 `json:"seq"`
	}
	if len(e.Fields) > 0 {
		if err := json.Unmarshal(e.Fields, &fields); err != nil {
			t.Fatalf("entry %d: %v", e.LogSeq, err)
		}
	}
	return fields.Seq, fields.Seq > 0
}
