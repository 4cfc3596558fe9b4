package api_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/strictjson"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var (
	at      = time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	rollout = "stable@0a1b2c3d4e5f"
	closure = "0c2q8n1nxv8wrnx0zcvbj4vs6f5q2m7a-nixos-system-web-01-26.11"
	before  = "1d3r9p2pyw9xspy1adwck5wt7g6r3n8b-nixos-system-web-01-26.05"
	journal = "6f1c2d3e4f5061728394a5b6c7d8e9f0"
)

// event returns an event of a kind with every field of it set to something.
func event(kind api.EventKind) api.Event {
	return api.Event{
		Seq: 3, Kind: kind, At: at, Attempt: 1, Wave: 0, PreviousClosure: before, TargetClosure: closure,
		SoakDueAt: at.Add(time.Hour), EnqueuedAt: at, ManifestSHA256: "ab", Method: api.MethodSwitch, Phase: api.PhaseSwitch,
		BytesDone: 10, BytesTotal: 20, ObservedClosure: closure, ExitCode: 4, FailedUnits: []string{"nginx.service"},
		RebootPending: []string{"kernel"}, Components: []string{"kernel"}, BootID: "b", Changed: true, Reason: api.CodeSwitchFailed,
		StderrTail: "failed", Probes: []api.DeclaredProbe{{Name: "nginx", Kind: api.ProbeHTTP, Mode: api.ModeEnforce}}, Probe: "nginx",
		ProbeKind: api.ProbeHTTP, Mode: api.ModeEnforce, Status: api.ProbeFail, FailureReason: "status 503", FailingProbes: []string{"nginx"},
		SustainedFor: api.Duration(time.Minute), PolicyApplied: api.RollbackAndHalt, ToClosure: before, Cause: api.CauseHealth,
	}
}

