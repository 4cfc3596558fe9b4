package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
)

func offer(host string) *api.Dispatch {
	return &api.Dispatch{Hostname: host, RolloutID: testRollout, Action: api.ActionActivate, Attempt: 1, TargetClosure: "t"}
}

func (f *fixture) given(r response, want *api.Dispatch) {
	f.t.Helper()
	var got api.Dispatch
	if err := json.Unmarshal(r.body, &got); r.status != 200 || err != nil || got != *want {
		f.t.Fatalf("got %d %s, want %+v", r.status, r.body, want)
	}
	if r.header.Get("Content-Type") != "application/json" || r.header.Get(api.ProtocolHeader) != "1" || r.header.Get("Date") == "" {
		f.t.Errorf("headers of a dispatch: %v", r.header)
	}
}

func TestWaitIsParsedStrictly(t *testing.T) {
	for raw, want := range map[string]time.Duration{
		"": time.Minute, "wait=0": 0, "wait=7": 7 * time.Second, "wait=60": time.Minute, "wait=61": time.Minute,
		"wait=99999999999999999999999": time.Minute, "other=1": time.Minute, "wait=007": 7 * time.Second,
	} {
		if got, err := parseWait(raw); err != nil || got != want {
			t.Errorf("%q: %v, %v", raw, got, err)
		}
	}
	for _, raw := range []string{"wait=", "wait=-1", "wait=+1", "wait=1.5", "wait=1s", "wait=a", "wait=1&wait=2", "wait=%zz", "wait=%31%00", "wait=٣"} {
		if got, err := parseWait(raw); err == nil {
			t.Errorf("%q was taken as %v", raw, got)
		}
	}
}

func TestAPollIsHeldUntilItsDispatchComes(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		f := start(t)
		c := f.client(h2, f.ca.Host("web-0"))
		done := f.poll(c, "60")
		f.parked(1)
		f.registry.Set("web-1", offer("web-1"))
		f.registry.Set("web-0", offer("web-0"))
		f.given(<-done, offer("web-0"))
		// The same again, until it is cleared; and the connection serves on.
		for range 3 {
			f.given(f.get(c, "/v1/agent/dispatch"), offer("web-0"))
		}
		f.registry.Set("web-0", nil)
		if r := f.get(c, "/v1/agent/dispatch?wait=0"); r.status != 204 || len(r.body) != 0 || r.close {
			t.Errorf("with nothing to do: %d %s", r.status, r.body)
		}
		if f.core.heard["web-0"] == 0 || f.core.heard["web-1"] != 0 {
			t.Errorf("heard: %v", f.core.heard)
		}
	}
}

func TestAPollEndsWhenItsWaitIsOver(t *testing.T) {
	f := start(t)
	began := time.Now()
	if r := f.get(f.host("web-0"), "/v1/agent/dispatch?wait=1"); r.status != 204 || time.Since(began) < time.Second {
		t.Errorf("got %d after %v", r.status, time.Since(began))
	}
}

func TestAnotherWaitIsMalformed(t *testing.T) {
	f := start(t)
	f.expect(f.get(f.host("web-0"), "/v1/agent/dispatch?wait=soon"), 400, api.CodeMalformed)
}

func TestAHostsSecondPollEndsTheFirst(t *testing.T) {
	f := start(t)
	c := f.host("web-0")
	first := f.poll(c, "60")
	f.parked(1)
	second := f.poll(c, "60")
	if r := <-first; r.status != 204 || r.close {
		t.Errorf("the first got %d %s", r.status, r.body)
	}
	f.parked(1)
	f.registry.Set("web-0", offer("web-0"))
	f.given(<-second, offer("web-0"))
}

