package longpoll_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"nixfleet.dev/nixfleet/internal/agent/manifestcache"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/longpoll"
	"nixfleet.dev/nixfleet/internal/agent/reducer"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
)

func runOf(r *rig) func(context.Context) error { return longpoll.New(r.options).Run }

func TestL6ADispatchForAnotherHostIsRefusedBeforeAnythingElse(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		rel, _ := r.release(manifesttest.Options{})
		d := rel.Dispatch(manifesttest.Hostname(1))
		r.cp.Publish(rel.ID, rel.Envelope, d.Hostname, rel.Proof(d.Hostname))
		r.cp.Offer(&d)
		looked := false
		r.options.Current = func(context.Context) (string, error) { looked = true; return "", nil }
		r.start()
		r.pass(time.Second)
		if got := r.rejected(); !slices.Equal(got, []api.Code{api.CodeIdentityMismatch}) {
			t.Errorf("rejected as %v", got)
		}
		if rej := r.cp.Rejections()[0]; rej.Hostname != host {
			t.Errorf("the rejection speaks for %s", rej.Hostname)
		}
		if n := len(r.cp.Requests("GET manifest")) + len(r.cp.Requests("GET host")) + len(r.reducer.all()); n != 0 || looked {
			t.Error("something else was looked at")
		}
	})
}

func TestL7TheManifestIsFetchedOnceAndVerifiedEveryTime(t *testing.T) {
	fetches := func(r *rig) [2]int {
		return [2]int{len(r.cp.Requests("GET manifest")), len(r.cp.Requests("GET host"))}
	}
	cached := func(r *rig) string { return filepath.Join(r.dir, "rollouts", "stable@0a1b2c3d", "manifest.dsse.json") }
	offered := func(r *rig, d api.Dispatch, attempt, offers int) {
		r.t.Helper()
		d.Attempt = attempt
		r.cp.Offer(&d)
		r.pass(10 * time.Millisecond)
		r.cp.Offer(nil)
		r.pass(2 * time.Second)
		if n := len(r.reducer.all()); n != offers {
			r.t.Fatalf("attempt %d: %d offers so far, want %d; the log:\n%s", attempt, n, offers, r.log)
		}
	}
	inBubble(t, func(t *testing.T, r *rig) {
		once(r)
		rel, d := r.release(manifesttest.Options{})
		r.start()
		r.pass(time.Minute)
		if got := fetches(r); got != [2]int{} {
			t.Fatalf("primed: %v", got)
		}
		offered(r, d, 1, 1)
		if got := fetches(r); got != [2]int{1, 1} {
			t.Fatalf("the first dispatch made %v fetches", got)
		}
		if data, err := os.ReadFile(cached(r)); err != nil || string(data) != string(rel.Envelope) {
			t.Fatalf("on disk: %v", err)
		}
		r.cp.Handle("GET manifest", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
		offered(r, d, 2, 2)
		if got := fetches(r); got != [2]int{1, 1} {
			t.Fatalf("the second dispatch fetched again: %v", got)
		}

		// A copy that no longer verifies is fetched again.
		r.cp.Handle("GET manifest", nil)
		if err := os.WriteFile(cached(r), []byte(strings.Replace(string(rel.Envelope), "payload\":\"e", "payload\":\"f", 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		offered(r, d, 3, 3)
		if got := fetches(r); got != [2]int{2, 2} {
			t.Errorf("with a damaged copy on disk %v fetches, want one more of each", got)
		}
		if data, _ := os.ReadFile(cached(r)); string(data) != string(rel.Envelope) {
			t.Error("the damaged copy was not replaced")
		}
	})
	t.Run("a disk that takes no more is a warning", func(t *testing.T) {
		inBubble(t, func(t *testing.T, r *rig) {
			once(r)
			r.options.Cache = fullDisk{r.options.Cache}
			_, d := r.release(manifesttest.Options{})
			r.start()
			offered(r, d, 1, 1)
			if !strings.Contains(r.log.String(), "could not be kept on disk") {
				t.Errorf("no warning:\n%s", r.log)
			}
		})
	})
	t.Run("what is nowhere to be had is manifest-unavailable", func(t *testing.T) {
		inBubble(t, func(t *testing.T, r *rig) {
			d := manifesttest.New(manifesttest.Options{}).Dispatch(host)
			r.cp.Offer(&d)
			r.start()
			r.pass(time.Second)
			if got := r.rejected(); !slices.Equal(got, []api.Code{api.CodeManifestUnavailable}) {
				t.Errorf("rejected as %v", got)
			}
		})
	})
}

// once has the stand-in give a dispatch to one poll only, as after its DispatchAck.
func once(r *rig) {
	r.cp.Handle(pollPath, func(w http.ResponseWriter, req *http.Request) {
		r.cp.Honest(w, req)
		r.cp.Offer(nil)
	})
}

type fullDisk struct{ longpoll.Cache }

func (fullDisk) Store(string, []byte, api.HostProof) error {
	return errors.New("no space left on device")
}

func TestL8ClosureAndWaveMustBeWhatTheSignedLineSays(t *testing.T) {
	for name, edit := range map[string]func(*api.Dispatch){
		"another closure":    func(d *api.Dispatch) { d.TargetClosure = manifesttest.Closure(host, "evil") },
		"no closure":         func(d *api.Dispatch) { d.TargetClosure = "" },
		"a path for closure": func(d *api.Dispatch) { d.TargetClosure = "../../" + d.TargetClosure },
		"a later wave":       func(d *api.Dispatch) { d.Wave = 1 },
		"no wave":            func(d *api.Dispatch) { d.Wave = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				_, d := r.release(manifesttest.Options{})
				edit(&d)
				r.cp.Offer(&d)
				r.start()
				r.pass(time.Second)
				if got := r.rejected(); !slices.Equal(got, []api.Code{api.CodeTargetMismatch}) {
					t.Errorf("rejected as %v", got)
				}
				if n := len(r.reducer.all()); n != 0 {
					t.Errorf("%d offers", n)
				}
			})
		})
	}
}

func TestL9ACopyThatAgedOutIsStaleUntilCISignsAFresherOne(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		once(r)
		rel, d := r.release(manifesttest.Options{})
		r.cp.Offer(&d)
		r.start()
		r.pass(time.Second)
		if n := len(r.reducer.all()); n != 1 {
			t.Fatalf("fresh: %d offers", n)
		}
		r.pass(72 * time.Hour) // the signed window
		d.Attempt = 2
		r.cp.Offer(&d)
		r.pass(2 * time.Minute)
		if got := r.rejected(); !slices.Equal(got, []api.Code{api.CodeStale}) || len(r.reducer.all()) != 1 {
			t.Fatalf("aged out: rejected as %v, %d offers", got, len(r.reducer.all()))
		}
		m := rel.Manifest
		m.SignedAt = now().Truncate(time.Second)
		r.cp.Publish(rel.ID, manifesttest.Sign(m, manifesttest.Key(manifesttest.ReleaseKey)), host, rel.Proof(host))
		r.cp.Offer(&d)
		r.pass(2 * time.Minute)
		if n := len(r.reducer.all()); n != 2 {
			t.Errorf("signed afresh: %d offers; the log:\n%s", n, r.log)
		}
	})
}

