package server

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/controlplane/cptest"
)

const hostID = "spiffe://" + cptest.TrustDomain + "/host/web-0"

func TestACertificateOfAnotherShapeIsNobodys(t *testing.T) {
	f := start(t)
	for name, spec := range map[string]cptest.Spec{
		"no SAN":                 {CommonName: "web-0"},
		"two URIs":               {URIs: []string{hostID, "spiffe://" + cptest.TrustDomain + "/host/web-1"}},
		"the same URI twice":     {URIs: []string{hostID, hostID}},
		"a DNS SAN beside it":    {URIs: []string{hostID}, DNS: []string{"web-0"}},
		"only a DNS SAN":         {DNS: []string{"web-0"}},
		"an IP SAN beside it":    {URIs: []string{hostID}, IPs: []net.IP{{127, 0, 0, 1}}},
		"an email SAN beside it": {URIs: []string{hostID}, Emails: []string{"a@example.org"}},
		"another trust domain":   {URIs: []string{"spiffe://other.example/host/web-0"}},
		"a longer trust domain":  {URIs: []string{"spiffe://" + cptest.TrustDomain + ".evil/host/web-0"}},
		"another path":           {URIs: []string{"spiffe://" + cptest.TrustDomain + "/control-plane/x"}},
		"a path with more":       {URIs: []string{hostID + "/more"}},
		"no name":                {URIs: []string{"spiffe://" + cptest.TrustDomain + "/host/"}},
		"a name that is not one": {URIs: []string{"spiffe://" + cptest.TrustDomain + "/host/WEB%2f0"}},
		"a query":                {URIs: []string{hostID + "?a=b"}},
		"another scheme":         {URIs: []string{"https://" + cptest.TrustDomain + "/host/web-0"}},
		"a port":                 {URIs: []string{"spiffe://" + cptest.TrustDomain + ":1/host/web-0"}},
		"serverAuth too":         {URIs: []string{hostID}, EKU: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}},
		"any EKU too":            {URIs: []string{hostID}, EKU: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageAny}},
		"a CA's":                 {URIs: []string{hostID}, IsCA: true},
		"one that has ended":     {URIs: []string{hostID}, NotAfter: time.Now().Add(-time.Minute)},
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			for _, h2 := range []bool{false, true} {
				r := f.get(f.client(h2, f.ca.Issue(spec)), "/v1/agent/dispatch?wait=0")
				f.expect(r, 401, api.CodeCertificateRequired)
				if !h2 && !r.close {
					t.Error("the connection was not closed")
				}
			}
		})
	}
}

func TestNoCertificateIsToldSo(t *testing.T) {
	f := start(t)
	for _, path := range []string{"/v1/agent/dispatch", "/v1/hosts", "/v1/openapi.json", "/v1/rollouts/" + testRollout + "/manifest"} {
		f.expect(f.get(f.client(false), path), 401, api.CodeCertificateRequired)
	}
}

