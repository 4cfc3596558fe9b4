package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/client"
	"nixfleet.dev/nixfleet/internal/agent/standin"
	"nixfleet.dev/nixfleet/internal/clock"
)

const (
	dispatchPath  = "GET /v1/agent/dispatch"
	heartbeatPath = "POST /v1/agent/heartbeat"
	eventsPath    = "POST /v1/agent/events"
)

func newClient(t *testing.T, f standin.Files, cps ...*standin.ControlPlane) *client.Client {
	t.Helper()
	o := client.Options{
		CA: f.CA, Cert: f.Cert, Key: f.Key, Version: "test",
		Clock: clock.System{}, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, cp := range cps {
		o.ControlPlanes = append(o.ControlPlanes, cp.URL)
		o.Dial = cp.Dial
	}
	c, err := client.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestEveryRequestCarriesTheProtocolAndTheHostsCertificate(t *testing.T) {
	ca := standin.NewCA(t)
	cp := standin.Start(t, ca)
	c := newClient(t, ca.WriteHost(t.TempDir(), "web-01"), cp)
	ctx := t.Context()
	if _, err := c.Heartbeat(ctx, api.Heartbeat{Hostname: "web-01"}); err != nil {
		t.Error(err)
	}
	if err := c.Reject(ctx, api.Rejection{Hostname: "web-01"}); err != nil {
		t.Error(err)
	}
	cp.Publish("stable@0a1b2c3", []byte("envelope"), "web-01", api.HostProof{Line: "line"})
	if data, err := c.Manifest(ctx, "stable@0a1b2c3"); err != nil || string(data) != "envelope" {
		t.Errorf("got %q, %v", data, err)
	}
	if p, err := c.HostProof(ctx, "stable@0a1b2c3", "web-01"); err != nil || p.Line != "line" {
		t.Errorf("got %v, %v", p, err)
	}
	requests := cp.Requests("")
	if len(requests) != 4 {
		t.Fatalf("%d requests", len(requests))
	}
	for _, r := range requests {
		if r.Host != "web-01" || r.Header.Get(api.ProtocolHeader) != "1" || r.Header.Get("User-Agent") != "nixfleet-agent/test" {
			t.Errorf("%s %s: host %q, header %v", r.Method, r.Path, r.Host, r.Header)
		}
		if r.Remote != requests[0].Remote {
			t.Errorf("%s %s came over a connection of its own", r.Method, r.Path)
		}
	}
}

func TestAnythingButTLS13AndTheFleetsCAIsRefused(t *testing.T) {
	ca, thief := standin.NewCA(t), standin.NewCA(t)
	cp := standin.Start(t, thief)
	c := newClient(t, ca.WriteHost(t.TempDir(), "web-01"), cp)
	if _, err := c.Dispatch(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a certificate of another CA: %v", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	old := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	defer old.Close()
	go old.Serve(tls.NewListener(listener, &tls.Config{MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{ca.Server()}}))
	c = newClient(t, ca.WriteHost(t.TempDir(), "web-01"), &standin.ControlPlane{URL: "https://" + listener.Addr().String()})
	if _, err := c.Dispatch(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("TLS 1.2: %v", err)
	}
}

func TestAHostsCertificateCannotServe(t *testing.T) {
	ca := standin.NewCA(t)
	stolen := ca.WriteHost(t.TempDir(), "127.0.0.1")
	pair, err := tls.LoadX509KeyPair(stolen.Cert, stolen.Key)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	defer server.Close()
	go server.Serve(tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{pair}}))
	c := newClient(t, ca.WriteHost(t.TempDir(), "web-01"), &standin.ControlPlane{URL: "https://" + listener.Addr().String()})
	if _, err := c.Dispatch(t.Context(), 0); err == nil {
		t.Error("a host's certificate was taken for a control plane's")
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	ca := standin.NewCA(t)
	cp, elsewhere := standin.Start(t, ca), standin.Start(t, ca)
	cp.Handle(heartbeatPath, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL+"/v1/agent/heartbeat", http.StatusTemporaryRedirect)
	})
	c := newClient(t, ca.WriteHost(t.TempDir(), "web-01"), cp)
	_, err := c.Heartbeat(t.Context(), api.Heartbeat{})
	if status, ok := errors.AsType[*client.StatusError](err); !ok || status.Status != 307 {
		t.Errorf("got %v", err)
	}
	if n := len(elsewhere.Requests("")); n != 0 {
		t.Errorf("the redirect was followed %d times", n)
	}
}

