package load

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane"
	"nixfleet.dev/nixfleet/internal/controlplane/cptest"
	"nixfleet.dev/nixfleet/internal/controlplane/dispatch"
	"nixfleet.dev/nixfleet/internal/controlplane/server"
)

// Kinds of servers that a process of this test can be.
const (
	bare  = "bare"          // net/http with a channel for each host
	front = "server"        // the control plane's HTTPS side and registry, without a log
	whole = "control-plane" // all of it
)

// Variables that make this program such a server.
const (
	kindVariable = "NIXFLEET_LOAD_SERVER"
	dirVariable  = "NIXFLEET_LOAD_DIR"
)

func TestMain(m *testing.M) {
	kind := os.Getenv(kindVariable)
	if kind == "" {
		os.Exit(m.Run())
	}
	if err := serve(kind, os.Getenv(dirVariable)); err != nil {
		fmt.Fprintln(os.Stderr, "serving:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// started is what a server says on stdout when it is ready.
type started struct {
	Addr    string `json:"addr"`
	Control string `json:"control"`
}

// waker is what the control listener of a server can do.
type waker interface {
	parked() int
	wake(host string)
}

// serve is a server of some kind until stdin ends.
func serve(kind, dir string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	addr := make(chan string, 1)
	failed := make(chan error, 1)
	var w waker
	switch kind {
	case bare:
		b := &bareServer{hosts: map[string]chan *api.Dispatch{}}
		w = b
		go func() { failed <- b.serve(ctx, dir, addr) }()
	case front:
		f := &frontServer{registry: dispatch.New()}
		w = f
		go func() { failed <- f.serve(ctx, dir, addr) }()
	case whole:
		s := &wholeServer{}
		w = s
		go func() { failed <- s.serve(ctx, dir, addr) }()
	}
	var s started
	select {
	case s.Addr = <-addr:
	case err := <-failed:
		return err
	}
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.Control = control.Addr().String()
	line, err := json.Marshal(s)
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(control, controlHandler(w)) }()
	fmt.Println(string(line))
	return <-failed
}

// usage is what a server has used.
type usage struct {
	Parked int   `json:"parked"`
	RSS    int64 `json:"rss"`  // bytes
	Peak   int64 `json:"peak"` // bytes
	CPU    int64 `json:"cpu"`  // nanoseconds
}

func controlHandler(w waker) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /usage", func(rw http.ResponseWriter, _ *http.Request) {
		u := usage{Parked: w.parked(), RSS: statusOf("VmRSS"), Peak: statusOf("VmHWM"), CPU: cpu()}
		data, err := json.Marshal(u)
		if err != nil {
			data = []byte(err.Error())
		}
		_, _ = rw.Write(data)
	})
	mux.HandleFunc("POST /wake", func(_ http.ResponseWriter, r *http.Request) {
		for line := range lines(r.Body) {
			w.wake(line)
		}
	})
	return mux
}

func lines(r io.Reader) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for s := bufio.NewScanner(r); s.Scan(); {
			if !yield(s.Text()) {
				return
			}
		}
	}
}

// statusOf reads a number of kB from /proc/self/status, in bytes.
func statusOf(key string) int64 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return n << 10
		}
	}
	return 0
}

func cpu() int64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

func offer(host string) *api.Dispatch {
	return &api.Dispatch{Hostname: host, RolloutID: "stable@0a1b2c3d", Action: api.ActionActivate, Attempt: 1,
		TargetClosure: "00000000000000000000000000000000-nixos-system-" + host + "-25.11", SoakDueAt: time.Now().UTC(), EnqueuedAt: time.Now().UTC()}
}

// bareServer is the baseline: net/http as it comes, one channel a host.
type bareServer struct {
	mu    sync.Mutex
	hosts map[string]chan *api.Dispatch
	n     int
}

func (b *bareServer) of(host string) chan *api.Dispatch {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.hosts[host]
	if c == nil {
		c = make(chan *api.Dispatch, 1)
		b.hosts[host] = c
	}
	return c
}

func (b *bareServer) parked() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.n
}

func (b *bareServer) count(by int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n += by
}

func (b *bareServer) wake(host string) { b.of(host) <- offer(host) }

func (b *bareServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.count(1)
	defer b.count(-1)
	timer := time.NewTimer(10 * time.Minute)
	defer timer.Stop()
	select {
	case d := <-b.of(r.TLS.PeerCertificates[0].Subject.CommonName):
		data, err := json.Marshal(d)
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(data)
	case <-timer.C:
		w.WriteHeader(http.StatusNoContent)
	case <-r.Context().Done():
	}
}

