package attack

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
)

// posts are the endpoints that take a body from a host, with a good one each and its largest size.
func (h *actor) posts() map[string]struct {
	good string
	cap  int
} {
	text := func(v any) string {
		data, err := json.Marshal(v)
		h.a.must(err)
		return string(data)
	}
	token, err := h.a.layout.MintToken(h.name, now())
	h.a.must(err)
	id := h.a.current()
	return map[string]struct {
		good string
		cap  int
	}{
		"/v1/agent/heartbeat":  {text(h.beat()), api.MaxRequestBody},
		"/v1/agent/events":     {text(h.numbered(id, started())), api.MaxBatchBytes},
		"/v1/agent/rejections": {text(api.Rejection{Hostname: h.name, RolloutID: id, Attempt: 1, Reason: api.CodeStale, At: now()}), api.MaxRequestBody},
		"/v1/agent/renew":      {text(api.RenewRequest{CSR: h.a.csr(h.name)}), api.MaxRequestBody},
		"/v1/enroll":           {fmt.Sprintf(`{"token":%s,"csr":%q}`, token, "x"), api.MaxRequestBody},
	}
}

func TestMalformedBodiesLeaveNothingBehind(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.actor(evilHost)
	posts := evil.posts()
	for _, path := range slices.Sorted(maps.Keys(posts)) {
		good := posts[path].good
		name := good[2 : 2+strings.Index(good[2:], `"`)] // of the first field
		for what, body := range map[string]string{
			"nothing": "", "white space": " \n\t", "null": "null", "a number": "1", "a text": `"x"`, "a list": "[" + good + "]",
			"half of it": good[:len(good)/2], "two of it": good + good, "something after it": good + "x", "a comma after it": good[:len(good)-1] + ",}",
			"a mark before it": "\xef\xbb\xbf" + good, "single quotes": strings.ReplaceAll(good, `"`, "'"),
			"a comment":         "/* */" + good,
			"the first twice":   `{"` + name + `":"x",` + good[1:],
			"an unknown twice":  `{"x":1,"x":1,` + good[1:],
			"twice, in escapes": `{"x":1,"\u0078":1,` + good[1:],
			"bad UTF-8":         strings.Replace(good, `:"`, ":\"\xff\xfe", 1),
			"half a surrogate":  strings.Replace(good, `:"`, `:"\ud800`, 1),
			"a control byte":    strings.Replace(good, `:"`, ":\"\x00", 1),
			"deep lists":        `{"x":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + "," + good[1:],
			"deep objects":      strings.Repeat(`{"x":`, 10_000) + "1" + strings.Repeat("}", 10_000),
			"an open end":       `{"x":` + strings.Repeat("[", 20_000),
			"a huge number":     `{"x":1e400,` + good[1:], "more than 2^53": `{"x":9007199254740993,` + good[1:], "a fraction": `{"x":0.5,` + good[1:],
			"endless digits": `{"x":` + strings.Repeat("9", 10_000) + "," + good[1:],
			"no fields":      "{}", "another type": strings.Replace(good, `:"`, `:1,"x":"`, 1), "null in a field": strings.Replace(good, `:"`, `:null,"x":"`, 1),
			"another case": strings.Replace(good, name, strings.ToUpper(name), 1),
		} {
			a.refused(path+", "+what, evil.post(path, body), 400, api.CodeMalformed)
		}
		for _, contentType := range []string{"", "text/plain", "application/x-www-form-urlencoded", "application/json/x", "application/jsonx", "multipart/form-data; boundary=x"} {
			r := evil.request(http.MethodPost, path, good)
			r.Header.Set("Content-Type", contentType)
			a.refused(path+" as "+contentType, evil.do(r), 400, api.CodeMalformed)
		}
		r := evil.request(http.MethodPost, path, gzipped(good))
		r.Header.Set("Content-Encoding", "gzip")
		a.refused(path+", compressed", evil.do(r), 400, api.CodeMalformed)
		for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions, "BREW"} {
			a.refused(method+" "+path, evil.do(evil.request(method, path, nil)), 405, api.CodeMethodNotAllowed)
		}
	}
	if at := a.host(evilHost); at.LastHeartbeatAt != nil || at.LastRejection != nil {
		t.Errorf("something of it was taken: %+v", at)
	}
	a.over()
	for _, e := range a.recorded {
		if e.Hostname == evilHost {
			t.Errorf("the log has entry %d (%s) of the host: %+v", e.LogSeq, e.Kind(), e.Body)
		}
	}
}

func gzipped(text string) io.Reader {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = io.WriteString(z, text)
	_ = z.Close()
	return &b
}

func TestEventsWithWrongFieldsAreMalformedAsAWhole(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.actor(evilHost)
	evil.heartbeat()
	d := evil.poll()
	id := a.current()
	data, err := json.Marshal(evil.numbered(id, evil.ack(d), started()))
	a.must(err)
	good := string(data)
	long := strings.Repeat("x", 5000)
	for what, change := range map[string][2]string{
		"seq as text":             {`"seq":2`, `"seq":"2"`},
		"seq with a fraction":     {`"seq":2`, `"seq":2.0`},
		"seq with an exponent":    {`"seq":2`, `"seq":2e0`},
		"seq beyond all":          {`"seq":2`, `"seq":18446744073709551616`},
		"no seq":                  {`"seq":2,`, ``},
		"no kind":                 {`"kind":"ActivationStarted",`, ``},
		"a kind that is a list":   {`"kind":"ActivationStarted"`, `"kind":["ActivationStarted"]`},
		"no method":               {`"method":"switch"`, `"x":1`},
		"a method of null":        {`"method":"switch"`, `"method":null`},
		"a method without end":    {`"method":"switch"`, `"method":"` + long + `"`},
		"a target without end":    {`"targetClosure":"`, `"targetClosure":"` + long},
		"a wave as text":          {`"wave":0`, `"wave":"0"`},
		"an attempt as a truth":   {`"attempt":1`, `"attempt":true`},
		"a field twice":           {`"method":"switch"`, `"method":"switch","method":"none"`},
		"events as an object":     {`"events":[`, `"events":{"x":[`},
		"an event that is null":   {`"events":[`, `"events":[null,`},
		"an event that is a list": {`"events":[`, `"events":[[],`},
		"no events":               {`"events":[`, `"events":[],"x":[`},
		"no journal":              {`"journalId":"`, `"journalId":"","x":"`},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good {
			t.Fatalf("%s: nothing was changed", what)
		}
		a.refused(what, evil.post(agentEvents, bad), 400, api.CodeMalformed)
	}
	evil.isState(api.Pending, 1) // the first event of each batch was good
	evil.does(id, evil.ack(d), started())
	a.over()
}

func TestOversizedBodiesAreCutOff(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.actor(evilHost)
	evil.heartbeat()
	for path, post := range evil.posts() {
		padded := `{"x":"` + strings.Repeat("x", post.cap) + `",` + post.good[1:]
		got := evil.post(path, padded)
		a.refused(path+", one that says its length", got, 413, api.CodeTooLarge)
		got = evil.post(path, io.MultiReader(strings.NewReader(padded))) // chunked
		a.refused(path+", one that does not", got, 413, api.CodeTooLarge)
	}
	// One that says it is 10 GB and never comes is told so before it does.
	conn, err := tls.Dial("tcp", a.address, a.clientTLS(evil.cert))
	a.must(err)
	defer conn.Close()
	fmt.Fprintf(conn, "POST /v1/agent/heartbeat HTTP/1.1\r\nHost: cp\r\nX-Nixfleet-Protocol: 1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{", 10<<30)
	r := readAnswer(conn)
	a.must(r.err)
	a.refused("10 GB", r.answer, 413, api.CodeTooLarge)

	// Batches: 256 events, and 512 KiB, and no more.
	d := evil.poll()
	id := a.current()
	evil.does(id, evil.ack(d), evil.completed(d.TargetClosure), declared(api.DeclaredProbe{Name: "web", Kind: "http", Mode: api.ModeObserve}), converged(d.TargetClosure))
	result := api.Event{Kind: api.ProbeResult, Probe: "web", ProbeKind: "http", Mode: api.ModeObserve, Status: api.ProbeFail}
	many := slices.Repeat([]api.Event{result}, api.MaxBatchEvents+1)
	a.refused("257 events", evil.post(agentEvents, evil.numbered(id, many...)), 413, api.CodeTooLarge)
	evil.does(id, many[:api.MaxBatchEvents]...)
	result.FailureReason = strings.Repeat("x", 4<<10)
	large := slices.Repeat([]api.Event{result}, 130)
	a.refused("520 KiB", evil.post(agentEvents, evil.numbered(id, large...)), 413, api.CodeTooLarge)
	evil.does(id, large[:120]...)
	for what, e := range map[string]api.Event{
		"65 probes":      {Kind: api.ProbesDeclared, Probes: slices.Repeat([]api.DeclaredProbe{{Mode: api.ModeObserve}}, api.MaxProbes+1)},
		"1025 units":     {Kind: api.ActivationCompleted, FailedUnits: make([]string, 1025)},
		"a long failure": {Kind: api.ProbeResult, FailureReason: strings.Repeat("x", 4<<10+1)},
	} {
		a.refused(what, evil.post(agentEvents, evil.numbered(id, e)), 400, api.CodeMalformed)
	}
	evil.isState(api.HostConverged, 1)
	a.over()
}

// TestSlowBodiesHoldUpTheirOwnHost begins as many requests as a host may have and does not go on with
// them: it gets 429 for more, and others go on.
func TestSlowBodiesHoldUpTheirOwnHost(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.actor(evilHost)
	data, err := json.Marshal(evil.beat())
	a.must(err)
	header := "POST /v1/agent/heartbeat HTTP/1.1\r\nHost: cp\r\nX-Nixfleet-Protocol: 1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
	var conns []*tls.Conn
	for range api.MaxHostRequests {
		conn, err := tls.Dial("tcp", a.address, a.clientTLS(evil.cert))
		a.must(err)
		defer conn.Close()
		fmt.Fprintf(conn, header, len(data), data[:len(data)/2])
		conns = append(conns, conn)
	}
	a.eventually("the host has all the requests that it may have", func() bool {
		return evil.get("/v1/agent/dispatch?wait=0").status == http.StatusTooManyRequests
	})
	a.refused("a fifth request", evil.post("/v1/agent/heartbeat", evil.beat()), 429, api.CodeTooMany)
	a.good.heartbeat()
	if got := a.caller().post("/v1/enroll", "{}"); got.status != 400 {
		t.Errorf("a stranger gets %d %s", got.status, got.body)
	}
	_, err = conns[0].Write(data[len(data)/2:])
	a.must(err)
	if r := readAnswer(conns[0]); r.err != nil || r.status != 200 {
		t.Errorf("a body that came after all: %v %d %s", r.err, r.status, r.body)
	}
	conns[1].Close() // goes away in the middle
	a.eventually("the host may ask again", func() bool {
		return evil.get("/v1/agent/dispatch?wait=0").status == http.StatusOK
	})
	if os.Getenv("NIXFLEET_LONG") == "" {
		t.Log("not waited for: 30 s until the others are cut off")
	} else {
		for _, conn := range conns[2:] {
			r := readAnswer(conn)
			a.must(r.err)
			a.refused("a body that does not come", r.answer, 400, api.CodeMalformed)
		}
	}
	a.over()
}

// TestStrangersAreNotInTheWay opens connections that say nothing, half a handshake, half a header, half a
// body, without a certificate.
func TestStrangersAreNotInTheWay(t *testing.T) {
	a := newArena(t, nil)
	for range 30 {
		silent, err := net.Dial("tcp", a.address)
		a.must(err)
		defer silent.Close()
		half, err := net.Dial("tcp", a.address)
		a.must(err)
		defer half.Close()
		_, err = half.Write([]byte("\x16\x03\x01\x02\x00\x01\x00")) // the beginning of a ClientHello
		a.must(err)
		for _, text := range []string{"", "GET /v1/agent/dispatch HTTP/1.1\r\nHost: ",
			"POST /v1/enroll HTTP/1.1\r\nHost: cp\r\nX-Nixfleet-Protocol: 1\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"} {
			conn, err := tls.Dial("tcp", a.address, a.clientTLS())
			a.must(err)
			defer conn.Close()
			_, err = io.WriteString(conn, text)
			a.must(err)
		}
	}
	a.over()
}
