package probe

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
)

// once runs a probe with a timeout that is short only where the test waits for it.
func once(t *testing.T, p api.Probe) Result {
	t.Helper()
	p.Name, p.Mode = "probe", api.ModeEnforce
	if p.Timeout == 0 {
		p.Timeout = api.Duration(10 * time.Second)
	}
	fillIn(&p)
	return NewRunner(clock.System{}).once(t.Context(), p, new(leftBehind))
}

// expect says that the result is a pass where reason is "", or else a failure whose reason contains it.
func expect(t *testing.T, r Result, reason string) {
	t.Helper()
	switch {
	case reason == "" && (r.Status != api.ProbePass || r.Reason != ""):
		t.Errorf("it failed: %s", r.Reason)
	case reason != "" && (r.Status != api.ProbeFail || !strings.Contains(r.Reason, reason)):
		t.Errorf("got %s %q, want a failure with %q", r.Status, r.Reason, reason)
	}
	if len(r.Reason) > maxReason {
		t.Errorf("a reason of %d bytes", len(r.Reason))
	}
}

func TestHTTP(t *testing.T) {
	hang := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "all ok") })
	mux.HandleFunc("/down", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ok", http.StatusFound) })
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, strings.Repeat("x", maxBody), "ok")
		for range 1 << 10 {
			if _, err := fmt.Fprint(w, strings.Repeat("x", 1<<16)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/hang", func(http.ResponseWriter, *http.Request) { <-hang })
	mux.HandleFunc("/half", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "o")
		w.(http.Flusher).Flush()
		<-hang
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	defer close(hang)
	for name, test := range map[string]struct {
		probe  api.Probe
		reason string
	}{
		"an answer":                 {api.Probe{URL: "/ok"}, ""},
		"the text in it":            {api.Probe{URL: "/ok", BodyContains: "ok"}, ""},
		"another text":              {api.Probe{URL: "/ok", BodyContains: "fine"}, `do not contain "fine"`},
		"another status":            {api.Probe{URL: "/down"}, "status 503, not 200"},
		"the status that it wants":  {api.Probe{URL: "/down", ExpectStatus: 503}, ""},
		"a redirect is not gone":    {api.Probe{URL: "/moved"}, "status 302"},
		"a redirect that it wants":  {api.Probe{URL: "/moved", ExpectStatus: 302}, ""},
		"a body is read to its cap": {api.Probe{URL: "/large", BodyContains: "ok"}, "first 65536 bytes"},
		"a large body is no fault":  {api.Probe{URL: "/large"}, ""},
		"no answer":                 {api.Probe{URL: "/hang", Timeout: api.Duration(50 * time.Millisecond)}, "timed out after 50ms"},
		"half an answer":            {api.Probe{URL: "/half", BodyContains: "ok", Timeout: api.Duration(50 * time.Millisecond)}, "timed out"},
	} {
		t.Run(name, func(t *testing.T) {
			test.probe.Kind, test.probe.URL = api.ProbeHTTP, server.URL+test.probe.URL
			expect(t, once(t, test.probe), test.reason)
		})
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, once(t, api.Probe{Kind: api.ProbeTCP, Address: l.Addr().String()}), "")
	l.Close()
	expect(t, once(t, api.Probe{Kind: api.ProbeTCP, Address: l.Addr().String()}), "refused")
}

func TestExec(t *testing.T) {
	t.Setenv("NIXFLEET_SECRET", "s3cret")
	for name, test := range map[string]struct {
		probe  api.Probe
		reason string
	}{
		"it exits with 0":            {api.Probe{Command: []string{"/bin/sh", "-c", "exit 0"}}, ""},
		"it exits with something":    {api.Probe{Command: []string{"/bin/sh", "-c", "echo disk is full; exit 2"}}, "disk is full"},
		"its exit code is told":      {api.Probe{Command: []string{"/bin/sh", "-c", "exit 2"}}, "exit status 2, not exit status 0"},
		"it exits as it should":      {api.Probe{Command: []string{"/bin/sh", "-c", "exit 2"}, ExpectExitCode: 2}, ""},
		"it does not, but succeeds":  {api.Probe{Command: []string{"/bin/sh", "-c", "exit 0"}, ExpectExitCode: 2}, "not exit status 2"},
		"it is not there":            {api.Probe{Command: []string{"/nonexistent/check"}}, "no such file"},
		"a signal ends it":           {api.Probe{Command: []string{"/bin/sh", "-c", "kill -9 $$"}}, "signal: killed"},
		"it prints without an end":   {api.Probe{Command: []string{"/bin/sh", "-c", "seq 300000; echo the end; exit 1"}}, "the end"},
		"it prints no text":          {api.Probe{Command: []string{"/bin/sh", "-c", `printf 'a\377b'; exit 1`}}, "ab"},
		"it gets nothing to read":    {api.Probe{Command: []string{"/bin/sh", "-c", "read x && exit 1; exit 0"}}, ""},
		"it does not see the agents": {api.Probe{Command: []string{"/bin/sh", "-c", `test -z "$NIXFLEET_SECRET"`}}, ""},
		"it leaves one behind":       {api.Probe{Command: []string{"/bin/sh", "-c", "sleep 1000 & exit 0"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			test.probe.Kind = api.ProbeExec
			expect(t, once(t, test.probe), test.reason)
		})
	}
}

func TestExecIsKilledWithAllItStarted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "child")
	// The child outlives its shell unless the whole group is killed; the pipe tells when it has ended.
	p := api.Probe{Kind: api.ProbeExec, Timeout: api.Duration(300 * time.Millisecond),
		Command: []string{"/bin/sh", "-c", "trap '' TERM; sleep 1000 & echo $! > " + file + "; wait"}}
	r := once(t, p)
	expect(t, r, "timed out after 300ms: it was killed")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	out, _ := exec.CommandContext(t.Context(), "ps", "-o", "stat=", "-p", strconv.Itoa(child)).Output()
	if stat := strings.TrimSpace(string(out)); stat != "" && !strings.HasPrefix(stat, "Z") {
		syscall.Kill(child, syscall.SIGKILL)
		t.Errorf("what it started is still there: %s", stat)
	}
}

func TestExecEndsWithTheAgent(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ready := make(chan Result)
	go func() {
		ready <- NewRunner(clock.System{}).once(ctx, api.Probe{Kind: api.ProbeExec, Command: []string{"sleep", "1000"}, Timeout: api.Duration(time.Hour)}, new(leftBehind))
	}()
	cancel()
	if r := <-ready; r.Status != api.ProbeFail {
		t.Errorf("%+v", r)
	}
}

func TestKindsOfLaterAgentsFail(t *testing.T) {
	for _, kind := range []string{api.ProbeSystemd, api.ProbeEvidence} {
		expect(t, once(t, api.Probe{Kind: kind}), "not supported")
	}
}
