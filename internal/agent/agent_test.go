package agent_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent"
	"nixfleet.dev/nixfleet/internal/agent/standin"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
)

// config is that of a host below dir, with a certificate where ca is not nil.
func config(t *testing.T, ca *standin.CA, cp *standin.ControlPlane, name string) agent.Config {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	in := func(file string) string { return filepath.Join(dir, file) }
	files := ca.WriteHost(dir, name)
	standin.WriteFile(t, in("trust.json"), manifesttest.TrustJSON(manifesttest.Trust()))
	return agent.Config{
		ControlPlanes: []string{cp.URL}, Hostname: name, StateDir: in("state"), TrustFile: in("trust.json"),
		ErrorBackoff: 50 * time.Millisecond, HeartbeatInterval: time.Second,
		TLS: agent.TLS{CA: files.CA, Cert: files.Cert, Key: files.Key},
		Activation: agent.Activation{
			Backend: "directory", Store: in("store"), CurrentSystem: in("current-system"), Profile: in("profile"),
		},
	}
}

// start runs an agent and returns what ends it and says how it ended.
func start(t *testing.T, c agent.Config) (stop func() error) {
	t.Helper()
	return startLogging(t, c, t.Output())
}

func startLogging(t *testing.T, c agent.Config, log io.Writer) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- agent.Run(ctx, c, agent.Options{
			Logger: slog.New(slog.NewTextHandler(log, nil)), Clock: clock.System{}, Version: "test",
		})
	}()
	stopped := false
	stop = func() error {
		stopped = true
		begin := clock.System{}.Now()
		cancel()
		err := <-done
		if took := (clock.System{}).Now().Sub(begin); took > 2*time.Second {
			t.Errorf("%s took %v to end", c.Hostname, took)
		}
		return err
	}
	t.Cleanup(func() {
		if !stopped {
			stop()
		}
	})
	return stop
}

func TestAnAgentEnrolsBeatsPollsAndKeepsItsJournalOverARestart(t *testing.T) {
	ca := standin.NewCA(t)
	cp := standin.Start(t, ca)
	cp.Handle("POST /v1/enroll", func(w http.ResponseWriter, r *http.Request) {
		var asked api.EnrollRequest
		if err := json.Unmarshal(standin.Of(r).Body, &asked); err != nil {
			t.Error(err)
		}
		block, _ := pem.Decode([]byte(asked.CSR))
		csr, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			t.Error(err)
			return
		}
		standin.JSON(w, api.CertificateReply{Certificate: string(ca.Host("web-01", csr.PublicKey, standin.NotBefore, standin.NotAfter))})
	})
	c := config(t, ca, cp, "web-01")
	c.TLS.Cert, c.TLS.Key = filepath.Join(c.StateDir, "host.pem"), filepath.Join(c.StateDir, "host.key")
	c.TLS.EnrollmentToken = filepath.Join(filepath.Dir(c.StateDir), "token")
	standin.WriteFile(t, c.TLS.EnrollmentToken, []byte(`{"payloadType":"x","payload":"e30=","signatures":[]}`))
	for round := range 2 {
		stop := start(t, c)
		cp.Wait("it polls", func() bool { return len(cp.Requests("GET /v1/agent/dispatch")) > round })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	beats := cp.Heartbeats()
	if beats[0].JournalID == "" || beats[0].JournalID != beats[len(beats)-1].JournalID {
		t.Errorf("journals %q and %q", beats[0].JournalID, beats[len(beats)-1].JournalID)
	}
	if requests := cp.Requests(""); requests[0].Path != "/v1/enroll" || requests[1].Path != "/v1/agent/heartbeat" || requests[1].Host != "web-01" {
		t.Errorf("the first requests are %s and %s by %q", requests[0].Path, requests[1].Path, requests[1].Host)
	}
	if n := len(cp.Requests("POST /v1/enroll")); n != 1 {
		t.Errorf("enrolled %d times", n)
	}
}

func TestTwoAgentsNeverShareAStateFolder(t *testing.T) {
	ca := standin.NewCA(t)
	cp := standin.Start(t, ca)
	c := config(t, ca, cp, "web-01")
	start(t, c)
	cp.Wait("the first beats", func() bool { return len(cp.Heartbeats()) > 0 })
	err := agent.Run(t.Context(), c, agent.Options{Logger: slog.New(slog.DiscardHandler), Clock: clock.System{}})
	if err == nil {
		t.Fatal("a second agent ran")
	}
}

func TestAnAgentEndsSoonWhateverItWaitsFor(t *testing.T) {
	ca := standin.NewCA(t)
	t.Run("a control plane that never answers", func(t *testing.T) {
		cp := standin.Start(t, ca)
		cp.Handle("POST /v1/agent/heartbeat", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		stop := start(t, config(t, ca, cp, "web-01"))
		cp.Wait("it beats", func() bool { return len(cp.Requests("")) > 0 })
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	t.Run("a dead one", func(t *testing.T) {
		cp := standin.Start(t, ca)
		cp.Close()
		c := config(t, ca, cp, "web-01")
		c.ErrorBackoff = time.Hour
		failed := &waiter{text: "heartbeat failed", found: make(chan struct{})}
		stop := startLogging(t, c, failed)
		<-failed.found
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// waiter is a log that tells when it was told of something.
type waiter struct {
	text  string
	found chan struct{}
	once  sync.Once
}

func (w *waiter) Write(p []byte) (int, error) {
	if strings.Contains(string(p), w.text) {
		w.once.Do(func() { close(w.found) })
	}
	return len(p), nil
}

func TestAnAgentDoesNotStartWithoutWhatItNeeds(t *testing.T) {
	ca := standin.NewCA(t)
	cp := standin.Start(t, ca)
	for want, spoil := range map[string]func(c *agent.Config){
		"trust":                      func(c *agent.Config) { c.TrustFile += "x" },
		"CA file":                    func(c *agent.Config) { c.TLS.CA += "x" },
		"no certificate":             func(c *agent.Config) { c.TLS.Cert += "x" },
		"not that of host web-02":    func(c *agent.Config) { c.Hostname = "web-02" },
		"no such activation backend": func(c *agent.Config) { c.Activation.Backend = "nixos" },
	} {
		c := config(t, ca, cp, "web-01")
		spoil(&c)
		err := agent.Run(t.Context(), c, agent.Options{Logger: slog.New(slog.DiscardHandler), Clock: clock.System{}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error about %q, got %v", want, err)
		}
	}
}

func TestManyAgentsRunInOneProcessAndLeaveNothingBehind(t *testing.T) {
	const many = 40
	ca := standin.NewCA(t)
	cp := standin.Start(t, ca)
	before := runtime.NumGoroutine()
	var stops []func() error
	for i := range many {
		stops = append(stops, start(t, config(t, ca, cp, fmt.Sprintf("web-%02d", i))))
	}
	polling := func() int {
		hosts := map[string]bool{}
		for _, r := range cp.Requests("GET /v1/agent/dispatch") {
			hosts[r.Host] = true
		}
		return len(hosts)
	}
	cp.Wait("all poll", func() bool { return polling() == many })
	// The server has two goroutines a connection, which are counted too.
	if each := (runtime.NumGoroutine() - before) / many; each > 20 {
		t.Errorf("%d goroutines an agent", each)
	}
	for _, stop := range stops {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
	for range 100 { // the server notices closed connections a little later
		if runtime.NumGoroutine() <= before+5 {
			return
		}
		clock.System{}.Sleep(t.Context(), 20*time.Millisecond)
	}
	t.Errorf("%d goroutines before, %d after", before, runtime.NumGoroutine())
}
