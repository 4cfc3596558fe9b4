package storetest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/internal/controlplane/store"
)

func bytesOf(seed uint64, n int) []byte {
	data := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = r.Read(data) // never fails
	return data
}

func objects(t *testing.T, p Place) {
	s := open(t, p)
	for i, n := range []int{0, 1, 1<<20 - 1, 1 << 20, 1<<20 + 1, 5<<20 + 7} {
		data := bytesOf(uint64(i), n)
		digest, err := s.PutObject(t.Context(), data)
		if err != nil || digest != store.Digest(data) {
			t.Fatalf("%d bytes: put as %s, %v", n, digest, err)
		}
		got, err := s.Object(t.Context(), digest)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes came back as %d, %v", n, len(got), err)
		}
	}
}

func objectTwice(t *testing.T, p Place) {
	s := open(t, p)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 3 {
				if _, err := s.PutObject(t.Context(), bytesOf(1, 2<<20)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got, err := s.Object(t.Context(), store.Digest(bytesOf(1, 2<<20))); err != nil || len(got) != 2<<20 {
		t.Errorf("came back as %d bytes, %v", len(got), err)
	}
}

func objectMissing(t *testing.T, p Place) {
	s := open(t, p)
	for _, digest := range []string{store.Digest([]byte("x")), "", "../../etc/passwd", "' OR 1=1"} {
		if _, err := s.Object(t.Context(), digest); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%q: got %v, want ErrNotFound", digest, err)
		}
	}
}

func snapshots(t *testing.T, p Place) {
	s := open(t, p)
	for i := range int64(4) {
		snap := store.Snapshot{Seq: i * 10, TakenAt: base.Add(time.Duration(i)), Data: bytesOf(uint64(i), 3<<20)}
		if err := s.SaveSnapshot(t.Context(), snap); err != nil {
			t.Fatal(err)
		}
		got, err := s.Snapshot(t.Context(), snap.Seq)
		if err != nil || !bytes.Equal(got.Data, snap.Data) || got.Seq != snap.Seq || !got.TakenAt.Equal(snap.TakenAt) {
			t.Errorf("snapshot %d came back with %d bytes of %v, %v", snap.Seq, len(got.Data), got.TakenAt, err)
		}
	}
	seqs, err := s.Snapshots(t.Context())
	if diff := cmp.Diff([]int64{30, 20}, seqs); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if _, err := s.Snapshot(t.Context(), 10); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an old snapshot: got %v, want ErrNotFound", err)
	}
	if got, err := s.Snapshot(t.Context(), 20); err != nil || !bytes.Equal(got.Data, bytesOf(2, 3<<20)) {
		t.Errorf("the one before came back with %d bytes, %v", len(got.Data), err)
	}
}

func snapshotAgain(t *testing.T, p Place) {
	s := open(t, p)
	for _, text := range []string{"one", "two", "two"} {
		if err := s.SaveSnapshot(t.Context(), store.Snapshot{Seq: 5, TakenAt: base, Data: []byte(text)}); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Snapshot(t.Context(), 5); err != nil || string(got.Data) != text {
			t.Errorf("got %q, %v, want %q", got.Data, err, text)
		}
	}
}

func snapshotBesideAppend(t *testing.T, p Place) {
	s := open(t, p)
	done := make(chan error, 1)
	go func() {
		done <- s.SaveSnapshot(t.Context(), store.Snapshot{Seq: 1, TakenAt: base, Data: bytesOf(9, 32<<20)})
	}()
	n, beside := 0, 0
	for saving := true; saving; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			saving = false
		default:
			beside++
		}
		mustAppend(t, s, Entries(int64(n+1), 1))
		n++
	}
	if beside < 8 {
		t.Errorf("only %d groups were appended while a snapshot of 32 pieces was written", beside)
	}
	wantLog(t, s, Entries(1, n))
}

func heard(t *testing.T, p Place) {
	s := open(t, p)
	for _, want := range []map[string]time.Time{
		{"a": base, "b": base.Add(time.Second)},
		{"b": base.Add(time.Minute)},
		{},
	} {
		if err := s.SaveHeard(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		got, err := s.Heard(t.Context())
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	}
}
