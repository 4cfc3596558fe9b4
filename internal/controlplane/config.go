package controlplane

import (
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/internal/controlplane/source"
	"nixfleet.dev/nixfleet/internal/settings"
)

// Config is a checked control-plane.toml (design/wire.md). Load makes one.
type Config struct {
	Listen          string // host:port; port 0 is one that is free
	MetricsListen   string
	StateDir        string
	TrustFile       string
	TrustDomain     string
	ShutdownTimeout time.Duration
	TLS             TLS
	Issuer          *Issuer // nil: no certificates are issued
	Source          Source
}

// TLS is where the server's PEM files are.
type TLS struct{ Cert, Key, ClientCA string }

// Issuer is what host certificates are issued with.
type Issuer struct {
	CACert, CAKey       string
	CertificateLifetime time.Duration
}

// Source is the release repository.
type Source struct {
	URL, TokenFile string
	PollInterval   time.Duration
}

// Defaults of control-plane.toml.
const (
	DefaultConfig          = "/etc/nixfleet/control-plane.toml"
	defaultListen          = "0.0.0.0:8443"
	defaultMetricsListen   = "127.0.0.1:9443"
	defaultStateDir        = "/var/lib/nixfleet-control-plane"
	defaultTrustFile       = "/etc/nixfleet/trust.json"
	defaultShutdownTimeout = "10s"
	defaultLifetime        = "720h"
	defaultPollInterval    = "30s"
	minPollInterval        = 10 * time.Millisecond
	minLifetime            = time.Minute
)

// ConfigError is a configuration that cannot be used, with everything that is wrong with it.
type ConfigError = settings.Error

// file is control-plane.toml as it is written. Durations are text, so that a wrong one is one
// problem among the others.
type file struct {
	Listen              string `toml:"listen"`
	MetricsListen       string `toml:"metrics_listen"`
	StateDir            string `toml:"state_dir"`
	TrustFile           string `toml:"trust_file"`
	TrustDomain         string `toml:"trust_domain"`
	ShutdownTimeout     string `toml:"shutdown_timeout"`
	DispatchesPerMinute number `toml:"dispatches_per_minute"`
	TLS                 struct {
		Cert     string `toml:"cert"`
		Key      string `toml:"key"`
		ClientCA string `toml:"client_ca"`
	} `toml:"tls"`
	Issuer struct {
		CACert              string `toml:"ca_cert"`
		CAKey               string `toml:"ca_key"`
		CertificateLifetime string `toml:"certificate_lifetime"`
	} `toml:"issuer"`
	Source struct {
		URL          string `toml:"url"`
		TokenFile    string `toml:"token_file"`
		PollInterval string `toml:"poll_interval"`
	} `toml:"source"`
	Database struct {
		URL string `toml:"url"`
	} `toml:"database"`
}

// number is a TOML integer, kept as text like every other setting.
type number = any

// scalars are the settings that the environment and flags can give too.
var scalars = []settings.Scalar[file]{
	settings.Of("listen", "address for agents and operators", func(s *file, v string) { s.Listen = v }),
	settings.Of("metrics_listen", "address for /healthz, /readyz and /metrics", func(s *file, v string) { s.MetricsListen = v }),
	settings.Of("state_dir", "folder of the database", func(s *file, v string) { s.StateDir = v }),
	settings.Of("trust_file", "trust.json: whose signatures count", func(s *file, v string) { s.TrustFile = v }),
	settings.Of("trust_domain", "trust domain of the fleet's certificates", func(s *file, v string) { s.TrustDomain = v }),
	settings.Of("shutdown_timeout", "how long requests may take to end", func(s *file, v string) { s.ShutdownTimeout = v }),
	settings.Of("dispatches_per_minute", "cap on dispatches; 0 for none", func(s *file, v string) { s.DispatchesPerMinute = v }),
	settings.Of("tls.cert", "the server's certificate", func(s *file, v string) { s.TLS.Cert = v }),
	settings.Of("tls.key", "its private key", func(s *file, v string) { s.TLS.Key = v }),
	settings.Of("tls.client_ca", "CA of agents and operators", func(s *file, v string) { s.TLS.ClientCA = v }),
	settings.Of("issuer.ca_cert", "certificate of the CA that hosts enrol with", func(s *file, v string) { s.Issuer.CACert = v }),
	settings.Of("issuer.ca_key", "its private key", func(s *file, v string) { s.Issuer.CAKey = v }),
	settings.Of("issuer.certificate_lifetime", "life of issued certificates", func(s *file, v string) { s.Issuer.CertificateLifetime = v }),
	settings.Of("source.url", "release repository, file:// or https://", func(s *file, v string) { s.Source.URL = v }),
	settings.Of("source.token_file", "file with a bearer token for it", func(s *file, v string) { s.Source.TokenFile = v }),
	settings.Of("source.poll_interval", "time between two looks at it", func(s *file, v string) { s.Source.PollInterval = v }),
	settings.Of("database.url", "empty for SQLite in state_dir", func(s *file, v string) { s.Database.URL = v }),
}

