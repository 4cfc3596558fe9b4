package contract

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/internal/release"
)

func TestTransport(t *testing.T) {
	p := newPlane(t)
	web, stranger := p.host("web-01"), p.client()
	old := p.tls()
	old.MaxVersion = tls.VersionTLS12
	if c, err := tls.Dial("tcp", p.address, old); err == nil {
		c.Close()
		t.Error("a TLS 1.2 handshake went through")
	}
	for _, protocol := range []string{"h2", "http/1.1"} {
		config := p.tls()
		config.NextProtos = []string{protocol}
		c, err := tls.Dial("tcp", p.address, config)
		p.must(err)
		if got := c.ConnectionState().NegotiatedProtocol; got != protocol {
			t.Errorf("offered %s, negotiated %q", protocol, got)
		}
		c.Close()
	}

	for _, version := range []string{"", "2", "1.0"} {
		web.call("GET", "/v1/agent/dispatch?wait=0", "", "X-Nixfleet-Protocol", version).problem(400, "unsupported-protocol")
	}
	web.get("/v1/nothing").problem(404, "not-found")
	web.get("/nothing").problem(404, "not-found")
	if got := web.call("DELETE", "/v1/agent/heartbeat", ""); got.header.Get("Allow") != "POST" {
		t.Errorf("Allow is %q", got.header.Get("Allow"))
	} else {
		got.problem(405, "method-not-allowed")
	}

	// Bodies.
	beat := web.beat("")
	web.call("POST", "/v1/agent/heartbeat", beat, "Content-Type", "text/plain").problem(400, "malformed")
	for field, body := range map[string]string{
		"bootId":    strings.Replace(beat, `"bootId":"b",`, "", 1),
		"journalId": strings.Replace(beat, web.journal, "short", 1),
		"at":        strings.Replace(beat, `"at":"2`, `"at":"x`, 1),
		"lastSeq":   strings.Replace(beat, `"lastSeq":{}`, `"lastSeq":{"Not An Id":1}`, 1),
	} {
		if detail := fmt.Sprint(web.post("/v1/agent/heartbeat", body).problem(400, "malformed")["detail"]); !strings.Contains(detail, field) {
			t.Errorf("a bad %s: %q does not name it", field, detail)
		}
	}
	web.post("/v1/agent/heartbeat", `{"hostname":"`+strings.Repeat("x", 1<<20)+`"}`).problem(413, "too-large")

	// Who may ask for what.
	other := strings.Replace(beat, "web-01", "web-02", 1)
	events := strings.Replace(web.batch(p.rollout(), 1, started), "web-01", "web-02", 1)
	rejection := `{"hostname":"web-02","rolloutId":"x","attempt":1,"reason":"stale","detail":"","at":"` + at() + `"}`
	web.post("/v1/agent/heartbeat", other).problem(403, "identity-mismatch")
	web.post("/v1/agent/events", events).problem(403, "identity-mismatch")
	web.post("/v1/agent/rejections", rejection).problem(403, "identity-mismatch")
	web.get("/v1/rollouts/"+p.rollout()+"/hosts/web-02").problem(403, "identity-mismatch")
	for _, path := range []string{"/v1/hosts", "/v1/hosts/web-01", "/v1/hosts/web-01/why", "/v1/channels", "/v1/rollouts", "/v1/rollouts/" + p.rollout() + "/events"} {
		web.get(path).problem(403, "wrong-role")
		stranger.get(path).problem(401, "certificate-required")
	}
	p.operator.get("/v1/agent/dispatch?wait=0").problem(403, "wrong-role")
	p.operator.post("/v1/agent/heartbeat", beat).problem(403, "wrong-role")
	stranger.post("/v1/agent/heartbeat", beat).problem(401, "certificate-required")

	// Four requests of a host at a time.
	var unending []*io.PipeWriter
	p.eventually("requests that do not end make one more too many", func() bool {
		body, end := io.Pipe()
		unending = append(unending, end)
		request := web.request("POST", "/v1/agent/heartbeat", "{}")
		request.Body, request.ContentLength = body, -1
		go func() { _, _ = web.try(request) }()
		got := web.post("/v1/agent/heartbeat", beat)
		if got.status == http.StatusTooManyRequests {
			got.problem(429, "too-many")
		}
		return got.status == http.StatusTooManyRequests
	})
	for _, w := range unending {
		w.Close()
	}
	p.eventually("they have ended", func() bool { return web.post("/v1/agent/heartbeat", beat).status == http.StatusOK })

	// A certificate is revoked, on connections that are open too.
	options, err := p.layout.Release(now())
	p.must(err)
	_, err = release.Revoke(t.Context(), release.RevokeOptions{Options: options, Hosts: []string{"web-01"}, Before: now().Add(-time.Minute), Reason: "stolen"})
	p.must(err)
	p.eventually("the certificate is revoked", func() bool { return web.post("/v1/agent/heartbeat", beat).status == http.StatusForbidden })
	web.post("/v1/agent/heartbeat", beat).problem(403, "certificate-revoked")
}
