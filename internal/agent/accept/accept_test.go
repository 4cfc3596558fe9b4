package accept_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/accept"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

var host = manifesttest.Hostname(0)

// history is what one host's keeper lived through; each keeper made of it is another start of the agent.
type history struct {
	t    *testing.T
	dir  string
	log  bytes.Buffer
	edit func(*accept.Options)
}

func inBubble(t *testing.T, test func(t *testing.T, h *history)) {
	synctest.Test(t, func(t *testing.T) { test(t, &history{t: t, dir: t.TempDir()}) })
}

func (h *history) keeper(trusted api.Trust) *accept.Keeper {
	h.t.Helper()
	dir, err := os.OpenRoot(h.dir)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { dir.Close() })
	root := manifesttest.Root(trusted)
	o := accept.Options{
		Dir: dir, Root: func() *trust.Root { return root }, Hostname: host, Clock: clock.System{},
		Logger: slog.New(slog.NewTextHandler(&h.log, nil)),
	}
	if h.edit != nil {
		h.edit(&o)
	}
	k, err := accept.Open(o)
	if err != nil {
		h.t.Fatal(err)
	}
	return k
}

func try(k *accept.Keeper, r manifesttest.Release) api.Code {
	_, err := k.Accept(r.ID, r.Envelope, r.Proof(host))
	if err != nil && trust.CodeOf(err) == "" {
		return api.CodeInternal
	}
	return trust.CodeOf(err)
}

func now() time.Time { return clock.System{}.Now().Truncate(time.Second) }

func release(sequence int64, edit func(*manifesttest.Options)) manifesttest.Release {
	o := manifesttest.Options{ReleasedAt: now(), Sequence: sequence, Ref: strings.Repeat("a", 7)}
	if edit != nil {
		edit(&o)
	}
	return manifesttest.New(o)
}

func TestTheHighestAcceptedOutlivesTheProcess(t *testing.T) {
	inBubble(t, func(t *testing.T, h *history) {
		older, newer := release(10, nil), release(11, nil)
		if code := try(h.keeper(manifesttest.Trust()), newer); code != "" {
			t.Fatalf("refused as %s", code)
		}
		k := h.keeper(manifesttest.Trust())
		if code := try(k, older); code != api.CodeRollbackRefused {
			t.Errorf("an older sequence after a restart: %q", code)
		}
		other := release(11, func(o *manifesttest.Options) { o.Lines = manifesttest.Lines(4, 2, "other") })
		if code := try(k, other); code != api.CodeRollbackRefused {
			t.Errorf("the same sequence with another tree: %q", code)
		}
		if code := try(k, newer); code != "" {
			t.Errorf("the same again: %q", code)
		}
	})
}

func TestWhatIsRefusedIsNotRecorded(t *testing.T) {
	inBubble(t, func(t *testing.T, h *history) {
		k := h.keeper(manifesttest.Trust())
		future := release(99, func(o *manifesttest.Options) { o.ReleasedAt = now().Add(time.Hour) })
		if code := try(k, future); code != api.CodeSignedInFuture {
			t.Fatalf("signed in the future: %q", code)
		}
		if code := try(k, release(10, nil)); code != "" {
			t.Errorf("refused as %s because of one that was refused", code)
		}
	})
}

