package journal

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// book writes numbered facts into journals and knows which of them must be found again. A snapshot
// lists all facts before it, so that what is read back is always the facts from 1 to some number.
type book struct {
	m       *memory
	j       *Journal
	written int // facts that an Append or Compact was tried for
	acked   int // facts whose record is durable, as it was said
}

func fact(n int) []byte { return fmt.Appendf(nil, "fact %d %s", n, strings.Repeat("x", n%50)) }

func snapshot(n int) []byte { return fmt.Appendf(nil, "all up to %d", n) }

// fold returns the number of the last fact in records that hold all from 1 on.
func fold(records [][]byte) (int, error) {
	last := 0
	for i, r := range records {
		switch {
		case bytes.HasPrefix(r, []byte("all up to ")) && i == 0:
			if _, err := fmt.Sscanf(string(r), "all up to %d", &last); err != nil {
				return 0, err
			}
		case bytes.Equal(r, fact(last+1)):
			last++
		default:
			return 0, fmt.Errorf("record %d is %q, after fact %d", i, r, last)
		}
	}
	return last, nil
}

// open opens the journal; a fault leaves it closed.
func (b *book) open(t fataler) {
	j, replay, err := Open(Options{Dir: "/state", FS: b.m})
	if err != nil {
		return
	}
	if replay.SetAside != "" {
		t.Fatalf("nothing was damaged, but %s was set aside: %s", replay.SetAside, replay.Damage)
	}
	last, err := fold(replay.Records)
	if err != nil {
		t.Fatalf("%v", err)
	}
	if last < b.acked || last > b.written {
		t.Fatalf("%d facts were read back; %d were acknowledged and %d written", last, b.acked, b.written)
	}
	b.j, b.written, b.acked = j, last, last
}

type fataler interface {
	Fatalf(format string, args ...any)
	Helper()
}

// add tries to append the next fact, or to compact, and says whether the journal still works.
func (b *book) add(compact bool) bool {
	b.written++
	if compact {
		b.written-- // a snapshot of what is there adds nothing
		if b.j.Compact(snapshot(b.acked)) != nil {
			return false
		}
	} else if b.j.Append(fact(b.written)) != nil {
		return false
	}
	b.acked = b.written
	return true
}

// script is one life of an agent: true is a compaction.
var script = []bool{false, false, true, false, false, true, false}

// live runs the script until something fails, and says whether nothing did.
func (b *book) live(t fataler) bool {
	b.j = nil
	if b.open(t); b.j == nil {
		return false
	}
	for _, compact := range script {
		if !b.add(compact) {
			if b.j.Append([]byte("more")) == nil || b.j.Compact([]byte("more")) == nil {
				t.Fatalf("a journal that failed takes more")
			}
			b.j.Close()
			return false
		}
	}
	return b.j.Close() == nil
}

// TestEverySystemCallFailingInTurnLosesNothing has each system call of two lives fail in each way, once
// with a restart of the process after it and several times with a loss of power.
func TestEverySystemCallFailingInTurnLosesNothing(t *testing.T) {
	for _, f := range faults {
		for variant := range 8 {
			failed := 0
			for at := 1; ; at++ {
				b := &book{m: newMemory()}
				b.live(t)
				reached := false
				b.m.calls = 0
				b.m.decide = func(call int, _ string) fault {
					if call == at {
						reached = true
						return f
					}
					return noFault
				}
				b.live(t)
				if !reached {
					break
				}
				failed++
				if variant == 0 {
					b.m.restart()
				} else {
					b.m.powerLoss(rand.New(rand.NewPCG(uint64(variant), uint64(at))).IntN)
				}
				for range 2 {
					if !b.live(t) {
						t.Fatalf("call %d, fault %d, variant %d: the journal cannot be used afterwards", at, f, variant)
					}
				}
			}
			if failed < 30 {
				t.Fatalf("only %d calls could be made to fail", failed)
			}
		}
	}
}

// TestFaultsUponFaultsLoseNothing has calls fail at random over many lives, while recovering too.
func TestFaultsUponFaultsLoseNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		b := &book{m: newMemory()}
		for range 12 {
			b.m.decide = func(int, string) fault {
				if random.IntN(12) == 0 {
					return faults[random.IntN(len(faults))]
				}
				return noFault
			}
			b.live(t)
			if random.IntN(2) == 0 {
				b.m.restart()
			} else {
				b.m.powerLoss(random.IntN)
			}
		}
		if !b.live(t) {
			t.Fatalf("the journal cannot be used once the faults are over")
		}
	})
}

// TestADamagedJournalIsNeverLostWhileItIsSetAside has each system call of putting it aside fail.
func TestADamagedJournalIsNeverLostWhileItIsSetAside(t *testing.T) {
	for _, f := range faults {
		for at := 1; ; at++ {
			b := &book{m: newMemory()}
			b.live(t)
			damaged := bytes.Clone(b.m.names[fileName].data)
			damaged[len(header)+frame]++
			b.m.names[fileName] = &inode{data: damaged, durable: len(damaged)}
			b.m.history = []map[string]*inode{b.m.names}
			reached := false
			b.m.calls = 0
			b.m.decide = func(call int, _ string) fault {
				if reached = reached || call == at; call == at {
					return f
				}
				return noFault
			}
			if j, _, err := Open(Options{FS: b.m}); err == nil {
				j.Close()
			}
			if !reached {
				break
			}
			b.m.powerLoss(rand.New(rand.NewPCG(uint64(at), 0)).IntN)
			j, replay, err := Open(Options{FS: b.m})
			if err != nil || len(replay.Records) > 0 {
				t.Fatalf("call %d, fault %d: %d records, %v", at, f, len(replay.Records), err)
			}
			j.Close()
			if kept := b.m.names[asideName(1)]; kept == nil || !bytes.Equal(kept.data, damaged) {
				t.Fatalf("call %d, fault %d: the damaged journal is gone", at, f)
			}
		}
	}
}
