package controlplane

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane/cptest"
	"nixfleet.dev/nixfleet/internal/controlplane/store/sqlite"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
)

const journalID = "0123456789abcdef0123456789abcdef"

// world is a control plane with all that it needs.
type world struct {
	t      *testing.T
	ca     *cptest.CA
	repo   *cptest.Repo
	config Config
	log    *lockedBuffer

	addr, metrics string
	stop          context.CancelFunc
	done          chan error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, ca: cptest.NewCA(t), repo: cptest.NewRepo(t), log: &lockedBuffer{}}
	dir := t.TempDir()
	files := w.ca.WriteFiles(dir, w.ca.Server())
	trustFile := filepath.Join(dir, "trust.json")
	if err := os.WriteFile(trustFile, manifesttest.TrustJSON(manifesttest.Trust()), 0o600); err != nil {
		t.Fatal(err)
	}
	w.config = Config{
		Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", StateDir: filepath.Join(dir, "state"), TrustFile: trustFile,
		TrustDomain: cptest.TrustDomain, ShutdownTimeout: 5 * time.Second,
		TLS:    TLS{Cert: files.Cert, Key: files.Key, ClientCA: files.CA},
		Source: Source{URL: w.repo.URL(), PollInterval: 20 * time.Millisecond},
	}
	return w
}

// start runs the control plane until stopped, and returns when it is ready.
func (w *world) start() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan [2]string, 1)
	w.stop, w.done = cancel, make(chan error, 1)
	done := w.done
	go func() {
		done <- Run(ctx, w.config, Options{
			Logger: slog.New(slog.NewTextHandler(w.log, nil)), Clock: clock.System{}, Version: "v1.2.3", ReloadEvery: 20 * time.Millisecond,
			Ready: func(addr, metrics net.Addr) { ready <- [2]string{addr.String(), metrics.String()} },
		})
	}()
	select {
	case addrs := <-ready:
		w.addr, w.metrics = addrs[0], addrs[1]
	case err := <-done:
		w.t.Fatalf("it did not start: %v\n%s", err, w.log)
	}
	w.t.Cleanup(func() { w.halt() })
}

// halt stops the control plane, if it runs.
func (w *world) halt() {
	w.t.Helper()
	if w.stop == nil {
		return
	}
	w.stop()
	if err := <-w.done; err != nil {
		w.t.Errorf("it ended with: %v\n%s", err, w.log)
	}
	w.stop = nil
}

