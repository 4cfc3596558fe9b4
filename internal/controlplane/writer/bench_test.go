package writer

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	_ "modernc.org/sqlite"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane/store"
	"nixfleet.dev/nixfleet/internal/controlplane/store/sqlite"
	"nixfleet.dev/nixfleet/internal/rollout"
)

// runWriter runs a Writer on a new database until the benchmark ends.
func runWriter(b *testing.B, dir string, registry Registry, metrics prometheus.Registerer) (*Writer, store.Store) {
	b.Helper()
	s, err := sqlite.Open(b.Context(), dir, clock.System{})
	if err != nil {
		b.Fatal(err)
	}
	w := New(Options{Store: s, Registry: registry, Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler), Metrics: metrics})
	ctx, stop := context.WithCancel(context.WithoutCancel(b.Context()))
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	<-w.Ready()
	b.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			b.Error(err)
		}
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	return w, s
}

// each runs f for n hosts, up to 1,000 at once, and ends the benchmark at an error.
func each(b *testing.B, n int, f func(i int) error) {
	b.Helper()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 1000)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			if err := f(i); err != nil {
				b.Error(err)
			}
			<-slots
		})
	}
	if wg.Wait(); b.Failed() {
		b.FailNow()
	}
}

// BenchmarkP3 is performance.md's P3: events a second that are on disk with synchronous=FULL, from many
// hosts at once, each of which sends so many at a time and waits for the answer. Beside it, in the same
// run, rows as large go into a bare SQLite table with the same index in groups of the same size.
func BenchmarkP3(b *testing.B) {
	for _, c := range []struct{ hosts, batch int }{{100, 1}, {1000, 1}, {1000, 10}} {
		b.Run(fmt.Sprintf("hosts=%d/batch=%d", c.hosts, c.batch), func(b *testing.B) { benchmarkP3(b, c.hosts, c.batch) })
	}
}

func benchmarkP3(b *testing.B, hosts, batch int) {
	registry, metrics := newRegistry(), prometheus.NewRegistry()
	w, s := runWriter(b, b.TempDir(), registry, metrics)
	id := activating(b, w, hosts, registry)
	before, groupsBefore := groups(b, metrics)

	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	each(b, hosts, func(i int) error { return progress(b.Context(), w, newAgent(i), id, &left, batch) })
	b.StopTimer()
	took := b.Elapsed()
	entries, n := groups(b, metrics)
	size := max(1, int((entries-before)/max(1, n-groupsBefore)))

	sample, err := s.RolloutEntries(b.Context(), id, int64(before), 1)
	if err != nil || len(sample) == 0 {
		b.Fatal("no events are on the log", err)
	}
	rate := float64(b.N) / took.Seconds()
	bare := float64(b.N) / bareSQLite(b, b.N, size, sample[0]).Seconds()
	b.ReportMetric(rate, "events/s")
	b.ReportMetric(bare, "bare-events/s")
	b.ReportMetric(rate/bare, "ratio")
	b.ReportMetric(float64(size), "group")
}

// activating brings hosts into the state Activating in a rollout of one wave.
func activating(b *testing.B, w *Writer, hosts int, registry *registry) string {
	b.Helper()
	r := newRelease(b, hosts, 1, 1)
	ctx := b.Context()
	each(b, hosts, func(i int) error { return newAgent(i).beat(ctx, w) })
	if err := w.Adopt(ctx, r.adoption, r.objects...); err != nil {
		b.Fatal(err)
	}
	for i := range hosts {
		for registry.offer(newAgent(i).host) == nil {
			runtime.Gosched() // a plan may be several groups, and the release's answer came with the first
		}
	}
	each(b, hosts, func(i int) error {
		a := newAgent(i)
		events := activation(0, a.current, *registry.offer(a.host), time.Now().UTC())[:2]
		_, err := w.Events(ctx, a.host, api.EventBatch{Hostname: a.host, JournalID: a.journalID, RolloutID: r.id, Events: events})
		return err
	})
	return r.id
}

// progress sends the host's share of what is left, so many events at a time.
func progress(ctx context.Context, w *Writer, a *agent, id string, left *atomic.Int64, batch int) error {
	at := time.Now().UTC()
	for seq := int64(3); ; {
		n := min(int64(batch), left.Add(-int64(batch))+int64(batch))
		if n <= 0 {
			return nil
		}
		events := make([]api.Event, n)
		for i := range events {
			events[i] = api.Event{
				Seq: seq, Kind: api.ActivationProgress, At: at,
				Phase: api.PhaseRealise, BytesDone: seq << 20, BytesTotal: 1 << 30,
			}
			seq++
		}
		if _, err := w.Events(ctx, a.host, api.EventBatch{Hostname: a.host, JournalID: a.journalID, RolloutID: id, Events: events}); err != nil {
			return err
		}
	}
}

// groups returns how many entries were committed in how many groups.
func groups(b *testing.B, metrics *prometheus.Registry) (entries, n uint64) {
	b.Helper()
	families, err := metrics.Gather()
	if err != nil {
		b.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "nixfleet_log_group_entries" {
			h := f.GetMetric()[0].GetHistogram()
			return uint64(h.GetSampleSum()), h.GetSampleCount()
		}
	}
	b.Fatal("no metric of groups")
	return 0, 0
}

// bareSQLite commits n rows like the sample in groups, with nothing around it.
func bareSQLite(b *testing.B, n, group int, sample store.Entry) time.Duration {
	b.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(b.TempDir(), "bare.db")+
		"?_txlock=immediate&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.Exec(`CREATE TABLE log (seq INTEGER PRIMARY KEY, at INTEGER, kind TEXT, rollout TEXT, host TEXT, body BLOB);
		CREATE INDEX log_by_rollout ON log (rollout, seq)`); err != nil {
		b.Fatal(err)
	}
	insert, err := db.Prepare("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)")
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	for i := 0; i < n; i += group {
		if err := bareGroup(db, insert, i, min(group, n-i), sample); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(began)
}

func bareGroup(db *sql.DB, insert *sql.Stmt, from, n int, sample store.Entry) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	in := tx.Stmt(insert)
	defer in.Close()
	for i := range n {
		if _, err := in.Exec(from+i, int64(i), sample.Kind, sample.RolloutID, sample.Hostname, sample.Body); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	return tx.Commit()
}

// BenchmarkStart is how long a control plane takes to read the snapshot of a fleet in the middle of a
// rollout, and beside it how long taking that snapshot holds up the core, and how long the rest takes.
func BenchmarkStart(b *testing.B) {
	for _, hosts := range []int{1000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("hosts=%d", hosts), func(b *testing.B) {
			if testing.Short() && hosts > 10_000 {
				b.Skip("takes half a minute to set up")
			}
			benchmarkStart(b, hosts)
		})
	}
}

func benchmarkStart(b *testing.B, hosts int) {
	registry := newRegistry()
	w, s := runWriter(b, b.TempDir(), registry, nil)
	activating(b, w, hosts, registry)
	var still rollout.Still
	began := time.Now()
	if err := w.View(b.Context(), func(f *rollout.Fleet) { still = f.Still() }); err != nil {
		b.Fatal(err)
	}
	pause := time.Since(began)
	if err := w.save(b.Context(), still); err != nil {
		b.Fatal(err)
	}
	encoding := time.Since(began) - pause
	for b.Loop() {
		if _, err := fold(b.Context(), s, w.options, w.log); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(w.snapshots.size.Load())/float64(hosts), "snapshot-B/host")
	b.ReportMetric(pause.Seconds()*1000, "pause-ms")
	b.ReportMetric(encoding.Seconds()*1000, "encoding-ms")
}
