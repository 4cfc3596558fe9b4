package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func mustOpen(t *testing.T, dir string) (*Journal, Replay) {
	t.Helper()
	j, replay, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j, replay
}

// filled returns a directory with a journal of n facts, and the length of the file after each of them.
func filled(t *testing.T, n int) (dir string, lengths []int) {
	t.Helper()
	dir = t.TempDir()
	j, _ := mustOpen(t, dir)
	lengths = append(lengths, int(j.Size()))
	for i := range n {
		if err := j.Append(fact(i + 1)); err != nil {
			t.Fatal(err)
		}
		lengths = append(lengths, int(j.Size()))
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, lengths
}

func reread(t *testing.T, dir string, data []byte) Replay {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, fileName), data, 0o600); err != nil {
		t.Fatal(err)
	}
	j, replay := mustOpen(t, dir)
	j.Close()
	return replay
}

func TestRecordsAreReadBackInOrder(t *testing.T) {
	dir, _ := filled(t, 5)
	j, replay := mustOpen(t, dir)
	if last, err := fold(replay.Records); err != nil || last != 5 || replay.SetAside != "" {
		t.Fatalf("%d facts, %v, %q set aside", last, err, replay.SetAside)
	}
	if err := j.Compact(snapshot(5)); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(fact(6)); err != nil {
		t.Fatal(err)
	}
	j.Close()
	_, replay = mustOpen(t, dir)
	if diff := cmp.Diff([]string{string(snapshot(5)), string(fact(6))}, texts(replay.Records)); diff != "" {
		t.Error(diff)
	}
}

func texts(records [][]byte) []string {
	out := []string{}
	for _, r := range records {
		out = append(out, string(r))
	}
	return out
}

func TestSizeIsTheFilesLength(t *testing.T) {
	dir, lengths := filled(t, 3)
	info, err := os.Stat(filepath.Join(dir, fileName))
	if err != nil || info.Size() != int64(lengths[3]) || info.Mode().Perm() != 0o600 {
		t.Errorf("%d bytes, mode %v, %v; Size said %d", info.Size(), info.Mode(), err, lengths[3])
	}
	j, _ := mustOpen(t, dir)
	if j.Size() != info.Size() {
		t.Errorf("reopened, Size is %d", j.Size())
	}
	if err := j.Compact(snapshot(3)); err != nil || j.Size() >= info.Size() {
		t.Errorf("compacted, Size is %d, %v", j.Size(), err)
	}
}

func TestATornEndIsDropped(t *testing.T) {
	dir, lengths := filled(t, 3)
	whole, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	for cut := lengths[2]; cut < lengths[3]; cut++ {
		zeros := make([]byte, lengths[3]-cut)
		for name, data := range map[string][]byte{"cut": whole[:cut], "zeros": append(slices.Clone(whole[:cut]), zeros...)} {
			replay := reread(t, dir, data)
			if last, err := fold(replay.Records); err != nil || last != 2 || replay.SetAside != "" {
				t.Fatalf("%s at byte %d: %d facts, %v, %q set aside", name, cut, last, err, replay.SetAside)
			}
			after, err := os.ReadFile(filepath.Join(dir, fileName))
			if err != nil || !bytes.Equal(after, whole[:lengths[2]]) {
				t.Fatalf("%s at byte %d: the torn end is still there", name, cut)
			}
		}
	}
}

func TestAFlippedBitAnywhereLosesNoAcknowledgedRecordUnnoticed(t *testing.T) {
	dir, lengths := filled(t, 4)
	whole, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	for at := range whole {
		data := slices.Clone(whole)
		data[at] ^= 1 << (at % 8)
		replay := reread(t, dir, data)
		if at >= lengths[3] { // the last record: no telling from a torn one
			if last, err := fold(replay.Records); err != nil || last != 3 {
				t.Fatalf("byte %d: %d facts, %v", at, last, err)
			}
			continue
		}
		if replay.SetAside == "" || len(replay.Records) > 0 || replay.Damage == "" {
			t.Fatalf("byte %d: %d records were taken from a damaged journal: %+v", at, len(replay.Records), replay)
		}
		kept, err := os.ReadFile(replay.SetAside)
		if err != nil || !bytes.Equal(kept, data) {
			t.Fatalf("byte %d: what was set aside is not what was there: %v", at, err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, asidePrefix+"*"))
	if err != nil || len(left) != keptAside {
		t.Errorf("%d damaged journals are kept, not %d: %v", len(left), keptAside, err)
	}
}

func TestWhatIsNoJournalIsSetAside(t *testing.T) {
	dir, lengths := filled(t, 3)
	whole, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"an empty file":          {},
		"half a header":          []byte(header[:5]),
		"another version":        bytes.Replace(whole, []byte("journal 1"), []byte("journal 2"), 1),
		"another file":           []byte("#!/bin/sh\n"),
		"two damaged at the end": append(slices.Clone(whole[:lengths[1]+frame]), bytes.Repeat([]byte{'?'}, len(whole)-lengths[1]-frame)...),
		"a record cut out":       append(slices.Clone(whole[:lengths[1]+5]), whole[lengths[2]:]...),
	} {
		t.Run(name, func(t *testing.T) {
			if replay := reread(t, dir, data); replay.SetAside == "" || len(replay.Records) > 0 {
				t.Errorf("%+v", replay)
			}
			j, replay := mustOpen(t, dir)
			defer j.Close()
			if replay.SetAside != "" || len(replay.Records) > 0 {
				t.Errorf("the new journal is not new: %+v", replay)
			}
		})
	}
}

