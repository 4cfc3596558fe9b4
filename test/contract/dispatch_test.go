package contract

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestDispatch(t *testing.T) {
	p := newPlane(t)
	web1, web2 := p.host("web-01"), p.host("web-02")
	for _, wait := range []string{"x", "-1", "1.5", "", "5&wait=6"} {
		web1.get("/v1/agent/dispatch?wait="+wait).problem(400, "malformed")
	}
	p.eventually("the rollout is open", func() bool { return p.operator.get("/v1/rollouts/"+p.rollout()).status == 200 })
	web1.idle() // it sent no heartbeat yet
	web1.heartbeat()
	web2.heartbeat()

	// It is given again and again, until it is answered.
	first := web1.get("/v1/agent/dispatch?wait=9999999999999999999999")
	d := first.ok()
	p.has("a dispatch", d, "only hostname rolloutId action attempt targetClosure wave soakDueAt enqueuedAt")
	if d["hostname"] != "web-01" || d["rolloutId"] != p.rollout() || d["action"] != "activate" || d["attempt"] != 1.0 ||
		d["wave"] != 0.0 || d["targetClosure"] != closure("web-01", 1) {
		t.Errorf("the dispatch is %v", d)
	}
	if again := web1.get("/v1/agent/dispatch"); !bytes.Equal(again.body, first.body) {
		t.Errorf("first %s, then %s", first.body, again.body)
	}
	web1.does(p.rollout(), web1.ack(d))
	web1.idle()

	// A second poll ends the first; one that is parked gets what a later one gets.
	parked := web2.park()
	second := web2.park()
	parked.answer().empty()
	web2.idle() // ends the second
	second.answer().empty()
	parked = web2.park()
	web1.does(p.rollout(), started, web1.completed(d["targetClosure"]), `"kind":"ProbesDeclared","probes":[]`,
		fmt.Sprintf(`"kind":"Converged","observedClosure":%q`, web1.runs))
	woken := parked.answer()
	if later := web2.get("/v1/agent/dispatch?wait=0"); woken.ok()["wave"] != 1.0 || !bytes.Equal(woken.body, later.body) {
		t.Errorf("parked: %s, later: %s", woken.body, later.body)
	}

	// It is replaced by a newer one, and withdrawn when the rollout is no longer Active.
	newer := p.publish()
	p.eventually("the newer rollout's dispatch", func() bool {
		got := web1.get("/v1/agent/dispatch?wait=0")
		return got.status == 200 && got.ok()["rolloutId"] == newer
	})
	web2.idle() // its wave is not open
	web1.activates(web1.poll())
	web1.does(newer, `"kind":"ProbesDeclared","probes":[]`, fmt.Sprintf(`"kind":"Converged","observedClosure":%q`, web1.runs))
	web3 := p.host("web-03")
	web3.heartbeat()
	web2.poll()
	web3.activates(web3.poll())
	web3.does(newer, `"kind":"HealthFailed","failingProbes":["up"],"sustainedFor":"60s","policyApplied":"rollback-and-halt"`)
	web2.idle()

	// A control plane that shuts down lets its polls go.
	parked = web2.park()
	p.stop()
	last := parked.answer()
	if last.empty(); !last.closes {
		t.Error("the last answer does not close the connection")
	}
}

// poll is one that waits for its answer.
type poll struct {
	h   *host
	got chan answer
}

// park polls, and returns once the control plane holds the poll.
func (h *host) park() *poll {
	h.p.t.Helper()
	was := h.p.metric("nixfleet_polls_parked")
	q := &poll{h, make(chan answer, 1)}
	request := h.request("GET", "/v1/agent/dispatch?wait=20", "")
	go func() {
		got, err := h.try(request)
		if err != nil {
			h.p.t.Error(err)
		}
		q.got <- got
	}()
	if was == "0" {
		h.p.eventually("the poll is parked", func() bool { return h.p.metric("nixfleet_polls_parked") == "1" })
	}
	return q
}

func (q *poll) answer() answer {
	q.h.p.t.Helper()
	select {
	case got := <-q.got:
		return got
	case <-time.After(patience):
		q.h.p.t.Fatal("the poll was not answered")
		panic("unreachable")
	}
}

// metric is the value of a metric without labels.
func (p *plane) metric(name string) string {
	p.t.Helper()
	_, body := p.plain("/metrics")
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	p.t.Fatalf("there is no metric %s", name)
	return ""
}

func TestRejections(t *testing.T) {
	p := newPlane(t)
	web := p.host("web-01")
	web.heartbeat()
	reject := func(d object, reason string) {
		t.Helper()
		web.post("/v1/agent/rejections", fmt.Sprintf(`{"hostname":"web-01","rolloutId":%q,"attempt":%v,"reason":%q,"detail":%q,"at":%q}`,
			d["rolloutId"], d["attempt"], reason, strings.Repeat("d", 2000), at())).empty()
	}
	first := web.poll()
	reject(first, "too-early")
	web.idle() // for 30 s
	reject(first, "too-early")
	reject(object{"rolloutId": strings.Repeat("no such rollout ", 50), "attempt": 1}, "manifest-unavailable")
	if list := p.history(p.rollout(), "reject"); len(list) != 1 || list[0]["reason"] != "too-early" || len(list[0]["detail"].(string)) != 1024 {
		t.Errorf("recorded is %v", list)
	}
	if r, ok := web.sees()["lastRejection"].(object); !ok || r["code"] != "too-early" {
		t.Errorf("operators see %v", web.sees())
	}
	p.refresh() // a fresher manifest: it is offered again at once
	again := web.poll()
	if again["rolloutId"] != first["rolloutId"] || again["attempt"] != 1.0 {
		t.Errorf("offered again is %v", again)
	}
	reject(again, "stale")
	web.idle()
	if list := p.history(p.rollout(), "reject"); len(list) != 2 {
		t.Errorf("recorded is %v", list)
	}
}