func (b *bareServer) serve(ctx context.Context, dir string, addr chan<- string) error {
	f := files(dir)
	ca, err := os.ReadFile(f.CA)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(ca)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := &http.Server{Handler: b, TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	addr <- socket.Addr().String()
	if err := s.ServeTLS(socket, f.Cert, f.Key); err != http.ErrServerClosed {
		return err
	}
	return nil
}

func files(dir string) cptest.Files {
	return cptest.Files{Cert: filepath.Join(dir, "server.crt"), Key: filepath.Join(dir, "server.key"), CA: filepath.Join(dir, "ca.crt")}
}

// frontServer is the control plane's HTTPS side alone.
type frontServer struct {
	registry *dispatch.Registry
	nothing
}

// nothing is a Core, and nothing else that a server needs for polls.
type nothing struct {
	server.Views
	server.Artifacts
}

func (nothing) Ready() bool  { return true }
func (nothing) Heard(string) {}
func (nothing) Events(context.Context, api.EventBatch) (api.EventsAck, error) {
	return api.EventsAck{}, nil
}
func (nothing) Heartbeat(context.Context, api.Heartbeat) (api.HeartbeatReply, error) {
	return api.HeartbeatReply{}, nil
}
func (nothing) Reject(context.Context, api.Rejection) error { return nil }

func (f *frontServer) parked() int {
	n, _ := f.registry.Counts()
	return n
}

// wake offers once: the next poll finds nothing.
func (f *frontServer) wake(host string) {
	f.registry.Set(host, offer(host))
	f.registry.Set(host, nil)
}

func (f *frontServer) serve(ctx context.Context, dir string, addr chan<- string) error {
	pem := files(dir)
	credentials, err := server.LoadCredentials(pem.Cert, pem.Key, pem.CA)
	if err != nil {
		return err
	}
	s := server.New(server.Options{
		Credentials: credentials, TrustDomain: cptest.TrustDomain, Registry: f.registry, Core: f, Clock: clock.System{},
		Logger: slog.New(slog.DiscardHandler), Metrics: server.NewMetrics(prometheus.NewRegistry()),
	})
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr <- socket.Addr().String()
	return s.Serve(ctx, socket, time.Second)
}

// wholeServer is a control plane whose repository and trust.json are in a directory. What wakes a host is
// what hosts report.
type wholeServer struct{ metrics string }

func (s *wholeServer) wake(string) {}

func (s *wholeServer) parked() int {
	resp, err := http.Get("http://" + s.metrics + "/metrics")
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	for line := range lines(resp.Body) {
		if value, ok := strings.CutPrefix(line, "nixfleet_polls_parked "); ok {
			n, _ := strconv.ParseFloat(value, 64)
			return int(n)
		}
	}
	return 0
}

func (s *wholeServer) serve(ctx context.Context, dir string, addr chan<- string) error {
	pem := files(dir)
	return controlplane.Run(ctx, controlplane.Config{
		Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", StateDir: filepath.Join(dir, "state"), TrustFile: filepath.Join(dir, "trust.json"),
		TrustDomain: cptest.TrustDomain, ShutdownTimeout: time.Second,
		TLS:    controlplane.TLS{Cert: pem.Cert, Key: pem.Key, ClientCA: pem.CA},
		Source: controlplane.Source{URL: "file://" + filepath.Join(dir, "repo"), PollInterval: 50 * time.Millisecond},
	}, controlplane.Options{
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})), Clock: clock.System{},
		Ready: func(a, metrics net.Addr) {
			s.metrics = metrics.String()
			addr <- a.String()
		},
	})
}

// process is a server in a process of its own.
type process struct {
	tb testing.TB
	started
	base int64 // RSS when it began, in bytes
	stop func()
}

// launch starts a server that ends with the benchmark, or when it is stopped.
func launch(tb testing.TB, kind, dir string) *process {
	tb.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), kindVariable+"="+kind, dirVariable+"="+dir)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	p := &process{tb: tb, stop: sync.OnceFunc(func() {
		stdin.Close()
		_ = cmd.Wait()
	})}
	tb.Cleanup(p.stop)
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &p.started)
	}
	if err != nil {
		tb.Fatalf("the %s server did not start: %v", kind, err)
	}
	p.base = p.usage().RSS
	return p
}

func (p *process) usage() usage {
	p.tb.Helper()
	resp, err := http.Get("http://" + p.Control + "/usage")
	if err != nil {
		p.tb.Fatal(err)
	}
	defer resp.Body.Close()
	var u usage
	if err := json.UnmarshalRead(resp.Body, &u); err != nil {
		p.tb.Fatal(err)
	}
	return u
}

// wake has hosts be given a dispatch.
func (p *process) wake(hosts string) {
	p.tb.Helper()
	resp, err := http.Post("http://"+p.Control+"/wake", "text/plain", strings.NewReader(hosts))
	if err != nil {
		p.tb.Fatal(err)
	}
	resp.Body.Close()
}

// awaitParked waits until n polls are parked.
func (p *process) awaitParked(n int) {
	p.tb.Helper()
	for p.usage().Parked < n {
		if err := (clock.System{}).Sleep(p.tb.Context(), 20*time.Millisecond); err != nil {
			p.tb.Fatal(err)
		}
	}
}
