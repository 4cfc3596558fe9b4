package server

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what a Server does. No label holds a host's name.
type Metrics struct {
	registerer prometheus.Registerer

	requests          *prometheus.CounterVec
	durations         *prometheus.HistogramVec
	polls             *prometheus.CounterVec
	handshakeFailures prometheus.Counter
}

// NewMetrics registers the metrics of one Server with r.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		registerer: r,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nixfleet_http_requests_total", Help: "Requests answered, by endpoint and status; parked polls are in nixfleet_polls_total.",
		}, []string{"endpoint", "status"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "nixfleet_http_request_duration_seconds", Help: "Time to answer a request, by endpoint; parked polls are left out.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"endpoint"}),
		polls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nixfleet_polls_total", Help: "Dispatch polls answered, by outcome.",
		}, []string{"outcome"}),
		handshakeFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nixfleet_tls_handshake_failures_total", Help: "TLS handshakes that failed.",
		}),
	}
	r.MustRegister(m.requests, m.durations, m.polls, m.handshakeFailures)
	return m
}

// observe registers what is read off s when it is asked for.
func (m *Metrics) observe(s *Server) {
	gauge := func(name, help string, value func() float64) {
		m.registerer.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("nixfleet_connections", "Open connections.", func() float64 { return float64(len(s.limits.connections)) })
	gauge("nixfleet_connections_unauthenticated", "Open connections without a certificate of the fleet.",
		func() float64 { return float64(len(s.limits.strangers)) })
	gauge("nixfleet_polls_parked", "Dispatch polls that wait.", func() float64 {
		parked, _ := s.registry.Counts()
		return float64(parked)
	})
	gauge("nixfleet_dispatches_outstanding", "Hosts that are offered a dispatch.", func() float64 {
		_, outstanding := s.registry.Counts()
		return float64(outstanding)
	})
	gauge("nixfleet_server_certificate_expiry_timestamp_seconds", "When the server's own certificate ends.",
		func() float64 { return float64(s.credentials.NotAfter().Unix()) })
}

func (m *Metrics) request(pattern string, status int, took time.Duration) {
	if pattern == "" {
		pattern = "none"
	}
	if status == 0 {
		status = http.StatusOK
	}
	m.requests.WithLabelValues(pattern, strconv.Itoa(status)).Inc()
	m.durations.WithLabelValues(pattern).Observe(took.Seconds())
}