// TestAThousandPollsOfOneHostLeaveOthersAlone sends them over as many connections as a host may have, and
// over one of HTTP/2.
func TestAThousandPollsOfOneHostLeaveOthersAlone(t *testing.T) {
	for name, polls := range map[string]int{"HTTP/1.1": 1000, "HTTP/2": maxOperatorRequests} {
		t.Run(name, func(t *testing.T) {
			f := start(t)
			other := f.poll(f.host("web-1"), "60")
			f.parked(1)
			c := f.client(name == "HTTP/2", f.ca.Host("web-0"))
			c.Transport.(*http.Transport).MaxConnsPerHost = maxNameConnections
			c.Timeout = 0
			var answers []<-chan response
			for range polls {
				answers = append(answers, f.poll(c, "60"))
			}
			f.eventually(func() bool {
				ended := 0
				for _, a := range answers {
					ended += len(a)
				}
				return ended == polls-1
			}, "all but one of the polls end")
			f.registry.Set("web-1", offer("web-1"))
			f.given(<-other, offer("web-1"))
			f.registry.Set("web-0", offer("web-0"))
			counts := map[int]int{}
			for _, a := range answers {
				r := <-a
				counts[r.status]++
				if r.status == 429 && r.header.Get("Retry-After") == "" {
					t.Error("429 without Retry-After")
				}
			}
			if counts[200] != 1 || counts[200]+counts[204]+counts[429] != polls {
				t.Errorf("answers: %v", counts)
			}
		})
	}
}

// TestAParkedConnectionGoesOn parks one connection many times, with requests between, and checks that
// it is one connection all the while.
func TestAParkedConnectionGoesOn(t *testing.T) {
	f := start(t)
	conn, err := tls.Dial("tcp", f.addr, f.ca.ClientTLS(f.ca.Host("web-0")))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	send := func(paths ...string) {
		var all strings.Builder
		for _, path := range paths {
			all.WriteString("GET " + path + " HTTP/1.1\r\nHost: x\r\nX-Nixfleet-Protocol: 1\r\n\r\n")
		}
		f.send(conn, all.String())
	}
	for range 5 {
		send("/v1/agent/dispatch")
		f.parked(1)
		f.registry.Set("web-0", offer("web-0"))
		f.given(f.receive(in), offer("web-0"))
		f.registry.Set("web-0", nil)
		send("/v1/rollouts/" + testRollout + "/manifest")
		if r := f.receive(in); r.status != 200 {
			t.Fatalf("between polls: %d %s", r.status, r.body)
		}
	}
	// A request that is sent while the poll waits is answered after it.
	send("/v1/agent/dispatch", "/v1/rollouts/"+testRollout+"/manifest")
	f.parked(1)
	f.registry.Set("web-0", offer("web-0"))
	f.given(f.receive(in), offer("web-0"))
	if r := f.receive(in); r.status != 200 || r.header.Get("ETag") != `"abc"` {
		t.Errorf("the pipelined request got %d %s", r.status, r.body)
	}
	// So is a poll, which is parked in its turn.
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	f.registry.Set("web-0", nil)
	send("/v1/agent/dispatch", "/v1/agent/dispatch")
	for range 2 {
		f.parked(1)
		f.registry.Set("web-0", offer("web-0"))
		f.registry.Set("web-0", nil)
		f.given(f.receive(in), offer("web-0"))
	}
}

func (f *fixture) send(conn io.Writer, request string) {
	f.t.Helper()
	if _, err := io.WriteString(conn, request); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) receive(in *bufio.Reader) response {
	f.t.Helper()
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return response{resp.StatusCode, resp.Header, body, resp.Close}
}

func TestAPollWithABodyIsRefused(t *testing.T) {
	f := start(t)
	req := f.request("GET", "/v1/agent/dispatch", strings.NewReader("GET /v1/hosts HTTP/1.1\r\n\r\n"))
	f.expect(f.do(f.host("web-0"), req), 400, api.CodeMalformed)
}

func TestShutdownEndsParkedPollsAndAsksForPatience(t *testing.T) {
	f := start(t)
	var polls []<-chan response
	polls = append(polls, f.poll(f.host("web-0"), "60"), f.poll(f.client(true, f.ca.Host("web-1")), "60"))
	f.parked(2)
	f.stop()
	for _, p := range polls {
		r := <-p
		if r.status != 204 {
			t.Errorf("got %d %s", r.status, r.body)
		}
	}
	select {
	case err := <-f.stopped:
		f.stopped <- err
	case <-time.After(4 * time.Second):
		t.Error("shutting down took over four seconds")
	}
}

