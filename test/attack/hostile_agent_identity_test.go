package attack

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/release"
)

func TestAHostCannotSpeakForAnother(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.actor(evilHost)
	evil.heartbeat()
	a.good.heartbeat()
	victim, id := goodHost, a.current()
	d := a.good.poll()

	for _, name := range []string{victim, strings.ToUpper(victim), victim + ".", victim + " ", victim + "\x00", "", "*", arenaDomain,
		"spiffe://" + arenaDomain + "/host/" + victim, evilHost + "," + victim, evilHost + "/../" + victim, strings.Repeat("a", 10_000)} {
		hb := evil.beat()
		hb.Hostname, hb.JournalID, hb.CurrentClosure = name, newJournal(), closure(victim, 7)
		a.refused("a heartbeat of "+name, evil.post("/v1/agent/heartbeat", hb), 403, api.CodeIdentityMismatch)

		batch := a.good.numbered(id, a.good.ack(d))
		batch.Hostname = name
		a.refused("events of "+name, evil.post("/v1/agent/events", batch), 403, api.CodeIdentityMismatch)

		rejection := api.Rejection{Hostname: name, RolloutID: id, Attempt: 1, Reason: api.CodeStale, At: now()}
		a.refused("a rejection of "+name, evil.post("/v1/agent/rejections", rejection), 403, api.CodeIdentityMismatch)
	}

	// Another host's line: in the path as it is, and in disguise.
	for _, path := range []string{victim, strings.ReplaceAll(victim, "o", "%6f"), victim + "?hostname=" + evilHost} {
		got := evil.get("/v1/rollouts/" + id + "/hosts/" + path)
		a.refused("the line of "+path, got, 403, api.CodeIdentityMismatch)
		if strings.Contains(string(got.body), closure(victim, 1)) {
			t.Errorf("%s is told in %s", victim, got.body)
		}
	}
	if got := evil.get("/v1/rollouts/" + id + "/hosts/" + evilHost); got.status != http.StatusOK || !strings.Contains(string(got.body), evilHost) {
		t.Errorf("its own line: %d %s", got.status, got.body)
	}

	// Names where none is looked for change nothing: what comes is for the host of the certificate.
	r := evil.request(http.MethodGet, "/v1/agent/dispatch?wait=20&hostname="+victim, nil)
	r.Host = victim
	for _, name := range []string{"X-Forwarded-For", "Forwarded", "X-Nixfleet-Hostname", "X-Forwarded-Client-Cert", "X-SSL-Client-S-DN", "From"} {
		r.Header.Set(name, "URI=spiffe://"+arenaDomain+"/host/"+victim)
	}
	evil.given(evil.do(r))

	if at := a.host(victim); at.State != api.Pending || at.LastRejection != nil || at.CurrentClosure != closure(victim, 0) {
		t.Errorf("%s was spoken for: %+v", victim, at)
	}
	a.over()
}

func TestAHostCannotHaveAnothersCertificate(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.actor(evilHost)
	own := []string{"spiffe://" + arenaDomain + "/host/" + evilHost}

	// Whatever names a CSR has, the name is the certificate's, or the token's.
	uris, others := a.namesOf(evil.post("/v1/agent/renew", api.RenewRequest{CSR: a.csr(goodHost)}))
	if !slices.Equal(uris, own) || len(others) > 0 {
		t.Errorf("a renewal certifies %v and %v", uris, others)
	}
	enroll := func(c *caller, token api.Envelope, csr string) answer {
		return c.post("/v1/enroll", api.EnrollRequest{Token: token, CSR: csr})
	}
	mint := func(host string) (e api.Envelope) {
		data, err := a.layout.MintToken(host, now())
		a.must(err)
		a.must(json.Unmarshal(data, &e))
		return e
	}
	stranger, token, csr := a.caller(), mint(evilHost), a.csr(goodHost)
	for _, c := range []*caller{stranger, evil.caller, a.caller(a.operatorCertificate("someone"))} {
		uris, others = a.namesOf(enroll(c, token, csr))
		if !slices.Equal(uris, own) || len(others) > 0 {
			t.Errorf("an enrollment certifies %v and %v", uris, others)
		}
	}

	// Tokens that are not good, and good ones that are somebody else's.
	victims := mint(goodHost)
	_, _ = a.namesOf(enroll(stranger, victims, a.csr(goodHost)))
	a.refused("a used token with another key", enroll(stranger, victims, csr), 403, api.CodeTokenInvalid)

	altered := mint(evilHost)
	altered.Payload = mint(goodHost).Payload
	a.refused("a token whose payload is another's", enroll(stranger, altered, csr), 403, api.CodeTokenInvalid)

	signer, err := release.LoadKey(a.layout.ReleaseKey)
	a.must(err)
	_, byRelease, err := release.MintToken(release.TokenOptions{Hostname: goodHost, Signer: signer, Now: now(), Expires: time.Hour})
	a.must(err)
	var otherKey api.Envelope
	a.must(json.Unmarshal(byRelease, &otherKey))
	a.refused("a token signed by a release key", enroll(stranger, otherKey, csr), 403, api.CodeTokenInvalid)

	otherType := mint(goodHost)
	otherType.PayloadType = api.PayloadFleet
	a.refused("a token of another payload type", enroll(stranger, otherType, csr), 403, api.CodeTokenInvalid)

	enrollmentKey, err := release.LoadKey(a.layout.EnrollmentKey)
	a.must(err)
	expired, byEnrollment, err := release.MintToken(release.TokenOptions{Hostname: goodHost, Signer: enrollmentKey, Now: now().Add(-2 * time.Hour), Expires: time.Hour})
	a.must(err)
	a.must(json.Unmarshal(byEnrollment, &otherKey))
	a.refused("a token that ended at "+expired.ExpiresAt.String(), enroll(stranger, otherKey, csr), 403, api.CodeTokenInvalid)

	revoked, byEnrollment, err := release.MintToken(release.TokenOptions{Hostname: goodHost, Signer: enrollmentKey, Now: now(), Expires: time.Hour})
	a.must(err)
	a.must(json.Unmarshal(byEnrollment, &otherKey))
	a.revoke(release.RevokeOptions{Tokens: []string{revoked.Nonce}})
	a.eventually("the token is revoked", func() bool { return enroll(stranger, otherKey, csr).status == http.StatusForbidden })
	a.refused("a revoked token", enroll(stranger, otherKey, csr), 403, api.CodeTokenInvalid)

	for name, bad := range map[string]string{
		"no CSR": "x", "a certificate": strings.ReplaceAll(csr, "CERTIFICATE REQUEST", "CERTIFICATE"),
		"a broken CSR": strings.Replace(csr, "M", "A", 1), "a long one": strings.Repeat("A", 20<<10),
	} {
		a.refused(name, enroll(stranger, mint(evilHost), bad), 400, api.CodeMalformed)
		a.refused(name, evil.post("/v1/agent/renew", api.RenewRequest{CSR: bad}), 400, api.CodeMalformed)
	}
	a.over()
}

