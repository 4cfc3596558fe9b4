package attack

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/release"
	"nixfleet.dev/nixfleet/internal/release/bootstrap"
)

// forgeries are certificates that give nobody any right, by authorities that the control plane trusts.
func forgeries() map[string]forgery {
	own := "spiffe://" + arenaDomain + "/host/" + evilHost
	one := []string{own}
	return map[string]forgery{
		"no name but the CN":        {},
		"a DNS name alone":          {dns: []string{evilHost}},
		"two URIs":                  {uris: []string{own, "spiffe://" + arenaDomain + "/host/" + goodHost}},
		"the same URI twice":        {uris: []string{own, own}},
		"a URI and a DNS name":      {uris: one, dns: []string{evilHost}},
		"a URI and an IP":           {uris: one, ips: []net.IP{net.IPv4(127, 0, 0, 1)}},
		"a URI and an e-mail":       {uris: one, emails: []string{"root@" + arenaDomain}},
		"another trust domain":      {uris: []string{"spiffe://other.example/host/" + evilHost}},
		"a longer trust domain":     {uris: []string{"spiffe://" + arenaDomain + ".evil.example/host/" + evilHost}},
		"a part of it":              {uris: []string{"spiffe://evil." + arenaDomain + "/host/" + evilHost}},
		"another scheme":            {uris: []string{"https://" + arenaDomain + "/host/" + evilHost}},
		"a port":                    {uris: []string{"spiffe://" + arenaDomain + ":443/host/" + evilHost}},
		"a user":                    {uris: []string{"spiffe://" + goodHost + "@" + arenaDomain + "/host/" + evilHost}},
		"a query":                   {uris: []string{own + "?/host/" + goodHost}},
		"a fragment":                {uris: []string{own + "#" + goodHost}},
		"a longer path":             {uris: []string{own + "/" + goodHost}},
		"a path that climbs":        {uris: []string{own + "/../" + goodHost}},
		"an escaped path":           {uris: []string{"spiffe://" + arenaDomain + "/host/%67ood-01"}},
		"neither host nor operator": {uris: []string{"spiffe://" + arenaDomain + "/control-plane/" + evilHost}},
		"a host in capitals":        {uris: []string{"spiffe://" + arenaDomain + "/host/GOOD-01"}},
		"no host at all":            {uris: []string{"spiffe://" + arenaDomain + "/host/"}},
		"a trust domain alone":      {uris: []string{"spiffe://" + arenaDomain}},
		"serverAuth":                {uris: one, eku: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		"clientAuth and serverAuth": {uris: one, eku: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}},
		"any usage":                 {uris: one, eku: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}},
		"no usage":                  {uris: one, eku: []x509.ExtKeyUsage{}},
		"a CA":                      {uris: one, isCA: true},
		"an ended one":              {uris: one, until: now().Add(-time.Second)},
		"one that is yet to begin":  {uris: one, from: now().Add(time.Hour), until: now().Add(2 * time.Hour)},
	}
}

func TestCertificatesThatAreNobodysOpenNothing(t *testing.T) {
	a := newArena(t, nil, evilHost)
	root, err := a.layout.CA()
	a.must(err)
	shut := func(what string, certs ...tls.Certificate) {
		t.Helper()
		agents, operators := a.endpoints(evilHost)
		c := a.caller(certs...)
		for _, call := range []func(*caller) answer{agents["dispatch"], agents["heartbeat"], agents["renew"], operators["hosts"]} {
			a.shut(what, c, call)
		}
	}
	shut("no certificate")
	for what, f := range forgeries() {
		shut(what+", by the root", a.forge(root, f))
		shut(what+", by the issuer", a.forge(a.authority(), f))
	}

	// Certificates that say the right thing and lead somewhere else.
	elsewhere, err := bootstrap.Init(filepath.Join(t.TempDir(), "other"), bootstrap.InitOptions{
		TrustDomain: arenaDomain, ControlPlane: "https://127.0.0.1:8443", Now: now(),
	})
	a.must(err)
	stranger, err := elsewhere.CA()
	a.must(err)
	own := forgery{uris: []string{"spiffe://" + arenaDomain + "/host/" + evilHost}}
	shut("another CA of the same name", a.forge(stranger, own))
	namesake := a.forge(stranger, own)
	namesake.Certificate[1] = root.Cert.Raw // with the real root beside it
	shut("another CA's, with the real CA in its chain", namesake)
	mine := a.hostCertificate(evilHost)
	leaf, err := x509.ParseCertificate(mine.Certificate[0])
	a.must(err)
	byHost := a.forge(&bootstrap.Authority{Cert: leaf, Key: mine.PrivateKey.(crypto.Signer)}, forgery{
		uris: []string{"spiffe://" + arenaDomain + "/host/" + goodHost},
	})
	byHost.Certificate = append(byHost.Certificate, mine.Certificate[1:]...)
	shut("one that a host issued itself", byHost)
	server, err := tls.LoadX509KeyPair(a.layout.ServerCert, a.layout.ServerKey)
	a.must(err)
	shut("the control plane's own", server)
	issuer, err := tls.LoadX509KeyPair(a.layout.IssuerCert, a.layout.IssuerKey)
	a.must(err)
	shut("the issuer's own", issuer)

	if at := a.host(evilHost); at.LastHeartbeatAt != nil || at.Reachable {
		t.Errorf("one of them was heard: %+v", at)
	}
	a.over()
}