func (w *world) client(certs ...tls.Certificate) *http.Client {
	transport := &http.Transport{TLSClientConfig: w.ca.ClientTLS(certs...)}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

// call sends a request and decodes the answer into out unless that is nil; it returns the status.
func (w *world) call(c *http.Client, method, path string, in, out any) int {
	w.t.Helper()
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			w.t.Fatal(err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequest(method, "https://"+w.addr+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set(api.ProtocolHeader, api.ProtocolVersion)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	if out != nil && resp.StatusCode == http.StatusOK {
		if err := json.Unmarshal(data, out); err != nil {
			w.t.Fatalf("%s %s: %v in %s", method, path, err, data)
		}
	} else if problem, ok := out.(*api.Problem); ok {
		if err := json.Unmarshal(data, problem); err != nil {
			w.t.Fatalf("%s %s: %v in %s", method, path, err, data)
		}
	}
	return resp.StatusCode
}

func (w *world) eventually(condition func() bool, format string, args ...any) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	for !condition() {
		if (clock.System{}).Sleep(ctx, 5*time.Millisecond) != nil {
			w.t.Fatalf("never: %s\n%s", fmt.Sprintf(format, args...), w.log)
		}
	}
}

func (w *world) release(ref string, sequence int64) cptest.Release {
	w.t.Helper()
	now := time.Now()
	r := w.repo.Add(cptest.Fleet("stable", 3, ref), "stable", ref, sequence, now, nil)
	w.repo.Publish(w.repo.Index(sequence, now, r))
	return r
}

func (w *world) metric(path string) (int, string) {
	w.t.Helper()
	resp, err := http.Get("http://" + w.metrics + path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func beat(host, closure string) api.Heartbeat {
	return api.Heartbeat{Hostname: host, JournalID: journalID, At: time.Now().UTC(), CurrentClosure: closure, BootClosure: closure, LastSeq: map[string]int64{}}
}

// TestARolloutOfOneHost takes a release from the repository to a host, as an agent sees it, and looks
// at it as an operator does; then both again after a restart.
func TestARolloutOfOneHost(t *testing.T) {
	w := newWorld(t)
	r := w.release("0a1b2c3d", 100)
	w.start()
	name := manifesttest.Hostname(0)
	host, operator := w.client(w.ca.Host(name)), w.client(w.ca.Operator("alice"))

	var reply api.HeartbeatReply
	w.eventually(func() bool {
		return w.call(host, "POST", "/v1/agent/heartbeat", beat(name, "old"), &reply) == 200 && reply.Current["stable"] == r.ID
	}, "the heartbeat names the release")
	var d api.Dispatch
	w.eventually(func() bool { return w.call(host, "GET", "/v1/agent/dispatch?wait=5", nil, &d) == 200 }, "the host is dispatched")
	if d.RolloutID != r.ID || d.TargetClosure != manifesttest.Closure(name, "0a1b2c3d") || d.Action != api.ActionActivate {
		t.Fatalf("dispatch: %+v", d)
	}

	var envelope api.Envelope
	if w.call(host, "GET", "/v1/rollouts/"+r.ID+"/manifest", nil, &envelope) != 200 {
		t.Fatal("no manifest")
	}
	var proof api.HostProof
	if w.call(host, "GET", "/v1/rollouts/"+r.ID+"/hosts/"+name, nil, &proof) != 200 {
		t.Fatal("no proof")
	}
	if err := manifest.VerifyProof(proof, r.Manifest.HostSet); err != nil {
		t.Error(err)
	}
	var p api.Problem
	if got := w.call(host, "GET", "/v1/rollouts/stable@ffffffff/manifest", nil, &p); got != 404 || p.Code != api.CodeUnknownRollout {
		t.Errorf("another rollout: %d %+v", got, p)
	}

	ack := api.Event{Seq: 1, Kind: api.DispatchAck, At: time.Now().UTC(), Attempt: 1, TargetClosure: d.TargetClosure,
		PreviousClosure: "old", SoakDueAt: d.SoakDueAt, EnqueuedAt: d.EnqueuedAt, ManifestSHA256: r.Entry.Manifest}
	batch := api.EventBatch{Hostname: name, JournalID: journalID, RolloutID: r.ID, Events: []api.Event{ack}}
	var acked api.EventsAck
	if got := w.call(host, "POST", "/v1/agent/events", batch, &acked); got != 200 || acked.AckedSeq != 1 || len(acked.Refused) > 0 {
		t.Fatalf("events: %d %+v", got, acked)
	}
	gap := batch
	gap.Events = []api.Event{{Seq: 5, Kind: api.ActivationStarted, At: time.Now().UTC(), Method: api.MethodSwitch}}
	if got := w.call(host, "POST", "/v1/agent/events", gap, &p); got != 409 || p.Code != api.CodeSequenceGap || p.ExpectedSeq != 2 {
		t.Errorf("a gap: %d %+v", got, p)
	}
	if got := w.call(host, "GET", "/v1/agent/dispatch?wait=0", nil, nil); got != 204 {
		t.Errorf("a poll after the answer: %d", got)
	}

	look := func() {
		t.Helper()
		var h api.Host
		if got := w.call(operator, "GET", "/v1/hosts/"+name, nil, &h); got != 200 || h.State != api.Activating || h.RolloutID != r.ID {
			t.Errorf("host: %d %+v", got, h)
		}
		var hosts api.List[api.Host]
		if got := w.call(operator, "GET", "/v1/hosts?limit=2", nil, &hosts); got != 200 || len(hosts.Items) != 2 || hosts.NextCursor == "" {
			t.Fatalf("hosts: %d %+v", got, hosts)
		}
		if got := w.call(operator, "GET", "/v1/hosts?limit=2&cursor="+hosts.NextCursor, nil, &hosts); got != 200 || len(hosts.Items) != 1 || hosts.NextCursor != "" {
			t.Errorf("the next page: %d %+v", got, hosts)
		}
		var rollouts api.List[api.Rollout]
		if got := w.call(operator, "GET", "/v1/rollouts", nil, &rollouts); got != 200 || len(rollouts.Items) != 1 || rollouts.Items[0].State != api.RolloutActive {
			t.Errorf("rollouts: %d %+v", got, rollouts)
		}
		var events api.List[api.LoggedEvent]
		if got := w.call(operator, "GET", "/v1/rollouts/"+r.ID+"/events", nil, &events); got != 200 || len(events.Items) < 3 {
			t.Errorf("history: %d %+v", got, events)
		}
		var why api.Why
		if got := w.call(operator, "GET", "/v1/hosts/"+manifesttest.Hostname(1)+"/why", nil, &why); got != 200 || why.Summary == "" {
			t.Errorf("why: %d %+v", got, why)
		}
		var channels api.List[api.Channel]
		if got := w.call(operator, "GET", "/v1/channels", nil, &channels); got != 200 || len(channels.Items) != 1 || channels.Items[0].RolloutID != r.ID {
			t.Errorf("channels: %d %+v", got, channels)
		}
		if got := w.call(operator, "GET", "/v1/hosts/nobody", nil, &p); got != 404 || p.Code != api.CodeNotFound {
			t.Errorf("no host: %d %+v", got, p)
		}
	}
	look()

	// After a restart without the repository everything is there, the plans too.
	w.halt()
	if err := os.RemoveAll(w.repo.Dir); err != nil {
		t.Fatal(err)
	}
	w.start()
	host, operator = w.client(w.ca.Host(name)), w.client(w.ca.Operator("alice"))
	look()
	if w.call(host, "GET", "/v1/rollouts/"+r.ID+"/hosts/"+name, nil, &proof) != 200 {
		t.Error("no proof after the restart")
	}
	w.eventually(func() bool { return strings.Contains(w.log.String(), "unreachable") }, "the missing repository is reported")
}

func TestHealthReadinessAndMetrics(t *testing.T) {
	w := newWorld(t)
	w.release("0a1b2c3d", 100)
	w.start()
	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ready", "/metrics": "nixfleet_build_info{version=\"v1.2.3\"} 1"} {
		if status, body := w.metric(path); status != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.200s", path, status, body)
		}
	}
	w.eventually(func() bool {
		_, body := w.metric("/metrics")
		return strings.Contains(body, "nixfleet_source_index_sequence 100")
	}, "the adopted index is in the metrics")
	_, body := w.metric("/metrics")
	for line := range strings.Lines(body) {
		if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "nixfleet_") {
			t.Errorf("metrics: %s", line)
		}
	}
	if status, _ := w.metric("/v1/hosts"); status != 404 {
		t.Errorf("the metrics listener answers /v1 with %d", status)
	}
	if resp, err := w.client(w.ca.Operator("alice")).Get("https://" + w.addr + "/metrics"); err != nil || resp.StatusCode != 404 {
		t.Errorf("the other listener answers /metrics with %v, %v", resp, err)
	}
}

func TestRevocationsAreInForceAfterARestartWithoutTheRepository(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	r := w.repo.Add(cptest.Fleet("stable", 3, "1"), "stable", "0a1b2c3d", 100, now, nil)
	index := w.repo.Index(100, now, r)
	object := w.repo.Put(w.repo.Sign(api.PayloadRevocations, api.Revocations{SchemaVersion: 1, Sequence: 7, SignedAt: now.UTC().Truncate(time.Second),
		Operators: []api.RevokedOperator{{Name: "mallory", CertificatesIssuedBefore: now.UTC()}}}))
	index.Revocations = &object
	w.repo.Publish(index)
	w.start()
	mallory := w.ca.Operator("mallory")
	refused := func() bool {
		var p api.Problem
		return w.call(w.client(mallory), "GET", "/v1/hosts", nil, &p) == 403 && p.Code == api.CodeCertificateRevoked
	}
	w.eventually(refused, "the operator is refused")
	w.halt()
	if err := os.RemoveAll(w.repo.Dir); err != nil {
		t.Fatal(err)
	}
	w.start()
	if !refused() {
		t.Error("the revocation was forgotten")
	}
}

func TestFilesThatAreReplacedAreReadAgain(t *testing.T) {
	w := newWorld(t)
	w.release("0a1b2c3d", 100)
	w.start()
	old := w.client(w.ca.Operator("alice"))
	channels := func(c *http.Client) (list api.List[api.Channel], status int) {
		status = w.call(c, "GET", "/v1/channels", nil, &list)
		return list, status
	}
	w.eventually(func() bool { list, _ := channels(old); return len(list.Items) == 1 }, "the release is there")

	must(t, os.WriteFile(w.config.TrustFile, []byte("half"), 0o600))
	w.eventually(func() bool { return strings.Contains(w.log.String(), "cannot be used") }, "a broken trust.json is reported")
	trusted := manifesttest.Trust()
	trusted.Release.Keys = []api.TrustKey{manifesttest.Trusted("next", manifesttest.Key("next"))}
	must(t, os.WriteFile(w.config.TrustFile, manifesttest.TrustJSON(trusted), 0o600))
	w.eventually(func() bool { return strings.Contains(w.log.String(), "signature-invalid") }, "the old key is not trusted any more")
	now := time.Now()
	next := w.repo.Add(cptest.Fleet("stable", 3, "2"), "stable", "0b1b2c3d", 200, now, nil, manifesttest.Key("next"))
	w.repo.Publish(w.repo.Index(200, now, next), manifesttest.Key("next"))
	w.eventually(func() bool { list, _ := channels(old); return list.Items[0].RolloutID == next.ID }, "a release of the new key is adopted")

	ca := cptest.NewCA(t)
	ca.WriteFiles(filepath.Dir(w.config.TLS.Cert), ca.Server())
	w.eventually(func() bool { _, status := channels(old); return status == 401 }, "certificates of the old CA are refused")
	w.ca = ca
	if _, status := channels(w.client(ca.Operator("alice"))); status != 200 {
		t.Errorf("a certificate of the new CA got %d", status)
	}
}

func TestAPartThatFailsEndsTheControlPlane(t *testing.T) {
	w := newWorld(t)
	s := &supervisor{config: w.config, options: Options{Logger: slog.New(slog.DiscardHandler), Clock: clock.System{}, ReloadEvery: time.Hour},
		log: slog.New(slog.DiscardHandler), registry: prometheus.NewRegistry()}
	must(t, s.prepare())
	must(t, s.listen(t.Context()))
	db, err := sqlite.Open(t.Context(), w.config.StateDir, clock.System{})
	must(t, err)
	defer db.Close()
	must(t, s.assemble(db))
	s.options.Ready = func(_, _ net.Addr) { s.socket.Close() }
	if err := s.run(t.Context()); err == nil || !strings.Contains(err.Error(), "accepting connections") {
		t.Errorf("it ended with %v", err)
	}
}

func TestItDoesNotStartWithSomethingWrong(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(w *world)
		says  string
	}{
		"no trust.json":     {func(w *world) { w.config.TrustFile += ".gone" }, "trust.json"},
		"a broken one":      {func(w *world) { must(w.t, os.WriteFile(w.config.TrustFile, []byte("{}"), 0o600)) }, "trust.json"},
		"no certificate":    {func(w *world) { w.config.TLS.Cert += ".gone" }, "certificates"},
		"a CA that is none": {func(w *world) { w.config.TLS.ClientCA = w.config.TrustFile }, "CA"},
		"an address in use": {func(w *world) { w.config.Listen = w.config.MetricsListen }, "listening"},
		"an issuer's key": {func(w *world) {
			w.config.Issuer = &Issuer{CACert: w.config.TLS.ClientCA, CAKey: w.config.TLS.Key, CertificateLifetime: time.Hour}
		}, "does not belong"},
		"a state_dir in use": {func(w *world) { other := *w; other.start() }, "database"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if name == "an address in use" {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				must(t, err)
				defer l.Close()
				w.config.MetricsListen = l.Addr().String()
			}
			test.spoil(w)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := Run(ctx, w.config, Options{Logger: slog.New(slog.DiscardHandler), Clock: clock.System{}})
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
