package attack

import (
	"net/http"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/standin"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

const (
	pollPath   = "GET /v1/agent/dispatch"
	beatPath   = "POST /v1/agent/heartbeat"
	eventsPath = "POST /v1/agent/events"
)

// endpoints are all that an agent asks.
var endpoints = []string{pollPath, beatPath, eventsPath, "POST /v1/agent/rejections", "GET manifest", "GET host"}

// lie is one way to offer a host what was not signed for it.
type lie struct {
	name string
	code api.Code // that the host must refuse it by
	// tell publishes what is served, and returns the dispatch that is offered.
	tell func(h *target) api.Dispatch
}

// offered is a release that is served as it is, and a dispatch of it that is not.
func offered(edit func(*api.Dispatch)) func(*target) api.Dispatch {
	return func(h *target) api.Dispatch {
		rel := h.release(nil)
		h.publish(rel)
		d := dispatch(rel)
		edit(&d)
		return d
	}
}

// signed is a good dispatch of a release that is not as it should be.
func signed(edit func(*manifesttest.Options)) func(*target) api.Dispatch {
	return func(h *target) api.Dispatch {
		rel := h.release(edit)
		h.publish(rel)
		return dispatch(rel)
	}
}

// served is a good dispatch of a good release, in whose place something else is served.
func served(serve func(h *target, rel manifesttest.Release)) func(*target) api.Dispatch {
	return func(h *target) api.Dispatch {
		rel := h.release(nil)
		serve(h, rel)
		return dispatch(rel)
	}
}

func action(a api.Action) func(*target) api.Dispatch {
	return offered(func(d *api.Dispatch) { d.Action = a })
}

// stranger is a key that nobody trusts.
var stranger = manifesttest.Key("stranger")

var lies = []lie{
	{"target changed", api.CodeTargetMismatch, offered(func(d *api.Dispatch) { d.TargetClosure = evil })},
	{"target a path", api.CodeTargetMismatch, offered(func(d *api.Dispatch) { d.TargetClosure = "../store/" + evil })},
	{"wave changed", api.CodeTargetMismatch, offered(func(d *api.Dispatch) { d.Wave = 1 })},
	{"another host's dispatch", api.CodeIdentityMismatch, func(h *target) api.Dispatch {
		rel := h.release(nil)
		h.publish(rel)
		return rel.Dispatch(manifesttest.Hostname(1))
	}},
	{"another host's line and proof", api.CodeNotInManifest, served(func(h *target, rel manifesttest.Release) {
		h.cp.Publish(rel.ID, rel.Envelope, host, rel.Proof(manifesttest.Hostname(1)))
	})},
	{"a line of its own making", api.CodeNotInManifest, served(func(h *target, rel manifesttest.Release) {
		proof := rel.Proof(host)
		proof.Line = `{"hostname":"` + host + `","wave":0,"closure":"` + evil + `"}`
		h.cp.Publish(rel.ID, rel.Envelope, host, proof)
	})},
	{"proof of another tree", api.CodeNotInManifest, served(func(h *target, rel manifesttest.Release) {
		other := manifesttest.New(manifesttest.Options{Lines: manifesttest.Lines(3, 2, "another")})
		h.cp.Publish(rel.ID, rel.Envelope, host, other.Proof(host))
	})},
	{"proof without end", api.CodeTooLarge, served(func(h *target, rel manifesttest.Release) {
		proof := rel.Proof(host)
		for len(proof.Proof) <= api.MaxProof {
			proof.Proof = append(proof.Proof, proof.Proof...)
		}
		h.cp.Publish(rel.ID, rel.Envelope, host, proof)
	})},
	{"manifest of another channel", api.CodeIdentityMismatch, served(func(h *target, rel manifesttest.Release) {
		other := h.release(func(o *manifesttest.Options) { o.Channel = "edge" })
		h.cp.Publish(rel.ID, other.Envelope, host, other.Proof(host))
	})},
	{"manifest of another id", api.CodeIdentityMismatch, served(func(h *target, rel manifesttest.Release) {
		other := h.release(nil)
		h.cp.Publish(rel.ID, other.Envelope, host, other.Proof(host))
	})},
	{"a rollout id that is a path", api.CodeMalformed, offered(func(d *api.Dispatch) { d.RolloutID = "../../" + d.RolloutID })},
	{"signature by an unknown key", api.CodeSignatureInvalid, signed(func(o *manifesttest.Options) { o.Signers = []trust.Signer{stranger} })},
	{"no signature", api.CodeSignatureInvalid, served(func(h *target, rel manifesttest.Release) {
		h.cp.Publish(rel.ID, unsigned(h.t, rel.Envelope), host, rel.Proof(host))
	})},
	{"a bit changed under a good signature", api.CodeSignatureInvalid, served(func(h *target, rel manifesttest.Release) {
		m := rel.Manifest
		m.Policy.IgnoreWindows = true
		h.cp.Publish(rel.ID, withPayloadOf(h.t, rel.Envelope, manifesttest.Sign(m, stranger)), host, rel.Proof(host))
	})},
	{"payload type swapped", api.CodeSignatureInvalid, served(func(h *target, rel manifesttest.Release) {
		h.cp.Publish(rel.ID, asType(h.t, rel.Envelope, api.PayloadFleet), host, rel.Proof(host))
	})},
	{"signed as another type", api.CodeSignatureInvalid, served(func(h *target, rel manifesttest.Release) {
		h.cp.Publish(rel.ID, signedAs(h.t, rel, api.PayloadFleet), host, rel.Proof(host))
	})},
	{"stale", api.CodeStale, signed(func(o *manifesttest.Options) { o.ReleasedAt = o.ReleasedAt.Add(-73 * time.Hour) })},
	{"signed in the future", api.CodeSignedInFuture, signed(func(o *manifesttest.Options) { o.SignedAt = o.ReleasedAt.Add(5 * time.Minute) })},
	{"a wave before its time", api.CodeTooEarly, signed(func(o *manifesttest.Options) {
		o.Policy.Waves = []api.Wave{{Soak: api.Duration(time.Hour)}, {}}
		o.Lines = manifesttest.Lines(3, 2, o.Ref)
		o.Lines[0].Wave = 1
	})},
	{"inside a freeze", api.CodeOutsideWindow, signed(func(o *manifesttest.Options) {
		o.Edit = func(m *api.Manifest) {
			m.Freezes = []api.Freeze{{From: m.SignedAt.Add(-time.Hour), Until: m.SignedAt.Add(time.Hour), Reason: "holidays"}}
		}
	})},
	{"a revert that the policy forbids", api.CodeNotPermitted, action(api.ActionRevert)},
	{"a reboot that the policy forbids", api.CodeNotPermitted, action(api.ActionReboot)},
	{"an unstage of what was never staged", api.CodeNotPermitted, action(api.ActionUnstage)},
	{"an action that nobody knows", api.CodeUnsupportedAction, action("format")},
	{"a revert of what was never done", api.CodeNotPermitted, func(h *target) api.Dispatch {
		rel := h.release(func(o *manifesttest.Options) { o.Policy.OnHealthFailure = api.RollbackAll })
		h.publish(rel)
		d := dispatch(rel)
		d.Action = api.ActionRevert
		return d
	}},
	{"a manifest that nobody has", api.CodeManifestUnavailable, served(func(*target, manifesttest.Release) {})},
}

func TestAHostThatIsLiedToStaysSaysWhyAndGoesOn(t *testing.T) {
	for _, l := range lies {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			h := newTarget(t)
			d := l.tell(h)
			h.insist(d)
			h.tells(l.code)
			h.watch()
			h.stays(before)
			if n := len(h.cp.Batches()); n != 0 {
				t.Errorf("%d batches of events about a dispatch that was refused", n)
			}
			h.relents()
			h.converges(h.release(nil))
		})
	}
}

// insist offers a dispatch on every poll, the one that is parked now too, whatever the host answered.
func (h *target) insist(d api.Dispatch) {
	h.cp.Handle(pollPath, func(w http.ResponseWriter, _ *http.Request) { standin.JSON(w, d) })
	h.cp.Offer(&d)
}

// relents has the control plane be honest again.
func (h *target) relents() {
	for _, e := range endpoints {
		h.cp.Handle(e, nil)
	}
	h.cp.Offer(nil)
}

// watch lets an attack go on for a while and counts the requests that it makes the host send.
func (h *target) watch() {
	h.t.Helper()
	counts := map[string]int{}
	for _, e := range endpoints {
		counts[e] = len(h.cp.Requests(e))
	}
	began := clock.System{}.Now()
	clock.System{}.Sleep(h.t.Context(), watched)
	for _, e := range endpoints {
		n := len(h.cp.Requests(e)) - counts[e]
		// On a busy machine it was longer, and requests come in bursts; a hot loop makes hundreds.
		took := clock.System{}.Now().Sub(began)
		if most := 2*int(took/errorBackoff) + 2; n > most {
			h.t.Errorf("a hot loop: %d requests %s in %v, with a back-off of %v", n, e, took, errorBackoff)
		}
	}
}
