package api

import (
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
)

func TestEventHasTheFieldsOfItsKind(t *testing.T) {
	at := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	for kind := range eventFields {
		in := Event{Seq: 3, Kind: kind, At: at}
		data, err := json.Marshal(in)
		if err != nil {
			t.Fatal(kind, err)
		}
		var out Event
		if err := json.Unmarshal(data, &out); err != nil {
			t.Fatalf("%s: %v\n%s", kind, err, data)
		}
		if out.Seq != 3 || out.Kind != kind || !out.At.Equal(at) {
			t.Errorf("%s came back as %+v", kind, out)
		}
	}
}

func TestEventGolden(t *testing.T) {
	e := Event{Seq: 4, Kind: ActivationFailed, At: time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC),
		Phase: PhaseRealise, ExitCode: 1, Reason: CodeRealiseFailed, StderrTail: "no such path"}
	const want = `{"seq":4,"kind":"ActivationFailed","at":"2026-11-23T08:00:00Z","phase":"realise","changed":false,` +
		`"exitCode":1,"reason":"realise-failed","stderrTail":"no such path"}`
	got, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestEventRefusesAMissingField(t *testing.T) {
	var e Event
	err := json.Unmarshal([]byte(`{"seq":1,"kind":"ActivationFailed","at":"2026-11-23T08:00:00Z","phase":"switch","reason":"timeout"}`), &e)
	if err == nil {
		t.Error("an ActivationFailed without changed was read")
	}
}

func TestEventOfAnUnknownKindKeepsItsNumber(t *testing.T) {
	var e Event
	if err := json.Unmarshal([]byte(`{"seq":7,"kind":"Sang","at":"2026-11-23T08:00:00Z","song":"x"}`), &e); err != nil || e.Seq != 7 {
		t.Errorf("got %+v, %v", e, err)
	}
}

func TestLoggedEventInlinesItsFields(t *testing.T) {
	got, err := json.Marshal(LoggedEvent{LogSeq: 9, Kind: "Converged", Fields: jsontext.Value(`{"seq":2}`)})
	if err != nil {
		t.Fatal(err)
	}
	var back map[string]any
	if err := json.Unmarshal(got, &back); err != nil || back["seq"] != 2.0 {
		t.Errorf("%s: %v", got, err)
	}
}

func TestDurationIsShort(t *testing.T) {
	for d, want := range map[time.Duration]string{24 * time.Hour: "24h", 90 * time.Second: "1m30s", 30 * time.Minute: "30m", 0: "0s", 3600*time.Second + time.Second: "1h0m1s"} {
		if got := Duration(d).String(); got != want {
			t.Errorf("%v is written %q, want %q", d, got, want)
		}
	}
}
