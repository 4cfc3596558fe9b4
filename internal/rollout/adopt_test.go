package rollout

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
)

func TestAReleaseThatDoesNotFitIsRefusedAndNothingOfTheIndexIsKept(t *testing.T) {
	good := func() Release {
		return Release{
			manifest: api.Manifest{
				RolloutID: "stable@bbbbbbb", Channel: "stable", Sequence: 9, SignedAt: start,
				Policy: policyOf(api.Halt, 0), HostSet: api.HostSet{Size: 1},
			},
			lines: lineList{{Hostname: "a", Closure: "A2"}}, objects: Objects{Manifest: "new"}, verified: true,
		}
	}
	for _, test := range []struct {
		name string
		edit func(r *Release)
		want string
	}{
		{"what was not verified", func(r *Release) { r.verified = false }, "not verified"},
		{"a list of another size", func(r *Release) { r.manifest.HostSet.Size = 2 }, "size"},
		{"a wave that there is not", func(r *Release) { r.lines = lineList{{Hostname: "a", Wave: 1}} }, "wave"},
		{"a budget that there is not", func(r *Release) { r.lines = lineList{{Hostname: "a", Budgets: []int{0}}} }, "budget"},
		{"a known id with another content", func(r *Release) { r.manifest.RolloutID = rid }, "differs"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.story("release stable@aaaaaaa", "a A1")
			before := w.snapshot(w.f)
			r := good()
			test.edit(&r)
			_, err := w.f.Adopt(Adoption{Sequence: 9, SignedAt: w.now, Object: "f9", Releases: []Release{r}}, w.now)
			var refused *RefusedRelease
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if w.snapshot(w.f) != before {
				t.Error("the picture changed")
			}
		})
	}
}

func TestGoingBackToAnOlderReleaseIsRefused(t *testing.T) {
	w := newWorld(t)
	w.story("release stable@aaaaaaa", "a A1")
	first := w.index.Releases
	w.story("release stable@bbbbbbb", "a A2")
	if err := w.adopt(first, w.declared()); err == nil {
		t.Error("the older release was adopted")
	}
}

func TestARemovedKeysJumpAheadHoldsNoLaterReleaseBack(t *testing.T) {
	w := newWorld(t)
	lines := func(closure string) []api.HostLine { return []api.HostLine{{Hostname: "a", Closure: closure}} }
	publish := func(id string, sequence int64, closure string) {
		if err := w.publish(release{id: id, sequence: sequence, policy: policyOf(api.Halt, 0), lines: lines(closure)}); err != nil {
			t.Fatal(err)
		}
	}
	publish("stable@aaaaaaa", 10, "A1")
	w.now = start.Add(100 * 24 * time.Hour) // what the thief says is released long after all others
	publish("stable@eeeeeee", 1<<53-1, "evil")
	w.now = start.Add(time.Hour)
	publish("stable@bbbbbbb", 11, "A2") // the caller found that no key trusted now signed the one before
	w.heartbeat("a")
	w.plan()
	if d := w.f.Outstanding("a"); d == nil || d.TargetClosure != "A2" {
		t.Errorf("the host is offered %+v", d)
	}
	w.check()
}

func TestASignatureThatIsAddedIsAdopted(t *testing.T) {
	w := newWorld(t)
	r := release{id: rid, sequence: 1, signedAt: start, policy: policyOf(api.Halt, 0), lines: []api.HostLine{{Hostname: "a", Closure: "A1"}}}
	for range 2 {
		if err := w.publish(r); err != nil {
			t.Fatal(err)
		}
	}
	if o, _ := w.f.RolloutObjects(rid); o != w.index.Releases[0].Objects() {
		t.Errorf("served is %+v, published last %+v", o, w.index.Releases[0].Objects())
	}
	w.check()
}

func TestTheSameIndexAgainSaysNothing(t *testing.T) {
	w := newWorld(t)
	w.story("release stable@aaaaaaa", "a A1")
	entries, err := w.f.Adopt(w.index, w.now)
	if err != nil || len(entries) > 0 {
		t.Errorf("got %v, %v", show(entries), err)
	}
}

func TestOldRolloutsAreForgotten(t *testing.T) {
	w := newWorld(t)
	for i := range keepRollouts + 5 {
		w.now = w.now.Add(time.Hour)
		w.story(fmt.Sprintf("release stable@%07x", i), fmt.Sprintf("a A%d", i))
		w.story("heartbeat a")
		w.story("succeed a")
	}
	if n := len(w.f.rollouts); n != keepRollouts+1 {
		t.Errorf("%d rollouts are kept", n)
	}
	if n := len(w.f.hosts["a"].journal.Last); n != keepRollouts+1 {
		t.Errorf("%d streams are kept", n)
	}
	if reply := w.heartbeat("a"); len(reply.Forget) != keepRollouts+4 {
		t.Errorf("the agent may forget %v", reply.Forget)
	}
	w.check()
}

func TestATokenServesOneKey(t *testing.T) {
	w := newWorld(t)
	until := start.Add(time.Hour)
	entries, err := w.f.UseToken("web-01", "nonce", "key-1", &until, w.now)
	if err != nil || len(entries) != 1 {
		t.Fatalf("got %v, %v", entries, err)
	}
	w.apply(entries)
	if again, err := w.f.UseToken("web-01", "nonce", "key-1", &until, w.now); err != nil || len(again) > 0 {
		t.Errorf("the same key again: %v, %v", again, err)
	}
	for _, other := range [][2]string{{"web-01", "key-2"}, {"web-02", "key-1"}} {
		_, err := w.f.UseToken(other[0], "nonce", other[1], &until, w.now)
		if spent := (*TokenSpent)(nil); !errors.As(err, &spent) {
			t.Errorf("%v: %v", other, err)
		}
	}
	w.check()
	w.now = start.Add(48 * time.Hour)
	entries, _ = w.f.UseToken("web-01", "other", "key-1", nil, w.now)
	w.apply(entries)
	if len(w.f.tokens) != 1 {
		t.Errorf("a token that ran out long ago is kept: %v", w.f.tokens)
	}
	w.check()
}
