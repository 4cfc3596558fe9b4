package attack

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/release/bootstrap"
)

// caller is somebody with a certificate, or without one, who says HTTP by hand.
type caller struct {
	a    *arena
	http *http.Client
}

// answer is a response, read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
	closes bool // the connection ends with it
}

// caller returns a client of HTTP/1.1 with the certificates.
func (a *arena) caller(certs ...tls.Certificate) *caller {
	a.t.Helper()
	return a.callerOver(false, certs...)
}

func (a *arena) callerOver(http2 bool, certs ...tls.Certificate) *caller {
	a.t.Helper()
	transport := &http.Transport{TLSClientConfig: a.clientTLS(certs...), Protocols: new(http.Protocols)}
	if http2 {
		transport.MaxConnsPerHost = 1
	}
	transport.Protocols.SetHTTP1(!http2)
	transport.Protocols.SetHTTP2(http2)
	a.t.Cleanup(transport.CloseIdleConnections)
	return &caller{a: a, http: &http.Client{
		Transport: transport, Timeout: 90 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

func (a *arena) clientTLS(certs ...tls.Certificate) *tls.Config {
	a.t.Helper()
	roots, err := os.ReadFile(a.layout.CACert)
	a.must(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: certs, ClientSessionCache: tls.NewLRUClientSessionCache(4),
	}
}

// request makes a request as an honest client would: a body that is no bytes, text or reader becomes JSON.
func (c *caller) request(method, path string, body any) *http.Request {
	c.a.t.Helper()
	var reader io.Reader
	switch body := body.(type) {
	case nil:
	case io.Reader:
		reader = body
	case string:
		reader = strings.NewReader(body)
	default:
		data, err := json.Marshal(body)
		c.a.must(err)
		reader = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(context.Background(), method, "https://"+c.a.address+path, reader)
	c.a.must(err)
	r.Header.Set(api.ProtocolHeader, api.ProtocolVersion)
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	return r
}

// try sends a request. It may be called by any goroutine, unlike what is below.
func (c *caller) try(r *http.Request) (answer, error) {
	resp, err := c.http.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, body, resp.Close}, err
}

func (c *caller) do(r *http.Request) answer {
	c.a.t.Helper()
	got, err := c.try(r)
	if err != nil {
		c.a.t.Fatalf("%s %s: %v", r.Method, r.URL.Path, err)
	}
	if v := got.header.Values(api.ProtocolHeader); !slices.Equal(v, []string{api.ProtocolVersion}) {
		c.a.t.Errorf("%s %s: the response says protocol %v", r.Method, r.URL.Path, v)
	}
	return got
}

func (c *caller) get(path string) answer {
	c.a.t.Helper()
	return c.do(c.request(http.MethodGet, path, nil))
}

func (c *caller) post(path string, body any) answer {
	c.a.t.Helper()
	return c.do(c.request(http.MethodPost, path, body))
}

// refused checks that an answer is the problem with the status and code, as RFC 9457 and wire.md have it.
func (a *arena) refused(what string, got answer, status int, code api.Code) api.Problem {
	a.t.Helper()
	p, err := problemOf(got, status, code)
	if err != nil {
		a.t.Errorf("%s: %v", what, err)
	}
	return p
}

func problemOf(got answer, status int, code api.Code) (p api.Problem, err error) {
	switch err := json.Unmarshal(got.body, &p); {
	case got.status != status || err != nil || p.Code != code:
		return p, fmt.Errorf("want %d %s, got %d %s", status, code, got.status, got.body)
	case got.header.Get("Content-Type") != api.ProblemType:
		return p, fmt.Errorf("the problem is of type %q", got.header.Get("Content-Type"))
	case p.Type != "/problems/"+string(code) || p.Status != status || p.Title == "" || p.Detail == "":
		return p, fmt.Errorf("the problem lacks something: %s", got.body)
	case len(got.body) > 2<<10:
		return p, fmt.Errorf("the problem has %d bytes", len(got.body))
	case (status == 429 || status == 503) != (got.header.Get("Retry-After") != ""):
		return p, fmt.Errorf("status %d with Retry-After %q", status, got.header.Get("Retry-After"))
	}
	return p, nil
}

// authority is what issues the certificates of this control plane's hosts.
func (a *arena) authority() *bootstrap.Authority {
	a.t.Helper()
	issuer, err := a.layout.Issuer()
	a.must(err)
	return issuer
}

// hostCertificate is a good one, issued an hour ago.
func (a *arena) hostCertificate(name string) tls.Certificate {
	a.t.Helper()
	issued, err := a.authority().IssueHost(name, now().Add(-time.Hour), 24*time.Hour)
	a.must(err)
	pair, err := tls.X509KeyPair(issued.Cert, issued.Key)
	a.must(err)
	return pair
}

// operatorCertificate is a good one, issued an hour ago.
func (a *arena) operatorCertificate(name string) tls.Certificate {
	a.t.Helper()
	issued, err := a.authority().IssueOperator(name, now().Add(-time.Hour), 24*time.Hour)
	a.must(err)
	pair, err := tls.X509KeyPair(issued.Cert, issued.Key)
	a.must(err)
	return pair
}

// forgery is what a certificate says that nobody ought to have. Its zero times are those of a good one.
type forgery struct {
	uris, dns, emails []string
	ips               []net.IP
	eku               []x509.ExtKeyUsage // clientAuth where nil
	from, until       time.Time
	isCA              bool
}

func (a *arena) forge(by *bootstrap.Authority, f forgery) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.must(err)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	a.must(err)
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: evilHost}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: f.from, NotAfter: f.until, ExtKeyUsage: f.eku, DNSNames: f.dns, EmailAddresses: f.emails, IPAddresses: f.ips,
		IsCA: f.isCA, BasicConstraintsValid: true,
	}
	if f.from.IsZero() {
		template.NotBefore = now().Add(-time.Hour)
	}
	if f.until.IsZero() {
		template.NotAfter = now().Add(time.Hour)
	}
	if f.eku == nil {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	for _, text := range f.uris {
		u, err := url.Parse(text)
		a.must(err)
		template.URIs = append(template.URIs, u)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.Cert, key.Public(), by.Key)
	a.must(err)
	return tls.Certificate{Certificate: [][]byte{der, by.Cert.Raw}, PrivateKey: key}
}

// csr is a certificate request with a new key that asks for the names of a host.
func (a *arena) csr(name string) string {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.must(err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		URIs: []*url.URL{{Scheme: "spiffe", Host: arenaDomain, Path: "/host/" + name}},
	}, key)
	a.must(err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// namesOf returns the names that a certificate reply certifies.
func (a *arena) namesOf(got answer) (uris, others []string) {
	a.t.Helper()
	var reply api.CertificateReply
	a.must(json.Unmarshal(got.body, &reply))
	block, _ := pem.Decode([]byte(reply.Certificate))
	if block == nil {
		a.t.Fatalf("no certificate: %d %s", got.status, got.body)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	a.must(err)
	for _, u := range cert.URIs {
		uris = append(uris, u.String())
	}
	others = append(others, cert.DNSNames...)
	return uris, append(others, cert.EmailAddresses...)
}
