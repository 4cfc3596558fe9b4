package contract

import (
	"crypto/tls"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
)

// host is played by hand; its bodies are written out as the contract has them.
type host struct {
	*client
	name, journal, runs string
	seq                 map[string]int // the last event of each rollout
}

// host returns a host with a certificate, which was not heard yet.
func (p *plane) host(name string) *host {
	p.t.Helper()
	issuer, err := p.layout.Issuer()
	p.must(err)
	issued, err := issuer.IssueHost(name, now().Add(-time.Hour), 24*time.Hour)
	p.must(err)
	pair, err := tls.X509KeyPair(issued.Cert, issued.Key)
	p.must(err)
	return &host{client: p.client(pair), name: name, journal: strings.Repeat("a", 32), runs: closure(name, 0), seq: map[string]int{}}
}

func at() string { return now().Format("2006-01-02T15:04:05.000Z") }

// beat is a heartbeat that says how many events of each rollout the host has.
func (h *host) beat(lastSeq string) string {
	return fmt.Sprintf(`{"hostname":%q,"journalId":%q,"at":%q,"agentVersion":"1","bootId":"b","currentClosure":%q,"bootClosure":%q,
		"specialisation":"","rebootPending":[],"trustSha256":"%064d","uptimeSeconds":1,"lastSeq":{%s}}`, h.name, h.journal, at(), h.runs, h.runs, 0, lastSeq)
}

func (h *host) heartbeat() object {
	h.p.t.Helper()
	var seqs []string
	for id, n := range h.seq {
		seqs = append(seqs, fmt.Sprintf("%q:%d", id, n))
	}
	return h.post("/v1/agent/heartbeat", h.beat(strings.Join(seqs, ","))).ok()
}

// poll waits for a dispatch.
func (h *host) poll() object {
	h.p.t.Helper()
	return h.get("/v1/agent/dispatch?wait=20").ok()
}

func (h *host) idle() {
	h.p.t.Helper()
	h.get("/v1/agent/dispatch?wait=0").empty()
}

// batch writes events, each the fields after seq and at, as the next of a rollout.
func (h *host) batch(rollout string, first int, events ...string) string {
	for i, e := range events {
		events[i] = fmt.Sprintf(`{"seq":%d,"at":%q,%s}`, first+i, at(), e)
	}
	return fmt.Sprintf(`{"hostname":%q,"journalId":%q,"rolloutId":%q,"events":[%s]}`, h.name, h.journal, rollout, strings.Join(events, ","))
}

// says sends the next events of a rollout, and returns what was acknowledged.
func (h *host) says(rollout string, events ...string) object {
	h.p.t.Helper()
	ack := h.post("/v1/agent/events", h.batch(rollout, h.seq[rollout]+1, events...)).ok()
	h.seq[rollout] += len(events)
	if ack["ackedSeq"] != float64(h.seq[rollout]) {
		h.p.t.Fatalf("acknowledged are %v, sent %d", ack, h.seq[rollout])
	}
	return ack
}

// does says what must be possible.
func (h *host) does(rollout string, events ...string) {
	h.p.t.Helper()
	if ack := h.says(rollout, events...); len(ack["refused"].([]any)) > 0 {
		h.p.t.Fatalf("refused were %v", ack)
	}
}

// ack answers a dispatch.
func (h *host) ack(d object) string {
	return fmt.Sprintf(`"kind":"DispatchAck","attempt":%v,"wave":%v,"previousClosure":%q,"targetClosure":%q,"soakDueAt":%q,"enqueuedAt":%q,"manifestSha256":"%064d"`,
		d["attempt"], d["wave"], h.runs, d["targetClosure"], d["soakDueAt"], d["enqueuedAt"], 0)
}

const started = `"kind":"ActivationStarted","method":"switch"`

func (h *host) completed(closure any) string {
	h.runs = closure.(string)
	return fmt.Sprintf(`"kind":"ActivationCompleted","observedClosure":%q,"exitCode":0,"failedUnits":[],"rebootPending":[]`, closure)
}

// activates answers a dispatch and switches.
func (h *host) activates(d object) {
	h.p.t.Helper()
	h.does(d["rolloutId"].(string), h.ack(d), started, h.completed(d["targetClosure"]))
}

// converges takes what it is offered to its end.
func (h *host) converges() (d object) {
	h.p.t.Helper()
	d = h.poll()
	h.activates(d)
	h.does(d["rolloutId"].(string), `"kind":"ProbesDeclared","probes":[]`, fmt.Sprintf(`"kind":"Converged","observedClosure":%q`, h.runs))
	return d
}

// sees returns what operators see of the host.
func (h *host) sees() object {
	h.p.t.Helper()
	return h.p.operator.get("/v1/hosts/" + h.name).ok()
}

// history returns the recorded history of a rollout, the entries of some kinds alone.
func (p *plane) history(rollout string, kinds ...string) (list []object) {
	p.t.Helper()
	for _, item := range p.operator.get("/v1/rollouts/" + rollout + "/events?limit=1000").ok()["items"].([]any) {
		e := item.(object)
		for _, kind := range kinds {
			if e["kind"] == kind {
				list = append(list, e)
			}
		}
	}
	return list
}

// write is o as JSON.
func (p *plane) write(o any) string {
	p.t.Helper()
	data, err := json.Marshal(o)
	p.must(err)
	return string(data)
}
