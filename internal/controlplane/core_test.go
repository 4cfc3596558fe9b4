package controlplane

import (
	"errors"
	"log/slog"
	"testing"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane/dispatch"
	"nixfleet.dev/nixfleet/internal/controlplane/enroll"
	"nixfleet.dev/nixfleet/internal/controlplane/server"
	"nixfleet.dev/nixfleet/internal/controlplane/writer"
	"nixfleet.dev/nixfleet/internal/rollout"
)

func TestATokenThatCannotBeRecordedYetIsForTheHostToShowAgain(t *testing.T) {
	w := writer.New(writer.Options{Registry: dispatch.New(), Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler)})
	var tokens enroll.Tokens = &core{writer: w, clock: clock.System{}}
	err := tokens.UseToken(t.Context(), "web-01", "nonce", "key", nil)
	if p, ok := errors.AsType[*server.Problem](err); !ok || p.Code != api.CodeStarting {
		t.Errorf("before the log is read: %v, want the problem %s", err, api.CodeStarting)
	}
}

func TestThatATokenIsSpentReachesTheIssuer(t *testing.T) {
	spent := &rollout.TokenSpent{Nonce: "nonce"}
	if err := problem(spent); !errors.Is(err, spent) {
		t.Errorf("got %v", err)
	}
}
