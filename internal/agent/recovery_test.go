package agent_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent"
	"nixfleet.dev/nixfleet/internal/agent/activation"
	"nixfleet.dev/nixfleet/internal/agent/activation/activationtest"
	"nixfleet.dev/nixfleet/internal/agent/activation/directory"
	"nixfleet.dev/nixfleet/internal/agent/journal"
	"nixfleet.dev/nixfleet/internal/agent/standin"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/hoststate"
)

func TestMain(m *testing.M) {
	if directory.HelperMain(os.Args) {
		return
	}
	os.Exit(m.Run())
}

const (
	before = "0c2s7dq1p8m6x9y4z5v3w0a1b2c3d4f5-before"
	after  = "1c2s7dq1p8m6x9y4z5v3w0a1b2c3d4f5-after"
)

// journalOf makes record what the host's journal holds.
func journalOf(t *testing.T, c agent.Config, record any) {
	t.Helper()
	data, err := json.Marshal(record)
	if err != nil {
		t.Fatal(err)
	}
	j, _, err := journal.Open(journal.Options{Dir: c.StateDir})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if err := j.Append(data); err != nil {
		t.Fatal(err)
	}
}

func TestAJournalOfAnotherVersionIsSetAsideAndANewOneBegun(t *testing.T) {
	ca := standin.NewCA(t)
	cp := standin.Start(t, ca)
	c := config(t, ca, cp, "web-01")
	journalOf(t, c, map[string]any{"v": 2, "snapshot": true, "journalId": strings.Repeat("a", 32)})
	for round := range 2 {
		stop := start(t, c)
		cp.Wait("it beats", func() bool { return len(cp.Heartbeats()) > round })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	beats := cp.Heartbeats()
	first, last := beats[0].JournalID, beats[len(beats)-1].JournalID
	if len(first) != 32 || strings.HasPrefix(first, "aaaa") || first != last {
		t.Errorf("the journal's ids are %q and %q", first, last)
	}
	if aside, err := filepath.Glob(filepath.Join(c.StateDir, "journal.damaged.*")); err != nil || len(aside) != 1 {
		t.Errorf("set aside: %q, %v", aside, err)
	}
}

// goingBack puts the host on closure after, on its way back to before.
func goingBack(t *testing.T, c agent.Config) {
	t.Helper()
	for _, closure := range []string{before, after} {
		if err := os.MkdirAll(filepath.Join(c.Activation.Store, closure), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, link := range []string{c.Activation.CurrentSystem, c.Activation.Profile} {
		if err := os.Symlink(filepath.Join(c.Activation.Store, after), link); err != nil {
			t.Fatal(err)
		}
	}
	const id = "stable@0a1b2c3d"
	policy := activationtest.Policy(time.Minute, api.RollbackAndHalt)
	line := api.HostLine{Hostname: c.Hostname, Closure: after}
	record := hoststate.New(line, id, policy, clock.System{}.Now())
	record.State, record.PreviousClosure, record.RevertCause = api.Reverting, before, api.CauseHealth
	journalOf(t, c, map[string]any{
		"v": 1, "snapshot": true, "journalId": strings.Repeat("a", 32),
		"terms": map[string]any{id: map[string]any{"channel": "stable", "line": line, "policy": policy}},
		"status": map[string]any{id: map[string]any{"record": record, "taskId": 1, "task": activation.Task{
			Kind: activation.RollBack, RolloutID: id, Attempt: 1, Closure: before, Began: clock.System{}.Now(),
			Timeout: *policy.ActivationTimeout, ConfirmTimeout: *policy.ConfirmTimeout,
		}}},
	})
}

func TestAHostGoesBackWhateverItsOwnFilesAreLike(t *testing.T) {
	ca := standin.NewCA(t)
	for name, spoil := range map[string]func(c *agent.Config){
		"no certificate, and no token": func(c *agent.Config) { c.TLS.Cert += "x" },
		"a broken certificate":         func(c *agent.Config) { standin.WriteFile(t, c.TLS.Cert, []byte("no certificate")) },
		"a certificate that ran out": func(c *agent.Config) {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			der, err := x509.MarshalPKCS8PrivateKey(key)
			if err != nil {
				t.Fatal(err)
			}
			standin.WriteFile(t, c.TLS.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
			standin.WriteFile(t, c.TLS.Cert, ca.Host(c.Hostname, &key.PublicKey, standin.NotBefore, standin.NotBefore.Add(time.Hour)))
		},
		"no CA":         func(c *agent.Config) { c.TLS.CA += "x" },
		"no trust file": func(c *agent.Config) { c.TrustFile += "x" },
	} {
		t.Run(name, func(t *testing.T) {
			cp := standin.Start(t, ca)
			cp.Close()
			c := config(t, ca, cp, "web-01")
			goingBack(t, c)
			spoil(&c)
			done := &waiter{text: "kind=RollbackCompleted", found: make(chan struct{})}
			ended := startLogging(t, c, done)
			<-done.found
			for _, link := range []string{c.Activation.CurrentSystem, c.Activation.Profile} {
				if to, err := os.Readlink(link); err != nil || filepath.Base(to) != before {
					t.Errorf("%s leads to %s, %v", link, to, err)
				}
			}
			_ = ended()
		})
	}
}

func TestEachLineOfTheLogNamesTheHostOnce(t *testing.T) {
	ca := standin.NewCA(t)
	cp := standin.Start(t, ca)
	var log lines
	stop := startLogging(t, config(t, ca, cp, "web-01"), &log)
	cp.Wait("it polls", func() bool { return len(cp.Requests("GET /v1/agent/dispatch")) > 0 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(log.data) {
		if n := bytes.Count(line, []byte(" host=web-01")); n != 1 {
			t.Errorf("%d times in %s", n, line)
		}
	}
}

// lines is a log that is kept.
type lines struct {
	mu   sync.Mutex
	data []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.data = append(l.data, p...)
	return len(p), nil
}
