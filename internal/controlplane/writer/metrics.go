package writer

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what a Writer counts.
type metrics struct {
	group    prometheus.Histogram
	commit   prometheus.Histogram
	snapshot prometheus.Histogram
	pause    prometheus.Gauge
	entries  *prometheus.CounterVec
	refused  *prometheus.CounterVec
	logSeq   prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, queue chan *input) *metrics {
	m := &metrics{
		group: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "nixfleet_log_group_entries", Help: "Entries committed at once.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 11),
		}),
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "nixfleet_log_commit_seconds", Help: "Time to make a group of entries durable.",
			Buckets: prometheus.ExponentialBuckets(0.0002, 2, 14),
		}),
		snapshot: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "nixfleet_log_snapshot_seconds", Help: "Time to take a snapshot of the log, beside its other work.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2, 14),
		}),
		pause: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "nixfleet_log_snapshot_pause_seconds", Help: "Time for which the last snapshot held up everything else.",
		}),
		entries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nixfleet_log_entries_total", Help: "Entries recorded, by kind.",
		}, []string{"kind"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nixfleet_events_refused_total", Help: "Events of hosts that contradicted the record, by code.",
		}, []string{"code"}),
		logSeq: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "nixfleet_log_seq", Help: "Place of the last entry on disk.",
		}),
	}
	if r != nil {
		r.MustRegister(m.group, m.commit, m.snapshot, m.pause, m.entries, m.refused, m.logSeq,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "nixfleet_writer_queue_inputs", Help: "Inputs that wait to be judged.",
			}, func() float64 { return float64(len(queue)) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "nixfleet_writer_queue_limit", Help: "Inputs that may wait at most.",
			}, func() float64 { return QueueLength }))
	}
	return m
}

// wrote counts a group that is on disk.
func (m *metrics) wrote(g *group, took time.Duration) {
	m.group.Observe(float64(len(g.entries)))
	m.commit.Observe(took.Seconds())
	m.logSeq.Set(float64(g.entries[len(g.entries)-1].Seq))
	for rest := g.entries; len(rest) > 0; { // mostly of one kind, many in a row
		n := 1
		for n < len(rest) && rest[n].Kind == rest[0].Kind {
			n++
		}
		m.entries.WithLabelValues(rest[0].Kind).Add(float64(n))
		rest = rest[n:]
	}
	for _, code := range g.refused {
		m.refused.WithLabelValues(string(code)).Inc()
	}
}
