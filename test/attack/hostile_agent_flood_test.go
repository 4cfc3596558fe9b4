package attack

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/rollout"
	"nixfleet.dev/nixfleet/internal/strictjson"
)

// of returns the entries of one kind about a host, once it is over.
func (a *arena) of(host string, kind rollout.Kind) []rollout.Entry {
	var list []rollout.Entry
	for _, e := range a.recorded {
		if e.Hostname == host && e.Kind() == kind {
			list = append(list, e)
		}
	}
	return list
}

// flood sends n requests, as many at a time as a host may, while the good host goes on.
func (h *actor) flood(n int, request func(i int) *http.Request, want int) {
	h.a.t.Helper()
	requests, answers := make(chan *http.Request), make(chan result)
	var senders sync.WaitGroup
	for range api.MaxHostRequests - 1 {
		senders.Go(func() {
			for r := range requests {
				got, err := h.try(r)
				answers <- result{got, err}
			}
		})
	}
	go func() {
		for i := range n {
			requests <- request(i)
		}
		close(requests)
		senders.Wait()
		close(answers)
	}()
	for r := range answers {
		if r.err != nil || r.status != want {
			h.a.t.Errorf("one of the flood: %v %d %s", r.err, r.status, r.body)
		}
	}
}

func TestAFloodOfRejectionsIsRecordedInPart(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.actor(evilHost)
	id := a.current()
	evil.heartbeat()
	evil.poll()
	reject := func(rollout string, attempt int, reason api.Code) api.Rejection {
		return api.Rejection{Hostname: evilHost, RolloutID: rollout, Attempt: attempt, Reason: reason, Detail: strings.Repeat("é", 5000), At: now()}
	}
	// What was never offered, and what no agent would call a rollout.
	for _, r := range []api.Rejection{
		reject("", 1, api.CodeStale), reject("../../etc", 1, api.CodeStale), reject(strings.Repeat("x", 100_000), 1, api.CodeStale),
		reject("stable@ffffffff", 1, api.CodeStale), reject("line\nbreak\x1b[2J", 1, api.CodeStale),
		reject(id, 0, api.CodeStale), reject(id, -1, api.CodeStale), reject(id, 2, api.CodeStale), reject(id, strictjson.MaxInteger, api.CodeStale),
	} {
		if got := evil.post("/v1/agent/rejections", r); got.status != http.StatusNoContent || len(got.body) > 0 {
			t.Errorf("rejecting attempt %d of %.40q: %d %s", r.Attempt, r.RolloutID, got.status, got.body)
		}
	}
	if at := a.host(evilHost); at.LastRejection != nil {
		t.Errorf("recorded: %+v", at.LastRejection)
	}
	evil.poll() // it is offered still
	a.refused("a reason without end", evil.post("/v1/agent/rejections", reject(id, 1, api.Code(strings.Repeat("x", 257)))), 400, api.CodeMalformed)

	evil.flood(400, func(i int) *http.Request {
		return evil.request(http.MethodPost, "/v1/agent/rejections", reject(id, 1, api.Code(fmt.Sprintf("reason-%d", i))))
	}, http.StatusNoContent)
	evil.flood(200, func(int) *http.Request {
		return evil.request(http.MethodPost, "/v1/agent/rejections", reject(id, 1, api.CodeStale))
	}, http.StatusNoContent)
	evil.idle() // it is left alone for a while
	if r := a.host(evilHost).LastRejection; r == nil || len(r.Detail) > api.MaxRejectDetail || time.Since(r.At).Abs() > time.Minute {
		t.Errorf("the newest: %+v", r)
	}
	evil.isState(api.Pending, 1)
	a.over()
	if n := len(a.of(evilHost, rollout.KindReject)); n == 0 || n > 32 {
		t.Errorf("%d rejections are on the log", n)
	}
	if n := len(a.of(evilHost, rollout.KindWithdraw)); n > 2 {
		t.Errorf("%d withdrawals are on the log", n)
	}
}