// bodies are one example of every body that crosses the wire.
func bodies() map[string]any {
	var events []api.Event
	for _, kind := range []api.EventKind{
		api.DispatchAck, api.ActivationStarted, api.ActivationProgress, api.ActivationCompleted, api.ActivationDeferred,
		api.RebootStarted, api.ActivationFailed, api.ProbesDeclared, api.ProbeResult, api.HealthFailed, api.RollbackStarted,
		api.RollbackCompleted, api.RollbackFailed, api.Converged,
	} {
		events = append(events, event(kind))
	}
	return map[string]any{
		"dispatch": api.Dispatch{
			Hostname: "web-01", RolloutID: rollout, Action: api.ActionActivate, Attempt: 1, TargetClosure: closure,
			SoakDueAt: at.Add(time.Hour), EnqueuedAt: at,
		},
		"rejection": api.Rejection{
			Hostname: "web-01", RolloutID: rollout, Attempt: 1, Reason: api.CodeStale, Detail: "signed 80h ago", At: at,
		},
		"events":     api.EventBatch{Hostname: "web-01", JournalID: journal, RolloutID: rollout, Events: events},
		"events-ack": api.EventsAck{AckedSeq: 7, Refused: []api.RefusedEvent{{Seq: 6, Code: api.CodeInvalidTransition, Detail: "no"}}},
		"heartbeat": api.Heartbeat{
			Hostname: "web-01", JournalID: journal, At: at, AgentVersion: "1", BootID: "b", CurrentClosure: closure,
			BootClosure: closure, TrustSHA256: "cd", UptimeSeconds: 60, LastSeq: map[string]int64{rollout: 14},
		},
		"heartbeat-reply": api.HeartbeatReply{
			ReceivedAt: at, Interval: api.Duration(time.Minute), ReplayFrom: map[string]int64{rollout: 9},
			Forget: []string{rollout}, Current: map[string]string{"stable": rollout},
		},
		"host-proof":  api.HostProof{Index: 17, Size: 1200, Line: `{"hostname":"web-01"}`, Proof: []string{"AAAA"}},
		"certificate": api.CertificateReply{Certificate: "-----BEGIN CERTIFICATE-----\n", NotAfter: at},
		"problem": api.Problem{
			Type: "/problems/sequence-gap", Title: "Conflict", Status: 409, Detail: "send again from 4",
			Code: api.CodeSequenceGap, ExpectedSeq: 4,
		},
		"hosts": api.List[api.Host]{Items: []api.Host{{
			Hostname: "web-01", Channel: "stable", Tags: []string{"web"}, Declared: true, State: api.Soaking, RolloutID: rollout,
			Attempt: 1, CurrentClosure: closure, BootClosure: closure, TargetClosure: closure, PreviousClosure: before,
			LastHeartbeatAt: &at, Reachable: true, LastFailure: &api.Failure{Code: api.CodeHealthFailed, Detail: "nginx", At: at},
			Probes: []api.ProbeStatus{{Name: "nginx", Kind: api.ProbeHTTP, Mode: api.ModeEnforce, Status: api.ProbePass, At: at}},
		}}},
		"rollout": api.Rollout{
			RolloutID: rollout, Channel: "stable", Ref: "0a1b2c3d4e5f", Sequence: 1795420800, PolicyName: "canary",
			State: api.RolloutActive, OpenedAt: &at, Waves: []api.WaveStatus{{Open: true, Counts: map[api.HostState]int{api.Pending: 3}}},
		},
		"why": api.Why{
			Hostname: "web-01", RolloutID: rollout, State: api.Pending, Summary: "waits for budget etcd: 1 of 1 in flight",
			Gates: []api.GateVerdict{{Gate: "budget", Reason: "1 of 1 in flight", Since: &at}},
		},
		"channel": api.Channel{
			Channel: "stable", Ref: "0a1b2c3d4e5f", Sequence: 1, SignedAt: at, ExpiresAt: at.Add(72 * time.Hour), RolloutID: rollout,
			State: api.RolloutActive, Quarantine: []api.QuarantinedClosure{{Closure: before, Reason: "health-failed", At: at}},
		},
		"logged-event": api.LoggedEvent{
			LogSeq: 9, At: at, RecordedAt: at, Hostname: "web-01", RolloutID: rollout, Kind: "Converged",
			Fields: jsontext.Value(`{"seq":14,"observedClosure":"` + closure + `"}`),
		},
	}
}

// TestTheWireIsWhatTheGoldenFilesSay holds names and layouts, which outside clients are written against.
func TestTheWireIsWhatTheGoldenFilesSay(t *testing.T) {
	for name, body := range bodies() {
		got, err := json.Marshal(body, json.Deterministic(true), jsontext.WithIndent("  "))
		if err != nil {
			t.Fatal(name, err)
		}
		got = append(got, '\n')
		file := filepath.Join("testdata", name+".json")
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (-golden +now):\n%s", name, diff)
		}
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	all := bodies()
	roundTrip[api.Dispatch](t, all["dispatch"])
	roundTrip[api.Rejection](t, all["rejection"])
	roundTrip[api.EventBatch](t, all["events"])
	roundTrip[api.EventsAck](t, all["events-ack"])
	roundTrip[api.Heartbeat](t, all["heartbeat"])
	roundTrip[api.HeartbeatReply](t, all["heartbeat-reply"])
	roundTrip[api.HostProof](t, all["host-proof"])
	roundTrip[api.CertificateReply](t, all["certificate"])
}

// roundTrip reads strictly what was written, and writes it again.
func roundTrip[T any](t *testing.T, body any) {
	t.Helper()
	wrote, err := json.Marshal(body, json.Deterministic(true))
	if err != nil {
		t.Fatal(err)
	}
	read, err := strictjson.Decode[T]("body", wrote, api.MaxRequestBody)
	if err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(read, json.Deterministic(true))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(wrote), string(again)); diff != "" {
		t.Errorf("%T (-wrote +wrote again):\n%s", read, diff)
	}
}
