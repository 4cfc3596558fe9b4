package attack

import (
	"testing"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

func open(t *testing.T, envelope []byte) api.Envelope {
	t.Helper()
	var e api.Envelope
	if err := json.Unmarshal(envelope, &e); err != nil {
		t.Fatal(err)
	}
	return e
}

func closed(t *testing.T, e api.Envelope) []byte {
	t.Helper()
	data, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// unsigned is an envelope without its signatures.
func unsigned(t *testing.T, envelope []byte) []byte {
	e := open(t, envelope)
	e.Signatures = []api.Signature{}
	return closed(t, e)
}

// withPayloadOf is an envelope with another's payload under its own signatures.
func withPayloadOf(t *testing.T, envelope, other []byte) []byte {
	e := open(t, envelope)
	e.Payload = open(t, other).Payload
	return closed(t, e)
}

// asType is an envelope that says that its payload is of another type.
func asType(t *testing.T, envelope []byte, payloadType api.PayloadType) []byte {
	e := open(t, envelope)
	e.PayloadType = payloadType
	return closed(t, e)
}

// signedAs is a release's manifest, signed by the right key as another type, under the right one's name.
func signedAs(t *testing.T, rel manifesttest.Release, payloadType api.PayloadType) []byte {
	t.Helper()
	payload, err := json.Marshal(rel.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := trust.Sign(payloadType, payload, manifesttest.Key(manifesttest.ReleaseKey))
	if err != nil {
		t.Fatal(err)
	}
	return asType(t, envelope, api.PayloadRollout)
}