// Settings lists what flags can give; LoadWith takes them by name.
func Settings() []settings.Flag { return settings.Flags(scalars) }

// Load reads control-plane.toml and the environment. The error is a *ConfigError.
func Load(path string) (Config, error) { return LoadWith(path, nil) }

// LoadWith is Load with flags, which go before the environment, which goes before the file.
func LoadWith(path string, flags map[string]string) (Config, error) {
	return settings.Load(path, flags, scalars, check)
}

// check makes a Config of what the file says, and notes what is wrong with it.
func check(s file, p *settings.Problems) Config {
	c := Config{
		Listen:          address(p, "listen", settings.Or(s.Listen, defaultListen)),
		MetricsListen:   address(p, "metrics_listen", settings.Or(s.MetricsListen, defaultMetricsListen)),
		StateDir:        settings.Or(s.StateDir, defaultStateDir),
		TrustFile:       settings.Or(s.TrustFile, defaultTrustFile),
		TrustDomain:     s.TrustDomain,
		ShutdownTimeout: p.Duration("shutdown_timeout", settings.Or(s.ShutdownTimeout, defaultShutdownTimeout), 0),
		TLS:             TLS{Cert: p.Given("tls.cert", s.TLS.Cert), Key: p.Given("tls.key", s.TLS.Key), ClientCA: p.Given("tls.client_ca", s.TLS.ClientCA)},
		Source: Source{
			URL: p.Given("source.url", s.Source.URL), TokenFile: s.Source.TokenFile,
			PollInterval: p.Duration("source.poll_interval", settings.Or(s.Source.PollInterval, defaultPollInterval), minPollInterval),
		},
	}
	p.Require(trustDomain.MatchString(s.TrustDomain), "trust_domain: %q is not a trust domain such as fleet.example", s.TrustDomain)
	if c.Source.URL != "" {
		if err := source.CheckURL(c.Source.URL); err != nil {
			p.Require(false, "source.url: %v", err)
		}
		p.Require(c.Source.TokenFile == "" || strings.HasPrefix(c.Source.URL, "https:"), "source.token_file: only an https:// repository takes a token")
	}
	if s.Issuer.CACert != "" || s.Issuer.CAKey != "" || s.Issuer.CertificateLifetime != "" {
		c.Issuer = &Issuer{
			CACert: p.Given("issuer.ca_cert", s.Issuer.CACert), CAKey: p.Given("issuer.ca_key", s.Issuer.CAKey),
			CertificateLifetime: p.Duration("issuer.certificate_lifetime", settings.Or(s.Issuer.CertificateLifetime, defaultLifetime), minLifetime),
		}
	}
	p.Require(s.Database.URL == "", "database.url: this version keeps its log in SQLite in state_dir; leave it out")
	p.Require(isZero(s.DispatchesPerMinute), "dispatches_per_minute: this version does not cap dispatches; leave it out or at 0")
	return c
}

var trustDomain = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9])?$`)

func isZero(v number) bool {
	switch v := v.(type) {
	case nil:
		return true
	case int64:
		return v == 0
	case string:
		n, err := strconv.Atoi(v)
		return err == nil && n == 0
	}
	return false
}

// address returns a host:port.
func address(p *settings.Problems, key, value string) string {
	_, port, err := net.SplitHostPort(value)
	n, bad := strconv.Atoi(port)
	p.Require(err == nil && bad == nil && n >= 0 && n < 1<<16, "%s: %q is not an address such as %q", key, value, defaultListen)
	return value
}