func TestAProxyOfTheEnvironmentIsNotUsed(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	t.Setenv("https_proxy", "http://127.0.0.1:1")
	ca := standin.NewCA(t)
	cp := standin.Start(t, ca)
	c := newClient(t, ca.WriteHost(t.TempDir(), "web-01"), cp)
	if _, err := c.Dispatch(t.Context(), 0); err != nil {
		t.Error(err)
	}
}

func TestAProblemIsReadAndWhatItSaysIsQuoted(t *testing.T) {
	ca := standin.NewCA(t)
	cp := standin.Start(t, ca)
	cp.Handle(eventsPath, func(w http.ResponseWriter, r *http.Request) {
		standin.Problem(w, 409, api.CodeSequenceGap, "line\nbreak"+strings.Repeat("x", 5000))
	})
	c := newClient(t, ca.WriteHost(t.TempDir(), "web-01"), cp)
	_, err := c.Events(t.Context(), api.EventBatch{})
	if !client.IsProblem(err, api.CodeSequenceGap) {
		t.Fatalf("got %v", err)
	}
	if text := err.Error(); strings.Contains(text, "\n") || len(text) > 400 {
		t.Errorf("raw text of the control plane in %q", text)
	}
}

func TestRetryAfterIsClampedToFiveMinutes(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"7": 7 * time.Second, "300": 5 * time.Minute, "301": 5 * time.Minute, "9999999999999999999": 0,
		"999999999999": 5 * time.Minute, "-3": 0, "soon": 0, "Fri, 31 Dec 2100 23:59:59 GMT": 5 * time.Minute,
		"Fri, 31 Dec 1999 23:59:59 GMT": 0, "": 0,
	} {
		synctest.Test(t, func(t *testing.T) {
			ca := standin.NewCA(t)
			cp := standin.StartInMemory(t, ca)
			cp.Handle(dispatchPath, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Retry-After", header)
				standin.Problem(w, 503, api.CodeOverloaded, "")
			})
			c := newClient(t, ca.WriteHost(t.TempDir(), "web-01"), cp)
			_, err := c.Dispatch(t.Context(), time.Minute)
			if got := client.RetryAfter(err); err == nil || got != want {
				t.Errorf("Retry-After %q: wait %v, want %v (%v)", header, got, want, err)
			}
		})
	}
}

