package attack

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent"
	"nixfleet.dev/nixfleet/internal/agent/standin"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
)

const (
	// errorBackoff is the host's: short, so that the suite is.
	errorBackoff = 100 * time.Millisecond
	// watched is how long each attack is let go on once its first effect was seen.
	watched = 700 * time.Millisecond
)

var (
	host   = manifesttest.Hostname(0)
	before = manifesttest.Closure(host, "before")
	evil   = manifesttest.Closure(host, "evil")
	serial int64
	mu     sync.Mutex
)

// target is one host with its agent, and the control plane in front of it.
type target struct {
	t   *testing.T
	dir string
	cp  *standin.ControlPlane
	log *lockedBuffer
}

// newTarget starts a host that runs the closure before, and has the attacker's in its store.
func newTarget(t *testing.T) *target {
	t.Helper()
	ca := standin.NewCA(t)
	h := &target{t: t, dir: t.TempDir(), cp: standin.Start(t, ca), log: &lockedBuffer{}}
	files := ca.WriteHost(h.dir, host)
	h.install(before)
	h.install(evil)
	for _, link := range []string{"current-system", "profile"} {
		if err := os.Symlink(filepath.Join(h.dir, "store", before), filepath.Join(h.dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	trustFile := filepath.Join(h.dir, "trust.json")
	standin.WriteFile(t, trustFile, manifesttest.TrustJSON(manifesttest.Trust()))
	h.run(agent.Config{
		ControlPlanes: []string{h.cp.URL}, Hostname: host, StateDir: filepath.Join(h.dir, "state"), TrustFile: trustFile,
		HeartbeatInterval: 500 * time.Millisecond, ErrorBackoff: errorBackoff,
		TLS: agent.TLS{CA: files.CA, Cert: files.Cert, Key: files.Key},
		Activation: agent.Activation{
			Backend: "directory", Store: filepath.Join(h.dir, "store"),
			CurrentSystem: filepath.Join(h.dir, "current-system"), Profile: filepath.Join(h.dir, "profile"),
		},
	})
	return h
}

// run runs the agent until the test ends, which it must do by itself and in under two seconds.
func (h *target) run(c agent.Config) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- agent.Run(ctx, c, agent.Options{
			Logger: slog.New(slog.NewTextHandler(h.log, nil)), Clock: clock.System{}, Version: "test",
		})
	}()
	h.t.Cleanup(func() {
		begin := now()
		cancel()
		err := <-done
		if took := now().Sub(begin); err != nil || took > 2*time.Second {
			h.t.Errorf("the agent ended after %v with %v", took, err)
		}
		if h.t.Failed() {
			h.t.Logf("the agent's log:\n%s", h.log)
		}
	})
}

// install puts a closure in the host's store.
func (h *target) install(closure string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Join(h.dir, "store", closure), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

func now() time.Time { return clock.System{}.Now() }

// release makes a release that the host's trust.json accepts, newer than all before, and installs this
// host's closure of it. It is published only where publish says so.
func (h *target) release(edit func(*manifesttest.Options)) manifesttest.Release {
	h.t.Helper()
	mu.Lock()
	serial++
	n := serial
	mu.Unlock()
	o := manifesttest.Options{
		Ref: strings.Repeat("0", 6) + "abcdef"[n%6:n%6+1] + hex(n), Sequence: 1000 + n, ReleasedAt: now().Truncate(time.Second),
		Policy: api.Policy{Waves: []api.Wave{{}, {}}},
	}
	if edit != nil {
		edit(&o)
	}
	rel := manifesttest.New(o)
	if i, found := rel.Hosts.Find(host); found {
		h.install(rel.Hosts.Line(i).Closure)
	}
	return rel
}

func hex(n int64) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[n>>8&15], digits[n>>4&15], digits[n&15]})
}

// publish serves a release as an honest control plane would.
func (h *target) publish(rel manifesttest.Release) {
	h.cp.Publish(rel.ID, rel.Envelope, host, rel.Proof(host))
}

// at returns the closures that the host runs and boots, by its own links.
func (h *target) at() (running, boots string) {
	h.t.Helper()
	read := func(link string) string {
		to, err := os.Readlink(filepath.Join(h.dir, link))
		if err != nil {
			h.t.Error(err)
		}
		return filepath.Base(to)
	}
	return read("current-system"), read("profile")
}

// stays fails the test where the host is not on the closure.
func (h *target) stays(closure string) {
	h.t.Helper()
	if running, boots := h.at(); running != closure || boots != closure {
		h.t.Errorf("the host moved: it runs %s and boots %s, not %s", running, boots, closure)
	}
}

// dispatch is what an honest control plane says of a release.
func dispatch(rel manifesttest.Release) api.Dispatch {
	d := rel.Dispatch(host)
	d.SoakDueAt, d.EnqueuedAt = now(), now()
	return d
}

// converges gives the host a good dispatch, honestly, and waits until it has converged.
func (h *target) converges(rel manifesttest.Release) {
	h.t.Helper()
	h.publish(rel)
	d := dispatch(rel)
	h.cp.Offer(&d)
	h.cp.Wait("the host converged by a good dispatch", func() bool { return h.cp.HasEvent(rel.ID, api.Converged) })
	h.stays(d.TargetClosure)
}

// tells waits until a refusal with the code reached the control plane.
func (h *target) tells(code api.Code) {
	h.t.Helper()
	h.cp.Wait("the host refused as "+string(code), func() bool {
		rejections := h.cp.Rejections()
		if len(rejections) > 0 && rejections[0].Reason != code {
			h.t.Errorf("the host refused as %s (%s), want %s", rejections[0].Reason, rejections[0].Detail, code)
		}
		return len(rejections) > 0
	})
}

// says waits until the agent's log has the text.
func (h *target) says(text string) {
	h.t.Helper()
	h.cp.Wait("the log says "+text, func() bool { return strings.Contains(h.log.String(), text) })
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
