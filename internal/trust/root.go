package trust

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/strictjson"
)

// maxKeys is how many keys of one kind trust.json may hold: each may cost a check of every signature.
const maxKeys = 64

// channelPattern is what a channel is called (design/wire.md, the form of a rollout id). A name in
// trust.json that no channel can have would narrow nothing, silently.
var channelPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// Root is trust.json: what a party believes. It does not change and may be used concurrently.
type Root struct {
	sha256             string
	release            Rule
	channels           map[string]Rule
	enrollment         Rule
	rejectSignedBefore time.Time
	cacheKeys          []string
}

// ParseRoot reads trust.json; what names it in errors. It lists every problem, not only the first.
func ParseRoot(what string, data []byte) (*Root, error) {
	t, err := DecodePayload(what, data, api.MaxTrust, func(t api.Trust) int { return t.SchemaVersion })
	if err != nil {
		return nil, err
	}
	p := &rootParser{fingerprints: map[string]string{}}
	root := p.root(t)
	root.sha256 = Digest(data)
	if len(p.problems) > 0 {
		return nil, Refuse(api.CodeMalformed, what, "%s", strings.Join(p.problems, "; "))
	}
	return root, nil
}

// SHA256 returns the digest of trust.json's bytes, as heartbeats carry it.
func (r *Root) SHA256() string { return r.sha256 }

// ReleaseRule is what an index, a fleet and a revocation list must be signed by.
func (r *Root) ReleaseRule() Rule { return r.release }

// ChannelRule is what a manifest of channel must be signed by: the release rule, unless trust.json
// narrows that channel.
func (r *Root) ChannelRule(channel string) Rule {
	if rule, ok := r.channels[channel]; ok {
		return rule
	}
	return r.release
}

// EnrollmentRule is what an enrollment token must be signed by: any one enrollment key.
func (r *Root) EnrollmentRule() Rule { return r.enrollment }

// RejectSignedBefore is the time before which nothing may have been signed; zero where there is none.
func (r *Root) RejectSignedBefore() time.Time { return r.rejectSignedBefore }

// CacheKeys returns the keys that binary caches sign with, in Nix's form.
func (r *Root) CacheKeys() []string { return slices.Clone(r.cacheKeys) }

// rootParser collects the problems of a trust.json.
type rootParser struct {
	problems     []string
	fingerprints map[string]string // key id → where it was seen
}

func (p *rootParser) problem(format string, args ...any) {
	p.problems = append(p.problems, fmt.Sprintf(format, args...))
}

func (p *rootParser) root(t api.Trust) *Root {
	root := &Root{cacheKeys: t.CacheKeys, channels: make(map[string]Rule, len(t.Channels))}
	if t.Release.RejectSignedBefore != nil {
		root.rejectSignedBefore = *t.Release.RejectSignedBefore
	}
	root.release = Rule{
		name:      "the release keys",
		threshold: t.Release.Threshold,
		keys:      p.keys("release.keys", t.Release.Keys),
	}
	if len(t.Release.Keys) == 0 {
		p.problem("release.keys is empty")
	} else if n := t.Release.Threshold; n < 1 || n > len(t.Release.Keys) {
		p.problem("release.threshold is %d, of %d keys", n, len(t.Release.Keys))
	}
	for _, channel := range slices.Sorted(maps.Keys(t.Channels)) {
		root.channels[channel] = p.channel(channel, t.Channels[channel], root.release)
	}
	root.enrollment = Rule{name: "the enrollment keys", threshold: 1, keys: p.keys("enrollment.keys", t.Enrollment.Keys)}
	return root
}

// keys parses a list of keys. A key that stands in it twice, under whatever names, would count twice.
func (p *rootParser) keys(where string, list []api.TrustKey) []trustedKey {
	if len(list) > maxKeys {
		p.problem("%s has %d keys; at most %d are allowed", where, len(list), maxKeys)
		return nil
	}
	names, ids := map[string]bool{}, map[string]string{}
	keys := make([]trustedKey, 0, len(list))
	for i, k := range list {
		at := fmt.Sprintf("%s.%d (%.64q)", where, i, k.Name)
		if k.Name == "" {
			p.problem("%s.%d.name is empty", where, i)
		} else if names[k.Name] {
			p.problem("%s: another key has that name", at)
		}
		names[k.Name] = true
		public, err := ParsePublicKeyPEM(k.PublicKey)
		if err != nil {
			p.problem("%s: publicKey is %v", at, err)
			continue
		}
		if other, ok := ids[public.ID()]; ok {
			p.problem("%s is the same key as %.64q", at, other)
		}
		ids[public.ID()] = k.Name
		key := trustedKey{name: k.Name, public: public}
		if k.RetireAt != nil {
			key.retireAt = *k.RetireAt
		}
		keys = append(keys, key)
	}
	return keys
}

// channel narrows the release rule; it never widens it.
func (p *rootParser) channel(name string, c api.TrustChannel, release Rule) Rule {
	at := fmt.Sprintf("channels.%.64s", name)
	if !channelPattern.MatchString(name) {
		p.problem("channels: %.80q is no channel name", name)
	}
	rule := Rule{name: fmt.Sprintf("the keys of channel %q", name), threshold: c.Threshold}
	seen := map[string]bool{}
	for _, keyName := range c.Keys {
		i := slices.IndexFunc(release.keys, func(k trustedKey) bool { return k.name == keyName })
		switch {
		case seen[keyName]:
			p.problem("%s.keys names %.64q twice", at, keyName)
		case i < 0:
			p.problem("%s.keys: no release key is named %.64q", at, keyName)
		default:
			rule.keys = append(rule.keys, release.keys[i])
		}
		seen[keyName] = true
	}
	if c.Threshold < 1 || c.Threshold > len(c.Keys) {
		p.problem("%s.threshold is %d, of %d keys", at, c.Threshold, len(c.Keys))
	} else if c.Threshold < release.threshold {
		p.problem("%s.threshold is %d, below the release threshold of %d", at, c.Threshold, release.threshold)
	}
	return rule
}

// DecodePayload decodes an artifact's JSON strictly. One whose schemaVersion is not known is refused as
// unsupported-schema, also where that is why it does not decode; anything else as malformed.
func DecodePayload[T any](what string, data []byte, limit int, version func(T) int) (T, error) {
	var zero T
	v, err := strictjson.Decode[T](what, data, limit)
	if err == nil {
		return v, checkSchema(what, version(v))
	}
	peek, peekErr := strictjson.Decode[struct {
		SchemaVersion int `json:"schemaVersion"`
	}](what, data, limit)
	if peekErr == nil {
		if err := checkSchema(what, peek.SchemaVersion); err != nil {
			return zero, err
		}
	}
	return zero, Malformed(err)
}

func checkSchema(what string, version int) error {
	if version != api.SchemaVersion {
		return Refuse(api.CodeUnsupportedSchema, what, "schemaVersion is %d; only %d is known", version, api.SchemaVersion)
	}
	return nil
}
