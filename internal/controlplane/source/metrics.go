package source

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	polls       *prometheus.CounterVec
	lastSuccess prometheus.Gauge
	sequence    prometheus.Gauge
	refusing    prometheus.Gauge
	expiry      *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		polls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nixfleet_source_polls_total", Help: "Polls of the release repository, by result.",
		}, []string{"result"}),
		lastSuccess: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "nixfleet_source_last_success_timestamp_seconds", Help: "When the index was last seen to be the adopted one.",
		}),
		sequence: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "nixfleet_source_index_sequence", Help: "Sequence of the index that was adopted last.",
		}),
		refusing: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "nixfleet_source_refused", Help: "1 while what the release repository holds is refused.",
		}),
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "nixfleet_channel_signature_expiry_timestamp_seconds", Help: "When agents begin to refuse a channel's manifest.",
		}, []string{"channel"}),
	}
	for _, result := range []string{adopted, unchanged, unreachable, refused} {
		m.polls.WithLabelValues(result)
	}
	r.MustRegister(m.polls, m.lastSuccess, m.sequence, m.refusing, m.expiry)
	return m
}

func (m *metrics) polled(result string, now time.Time) {
	m.polls.WithLabelValues(result).Inc()
	switch result {
	case adopted, unchanged:
		m.lastSuccess.Set(float64(now.Unix()))
		m.refusing.Set(0)
	case refused:
		m.refusing.Set(1)
	}
}
