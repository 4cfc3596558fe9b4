package manifest

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/strictjson"
)

var scanned = []string{
	`{"hostname":"a","wave":0,"closure":"c"}`,
	`{"hostname":"a","wave":99,"closure":"c","after":["b","c"],"budgets":[0,12]}`,
	`{"hostname":"a","wave":1,"closure":"c","budgets":[0]}`,
}

func TestCanonicalLinesNeedNoDecoder(t *testing.T) {
	for _, raw := range scanned {
		if _, ok := scanLine([]byte(raw)); !ok {
			t.Errorf("not scanned: %s", raw)
		}
	}
}

func FuzzLine(f *testing.F) {
	for _, raw := range append(scanned,
		`{"hostname":"a","wave":01,"closure":"c"}`, `{"hostname":"\u0061","wave":1,"closure":"c"}`,
		`{"hostname":"a","wave":1,"closure":"c","after":[]}`, `{"hostname":"a","wave":1234567890,"closure":"c"}`,
		`{"hostname":"a","wave":-1,"closure":"c"}`, `{"hostname":"a","wave":1,"closure":"c","budgets":[1],"after":["b"]}`) {
		f.Add([]byte(raw))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		line, ok := scanLine(raw)
		if !ok {
			return
		}
		want, err := strictjson.Decode[api.HostLine]("line", raw, len(raw))
		if err != nil {
			t.Fatalf("scanned what the decoder refuses: %v\n%s", err, raw)
		}
		if diff := cmp.Diff(want, line, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("scanned another line than the decoder reads: %s\n%s", diff, raw)
		}
	})
}
