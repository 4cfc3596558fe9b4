package trust_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

const release = manifesttest.ReleaseKey

func object(fill string) string { return strings.Repeat(fill, 64) }

func index() api.Index {
	revocations := object("d")
	return api.Index{
		SchemaVersion: 1, Sequence: 1795420800, SignedAt: now, FreshnessWindow: api.Duration(72 * time.Hour),
		Channels: map[string]api.IndexChannel{
			"stable": {RolloutID: "stable@0a1b2c3d", Manifest: object("a"), Hosts: object("b"), Fleet: object("c")},
		},
		Fleet: object("c"), Revocations: &revocations,
	}
}

func revocations() api.Revocations {
	return api.Revocations{
		SchemaVersion: 1, SignedAt: now, Sequence: 1795420900,
		Hosts:     []api.RevokedHost{{Hostname: "web-09", CertificatesIssuedBefore: now, Reason: "stolen"}},
		Operators: []api.RevokedOperator{{Name: "bob", CertificatesIssuedBefore: now, Reason: "left"}},
		Tokens:    []api.RevokedToken{{Nonce: strings.Repeat("0f", 16), Reason: "leaked"}},
	}
}

func token() api.EnrollmentToken {
	end := now.Add(time.Hour)
	return api.EnrollmentToken{SchemaVersion: 1, Hostname: "web-01", Nonce: strings.Repeat("0f", 16), IssuedAt: now, ExpiresAt: &end}
}

func declared() api.Fleet {
	return api.Fleet{SchemaVersion: 1, SignedAt: now, Commit: "0a1b2c3d",
		Hosts:    map[string]api.FleetHost{"web-01": {System: "x86_64-linux", Channel: "stable", Tags: []string{"web"}, Closure: manifesttest.Closure("web-01", "25.11")}},
		Channels: map[string]api.FleetChannel{"stable": {RolloutPolicy: "canary", FreshnessWindow: api.Duration(72 * time.Hour)}},
	}
}

// verifiers run each typed verifier of the package and forget the value.
var verifiers = map[api.PayloadType]func(*trust.Root, []byte, time.Time) error{
	api.PayloadIndex: func(r *trust.Root, e []byte, at time.Time) error { _, err := trust.VerifyIndex(r, e, at); return err },
	api.PayloadRevocations: func(r *trust.Root, e []byte, at time.Time) error {
		_, err := trust.VerifyRevocations(r, e, at)
		return err
	},
	api.PayloadToken: func(r *trust.Root, e []byte, at time.Time) error { _, err := trust.VerifyToken(r, e, at); return err },
	api.PayloadFleet: func(r *trust.Root, e []byte, at time.Time) error { _, err := trust.VerifyFleet(r, e, at); return err },
}

func TestGoldenArtifactsVerify(t *testing.T) {
	root, err := trust.ParseRoot("trust.json", golden(t, "trust.json", manifesttest.TrustJSON(manifesttest.Trust())))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		file string
		kind api.PayloadType
		key  string
		v    any
	}{
		{"index.dsse.json", api.PayloadIndex, release, index()},
		{"revocations.dsse.json", api.PayloadRevocations, release, revocations()},
		{"fleet.dsse.json", api.PayloadFleet, release, declared()},
		{"token.dsse.json", api.PayloadToken, manifesttest.EnrollmentKey, token()},
	} {
		envelope := golden(t, test.file, sign(t, test.kind, encode(t, test.v), test.key))
		for kind, verify := range verifiers {
			err := verify(root, envelope, now)
			if kind == test.kind && err != nil {
				t.Errorf("%s: %v", test.file, err)
			}
			if kind != test.kind && trust.CodeOf(err) != api.CodeSignatureInvalid {
				t.Errorf("%s was read as %s: %v", test.file, kind, err)
			}
		}
	}
}

// golden compares data with a file of testdata, or writes it with -update, and returns the file.
func golden(t *testing.T, name string, data []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := fixture(t, name)
	if !bytes.Equal(data, want) {
		t.Errorf("%s is not what it was (go test -update rewrites it):\n%s\nwas\n%s", name, data, want)
	}
	return want
}

