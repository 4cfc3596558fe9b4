package contract

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/trust"
)

func TestManifests(t *testing.T) {
	p := newPlane(t)
	web := p.host("web-02")
	path := "/v1/rollouts/" + p.rollout()
	p.eventually("the release is adopted", func() bool { return web.get(path+"/manifest").status == 200 })
	envelope, lines, proof := web.get(path+"/manifest"), p.operator.get(path+"/hosts"), web.get(path+"/hosts/web-02")
	for what, data := range map[string][]byte{"manifest": envelope.body, "hosts": lines.body} {
		published, err := os.ReadFile(filepath.Join(p.layout.Repository, "objects", trust.Digest(data)))
		if err != nil || string(published) != string(data) {
			t.Errorf("the %s is not as it was published: %v", what, err)
		}
	}
	root, err := p.layout.Root()
	p.must(err)
	verified, err := manifest.Verify(root, p.rollout(), envelope.body, now())
	p.must(err)
	o := proof.ok()
	p.has("a proof", o, "only index size line proof")
	var typed api.HostProof
	p.must(json.Unmarshal(proof.body, &typed))
	p.must(manifest.VerifyProof(typed, verified.Value().HostSet))
	if o["index"] != 1.0 || o["size"] != 3.0 || strings.Split(string(lines.body), "\n")[1] != o["line"] {
		t.Errorf("the proof is %v", o)
	}

	for _, c := range []struct {
		c    *client
		path string
		got  answer
	}{{web.client, "/manifest", envelope}, {p.operator, "/hosts", lines}, {web.client, "/hosts/web-02", proof}} {
		tag := c.got.header.Get("ETag")
		if tag == "" {
			t.Errorf("%s has no ETag", c.path)
		}
		for _, known := range []string{tag, `"x", W/` + tag, "*"} {
			if again := c.c.call("GET", path+c.path, "", "If-None-Match", known); again.status != 304 || len(again.body) > 0 || again.header.Get("ETag") != tag {
				t.Errorf("%s with If-None-Match %s: %d", c.path, known, again.status)
			}
		}
		if other := c.c.call("GET", path+c.path, "", "If-None-Match", `"other"`); other.status != 200 {
			t.Errorf("%s with another tag: %d", c.path, other.status)
		}
	}

	for _, id := range []string{"stable", "Stable@0123456", "stable@012345", "stable@" + strings.Repeat("0", 65), "stable@0123456G"} {
		web.get("/v1/rollouts/"+id+"/manifest").problem(400, "malformed")
	}
	web.get("/v1/rollouts/stable@fffffff/manifest").problem(404, "unknown-rollout")
	p.operator.get(path+"/hosts/none").problem(404, "not-found")
	web.get(path+"/hosts").problem(403, "wrong-role")
}

func TestCertificates(t *testing.T) {
	p := newPlane(t)
	stranger := p.client()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p.must(err)
	token, err := p.layout.MintToken("web-03", now())
	p.must(err)
	enroll := func(key *ecdsa.PrivateKey) answer {
		t.Helper()
		return stranger.post("/v1/enroll", fmt.Sprintf(`{"token":%s,"csr":%s}`, token, p.write(csr(t, key, "web-01"))))
	}
	cert := p.certified(enroll(key), key, "web-03") // the name is the token's, not the request's
	_ = p.certified(enroll(key), key, "web-03")     // the same key again
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p.must(err)
	enroll(other).problem(403, "token-invalid")

	holder := p.client(cert)
	holder.get("/v1/agent/dispatch?wait=0").empty()
	renewed := p.certified(holder.post("/v1/agent/renew", fmt.Sprintf(`{"csr":%s}`, p.write(csr(t, other, "web-01")))), other, "web-03")
	p.client(renewed).get("/v1/agent/dispatch?wait=0").empty()
	stranger.post("/v1/agent/renew", `{"csr":""}`).problem(401, "certificate-required")
	holder.post("/v1/agent/renew", `{"csr":"nonsense"}`).problem(400, "malformed")
}

func csr(t *testing.T, key *ecdsa.PrivateKey, name string) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// certified reads a reply that must hold a chain, from a certificate of that host for that key alone up to
// the fleet's CA.
func (p *plane) certified(got answer, key *ecdsa.PrivateKey, name string) tls.Certificate {
	p.t.Helper()
	o := got.ok()
	p.has("a certificate reply", o, "only certificate notAfter")
	der, err := x509.MarshalPKCS8PrivateKey(key)
	p.must(err)
	pair, err := tls.X509KeyPair([]byte(o["certificate"].(string)), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	p.must(err)
	leaf := pair.Leaf
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://fleet.example/host/"+name || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 {
		p.t.Errorf("it certifies %v %v", leaf.URIs, leaf.DNSNames)
	}
	if len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || o["notAfter"] != leaf.NotAfter.UTC().Format(time.RFC3339) {
		p.t.Errorf("it is for %v until %v, the reply says %v", leaf.ExtKeyUsage, leaf.NotAfter, o["notAfter"])
	}
	if len(pair.Certificate) < 2 {
		p.t.Fatal("it is no chain: what issued it is not there")
	}
	issuer, err := x509.ParseCertificate(pair.Certificate[1])
	p.must(err)
	p.must(leaf.CheckSignatureFrom(issuer))
	return pair
}
