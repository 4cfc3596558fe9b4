package controlplane

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"nixfleet.dev/nixfleet/internal/controlplane/source"
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
	maxConfig              = 1 << 20
)

// ConfigError is a configuration that cannot be used, with everything that is wrong with it.
type ConfigError struct {
	File     string
	Problems []string
}

// Error implements error.
func (e *ConfigError) Error() string { return e.File + ":\n  " + strings.Join(e.Problems, "\n  ") }

// settings is control-plane.toml as it is written. Durations are text, so that a wrong one is one
// problem among the others.
type settings struct {
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

// scalar is a setting that the environment and flags can give too.
type scalar struct {
	key   string // in control-plane.toml: "tls.cert"
	usage string
	set   func(*settings, string)
}

var scalars = []scalar{
	{"listen", "address for agents and operators", func(s *settings, v string) { s.Listen = v }},
	{"metrics_listen", "address for /healthz, /readyz and /metrics", func(s *settings, v string) { s.MetricsListen = v }},
	{"state_dir", "folder of the database", func(s *settings, v string) { s.StateDir = v }},
	{"trust_file", "trust.json: whose signatures count", func(s *settings, v string) { s.TrustFile = v }},
	{"trust_domain", "trust domain of the fleet's certificates", func(s *settings, v string) { s.TrustDomain = v }},
	{"shutdown_timeout", "how long requests may take to end", func(s *settings, v string) { s.ShutdownTimeout = v }},
	{"dispatches_per_minute", "cap on dispatches; 0 for none", func(s *settings, v string) { s.DispatchesPerMinute = v }},
	{"tls.cert", "the server's certificate", func(s *settings, v string) { s.TLS.Cert = v }},
	{"tls.key", "its private key", func(s *settings, v string) { s.TLS.Key = v }},
	{"tls.client_ca", "CA of agents and operators", func(s *settings, v string) { s.TLS.ClientCA = v }},
	{"issuer.ca_cert", "certificate of the CA that hosts enrol with", func(s *settings, v string) { s.Issuer.CACert = v }},
	{"issuer.ca_key", "its private key", func(s *settings, v string) { s.Issuer.CAKey = v }},
	{"issuer.certificate_lifetime", "life of issued certificates", func(s *settings, v string) { s.Issuer.CertificateLifetime = v }},
	{"source.url", "release repository, file:// or https://", func(s *settings, v string) { s.Source.URL = v }},
	{"source.token_file", "file with a bearer token for it", func(s *settings, v string) { s.Source.TokenFile = v }},
	{"source.poll_interval", "time between two looks at it", func(s *settings, v string) { s.Source.PollInterval = v }},
	{"database.url", "empty for SQLite in state_dir", func(s *settings, v string) { s.Database.URL = v }},
}

// Setting is a setting that a flag can give.
type Setting struct {
	Flag  string // without dashes: "tls-cert"
	Usage string
}

// Settings lists what flags can give; LoadWith takes them by Flag.
func Settings() []Setting {
	var list []Setting
	for _, s := range scalars {
		list = append(list, Setting{flagOf(s.key), s.usage})
	}
	return list
}

func flagOf(key string) string { return strings.NewReplacer(".", "-", "_", "-").Replace(key) }

// envOf returns the variable of a setting: [tls] cert is NIXFLEET_TLS_CERT.
func envOf(key string) string {
	return "NIXFLEET_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// Load reads control-plane.toml and the environment. The error lists every problem.
func Load(path string) (Config, error) { return LoadWith(path, nil) }

// LoadWith is Load with flags, by Setting.Flag, which go before the environment, which goes before the
// file.
func LoadWith(path string, flags map[string]string) (Config, error) {
	s, unknown, err := parse(path)
	if err != nil {
		return Config{}, &ConfigError{File: path, Problems: []string{err.Error()}}
	}
	for _, setting := range scalars {
		if v, ok := os.LookupEnv(envOf(setting.key)); ok {
			setting.set(&s, v)
		}
		if v, ok := flags[flagOf(setting.key)]; ok {
			setting.set(&s, v)
		}
	}
	c, wrong := check(s)
	if problems := append(unknown, wrong...); len(problems) > 0 {
		return Config{}, &ConfigError{File: path, Problems: problems}
	}
	return c, nil
}

// parse reads the file, and lists the keys that there are not.
func parse(path string) (s settings, unknown []string, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return s, nil, err
	}
	if len(data) > maxConfig {
		return s, nil, fmt.Errorf("it is over %d bytes", maxConfig)
	}
	err = toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&s)
	if missing, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		for _, e := range missing.Errors {
			line, _ := e.Position()
			unknown = append(unknown, fmt.Sprintf("line %d: %s: there is no such key", line, strings.Join(e.Key(), ".")))
		}
		return s, unknown, nil
	}
	if wrong, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, _ := wrong.Position()
		err = fmt.Errorf("line %d: %s", line, strings.TrimPrefix(wrong.Error(), "toml: "))
	}
	return s, nil, err
}

