// Package storetest is what every implementation of store.Store must do, run by the tests of each
// against its real database. It holds the contract of store.Store as tests, one for each promise.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/internal/controlplane/store"
)

// Place is where one store's data are. Open opens it, again after Close, and fails the test if it
// cannot.
type Place interface {
	Open(t *testing.T) store.Store
}

// Run runs the suite; each test gets an empty place of its own from fresh.
func Run(t *testing.T, fresh func(t *testing.T) Place) {
	for name, test := range map[string]func(*testing.T, Place){
		"an empty log is empty":                                  empty,
		"what was appended is read back as it was":               roundTrip,
		"what was appended is there after it is opened again":    reopened,
		"a group that does not follow the log is refused whole":  conflict,
		"a group that breaks off in the middle leaves nothing":   brokenGroup,
		"a group may be empty":                                   emptyGroup,
		"the log is read from any place, over many pages":        manyPages,
		"a reader may stop early":                                stopEarly,
		"the log may be appended to while it is read":            appendWhileReading,
		"a rollout's history is its own, in order and in pages":  history,
		"an ended context appends nothing":                       endedContext,
		"an object is kept by its digest, also a large one":      objects,
		"an object that is put twice is there once":              objectTwice,
		"an object that is not there is not found":               objectMissing,
		"the newest snapshots are kept, newest first":            snapshots,
		"a snapshot may be taken again at the same place":        snapshotAgain,
		"a large snapshot does not keep the log from being used": snapshotBesideAppend,
		"when hosts were heard replaces what was saved before":   heard,
	} {
		t.Run(name, func(t *testing.T) { test(t, fresh(t)) })
	}
}

var base = time.Date(2026, 11, 23, 8, 0, 0, 123456789, time.UTC)

// Entries returns n entries from seq on, of a few rollouts and hosts, that differ in every field.
func Entries(seq int64, n int) []store.Entry {
	entries := make([]store.Entry, n)
	for i := range entries {
		k := seq + int64(i)
		entries[i] = store.Entry{
			Seq: k, RecordedAt: base.Add(time.Duration(k) * time.Millisecond), Kind: fmt.Sprintf("kind-%d", k%3),
			Hostname: fmt.Sprintf("host-%d", k%7), Body: fmt.Appendf(nil, `{"n":%d,"text":"ü\u0000"}`, k),
		}
		if k%4 > 0 {
			entries[i].RolloutID = fmt.Sprintf("stable@0a1b2c%d", k%4)
		}
	}
	return entries
}

