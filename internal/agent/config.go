package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"nixfleet.dev/nixfleet/internal/agent/client"
	"nixfleet.dev/nixfleet/internal/fleet"
)

// Config is a checked agent.toml (design/wire.md). Load makes one.
type Config struct {
	ControlPlanes []string // base URLs, tried in turn
	Hostname      string
	Channels      []string // the only channels this host may follow; empty allows all
	StateDir      string
	TrustFile     string
	// HeartbeatInterval is fixed where it is not 0; otherwise the control plane says it.
	HeartbeatInterval time.Duration
	ErrorBackoff      time.Duration
	TLS               TLS
	Activation        Activation
}

// TLS is where the files are. Cert and Key may be made by enrollment.
type TLS struct {
	CA, Cert, Key   string
	EnrollmentToken string // "" for none
}

// Activation is how this host is switched.
type Activation struct {
	Backend       string // "directory"
	Observe       bool   // mode = "observe": refuse all that would change the host
	CurrentSystem string // link
	Profile       string // link
	Store         string // folder of closures
	HealthChecks  string // instead of the closure's own; "" for that
}

// Defaults of agent.toml.
const (
	DefaultConfig    = "/etc/nixfleet/agent.toml"
	defaultStateDir  = "/var/lib/nixfleet-agent"
	defaultTrustFile = "/etc/nixfleet/trust.json"
	defaultBackoff   = "5s"
	maxConfig        = 1 << 20
)

// ConfigError is a configuration that cannot be used, with everything that is wrong with it.
type ConfigError struct {
	File     string
	Problems []string
}

// Error implements error.
func (e *ConfigError) Error() string {
	return e.File + ":\n  " + strings.Join(e.Problems, "\n  ")
}

// settings is agent.toml as it is written. Durations are text, so that a wrong one is one problem
// among the others.
type settings struct {
	ControlPlane      any      `toml:"control_plane"` // a string or a list of them
	Hostname          string   `toml:"hostname"`
	Channels          []string `toml:"channels"`
	StateDir          string   `toml:"state_dir"`
	TrustFile         string   `toml:"trust_file"`
	HeartbeatInterval string   `toml:"heartbeat_interval"`
	ErrorBackoff      string   `toml:"error_backoff"`
	TLS               struct {
		CA              string `toml:"ca"`
		Cert            string `toml:"cert"`
		Key             string `toml:"key"`
		EnrollmentToken string `toml:"enrollment_token"`
	} `toml:"tls"`
	Activation struct {
		Backend       string `toml:"backend"`
		Mode          string `toml:"mode"`
		CurrentSystem string `toml:"current_system"`
		Profile       string `toml:"profile"`
		Store         string `toml:"store"`
		HealthChecks  string `toml:"health_checks"`
	} `toml:"activation"`
}

// scalar is a setting that the environment and flags can give too.
type scalar struct {
	key   string // in agent.toml: "tls.cert"
	usage string
	at    func(*settings) *string
}

var scalars = []scalar{
	{"hostname", "this host's name; the machine's own when left out", func(s *settings) *string { return &s.Hostname }},
	{"state_dir", "folder of the agent's state", func(s *settings) *string { return &s.StateDir }},
	{"trust_file", "trust.json: whose signatures count", func(s *settings) *string { return &s.TrustFile }},
	{"heartbeat_interval", "fixed interval of heartbeats; the control plane's when left out", func(s *settings) *string { return &s.HeartbeatInterval }},
	{"error_backoff", "least wait after an error", func(s *settings) *string { return &s.ErrorBackoff }},
	{"tls.ca", "CA of the control plane", func(s *settings) *string { return &s.TLS.CA }},
	{"tls.cert", "this host's certificate", func(s *settings) *string { return &s.TLS.Cert }},
	{"tls.key", "its private key", func(s *settings) *string { return &s.TLS.Key }},
	{"tls.enrollment_token", "token that this host enrols by", func(s *settings) *string { return &s.TLS.EnrollmentToken }},
	{"activation.backend", "how this host is switched: directory", func(s *settings) *string { return &s.Activation.Backend }},
	{"activation.mode", "enforce, or observe to change nothing", func(s *settings) *string { return &s.Activation.Mode }},
	{"activation.current_system", "link to the system that runs", func(s *settings) *string { return &s.Activation.CurrentSystem }},
	{"activation.profile", "link to the system that is booted", func(s *settings) *string { return &s.Activation.Profile }},
	{"activation.store", "folder of closures", func(s *settings) *string { return &s.Activation.Store }},
	{"activation.health_checks", "health-checks.json instead of the closure's", func(s *settings) *string { return &s.Activation.HealthChecks }},
}

// Setting is a setting that a flag can give.
type Setting struct {
	Flag  string // without dashes: "tls-cert"
	Usage string
}

// Settings lists what flags can give; LoadWith takes them by Flag.
func Settings() []Setting {
	list := []Setting{{"control-plane", "base URL of the control plane, or several with commas between"}}
	for _, s := range scalars {
		list = append(list, Setting{flagOf(s.key), s.usage})
	}
	return list
}

