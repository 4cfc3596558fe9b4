package controlplane

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const goodConfig = `
listen = "0.0.0.0:8443"
trust_domain = "fleet.example"
shutdown_timeout = "3s"
dispatches_per_minute = 0
[tls]
cert = "/etc/cp.pem"
key = "/etc/cp.key"
client_ca = "/etc/ca.pem"
[issuer]
ca_cert = "/etc/issuer.pem"
ca_key = "/etc/issuer.key"
[source]
url = "file:///srv/fleet/releases"
[database]
url = ""
`

func load(t *testing.T, text string, flags map[string]string) (Config, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "control-plane.toml")
	must(t, os.WriteFile(name, []byte(text), 0o600))
	return LoadWith(name, flags)
}

func TestSettingsComeFromFlagsThenTheEnvironmentThenTheFile(t *testing.T) {
	c, err := load(t, goodConfig, nil)
	must(t, err)
	if c.Listen != "0.0.0.0:8443" || c.MetricsListen != "127.0.0.1:9443" || c.StateDir != "/var/lib/nixfleet-control-plane" ||
		c.ShutdownTimeout != 3*time.Second || c.Source.PollInterval != 30*time.Second || c.Issuer.CertificateLifetime != 720*time.Hour {
		t.Errorf("from the file and defaults: %+v", c)
	}
	t.Setenv("NIXFLEET_TLS_CERT", "/env/cp.pem")
	t.Setenv("NIXFLEET_LISTEN", "127.0.0.1:1")
	c, err = load(t, goodConfig, map[string]string{"listen": "127.0.0.1:2"})
	must(t, err)
	if c.TLS.Cert != "/env/cp.pem" || c.Listen != "127.0.0.1:2" {
		t.Errorf("from the environment and flags: %+v", c)
	}
}

func TestWithoutAnIssuerSectionThereIsNone(t *testing.T) {
	text := goodConfig[:strings.Index(goodConfig, "[issuer]")] + goodConfig[strings.Index(goodConfig, "[source]"):]
	c, err := load(t, text, nil)
	must(t, err)
	if c.Issuer != nil {
		t.Errorf("got %+v", c.Issuer)
	}
}

func TestEveryProblemOfAConfigurationIsListed(t *testing.T) {
	_, err := load(t, `
listen = "8443"
metrics_listen = "a:b"
trust_domian = "fleet.example"
shutdown_timeout = "soon"
dispatches_per_minute = 60
[tls]
cert = "/etc/cp.pem"
ca = "/etc/ca.pem"
[issuer]
ca_cert = "/etc/issuer.pem"
certificate_lifetime = "1s"
[source]
url = "http://example.org"
token_file = "/etc/token"
[database]
url = "postgres://localhost"
[web]
port = 1
`, nil)
	wrong, ok := errors.AsType[*ConfigError](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	for _, key := range []string{"listen", "metrics_listen", "trust_domian", "trust_domain", "shutdown_timeout", "dispatches_per_minute",
		"tls.ca", "tls.key", "tls.client_ca", "issuer.ca_key", "issuer.certificate_lifetime", "source.url", "source.token_file", "database.url", "web"} {
		if !slices.ContainsFunc(wrong.Problems, func(p string) bool { return strings.Contains(p, key+":") || strings.Contains(p, key+".") }) {
			t.Errorf("%s is not named in %v", key, err)
		}
	}
}

func TestAFileThatIsNoConfigurationIsRefused(t *testing.T) {
	for name, text := range map[string]string{"no TOML": "listen = ", "another type": "listen = 8443", "huge": strings.Repeat("# \n", 1<<20)} {
		if _, err := load(t, text, nil); err == nil || !strings.Contains(err.Error(), "control-plane.toml") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "gone.toml")); !errors.As(err, new(*ConfigError)) {
		t.Errorf("no file: %v", err)
	}
}
