package heartbeat_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
)

// publish serves a release, signed now, as what its channel is at.
func (r *rig) publish(sequence int64) manifesttest.Release {
	rel := manifesttest.New(manifesttest.Options{ReleasedAt: clock.System{}.Now().Truncate(time.Second), Sequence: sequence})
	r.cp.Publish(rel.ID, rel.Envelope, host, rel.Proof(host))
	r.cp.Reply(api.HeartbeatReply{Interval: api.Duration(15 * time.Minute), Current: map[string]string{"stable": rel.ID}})
	return rel
}

func (r *rig) follow(channel string) {
	if err := r.keeper.Follow(channel); err != nil {
		r.t.Fatal(err)
	}
}

func TestTheChannelsManifestIsVerifiedEveryQuarterOfItsWindow(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.follow("stable")
		rel := r.publish(10)
		r.start()
		r.pass(60 * time.Hour)
		if n := len(r.cp.Requests("GET manifest")); n != 4 { // at the start and after 18, 36 and 54 h
			t.Errorf("verified %d times in 60 h of a window of 72 h", n)
		}
		if highest := r.keeper.Highest("stable"); highest == nil || highest.Value().RolloutID != rel.ID {
			t.Error("what was verified does not count for anti-rollback")
		}
		if err := r.worker.Stale(); err != nil {
			t.Error(err)
		}
	})
}

func TestTheManifestIsVerifiedAlsoWhereEachHeartbeatGoesBetweenTwoPolls(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.options.Random = func() float64 { return 0.999999 } // none is ever due by itself
		r.follow("stable")
		rel := r.publish(10)
		r.cp.Reply(api.HeartbeatReply{Interval: api.Duration(time.Minute), Current: map[string]string{"stable": rel.ID}})
		r.start()
		for range 19 * 60 {
			r.pass(time.Minute)
			r.worker.Between(t.Context())
		}
		if n := len(r.cp.Requests("GET manifest")); n != 2 { // at the start and after 18 h
			t.Errorf("verified %d times in 19 h of a window of 72 h", n)
		}
	})
}

func TestAHostWhoseControlPlaneIsAwayTooLongSaysSo(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.follow("stable")
		r.publish(10)
		r.start()
		r.pass(time.Minute)
		r.cp.Close()
		r.pass(71 * time.Hour)
		if err := r.worker.Stale(); err != nil {
			t.Fatalf("while the newest accepted is fresh: %v", err)
		}
		r.pass(2 * time.Hour)
		if err := r.worker.Stale(); err == nil {
			t.Error("nothing fresh can be had, and it does not say so")
		}
	})
}

func TestAHostThatCanGetNothingFreshSaysSoAndRunsOn(t *testing.T) {
	withhold := map[string]func(r *rig){
		"the same old manifest": func(r *rig) {},
		"no manifest": func(r *rig) {
			r.cp.Handle("GET manifest", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) })
		},
		"not a word of it": func(r *rig) { r.cp.Reply(api.HeartbeatReply{Interval: api.Duration(15 * time.Minute)}) },
		"another channel": func(r *rig) {
			r.cp.Reply(api.HeartbeatReply{Interval: api.Duration(15 * time.Minute), Current: map[string]string{"stable": "edge@0a1b2c3d"}})
		},
		"an id that is none": func(r *rig) {
			r.cp.Reply(api.HeartbeatReply{Interval: api.Duration(15 * time.Minute), Current: map[string]string{"stable": "../../x"}})
		},
	}
	for name, edit := range withhold {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.follow("stable")
				r.publish(10)
				r.start()
				r.pass(time.Minute)
				edit(r)
				r.pass(71 * time.Hour)
				if err := r.worker.Stale(); err != nil {
					t.Fatalf("while the newest accepted is fresh: %v", err)
				}
				r.pass(80 * time.Minute)
				if err := r.worker.Stale(); err == nil || !strings.Contains(r.log.String(), "level=ERROR msg=\"this host can get nothing fresh") {
					t.Fatalf("stale: %v; the log:\n%s", err, r.log.String())
				}
				if n := len(r.cp.Requests("GET manifest")); n > 4*74 {
					t.Errorf("asked for the manifest %d times", n)
				}
				r.cp.Handle("GET manifest", nil)
				r.publish(11)
				r.pass(time.Hour)
				if err := r.worker.Stale(); err != nil {
					t.Errorf("once there is something fresh: %v", err)
				}
			})
		})
	}
}

func TestAHostThatIsOnNoChannelYetHoldsNobodyToOne(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		r.pass(time.Hour)
		if n := len(r.cp.Requests("GET manifest")); n != 0 || r.worker.Stale() != nil {
			t.Errorf("%d requests, stale: %v", n, r.worker.Stale())
		}
	})
}
