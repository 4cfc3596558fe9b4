// Package contract holds a real control plane to the wire protocol (design/wire.md), section by section:
// over real sockets, with bodies written by hand, so that a field or a code that changes its name on both
// sides at once is noticed. What hostile peers may try is test/attack's.
package contract

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane"
	"nixfleet.dev/nixfleet/internal/lab"
	"nixfleet.dev/nixfleet/internal/release"
	"nixfleet.dev/nixfleet/internal/release/bootstrap"
)

// patience is how long anything may take that is to happen at once.
const patience = 20 * time.Second

// plane is a control plane whose fleet is web-01, which goes first, web-02 and web-03.
type plane struct {
	t        *testing.T
	layout   bootstrap.Layout
	released int
	operator *client

	// Of the run that is on.
	address, metrics string
	log              *log
	stop             func()
}

type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const config = `listen = "127.0.0.1:0"
metrics_listen = "127.0.0.1:0"
state_dir = %q
trust_file = %q
trust_domain = "fleet.example"
[tls]
cert = %q
key = %q
client_ca = %q
[issuer]
ca_cert = %q
ca_key = %q
[source]
url = "file://%s"
poll_interval = "20ms"
`

func newPlane(t *testing.T) *plane {
	t.Helper()
	t.Parallel()
	p := &plane{t: t, log: &log{}}
	var err error
	p.layout, err = bootstrap.Init(filepath.Join(t.TempDir(), "fleet"), bootstrap.InitOptions{
		TrustDomain: "fleet.example", ControlPlane: "https://127.0.0.1:8443", Now: now(),
	})
	p.must(err)
	l := p.layout
	p.must(os.WriteFile(l.ControlPlaneConfig, fmt.Appendf(nil, config, l.ServerState, l.TrustFile,
		l.ServerCert, l.ServerKey, l.ClientCA, l.IssuerCert, l.IssuerKey, l.Repository), 0o600))
	p.publish()
	p.start()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("the control plane's log:\n%s", p.log)
		}
	})
	pair, err := tls.LoadX509KeyPair(l.OperatorCert, l.OperatorKey)
	p.must(err)
	p.operator = p.client(pair)
	return p
}

func now() time.Time { return clock.System{}.Now().UTC() }

func (p *plane) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) start() {
	p.t.Helper()
	c, err := controlplane.Load(p.layout.ControlPlaneConfig)
	p.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan [2]string, 1), make(chan error, 1)
	go func() {
		done <- controlplane.Run(ctx, c, controlplane.Options{
			Logger: slog.New(slog.NewTextHandler(p.log, nil)), Clock: clock.System{}, Version: "test",
			Ready: func(a, m net.Addr) { ready <- [2]string{a.String(), m.String()} },
		})
	}()
	select {
	case addresses := <-ready:
		p.address, p.metrics = addresses[0], addresses[1]
	case err := <-done:
		p.t.Fatalf("it did not start: %v\n%s", err, p.log)
	}
	p.stop = func() {
		p.stop = func() {}
		cancel()
		if err := <-done; err != nil {
			p.t.Errorf("it ended with %v", err)
		}
	}
}

// publish releases the whole fleet anew, and returns the rollout's id.
func (p *plane) publish() string {
	p.t.Helper()
	p.released++
	fleet := api.Fleet{
		SchemaVersion: 1, Commit: fmt.Sprintf("%040x", p.released), Hosts: map[string]api.FleetHost{},
		Channels: map[string]api.FleetChannel{"stable": {RolloutPolicy: "canary", FreshnessWindow: api.Duration(24 * time.Hour)}},
		RolloutPolicies: map[string]api.Policy{"canary": {
			Waves:           []api.Wave{{Selector: &api.Selector{Tags: []string{"canary"}}}, {Selector: &api.Selector{All: true}}},
			OnHealthFailure: api.RollbackAndHalt,
		}},
	}
	for _, name := range []string{"web-01", "web-02", "web-03"} {
		h := api.FleetHost{System: "x86_64-linux", Channel: "stable", Tags: []string{"web"}, Closure: closure(name, p.released)}
		if name == "web-01" {
			h.Tags = append(h.Tags, "canary")
		}
		fleet.Hosts[name] = h
	}
	document, err := json.Marshal(fleet)
	p.must(err)
	options, err := p.layout.Release(now())
	p.must(err)
	_, err = release.Create(p.t.Context(), release.CreateOptions{Options: options, Fleet: document, FleetName: "fleet.json"})
	p.must(err)
	return p.rollout()
}

// rollout is the id of the newest rollout.
func (p *plane) rollout() string { return fmt.Sprintf("stable@%040x", p.released) }

// refresh signs the newest release again.
func (p *plane) refresh() {
	p.t.Helper()
	options, err := p.layout.Release(now().Add(2 * time.Second)) // times in artifacts are whole seconds
	p.must(err)
	_, err = release.Refresh(p.t.Context(), release.RefreshOptions{Options: options})
	p.must(err)
}

