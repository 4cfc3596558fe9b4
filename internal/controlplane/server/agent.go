package server

import (
	"fmt"
	"net/http"
	"time"
	"unicode/utf8"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/fleet"
)

// Bounds on what hosts say beyond the size of the body, so that no single field grows what is kept of
// a host.
const (
	maxText    = 4 << 10 // any one string of an event
	maxName    = 256     // any one string of a heartbeat
	maxItems   = 1024    // any one list
	maxStreams = 4096    // rollouts in a heartbeat's lastSeq
)

func (s *Server) events(w http.ResponseWriter, r *http.Request, who Identity) error {
	batch, err := readBody[api.EventBatch](s, w, r, api.MaxBatchBytes)
	if err != nil {
		return err
	}
	if err := checkBatch(batch, who.Name); err != nil {
		return err
	}
	if !s.core.Ready() {
		return Refuse(api.CodeStarting, "the control plane is starting")
	}
	ack, err := s.core.Events(r.Context(), batch)
	if err != nil {
		return err
	}
	return reply(w, ack)
}

func checkBatch(b api.EventBatch, host string) error {
	if err := checkSender(b.Hostname, host); err != nil {
		return err
	}
	switch {
	case !journalID.MatchString(b.JournalID):
		return Refuse(api.CodeMalformed, "journalId is not 32 hex characters")
	case !rolloutID.MatchString(b.RolloutID):
		return Refuse(api.CodeMalformed, "rolloutId is not a rollout id")
	case len(b.Events) == 0:
		return Refuse(api.CodeMalformed, "events is empty")
	case len(b.Events) > api.MaxBatchEvents:
		return Refuse(api.CodeTooLarge, "events holds over %d events", api.MaxBatchEvents)
	}
	for i, e := range b.Events {
		if err := checkEvent(e); err != nil {
			return Refuse(api.CodeMalformed, "events.%d.%s", i, err)
		}
		if i > 0 && e.Seq != b.Events[i-1].Seq+1 {
			return Refuse(api.CodeMalformed, "events.%d.seq does not follow the one before it", i)
		}
	}
	return nil
}

// checkEvent bounds an event's fields; that it fits the record is the host machine's to say.
func checkEvent(e api.Event) error {
	if e.Seq < 1 {
		return fmt.Errorf("seq is not at least 1")
	}
	texts := map[string]string{
		"kind": string(e.Kind), "previousClosure": e.PreviousClosure, "targetClosure": e.TargetClosure,
		"manifestSha256": e.ManifestSHA256, "method": e.Method, "phase": e.Phase, "observedClosure": e.ObservedClosure,
		"bootId": e.BootID, "reason": string(e.Reason), "stderrTail": e.StderrTail, "probe": e.Probe,
		"probeKind": e.ProbeKind, "mode": e.Mode, "status": e.Status, "failureReason": e.FailureReason,
		"toClosure": e.ToClosure, "cause": e.Cause,
	}
	for name, text := range texts {
		if len(text) > maxText {
			return fmt.Errorf("%s is over %d bytes", name, maxText)
		}
	}
	times := map[string]time.Time{"at": e.At, "soakDueAt": e.SoakDueAt, "enqueuedAt": e.EnqueuedAt}
	for name, t := range times {
		if _, offset := t.Zone(); offset != 0 {
			return fmt.Errorf("%s is not in UTC", name)
		}
	}
	lists := map[string]int{
		"failedUnits": len(e.FailedUnits), "rebootPending": len(e.RebootPending), "components": len(e.Components),
		"probes": len(e.Probes), "subResults": len(e.SubResults), "failingProbes": len(e.FailingProbes),
	}
	for name, n := range lists {
		if n > maxItems {
			return fmt.Errorf("%s holds over %d items", name, maxItems)
		}
	}
	if len(e.Probes) > api.MaxProbes {
		return fmt.Errorf("probes holds over %d probes", api.MaxProbes)
	}
	return nil
}

func checkSender(claimed, host string) error {
	if claimed != host {
		return Refuse(api.CodeIdentityMismatch, "the certificate is that of %s", host)
	}
	return nil
}

func (s *Server) heartbeat(w http.ResponseWriter, r *http.Request, who Identity) error {
	hb, err := readBody[api.Heartbeat](s, w, r, api.MaxRequestBody)
	if err != nil {
		return err
	}
	if err := checkHeartbeat(hb, who.Name); err != nil {
		return err
	}
	if !s.core.Ready() {
		return Refuse(api.CodeStarting, "the control plane is starting")
	}
	answer, err := s.core.Heartbeat(r.Context(), hb)
	if err != nil {
		return err
	}
	return reply(w, answer)
}