func TestL10ThePreviousClosureIsReadFromTheMachineNow(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		once(r)
		_, d := r.release(manifesttest.Options{})
		converged := manifesttest.Closure(host, "converged")
		r.reducer.view.Converged = converged
		r.start()
		for i, c := range []struct{ running, want string }{
			{manifesttest.Closure(host, "one"), manifesttest.Closure(host, "one")},
			{manifesttest.Closure(host, "two"), manifesttest.Closure(host, "two")},
			{d.TargetClosure, converged}, // never the target
			{"", ""},                     // no link: a fresh install, which cannot go back
		} {
			r.running = c.running
			d.Attempt = i + 1
			r.cp.Offer(&d)
			r.pass(2 * time.Second)
			if offers := r.reducer.all(); len(offers) != i+1 || offers[i].PreviousClosure != c.want {
				t.Errorf("running %q: offers %+v, want previous closure %q", c.running, offers, c.want)
			}
		}
	})
}

func TestL11TheReducerGetsTheSignedLineAndPolicyAndClampedAdvice(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		once(r)
		rel, d := r.release(manifesttest.Options{})
		line := rel.Hosts.Line(0)
		r.start()
		r.pass(time.Second)
		m := rel.Manifest
		latest := m.Policy.ActivationTimeout.Std() + m.Policy.Waves[0].Soak.Std()
		for i, soak := range []time.Time{now().Add(latest - time.Minute), now().Add(1000 * time.Hour), now().Add(-time.Hour)} {
			d.SoakDueAt, d.EnqueuedAt, d.Attempt = soak, now().Add(-3*time.Second), i+1
			r.cp.Offer(&d)
			at := now()
			r.pass(2 * time.Second)
			offers := r.reducer.all()
			if len(offers) != i+1 {
				t.Fatalf("%d offers; the log:\n%s", len(offers), r.log)
			}
			got := offers[i]
			want := reducer.Offer{
				RolloutID: rel.ID, Channel: "stable", Action: api.ActionActivate, Attempt: i + 1, Line: line,
				Policy: m.Policy, ReleasedAt: m.ReleasedAt, ManifestSHA256: got.ManifestSHA256,
				PreviousClosure: r.running, SoakDueAt: soak, EnqueuedAt: d.EnqueuedAt,
			}
			if bound := at.Add(latest); soak.After(bound) {
				want.SoakDueAt = bound
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b time.Time) bool { return a.Sub(b).Abs() < time.Second })); diff != "" {
				t.Errorf("offer %d (-want +got):\n%s", i, diff)
			}
			if len(got.ManifestSHA256) != 64 {
				t.Errorf("manifestSha256 %q", got.ManifestSHA256)
			}
		}
	})
}