// closure is what a host runs after the nth release, or before the first for 0.
func closure(name string, n int) string {
	return lab.Machine{Name: name}.Closure(lab.Version{Number: fmt.Sprint(n)})
}

// client says HTTP by hand.
type client struct {
	p    *plane
	http *http.Client
}

func (p *plane) client(certs ...tls.Certificate) *client {
	p.t.Helper()
	transport := &http.Transport{TLSClientConfig: p.tls(certs...)}
	p.t.Cleanup(transport.CloseIdleConnections)
	return &client{p, &http.Client{Transport: transport, Timeout: time.Minute}}
}

func (p *plane) tls(certs ...tls.Certificate) *tls.Config {
	p.t.Helper()
	ca, err := os.ReadFile(p.layout.CACert)
	p.must(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: certs}
}

// answer is a response, read to its end.
type answer struct {
	t      *testing.T
	what   string
	status int
	header http.Header
	body   []byte
	closes bool
}

// object is a JSON object as it came over the wire.
type object = map[string]any

// request is one that the protocol is content with; header is more, as name and value in turn.
func (c *client) request(method, path, body string, header ...string) *http.Request {
	c.p.t.Helper()
	r, err := http.NewRequest(method, "https://"+c.p.address+path, strings.NewReader(body))
	c.p.must(err)
	r.Header.Set("X-Nixfleet-Protocol", "1")
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	} else {
		r.Body, r.ContentLength = nil, 0
	}
	for i := 0; i < len(header); i += 2 {
		if r.Header.Del(header[i]); header[i+1] != "" {
			r.Header.Set(header[i], header[i+1])
		}
	}
	return r
}

func (c *client) call(method, path, body string, header ...string) answer {
	c.p.t.Helper()
	got, err := c.try(c.request(method, path, body, header...))
	c.p.must(err)
	return got
}

// try sends r, from any goroutine, and checks what every response must have.
func (c *client) try(r *http.Request) (answer, error) {
	resp, err := c.http.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	got := answer{c.p.t, r.Method + " " + r.URL.Path, resp.StatusCode, resp.Header, body, resp.Close}
	if v := resp.Header.Values("X-Nixfleet-Protocol"); !slices.Equal(v, []string{"1"}) {
		err = fmt.Errorf("%s: the response has the protocol versions %v", got.what, v)
	}
	return got, err
}

func (c *client) get(path string) answer {
	c.p.t.Helper()
	return c.call(http.MethodGet, path, "")
}

func (c *client) post(path, body string) answer {
	c.p.t.Helper()
	return c.call(http.MethodPost, path, body)
}

// ok reads the object of a 200.
func (a answer) ok() (o object) {
	a.t.Helper()
	if a.status != http.StatusOK || a.header.Get("Content-Type") != "application/json" {
		a.t.Fatalf("%s: %d %s %s, want a 200 of JSON", a.what, a.status, a.header.Get("Content-Type"), a.body)
	}
	if err := json.Unmarshal(a.body, &o); err != nil {
		a.t.Fatalf("%s: %v in %s", a.what, err, a.body)
	}
	return o
}

// empty checks that the answer is 204 without a body.
func (a answer) empty() {
	a.t.Helper()
	if a.status != http.StatusNoContent || len(a.body) > 0 {
		a.t.Errorf("%s: %d %s, want 204 and no body", a.what, a.status, a.body)
	}
}

// problem checks that the answer is a problem with that status and code (RFC 9457), and returns it.
func (a answer) problem(status int, code string) (o object) {
	a.t.Helper()
	if a.status != status || a.header.Get("Content-Type") != "application/problem+json" {
		a.t.Errorf("%s: %d %s %s, want the problem %d %s", a.what, a.status, a.header.Get("Content-Type"), a.body, status, code)
		return o
	}
	if err := json.Unmarshal(a.body, &o); err != nil {
		a.t.Errorf("%s: %v in %s", a.what, err, a.body)
	}
	if o["code"] != code || o["type"] != "/problems/"+code || o["status"] != float64(status) || o["title"] == "" || o["detail"] == "" {
		a.t.Errorf("%s: %s, want the code %s", a.what, a.body, code)
	}
	if waits := a.header.Get("Retry-After") != ""; waits != (status == 429 || status == 503) {
		a.t.Errorf("%s: %d with Retry-After %q", a.what, status, a.header.Get("Retry-After"))
	}
	return o
}

// has checks that an object has these fields; those after "only" are all that it may have.
func (p *plane) has(what string, o object, fields string) {
	p.t.Helper()
	list, only := strings.CutPrefix(fields, "only ")
	names := strings.Fields(list)
	for _, name := range names {
		if _, there := o[name]; !there {
			p.t.Errorf("%s lacks %s: %v", what, name, o)
		}
	}
	for name := range o {
		if only && !slices.Contains(names, name) {
			p.t.Errorf("%s has %s, which the contract does not know", what, name)
		}
	}
}

// eventually asks until it is told true.
func (p *plane) eventually(what string, is func() bool) {
	p.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-deadline.C:
			p.t.Fatalf("not within %s: %s", patience, what)
		case <-tick.C:
		}
	}
}