func checkHeartbeat(hb api.Heartbeat, host string) error {
	if err := checkSender(hb.Hostname, host); err != nil {
		return err
	}
	if !journalID.MatchString(hb.JournalID) {
		return Refuse(api.CodeMalformed, "journalId is not 32 hex characters")
	}
	texts := map[string]string{
		"agentVersion": hb.AgentVersion, "bootId": hb.BootID, "currentClosure": hb.CurrentClosure,
		"bootClosure": hb.BootClosure, "specialisation": hb.Specialisation, "trustSha256": hb.TrustSHA256,
	}
	for i, component := range hb.RebootPending {
		texts[fmt.Sprintf("rebootPending.%d", i)] = component
	}
	for name, text := range texts {
		if len(text) > maxName {
			return Refuse(api.CodeMalformed, "%s is over %d bytes", name, maxName)
		}
	}
	if len(hb.RebootPending) > maxItems || len(hb.LastSeq) > maxStreams {
		return Refuse(api.CodeMalformed, "rebootPending or lastSeq holds too many items")
	}
	for id, seq := range hb.LastSeq {
		if !rolloutID.MatchString(id) || seq < 0 {
			return Refuse(api.CodeMalformed, "lastSeq does not map rollout ids to sequence numbers")
		}
	}
	return nil
}

func (s *Server) reject(w http.ResponseWriter, r *http.Request, who Identity) error {
	rejection, err := readBody[api.Rejection](s, w, r, api.MaxRequestBody)
	if err != nil {
		return err
	}
	if err := checkSender(rejection.Hostname, who.Name); err != nil {
		return err
	}
	if len(rejection.Reason) > maxName {
		return Refuse(api.CodeMalformed, "reason is over %d bytes", maxName)
	}
	rejection.RolloutID = clip(rejection.RolloutID, api.MaxRejectID)
	rejection.Detail = clip(rejection.Detail, api.MaxRejectDetail)
	if !s.core.Ready() {
		return Refuse(api.CodeStarting, "the control plane is starting")
	}
	if err := s.core.Reject(r.Context(), rejection); err != nil {
		return err
	}
	return noContent(w)
}

// clip cuts s to at most n bytes, between characters.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

func (s *Server) enroll(w http.ResponseWriter, r *http.Request, _ Identity) error {
	if s.issuer == nil {
		return Refuse(api.CodeNotFound, "this control plane issues no certificates")
	}
	req, err := readBody[api.EnrollRequest](s, w, r, maxCertificateRequest)
	if err != nil {
		return err
	}
	answer, err := s.issuer.Enroll(r.Context(), req)
	if err != nil {
		return err
	}
	return reply(w, answer)
}

func (s *Server) renew(w http.ResponseWriter, r *http.Request, who Identity) error {
	if s.issuer == nil {
		return Refuse(api.CodeNotFound, "this control plane issues no certificates")
	}
	req, err := readBody[api.RenewRequest](s, w, r, maxCertificateRequest)
	if err != nil {
		return err
	}
	answer, err := s.issuer.Renew(r.Context(), who.Name, req)
	if err != nil {
		return err
	}
	return reply(w, answer)
}

// maxCertificateRequest caps a body with a token and a CSR.
const maxCertificateRequest = 64 << 10

// rolloutOf returns the rollout id in a path.
func rolloutOf(r *http.Request) (string, error) {
	id := r.PathValue("id")
	if !rolloutID.MatchString(id) {
		return "", Refuse(api.CodeMalformed, "the path does not hold a rollout id")
	}
	return id, nil
}

// hostOf returns the host name in a path.
func hostOf(r *http.Request) (string, error) {
	name := r.PathValue("name")
	if !fleet.ValidHostname(name) {
		return "", Refuse(api.CodeMalformed, "the path does not hold a host name")
	}
	return name, nil
}

func (s *Server) manifest(w http.ResponseWriter, r *http.Request, _ Identity) error {
	id, err := rolloutOf(r)
	if err != nil {
		return err
	}
	blob, err := s.artifacts.Manifest(r.Context(), id)
	if err != nil {
		return err
	}
	return s.replyBlob(w, r, "application/json", blob)
}

func (s *Server) hostsFile(w http.ResponseWriter, r *http.Request, _ Identity) error {
	id, err := rolloutOf(r)
	if err != nil {
		return err
	}
	blob, err := s.artifacts.HostsFile(r.Context(), id)
	if err != nil {
		return err
	}
	return s.replyBlob(w, r, "application/jsonl", blob)
}

func (s *Server) hostProof(w http.ResponseWriter, r *http.Request, who Identity) error {
	id, err := rolloutOf(r)
	if err != nil {
		return err
	}
	name, err := hostOf(r)
	if err != nil {
		return err
	}
	if who.Role == Host && name != who.Name {
		return Refuse(api.CodeIdentityMismatch, "the certificate is that of %s", who.Name)
	}
	proof, etag, err := s.artifacts.Proof(r.Context(), id, name)
	if err != nil {
		return err
	}
	data, err := marshal(proof)
	if err != nil {
		return err
	}
	return s.replyBlob(w, r, "application/json", Blob{Data: data, ETag: etag})
}