func TestADeadControlPlaneDoesNotBlockAndTheGoodOneIsRemembered(t *testing.T) {
	ca := standin.NewCA(t)
	dead, good := standin.Start(t, ca), standin.Start(t, ca)
	dead.Close()
	f := ca.WriteHost(t.TempDir(), "web-01")
	dials := 0
	c, err := client.New(client.Options{
		ControlPlanes: []string{dead.URL, good.URL}, CA: f.CA, Cert: f.Cert, Key: f.Key,
		Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler),
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if strings.HasSuffix(dead.URL, address) {
				dials++
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		if _, err := c.Dispatch(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	if dials != 1 {
		t.Errorf("the dead control plane was dialled %d times; once is enough to learn", dials)
	}
}

func TestAnOverloadedControlPlaneIsLeftAloneAsLongAsItAsks(t *testing.T) {
	ca := standin.NewCA(t)
	busy, good := standin.Start(t, ca), standin.Start(t, ca)
	busy.Handle(dispatchPath, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "60")
		standin.Problem(w, 503, api.CodeOverloaded, "")
	})
	c := newClient(t, ca.WriteHost(t.TempDir(), "web-01"), busy, good)
	_, err := c.Dispatch(t.Context(), 0)
	if err == nil || client.RetryAfter(err) != 0 {
		t.Errorf("another control plane may be asked at once, but the error is %v, wait %v", err, client.RetryAfter(err))
	}
	for range 3 {
		if _, err := c.Dispatch(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		c.Avoid() // even where the good one is not preferred
	}
	if n := len(busy.Requests("")); n != 1 {
		t.Errorf("%d requests to a control plane that asked to be left alone", n)
	}
}

func TestTheSecondConnectionClosesSoonAfterEventsAreSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := standin.NewCA(t)
		cp := standin.StartInMemory(t, ca)
		f := ca.WriteHost(t.TempDir(), "web-01")
		var open atomic.Int32
		c, err := client.New(client.Options{
			ControlPlanes: []string{cp.URL}, CA: f.CA, Cert: f.Cert, Key: f.Key,
			Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler),
			Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := cp.Dial(ctx, network, address)
				open.Add(1)
				return &countedConn{Conn: conn, open: &open}, err
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		polled := make(chan error)
		go func() {
			_, err := c.Dispatch(t.Context(), time.Minute)
			polled <- err
		}()
		synctest.Wait()
		batch := api.EventBatch{Events: []api.Event{{Seq: 1, Kind: api.Converged}}}
		for range 2 {
			if _, err := c.Events(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if open.Load() != 2 {
			t.Errorf("%d connections while a poll is parked and events go out, want 2", open.Load())
		}
		clock.System{}.Sleep(t.Context(), 11*time.Second)
		synctest.Wait()
		if open.Load() != 1 {
			t.Errorf("%d connections 11 s later, want 1", open.Load())
		}
		if err := <-polled; err != nil {
			t.Error(err)
		}
	})
}

type countedConn struct {
	net.Conn
	open *atomic.Int32
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

func TestConfirmTakesAnyAuthenticatedAnswerOverANewConnection(t *testing.T) {
	ca := standin.NewCA(t)
	cp := standin.Start(t, ca)
	c := newClient(t, ca.WriteHost(t.TempDir(), "web-01"), cp)
	for _, status := range []int{200, 403, 500, 503} {
		cp.Handle(heartbeatPath, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) })
		if err := c.Confirm(t.Context(), api.Heartbeat{}); err != nil {
			t.Errorf("status %d: %v", status, err)
		}
	}
	cp.Handle(heartbeatPath, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(401) })
	if err := c.Confirm(t.Context(), api.Heartbeat{}); err == nil {
		t.Error("401 does not show that the host was authenticated, but it counted")
	}
	remotes := map[string]bool{}
	for _, r := range cp.Requests(heartbeatPath) {
		remotes[r.Remote] = true
	}
	if len(remotes) != 5 {
		t.Errorf("5 confirmations over %d connections", len(remotes))
	}
	cp.Close()
	if err := c.Confirm(t.Context(), api.Heartbeat{}); err == nil {
		t.Error("nobody answered, but it counted")
	}
}

func TestEnrollShowsNoCertificateEvenWhereThereIsAnOldOne(t *testing.T) {
	ca := standin.NewCA(t)
	cp := standin.Start(t, ca)
	cp.Handle("POST /v1/enroll", func(w http.ResponseWriter, r *http.Request) {
		standin.JSON(w, api.CertificateReply{Certificate: "PEM", NotAfter: standin.NotAfter})
	})
	c := newClient(t, ca.WriteHost(t.TempDir(), "web-01"), cp)
	if _, err := c.Enroll(t.Context(), api.EnrollRequest{}); err != nil {
		t.Fatal(err)
	}
	if host := cp.Requests("")[0].Host; host != "" {
		t.Errorf("enrolled with the certificate of %q", host)
	}
}