// shut checks that a call ends in the handshake or with 401.
func (a *arena) shut(what string, c *caller, call func(*caller) answer) {
	a.t.Helper()
	probe := c.request(http.MethodGet, "/v1/agent/dispatch?wait=0", nil)
	if _, err := c.try(probe); err != nil {
		if !strings.Contains(err.Error(), "remote error: tls: ") && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			a.t.Errorf("%s: %v", what, err)
		}
		return // ended in the handshake
	}
	got := call(c)
	a.refused(what, got, 401, api.CodeCertificateRequired)
	if !got.closes {
		a.t.Errorf("%s: the connection stays open", what)
	}
}

func TestOldTLSIsNotSpoken(t *testing.T) {
	a := newArena(t, nil, evilHost)
	config := a.clientTLS(a.hostCertificate(evilHost))
	config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if conn, err := tls.Dial("tcp", a.address, config); err == nil {
		conn.Close()
		t.Error("TLS 1.2 was spoken")
	}
	a.over()
}

// TestARevokedCertificateEndsEverywhere revokes a host that has a connection open, polls parked over
// HTTP/1.1 and HTTP/2, and none of them may go on.
func TestARevokedCertificateEndsEverywhere(t *testing.T) {
	a := newArena(t, nil, evilHost, "evil-02")
	evil, second := a.actor(evilHost), a.actor("evil-02")
	id := a.current()
	for _, h := range []*actor{evil, second} { // nothing is to be given to them any more
		h.heartbeat()
		h.does(id, h.ack(h.poll()))
		h.idle()
	}
	operators := a.caller(a.operatorCertificate("bob"))
	if got := operators.get("/v1/hosts"); got.status != 200 {
		t.Fatalf("an operator: %d %s", got.status, got.body)
	}
	ended := make(chan result, 2)
	first := a.caller(evil.cert)
	a.park(first, ended, "60")
	overHTTP2 := a.callerOver(true, second.cert)
	a.park(overHTTP2, ended, "60")
	a.parked(2)

	a.revoke(release.RevokeOptions{Hosts: []string{evil.name, second.name}, Operators: []string{"bob"}, Before: now().Add(-time.Minute)})
	for range 2 {
		r := a.next(ended)
		a.must(r.err)
		a.refused("a parked poll", r.answer, 403, api.CodeCertificateRevoked)
	}
	a.refused("the connection that was idle", evil.get("/v1/agent/dispatch?wait=60"), 403, api.CodeCertificateRevoked)
	evil.http.CloseIdleConnections()
	a.refused("a TLS session that is resumed", evil.get("/v1/agent/dispatch?wait=60"), 403, api.CodeCertificateRevoked)
	a.refused("a new connection", a.caller(evil.cert).post("/v1/agent/heartbeat", evil.beat()), 403, api.CodeCertificateRevoked)
	a.refused("HTTP/2", overHTTP2.get("/v1/agent/dispatch?wait=60"), 403, api.CodeCertificateRevoked)
	a.refused("renewing", evil.post("/v1/agent/renew", api.RenewRequest{CSR: a.csr(evil.name)}), 403, api.CodeCertificateRevoked)
	a.refused("an operator's connection that was idle", operators.get("/v1/hosts"), 403, api.CodeCertificateRevoked)

	// A restart does not forget it, though the repository is gone.
	a.must(a.stop())
	a.must(os.Rename(a.layout.Repository, a.layout.Repository+".away"))
	a.start()
	a.refused("after a restart", a.caller(evil.cert).get("/v1/agent/dispatch?wait=0"), 403, api.CodeCertificateRevoked)
	a.must(a.stop())
	a.must(os.Rename(a.layout.Repository+".away", a.layout.Repository))
	a.log = &lockedBuffer{}
	a.start()

	// A certificate that was issued after the cut-off is good.
	fresh, err := a.authority().IssueHost(evil.name, now(), time.Hour)
	a.must(err)
	pair, err := tls.X509KeyPair(fresh.Cert, fresh.Key)
	a.must(err)
	if got := a.caller(pair).get("/v1/agent/dispatch?wait=0"); got.status != http.StatusNoContent {
		t.Errorf("with a new certificate: %d %s", got.status, got.body)
	}
	a.over()
}