func TestArtifactsAreRefused(t *testing.T) {
	const enroll = manifesttest.EnrollmentKey
	late := now.Add(-time.Minute)
	rejecting := manifesttest.Trust()
	after := now.Add(time.Second)
	rejecting.Release.RejectSignedBefore = &after
	changed := func(v any, from, to string) []byte {
		text := string(encode(t, v))
		if !strings.Contains(text, from) {
			t.Fatalf("%s is not in %s", from, text)
		}
		return []byte(strings.Replace(text, from, to, 1))
	}
	for name, test := range map[string]struct {
		kind    api.PayloadType
		key     string
		payload []byte
		at      time.Time
		root    api.Trust
		code    api.Code
		want    string
	}{
		"index: stale":                       {api.PayloadIndex, release, encode(t, index()), now.Add(73 * time.Hour), manifesttest.Trust(), api.CodeStale, "fresh until"},
		"index: future":                      {api.PayloadIndex, release, encode(t, index()), now.Add(-2 * time.Minute), manifesttest.Trust(), api.CodeSignedInFuture, "index: signed at"},
		"index: signed before the line":      {api.PayloadIndex, release, encode(t, index()), now, rejecting, api.CodeStale, "nothing signed before"},
		"index: a path for an object":        {api.PayloadIndex, release, changed(index(), object("a"), "../../etc/passwd"), now, manifesttest.Trust(), api.CodeMalformed, "channels.stable.manifest is not"},
		"index: an upper-case object":        {api.PayloadIndex, release, changed(index(), object("b"), object("B")), now, manifesttest.Trust(), api.CodeMalformed, "channels.stable.hosts is not"},
		"index: no fleet":                    {api.PayloadIndex, release, changed(index(), `},"fleet":"`+object("c")+`"`, `}`), now, manifesttest.Trust(), api.CodeMalformed, "fleet: is missing"},
		"index: bad fleet":                   {api.PayloadIndex, release, changed(index(), `},"fleet":"`+object("c")+`"`, `},"fleet":""`), now, manifesttest.Trust(), api.CodeMalformed, "fleet is not"},
		"index: bad revocations":             {api.PayloadIndex, release, changed(index(), object("d"), "d"), now, manifesttest.Trust(), api.CodeMalformed, "revocations is not"},
		"index: bad channel":                 {api.PayloadIndex, release, changed(index(), `"stable":`, `"../x":`), now, manifesttest.Trust(), api.CodeMalformed, "no channel name"},
		"index: sequence 0":                  {api.PayloadIndex, release, changed(index(), "1795420800", "0"), now, manifesttest.Trust(), api.CodeMalformed, "sequence is 0"},
		"index: of another version":          {api.PayloadIndex, release, changed(index(), `"schemaVersion":1`, `"schemaVersion":2`), now, manifesttest.Trust(), api.CodeUnsupportedSchema, "schemaVersion is 2"},
		"index: signed by an enrollment key": {api.PayloadIndex, enroll, encode(t, index()), now, manifesttest.Trust(), api.CodeSignatureInvalid, "the release keys"},
		"revocations: future":                {api.PayloadRevocations, release, encode(t, revocations()), now.Add(-2 * time.Minute), manifesttest.Trust(), api.CodeSignedInFuture, ""},
		"revocations: before the line":       {api.PayloadRevocations, release, encode(t, revocations()), now, rejecting, api.CodeStale, ""},
		"revocations: sequence 0":            {api.PayloadRevocations, release, changed(revocations(), "1795420900", "0"), now, manifesttest.Trust(), api.CodeMalformed, "sequence"},
		"revocations: bad host":              {api.PayloadRevocations, release, changed(revocations(), "web-09", "web 09"), now, manifesttest.Trust(), api.CodeMalformed, "hosts.0"},
		"revocations: bad operator":          {api.PayloadRevocations, release, changed(revocations(), `"bob"`, `""`), now, manifesttest.Trust(), api.CodeMalformed, "operators.0"},
		"revocations: bad nonce":             {api.PayloadRevocations, release, changed(revocations(), "0f0f", "0F0f"), now, manifesttest.Trust(), api.CodeMalformed, "tokens.0"},
		"fleet: unsigned":                    {api.PayloadFleet, "mallory", encode(t, declared()), now, manifesttest.Trust(), api.CodeSignatureInvalid, ""},
		"fleet: without a time":              {api.PayloadFleet, release, changed(declared(), `"signedAt":"2026-11-23T08:00:00Z",`, ""), now, manifesttest.Trust(), api.CodeMalformed, "signedAt is missing"},
		"token: ended":                       {api.PayloadToken, enroll, encode(t, token()), now.Add(time.Hour), manifesttest.Trust(), api.CodeStale, "it ended at"},
		"token: not begun":                   {api.PayloadToken, enroll, encode(t, token()), late.Add(-time.Second), manifesttest.Trust(), api.CodeSignedInFuture, ""},
		"token: before the line":             {api.PayloadToken, enroll, encode(t, token()), now, rejecting, api.CodeStale, "nothing signed before"},
		"token: signed by a release key":     {api.PayloadToken, release, encode(t, token()), now, manifesttest.Trust(), api.CodeSignatureInvalid, "the enrollment keys"},
		"token: a path for a host":           {api.PayloadToken, enroll, changed(token(), "web-01", "web-01/../web-02"), now, manifesttest.Trust(), api.CodeMalformed, "hostname"},
		"token: a long host":                 {api.PayloadToken, enroll, changed(token(), "web-01", strings.Repeat("a.", 127)+"a"), now, manifesttest.Trust(), api.CodeMalformed, "hostname"},
		"token: bad nonce":                   {api.PayloadToken, enroll, changed(token(), "0f0f", "0f"), now, manifesttest.Trust(), api.CodeMalformed, "nonce"},
		"token: bad key digest":              {api.PayloadToken, enroll, changed(token(), `"issuedAt"`, `"publicKeySha256":"abc","issuedAt"`), now, manifesttest.Trust(), api.CodeMalformed, "publicKeySha256"},
		"token: unbound, without end":        {api.PayloadToken, enroll, changed(token(), `"2026-11-23T09:00:00Z"`, "null"), now, manifesttest.Trust(), api.CodeMalformed, "no end"},
		"token: end left out":                {api.PayloadToken, enroll, changed(token(), `,"expiresAt":"2026-11-23T09:00:00Z"`, ""), now, manifesttest.Trust(), api.CodeMalformed, "expiresAt: is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			err := verifiers[test.kind](manifesttest.Root(test.root), sign(t, test.kind, test.payload, test.key), test.at)
			wantRefusal(t, err, test.code, test.want)
		})
	}
}