func TestADamagedJournalIsReportedAfterAKillToo(t *testing.T) {
	dir, _ := filled(t, 1)
	if err := os.Rename(filepath.Join(dir, fileName), filepath.Join(dir, asideName(7))); err != nil {
		t.Fatal(err)
	}
	j, replay := mustOpen(t, dir)
	if replay.SetAside != filepath.Join(dir, asideName(7)) {
		t.Errorf("%+v", replay)
	}
	j.Close()
	if _, replay = mustOpen(t, dir); replay.SetAside != "" {
		t.Errorf("it is reported again: %+v", replay)
	}
}

func TestAWholeJournalCanBeSetAsideToo(t *testing.T) {
	dir, _ := filled(t, 3)
	j, _ := mustOpen(t, dir)
	path, err := j.SetAside()
	if err != nil || path != filepath.Join(dir, asideName(1)) {
		t.Fatalf("%q, %v", path, err)
	}
	if err := j.Append(fact(1)); err != nil {
		t.Error(err)
	}
	j.Close()
	_, replay := mustOpen(t, dir)
	if last, err := fold(replay.Records); err != nil || last != 1 || replay.SetAside != "" {
		t.Errorf("the new journal has %d facts, %v; %q set aside", last, err, replay.SetAside)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if records, err := parse(data); err != nil || len(records) != 3 {
		t.Errorf("set aside are %d records, %v", len(records), err)
	}
}

func TestTwoAgentsNeverShareADirectory(t *testing.T) {
	dir := t.TempDir()
	first, _ := mustOpen(t, dir)
	if _, _, err := Open(Options{Dir: dir}); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("the second one got %v", err)
	}
	if err := first.Append(fact(1)); err != nil {
		t.Errorf("the first one was disturbed: %v", err)
	}
	first.Close()
	if _, replay := mustOpen(t, dir); len(replay.Records) != 1 {
		t.Errorf("afterwards: %+v", replay)
	}
}

func TestRecordsHaveACap(t *testing.T) {
	j, _ := mustOpen(t, t.TempDir())
	large := make([]byte, MaxRecord+1)
	if err := j.Append(large); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a large record: %v", err)
	}
	if err := j.Compact(large); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a large snapshot: %v", err)
	}
	if err := j.Append(nil); err == nil {
		t.Error("an empty record was taken")
	}
	if err := j.Append(fact(1)); err != nil {
		t.Errorf("what was refused spoilt the journal: %v", err)
	}
}

func TestAClosedJournalTakesNothing(t *testing.T) {
	j, _ := mustOpen(t, t.TempDir())
	if err := errors.Join(j.Close(), j.Close()); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(fact(1)); !errors.Is(err, ErrClosed) {
		t.Errorf("Append: %v", err)
	}
	if err := j.Compact(fact(1)); !errors.Is(err, ErrClosed) {
		t.Errorf("Compact: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	whole := appendRecord(appendRecord([]byte(header), fact(1)), fact(2))
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add(append(slices.Clone(whole), mark...))
	f.Fuzz(func(t *testing.T, data []byte) {
		records, err := parse(data)
		if err != nil {
			return
		}
		again := []byte(header)
		for _, r := range records {
			again = appendRecord(again, r)
		}
		if !bytes.HasPrefix(data, again) {
			t.Errorf("%d records were read that are not there", len(records))
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	j, _, err := Open(Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer j.Close()
	payload := bytes.Repeat([]byte("x"), 2<<10)
	for b.Loop() {
		if err := j.Append(payload); err != nil {
			b.Fatal(err)
		}
	}
}

func ExampleOpen() {
	dir, err := os.MkdirTemp("", "journal")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	j, _, err := Open(Options{Dir: dir})
	if err != nil {
		panic(err)
	}
	if err := j.Append([]byte("one step")); err != nil {
		panic(err)
	}
	j.Close()
	j, replay, err := Open(Options{Dir: dir})
	if err != nil {
		panic(err)
	}
	defer j.Close()
	fmt.Printf("%s\n", replay.Records)
	// Output: [one step]
}
