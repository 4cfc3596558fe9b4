package rollout

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/api"
)

// oneOfEach is an entry of each kind with every field set.
func oneOfEach() []Entry {
	at := start.Add(1500 * time.Millisecond)
	bodies := []Body{
		FleetDeclared{Sequence: 1, SignedAt: at, Fleet: "f", Channels: map[string]string{"stable": rid}},
		Adopted{Channel: "stable", Ref: "aaaaaaa", Sequence: 2, ReleasedAt: at, SignedAt: at, Objects: Objects{"m", "h", "f"}},
		HostEvent{JournalID: "j", Event: api.Event{Seq: 1, Kind: api.ActivationStarted, At: at, Method: "switch"}, Refused: "invalid-transition", Detail: "no"},
		HostSeen{"j", "1.0", "boot", "A", "B", "spec", []string{"kernel"}, "trust"},
		Rejected{Attempt: 1, Reason: api.CodeStale, Detail: "old", At: at},
		TokenUsed{Nonce: "n", PublicKeySHA256: "k", ExpiresAt: at},
		Opened{"why"},
		Promoted{1, "why"},
		Halted{2, 1, "why"},
		RollingBack{2, 1, "why"},
		RolledBack{"why"},
		Converged{"why"},
		Cancelled{"why"},
		Superseded{"stable@bbbbbbb", "why"},
		Quarantined{"stable", "A", api.CodeSwitchFailed, "why"},
		Allowed{"stable", "A", "why"},
		Dispatched{api.ActionActivate, 1, "A", 2, at, at, "why"},
		Withdrawn{api.ActionActivate, 1, "why", at, api.CodeStale},
		Skipped{"offline", "why"},
		Returned{"why"},
		Overdue{at, "why"},
		Stayed{"why"},
	}
	var entries []Entry
	for i, b := range bodies {
		entries = append(entries, Entry{LogSeq: int64(i) + 1, RecordedAt: at, RolloutID: rid, Hostname: "web-01", Body: b})
	}
	return entries
}

// TestTheLogKeepsItsFormat holds the log's format to testdata/log.jsonl: what is there must be read for
// ever, so a line of it may be added to and never changed.
func TestTheLogKeepsItsFormat(t *testing.T) {
	var have strings.Builder
	kinds := map[Kind]bool{}
	for _, e := range oneOfEach() {
		kinds[e.Kind()] = true
		for i := range reflect.ValueOf(e.Body).NumField() {
			if reflect.ValueOf(e.Body).Field(i).IsZero() {
				t.Errorf("%s: field %s is not tried", e.Kind(), reflect.TypeOf(e.Body).Field(i).Name)
			}
		}
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		have.Write(append(line, '\n'))
		var back Entry
		if err := json.Unmarshal(line, &back); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(e, back); diff != "" {
			t.Errorf("%s does not survive:\n%s", e.Kind(), diff)
		}
	}
	for kind := range decoders {
		if !kinds[kind] {
			t.Errorf("kind %s is not tried", kind)
		}
	}
	const file = "testdata/log.jsonl"
	if *rewrite {
		if err := os.WriteFile(file, []byte(have.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), have.String()); diff != "" {
		t.Errorf("the format changed (-file +now):\n%s", diff)
	}
}

func TestAnEntryOfAnUnknownKindIsAnError(t *testing.T) {
	var e Entry
	err := json.Unmarshal([]byte(`{"logSeq":1,"recordedAt":"2026-11-23T08:00:00Z","kind":"teleport","body":{}}`), &e)
	if err == nil || !strings.Contains(err.Error(), "teleport") {
		t.Errorf("got %v", err)
	}
	if _, err := json.Marshal(Entry{}); err == nil {
		t.Error("an entry without a body was written")
	}
}

func TestALogWithAHoleOrALieDoesNotFold(t *testing.T) {
	event := HostEvent{JournalID: "web-01-journal-0", Event: api.Event{Seq: 2, At: start, Kind: api.Converged, ObservedClosure: "A1"}}
	for _, test := range []struct {
		name  string
		entry Entry
	}{
		{"a number left out", Entry{LogSeq: 1 << 20, Body: Opened{}}},
		{"a rollout that was never adopted", Entry{RolloutID: "stable@fffffff", Body: Opened{}}},
		{"a host that is not in the rollout", Entry{RolloutID: rid, Hostname: "stranger", Body: Skipped{}}},
		{"a wave that there is not", Entry{RolloutID: rid, Body: Promoted{Wave: 1}}},
		{"an accepted event that contradicts the record", Entry{RolloutID: rid, Hostname: "web-01", Body: event}},
		{"a host's decision without a host", Entry{RolloutID: rid, Body: Skipped{}}},
		{"a rollout's decision with a host", Entry{RolloutID: rid, Hostname: "web-01", Body: Halted{}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := accepted(t)
			if test.entry.LogSeq == 0 {
				test.entry.LogSeq = w.f.LogSeq() + 1
			}
			if err := w.f.Apply(test.entry); err == nil {
				t.Error("it was applied")
			}
		})
	}
}

func TestWhatOperatorsSeeOfTheLog(t *testing.T) {
	var have []string
	for _, e := range oneOfEach() {
		v, shown := Logged(e)
		if !shown {
			t.Fatalf("%s is not shown", e.Kind())
		}
		line, err := json.Marshal(v)
		if err != nil {
			t.Fatalf("%s: %v", e.Kind(), err)
		}
		have = append(have, string(line))
	}
	const want = `{"logSeq":3,"at":"2026-11-23T08:00:01.5Z","recordedAt":"2026-11-23T08:00:01.5Z","hostname":"web-01",` +
		`"rolloutId":"stable@aaaaaaa","kind":"ActivationStarted","journalId":"j","method":"switch",` +
		`"refused":"invalid-transition","refusedBecause":"no","seq":1}`
	if have[2] != want {
		t.Errorf("got %s", have[2])
	}
	if _, shown := Logged(Entry{Hostname: "web-01", Body: HostSeen{}}); shown {
		t.Error("a heartbeat is shown as part of a rollout")
	}
}
