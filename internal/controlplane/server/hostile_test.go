package server

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
)

func newReader(r io.Reader) *bufio.Reader { return bufio.NewReader(r) }

func TestEverythingUnknownIsAProblem(t *testing.T) {
	f := start(t)
	for _, path := range []string{"/", "/v1", "/v2/hosts", "/v1/nothing", "/v1/hosts/", "/v1//hosts", "/v1/hosts/../channels",
		"/v1/hosts/%2e%2e", "/healthz", "/metrics", "/debug/pprof/", "/v1/agent/preflights", "/v1/stream"} {
		r := f.get(f.operator(), path)
		f.expect(r, 404, api.CodeNotFound)
		if strings.Contains(string(r.body), "nothing") {
			t.Error("the path is echoed")
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "BREW"} {
		r := f.do(f.operator(), f.request(method, "/v1/hosts", nil))
		if r.status != 405 || r.header.Get("Allow") != "GET" {
			t.Errorf("%s: %d, Allow %q", method, r.status, r.header.Get("Allow"))
		}
		if method != "HEAD" {
			f.expect(r, 405, api.CodeMethodNotAllowed)
		}
	}
}

func TestTheProtocolHeaderIsRequired(t *testing.T) {
	f := start(t)
	for _, values := range [][]string{nil, {""}, {"0"}, {"2"}, {"1.0"}, {"1", "1"}, {"1, 1"}} {
		req := f.request("GET", "/v1/hosts", nil)
		req.Header[http.CanonicalHeaderKey(api.ProtocolHeader)] = values
		f.expect(f.do(f.operator(), req), 400, api.CodeUnsupportedProtocol)
	}
}

func TestAPanicIsAProblemAndIsLogged(t *testing.T) {
	f := start(t)
	f.views.panics = true
	f.expect(f.get(f.operator(), "/v1/hosts/web-0"), 500, api.CodeInternal)
	f.views.panics = false
	if r := f.get(f.operator(), "/v1/hosts/web-0"); r.status != 200 {
		t.Errorf("afterwards: %d", r.status)
	}
	if !strings.Contains(f.log.String(), "a bug") {
		t.Errorf("the log: %s", f.log)
	}
}

func TestAnInternalErrorKeepsItsTextInTheLog(t *testing.T) {
	f := start(t)
	f.core.err = fmt.Errorf("disk /secret/path is full")
	r := f.post(f.host("web-0"), "/v1/agent/heartbeat", heartbeat("web-0"))
	f.expect(r, 500, api.CodeInternal)
	if strings.Contains(string(r.body), "secret") || !strings.Contains(f.log.String(), "/secret/path") {
		t.Errorf("response %s, log %s", r.body, f.log)
	}
}

func TestMalformedBodiesAreNamed(t *testing.T) {
	f := start(t)
	c := f.host("web-0")
	good := heartbeat("web-0")
	encode := func(v any) string {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	event := encode(batch("web-0", converged(1)))
	for name, test := range map[string]struct{ path, body, names string }{
		"nothing":              {"heartbeat", "", "empty"},
		"garbage":              {"heartbeat", "\x00\x01", "JSON"},
		"null":                 {"heartbeat", "null", "null"},
		"half":                 {"heartbeat", encode(good)[:50], ""},
		"two values":           {"heartbeat", encode(good) + "{}", "after"},
		"a duplicate key":      {"heartbeat", `{"hostname":"web-0","hostname":"web-1"}`, "hostname"},
		"bad UTF-8":            {"heartbeat", "{\"hostname\":\"\xff\"}", ""},
		"deep nesting":         {"heartbeat", strings.Repeat(`{"a":`, 1000), ""},
		"a missing field":      {"heartbeat", `{"hostname":"web-0"}`, "missing"},
		"another journalId":    {"heartbeat", strings.Replace(encode(good), testJournal, "../../etc", 1), "journalId"},
		"a huge number":        {"heartbeat", strings.Replace(encode(good), `"uptimeSeconds":0`, `"uptimeSeconds":1e400`, 1), "uptimeSeconds"},
		"a negative seq":       {"heartbeat", strings.Replace(encode(good), `"lastSeq":{}`, `"lastSeq":{"`+testRollout+`":-1}`, 1), "lastSeq"},
		"a stream of nonsense": {"heartbeat", strings.Replace(encode(good), `"lastSeq":{}`, `"lastSeq":{"../x":1}`, 1), "lastSeq"},
		"no events":            {"events", encode(batch("web-0")), "events"},
		"seq 0":                {"events", encode(batch("web-0", converged(0))), "seq"},
		"a gap inside":         {"events", encode(batch("web-0", converged(1), converged(3))), "seq"},
		"a repeat inside":      {"events", encode(batch("web-0", converged(1), converged(1))), "seq"},
		"reordered":            {"events", encode(batch("web-0", converged(2), converged(1))), "seq"},
		"another rolloutId":    {"events", strings.Replace(event, testRollout, "../../x", 1), "rolloutId"},
		"a missing part":       {"events", strings.Replace(event, `"observedClosure":"x"`, `"y":1`, 1), "observedClosure"},
		"a time zone":          {"events", strings.Replace(event, `Z"`, `+01:00"`, 1), "at"},
		"an endless text":      {"events", strings.Replace(event, `"observedClosure":"x"`, `"observedClosure":"`+strings.Repeat("x", 5000)+`"`, 1), "observedClosure"},
		"a rejection of no at": {"rejections", `{"hostname":"web-0","rolloutId":"x","attempt":1,"reason":"stale"}`, "at"},
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			r := f.post(c, "/v1/agent/"+test.path, []byte(test.body))
			f.expect(r, 400, api.CodeMalformed)
			if p := r.problem(t); !strings.Contains(p.Detail, test.names) || len(p.Detail) > 500 {
				t.Errorf("detail %q does not name %q", p.Detail, test.names)
			}
		})
	}
	if len(f.core.batches)+len(f.core.heartbeats)+len(f.core.rejections) > 0 {
		t.Error("something of it got through")
	}
	req := f.request("POST", "/v1/agent/heartbeat", strings.NewReader(encode(good)))
	req.Header.Set("Content-Type", "text/plain")
	f.t = t
	f.expect(f.do(c, req), 400, api.CodeMalformed)
	if r := f.post(c, "/v1/agent/heartbeat", good); r.status != 200 {
		t.Errorf("a good one afterwards: %d %s", r.status, r.body)
	}
}