func flagOf(key string) string { return strings.NewReplacer(".", "-", "_", "-").Replace(key) }

// envOf returns the variable of a setting: [tls] cert is NIXFLEET_TLS_CERT.
func envOf(flag string) string {
	return "NIXFLEET_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Load reads agent.toml and the environment. The error lists every problem.
func Load(path string) (Config, error) { return LoadWith(path, nil) }

// LoadWith is Load with flags, by Setting.Flag, that go before the environment, which goes before the file.
func LoadWith(path string, flags map[string]string) (Config, error) {
	s, unknown, err := parse(path)
	if err != nil {
		return Config{}, &ConfigError{File: path, Problems: []string{err.Error()}}
	}
	override(&s, flags)
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

// override puts the environment and then flags over what the file says.
func override(s *settings, flags map[string]string) {
	given := func(flag string) (string, bool) {
		if v, ok := flags[flag]; ok {
			return v, true
		}
		return os.LookupEnv(envOf(flag))
	}
	for _, setting := range scalars {
		if v, ok := given(flagOf(setting.key)); ok {
			*setting.at(s) = v
		}
	}
	if v, ok := given("control-plane"); ok {
		s.ControlPlane = v
	}
}

// check makes a Config of settings and lists what is wrong with them.
func check(s settings) (Config, []string) {
	p := &problems{}
	c := Config{
		ControlPlanes: p.controlPlanes(s.ControlPlane),
		Hostname:      p.hostname(s.Hostname),
		Channels:      s.Channels,
		StateDir:      orDefault(s.StateDir, defaultStateDir),
		TrustFile:     orDefault(s.TrustFile, defaultTrustFile),
		ErrorBackoff:  p.duration("error_backoff", orDefault(s.ErrorBackoff, defaultBackoff)),
	}
	if s.HeartbeatInterval != "" {
		c.HeartbeatInterval = p.duration("heartbeat_interval", s.HeartbeatInterval)
	}
	for _, channel := range s.Channels {
		p.require(fleet.ValidChannel(channel), "channels: %q is not a channel's name", channel)
	}
	c.TLS = TLS{
		CA: s.TLS.CA, EnrollmentToken: s.TLS.EnrollmentToken,
		Cert: orDefault(s.TLS.Cert, filepath.Join(c.StateDir, "host.pem")),
		Key:  orDefault(s.TLS.Key, filepath.Join(c.StateDir, "host.key")),
	}
	p.require(c.TLS.CA != "", "tls.ca: is missing")
	c.Activation = p.activation(s)
	return c, p.list
}

func orDefault(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

// problems gathers what is wrong.
type problems struct{ list []string }

func (p *problems) require(ok bool, format string, args ...any) {
	if !ok {
		p.list = append(p.list, fmt.Sprintf(format, args...))
	}
}

func (p *problems) duration(key, text string) time.Duration {
	d, err := time.ParseDuration(text)
	p.require(err == nil && d > 0, "%s: %q is not a duration such as \"5s\"", key, text)
	return d
}

// controlPlanes takes one URL, several with commas between, or a list.
func (p *problems) controlPlanes(value any) []string {
	var urls []string
	switch v := value.(type) {
	case string:
		urls = strings.Split(v, ",")
	case []any:
		for _, item := range v {
			text, ok := item.(string)
			p.require(ok, "control_plane: %v is not a string", item)
			urls = append(urls, text)
		}
	case nil:
	default:
		p.require(false, "control_plane: it is neither a string nor a list of strings")
		return nil
	}
	p.require(len(urls) > 0, "control_plane: is missing")
	for i, raw := range urls {
		base, err := client.CheckURL(strings.TrimSpace(raw))
		p.require(err == nil, "control_plane: %v", err)
		urls[i] = base
	}
	return urls
}

// hostname takes the configured name, or else the machine's own.
func (p *problems) hostname(name string) string {
	if name == "" {
		own, err := os.Hostname()
		p.require(err == nil, "hostname: is missing, and the machine's own cannot be read: %v", err)
		name = strings.ToLower(own)
	}
	p.require(fleet.ValidHostname(name), "hostname: %q is not a host name", name)
	return name
}

func (p *problems) activation(s settings) Activation {
	a := s.Activation
	backends, modes := []string{"directory"}, []string{"", "enforce", "observe"}
	p.require(slices.Contains(backends, a.Backend), "activation.backend: %q is not a backend; there is: %s", a.Backend, strings.Join(backends, ", "))
	p.require(slices.Contains(modes, a.Mode), "activation.mode: %q is neither enforce nor observe", a.Mode)
	for _, needed := range []struct{ key, value string }{
		{"current_system", a.CurrentSystem}, {"profile", a.Profile}, {"store", a.Store},
	} {
		p.require(needed.value != "" || a.Backend != "directory", "activation.%s: is missing; the directory backend needs it", needed.key)
	}
	return Activation{
		Backend: a.Backend, Observe: a.Mode == "observe", CurrentSystem: a.CurrentSystem,
		Profile: a.Profile, Store: a.Store, HealthChecks: a.HealthChecks,
	}
}