func TestUnusableTLSFilesAreRefusedAtTheStart(t *testing.T) {
	ca := standin.NewCA(t)
	f, other := ca.WriteHost(t.TempDir(), "web-01"), ca.WriteHost(t.TempDir(), "web-02")
	for name, o := range map[string]client.Options{
		"no CA file":            {CA: f.CA + "x", Cert: f.Cert, Key: f.Key},
		"a CA file with no PEM": {CA: f.Key, Cert: f.Cert, Key: f.Key},
		"another host's key":    {CA: f.CA, Cert: f.Cert, Key: other.Key},
		"http":                  {CA: f.CA, Cert: f.Cert, Key: f.Key, ControlPlanes: []string{"http://cp.example"}},
		"no control plane":      {CA: f.CA, Cert: f.Cert, Key: f.Key, ControlPlanes: []string{}},
	} {
		o.Clock, o.Logger = clock.System{}, slog.New(slog.DiscardHandler)
		if o.ControlPlanes == nil {
			o.ControlPlanes = []string{"https://cp.example"}
		}
		if _, err := client.New(o); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestUnreadableNewFilesLeaveTheLastGoodOnesInUse(t *testing.T) {
	ca := standin.NewCA(t)
	cp := standin.Start(t, ca)
	f := ca.WriteHost(t.TempDir(), "web-01")
	var log bytes.Buffer
	c, err := client.New(client.Options{
		ControlPlanes: []string{cp.URL}, CA: f.CA, Cert: f.Cert, Key: f.Key, Clock: clock.System{},
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	standin.WriteFile(t, f.Cert, []byte("half a certif"))
	for range 2 {
		if _, err := c.Dispatch(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(log.String(), "cannot be used"); n != 1 {
		t.Errorf("warned %d times about one change:\n%s", n, &log)
	}
}

func TestEveryAnswerIsReadThroughACap(t *testing.T) {
	ca := standin.NewCA(t)
	cp := standin.Start(t, ca)
	endless := func(w http.ResponseWriter, r *http.Request) {
		chunk := bytes.Repeat([]byte(" "), 64<<10)
		for r.Context().Err() == nil {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
	for _, endpoint := range []string{dispatchPath, heartbeatPath, eventsPath, "POST /v1/agent/rejections", "GET manifest", "GET host", "POST /v1/enroll", "POST /v1/agent/renew"} {
		cp.Handle(endpoint, endless)
	}
	c := newClient(t, ca.WriteHost(t.TempDir(), "web-01"), cp)
	ctx := t.Context()
	_, dispatchErr := c.Dispatch(ctx, time.Minute)
	_, heartbeatErr := c.Heartbeat(ctx, api.Heartbeat{})
	_, eventsErr := c.Events(ctx, api.EventBatch{})
	_, manifestErr := c.Manifest(ctx, "stable@0a1b2c3")
	_, proofErr := c.HostProof(ctx, "stable@0a1b2c3", "web-01")
	_, enrollErr := c.Enroll(ctx, api.EnrollRequest{})
	_, renewErr := c.Renew(ctx, api.RenewRequest{})
	for name, err := range map[string]error{
		"dispatch": dispatchErr, "heartbeat": heartbeatErr, "events": eventsErr, "manifest": manifestErr,
		"proof": proofErr, "enroll": enrollErr, "renew": renewErr, "reject": c.Reject(ctx, api.Rejection{}),
	} {
		if tooLarge, ok := errors.AsType[*client.TooLargeError](err); !ok {
			t.Errorf("%s: an endless answer gave %v", name, err)
		} else if tooLarge.Limit > 2<<20 {
			t.Errorf("%s: the cap is %d bytes", name, tooLarge.Limit)
		}
	}
}

func TestADeclaredLengthOverTheCapIsNotReadAtAll(t *testing.T) {
	ca := standin.NewCA(t)
	cp := standin.Start(t, ca)
	cp.Handle("GET manifest", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "10000000000")
		io.WriteString(w, "{")
	})
	c := newClient(t, ca.WriteHost(t.TempDir(), "web-01"), cp)
	_, err := c.Manifest(t.Context(), "stable@0a1b2c3")
	if _, ok := errors.AsType[*client.TooLargeError](err); !ok {
		t.Errorf("got %v", err)
	}
}

func TestASlowAnswerRunsIntoTheRequestsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := standin.NewCA(t)
		cp := standin.StartInMemory(t, ca)
		cp.Handle(heartbeatPath, func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil { // one byte a second
				io.WriteString(w, " ")
				http.NewResponseController(w).Flush()
				clock.System{}.Sleep(r.Context(), time.Second)
			}
		})
		c := newClient(t, ca.WriteHost(t.TempDir(), "web-01"), cp)
		begin := clock.System{}.Now()
		_, err := c.Heartbeat(t.Context(), api.Heartbeat{})
		took := clock.System{}.Now().Sub(begin)
		if err == nil || took != 30*time.Second {
			t.Errorf("ended after %v with %v", took, err)
		}
	})
}

func TestACertificateThatVanishesLeavesTheLastOneInUse(t *testing.T) {
	ca := standin.NewCA(t)
	cp := standin.Start(t, ca)
	f := ca.WriteHost(t.TempDir(), "web-01")
	c := newClient(t, f, cp)
	if err := os.Remove(f.Cert); err != nil {
		t.Fatal(err)
	}
	if err := c.Confirm(t.Context(), api.Heartbeat{}); err != nil { // over a new connection
		t.Fatal(err)
	}
	if requests := cp.Requests(""); requests[0].Host != "web-01" {
		t.Errorf("the request was made by %q", requests[0].Host)
	}
}