func TestShutdownDoesNotWaitForAConnectionThatRestsAfterItsPoll(t *testing.T) {
	f := start(t)
	conn, err := tls.Dial("tcp", f.addr, f.ca.ClientTLS(f.ca.Host("web-0")))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	f.send(conn, "GET /v1/agent/dispatch HTTP/1.1\r\nHost: x\r\nX-Nixfleet-Protocol: 1\r\n\r\n")
	f.parked(1)
	f.registry.Set("web-0", offer("web-0"))
	f.given(f.receive(newReader(conn)), offer("web-0"))
	began := time.Now()
	f.stop()
	err = <-f.stopped
	if f.stopped <- nil; err != nil || time.Since(began) > 3*time.Second {
		t.Errorf("shutting down took %v: %v", time.Since(began), err)
	}
}

func TestShutdownSaysConnectionClose(t *testing.T) {
	f := start(t)
	done := f.poll(f.host("web-0"), "60")
	f.parked(1)
	f.stop()
	if r := <-done; r.status != 204 || !r.close {
		t.Errorf("got %d, close: %v", r.status, r.close)
	}
}

// TestShutdownAmidPolls stops a server while hosts poll, get dispatches and connect again and again.
func TestShutdownAmidPolls(t *testing.T) {
	for range 5 {
		f := start(t)
		ctx, cancel := context.WithCancel(t.Context())
		var hosts sync.WaitGroup
		for i := range 20 {
			name := fmt.Sprintf("web-%d", i)
			c := f.host(name)
			hosts.Go(func() {
				for ctx.Err() == nil {
					r, err := do(c, f.request("GET", "/v1/agent/dispatch?wait=60", nil).WithContext(ctx))
					if err != nil {
						c.CloseIdleConnections()
					} else if r.status != 200 && r.status != 204 {
						t.Errorf("%s got %d %s", name, r.status, r.body)
					}
				}
			})
			hosts.Go(func() {
				for ctx.Err() == nil {
					f.registry.Set(name, offer(name))
					f.registry.Set(name, nil)
					runtime.Gosched()
				}
			})
		}
		f.eventually(func() bool { parked, _ := f.registry.Counts(); return parked > 10 }, "most hosts are parked")
		began := time.Now()
		f.stop()
		err := <-f.stopped
		if f.stopped <- nil; err != nil || time.Since(began) > 4*time.Second {
			t.Errorf("shutting down took %v: %v", time.Since(began), err)
		}
		cancel()
		hosts.Wait()
	}
}

func TestShutdownFinishesWhatIsUnderWay(t *testing.T) {
	f := start(t)
	f.core.block = make(chan struct{})
	done := make(chan response, 1)
	go func() { done <- f.post(f.host("web-0"), "/v1/agent/heartbeat", heartbeat("web-0")) }()
	<-f.core.waiting
	f.stop()
	f.eventually(func() bool {
		c, err := tls.Dial("tcp", f.addr, f.ca.ClientTLS())
		if err == nil {
			c.Close()
		}
		return err != nil
	}, "new connections are refused")
	close(f.core.block)
	if r := <-done; r.status != 200 {
		t.Errorf("the request under way got %d %s", r.status, r.body)
	}
}

func TestAgentsAreToldThatTheControlPlaneStarts(t *testing.T) {
	f := start(t)
	f.core.starting.Store(true)
	c := f.host("web-0")
	for _, r := range []response{
		f.get(c, "/v1/agent/dispatch"), f.post(c, "/v1/agent/heartbeat", heartbeat("web-0")),
		f.post(c, "/v1/agent/events", batch("web-0", converged(1))),
	} {
		f.expect(r, 503, api.CodeStarting)
		if r.header.Get("Retry-After") == "" {
			t.Error("503 without Retry-After")
		}
	}
}