func TestBodiesAreBounded(t *testing.T) {
	f := start(t)
	c := f.host("web-0")
	f.expect(f.post(c, "/v1/agent/heartbeat", bytes.Repeat([]byte(" "), api.MaxRequestBody+1)), 413, api.CodeTooLarge)
	f.expect(f.post(c, "/v1/agent/events", bytes.Repeat([]byte(" "), api.MaxBatchBytes+1)), 413, api.CodeTooLarge)
	var events []api.Event
	for i := range api.MaxBatchEvents + 1 {
		events = append(events, converged(int64(i+1)))
	}
	f.expect(f.post(c, "/v1/agent/events", batch("web-0", events...)), 413, api.CodeTooLarge)
	if r := f.post(c, "/v1/agent/events", batch("web-0", events[:api.MaxBatchEvents]...)); r.status != 200 {
		t.Errorf("a full batch got %d %s", r.status, r.body)
	}
	// One that does not say how long it is, and never ends.
	req := f.request("POST", "/v1/agent/heartbeat", io.MultiReader(strings.NewReader(`"`), endless{}))
	f.expect(f.do(c, req), 413, api.CodeTooLarge)
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

func TestRejectionsAreCutToSize(t *testing.T) {
	f := start(t)
	rejection := api.Rejection{Hostname: "web-0", RolloutID: strings.Repeat("é", 200), Attempt: 1, Reason: api.CodeStale,
		Detail: strings.Repeat("x", 2000), At: time.Now().UTC()}
	if r := f.post(f.host("web-0"), "/v1/agent/rejections", rejection); r.status != 204 || len(r.body) > 0 {
		t.Fatalf("got %d %s", r.status, r.body)
	}
	got := f.core.rejections[0]
	if len(got.RolloutID) != api.MaxRejectID || len(got.Detail) != api.MaxRejectDetail || !strings.HasSuffix(got.RolloutID, "é") {
		t.Errorf("kept %d and %d bytes", len(got.RolloutID), len(got.Detail))
	}
}

func TestAHostHasFourRequestsAtATime(t *testing.T) {
	f := start(t)
	f.core.block = make(chan struct{})
	c := f.host("web-0")
	answers := make(chan response, api.MaxHostRequests)
	for range api.MaxHostRequests {
		go func() { answers <- f.post(c, "/v1/agent/heartbeat", heartbeat("web-0")) }()
		<-f.core.waiting
	}
	r := f.post(c, "/v1/agent/heartbeat", heartbeat("web-0"))
	f.expect(r, 429, api.CodeTooMany)
	if r.header.Get("Retry-After") == "" {
		t.Error("429 without Retry-After")
	}
	parked := f.poll(f.host("web-1"), "60")
	f.parked(1)
	f.registry.Set("web-1", offer("web-1"))
	f.given(<-parked, offer("web-1"))
	close(f.core.block)
	for range api.MaxHostRequests {
		if r := <-answers; r.status != 200 {
			t.Errorf("one of the four got %d %s", r.status, r.body)
		}
	}
	if r := f.post(c, "/v1/agent/heartbeat", heartbeat("web-0")); r.status != 200 {
		t.Errorf("afterwards: %d %s", r.status, r.body)
	}
}

func TestAHostHasFewConnections(t *testing.T) {
	f := start(t)
	config := f.ca.ClientTLS(f.ca.Host("web-0"))
	var conns []*tls.Conn
	for range maxNameConnections {
		c, err := tls.Dial("tcp", f.addr, config)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	f.eventually(func() bool {
		f.server.limits.mu.Lock()
		defer f.server.limits.mu.Unlock()
		return f.server.limits.of(Identity{Role: Host, Name: "web-0"}).connections == maxNameConnections
	}, "all connections are counted")
	f.expect(f.get(f.host("web-0"), "/v1/agent/dispatch?wait=0"), 429, api.CodeTooMany)
	if r := f.get(f.host("web-1"), "/v1/agent/dispatch?wait=0"); r.status != 204 {
		t.Errorf("another host got %d", r.status)
	}
	for _, c := range conns {
		c.Close()
	}
	f.eventually(func() bool { return f.get(f.host("web-0"), "/v1/agent/dispatch?wait=0").status == 204 }, "the host is served again")
}

// TestConnectionsGiveTheirPlacesBack opens and breaks connections in every way there is, and then
// looks at whether anything is still counted.
func TestConnectionsGiveTheirPlacesBack(t *testing.T) {
	f := start(t)
	for range 5 {
		if c, err := net.Dial("tcp", f.addr); err == nil {
			f.send(c, "GET / HTTP/1.1\r\n\r\n")
			c.Close()
		}
		if c, err := tls.Dial("tcp", f.addr, f.ca.ClientTLS()); err == nil {
			c.Close()
		}
		c := f.host("web-0")
		done := f.poll(c, "60")
		f.parked(1)
		f.registry.Set("web-0", offer("web-0"))
		<-done
		f.registry.Set("web-0", nil)
		f.expect(f.get(f.client(false), "/v1/hosts"), 401, api.CodeCertificateRequired)
		c.CloseIdleConnections()
	}
	f.eventually(func() bool {
		l := f.server.limits
		l.mu.Lock()
		defer l.mu.Unlock()
		// One place is held for the connection that is accepted next.
		return len(l.connections) == 1 && len(l.strangers) == 1 && len(l.byName) == 0 && l.requests == 0
	}, "all places are free")
}

func TestStrangersCannotTakeAllConnections(t *testing.T) {
	f := start(t, func(o *Options) { o.MaxConnections = 40 })
	member := f.host("web-0")
	if r := f.get(member, "/v1/agent/dispatch?wait=0"); r.status != 204 {
		t.Fatal(r.status)
	}
	for range 60 {
		if c, err := net.Dial("tcp", f.addr); err == nil {
			defer c.Close() // and says nothing
		}
	}
	f.eventually(func() bool { return len(f.server.limits.strangers) == 10 }, "ten strangers are let in")
	if r := f.get(member, "/v1/agent/dispatch?wait=0"); r.status != 204 {
		t.Errorf("the member got %d", r.status)
	}
	if n := len(f.server.limits.connections); n > 12 {
		t.Errorf("%d connections are open", n)
	}
}

func TestTheTimesAreThoseOfTheContract(t *testing.T) {
	if contract.handshake != 10*time.Second || contract.header != 10*time.Second || contract.body != 30*time.Second {
		t.Errorf("%+v", contract)
	}
}

// TestSlowPeersAreCutOff sends each part of a request too slowly, side by side with a host that does not.
func TestSlowPeersAreCutOff(t *testing.T) {
	short := timeouts{handshake: 300 * time.Millisecond, header: 300 * time.Millisecond, body: 300 * time.Millisecond, write: time.Second,
		idle: 300 * time.Millisecond, stranger: 300 * time.Millisecond}
	f := start(t, func(o *Options) { o.timeouts = &short })
	member := f.ca.ClientTLS(f.ca.Host("web-0"))
	dial := func(config *tls.Config) net.Conn {
		t.Helper()
		c, err := tls.Dial("tcp", f.addr, config)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	handshake, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	parked := dial(f.ca.ClientTLS(f.ca.Host("web-3"))) // answered once, and then silent
	f.send(parked, "GET /v1/agent/dispatch HTTP/1.1\r\nHost: x\r\nX-Nixfleet-Protocol: 1\r\n\r\n")
	f.parked(1)
	f.registry.Set("web-3", offer("web-3"))
	f.given(f.receive(newReader(parked)), offer("web-3"))
	idle := dial(member)
	f.send(idle, "GET /v1/agent/dispatch?wait=0 HTTP/1.1\r\nHost: x\r\nX-Nixfleet-Protocol: 1\r\n\r\n")
	if r := f.receive(newReader(idle)); r.status != 204 {
		t.Fatal(r.status)
	}
	began := time.Now()
	header := dial(member)
	f.send(header, "GET /v1/hosts HTTP/1.1\r\nHost: x\r\nX-Slow: ")
	body := dial(member)
	f.send(body, "POST /v1/agent/heartbeat HTTP/1.1\r\nHost: x\r\nX-Nixfleet-Protocol: 1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
	stranger := dial(f.ca.ClientTLS())
	waits := []<-chan response{f.poll(f.host("web-1"), "2"), f.poll(f.client(true, f.ca.Host("web-2")), "2")}
	for name, c := range map[string]net.Conn{"handshake": handshake, "silence of a new connection": dial(member), "header": header,
		"body": body, "idle connection": idle, "connection that was parked": parked, "stranger": stranger} {
		if err := c.SetReadDeadline(began.Add(15 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); err != nil {
			if netErr, ok := err.(net.Error); ok && netErr.Timeout() {
				t.Errorf("the slow %s is still open after %v", name, time.Since(began))
			}
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("they were cut off after %v", took)
	}
	for _, w := range waits {
		if r := <-w; r.status != 204 {
			t.Errorf("a poll that waits for longer than all of these got %d %s", r.status, r.body)
		}
	}
}

func TestAStrangersConnectionEndsWhateverItDoes(t *testing.T) {
	short := contract
	short.stranger = 300 * time.Millisecond
	f := start(t, func(o *Options) { o.timeouts = &short })
	began := time.Now()
	for _, protocol := range []string{"http/1.1", "h2"} {
		config := f.ca.ClientTLS()
		config.NextProtos = []string{protocol}
		c, err := tls.Dial("tcp", f.addr, config)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.ReadAll(c); time.Since(began) > 5*time.Second {
			t.Errorf("%s: cut off after %v (%v)", protocol, time.Since(began), err)
		}
	}
}

func TestABodyThatComesTooSlowlyIsToldSo(t *testing.T) {
	short := contract
	short.body, short.write = 100*time.Millisecond, 100*time.Millisecond // as long as each other, like the contract's
	f := start(t, func(o *Options) { o.timeouts = &short })
	r, w := io.Pipe()
	defer w.Close()
	f.expect(f.do(f.host("web-0"), f.request("POST", "/v1/agent/heartbeat", r)), 400, api.CodeMalformed)
}

func TestHugeHeadersAreRefused(t *testing.T) {
	f := start(t)
	req := f.request("GET", "/v1/agent/dispatch", nil)
	req.Header.Set("X-Large", strings.Repeat("a", 64<<10))
	if r, err := do(f.host("web-0"), req); err == nil && r.status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("got %d", r.status)
	}
}

func TestWithoutAnIssuerNoCertificatesAreIssued(t *testing.T) {
	f := start(t)
	f.expect(f.post(f.client(false), "/v1/enroll", []byte(`{}`)), 404, api.CodeNotFound)
	f.expect(f.post(f.host("web-0"), "/v1/agent/renew", []byte(`{}`)), 404, api.CodeNotFound)
}

func TestTheLogHoldsNoLinesOfAClient(t *testing.T) {
	f := start(t)
	f.core.err = fmt.Errorf("failed")
	hb := heartbeat("web-0")
	hb.AgentVersion = "1\nlevel=ERROR msg=forged"
	f.post(f.host("web-0"), "/v1/agent/heartbeat", hb)
	f.get(f.operator(), "/v1/hosts/%0alevel=ERROR%20msg=forged")
	if strings.Contains(f.log.String(), "forged") {
		t.Errorf("the log: %s", f.log)
	}
}

func TestMetricsNameNoHosts(t *testing.T) {
	f := start(t)
	f.get(f.host("web-0"), "/v1/agent/dispatch?wait=0")
	f.get(f.operator(), "/v1/hosts/web-0")
	families, err := f.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, family := range families {
		seen[family.GetName()] = true
		if text := family.String(); !strings.HasPrefix(family.GetName(), "nixfleet_") || strings.Contains(text, "web-0") {
			t.Errorf("%s", text)
		}
	}
	for _, name := range []string{"nixfleet_http_requests_total", "nixfleet_polls_total", "nixfleet_polls_parked", "nixfleet_connections"} {
		if !seen[name] {
			t.Errorf("%s is not there", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("wait=60&limit=10&cursor=YQ")
	f.Add("wait=%00")
	f.Fuzz(func(t *testing.T, raw string) {
		if wait, err := parseWait(raw); err == nil && (wait < 0 || wait > time.Minute) {
			t.Errorf("wait %v", wait)
		}
		if q, err := parseQuery(raw); err == nil {
			if p, err := parsePage(q); err == nil && (p.Limit < 1 || p.Limit > api.MaxListLimit) {
				t.Errorf("limit %d", p.Limit)
			}
		}
	})
}