func TestL12ARefusalIsToldBacksOffAndNeverReachesTheReducer(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.options.Random = func() float64 { return 0 }
		_, d := r.release(manifesttest.Options{})
		d.TargetClosure, d.Attempt = manifesttest.Closure(host, "evil"), 3
		r.cp.Handle(pollPath, func(w http.ResponseWriter, req *http.Request) { // offered again and again
			r.cp.Offer(&d)
			r.cp.Honest(w, req)
		})
		r.cp.Handle(rejectPath, func(w http.ResponseWriter, req *http.Request) {
			if len(r.cp.Requests(rejectPath)) > 1 {
				w.WriteHeader(500) // best effort: the worker goes on
				return
			}
			r.cp.Honest(w, req)
		})
		r.start()
		r.pass(16 * time.Second)
		polls := r.polls()
		if len(polls) != 4 || polls[1].Sub(polls[0]) < 5*time.Second {
			t.Errorf("polls at %v, want one each back-off of 5 s", polls)
		}
		rej := r.cp.Rejections()[0]
		if rej.RolloutID != d.RolloutID || rej.Attempt != 3 || rej.Reason != api.CodeTargetMismatch || rej.Detail == "" || rej.At.IsZero() {
			t.Errorf("told %+v", rej)
		}
		if n := len(r.reducer.all()); n != 0 {
			t.Errorf("%d offers", n)
		}
	})
	t.Run("what the reducer refuses is told too", func(t *testing.T) {
		inBubble(t, func(t *testing.T, r *rig) {
			_, d := r.release(manifesttest.Options{})
			r.reducer.answer = reducer.Answer{Kind: reducer.Rejected, Code: api.CodeHeldLocally, Detail: "until noon"}
			r.cp.Offer(&d)
			r.start()
			r.pass(time.Second)
			if got := r.rejected(); !slices.Equal(got, []api.Code{api.CodeHeldLocally}) {
				t.Errorf("rejected as %v", got)
			}
		})
	})
	t.Run("the same dispatch again has outbound send and waits the back-off", func(t *testing.T) {
		inBubble(t, func(t *testing.T, r *rig) {
			_, d := r.release(manifesttest.Options{})
			r.reducer.answer = reducer.Answer{Kind: reducer.Duplicate}
			r.cp.Offer(&d)
			r.start()
			r.pass(20*time.Second + 100*time.Millisecond)
			if polls := r.polls(); len(polls) != 5 || r.resent != 5 || len(r.rejected()) != 0 {
				t.Errorf("%d polls, %d times told to send, rejected %v; want 5, 5, none", len(polls), r.resent, r.rejected())
			}
		})
	})
	t.Run("a rollout id is told as it was dispatched, cut", func(t *testing.T) {
		inBubble(t, func(t *testing.T, r *rig) {
			_, d := r.release(manifesttest.Options{})
			d.RolloutID = "../../../etc/" + strings.Repeat("x", 500)
			r.cp.Offer(&d)
			r.start()
			r.pass(time.Second)
			rejections := r.cp.Rejections()
			if len(rejections) != 1 || rejections[0].RolloutID != d.RolloutID[:256] || rejections[0].Reason != api.CodeMalformed {
				t.Errorf("told %+v", rejections)
			}
			if n := len(r.cp.Requests("")); n != 2 {
				t.Errorf("%d requests: an id that is none was asked for", n)
			}
		})
	})
}

func TestWhatIsRefusedFillsNoDisk(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.options.Observe = true // refuses every release for years
		r.options.Random = func() float64 { return 0 }
		r.start()
		for i := range 3 * manifestcache.Kept {
			_, d := r.release(manifesttest.Options{Ref: fmt.Sprintf("%07x", i), Sequence: int64(i + 1)})
			r.cp.Offer(&d)
			r.pass(10 * time.Minute)
		}
		if n := len(r.rejected()); n != 3*manifestcache.Kept {
			t.Errorf("rejected %d times", n)
		}
		kept, err := os.ReadDir(filepath.Join(r.dir, "rollouts"))
		if err != nil || len(kept) > manifestcache.Kept+1 {
			t.Errorf("%d rollouts are kept, %v", len(kept), err)
		}
	})
}
