package load

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/controlplane/cptest"
	"nixfleet.dev/nixfleet/internal/fleet"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
)

const canary = "canary"

// release makes a control plane's directory with a release for n hosts; with a canary, the last of them
// is a wave before all others.
func (c *certificates) release(b *testing.B, n int, withCanary bool) {
	b.Helper()
	c.fresh(b)
	if err := os.WriteFile(filepath.Join(c.dir, "trust.json"), manifesttest.TrustJSON(manifesttest.Trust()), 0o600); err != nil {
		b.Fatal(err)
	}
	f := cptest.Fleet("stable", n, "1")
	if withCanary {
		last := f.Hosts[manifesttest.Hostname(n-1)]
		last.Tags = []string{canary}
		f.Hosts[manifesttest.Hostname(n-1)] = last
		f.RolloutPolicies["all"] = fleet.WithDefaults(api.Policy{Waves: []api.Wave{
			{Selector: &api.Selector{Tags: []string{canary}}}, {Selector: &api.Selector{All: true}},
		}})
	}
	repo := cptest.NewRepoIn(b, filepath.Join(c.dir, "repo"))
	now := time.Now()
	repo.Publish(repo.Index(1, now, repo.Add(f, "stable", "0a1b2c3d", 1, now, nil)))
}

const journal = "0123456789abcdef0123456789abcdef"

func (a *agent) heartbeat() (reply api.HeartbeatReply, err error) {
	body, err := json.Marshal(api.Heartbeat{Hostname: a.host, JournalID: journal, At: time.Now().UTC(), CurrentClosure: "old", BootClosure: "old", LastSeq: map[string]int64{}})
	if err != nil {
		return reply, err
	}
	answer, err := a.post("/v1/agent/heartbeat", body)
	if err != nil {
		return reply, err
	}
	return reply, json.Unmarshal(answer, &reply)
}

// converge reports that the host took a dispatch and is done with it.
func (a *agent) converge(d api.Dispatch) error {
	at := time.Now().UTC()
	if d.SoakDueAt.After(at) {
		at = d.SoakDueAt
	}
	body, err := json.Marshal(api.EventBatch{Hostname: a.host, JournalID: journal, RolloutID: d.RolloutID, Events: []api.Event{
		{Seq: 1, Kind: api.DispatchAck, At: at, Attempt: d.Attempt, PreviousClosure: "old", TargetClosure: d.TargetClosure, SoakDueAt: d.SoakDueAt, EnqueuedAt: d.EnqueuedAt, ManifestSHA256: "x"},
		{Seq: 2, Kind: api.ActivationStarted, At: at, Method: api.MethodSwitch},
		{Seq: 3, Kind: api.ActivationCompleted, At: at, ObservedClosure: d.TargetClosure},
		{Seq: 4, Kind: api.ProbesDeclared, At: at},
		{Seq: 5, Kind: api.Converged, At: at, ObservedClosure: d.TargetClosure},
	}})
	if err != nil {
		return err
	}
	answer, err := a.post("/v1/agent/events", body)
	if err != nil {
		return err
	}
	var ack api.EventsAck
	if err := json.Unmarshal(answer, &ack); err != nil || len(ack.Refused) > 0 {
		return fmt.Errorf("the events of %s were answered with %s (%w)", a.host, answer, err)
	}
	return nil
}

// BenchmarkP1MemoryRecorded is BenchmarkP1Memory with a whole control plane: each agent has sent a heartbeat
// and waits for its wave of a rollout, which a canary holds back.
func BenchmarkP1MemoryRecorded(b *testing.B) {
	n := agents(5000)
	c := newCertificates(b, n+1)
	for range b.N {
		few := &certificates{ca: c.ca, dir: c.dir, hosts: c.hosts[:n]}
		baseline := memory(b, few, bare)
		c.release(b, n+1, true)
		few.dir = c.dir
		var ours float64
		settle(b, few, func(p *process, all []*agent) {
			p.awaitParked(len(all))
			ours = float64(p.usage().Peak-p.base) / float64(len(all))
		})
		b.ReportMetric(baseline/1000, "bare-KB/agent")
		b.ReportMetric(ours/1000, "KB/agent")
		b.ReportMetric(ours/baseline, "ratio")
	}
}

// settle runs f with agents that sent a heartbeat and then a poll to a whole control plane.
func settle(b *testing.B, c *certificates, f func(p *process, all []*agent)) {
	b.Helper()
	p := launch(b, whole, c.dir)
	defer p.stop()
	all := connect(b, c, p.Addr, func(a *agent) error {
		if _, err := a.heartbeat(); err != nil {
			return err
		}
		return a.poll()
	})
	defer func() {
		for _, a := range all {
			a.conn.NetConn().Close()
		}
	}()
	f(p, all)
}

// BenchmarkP2WakeOneRecorded is BenchmarkP2WakeOne with a whole control plane: a host's heartbeat has the
// planner dispatch it, and its parked poll is answered once that is on disk.
func BenchmarkP2WakeOneRecorded(b *testing.B) {
	n := agents(10_000)
	c := newCertificates(b, n)
	for range b.N {
		baseline, _ := wakeOne(b, c, bare)
		c.release(b, n, false)
		var ours time.Duration
		park(b, c, whole, func(p *process, all []*agent) {
			var took []time.Duration
			for i := range min(wakeups, len(all)) {
				at := i * len(all) / min(wakeups, len(all))
				reporter, err := dial(c, at, p.Addr)
				if err != nil {
					b.Fatal(err)
				}
				took = append(took, arrivals(b, all[at:at+1], func() time.Time {
					began := time.Now()
					if _, err := reporter.heartbeat(); err != nil {
						b.Error(err)
					}
					return began
				})...)
				reporter.conn.Close()
			}
			slices.Sort(took)
			ours = quantile(took, .5)
		})
		b.ReportMetric(ms(baseline), "bare-median-ms")
		b.ReportMetric(ms(ours), "median-ms")
		b.ReportMetric(float64(ours)/float64(baseline), "ratio")
	}
}

// BenchmarkP2WakeAllRecorded opens a wave of 10,000 hosts in a whole control plane: from the canary's last
// event until every host has its dispatch, each of them on disk by then.
func BenchmarkP2WakeAllRecorded(b *testing.B) {
	n := agents(10_000)
	c := newCertificates(b, n+1)
	for range b.N {
		few := &certificates{ca: c.ca, dir: c.dir, hosts: c.hosts[:n]}
		baseline := wakeAll(b, few, bare)
		c.release(b, n+1, true)
		ours := openWave(b, c)
		b.ReportMetric(ms(quantile(baseline, .99)), "bare-p99-ms")
		b.ReportMetric(ms(quantile(ours, .99)), "p99-ms")
		b.ReportMetric(ms(quantile(ours, .5)), "median-ms")
		b.ReportMetric(float64(quantile(ours, .99))/float64(quantile(baseline, .99)), "ratio")
	}
}

func openWave(b *testing.B, c *certificates) (took []time.Duration) {
	settle(b, c, func(p *process, all []*agent) {
		first, others := all[len(all)-1], all[:len(all)-1]
		_, body, err := first.receive(200)
		if err != nil {
			b.Fatal(err)
		}
		var d api.Dispatch
		if err := json.Unmarshal(body, &d); err != nil {
			b.Fatal(err)
		}
		p.awaitParked(len(others))
		took = arrivals(b, others, func() time.Time {
			began := time.Now()
			if err := first.converge(d); err != nil {
				b.Error(err)
			}
			return began
		})
	})
	return took
}