// check makes a Config of settings and lists what is wrong with them.
func check(s settings) (Config, []string) {
	p := &problems{}
	c := Config{
		Listen:          p.address("listen", or(s.Listen, defaultListen)),
		MetricsListen:   p.address("metrics_listen", or(s.MetricsListen, defaultMetricsListen)),
		StateDir:        or(s.StateDir, defaultStateDir),
		TrustFile:       or(s.TrustFile, defaultTrustFile),
		TrustDomain:     s.TrustDomain,
		ShutdownTimeout: p.duration("shutdown_timeout", or(s.ShutdownTimeout, defaultShutdownTimeout), 0),
		TLS:             TLS{Cert: p.given("tls.cert", s.TLS.Cert), Key: p.given("tls.key", s.TLS.Key), ClientCA: p.given("tls.client_ca", s.TLS.ClientCA)},
		Source: Source{
			URL: p.given("source.url", s.Source.URL), TokenFile: s.Source.TokenFile,
			PollInterval: p.duration("source.poll_interval", or(s.Source.PollInterval, defaultPollInterval), minPollInterval),
		},
	}
	p.require(trustDomain.MatchString(s.TrustDomain), "trust_domain: %q is not a trust domain such as fleet.example", s.TrustDomain)
	if c.Source.URL != "" {
		if err := source.CheckURL(c.Source.URL); err != nil {
			p.require(false, "source.url: %v", err)
		}
		p.require(c.Source.TokenFile == "" || strings.HasPrefix(c.Source.URL, "https:"), "source.token_file: only an https:// repository takes a token")
	}
	if s.Issuer.CACert != "" || s.Issuer.CAKey != "" || s.Issuer.CertificateLifetime != "" {
		c.Issuer = &Issuer{
			CACert: p.given("issuer.ca_cert", s.Issuer.CACert), CAKey: p.given("issuer.ca_key", s.Issuer.CAKey),
			CertificateLifetime: p.duration("issuer.certificate_lifetime", or(s.Issuer.CertificateLifetime, defaultLifetime), minLifetime),
		}
	}
	p.require(s.Database.URL == "", "database.url: this version keeps its log in SQLite in state_dir; leave it out")
	p.require(isZero(s.DispatchesPerMinute), "dispatches_per_minute: this version does not cap dispatches; leave it out or at 0")
	return c, p.list
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

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

type problems struct{ list []string }

func (p *problems) require(ok bool, format string, args ...any) {
	if !ok {
		p.list = append(p.list, fmt.Sprintf(format, args...))
	}
}

func (p *problems) given(key, value string) string {
	p.require(value != "", "%s: is missing", key)
	return value
}

func (p *problems) duration(key, value string, least time.Duration) time.Duration {
	d, err := time.ParseDuration(value)
	p.require(err == nil && d >= least, "%s: %q is not a duration such as %q of at least %s", key, value, "30s", least)
	return d
}

func (p *problems) address(key, value string) string {
	_, port, err := net.SplitHostPort(value)
	n, bad := strconv.Atoi(port)
	p.require(err == nil && bad == nil && n >= 0 && n < 1<<16, "%s: %q is not an address such as %q", key, value, defaultListen)
	return value
}
