package bootstrap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"nixfleet.dev/nixfleet/internal/fleet"
	"nixfleet.dev/nixfleet/internal/release"
	"nixfleet.dev/nixfleet/internal/trust"
)

var now = time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)

func newFleet(t *testing.T, controlPlane string) Layout {
	t.Helper()
	layout, err := Init(filepath.Join(t.TempDir(), "fleet"), InitOptions{TrustDomain: "fleet.example", ControlPlane: controlPlane, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return layout
}

func TestAFleetIsReleasedAndEnrolledWithWhatInitMade(t *testing.T) {
	l := newFleet(t, "https://cp.fleet.example:8443")
	opts, err := l.Release(now)
	if err != nil {
		t.Fatal(err)
	}
	declared, err := os.ReadFile(l.FleetFile)
	if err != nil {
		t.Fatal(err)
	}
	report, err := release.Create(context.Background(), release.CreateOptions{Options: opts, Fleet: declared, FleetName: "fleet.json", Commit: "0000001"})
	if err != nil || len(report.Warnings) > 0 || report.Channels[0].Hosts != 1 {
		t.Errorf("reported %+v, error %v", report, err)
	}
	token, err := l.MintToken(ExampleHost, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trust.VerifyToken(opts.Root, token, now); err != nil {
		t.Error(err)
	}
	f, err := fleet.Parse("fleet.json", declared)
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(l.Store, f.Hosts[ExampleHost].Closure, "bin", "switch-to-configuration")
	if info, err := os.Stat(script); err != nil || info.Mode().Perm()&0o111 == 0 {
		t.Errorf("the example's closure cannot be switched to: %v", err)
	}
}

func TestPrivateKeysAreForTheirOwnerAlone(t *testing.T) {
	l := newFleet(t, "https://cp.fleet.example:8443")
	err := filepath.WalkDir(l.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var data []byte
		if info.Mode().IsRegular() {
			if data, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		secret := strings.Contains(string(data), "PRIVATE KEY")
		if secret && info.Mode().Perm() != 0o600 {
			t.Errorf("%s holds a private key with mode %o", path, info.Mode().Perm())
		}
		if secret && mode(t, filepath.Dir(path)) != 0o700 {
			t.Errorf("%s is in a folder with mode %o", path, mode(t, filepath.Dir(path)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if mode(t, l.Dir) != 0o700 {
		t.Errorf("the fleet's folder has mode %o", mode(t, l.Dir))
	}
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestInitRefusesADirectoryThatHoldsSomething(t *testing.T) {
	dir := t.TempDir()
	opts := InitOptions{TrustDomain: "fleet.example", ControlPlane: "https://cp:8443", Now: now}
	if err := os.WriteFile(filepath.Join(dir, "mine"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(dir, opts); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("got %v", err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "mine")); err != nil || string(data) != "x" {
		t.Error("what was there is gone")
	}
	if err := os.Remove(filepath.Join(dir, "mine")); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(dir, opts); err != nil {
		t.Errorf("an empty one: %v", err)
	}
}

func TestInitRefusesNamesThatCannotWork(t *testing.T) {
	for name, opts := range map[string]InitOptions{
		"no trust domain":    {ControlPlane: "https://cp:8443"},
		"one with a path":    {TrustDomain: "fleet.example/x", ControlPlane: "https://cp:8443"},
		"one in upper case":  {TrustDomain: "Fleet.example", ControlPlane: "https://cp:8443"},
		"no URL":             {TrustDomain: "fleet.example", ControlPlane: "cp:8443"},
		"plain http":         {TrustDomain: "fleet.example", ControlPlane: "http://cp:8443"},
		"a URL with a path":  {TrustDomain: "fleet.example", ControlPlane: "https://cp:8443/v1"},
		"a URL with a query": {TrustDomain: "fleet.example", ControlPlane: "https://cp:8443?x=1"},
	} {
		dir := filepath.Join(t.TempDir(), "fleet")
		if _, err := Init(dir, opts); err == nil {
			t.Errorf("%s was accepted", name)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s left a folder behind", name)
		}
	}
}

func parse(t *testing.T, chain []byte) (leaf *x509.Certificate, intermediates *x509.CertPool) {
	t.Helper()
	intermediates = x509.NewCertPool()
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if leaf == nil {
			leaf = cert
		} else {
			intermediates.AddCert(cert)
		}
	}
	return leaf, intermediates
}

func verify(t *testing.T, root *Authority, chain []byte, usage x509.ExtKeyUsage, dns string) error {
	t.Helper()
	leaf, intermediates := parse(t, chain)
	roots := x509.NewCertPool()
	roots.AddCert(root.Cert)
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now.Add(time.Minute), KeyUsages: []x509.ExtKeyUsage{usage}, DNSName: dns,
	})
	return err
}

func authorities(t *testing.T) (root, issuer *Authority) {
	t.Helper()
	l := newFleet(t, "https://cp.fleet.example:8443")
	root, err := l.CA()
	if err != nil {
		t.Fatal(err)
	}
	if issuer, err = l.Issuer(); err != nil {
		t.Fatal(err)
	}
	return root, issuer
}

func TestClientCertificatesHaveOneSPIFFEIDAndNothingElse(t *testing.T) {
	root, issuer := authorities(t)
	for id, issue := range map[string]func() (Issued, error){
		"spiffe://fleet.example/host/web-01":    func() (Issued, error) { return issuer.IssueHost("web-01", now, HostLife) },
		"spiffe://fleet.example/operator/alice": func() (Issued, error) { return root.IssueOperator("alice", now, OperatorLife) },
	} {
		issued, err := issue()
		if err != nil {
			t.Fatal(err)
		}
		leaf, _ := parse(t, issued.Cert)
		if len(leaf.URIs) != 1 || leaf.URIs[0].String() != id || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 {
			t.Errorf("%s has %v, %v, %v", id, leaf.URIs, leaf.DNSNames, leaf.IPAddresses)
		}
		if !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || leaf.IsCA {
			t.Errorf("%s is for %v, CA %v", id, leaf.ExtKeyUsage, leaf.IsCA)
		}
		if !leaf.NotBefore.Equal(now) {
			t.Errorf("%s begins at %s: a revocation of what was issued before %s would hit it", id, leaf.NotBefore, now)
		}
		if err := verify(t, root, issued.Cert, x509.ExtKeyUsageClientAuth, ""); err != nil {
			t.Errorf("%s: %v", id, err)
		}
		if err := verify(t, root, issued.Cert, x509.ExtKeyUsageServerAuth, ""); err == nil {
			t.Errorf("%s can be a server", id)
		}
	}
	for _, name := range []string{"", "a/b", "../x", "Web", "a b"} {
		if _, err := issuer.IssueHost(name, now, HostLife); err == nil {
			t.Errorf("host %q was certified", name)
		}
	}
	for _, name := range []string{"", "a/b", "..", "-a"} {
		if _, err := root.IssueOperator(name, now, HostLife); err == nil {
			t.Errorf("operator %q was certified", name)
		}
	}
}

func TestTheIssuerCanCertifyClientsOfItsTrustDomainAlone(t *testing.T) {
	root, issuer := authorities(t)
	server, err := issuer.IssueServer([]string{"cp.fleet.example"}, now, ServerLife)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(t, root, server.Cert, x509.ExtKeyUsageServerAuth, "cp.fleet.example"); err == nil {
		t.Error("hosts would take a server for theirs that the issuer certified")
	}
	another := *issuer
	other := *issuer.Cert
	other.URIs = []*url.URL{{Scheme: "spiffe", Host: "other.example"}}
	another.Cert = &other
	foreign, err := another.IssueHost("web-01", now, HostLife)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(t, root, foreign.Cert, x509.ExtKeyUsageClientAuth, ""); err == nil {
		t.Error("the issuer can certify hosts of another trust domain")
	}
	sub, err := newIssuer(issuer, "fleet.example", now)
	if err != nil {
		t.Fatal(err)
	}
	host, err := sub.IssueHost("web-01", now, HostLife)
	if err != nil {
		t.Fatal(err)
	}
	chain := append(host.Cert, encodeCert(issuer.Cert.Raw)...)
	if err := verify(t, root, chain, x509.ExtKeyUsageClientAuth, ""); err == nil {
		t.Error("the issuer can make another issuer")
	}
}

func TestServerCertificatesNameWhatTheURLNames(t *testing.T) {
	for address, names := range map[string][]string{
		"https://cp.fleet.example:8443": {"cp.fleet.example"},
		"https://10.0.0.5":              {"10.0.0.5"},
		"https://[fd00::1]:8443":        {"fd00::1"},
		"https://localhost:8443":        {"localhost", "127.0.0.1", "::1"},
		"https://127.0.0.7:8443":        {"localhost", "127.0.0.1", "::1", "127.0.0.7"},
	} {
		l := newFleet(t, address)
		root, err := l.CA()
		if err != nil {
			t.Fatal(err)
		}
		chain, err := os.ReadFile(l.ServerCert)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if net.ParseIP(name) != nil {
				name = "[" + name + "]"
			}
			if err := verify(t, root, chain, x509.ExtKeyUsageServerAuth, name); err != nil {
				t.Errorf("%s: %v", address, err)
			}
		}
		if err := verify(t, root, chain, x509.ExtKeyUsageServerAuth, "other.example"); err == nil {
			t.Errorf("%s: its certificate is for anyone", address)
		}
		if err := verify(t, root, chain, x509.ExtKeyUsageClientAuth, ""); err == nil {
			t.Errorf("%s: its certificate can be a client's", address)
		}
	}
}

func TestAHostAndAnOperatorTalkToTheControlPlane(t *testing.T) {
	l := newFleet(t, "https://localhost:8443")
	host, err := l.IssueHost("web-01", now)
	if err != nil {
		t.Fatal(err)
	}
	for _, client := range [][2]string{{host.Cert, host.Key}, {l.OperatorCert, l.OperatorKey}} {
		if err := handshake(t, l, client[0], client[1]); err != nil {
			t.Errorf("%s: %v", client[0], err)
		}
	}
}

// handshake connects as a client, with the files that the configurations name.
func handshake(t *testing.T, l Layout, certFile, keyFile string) error {
	t.Helper()
	pool := func(path string) *x509.CertPool {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		p := x509.NewCertPool()
		if !p.AppendCertsFromPEM(data) {
			t.Fatalf("%s has no certificates", path)
		}
		return p
	}
	pair := func(cert, key string) []tls.Certificate {
		c, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{c}
	}
	clock := func() time.Time { return now.Add(time.Minute) }
	serverSide, clientSide := net.Pipe()
	server := tls.Server(serverSide, &tls.Config{
		Certificates: pair(l.ServerCert, l.ServerKey), ClientCAs: pool(l.ClientCA), ClientAuth: tls.RequireAndVerifyClientCert, Time: clock,
		MinVersion: tls.VersionTLS13,
	})
	client := tls.Client(clientSide, &tls.Config{
		Certificates: pair(certFile, keyFile), RootCAs: pool(l.CACert), ServerName: "localhost", Time: clock, MinVersion: tls.VersionTLS13,
	})
	done := make(chan error, 1)
	go func() {
		// A client knows that it was let in when the server first answers.
		_, err := client.Read(make([]byte, 1))
		done <- errors.Join(err, clientSide.Close())
	}()
	_, err := server.Write([]byte{1})
	return errors.Join(err, serverSide.Close(), <-done)
}

func TestConfigurationsAreTOMLWithOnlyFilesThatAreThere(t *testing.T) {
	l := newFleet(t, "https://cp.fleet.example:9443")
	made := []string{"tls.cert", "tls.key", "tls.enrollment_token", "activation.current_system", "activation.profile"} // by the agent
	for _, path := range []string{l.ControlPlaneConfig, l.AgentConfig, l.OperatorConfig} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var config map[string]any
		if err := toml.Unmarshal(data, &config); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for key, value := range flatten("", config) {
			missing := strings.HasPrefix(value, l.Dir) && errors.Is(errOf(os.Stat(value)), fs.ErrNotExist)
			if missing && !(path == l.AgentConfig && slices.Contains(made, key)) {
				t.Errorf("%s: %s names %s, which is not there", path, key, value)
			}
		}
		if path == l.ControlPlaneConfig && (config["listen"] != "0.0.0.0:9443" || config["metrics_listen"] != "127.0.0.1:9444") {
			t.Errorf("it listens at %v and %v", config["listen"], config["metrics_listen"])
		}
	}
}

func errOf[T any](_ T, err error) error { return err }

func flatten(prefix string, table map[string]any) map[string]string {
	flat := map[string]string{}
	for key, value := range table {
		if inner, ok := value.(map[string]any); ok {
			for k, v := range flatten(prefix+key+".", inner) {
				flat[k] = v
			}
			continue
		}
		flat[prefix+key] = fmt.Sprint(value)
	}
	return flat
}
