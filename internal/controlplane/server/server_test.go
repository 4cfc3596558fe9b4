package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane/cptest"
	"nixfleet.dev/nixfleet/internal/controlplane/dispatch"
)

const (
	testRollout = "stable@0a1b2c3d"
	testJournal = "0123456789abcdef0123456789abcdef"
)

// fakeCore stands in for the writer. It records what it is given and answers as it is told.
type fakeCore struct {
	starting atomic.Bool

	mu         sync.Mutex
	heard      map[string]int
	batches    []api.EventBatch
	heartbeats []api.Heartbeat
	rejections []api.Rejection
	err        error
	block      chan struct{} // until it is closed, nothing is answered
	waiting    chan struct{} // told of every call that waits for block
}

func (c *fakeCore) Ready() bool { return !c.starting.Load() }

func (c *fakeCore) Heard(host string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.heard == nil {
		c.heard = map[string]int{}
	}
	c.heard[host]++
}

func (c *fakeCore) gate(ctx context.Context) error {
	c.mu.Lock()
	block, err := c.block, c.err
	c.mu.Unlock()
	if block != nil {
		c.waiting <- struct{}{}
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (c *fakeCore) Events(ctx context.Context, b api.EventBatch) (api.EventsAck, error) {
	if err := c.gate(ctx); err != nil {
		return api.EventsAck{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.batches = append(c.batches, b)
	return api.EventsAck{AckedSeq: b.Events[len(b.Events)-1].Seq}, nil
}

func (c *fakeCore) Heartbeat(ctx context.Context, hb api.Heartbeat) (api.HeartbeatReply, error) {
	if err := c.gate(ctx); err != nil {
		return api.HeartbeatReply{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heartbeats = append(c.heartbeats, hb)
	return api.HeartbeatReply{Interval: api.Duration(time.Minute)}, nil
}

func (c *fakeCore) Reject(ctx context.Context, r api.Rejection) error {
	if err := c.gate(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rejections = append(c.rejections, r)
	return nil
}

// fakeViews has the hosts web-0 … web-4 and one rollout.
type fakeViews struct{ panics bool }

func (v *fakeViews) Host(_ context.Context, name string) (api.Host, error) {
	if v.panics {
		panic("a bug")
	}
	if !strings.HasPrefix(name, "web-") {
		return api.Host{}, Refuse(api.CodeNotFound, "there is no host %s", name)
	}
	return api.Host{Hostname: name}, nil
}

func (v *fakeViews) Hosts(_ context.Context, f HostFilter, page Page) (list api.List[api.Host], err error) {
	for i := range 5 {
		name := fmt.Sprintf("web-%d", i)
		if name <= page.After || !strings.Contains(name, f.Query) {
			continue
		}
		if len(list.Items) == page.Limit {
			list.NextCursor = list.Items[page.Limit-1].Hostname
			break
		}
		list.Items = append(list.Items, api.Host{Hostname: name, Channel: f.Channel})
	}
	return list, nil
}

func (v *fakeViews) Why(ctx context.Context, name string) (api.Why, error) {
	_, err := v.Host(ctx, name)
	return api.Why{Hostname: name}, err
}

func (v *fakeViews) Channels(context.Context) ([]api.Channel, error) {
	return []api.Channel{{Channel: "stable"}}, nil
}

func (v *fakeViews) Rollout(_ context.Context, id string) (api.Rollout, error) {
	if id != testRollout {
		return api.Rollout{}, Refuse(api.CodeUnknownRollout, "there is no rollout %s", id)
	}
	return api.Rollout{RolloutID: id}, nil
}

func (v *fakeViews) Rollouts(context.Context, Page) (api.List[api.Rollout], error) {
	return api.List[api.Rollout]{Items: []api.Rollout{{RolloutID: testRollout}}}, nil
}

func (v *fakeViews) RolloutEvents(_ context.Context, id string, after int64, limit int) (page []api.LoggedEvent, err error) {
	for seq := after + 1; seq <= 10 && len(page) < limit; seq++ {
		page = append(page, api.LoggedEvent{LogSeq: seq, RolloutID: id})
	}
	return page, nil
}

type fakeArtifacts struct{}

func (fakeArtifacts) Manifest(_ context.Context, id string) (Blob, error) {
	if id != testRollout {
		return Blob{}, Refuse(api.CodeUnknownRollout, "there is no rollout %s", id)
	}
	return Blob{Data: []byte(`{"envelope":"as published"}`), ETag: "abc"}, nil
}

func (fakeArtifacts) HostsFile(context.Context, string) (Blob, error) {
	return Blob{Data: []byte("{\"hostname\":\"web-0\"}\n"), ETag: "def"}, nil
}

func (fakeArtifacts) Proof(_ context.Context, _, host string) (api.HostProof, string, error) {
	return api.HostProof{Index: 1, Size: 2, Line: host}, "def-1", nil
}

// fixture is a running server with everything around it.
type fixture struct {
	t        *testing.T
	ca       *cptest.CA
	dir      string
	files    cptest.Files
	registry *dispatch.Registry
	core     *fakeCore
	views    *fakeViews
	server   *Server
	metrics  *prometheus.Registry
	addr     string
	log      *lockedBuffer

	stop    context.CancelFunc
	stopped chan error
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

func start(t *testing.T, change ...func(*Options)) *fixture {
	t.Helper()
	f := &fixture{t: t, ca: cptest.NewCA(t), dir: t.TempDir(), registry: dispatch.New(), core: &fakeCore{waiting: make(chan struct{}, 100)},
		views: &fakeViews{}, metrics: prometheus.NewRegistry(), log: &lockedBuffer{}, stopped: make(chan error, 1)}
	f.files = f.ca.WriteFiles(f.dir, f.ca.Server())
	credentials, err := LoadCredentials(f.files.Cert, f.files.Key, f.files.CA)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Credentials: credentials, TrustDomain: cptest.TrustDomain, Registry: f.registry, Core: f.core, Views: f.views,
		Artifacts: fakeArtifacts{}, Clock: clock.System{}, Metrics: NewMetrics(f.metrics),
		Logger: slog.New(slog.NewTextHandler(f.log, nil)),
	}
	for _, c := range change {
		c(&o)
	}
	f.server = New(o)
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = socket.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	go func() { f.stopped <- f.server.Serve(ctx, socket, 5*time.Second) }()
	t.Cleanup(func() {
		cancel()
		if err := <-f.stopped; err != nil {
			t.Errorf("serving: %v", err)
		}
		f.stopped <- nil
	})
	return f
}

// client is an HTTP client with a certificate; h2 makes it speak HTTP/2.
func (f *fixture) client(h2 bool, certs ...tls.Certificate) *http.Client {
	transport := &http.Transport{TLSClientConfig: f.ca.ClientTLS(certs...), ForceAttemptHTTP2: h2, MaxIdleConnsPerHost: 100}
	f.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 90 * time.Second}
}

func (f *fixture) host(name string) *http.Client { return f.client(false, f.ca.Host(name)) }

func (f *fixture) operator() *http.Client { return f.client(true, f.ca.Operator("alice")) }

// response is a response with its body read.
type response struct {
	status int
	header http.Header
	body   []byte
	close  bool
}

func (r response) problem(t *testing.T) api.Problem {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal(r.body, &p); err != nil || r.header.Get("Content-Type") != api.ProblemType {
		t.Fatalf("not a problem: %d %s %q", r.status, r.header.Get("Content-Type"), r.body)
	}
	if p.Status != r.status || p.Type != "/problems/"+string(p.Code) || p.Title == "" || p.Detail == "" {
		t.Errorf("a problem that is not whole: %+v for status %d", p, r.status)
	}
	return p
}

func (f *fixture) request(method, path string, body io.Reader) *http.Request {
	f.t.Helper()
	req, err := http.NewRequest(method, "https://"+f.addr+path, body)
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set(api.ProtocolHeader, api.ProtocolVersion)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req
}

func do(c *http.Client, req *http.Request) (response, error) {
	resp, err := c.Do(req)
	if err != nil {
		return response{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, resp.Header, body, resp.Close}, err
}

func (f *fixture) do(c *http.Client, req *http.Request) response {
	f.t.Helper()
	r, err := do(c, req)
	if err != nil {
		f.t.Fatal(err)
	}
	if r.header.Get(api.ProtocolHeader) != api.ProtocolVersion {
		f.t.Errorf("%s %s: %d without the protocol header", req.Method, req.URL.Path, r.status)
	}
	return r
}

func (f *fixture) get(c *http.Client, path string) response {
	f.t.Helper()
	return f.do(c, f.request("GET", path, nil))
}

func (f *fixture) post(c *http.Client, path string, v any) response {
	f.t.Helper()
	data, ok := v.([]byte)
	if !ok {
		var err error
		if data, err = json.Marshal(v); err != nil {
			f.t.Fatal(err)
		}
	}
	return f.do(c, f.request("POST", path, bytes.NewReader(data)))
}

// expect checks a refusal.
func (f *fixture) expect(r response, status int, code api.Code) {
	f.t.Helper()
	if r.status != status {
		f.t.Fatalf("got %d %s, want %d %s", r.status, r.body, status, code)
	}
	if p := r.problem(f.t); p.Code != code {
		f.t.Errorf("got code %s, want %s", p.Code, code)
	}
}

// poll parks a poll and returns where its response will come.
func (f *fixture) poll(c *http.Client, wait string) <-chan response {
	done := make(chan response, 1)
	go func() {
		r, err := do(c, f.request("GET", "/v1/agent/dispatch?wait="+wait, nil))
		if err != nil {
			r = response{body: []byte(err.Error())}
		}
		done <- r
	}()
	return done
}

// parked waits until n polls are parked and net/http has let go of their connections.
func (f *fixture) parked(n int) {
	f.t.Helper()
	f.eventually(func() bool {
		parked, _ := f.registry.Counts()
		return parked == n
	}, "%d polls are parked", n)
}

// eventually waits until a condition holds.
func (f *fixture) eventually(condition func() bool, format string, args ...any) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	for !condition() {
		if (clock.System{}).Sleep(ctx, time.Millisecond) != nil {
			f.t.Fatalf("never: "+format, args...)
		}
	}
}

func batch(host string, events ...api.Event) api.EventBatch {
	return api.EventBatch{Hostname: host, JournalID: testJournal, RolloutID: testRollout, Events: events}
}

func converged(seq int64) api.Event {
	return api.Event{Seq: seq, Kind: api.Converged, At: time.Now().UTC(), ObservedClosure: "x"}
}

func heartbeat(host string) api.Heartbeat {
	return api.Heartbeat{Hostname: host, JournalID: testJournal, At: time.Now().UTC(), LastSeq: map[string]int64{}}
}