func open(t *testing.T, p Place) store.Store {
	t.Helper()
	s := p.Open(t)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func mustAppend(t *testing.T, s store.Store, entries []store.Entry) {
	t.Helper()
	if err := s.Append(t.Context(), entries); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, s store.Store, after int64) []store.Entry {
	t.Helper()
	var all []store.Entry
	for e, err := range s.Entries(t.Context(), after) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

func wantLog(t *testing.T, s store.Store, want []store.Entry) {
	t.Helper()
	if diff := cmp.Diff(want, read(t, s, 0)); diff != "" {
		t.Errorf("the log is not what it should be (-want +got):\n%s", diff)
	}
	if last, err := s.LastSeq(t.Context()); err != nil || last != int64(len(want)) {
		t.Errorf("the log ends at %d (%v), want %d", last, err, len(want))
	}
}

func empty(t *testing.T, p Place) {
	s := open(t, p)
	wantLog(t, s, nil)
	if seqs, err := s.Snapshots(t.Context()); err != nil || len(seqs) > 0 {
		t.Errorf("an empty store has snapshots %v, %v", seqs, err)
	}
	if h, err := s.Heard(t.Context()); err != nil || len(h) > 0 {
		t.Errorf("an empty store has heard %v, %v", h, err)
	}
}

func roundTrip(t *testing.T, p Place) {
	s := open(t, p)
	want := Entries(1, 10)
	mustAppend(t, s, want[:1])
	mustAppend(t, s, want[1:7])
	mustAppend(t, s, want[7:])
	wantLog(t, s, want)
}

func reopened(t *testing.T, p Place) {
	want := Entries(1, 20)
	s := p.Open(t)
	mustAppend(t, s, want[:10])
	digest, err := s.PutObject(t.Context(), []byte("an object"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SaveSnapshot(t.Context(), store.Snapshot{Seq: 10, TakenAt: base, Data: []byte("state")}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, p)
	wantLog(t, s, want[:10])
	mustAppend(t, s, want[10:])
	wantLog(t, s, want)
	if data, err := s.Object(t.Context(), digest); err != nil || string(data) != "an object" {
		t.Errorf("the object came back as %q, %v", data, err)
	}
	if snap, err := s.Snapshot(t.Context(), 10); err != nil || string(snap.Data) != "state" {
		t.Errorf("the snapshot came back as %+v, %v", snap, err)
	}
}

func conflict(t *testing.T, p Place) {
	s := open(t, p)
	want := Entries(1, 5)
	mustAppend(t, s, want)
	for name, group := range map[string][]store.Entry{
		"a gap":              Entries(7, 2),
		"a repeat":           Entries(5, 2),
		"from the beginning": Entries(1, 2),
		"zero":               Entries(0, 2),
	} {
		if err := s.Append(t.Context(), group); !errors.Is(err, store.ErrConflict) {
			t.Errorf("%s: got %v, want ErrConflict", name, err)
		}
	}
	wantLog(t, s, want)
}

func brokenGroup(t *testing.T, p Place) {
	s := open(t, p)
	group := Entries(1, 5)
	group[4].Seq = 3
	if err := s.Append(t.Context(), group); !errors.Is(err, store.ErrConflict) {
		t.Errorf("got %v, want ErrConflict", err)
	}
	wantLog(t, s, nil)
	mustAppend(t, s, Entries(1, 5))
	wantLog(t, s, Entries(1, 5))
}

func emptyGroup(t *testing.T, p Place) {
	s := open(t, p)
	mustAppend(t, s, nil)
	wantLog(t, s, nil)
}

func manyPages(t *testing.T, p Place) {
	s := open(t, p)
	const n = 3000
	want := Entries(1, n)
	for i := 0; i < n; i += 500 {
		mustAppend(t, s, want[i:i+500])
	}
	for _, after := range []int64{0, 1, 999, 1000, 1001, n - 1, n, n + 5} {
		got := read(t, s, after)
		if diff := cmp.Diff(want[min(after, n):], got, cmp.Comparer(func(a, b []store.Entry) bool {
			return len(a) == len(b) && (len(a) == 0 || cmp.Equal(a[0], b[0]) && cmp.Equal(a[len(a)-1], b[len(b)-1]))
		})); diff != "" {
			t.Errorf("after %d:\n%s", after, diff)
		}
	}
}

func stopEarly(t *testing.T, p Place) {
	s := open(t, p)
	mustAppend(t, s, Entries(1, 10))
	for e, err := range s.Entries(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Seq == 3 {
			break
		}
	}
	mustAppend(t, s, Entries(11, 1))
}

func appendWhileReading(t *testing.T, p Place) {
	s := open(t, p)
	mustAppend(t, s, Entries(1, 2000))
	next := int64(2001)
	for e, err := range s.Entries(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Seq%500 == 0 && next <= 2010 {
			mustAppend(t, s, Entries(next, 5))
			next += 5
		}
	}
	wantLog(t, s, Entries(1, int(next-1)))
}

func history(t *testing.T, p Place) {
	s := open(t, p)
	all := Entries(1, 100)
	mustAppend(t, s, all)
	var want []store.Entry
	for _, e := range all {
		if e.RolloutID == "stable@0a1b2c2" {
			want = append(want, e)
		}
	}
	var got []store.Entry
	for after := int64(0); ; after = got[len(got)-1].Seq {
		part, err := s.RolloutEntries(t.Context(), "stable@0a1b2c2", after, 7)
		if err != nil {
			t.Fatal(err)
		}
		if len(part) > 7 {
			t.Fatalf("asked for 7, got %d", len(part))
		}
		got = append(got, part...)
		if len(part) < 7 {
			break
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if none, err := s.RolloutEntries(t.Context(), "edge@0a1b2c2", 0, 7); err != nil || len(none) > 0 {
		t.Errorf("an unknown rollout has a history: %v, %v", none, err)
	}
}

func endedContext(t *testing.T, p Place) {
	s := open(t, p)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Append(ctx, Entries(1, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	wantLog(t, s, nil)
	mustAppend(t, s, Entries(1, 1))
}