func TestNothingIsLetThroughThatCouldNotBeRecorded(t *testing.T) {
	inBubble(t, func(t *testing.T, h *history) {
		k := h.keeper(manifesttest.Trust())
		blocked := filepath.Join(h.dir, "accepted.json")
		if err := os.MkdirAll(filepath.Join(blocked, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		if code := try(k, release(10, nil)); code != api.CodeInternal {
			t.Errorf("the record could not be written: %q", code)
		}
		if err := os.RemoveAll(blocked); err != nil {
			t.Fatal(err)
		}
		if code := try(k, release(9, nil)); code != "" {
			t.Errorf("what was not recorded counts: %q", code)
		}
	})
}

func TestRemovingAStolenKeyUndoesItsJumpAhead(t *testing.T) {
	inBubble(t, func(t *testing.T, h *history) {
		stolen := manifesttest.Key("stolen")
		both := manifesttest.Trust()
		both.Release.Keys = append(both.Release.Keys, manifesttest.Trusted("stolen", stolen))
		ahead := release(1<<52, func(o *manifesttest.Options) { o.Signers = []trust.Signer{stolen} })
		if code := try(h.keeper(both), ahead); code != "" {
			t.Fatalf("refused as %s", code)
		}
		if code := try(h.keeper(both), release(10, nil)); code != api.CodeRollbackRefused {
			t.Fatalf("while the key is trusted: %q", code)
		}
		if code := try(h.keeper(manifesttest.Trust()), release(10, nil)); code != "" {
			t.Errorf("with the key removed: %q", code)
		}
	})
}

func TestAClockThatIsSetBackMakesNothingFresh(t *testing.T) {
	inBubble(t, func(t *testing.T, h *history) {
		old := release(10, nil)
		behind := old.Manifest.SignedAt
		clock.System{}.Sleep(t.Context(), 100*time.Hour)
		if code := try(h.keeper(manifesttest.Trust()), release(9, func(o *manifesttest.Options) { o.Channel = "edge" })); code != "" {
			t.Fatalf("refused as %s", code)
		}
		h.edit = func(o *accept.Options) { o.Clock = setBack{clock.System{}, behind} }
		if code := try(h.keeper(manifesttest.Trust()), old); code != api.CodeStale {
			t.Errorf("a manifest of 100 h ago by a clock set back as far: %q", code)
		}
	})
}

type setBack struct {
	clock.System
	to time.Time
}

func (s setBack) Now() time.Time { return s.to }

func TestAHostLeavesItsChannelOnlyByWhatItsOldChannelsKeysSigned(t *testing.T) {
	inBubble(t, func(t *testing.T, h *history) {
		prod, edge := manifesttest.Key("prod"), manifesttest.Key("edge")
		trusted := manifesttest.Trust()
		trusted.Release.Keys = append(trusted.Release.Keys, manifesttest.Trusted("prod", prod), manifesttest.Trusted("edge", edge))
		trusted.Channels = map[string]api.TrustChannel{
			"prod": {Threshold: 1, Keys: []string{"prod"}}, "edge": {Threshold: 1, Keys: []string{"edge"}},
		}
		on := func(channel string, keys ...trust.Signer) manifesttest.Release {
			return release(10, func(o *manifesttest.Options) { o.Channel, o.Signers = channel, keys })
		}
		k := h.keeper(trusted)
		if code := try(k, on("prod", prod)); code != "" {
			t.Fatalf("refused as %s", code)
		}
		if err := k.Follow("prod"); err != nil {
			t.Fatal(err)
		}
		clock.System{}.Sleep(t.Context(), time.Minute)
		k = h.keeper(trusted)
		if got := k.Channel(); got != "prod" {
			t.Fatalf("after a restart the host is on %q", got)
		}
		if code := try(k, on("edge", edge)); code != api.CodeRollbackRefused {
			t.Errorf("to edge by edge's key alone: %q", code)
		}
		if code := try(k, on("edge", edge, prod)); code != "" {
			t.Errorf("to edge by both keys: %q", code)
		}
	})
}

func TestARecordThatCannotBeReadIsSetAsideLoudly(t *testing.T) {
	inBubble(t, func(t *testing.T, h *history) {
		if err := os.WriteFile(filepath.Join(h.dir, "accepted.json"), []byte(`{"schemaVersion":1`), 0o600); err != nil {
			t.Fatal(err)
		}
		if code := try(h.keeper(manifesttest.Trust()), release(10, nil)); code != "" {
			t.Errorf("refused as %s", code)
		}
		if !strings.Contains(h.log.String(), "level=ERROR") {
			t.Errorf("not a word:\n%s", &h.log)
		}
		if _, err := os.Stat(filepath.Join(h.dir, "accepted.json.corrupt")); err != nil {
			t.Error(err)
		}
	})
}

func TestAKeyThatIsRemovedCountsForNothingFromThenOn(t *testing.T) {
	inBubble(t, func(t *testing.T, h *history) {
		before := manifesttest.Trust()
		before.Release.Keys = append(before.Release.Keys, manifesttest.Trusted("stolen", manifesttest.Key("stolen")))
		trusted := manifesttest.Root(before)
		h.edit = func(o *accept.Options) { o.Root = func() *trust.Root { return trusted } }
		k := h.keeper(before)
		thiefs := release(1<<53-1, func(o *manifesttest.Options) {
			o.Ref, o.Signers = "badbad0", []trust.Signer{manifesttest.Key("stolen")}
		})
		if code := try(k, thiefs); code != "" {
			t.Fatalf("while the key is trusted: %s", code)
		}
		trusted = manifesttest.Root(manifesttest.Trust())
		if code := try(k, thiefs); code != api.CodeSignatureInvalid {
			t.Errorf("once it is removed: %q", code)
		}
		if code := try(k, release(10, nil)); code != "" { // its jump ahead is undone
			t.Errorf("a good release is refused as %s", code)
		}
	})
}
