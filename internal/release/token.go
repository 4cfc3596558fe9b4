package release

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/fleet"
	"nixfleet.dev/nixfleet/internal/trust"
)

// DefaultTokenLife is how long an enrollment token is good unless minted otherwise.
const DefaultTokenLife = time.Hour

var digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// TokenOptions is what MintToken makes a token of.
type TokenOptions struct {
	Hostname string
	Signer   trust.Signer // an enrollment key
	Now      time.Time
	// Expires is how long the token is good; 0 is for ever, which only a token that is bound to a key
	// may be.
	Expires time.Duration
	// PublicKeySHA256, where set, binds the token to the key with that digest of its DER SPKI.
	PublicKeySHA256 string
}

// MintToken returns an enrollment token, and its envelope to hand to the host.
func MintToken(opts TokenOptions) (api.EnrollmentToken, []byte, error) {
	var none api.EnrollmentToken
	switch {
	case !fleet.ValidHostname(opts.Hostname):
		return none, nil, fmt.Errorf("%q is not a host name", opts.Hostname)
	case opts.PublicKeySHA256 != "" && !digestPattern.MatchString(opts.PublicKeySHA256):
		return none, nil, fmt.Errorf("%q is not a SHA-256 in lower-case hex", opts.PublicKeySHA256)
	case opts.Expires < 0:
		return none, nil, errors.New("a token cannot expire before it is minted")
	case opts.Expires == 0 && opts.PublicKeySHA256 == "":
		return none, nil, errors.New("a token without an end must be bound to a key: whoever found it could enrol for ever")
	}
	nonce := make([]byte, 16)
	rand.Read(nonce) // never fails: crypto/rand ends the process where there is no randomness
	now := opts.Now.UTC().Truncate(time.Second)
	token := api.EnrollmentToken{
		SchemaVersion: api.SchemaVersion, Hostname: opts.Hostname, Nonce: hex.EncodeToString(nonce),
		IssuedAt: now, PublicKeySHA256: opts.PublicKeySHA256,
	}
	if opts.Expires > 0 {
		end := now.Add(opts.Expires)
		token.ExpiresAt = &end
	}
	payload, err := json.Marshal(token)
	if err != nil {
		return none, nil, fmt.Errorf("encoding the token: %w", err)
	}
	envelope, err := trust.Sign(api.PayloadToken, payload, opts.Signer)
	if err != nil {
		return none, nil, fmt.Errorf("signing the token: %w", err)
	}
	return token, envelope, nil
}
