package release

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
)

func TestARefreshChangesSignedAtAndSignaturesOnly(t *testing.T) {
	d := newDesk(t)
	d.create(ref1)
	if _, err := Revoke(context.Background(), RevokeOptions{Options: d.options(), Hosts: []string{"web-09"}, Before: d.now, Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	before := d.published()
	d.now = d.now.Add(20 * time.Hour)
	report, err := Refresh(context.Background(), RefreshOptions{Options: d.options()})
	if err != nil {
		t.Fatal(err)
	}
	if !cmp.Equal(changes(report), map[string]string{"stable": Refreshed, "edge": Refreshed}) {
		t.Errorf("reported %v", changes(report))
	}
	after := d.published()
	for channel, m := range before.manifests {
		old, renewed := string(m.Payload()), string(after.manifests[channel].Payload())
		want := strings.Replace(old, `"signedAt":"2026-11-23T08:00:00Z"`, `"signedAt":"2026-11-24T04:00:00Z"`, 1)
		if old == want || renewed != want {
			t.Errorf("%s was\n%s\nand is\n%s", channel, old, renewed)
		}
		if before.index.Channels[channel].Hosts != after.index.Channels[channel].Hosts || before.index.Channels[channel].Fleet != after.index.Channels[channel].Fleet {
			t.Errorf("%s has other hosts or another fleet", channel)
		}
	}
	if before.index.Sequence != after.index.Sequence || !after.index.SignedAt.Equal(d.now) || before.index.Fleet != after.index.Fleet {
		t.Errorf("the index was %+v and is %+v", before.index, after.index)
	}
	old, renewed := before.revocations.Value(), after.revocations.Value()
	if renewed.SignedAt = old.SignedAt; !cmp.Equal(old, renewed) {
		t.Error("the revocations were changed")
	}
	d.mustBeWhole()
	// A second one in the same second is newer too: readers order by sequence and signedAt.
	if _, err := Refresh(context.Background(), RefreshOptions{Options: d.options()}); err != nil {
		t.Fatal(err)
	}
	if again := d.index().SignedAt; !again.After(after.index.SignedAt) {
		t.Errorf("signed at %s twice", again)
	}
}

func TestOneChannelIsRefreshedAlone(t *testing.T) {
	d := newDesk(t)
	d.create(ref1)
	before := d.index()
	d.now = d.now.Add(time.Hour)
	if _, err := Refresh(context.Background(), RefreshOptions{Options: d.options(), Channels: []string{"edge"}}); err != nil {
		t.Fatal(err)
	}
	after := d.index()
	if before.Channels["stable"] != after.Channels["stable"] || before.Channels["edge"] == after.Channels["edge"] {
		t.Errorf("was %+v, is %+v", before.Channels, after.Channels)
	}
}

func TestAForgottenRepositoryCanStillBeReleasedTo(t *testing.T) {
	d := newDesk(t)
	d.create(ref1)
	d.now = d.now.Add(365 * 24 * time.Hour)
	d.create(ref2)
	d.mustBeWhole()
}

func TestRotatingKeysSignsFleetsAgainWithoutChangingThem(t *testing.T) {
	d := newDesk(t)
	d.create(ref1)
	before := d.published()
	d.trusted.Release.Keys = append(d.trusted.Release.Keys, manifesttest.Trusted("ci-2027", manifesttest.ECDSAKey("ci-2027")))
	d.signers = append(d.signers, manifesttest.ECDSAKey("ci-2027"))
	if _, err := Refresh(context.Background(), RefreshOptions{Options: d.options()}); err != nil {
		t.Fatal(err)
	}
	d.trusted.Release.Keys = d.trusted.Release.Keys[1:] // the old key is gone: all must verify by the new one
	v := d.mustBeWhole()
	if v.Channels[0].Sequence != before.manifests["edge"].Value().Sequence {
		t.Error("the sequence was changed")
	}
	// With the new key alone, and nothing new to sign, fleets stay the objects they are.
	fleetObject := d.index().Fleet
	d.signers = d.signers[1:]
	if _, err := Refresh(context.Background(), RefreshOptions{Options: d.options()}); err != nil {
		t.Fatal(err)
	}
	if d.index().Fleet != fleetObject {
		t.Error("a fleet that had the signature was signed again")
	}
}

func FuzzResigned(f *testing.F) {
	f.Add([]byte(`{"signedAt":"2026-11-23T08:00:00Z","x":{"signedAt":1}}`))
	f.Add([]byte(`{"a": [ {"signedAt": 2} ], "signedAt" : "x" , "b":1}`))
	at := manifesttest.Time
	f.Fuzz(func(t *testing.T, payload []byte) {
		out, err := resigned(payload, at)
		if err != nil {
			return
		}
		var before, after map[string]any
		if json.Unmarshal(payload, &before) != nil {
			return // what is signed was decoded strictly before
		}
		if err := json.Unmarshal(out, &after); err != nil {
			t.Fatalf("%q became %q: %v", payload, out, err)
		}
		if after["signedAt"] != "2026-11-23T08:00:00Z" {
			t.Errorf("signedAt is %v", after["signedAt"])
		}
		delete(before, "signedAt")
		delete(after, "signedAt")
		if !cmp.Equal(before, after) {
			t.Errorf("%q became %q", payload, out)
		}
	})
}
