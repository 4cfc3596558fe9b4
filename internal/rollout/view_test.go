package rollout

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/api"
)

// TestEachGateSaysWhatItWaitsFor has one row a gate: the story until it holds web-02 back, and what
// why says then.
func TestEachGateSaysWhatItWaitsFor(t *testing.T) {
	for _, test := range []struct {
		gate   gate
		story  []string
		reason string
	}{
		{gateHeard, []string{"release stable@aaaaaaa | web-02 A"}, "waits for its first heartbeat"},
		{
			gateRollout,
			[]string{"release stable@aaaaaaa waves=0s,0s | web-01 A | web-02 B wave=1", "heartbeat web-01 web-02", "fail web-01"},
			"the rollout is Halted: 1 of 2 hosts failed, 0 are tolerated: web-01 (Reverting, health-failed)",
		},
		{
			gateQuarantine,
			[]string{"release stable@aaaaaaa max=5 budgets=b:1 | web-01 A budgets=b | web-02 A budgets=b", "heartbeat web-01 web-02", "fail web-01"},
			"its closure A is quarantined on channel stable: health-failed on web-01",
		},
		{
			gateWave,
			[]string{"release stable@aaaaaaa waves=30m,0s | web-01 A | web-02 A wave=1", "heartbeat web-01 web-02", "activate web-01", "live 4m"},
			"waits for wave 1: 1 of 1 host of wave 0 is not done: web-01 Soaking since 4m",
		},
		{
			gateWave,
			[]string{"release stable@aaaaaaa waves=0s,0s approval=1 | web-01 A | web-02 A wave=1", "heartbeat web-01 web-02", "succeed web-01"},
			"waits for wave 1: wave 1 asks for an operator's approval",
		},
		{
			gateWave,
			[]string{"release stable@aaaaaaa waves=0s,0s | web-01 A | web-02 A wave=1", "heartbeat web-02", "advance 8m", "heartbeat web-02", "advance 3m", "heartbeat web-02"},
			"waits for wave 1: wave 1 asks for an operator's approval: no host of wave 0 converged, which proves nothing",
		},
		{
			gateWave, // what a host that does not soak as long as it should says does not shorten what agents enforce
			[]string{"release stable@aaaaaaa waves=30m,0s | web-01 A | web-02 A wave=1", "heartbeat web-01 web-02", "undeclare web-01"},
			"waits for wave 1: wave 1 asks for an operator's approval: no host of wave 0 converged, which proves nothing",
		},
		{
			gateEdges,
			[]string{"release stable@aaaaaaa | web-01 A | web-02 A after=web-01", "heartbeat web-01 web-02", "ack web-01", "live 2m"},
			"waits for web-01, which is Activating since 2m",
		},
		{
			gateBudget,
			[]string{"release stable@aaaaaaa budgets=etcd:1 | web-01 A budgets=etcd | web-02 A budgets=etcd", "heartbeat web-01 web-02", "ack web-01", "live 4m"},
			"waits for budget etcd: 1 of 1 in flight: web-01 Activating since 4m",
		},
		{
			gateBackoff,
			[]string{"release stable@aaaaaaa | web-02 A", "heartbeat web-02", "reject web-02 stale"},
			"it refused as stale, once in a row; offered again in 30s",
		},
	} {
		t.Run(string(test.gate), func(t *testing.T) {
			w := newWorld(t)
			for _, step := range test.story {
				parts := strings.Split(step, " | ")
				w.story(parts[0], parts[1:]...)
			}
			why, ok := w.f.Why("web-02", w.now)
			i := slices.IndexFunc(why.Gates, func(g api.GateVerdict) bool { return !g.Pass })
			if !ok || i < 0 || why.Gates[i].Gate != string(test.gate) || why.Gates[i].Reason != test.reason {
				t.Fatalf("got %+v", why)
			}
			if why.Summary != test.reason {
				t.Errorf("the summary is %q", why.Summary)
			}
			if why.Gates[i].Since == nil {
				t.Error("it does not say since when")
			}
		})
	}
}

func TestAWaveIsNotDispatchedBeforeTheEarlierSoaksHavePassedSinceTheRelease(t *testing.T) {
	w := newWorld(t)
	w.story("release stable@aaaaaaa waves=30m,0s", "web-01 A", "web-02 B wave=1")
	w.story("heartbeat web-01 web-02")
	w.story("ack web-01")
	// Staged until the reboot, the canary is done at once; agents still refuse wave 1 before its time.
	w.story("say web-01 stable@aaaaaaa ActivationDeferred")
	why, _ := w.f.Why("web-02", w.now)
	if want := "waits until 08:30:00, in 30m: agents refuse wave 1 until the soaks of the earlier waves have passed since the release"; why.Summary != want {
		t.Errorf("got %q", why.Summary)
	}
	w.story("live 29m")
	if d := w.f.Outstanding("web-02"); d != nil {
		t.Errorf("it is offered %+v", d)
	}
	w.story("live 1m")
	if d := w.f.Outstanding("web-02"); d == nil || d.Wave != 1 || !d.SoakDueAt.Equal(w.now) {
		t.Errorf("it is offered %+v", d)
	}
}

