package standin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
)

// Request is one request that came in.
type Request struct {
	At     time.Time
	Method string
	Path   string // with the query
	Host   string // from the client certificate, "" without one
	Remote string // tells connections apart
	Serial string // of the client certificate
	Header http.Header
	Body   []byte
}

// ControlPlane is the stand-in. Its methods may be called concurrently.
type ControlPlane struct {
	// URL is its base URL.
	URL string
	// Dial is what a client in the same synctest bubble dials with; nil for real sockets.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	t      testing.TB
	server *http.Server

	mu        sync.Mutex
	handlers  map[string]http.HandlerFunc
	requests  []Request
	dispatch  *api.Dispatch
	manifests map[string][]byte
	proofs    map[string]api.HostProof
	reply     api.HeartbeatReply
	events    []api.EventBatch
	rejected  []api.Rejection
	beats     []api.Heartbeat
	changed   chan struct{} // closed and replaced at every change
}

// Start runs a stand-in on a real loopback socket until the test ends.
func Start(t testing.TB, ca *CA) *ControlPlane {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, ca, listener)
}

// StartInMemory runs a stand-in whose connections stay in memory, for synctest.
func StartInMemory(t testing.TB, ca *CA) *ControlPlane {
	t.Helper()
	listener := newMemory()
	cp := serve(t, ca, listener)
	cp.Dial = listener.dial
	return cp
}

func serve(t testing.TB, ca *CA, listener net.Listener) *ControlPlane {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	cp := &ControlPlane{
		URL: "https://" + listener.Addr().String(), t: t,
		handlers: map[string]http.HandlerFunc{}, manifests: map[string][]byte{}, proofs: map[string]api.HostProof{},
		reply: api.HeartbeatReply{Interval: api.Duration(time.Minute)}, changed: make(chan struct{}),
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{ca.Server()},
		ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven, NextProtos: []string{"http/1.1"}, Time: clock.System{}.Now,
	}
	base, cancel := context.WithCancel(context.Background())
	cp.server = &http.Server{
		Handler: http.HandlerFunc(cp.serveHTTP), ErrorLog: log.New(io.Discard, "", 0),
		BaseContext: func(net.Listener) context.Context { return base },
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cp.server.Serve(tls.NewListener(listener, config))
	}()
	t.Cleanup(func() {
		cancel()
		cp.server.Close()
		<-done
	})
	return cp
}

// Close cuts every connection and ends the stand-in before the test's end.
func (cp *ControlPlane) Close() { cp.server.Close() }

// Handle replaces an endpoint, named by method and path without a query: "GET /v1/agent/dispatch". For
// rollouts the names are "GET manifest" and "GET host". A nil handler brings the honest one back.
func (cp *ControlPlane) Handle(endpoint string, h http.HandlerFunc) {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	cp.handlers[endpoint] = h
}

func (cp *ControlPlane) serveHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, api.MaxRequestBody+1))
	req := Request{
		At: clock.System{}.Now(), Method: r.Method, Path: r.URL.RequestURI(), Remote: r.RemoteAddr,
		Header: r.Header.Clone(), Body: body,
	}
	if certs := r.TLS.PeerCertificates; len(certs) > 0 && len(certs[0].URIs) == 1 {
		req.Host = strings.TrimPrefix(certs[0].URIs[0].Path, "/host/")
		req.Serial = certs[0].SerialNumber.String()
	}
	cp.mu.Lock()
	cp.requests = append(cp.requests, req)
	h := cp.handlers[endpointOf(r)]
	cp.notify()
	cp.mu.Unlock()
	w.Header().Set(api.ProtocolHeader, api.ProtocolVersion)
	if h == nil {
		h = cp.honest
	}
	h(w, r.WithContext(context.WithValue(r.Context(), requestKey{}, req)))
}

type requestKey struct{}

// Of returns what was recorded of a request, its body among it.
func Of(r *http.Request) Request { return r.Context().Value(requestKey{}).(Request) }

