package trust

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/strictjson"
)

// envelopeSlack is what an envelope may hold beside its payload: 16 signatures and their key ids.
const envelopeSlack = 16 << 10

// MaxEnvelope returns the cap on an envelope whose payload is capped at limit bytes. Whoever fetches
// an envelope reads no more than that.
func MaxEnvelope(limit int) int {
	return base64.StdEncoding.EncodedLen(limit) + envelopeSlack
}

// PAE is DSSE's pre-authentication encoding: the bytes that are signed.
func PAE(t api.PayloadType, payload []byte) []byte {
	out := make([]byte, 0, len("DSSEv1")+len(t)+len(payload)+24)
	out = append(out, "DSSEv1 "...)
	out = strconv.AppendInt(out, int64(len(t)), 10)
	out = append(out, ' ')
	out = append(out, t...)
	out = append(out, ' ')
	out = strconv.AppendInt(out, int64(len(payload)), 10)
	out = append(out, ' ')
	return append(out, payload...)
}

// Sign returns the envelope, as JSON, of payload signed by each signer.
func Sign(t api.PayloadType, payload []byte, signers ...Signer) ([]byte, error) {
	if len(signers) == 0 {
		return nil, errors.New("signing: no key to sign with")
	}
	e := api.Envelope{PayloadType: t, Payload: base64.StdEncoding.EncodeToString(payload)}
	return addSignatures(e, payload, signers)
}

// AddSignature returns envelope with one more signature, or with that key's signature replaced. The
// payload and the other signatures stay as they are; they are not verified.
func AddSignature(envelope []byte, signer Signer) ([]byte, error) {
	// A person's signing tool takes any artifact: the largest payload's cap is the only one to hold.
	e, payload, err := parseEnvelope("envelope", envelope, api.MaxFleet)
	if err != nil {
		return nil, err
	}
	return addSignatures(e, payload, []Signer{signer})
}

func addSignatures(e api.Envelope, payload []byte, signers []Signer) ([]byte, error) {
	message := PAE(e.PayloadType, payload)
	for _, signer := range signers {
		sig, err := signer.Sign(message)
		if err != nil {
			return nil, fmt.Errorf("signing with key %s: %w", signer.KeyID(), err)
		}
		e.Signatures = slices.DeleteFunc(e.Signatures, func(s api.Signature) bool { return s.KeyID == signer.KeyID() })
		e.Signatures = append(e.Signatures, api.Signature{KeyID: signer.KeyID(), Sig: base64.StdEncoding.EncodeToString(sig)})
	}
	if len(e.Signatures) > api.MaxSignatures {
		return nil, fmt.Errorf("signing: %d signatures; at most %d are allowed", len(e.Signatures), api.MaxSignatures)
	}
	data, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encoding the envelope: %w", err)
	}
	return data, nil
}

// parseEnvelope reads an envelope's shape and returns it with its payload's bytes, unverified.
func parseEnvelope(what string, data []byte, limit int) (api.Envelope, []byte, error) {
	var none api.Envelope
	if most := MaxEnvelope(limit); len(data) > most {
		return none, nil, Refuse(api.CodeTooLarge, what, "the envelope is %d bytes; at most %d are allowed", len(data), most)
	}
	e, err := strictjson.Decode[api.Envelope](what, data, MaxEnvelope(limit))
	if err != nil {
		return none, nil, &Error{Code: api.CodeSignatureInvalid, Detail: "not an envelope: " + err.Error(), cause: err}
	}
	if n := len(e.Signatures); n == 0 || n > api.MaxSignatures {
		return none, nil, Refuse(api.CodeSignatureInvalid, what, "the envelope has %d signatures; 1 to %d are allowed", n, api.MaxSignatures)
	}
	if n := base64.StdEncoding.DecodedLen(len(e.Payload)); n > limit+2 {
		return none, nil, Refuse(api.CodeTooLarge, what, "the payload is over %d bytes", limit)
	}
	payload, err := DecodeBase64(e.Payload)
	if err != nil {
		return none, nil, Refuse(api.CodeSignatureInvalid, what, "the payload %v", err)
	}
	if len(payload) > limit {
		return none, nil, Refuse(api.CodeTooLarge, what, "the payload is %d bytes; at most %d are allowed", len(payload), limit)
	}
	return e, payload, nil
}

// DecodeBase64 decodes base64 as the artifacts contract has it: standard, padded, without newlines,
// and with no second spelling of the same bytes.
func DecodeBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("is base64 with newlines")
	}
	out, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, errors.New("is not standard, padded base64")
	}
	return out, nil
}