func TestHostsAreListedByPageAndFilter(t *testing.T) {
	w := newWorld(t)
	w.story("release stable@aaaaaaa", "a A", "b A", "c A", "d A")
	w.story("release edge@bbbbbbb", "e A")
	w.story("heartbeat stranger")
	w.f.hosts["b"].tags = []string{"web"}
	w.story("heartbeat a b")
	w.story("succeed a")
	for _, test := range []struct {
		name   string
		filter HostFilter
		want   []string
		next   string
	}{
		{"all", HostFilter{}, []string{"a", "b", "c", "d", "e", "stranger"}, ""},
		{"the first page", HostFilter{Limit: 2}, []string{"a", "b"}, "b"},
		{"the next page", HostFilter{Limit: 2, Cursor: "b"}, []string{"c", "d"}, "d"},
		{"a page that ends with the list", HostFilter{Limit: 2, Cursor: "d"}, []string{"e", "stranger"}, ""},
		{"a cursor of a host that is gone", HostFilter{Limit: 2, Cursor: "bb"}, []string{"c", "d"}, "d"},
		{"one channel", HostFilter{Channel: "edge"}, []string{"e"}, ""},
		{"one state", HostFilter{State: api.HostConverged}, []string{"a"}, ""},
		{"in no rollout", HostFilter{State: api.Idle}, []string{"stranger"}, ""},
		{"a tag", HostFilter{Tag: "web"}, []string{"b"}, ""},
		{"a part of the name", HostFilter{Query: "rang"}, []string{"stranger"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			list := w.f.Hosts(test.filter, w.now)
			var names []string
			for _, h := range list.Items {
				names = append(names, h.Hostname)
			}
			if diff := cmp.Diff(test.want, names); diff != "" || list.NextCursor != test.next {
				t.Errorf("next %q, want %q\n%s", list.NextCursor, test.next, diff)
			}
		})
	}
}

func TestADriftedHostIsSeenAndNotUndone(t *testing.T) {
	w := newWorld(t)
	w.story("release stable@aaaaaaa", "a A")
	w.story("heartbeat a")
	w.story("succeed a")
	w.agents["a"].running = "by-hand"
	w.story("heartbeat a")
	h, _ := w.f.Host("a", w.now)
	if !h.Drifted || h.State != api.HostConverged {
		t.Errorf("got %+v", h)
	}
	if why, _ := w.f.Why("a", w.now); !strings.Contains(why.Summary, "which nobody gave it") {
		t.Errorf("got %q", why.Summary)
	}
	if d := w.f.Outstanding("a"); d != nil {
		t.Errorf("it is offered %+v", d)
	}
}

func TestAChannelSaysWhenItsSignatureExpires(t *testing.T) {
	w := newWorld(t)
	w.story("release stable@aaaaaaa", "a A")
	w.story("heartbeat a")
	w.story("fail a")
	ch := w.f.Channels(w.now)
	if len(ch) != 1 || !ch[0].ExpiresAt.Equal(start.Add(72*time.Hour)) || ch[0].State != api.RolloutHalted {
		t.Fatalf("got %+v", ch)
	}
	if q := ch[0].Quarantine; len(q) != 1 || q[0].Closure != "A" {
		t.Errorf("quarantined are %+v", q)
	}
	w.now = w.now.Add(time.Hour)
	w.story("refresh stable@aaaaaaa")
	if ch := w.f.Channels(w.now); !ch[0].ExpiresAt.Equal(start.Add(73 * time.Hour)) {
		t.Errorf("after the refresh it expires at %s", ch[0].ExpiresAt)
	}
	w.check()
}

func TestAConfirmTimeoutIsForgivenWhenThePreviousSystemHasNoNetworkEither(t *testing.T) {
	w := newWorld(t)
	w.story("release stable@aaaaaaa", "a A")
	w.story("heartbeat a")
	w.story("ack a")
	w.story("say a stable@aaaaaaa ActivationFailed reason=confirm-timeout changed=true phase=confirm")
	if len(w.f.channels["stable"].quarantine) != 1 {
		t.Fatal("it is not quarantined at first")
	}
	w.say("a", rid, api.Event{Kind: api.RollbackCompleted, ObservedClosure: "old-a", Reason: api.CodeConfirmTimeout})
	if q := w.f.channels["stable"].quarantine; len(q) != 0 {
		t.Errorf("quarantined are %v", q)
	}
	w.check()
}
