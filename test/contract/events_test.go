package contract

import (
	"fmt"
	"strings"
	"testing"
)

func TestEvents(t *testing.T) {
	p := newPlane(t)
	web, rollout := p.host("web-01"), p.rollout()
	web.heartbeat()
	d := web.poll()
	web.does(rollout, web.ack(d), started)

	// What was seen before is acknowledged again and changes nothing.
	again := web.post("/v1/agent/events", web.batch(rollout, 2, started)).ok()
	p.has("an acknowledgement", again, "only ackedSeq refused")
	if again["ackedSeq"] != 2.0 || len(p.history(rollout, "ActivationStarted")) != 1 {
		t.Errorf("%v, and recorded is %v", again, p.history(rollout, "ActivationStarted"))
	}
	if gap := web.post("/v1/agent/events", web.batch(rollout, 5, started)).problem(409, "sequence-gap"); gap["expectedSeq"] != 3.0 {
		t.Errorf("the gap is %v", gap)
	}

	// What contradicts the record is recorded as refused, and has used up its number.
	ack := web.says(rollout, `"kind":"ActivationCompleted","observedClosure":"elsewhere"`, `"kind":"NoSuchKind"`, `"kind":"ActivationProgress","phase":"switch"`)
	refused, _ := ack["refused"].([]any)
	if len(refused) != 2 {
		t.Fatalf("the acknowledgement is %v", ack)
	}
	for i, item := range refused {
		r := item.(object)
		p.has("a refused event", r, "only seq code detail")
		if r["seq"] != float64(3+i) || r["code"] != "invalid-transition" {
			t.Errorf("refused is %v", r)
		}
	}
	if list := p.history(rollout, "ActivationCompleted", "NoSuchKind"); len(list) != 2 || list[0]["refused"] != "invalid-transition" {
		t.Errorf("recorded is %v", list)
	}

	// Of a malformed batch nothing is kept.
	for field, batch := range map[string]string{
		"events.1.seq": strings.Replace(web.batch(rollout, 6, started, started), `"seq":7`, `"seq":8`, 1),
		"events.0.seq": web.batch(rollout, 0, started),
		"events":       web.batch(rollout, 6),
		"journalId":    strings.Replace(web.batch(rollout, 6, started), web.journal, "A", 1),
		"method":       web.batch(rollout, 6, started, `"kind":"ActivationStarted"`),
	} {
		if detail := fmt.Sprint(web.post("/v1/agent/events", batch).problem(400, "malformed")["detail"]); !strings.Contains(detail, field) {
			t.Errorf("%q does not name %s", detail, field)
		}
	}
	web.post("/v1/agent/events", web.batch(rollout, 6, slicesOf(257, started)...)).problem(413, "too-large")
	web.post("/v1/agent/events", web.batch(rollout, 6, `"kind":"`+strings.Repeat("x", 512<<10)+`"`)).problem(413, "too-large")
	web.post("/v1/agent/events", web.batch("stable@fffffff", 1, started)).problem(404, "unknown-rollout")
	web.does(rollout, web.completed(d["targetClosure"]))

	// A new journal starts the streams afresh, once a heartbeat has shown it.
	web.journal = strings.Repeat("b", 32)
	web.post("/v1/agent/events", web.batch(rollout, 1, started)).problem(404, "unknown-rollout")
	web.seq = map[string]int{}
	web.heartbeat()
	d = web.poll()
	if d["attempt"] != 2.0 {
		t.Errorf("after its journal was lost the host is offered %v", d)
	}
	web.activates(d)
}

func slicesOf(n int, event string) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = event
	}
	return list
}

func TestHeartbeat(t *testing.T) {
	p := newPlane(t)
	web, first := p.host("web-01"), p.rollout()
	web.heartbeat()
	web.converges()
	reply := web.heartbeat()
	p.has("the reply", reply, "only receivedAt interval replayFrom forget withdrawn current")
	if got := p.write(reply["current"]); got != fmt.Sprintf(`{"stable":%q}`, first) || p.write(reply["replayFrom"]) != "{}" {
		t.Errorf("the reply is %v", reply)
	}
	if i := reply["interval"]; i != "60s" && i != "1m" {
		t.Errorf("the interval is %v", i)
	}
	// It lacks events that the host has.
	last := web.seq[first]
	if r := web.post("/v1/agent/heartbeat", web.beat(fmt.Sprintf("%q:%d", first, last+3))).ok(); p.write(r["replayFrom"]) != fmt.Sprintf(`{%q:%d}`, first, last+1) {
		t.Errorf("replayFrom is %v", r["replayFrom"])
	}
	// A rollout that ended may be forgotten once the host took part in a newer one, not before.
	second := p.publish()
	p.eventually("the second rollout is the current one", func() bool { return p.write(web.heartbeat()["current"]) == fmt.Sprintf(`{"stable":%q}`, second) })
	if forget := p.write(web.heartbeat()["forget"]); forget != "[]" {
		t.Errorf("to be forgotten is %s", forget)
	}
	web.does(second, web.ack(web.poll()))
	if forget := p.write(web.heartbeat()["forget"]); forget != fmt.Sprintf("[%q]", first) {
		t.Errorf("to be forgotten is %s", forget)
	}
	// One that is no longer Active is withdrawn: an activation that has changed nothing stops.
	third := p.publish()
	p.eventually("the second rollout is withdrawn", func() bool { return p.write(web.heartbeat()["withdrawn"]) == fmt.Sprintf("[%q]", second) })
	web.does(second, `"kind":"ActivationFailed","phase":"realise","changed":false,"exitCode":0,"reason":"cancelled","stderrTail":""`)
	if r := p.operator.get("/v1/rollouts/" + third).ok(); r["failed"] != 0.0 || r["state"] != "Active" {
		t.Errorf("the third rollout is %v", r)
	}
}

func TestALostDatabaseIsRebuiltFromWhatHostsHave(t *testing.T) {
	p := newPlane(t)
	web, rollout := p.host("web-01"), p.rollout()
	web.heartbeat()
	d := web.poll()
	events := []string{web.ack(d), started, web.completed(d["targetClosure"]), `"kind":"ProbesDeclared","probes":[]`, fmt.Sprintf(`"kind":"Converged","observedClosure":%q`, web.runs)}
	batch := web.batch(rollout, 1, events...)
	web.post("/v1/agent/events", batch).ok()
	web.seq[rollout] = len(events)

	p.restart(true)
	p.eventually("the release is adopted again", func() bool { return p.operator.get("/v1/rollouts/"+rollout).status == 200 })
	if from := p.write(web.heartbeat()["replayFrom"]); from != fmt.Sprintf(`{%q:1}`, rollout) {
		t.Fatalf("replayFrom is %s", from)
	}
	web.post("/v1/agent/events", batch).ok()
	if h := web.sees(); h["state"] != "Converged" {
		t.Errorf("the host is %v", h)
	}
	web.idle()
}