func TestACertificateOfAnotherCAFailsTheHandshake(t *testing.T) {
	f := start(t)
	other := cptest.NewCA(t)
	serverOnly := f.ca.Issue(cptest.Spec{URIs: []string{hostID}, EKU: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	for name, cert := range map[string]tls.Certificate{"another CA": other.Host("web-0"), "serverAuth only": serverOnly} {
		if r, err := do(f.client(false, cert), f.request("GET", "/v1/agent/dispatch?wait=0", nil)); err == nil {
			t.Errorf("%s: got %d %s", name, r.status, r.body)
		}
	}
	self := cptest.NewCA(t)
	if r, err := do(f.client(false, self.Issue(cptest.Spec{URIs: []string{hostID}})), f.request("GET", "/v1/hosts", nil)); err == nil {
		t.Errorf("got %d", r.status)
	}
}

func TestOnlyTLS13(t *testing.T) {
	f := start(t)
	config := f.ca.ClientTLS(f.ca.Host("web-0"))
	config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS12
	if c, err := tls.Dial("tcp", f.addr, config); err == nil {
		c.Close()
		t.Error("TLS 1.2 was accepted")
	}
}

func TestRolesAreKeptApart(t *testing.T) {
	f := start(t)
	host, operator := f.host("web-0"), f.operator()
	for _, r := range routes {
		path := strings.NewReplacer("{id}", testRollout, "{name}", "web-0").Replace(r.pattern)
		switch r.access {
		case hosts:
			f.expect(f.do(operator, f.request(r.method, path, nil)), 403, api.CodeWrongRole)
		case people:
			f.expect(f.do(host, f.request(r.method, path, nil)), 403, api.CodeWrongRole)
		}
	}
}

func TestAHostSpeaksForItselfAlone(t *testing.T) {
	f := start(t)
	c := f.host("web-0")
	f.expect(f.post(c, "/v1/agent/events", batch("web-1", converged(1))), 403, api.CodeIdentityMismatch)
	f.expect(f.post(c, "/v1/agent/heartbeat", heartbeat("web-1")), 403, api.CodeIdentityMismatch)
	f.expect(f.post(c, "/v1/agent/rejections", api.Rejection{Hostname: "web-1", RolloutID: "x", Reason: "stale", At: time.Now().UTC()}), 403, api.CodeIdentityMismatch)
	f.expect(f.get(c, "/v1/rollouts/"+testRollout+"/hosts/web-1"), 403, api.CodeIdentityMismatch)
	f.expect(f.get(c, "/v1/rollouts/"+testRollout+"/hosts"), 403, api.CodeWrongRole)
	if len(f.core.batches)+len(f.core.heartbeats)+len(f.core.rejections) > 0 {
		t.Error("something of it got through")
	}
}

func TestRevocationCountsOnOpenConnectionsAndParkedPolls(t *testing.T) {
	f := start(t)
	old := f.ca.Issue(cptest.Spec{URIs: []string{hostID}, NotBefore: time.Now().Add(-2 * time.Hour)})
	h1, h2, poller, h2poller := f.client(false, old), f.client(true, old), f.client(false, old), f.client(true, f.ca.Issue(cptest.Spec{
		URIs: []string{"spiffe://" + cptest.TrustDomain + "/host/web-2"}, NotBefore: time.Now().Add(-2 * time.Hour)}))
	fresh, other := f.client(false, f.ca.Host("web-0")), f.host("web-1")
	path := "/v1/rollouts/" + testRollout + "/manifest"
	for _, c := range []struct{ c response }{{f.get(h1, path)}, {f.get(h2, path)}} {
		if c.c.status != 200 {
			t.Fatalf("before: %d", c.c.status)
		}
	}
	parked, h2parked, stays := f.poll(poller, "60"), f.poll(h2poller, "60"), f.poll(other, "60")
	f.parked(3)
	cutoff := time.Now().Add(-90 * time.Minute)
	f.server.SetRevocations(NewRevocations(api.Revocations{Hosts: []api.RevokedHost{
		{Hostname: "web-0", CertificatesIssuedBefore: cutoff.Add(-time.Hour)}, // an earlier one of the same host
		{Hostname: "web-0", CertificatesIssuedBefore: cutoff},
		{Hostname: "web-2", CertificatesIssuedBefore: cutoff},
	}}))
	f.expect(<-parked, 403, api.CodeCertificateRevoked)
	f.expect(<-h2parked, 403, api.CodeCertificateRevoked)
	f.expect(f.get(h1, path), 403, api.CodeCertificateRevoked)
	f.expect(f.get(h2, path), 403, api.CodeCertificateRevoked)
	f.expect(f.get(f.client(false, old), path), 403, api.CodeCertificateRevoked)
	if r := f.get(fresh, path); r.status != 200 {
		t.Errorf("a certificate issued since got %d %s", r.status, r.body)
	}
	f.registry.Set("web-1", offer("web-1"))
	f.given(<-stays, offer("web-1"))
}

func TestARevokedOperatorIsRefusedAndAHostOfThatNameIsNot(t *testing.T) {
	f := start(t)
	f.server.SetRevocations(NewRevocations(api.Revocations{Operators: []api.RevokedOperator{{Name: "alice", CertificatesIssuedBefore: time.Now()}}}))
	f.expect(f.get(f.operator(), "/v1/hosts"), 403, api.CodeCertificateRevoked)
	if r := f.get(f.host("alice"), "/v1/agent/dispatch?wait=0"); r.status != 204 {
		t.Errorf("the host got %d %s", r.status, r.body)
	}
}

func TestACertificateThatEndsWhileItsConnectionIsOpenIsRefused(t *testing.T) {
	f := start(t)
	ends := time.Now().Add(2 * time.Second)
	c := f.client(false, f.ca.Issue(cptest.Spec{URIs: []string{hostID}, NotAfter: ends}))
	if r := f.get(c, "/v1/agent/dispatch?wait=0"); r.status != 204 {
		t.Fatalf("before: %d %s", r.status, r.body)
	}
	// The poll is not held for longer than the certificate lasts.
	if r := f.get(c, "/v1/agent/dispatch?wait=60"); r.status != 204 && r.status != 401 {
		t.Fatalf("meanwhile: %d %s", r.status, r.body)
	}
	f.eventually(func() bool { return f.get(c, "/v1/agent/dispatch?wait=0").status == 401 }, "it is refused")
	if time.Now().Before(ends.Truncate(time.Second)) {
		t.Error("refused too early")
	}
}

func TestCertificatesAreReloadedWithoutARestart(t *testing.T) {
	f := start(t)
	before := f.host("web-0")
	path := "/v1/rollouts/" + testRollout + "/manifest"
	if r := f.get(before, path); r.status != 200 {
		t.Fatalf("before: %d", r.status)
	}
	parked := f.poll(f.host("web-1"), "60")
	f.parked(1)

	if err := os.WriteFile(f.files.Key, []byte("half written"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.server.credentials.Reload(); err == nil {
		t.Error("a broken key was loaded")
	}
	if r := f.get(before, path); r.status != 200 {
		t.Errorf("after a failed reload: %d", r.status)
	}

	next := cptest.NewCA(t)
	next.WriteFiles(f.dir, next.Server())
	if changed, err := f.server.credentials.Reload(); !changed || err != nil {
		t.Fatalf("reload: %v, %v", changed, err)
	}
	if changed, err := f.server.credentials.Reload(); changed || err != nil {
		t.Errorf("a second reload: %v, %v", changed, err)
	}
	f.server.Recheck()
	f.expect(<-parked, 401, api.CodeCertificateRequired)
	f.expect(f.get(before, path), 401, api.CodeCertificateRequired)
	f.ca = next
	if r := f.get(f.host("web-0"), path); r.status != 200 {
		t.Errorf("with the new CA: %d", r.status)
	}
}

func TestAResumedSessionIsCheckedToo(t *testing.T) {
	f := start(t)
	config := f.ca.ClientTLS(f.ca.Issue(cptest.Spec{URIs: []string{hostID}, NotBefore: time.Now().Add(-2 * time.Hour)}))
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	status := func() (status int, resumed bool) {
		c, err := tls.Dial("tcp", f.addr, config)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		f.send(c, "GET /v1/agent/dispatch?wait=0 HTTP/1.1\r\nHost: x\r\nX-Nixfleet-Protocol: 1\r\n\r\n")
		return f.receive(newReader(c)).status, c.ConnectionState().DidResume
	}
	if got, _ := status(); got != 204 {
		t.Fatalf("at first: %d", got)
	}
	if got, resumed := status(); got != 204 || !resumed {
		t.Fatalf("again: %d, resumed %v", got, resumed)
	}
	f.server.SetRevocations(NewRevocations(api.Revocations{Hosts: []api.RevokedHost{{Hostname: "web-0", CertificatesIssuedBefore: time.Now()}}}))
	if got, resumed := status(); got != 403 || !resumed {
		t.Errorf("revoked: %d, resumed %v", got, resumed)
	}
}