func TestABoundTokenMayHaveNoEnd(t *testing.T) {
	bound := token()
	bound.ExpiresAt, bound.PublicKeySHA256 = nil, object("a")
	envelope := sign(t, api.PayloadToken, encode(t, bound), manifesttest.EnrollmentKey)
	if _, err := trust.VerifyToken(manifesttest.Root(manifesttest.Trust()), envelope, now.AddDate(5, 0, 0)); err != nil {
		t.Error(err)
	}
}

func TestAStoredIndexMayBeOfAnyAgeButNotOfARemovedKey(t *testing.T) {
	envelope := sign(t, api.PayloadIndex, encode(t, index()), release)
	v, err := trust.VerifyStoredIndex(manifesttest.Root(manifesttest.Trust()), envelope, now.AddDate(1, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if p := trust.IndexPosition(v.Value()); p.Sequence != 1795420800 || !p.SignedAt.Equal(now) {
		t.Errorf("its position is %+v", p)
	}
	_, err = trust.VerifyStoredIndex(root(t, 1, "the next key"), envelope, now)
	wantRefusal(t, err, api.CodeSignatureInvalid, "")
}

func FuzzArtifacts(f *testing.F) {
	for kind, v := range map[api.PayloadType]any{
		api.PayloadIndex: index(), api.PayloadRevocations: revocations(), api.PayloadToken: token(), api.PayloadFleet: declared(),
	} {
		f.Add(string(kind), encode(f, v))
	}
	root := manifesttest.Root(manifesttest.Trust())
	f.Fuzz(func(t *testing.T, kind string, payload []byte) {
		verify, known := verifiers[api.PayloadType(kind)]
		if !known {
			return
		}
		err := verify(root, sign(t, api.PayloadType(kind), payload, release, manifesttest.EnrollmentKey), now)
		if err != nil && trust.CodeOf(err) == "" {
			t.Errorf("%v is no refusal", err)
		}
	})
}
