package attack

import (
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/standin"
	"nixfleet.dev/nixfleet/internal/clock"
)

// huge is the length of an answer that is meant to fill a host's memory or disk.
const huge = 10 << 30

// misbehaviour is a way to answer whatever was asked.
type misbehaviour struct {
	name   string
	answer http.HandlerFunc
	says   string // in the agent's log; "" where it is not an error
}

var misbehaviours = []misbehaviour{
	{"ten gigabytes", gigabytes, "over its cap"},
	{"ten gigabytes, as declared", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(int64(huge)))
		gigabytes(w, r)
	}, "over its cap"},
	{"garbage", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "\x00\xff<html>") }, "level=WARN"},
	{"deep nesting", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, strings.Repeat(`{"a":[`, 1000)) }, "level=WARN"},
	{"an array of nothing", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "[]") }, "level=WARN"},
	{"null at once", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "null") }, ""},
	{"204 at once", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, ""},
	{"500", status(500), "answered 500"},
	{"503", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "1")
		standin.Problem(w, 503, api.CodeOverloaded, "go away")
	}, "answered 503"},
	{"a redirect", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
	}, "answered 302"},
	{"a connection cut mid-body", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, `{"hostname":"`)
		panic(http.ErrAbortHandler)
	}, "level=WARN"},
	{"a connection cut at once", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "level=WARN"},
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// sent counts what all attackers could get rid of.
var sent atomic.Int64

func gigabytes(w http.ResponseWriter, r *http.Request) {
	chunk := make([]byte, 64<<10)
	for range huge / len(chunk) {
		n, err := w.Write(chunk)
		sent.Add(int64(n))
		if err != nil {
			return
		}
	}
}

func TestAHostThatIsAnsweredBadlyStaysAndGoesOn(t *testing.T) {
	for _, m := range misbehaviours {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			h := newTarget(t)
			h.cp.Wait("the host polls", func() bool { return len(h.cp.Requests(pollPath)) > 0 })
			rel := h.release(nil)
			h.publish(rel)

			// From now on everything is answered so, but for the poll that is parked: it gets a dispatch,
			// whose manifest then is.
			for _, e := range endpoints {
				h.cp.Handle(e, m.answer)
			}
			d := dispatch(rel)
			h.cp.Offer(&d)
			if m.says != "" {
				h.says(m.says)
			}
			h.watch()
			h.stays(before)
			h.relents()
			h.converges(h.release(nil))
		})
	}
	t.Cleanup(func() {
		if n := sent.Load(); n > 512<<20 {
			t.Errorf("%d bytes were sent to the agents", n)
		}
	})
}

// TestAHostWhoseReportsAreAnsweredBadlyUpdatesStill has polls answered honestly and what the host
// says of itself badly: nothing that it needs in order to act depends on it but the acknowledgement.
func TestAHostWhoseReportsAreAnsweredBadlyUpdatesStill(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"500": status(500), "garbage": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}}") },
		"acknowledged beyond the end": func(w http.ResponseWriter, _ *http.Request) {
			standin.JSON(w, api.EventsAck{AckedSeq: 1 << 52})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newTarget(t)
			h.cp.Handle(eventsPath, answer)
			rel := h.release(nil)
			h.publish(rel)
			d := dispatch(rel)
			h.insist(d)
			h.cp.Wait("events are sent", func() bool { return len(h.cp.Requests(eventsPath)) > 0 })
			h.watch()
			h.relents()
			h.converges(h.release(nil))
		})
	}
}

func TestOneByteASecondHoldsUpOnlyWhatItAnswers(t *testing.T) {
	t.Parallel()
	h := newTarget(t)
	rel := h.release(nil)
	h.publish(rel)
	ended := make(chan struct{})
	h.cp.Handle("GET manifest", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			io.WriteString(w, " ")
			http.NewResponseController(w).Flush()
			select {
			case <-ended:
				return
			case <-r.Context().Done():
			case <-clock.System{}.NewTimer(time.Second).C:
			}
		}
	})
	d := dispatch(rel)
	h.cp.Offer(&d)
	h.cp.Wait("the manifest is asked for", func() bool { return len(h.cp.Requests("GET manifest")) == 1 })
	beats := len(h.cp.Heartbeats())
	h.watch()
	h.cp.Wait("heartbeats go on meanwhile", func() bool { return len(h.cp.Heartbeats()) > beats+2 })
	h.stays(before)
	close(ended)
	h.tells(api.CodeSignatureInvalid)
	h.relents()
	h.converges(h.release(nil))
}

func TestTenGigabytesCostAHostLittleMemory(t *testing.T) {
	h := newTarget(t)
	for _, e := range endpoints {
		h.cp.Handle(e, gigabytes)
	}
	var begin, end runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&begin)
	h.says("over its cap")
	h.watch()
	runtime.GC()
	runtime.ReadMemStats(&end)
	if grown := int64(end.HeapInuse) - int64(begin.HeapInuse); grown > 16<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}