// endpoints are all endpoints there are, as an honest caller would use them.
func (a *arena) endpoints(host string) (agents, operators map[string]func(c *caller) answer) {
	id := a.current()
	get := func(path string) func(c *caller) answer {
		return func(c *caller) answer { a.t.Helper(); return c.get(path) }
	}
	post := func(path string, body any) func(c *caller) answer {
		return func(c *caller) answer { a.t.Helper(); return c.post(path, body) }
	}
	h := &actor{name: host, journal: newJournal(), runs: closure(host, 0), boots: closure(host, 0), last: map[string]int64{}}
	agents = map[string]func(c *caller) answer{
		"dispatch":  get("/v1/agent/dispatch?wait=0"),
		"heartbeat": post("/v1/agent/heartbeat", h.beat()),
		"events":    post("/v1/agent/events", h.numbered(id, started())),
		"rejections": post("/v1/agent/rejections",
			api.Rejection{Hostname: host, RolloutID: id, Attempt: 1, Reason: api.CodeStale, At: now()}),
		"renew": post("/v1/agent/renew", api.RenewRequest{CSR: a.csr(host)}),
	}
	operators = map[string]func(c *caller) answer{
		"hosts": get("/v1/hosts"), "host": get("/v1/hosts/" + host), "another host": get("/v1/hosts/" + goodHost),
		"why": get("/v1/hosts/" + host + "/why"), "channels": get("/v1/channels"), "rollouts": get("/v1/rollouts"),
		"rollout": get("/v1/rollouts/" + id), "rollout events": get("/v1/rollouts/" + id + "/events"),
		"hosts.jsonl": get("/v1/rollouts/" + id + "/hosts"),
	}
	return agents, operators
}

func TestRolesAreKeptApart(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.actor(evilHost)
	agents, operators := a.endpoints(evilHost)
	for name, call := range operators {
		got := call(evil.caller)
		a.refused(name+", asked by a host", got, 403, api.CodeWrongRole)
		if strings.Contains(string(got.body), goodHost) {
			t.Errorf("%s tells a host: %s", name, got.body)
		}
	}
	// An operator that has a host's name is no host.
	namesake := a.caller(a.operatorCertificate(evilHost))
	for name, call := range agents {
		a.refused(name+", asked by an operator", call(namesake), 403, api.CodeWrongRole)
	}
	if at := a.host(evilHost); at.LastHeartbeatAt != nil || at.Reachable || at.LastRejection != nil {
		t.Errorf("an operator was taken for a host: %+v", at)
	}
	a.over()
}

func TestTheProtocolHeaderIsNeeded(t *testing.T) {
	a := newArena(t, nil, evilHost)
	evil := a.actor(evilHost)
	for _, values := range [][]string{nil, {""}, {"0"}, {"2"}, {"1.0"}, {" 1, 1"}, {"1", "1"}, {"one"}} {
		for _, r := range []*http.Request{
			evil.request(http.MethodGet, "/v1/agent/dispatch?wait=60", nil),
			evil.request(http.MethodPost, "/v1/agent/heartbeat", evil.beat()),
			evil.request(http.MethodPost, "/v1/enroll", `{}`),
		} {
			r.Header[http.CanonicalHeaderKey(api.ProtocolHeader)] = values
			got := evil.do(r)
			if got.status != 400 {
				t.Errorf("%s with protocol %q: %d %s", r.URL.Path, values, got.status, got.body)
			}
			a.refused(r.URL.Path, got, 400, api.CodeUnsupportedProtocol)
		}
	}
	if at := a.host(evilHost); at.LastHeartbeatAt != nil {
		t.Errorf("it was heard: %+v", at)
	}
	a.over()
}
