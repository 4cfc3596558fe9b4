package standin

import (
	"net/http"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
)

// honest answers as a control plane should.
func (cp *ControlPlane) honest(w http.ResponseWriter, r *http.Request) {
	switch endpointOf(r) {
	case "GET /v1/agent/dispatch":
		cp.poll(w, r)
	case "POST /v1/agent/heartbeat":
		receive(cp, w, r, cp.heartbeat)
	case "POST /v1/agent/events":
		receive(cp, w, r, cp.take)
	case "POST /v1/agent/rejections":
		receive(cp, w, r, cp.reject)
	case "GET manifest":
		cp.manifest(w, r)
	case "GET host":
		cp.proof(w, r)
	default:
		Problem(w, http.StatusNotFound, api.CodeNotFound, r.URL.Path)
	}
}

// Honest answers a request as it would be answered without the test's handler.
func (cp *ControlPlane) Honest(w http.ResponseWriter, r *http.Request) { cp.honest(w, r) }

func (cp *ControlPlane) poll(w http.ResponseWriter, r *http.Request) {
	timer := clock.System{}.NewTimer(WaitOf(r))
	defer timer.Stop()
	for {
		cp.mu.Lock()
		d, changed := cp.dispatch, cp.changed
		cp.mu.Unlock()
		if d != nil {
			JSON(w, d)
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			w.WriteHeader(http.StatusNoContent)
			return
		case <-r.Context().Done():
			return
		}
	}
}

// receive decodes a body and hands it on.
func receive[T any](cp *ControlPlane, w http.ResponseWriter, r *http.Request, then func(http.ResponseWriter, T)) {
	var v T
	if err := json.Unmarshal(Of(r).Body, &v); err != nil {
		Problem(w, http.StatusBadRequest, api.CodeMalformed, err.Error())
		return
	}
	then(w, v)
}

func (cp *ControlPlane) heartbeat(w http.ResponseWriter, hb api.Heartbeat) {
	cp.mu.Lock()
	cp.beats = append(cp.beats, hb)
	reply := cp.reply
	cp.notify()
	cp.mu.Unlock()
	reply.ReceivedAt = clock.System{}.Now()
	JSON(w, reply)
}

func (cp *ControlPlane) take(w http.ResponseWriter, b api.EventBatch) {
	cp.mu.Lock()
	cp.events = append(cp.events, b)
	if slices.ContainsFunc(b.Events, func(e api.Event) bool {
		return e.Kind == api.DispatchAck && cp.dispatch != nil && b.RolloutID == cp.dispatch.RolloutID &&
			e.Attempt == cp.dispatch.Attempt
	}) {
		cp.dispatch = nil
	}
	cp.notify()
	cp.mu.Unlock()
	JSON(w, api.EventsAck{AckedSeq: b.Events[len(b.Events)-1].Seq})
}

func (cp *ControlPlane) reject(w http.ResponseWriter, rej api.Rejection) {
	cp.mu.Lock()
	cp.rejected = append(cp.rejected, rej)
	if cp.dispatch != nil && cp.dispatch.RolloutID == rej.RolloutID {
		cp.dispatch = nil
	}
	cp.notify()
	cp.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

func (cp *ControlPlane) manifest(w http.ResponseWriter, r *http.Request) {
	id := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/v1/rollouts/"), "/manifest")
	cp.mu.Lock()
	envelope, ok := cp.manifests[id]
	cp.mu.Unlock()
	if !ok {
		Problem(w, http.StatusNotFound, api.CodeUnknownRollout, id)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(envelope)
}

func (cp *ControlPlane) proof(w http.ResponseWriter, r *http.Request) {
	id, host, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/rollouts/"), "/hosts/")
	cp.mu.Lock()
	proof, ok := cp.proofs[id+"/"+host]
	cp.mu.Unlock()
	if !ok {
		Problem(w, http.StatusNotFound, api.CodeUnknownRollout, id)
		return
	}
	JSON(w, proof)
}
