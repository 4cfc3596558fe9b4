package contract

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
)

func TestOperatorEndpoints(t *testing.T) {
	p := newPlane(t)
	web, rollout := p.host("web-01"), p.rollout()
	web.heartbeat()
	d := web.poll()
	web.activates(d)
	web.does(rollout, `"kind":"ProbesDeclared","probes":[{"name":"up","kind":"http","mode":"enforce"}]`,
		`"kind":"HealthFailed","failingProbes":["up"],"sustainedFor":"60s","policyApplied":"rollback-and-halt"`,
		fmt.Sprintf(`"kind":"RollbackStarted","toClosure":%q,"cause":"health"`, closure("web-01", 0)),
		fmt.Sprintf(`"kind":"RollbackCompleted","observedClosure":%q`, closure("web-01", 0)))
	op := p.operator

	h := web.sees()
	p.has("a host", h, `hostname channel tags declared state overdue rolloutId attempt wave currentClosure bootClosure targetClosure
		previousClosure drifted lastHeartbeatAt reachable lastFailure probes`)
	p.has("a failure", h["lastFailure"].(object), "only code detail at")
	if h["state"] != "Reverted" || h["currentClosure"] != closure("web-01", 0) || h["drifted"] != false || h["reachable"] != true {
		t.Errorf("the host is %v", h)
	}
	if idle := op.get("/v1/hosts/web-03").ok(); idle["lastHeartbeatAt"] != nil || idle["lastFailure"] != nil || idle["state"] != "Pending" || idle["reachable"] != false {
		t.Errorf("a host that was never heard is %v", idle)
	}
	why := op.get("/v1/hosts/web-02/why").ok()
	p.has("why", why, "hostname state summary gates")
	var gates []string
	for _, item := range why["gates"].([]any) {
		g := item.(object)
		p.has("a gate", g, "only gate pass reason since")
		gates = append(gates, g["gate"].(string))
	}
	if got := strings.Join(gates, " "); got != "heard rollout quarantine wave edges budget" {
		t.Errorf("the gates are %s", got)
	}

	r := op.get("/v1/rollouts/" + rollout).ok()
	p.has("a rollout", r, "rolloutId channel ref sequence policyName state openedAt endedAt currentWave waves failed haltReason blocks")
	wave := r["waves"].([]any)[0].(object)
	p.has("a wave", wave, "only index open counts")
	if r["state"] != "Halted" || r["failed"] != 1.0 || r["endedAt"] != nil || p.write(wave["counts"]) != `{"Reverted":1}` || r["haltReason"] == "" {
		t.Errorf("the rollout is %v", r)
	}
	c := op.get("/v1/channels").ok()["items"].([]any)[0].(object)
	p.has("a channel", c, "ref sequence signedAt expiresAt rolloutId state paused quarantine")
	if q := c["quarantine"].([]any); len(q) != 1 || q[0].(object)["closure"] != closure("web-01", 1) {
		t.Errorf("quarantined is %v", q)
	}

	// Lists: filters, pages, and what is not there.
	for query, want := range map[string]string{
		"": "web-01 web-02 web-03", "state=Reverted": "web-01", "tag=canary": "web-01", "q=b-0": "web-01 web-02 web-03", "q=03": "web-03",
		"channel=stable&state=Pending": "web-02 web-03", "channel=none": "", "limit=5000": "web-01 web-02 web-03",
	} {
		if got := strings.Join(p.names("/v1/hosts?"+query), " "); got != want {
			t.Errorf("hosts with %q are %s, want %s", query, got, want)
		}
	}
	first := op.get("/v1/hosts?limit=2").ok()
	p.has("a list", first, "only items nextCursor")
	if rest := p.names("/v1/hosts?limit=2&cursor=" + url.QueryEscape(first["nextCursor"].(string))); strings.Join(rest, " ") != "web-03" {
		t.Errorf("the second page is %v", rest)
	}
	for path, code := range map[string]string{
		"/v1/hosts/none": "not-found", "/v1/hosts/none/why": "not-found", "/v1/rollouts/stable@fffffff": "unknown-rollout", "/v1/rollouts/stable@fffffff/events": "unknown-rollout",
	} {
		op.get(path).problem(404, code)
	}
	for _, path := range []string{"/v1/hosts?limit=x", "/v1/hosts?limit=0", "/v1/hosts?state=Nope", "/v1/hosts?cursor=%21", "/v1/rollouts/nope", "/v1/rollouts/" + rollout + "/events?after=x"} {
		op.get(path).problem(400, "malformed")
	}

	// History, oldest first, page by page.
	var seen []float64
	for after := 0.0; ; {
		page := op.get(fmt.Sprintf("/v1/rollouts/%s/events?limit=3&after=%v", rollout, after)).ok()["items"].([]any)
		for _, item := range page {
			e := item.(object)
			p.has("an event", e, "logSeq at recordedAt hostname rolloutId kind")
			after = e["logSeq"].(float64)
			seen = append(seen, after)
		}
		if len(page) < 3 {
			break
		}
	}
	if all := op.get("/v1/rollouts/" + rollout + "/events?limit=1000").ok()["items"].([]any); len(all) != len(seen) || len(seen) < 10 {
		t.Errorf("%d entries in pages, %d at once", len(seen), len(all))
	}
	ack := p.history(rollout, "DispatchAck")
	p.has("an event's own fields", ack[0], "seq attempt wave previousClosure targetClosure soakDueAt enqueuedAt manifestSha256")
	if v := op.get("/v1/openapi.json").ok()["openapi"]; !strings.HasPrefix(fmt.Sprint(v), "3.1") {
		t.Errorf("openapi.json is of version %v", v)
	}
}

