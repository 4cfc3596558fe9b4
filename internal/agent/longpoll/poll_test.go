package longpoll_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/client"
	"nixfleet.dev/nixfleet/internal/agent/standin"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
)

func TestL1HoldsOnePollOpenAfterTheFirstHeartbeat(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		var open, most atomic.Int32
		r.cp.Handle(pollPath, func(w http.ResponseWriter, req *http.Request) {
			most.Store(max(most.Load(), open.Add(1)))
			defer open.Add(-1)
			r.cp.Honest(w, req)
		})
		r.after = make(chan struct{})
		r.options.After = r.after
		ctx, cancel := context.WithCancel(t.Context())
		go func() { r.done <- runOf(r)(ctx) }()
		r.pass(time.Hour)
		if n := len(r.polls()); n != 0 {
			t.Fatalf("%d polls before the first heartbeat", n)
		}
		close(r.after)
		r.pass(time.Second)
		requests := r.cp.Requests("")
		if len(requests) != 1 || requests[0].Path != "/v1/agent/dispatch?wait=60" || requests[0].Host != host {
			t.Fatalf("requests: %+v", requests)
		}
		r.pass(5 * time.Minute)
		if n := len(r.polls()); n != 6 || most.Load() != 1 || open.Load() != 1 {
			t.Errorf("in five minutes %d polls, %d open now, at most %d at once; want 6, 1, 1", n, open.Load(), most.Load())
		}
		cancel()
		<-r.done
	})
}

func TestL2ThePollsOwnTimeoutIsTheWaitAndFiveSeconds(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.options.Random = func() float64 { return 0 }
		r.cp.Handle(pollPath, func(w http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
		r.start()
		r.pass(2 * time.Minute)
		polls := r.polls()
		if gap := polls[1].Sub(polls[0]); gap != 65*time.Second+5*time.Second {
			t.Errorf("the second poll came %v after the first, want 65 s of patience and 5 s of back-off", gap)
		}
		if !strings.Contains(r.log.String(), "no whole answer within 1m5s") {
			t.Errorf("the log does not say why:\n%s", r.log)
		}
	})
}

func TestL3NoWorkIsAskedForAgainAtOnceButNeverInAHotLoop(t *testing.T) {
	answers := map[string]http.HandlerFunc{
		"204":        func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) },
		"empty body": func(w http.ResponseWriter, r *http.Request) {},
		"null":       func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, " null\n") },
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				const held = 20 * time.Second
				r.cp.Handle(pollPath, func(w http.ResponseWriter, req *http.Request) {
					clock.System{}.Sleep(req.Context(), held)
					answer(w, req)
				})
				r.start()
				r.pass(time.Minute + time.Second)
				polls := r.polls()
				if len(polls) != 4 || polls[1].Sub(polls[0]) != held {
					t.Fatalf("held for 20 s each, in a minute: %d polls, the second after %v", len(polls), polls[1].Sub(polls[0]))
				}
				r.cp.Handle(pollPath, answer)
				r.pass(held)
				before := len(r.polls())
				r.pass(time.Minute)
				if n := len(r.polls()) - before; n < 59 || n > 61 {
					t.Errorf("answered at once for a minute: %d polls, want one a second", n)
				}
				if strings.Contains(r.log.String(), "level=WARN") {
					t.Errorf("no work was taken for an error:\n%s", r.log)
				}
			})
		})
	}
	t.Run("a control plane that shuts down", func(t *testing.T) {
		inBubble(t, func(t *testing.T, r *rig) {
			r.options.Random = func() float64 { return 0.5 }
			r.cp.Handle(pollPath, func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Connection", "close")
				w.WriteHeader(204)
			})
			r.start()
			r.pass(6 * time.Second)
			if polls := r.polls(); len(polls) != 2 || polls[1].Sub(polls[0]) != 5*time.Second {
				t.Errorf("polls at %v, want the second after half of 10 s", polls)
			}
		})
	})
}

