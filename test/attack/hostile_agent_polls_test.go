package attack

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// result is what became of a request in another goroutine.
type result struct {
	answer
	err error
}

// park sends a poll, whose result goes to ended.
func (a *arena) park(c *caller, ended chan<- result, wait string) {
	a.t.Helper()
	r := c.request(http.MethodGet, "/v1/agent/dispatch?wait="+wait, nil)
	go func() {
		got, err := c.try(r)
		ended <- result{got, err}
	}()
}

func (a *arena) next(ended <-chan result) result {
	a.t.Helper()
	select {
	case r := <-ended:
		return r
	case <-time.After(patience):
		a.t.Fatal("a poll does not end")
		return result{}
	}
}

// metric reads one of the control plane's metrics; it is 0 where its labels have not been counted yet.
func (a *arena) metric(name string) float64 {
	a.t.Helper()
	resp, err := http.Get("http://" + a.metrics + "/metrics")
	a.must(err)
	defer resp.Body.Close()
	family, _, _ := strings.Cut(name, "{")
	known := false
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		known = known || strings.HasPrefix(lines.Text(), family)
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			v, err := strconv.ParseFloat(value, 64)
			a.must(err)
			return v
		}
	}
	if !known {
		a.t.Fatalf("there is no metric %s", name)
	}
	return 0
}

// parked waits until so many polls are parked.
func (a *arena) parked(n int) {
	a.t.Helper()
	a.eventually(fmt.Sprintf("%d polls are parked", n), func() bool { return a.metric("nixfleet_polls_parked") == float64(n) })
}

// busy returns a host that has answered its dispatch, so that its polls wait.
func (a *arena) busy(name string) *actor {
	a.t.Helper()
	h := a.actor(name)
	h.heartbeat()
	h.does(a.current(), h.ack(h.poll()))
	h.idle()
	return h
}

// TestTheNewestOfAThousandPollsWins parks a thousand polls one after the other: each ends the one before
// it with 204, and the last is given what comes.
func TestTheNewestOfAThousandPollsWins(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.busy(evilHost)
	ended := make(chan result, 2)
	callers := []*caller{a.caller(evil.cert), a.caller(evil.cert)}
	a.park(callers[0], ended, "60")
	a.parked(1)
	goroutines := runtime.NumGoroutine()
	const polls = 1000
	for i := 1; i < polls; i++ {
		a.park(callers[i%2], ended, "60")
		if r := a.next(ended); r.err != nil || r.status != http.StatusNoContent {
			t.Fatalf("the poll before number %d: %v %d %s", i, r.err, r.status, r.body)
		}
		if len(ended) > 0 {
			t.Fatalf("poll %d ended at once", i)
		}
	}
	if parked := a.metric("nixfleet_polls_parked"); parked != 1 {
		t.Errorf("%v polls are parked", parked)
	}
	if more := runtime.NumGoroutine() - goroutines; more > 20 {
		t.Errorf("a thousand polls left %d goroutines", more)
	}
	a.release()
	evil.given(a.next(ended).answer)
	a.over()
}

// TestAThousandPollsAtOnceTakeNoRoom opens a thousand connections of one host and polls on each.
func TestAThousandPollsAtOnceTakeNoRoom(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.busy(evilHost)
	transport := evil.http.Transport.(*http.Transport)
	config := transport.TLSClientConfig // with a session to resume, which is quicker
	transport.CloseIdleConnections()
	before, goroutines := heap(), runtime.NumGoroutine()

	const polls = 1000
	conns := make([]*tls.Conn, polls)
	var dialling sync.WaitGroup
	work := make(chan int)
	for range 8 {
		dialling.Go(func() {
			for i := range work {
				conn, err := tls.Dial("tcp", a.address, config)
				if conns[i] = conn; err != nil {
					t.Errorf("connection %d: %v", i, err)
					continue
				}
				// It may have been refused and closed already: that shows when it is read.
				_, _ = io.WriteString(conn, "GET /v1/agent/dispatch?wait=60 HTTP/1.1\r\nHost: cp\r\nX-Nixfleet-Protocol: 1\r\n\r\n")
			}
		})
	}
	for i := range conns {
		work <- i
	}
	close(work)
	dialling.Wait()
	if t.Failed() {
		return
	}
	a.parked(1)
	a.good.heartbeat() // others are served meanwhile
	if more := runtime.NumGoroutine() - goroutines; more > 100 {
		t.Errorf("%d goroutines more than before", more)
	}
	if more := heap() - before; more > 64<<20 {
		t.Errorf("%d MiB more than before", more>>20)
	}
	ended := make(chan result, polls)
	for _, conn := range conns {
		go func() { ended <- readAnswer(conn) }()
	}
	for range polls - 1 {
		r := a.next(ended)
		a.must(r.err)
		if r.status != http.StatusNoContent {
			a.refused("a poll too many", r.answer, 429, api.CodeTooMany)
		}
	}
	a.release()
	evil.given(a.next(ended).answer)
	for _, conn := range conns {
		conn.Close()
	}
	a.eventually("the host is served again", func() bool {
		got, err := evil.try(evil.request(http.MethodGet, "/v1/agent/dispatch?wait=0", nil))
		return err == nil && got.status == http.StatusOK
	})
	a.over()
}

func readAnswer(conn net.Conn) result {
	if err := conn.SetReadDeadline(now().Add(2 * patience)); err != nil {
		return result{err: err}
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return result{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return result{answer{resp.StatusCode, resp.Header, body, resp.Close}, err}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestAThousandStreamsTakeNoRoom polls a thousand times over one connection of HTTP/2.
func TestAThousandStreamsTakeNoRoom(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.busy(evilHost)
	c := a.callerOver(true, evil.cert)
	const polls = 1000
	ended := make(chan result, polls)
	for range polls {
		a.park(c, ended, "60")
	}
	counts := map[int]int{}
	for range polls - 1 {
		r := a.next(ended)
		a.must(r.err)
		if counts[r.status]++; r.status != http.StatusNoContent {
			a.refused("a stream too many", r.answer, 429, api.CodeTooMany)
		}
	}
	a.parked(1)
	a.release()
	evil.given(a.next(ended).answer)
	if counts[http.StatusNoContent] == 0 {
		t.Errorf("no poll was superseded: %v", counts)
	}
	a.over()
}

func TestAPollWaitsForWholeSeconds(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.busy(evilHost)
	for _, query := range []string{"wait=", "wait=-1", "wait=%2B1", "wait=1.5", "wait=1e1", "wait=0x10", "wait=5s", "wait=NaN", "wait=１",
		"wait=1%20", "wait=1&wait=2", "wait=1;x", "wait=%zz", "wait=" + strings.Repeat("a", 5000)} {
		a.refused(query, evil.get("/v1/agent/dispatch?"+query), 400, api.CodeMalformed)
	}
	ended := make(chan result, 1)
	for _, query := range []string{"", "?wait=60", "?wait=61", "?wait=99999999999999999999999999", "?Wait=0", "?wait=00060"} {
		r := evil.request(http.MethodGet, "/v1/agent/dispatch"+query, nil)
		go func() {
			got, err := evil.try(r)
			ended <- result{got, err}
		}()
		a.parked(1)
		evil.idle() // a newer poll ends it
		if r := a.next(ended); r.err != nil || r.status != http.StatusNoContent {
			t.Errorf("%s: %v %d %s", query, r.err, r.status, r.body)
		}
	}
	r := evil.request(http.MethodGet, "/v1/agent/dispatch?wait=60", "a body")
	a.refused("a poll with a body", evil.do(r), 400, api.CodeMalformed)
	a.over()
}
