package load

import (
	"slices"
	"strings"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
)

// BenchmarkP1Memory parks agents, each with its own certificate, and reports the peak of the server's
// resident memory for each of them, above what it has without any.
func BenchmarkP1Memory(b *testing.B) {
	c := newCertificates(b, agents(5000))
	for range b.N {
		baseline := memory(b, c, bare)
		ours := memory(b, c, front)
		b.ReportMetric(baseline/1000, "bare-KB/agent")
		b.ReportMetric(ours/1000, "KB/agent")
		b.ReportMetric(ours/baseline, "ratio")
	}
}

func memory(b *testing.B, c *certificates, kind string) (perAgent float64) {
	park(b, c, kind, func(p *process, all []*agent) {
		perAgent = float64(p.usage().Peak-p.base) / float64(len(all))
	})
	return perAgent
}

// wakeups is how many hosts are woken one after another.
const wakeups = 300

// BenchmarkP2WakeOne wakes one host of 10,000 at a time, from the request that asks for it until its
// dispatch is there.
func BenchmarkP2WakeOne(b *testing.B) {
	c := newCertificates(b, agents(10_000))
	for range b.N {
		baseline, baseCPU := wakeOne(b, c, bare)
		ours, cpu := wakeOne(b, c, front)
		b.ReportMetric(ms(baseline), "bare-median-ms")
		b.ReportMetric(ms(ours), "median-ms")
		b.ReportMetric(ms(baseCPU), "bare-cpu-ms")
		b.ReportMetric(ms(cpu), "cpu-ms")
		b.ReportMetric(float64(ours)/float64(baseline), "ratio")
	}
}

func wakeOne(b *testing.B, c *certificates, kind string) (median, cpu time.Duration) {
	park(b, c, kind, func(p *process, all []*agent) {
		before := p.usage().CPU
		var took []time.Duration
		for i := range min(wakeups, len(all)) {
			a := all[i*len(all)/min(wakeups, len(all))]
			took = append(took, arrivals(b, []*agent{a}, func() time.Time {
				began := time.Now()
				p.wake(a.host)
				return began
			})...)
		}
		cpu = time.Duration(p.usage().CPU-before) / time.Duration(len(took))
		slices.Sort(took)
		median = quantile(took, .5)
	})
	return median, cpu
}

// BenchmarkP2WakeAll wakes 10,000 hosts at once.
func BenchmarkP2WakeAll(b *testing.B) {
	c := newCertificates(b, agents(10_000))
	for range b.N {
		baseline := wakeAll(b, c, bare)
		ours := wakeAll(b, c, front)
		b.ReportMetric(ms(quantile(baseline, .99)), "bare-p99-ms")
		b.ReportMetric(ms(quantile(ours, .99)), "p99-ms")
		b.ReportMetric(float64(quantile(ours, .99))/float64(quantile(baseline, .99)), "ratio")
	}
}

func wakeAll(b *testing.B, c *certificates, kind string) (took []time.Duration) {
	park(b, c, kind, func(p *process, all []*agent) {
		took = arrivals(b, all, func() time.Time {
			began := time.Now()
			p.wake(everyone(len(all)))
			return began
		})
	})
	return took
}

func everyone(n int) string {
	var names strings.Builder
	for i := range n {
		names.WriteString(manifesttest.Hostname(i) + "\n")
	}
	return names.String()
}
