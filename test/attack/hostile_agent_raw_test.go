package attack

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// dial opens a connection of HTTP/1.1 with the host's certificate.
func (h *actor) dial() *tls.Conn {
	h.a.t.Helper()
	conn, err := tls.Dial("tcp", h.a.address, h.a.clientTLS(h.cert))
	h.a.must(err)
	h.a.t.Cleanup(func() { conn.Close() })
	return conn
}

// TestBrokenHTTPIsCutOff says what is no request, or two at once, depending on who reads it.
func TestBrokenHTTPIsCutOff(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.actor(evilHost)
	const common = "Host: cp\r\nX-Nixfleet-Protocol: 1\r\nContent-Type: application/json\r\n"
	body := fmt.Sprintf(`{"hostname":%q}`, evilHost)
	for what, request := range map[string]string{
		"garbage":               "\x00\x01\x02\x03\r\n\r\n",
		"a protocol of old":     "GET /v1/agent/dispatch\r\n\r\n",
		"a protocol to come":    "GET /v1/agent/dispatch HTTP/3.0\r\n" + common + "\r\n",
		"no host":               "GET /v1/agent/dispatch?wait=0 HTTP/1.1\r\nX-Nixfleet-Protocol: 1\r\n\r\n",
		"two hosts":             "GET /v1/agent/dispatch?wait=0 HTTP/1.1\r\nHost: a\r\n" + common + "\r\n",
		"two lengths":           "POST /v1/agent/heartbeat HTTP/1.1\r\n" + common + "Content-Length: 5\r\nContent-Length: 20\r\n\r\n" + body,
		"a length below zero":   "POST /v1/agent/heartbeat HTTP/1.1\r\n" + common + "Content-Length: -1\r\n\r\n" + body,
		"an unknown encoding":   "POST /v1/agent/heartbeat HTTP/1.1\r\n" + common + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"chunks without end":    "POST /v1/agent/heartbeat HTTP/1.1\r\n" + common + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
		"a length and chunks":   "POST /v1/agent/heartbeat HTTP/1.1\r\n" + common + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"a NUL in a header":     "GET /v1/agent/dispatch?wait=0 HTTP/1.1\r\n" + common + "X: \x00\r\n\r\n",
		"a space in a header":   "GET /v1/agent/dispatch?wait=0 HTTP/1.1\r\n" + common + "X : 1\r\n\r\n",
		"a header over 16 KiB":  "GET /v1/agent/dispatch?wait=0 HTTP/1.1\r\n" + common + "X: " + strings.Repeat("x", 64<<10) + "\r\n\r\n",
		"ten thousand headers":  "GET /v1/agent/dispatch?wait=0 HTTP/1.1\r\n" + common + strings.Repeat("X: 1\r\n", 10_000) + "\r\n",
		"a path over 16 KiB":    "GET /v1/" + strings.Repeat("x", 64<<10) + " HTTP/1.1\r\n" + common + "\r\n",
		"CONNECT":               "CONNECT /v1/agent/dispatch HTTP/1.1\r\n" + common + "\r\n",
		"HTTP/2, unasked":       "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"OPTIONS of everything": "OPTIONS * HTTP/1.1\r\n" + common + "\r\n",
	} {
		conn := evil.dial()
		_, err := io.WriteString(conn, request) // it may be refused before its end
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Logf("%s: cut off: %v", what, err)
		}
		r := readAnswer(conn)
		if errors.Is(r.err, os.ErrDeadlineExceeded) || r.err == nil && r.status < 400 {
			t.Errorf("%s: %v %d %s", what, r.err, r.status, r.body)
		}
		conn.Close()
	}
	if at := a.host(evilHost); at.LastHeartbeatAt != nil {
		t.Errorf("one of them was taken: %+v", at)
	}
	a.over()
}

// TestWhatIsSentBehindAParkedPollWaits sends more requests behind a poll that is parked: they are
// answered after it, in order, and until then they take no room.
func TestWhatIsSentBehindAParkedPollWaits(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.busy(evilHost)
	conn := evil.dial()
	const header = "Host: cp\r\nX-Nixfleet-Protocol: 1\r\n"
	_, err := io.WriteString(conn, "GET /v1/agent/dispatch?wait=60 HTTP/1.1\r\n"+header+"\r\n"+
		strings.Repeat("GET /v1/agent/dispatch?wait=0 HTTP/1.1\r\n"+header+"\r\n", 99)+"GET /v1/agent/dispatch?wait=x HTTP/1.1\r\n"+header+"\r\n")
	a.must(err)
	a.parked(1)
	evil.idle() // a newer poll
	a.must(conn.SetReadDeadline(now().Add(patience)))
	for from, i := bufio.NewReader(conn), 0; i <= 100; i++ {
		resp, err := http.ReadResponse(from, nil)
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		if want := map[bool]int{false: 204, true: 400}[i == 100]; resp.StatusCode != want {
			t.Fatalf("answer %d: %d, want %d", i, resp.StatusCode, want)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		a.must(err)
	}

	// Without end: what the sockets hold is all that there is.
	conn = evil.dial()
	_, err = io.WriteString(conn, "GET /v1/agent/dispatch?wait=60 HTTP/1.1\r\n"+header+"\r\n")
	a.must(err)
	a.parked(1)
	before := heap()
	chunk, sent := make([]byte, 1<<20), 0
	a.must(conn.SetWriteDeadline(now().Add(time.Second)))
	for ; sent < 256; sent++ {
		if _, err = conn.Write(chunk); err != nil {
			break
		}
	}
	if netErr, ok := errors.AsType[net.Error](err); !ok || !netErr.Timeout() {
		t.Errorf("%d MiB were taken: %v", sent, err)
	}
	if more := heap() - before; more > 32<<20 {
		t.Errorf("%d MiB more than before", more>>20)
	}
	evil.idle()
	a.over()
}

// TestAHostThatGoesAwayLeavesNothing parks polls on connections that are then cut.
func TestAHostThatGoesAwayLeavesNothing(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.busy(evilHost)
	for i := range 50 { // many more than it may have open at a time
		conn := evil.dial()
		_, err := io.WriteString(conn, "GET /v1/agent/dispatch?wait=60 HTTP/1.1\r\nHost: cp\r\nX-Nixfleet-Protocol: 1\r\n\r\n")
		a.must(err)
		a.parked(1)
		a.must(conn.NetConn().Close()) // without a word
		a.eventually("the poll before it has ended", func() bool {
			return i == 0 || a.metric(`nixfleet_polls_total{outcome="superseded"}`) == float64(i)
		})
	}
	id := a.release()
	d := evil.poll()
	if d.RolloutID != id {
		t.Errorf("it is given %+v", d)
	}
	evil.does(id, evil.ack(d))
	evil.idle()
	a.over()
}