// names are the hosts of a list.
func (p *plane) names(path string) (names []string) {
	p.t.Helper()
	for _, item := range p.operator.get(path).ok()["items"].([]any) {
		names = append(names, item.(object)["hostname"].(string))
	}
	return names
}

// plain asks the listener for metrics and health.
func (p *plane) plain(path string) (int, string) {
	p.t.Helper()
	resp, err := http.Get("http://" + p.metrics + path)
	p.must(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	p.must(err)
	return resp.StatusCode, string(body)
}

// restart stops the control plane and starts it again, from an empty database if it is to be lost.
func (p *plane) restart(lose bool) {
	p.t.Helper()
	p.stop()
	if lose {
		p.must(os.RemoveAll(p.layout.ServerState))
	}
	p.start()
}

func TestHealthAndMetricsHaveTheirOwnListener(t *testing.T) {
	p := newPlane(t)
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, body := p.plain(path); status != http.StatusOK {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	status, body := p.plain("/metrics")
	for line := range strings.Lines(body) {
		if line[0] != '#' && !strings.HasPrefix(line, "nixfleet_") {
			t.Errorf("the metric %s does not start with nixfleet_", line)
		}
	}
	if status != http.StatusOK || p.metric("nixfleet_log_seq") == "" {
		t.Errorf("/metrics: %d", status)
	}
	if status, _ := p.plain("/v1/hosts"); status != http.StatusNotFound {
		t.Errorf("the API on the listener for metrics: %d", status)
	}
	p.client().get("/metrics").problem(404, "not-found")
}

func TestARestartLosesNothing(t *testing.T) {
	p := newPlane(t)
	web, rollout := p.host("web-01"), p.rollout()
	web.heartbeat()
	offered := web.get("/v1/agent/dispatch?wait=20")
	before := p.operator.get("/v1/rollouts/" + rollout + "/events").body
	p.restart(false)
	if again := web.get("/v1/agent/dispatch?wait=20"); string(again.body) != string(offered.body) {
		t.Errorf("before: %s, after: %s", offered.body, again.body)
	}
	web.does(rollout, web.ack(offered.ok()), started)
	p.restart(false)
	if r := web.heartbeat(); p.write(r["replayFrom"]) != "{}" {
		t.Errorf("events are missing: %v", r)
	}
	if h := web.sees(); h["state"] != "Activating" {
		t.Errorf("the host is %v", h)
	}
	if after := p.operator.get("/v1/rollouts/" + rollout + "/events").body; !strings.HasPrefix(string(after), strings.TrimSuffix(string(before), `],"nextCursor":""}`)) {
		t.Errorf("the history was %s, it is %s", before, after)
	}
}