func endpointOf(r *http.Request) string {
	path := r.URL.Path
	switch {
	case strings.HasPrefix(path, "/v1/rollouts/") && strings.HasSuffix(path, "/manifest"):
		path = "manifest"
	case strings.HasPrefix(path, "/v1/rollouts/") && strings.Contains(path, "/hosts/"):
		path = "host"
	}
	return r.Method + " " + path
}

// notify wakes whoever waits for a change. The lock is held.
func (cp *ControlPlane) notify() {
	close(cp.changed)
	cp.changed = make(chan struct{})
}

// Requests returns what came in so far at an endpoint (see Handle), or at all for "".
func (cp *ControlPlane) Requests(endpoint string) []Request {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	var out []Request
	for _, r := range cp.requests {
		if endpoint == "" || matches(endpoint, r) {
			out = append(out, r)
		}
	}
	return out
}

func matches(endpoint string, r Request) bool {
	method, path, _ := strings.Cut(endpoint, " ")
	bare, _, _ := strings.Cut(r.Path, "?")
	switch path {
	case "manifest":
		return r.Method == method && strings.HasSuffix(bare, "/manifest")
	case "host":
		return r.Method == method && strings.Contains(bare, "/hosts/")
	}
	return r.Method == method && bare == path
}

// Wait waits until ok holds, which is asked again after everything that comes in, and fails the test
// where that takes over ten seconds.
func (cp *ControlPlane) Wait(what string, ok func() bool) {
	cp.t.Helper()
	timer := clock.System{}.NewTimer(10 * time.Second)
	defer timer.Stop()
	for {
		cp.mu.Lock()
		changed := cp.changed
		cp.mu.Unlock()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			cp.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// Offer makes d the outstanding dispatch: it is given to every poll until its DispatchAck or a
// rejection arrives. nil withdraws.
func (cp *ControlPlane) Offer(d *api.Dispatch) {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	cp.dispatch = d
	cp.notify()
}

// Publish serves a rollout's envelope, and one host's line and proof.
func (cp *ControlPlane) Publish(rolloutID string, envelope []byte, hostname string, proof api.HostProof) {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	cp.manifests[rolloutID] = slices.Clone(envelope)
	cp.proofs[rolloutID+"/"+hostname] = proof
}

// Reply sets what heartbeats are answered with; ReceivedAt is filled in.
func (cp *ControlPlane) Reply(r api.HeartbeatReply) {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	cp.reply = r
}

// Rejections returns the rejections so far.
func (cp *ControlPlane) Rejections() []api.Rejection {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	return slices.Clone(cp.rejected)
}

// Heartbeats returns the heartbeats so far.
func (cp *ControlPlane) Heartbeats() []api.Heartbeat {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	return slices.Clone(cp.beats)
}

// Batches returns the batches of events so far, those sent twice too.
func (cp *ControlPlane) Batches() []api.EventBatch {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	return slices.Clone(cp.events)
}

// Events returns a rollout's events so far, each number once, in order.
func (cp *ControlPlane) Events(rolloutID string) []api.Event {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	var out []api.Event
	for _, b := range cp.events {
		for _, e := range b.Events {
			if b.RolloutID == rolloutID && e.Seq == int64(len(out))+1 {
				out = append(out, e)
			}
		}
	}
	return out
}

// HasEvent says whether a rollout's events so far have one of the kind.
func (cp *ControlPlane) HasEvent(rolloutID string, kind api.EventKind) bool {
	return slices.ContainsFunc(cp.Events(rolloutID), func(e api.Event) bool { return e.Kind == kind })
}

// Problem answers with a problem of the code.
func Problem(w http.ResponseWriter, status int, code api.Code, detail string) {
	w.Header().Set("Content-Type", api.ProblemType)
	w.WriteHeader(status)
	writeJSON(w, api.Problem{Type: "/problems/" + string(code), Title: string(code), Status: status, Detail: detail, Code: code})
}

// JSON answers 200 with v.
func JSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	writeJSON(w, v)
}

func writeJSON(w io.Writer, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	_, _ = w.Write(data)
}

// WaitOf reads the wait of a poll.
func WaitOf(r *http.Request) time.Duration {
	n, _ := strconv.Atoi(r.URL.Query().Get("wait"))
	return time.Duration(n) * time.Second
}