func TestL4AnythingElseIsAnErrorThatIsWarnedOfAndWaitedOut(t *testing.T) {
	good := `{"hostname":"` + host + `","rolloutId":"stable@0a1b2c3d","action":"activate","attempt":1,` +
		`"targetClosure":"x","wave":0,"soakDueAt":"2000-01-01T00:00:00Z","enqueuedAt":"2000-01-01T00:00:00Z"}`
	answers := map[string]http.HandlerFunc{}
	for _, status := range []int{201, 206, 301, 400, 403, 404, 500, 503} {
		answers[fmt.Sprint(status)] = func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) }
	}
	for _, body := range []string{
		"hello", "[]", `"text"`, "{}", good + good, strings.Replace(good, `"wave":0`, `"wave":0,"wave":1`, 1),
		strings.Replace(good, `"attempt":1`, `"attempt":0`, 1), strings.Replace(good, host, "\xff", 1), good[:80],
		strings.Repeat("[", 10000),
	} {
		answers[fmt.Sprintf("%.20q", body)] = func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, body) }
	}
	answers["cut connection"] = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "500")
		io.WriteString(w, good[:40])
		panic(http.ErrAbortHandler)
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.options.Random = func() float64 { return 0.5 }
				r.cp.Handle(pollPath, answer)
				r.start()
				r.pass(4900 * time.Millisecond)
				if n := len(r.polls()); n != 1 {
					t.Errorf("%d polls within the back-off", n)
				}
				if !strings.Contains(r.log.String(), "level=WARN msg=\"asking for work failed\"") {
					t.Errorf("no warning:\n%s", r.log)
				}
				r.pass(6 * time.Second)
				if n := len(r.polls()); n != 2 {
					t.Errorf("%d polls after the back-off, want 2", n)
				}
				if n := len(r.reducer.all()); n != 0 {
					t.Errorf("%d offers", n)
				}
			})
		})
	}
}

func TestL5TheWaitAfterErrorsGrowsFromTheFloorAndIsResetByAGoodAnswer(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		failing := func(retryAfter string) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", retryAfter)
				standin.Problem(w, 503, api.CodeOverloaded, "")
			}
		}
		r.cp.Handle(pollPath, failing(""))
		r.options.Random = func() float64 { return 0.999999 }
		r.start()
		r.pass(2 * time.Hour)
		polls := r.polls()
		for i := range polls[1:] {
			gap, before := polls[i+1].Sub(polls[i]), time.Duration(0)
			if i > 0 {
				before = polls[i].Sub(polls[i-1])
			}
			if gap < 5*time.Second || gap > 5*time.Minute || gap < before {
				t.Fatalf("wait %d is %v after %v", i, gap, before)
			}
		}
		if last := polls[len(polls)-1].Sub(polls[len(polls)-2]); last < 4*time.Minute {
			t.Errorf("after two hours the wait is %v", last)
		}
		r.cp.Handle(pollPath, nil)
		r.pass(10 * time.Minute)
		r.cp.Handle(pollPath, failing("47"))
		before := len(r.polls())
		r.pass(2*time.Minute + 10*time.Second)
		polls = r.polls()[before:]
		if gap := polls[1].Sub(polls[0]); gap < 47*time.Second || gap > time.Minute {
			t.Errorf("after a good answer and Retry-After 47 the wait is %v", gap)
		}
	})
}

func TestL13ShutdownWinsOverAReadyAnswerAndEndsEveryWait(t *testing.T) {
	endsAt := func(name string, prepare func(r *rig), reached func(r *rig) bool) {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				prepare(r)
				r.start()
				r.pass(2 * time.Second)
				if !reached(r) {
					t.Fatal("the test did not get there")
				}
				begin := now()
				r.stop()
				if took := now().Sub(begin); took > 100*time.Millisecond {
					t.Errorf("ended after %v", took)
				}
			})
		})
	}
	hang := func(w http.ResponseWriter, req *http.Request) { <-req.Context().Done() }
	endsAt("a parked poll", func(r *rig) {}, func(r *rig) bool { return len(r.polls()) == 1 })
	endsAt("a back-off", func(r *rig) {
		r.cp.Handle(pollPath, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	}, func(r *rig) bool { return len(r.polls()) == 1 })
	endsAt("a fetch", func(r *rig) {
		_, d := r.release(manifesttest.Options{})
		r.cp.Offer(&d)
		r.cp.Handle("GET manifest", hang)
	}, func(r *rig) bool { return len(r.cp.Requests("GET manifest")) == 1 })
	endsAt("telling of a refusal", func(r *rig) {
		_, d := r.release(manifesttest.Options{})
		d.Hostname = "web-99"
		r.cp.Offer(&d)
		r.cp.Handle(rejectPath, hang)
	}, func(r *rig) bool { return len(r.cp.Requests(rejectPath)) == 1 })

	t.Run("a ready answer", func(t *testing.T) {
		inBubble(t, func(t *testing.T, r *rig) {
			rel, d := r.release(manifesttest.Options{})
			if err := r.options.Cache.Store(rel.ID, rel.Envelope, rel.Proof(host)); err != nil {
				t.Fatal(err) // on disk, so that nothing else would hold the dispatch up
			}
			r.cp.Offer(&d)
			ctx, cancel := context.WithCancel(t.Context())
			r.options.ControlPlane = lateAnswer{r.client, cancel}
			close(r.after)
			if err := runOf(r)(ctx); err != context.Canceled {
				t.Errorf("ended with %v", err)
			}
			if len(r.reducer.all()) != 0 || len(r.cp.Requests("GET manifest")) != 0 || len(r.rejected()) != 0 {
				t.Error("the dispatch was looked at although the agent was told to end before")
			}
		})
	})
}