func TestHeartbeatsOfAbsurdSize(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.actor(evilHost)
	streams := func(n int, seq int64) map[string]int64 {
		m := map[string]int64{}
		for i := range n {
			m[fmt.Sprintf("stable@%040x", i)] = seq
		}
		return m
	}
	long := strings.Repeat("x", 257)
	for what, edit := range map[string]func(*api.Heartbeat){
		"4097 streams":           func(hb *api.Heartbeat) { hb.LastSeq = streams(4097, 1) },
		"a stream below zero":    func(hb *api.Heartbeat) { hb.LastSeq[a.current()] = -1 },
		"a stream of no rollout": func(hb *api.Heartbeat) { hb.LastSeq["../x"] = 1 },
		"a number beyond all":    func(hb *api.Heartbeat) { hb.LastSeq[a.current()] = strictjson.MaxInteger + 1 },
		"an uptime beyond all":   func(hb *api.Heartbeat) { hb.UptimeSeconds = strictjson.MaxInteger + 1 },
		"a long version":         func(hb *api.Heartbeat) { hb.AgentVersion = long },
		"a long boot id":         func(hb *api.Heartbeat) { hb.BootID = long },
		"a long closure":         func(hb *api.Heartbeat) { hb.CurrentClosure = long },
		"a long boot closure":    func(hb *api.Heartbeat) { hb.BootClosure = long },
		"a long specialisation":  func(hb *api.Heartbeat) { hb.Specialisation = long },
		"a long digest":          func(hb *api.Heartbeat) { hb.TrustSHA256 = long },
		"a long component":       func(hb *api.Heartbeat) { hb.RebootPending = []string{long} },
		"1025 components":        func(hb *api.Heartbeat) { hb.RebootPending = make([]string, 1025) },
	} {
		hb := evil.beat()
		edit(&hb)
		a.refused(what, evil.post("/v1/agent/heartbeat", hb), 400, api.CodeMalformed)
	}
	if at := a.host(evilHost); at.LastHeartbeatAt != nil {
		t.Errorf("one of them was taken: %+v", at)
	}

	hb := evil.beat()
	hb.LastSeq, hb.UptimeSeconds = streams(4095, strictjson.MaxInteger), -strictjson.MaxInteger
	hb.LastSeq[a.current()] = strictjson.MaxInteger
	hb.AgentVersion = "1\x1b[2J\r\nlevel=ERROR msg=\"forged\"\x00"
	hb.CurrentClosure, hb.BootClosure = strings.Repeat("/", 256), "../../etc"
	reply := evil.beats(hb)
	if n := len(reply.ReplayFrom) + len(reply.Forget) + len(reply.Withdrawn); n > 1000 {
		t.Errorf("it is answered with %d rollouts", n)
	}
	hb.LastSeq = map[string]int64{a.current(): strictjson.MaxInteger}
	if from := evil.beats(hb).ReplayFrom[a.current()]; from != 1 {
		t.Errorf("it is asked to replay from %d", from)
	}

	// The same again, a thousand times over, is no news.
	entries := a.metric("nixfleet_log_seq")
	plain := evil.beat()
	evil.beats(plain)
	evil.flood(1000, func(int) *http.Request { return evil.request(http.MethodPost, "/v1/agent/heartbeat", plain) }, http.StatusOK)
	if more := a.metric("nixfleet_log_seq") - entries; more > 2 {
		t.Errorf("a thousand heartbeats that say the same wrote %v entries", more)
	}
	evil.converge(a.current())
	a.over()
}

// TestTheGoodConvergeWhileTheBadFlood runs a rollout of four good hosts while a fifth sends whatever it
// can, as fast as it can.
func TestTheGoodConvergeWhileTheBadFlood(t *testing.T) {
	names := []string{"calm-01", "calm-02", "calm-03"}
	a := newArena(t, nil, append(names, evilHost)...)
	evil := a.busy(evilHost)
	calm := make([]*actor, len(names))
	for i, name := range names {
		calm[i] = a.actor(name)
	}
	id := a.current()
	hb, gap, lie := evil.beat(), evil.numbered(id, started()), evil.beat()
	gap.Events[0].Seq = 1 << 40
	lie.Hostname = names[0]
	quit, done := make(chan struct{}), make(chan map[int]int)
	c := a.caller(evil.cert)
	requests := []func() *http.Request{
		func() *http.Request { return c.request(http.MethodPost, "/v1/agent/heartbeat", hb) },
		func() *http.Request { return c.request(http.MethodPost, agentEvents, gap) },
		func() *http.Request { return c.request(http.MethodPost, "/v1/agent/heartbeat", lie) },
		func() *http.Request { return c.request(http.MethodGet, "/v1/agent/dispatch?wait=60", nil) },
		func() *http.Request { return c.request(http.MethodGet, "/v1/hosts", nil) },
		func() *http.Request { return c.request(http.MethodPost, agentEvents, strings.Repeat("[", 100_000)) },
		func() *http.Request { return c.request(http.MethodGet, "/v1/rollouts/"+id+"/hosts/"+names[1], nil) },
	}
	for n := range 8 { // twice what it may have at a time
		go func() {
			counts := map[int]int{}
			for i := n; ; i++ {
				select {
				case <-quit:
					done <- counts
					return
				default:
				}
				if got, err := c.try(requests[i%len(requests)]()); err == nil {
					counts[got.status]++
				}
			}
		}()
	}
	for _, h := range calm {
		h.converge(id)
	}
	a.good.heartbeat()
	d := a.good.poll()
	a.good.does(id, a.good.ack(d), a.good.completed(d.TargetClosure), declared(), converged(d.TargetClosure))
	close(quit)
	counts := map[int]int{}
	for released := 0; released < 8; {
		select {
		case of := <-done:
			released++
			for status, n := range of {
				counts[status] += n
			}
		case <-time.After(50 * time.Millisecond): // the last of its polls is parked
			_, _ = evil.try(evil.request(http.MethodGet, "/v1/agent/dispatch?wait=0", nil))
		}
	}
	t.Logf("answers by status: %v", counts)
	for _, status := range []int{200, 400, 403, 409, 429} {
		if counts[status] == 0 {
			t.Errorf("no answer was %d: %v", status, counts)
		}
	}
	for status := range counts {
		if status >= 500 {
			t.Errorf("answers by status: %v", counts)
		}
	}
	a.release()
	a.over()
}