// lateAnswer has the agent told to end while a whole dispatch is on its way from the socket.
type lateAnswer struct {
	*client.Client
	cancel context.CancelFunc
}

func (l lateAnswer) Dispatch(ctx context.Context, wait time.Duration) (client.Poll, error) {
	poll, err := l.Client.Dispatch(ctx, wait)
	l.cancel()
	return poll, err
}

func TestL14RenewedFilesAreUsedForTheNextConnection(t *testing.T) {
	ca := standin.NewCA(t)
	r := newRig(t, ca, standin.Start(t, ca))
	held := make(chan struct{})
	r.cp.Handle(pollPath, func(w http.ResponseWriter, req *http.Request) {
		select {
		case <-held:
		case <-req.Context().Done():
		}
		w.WriteHeader(204)
	})
	r.start()
	r.cp.Wait("the first poll is parked", func() bool { return len(r.polls()) == 1 })
	old := r.cp.Requests(pollPath)[0]
	r.ca.WriteHost(r.dir, host) // another key and certificate
	held <- struct{}{}
	r.cp.Wait("it polls again", func() bool { return len(r.polls()) == 2 })
	renewed := r.cp.Requests(pollPath)[1]
	if renewed.Serial == old.Serial || renewed.Remote == old.Remote || renewed.Host != host {
		t.Errorf("the second poll came as %s with certificate %s, the first had %s", renewed.Host, renewed.Serial, old.Serial)
	}

	// A control plane with another CA takes over, and the host's files follow it.
	next := standin.NewCA(t)
	successor := standin.Start(t, next)
	next.WriteHost(r.dir, host)
	r.cp = successor
	held <- struct{}{}
	r.cp.Wait("it polls the successor", func() bool { return len(r.polls()) == 1 })
}

func TestL15BodiesAreCappedAndSlowOnesRunIntoTheDeadline(t *testing.T) {
	t.Run("endless", func(t *testing.T) {
		inBubble(t, func(t *testing.T, r *rig) {
			r.options.Random = func() float64 { return 0 }
			var sent atomic.Int64
			r.cp.Handle(pollPath, func(w http.ResponseWriter, req *http.Request) {
				for chunk := make([]byte, 32<<10); ; {
					n, err := w.Write(chunk)
					sent.Add(int64(n))
					if err != nil {
						return
					}
				}
			})
			r.start()
			r.pass(7 * time.Second)
			if n := len(r.polls()); n != 2 || sent.Load() > 2<<20 {
				t.Errorf("%d polls, %d bytes sent", n, sent.Load())
			}
			if !strings.Contains(r.log.String(), "over its cap of 16384 bytes") {
				t.Errorf("the log does not say why:\n%s", r.log)
			}
		})
	})
	t.Run("one byte a second", func(t *testing.T) {
		inBubble(t, func(t *testing.T, r *rig) {
			r.options.Random = func() float64 { return 0 }
			r.cp.Handle(pollPath, func(w http.ResponseWriter, req *http.Request) {
				for req.Context().Err() == nil {
					io.WriteString(w, " ")
					http.NewResponseController(w).Flush()
					clock.System{}.Sleep(req.Context(), time.Second)
				}
			})
			r.start()
			r.pass(75 * time.Second)
			if polls := r.polls(); len(polls) != 2 || polls[1].Sub(polls[0]) != 70*time.Second {
				t.Errorf("polls at %v, want the second after 65 s and the back-off", polls)
			}
		})
	})
}
