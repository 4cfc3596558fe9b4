package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/internal/agent/client"
	"nixfleet.dev/nixfleet/internal/fleet"
	"nixfleet.dev/nixfleet/internal/settings"
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
)

// ConfigError is a configuration that cannot be used, with everything that is wrong with it.
type ConfigError = settings.Error

// file is agent.toml as it is written. Durations are text, so that a wrong one is one problem
// among the others.
type file struct {
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

// scalars are the settings that the environment and flags can give too.
var scalars = []settings.Scalar[file]{
	settings.Of("control_plane", "base URL of the control plane, or several with commas between", func(s *file, v string) { s.ControlPlane = v }),
	settings.Of("hostname", "this host's name; the machine's own when left out", func(s *file, v string) { s.Hostname = v }),
	settings.Of("state_dir", "folder of the agent's state", func(s *file, v string) { s.StateDir = v }),
	settings.Of("trust_file", "trust.json: whose signatures count", func(s *file, v string) { s.TrustFile = v }),
	settings.Of("heartbeat_interval", "fixed interval of heartbeats; the control plane's when left out", func(s *file, v string) { s.HeartbeatInterval = v }),
	settings.Of("error_backoff", "least wait after an error", func(s *file, v string) { s.ErrorBackoff = v }),
	settings.Of("tls.ca", "CA of the control plane", func(s *file, v string) { s.TLS.CA = v }),
	settings.Of("tls.cert", "this host's certificate", func(s *file, v string) { s.TLS.Cert = v }),
	settings.Of("tls.key", "its private key", func(s *file, v string) { s.TLS.Key = v }),
	settings.Of("tls.enrollment_token", "token that this host enrols by", func(s *file, v string) { s.TLS.EnrollmentToken = v }),
	settings.Of("activation.backend", "how this host is switched: directory", func(s *file, v string) { s.Activation.Backend = v }),
	settings.Of("activation.mode", "enforce, or observe to change nothing", func(s *file, v string) { s.Activation.Mode = v }),
	settings.Of("activation.current_system", "link to the system that runs", func(s *file, v string) { s.Activation.CurrentSystem = v }),
	settings.Of("activation.profile", "link to the system that is booted", func(s *file, v string) { s.Activation.Profile = v }),
	settings.Of("activation.store", "folder of closures", func(s *file, v string) { s.Activation.Store = v }),
	settings.Of("activation.health_checks", "health-checks.json instead of the closure's", func(s *file, v string) { s.Activation.HealthChecks = v }),
}

// Settings lists what flags can give; LoadWith takes them by name.
func Settings() []settings.Flag { return settings.Flags(scalars) }

// Load reads agent.toml and the environment. The error is a *ConfigError.
func Load(path string) (Config, error) { return LoadWith(path, nil) }

// LoadWith is Load with flags, which go before the environment, which goes before the file.
func LoadWith(path string, flags map[string]string) (Config, error) {
	return settings.Load(path, flags, scalars, check)
}

// check makes a Config of what the file says, and notes what is wrong with it.
func check(s file, p *settings.Problems) Config {
	c := Config{
		ControlPlanes: controlPlanes(p, s.ControlPlane),
		Hostname:      hostname(p, s.Hostname),
		Channels:      s.Channels,
		StateDir:      settings.Or(s.StateDir, defaultStateDir),
		TrustFile:     settings.Or(s.TrustFile, defaultTrustFile),
		ErrorBackoff:  p.Duration("error_backoff", settings.Or(s.ErrorBackoff, defaultBackoff), time.Millisecond),
	}
	if s.HeartbeatInterval != "" {
		c.HeartbeatInterval = p.Duration("heartbeat_interval", s.HeartbeatInterval, time.Millisecond)
	}
	for _, channel := range s.Channels {
		p.Require(fleet.ValidChannel(channel), "channels: %q is not a channel's name", channel)
	}
	c.TLS = TLS{
		CA: p.Given("tls.ca", s.TLS.CA), EnrollmentToken: s.TLS.EnrollmentToken,
		Cert: settings.Or(s.TLS.Cert, filepath.Join(c.StateDir, "host.pem")),
		Key:  settings.Or(s.TLS.Key, filepath.Join(c.StateDir, "host.key")),
	}
	c.Activation = activationOf(p, s)
	return c
}

// controlPlanes takes one URL, several with commas between, or a list.
func controlPlanes(p *settings.Problems, value any) []string {
	var urls []string
	switch v := value.(type) {
	case string:
		urls = strings.Split(v, ",")
	case []any:
		for _, item := range v {
			text, ok := item.(string)
			p.Require(ok, "control_plane: %v is not a string", item)
			urls = append(urls, text)
		}
	case nil:
	default:
		p.Require(false, "control_plane: it is neither a string nor a list of strings")
		return nil
	}
	p.Require(len(urls) > 0, "control_plane: is missing")
	for i, raw := range urls {
		base, err := client.CheckURL(strings.TrimSpace(raw))
		p.Require(err == nil, "control_plane: %v", err)
		urls[i] = base
	}
	return urls
}

// hostname takes the configured name, or else the machine's own.
func hostname(p *settings.Problems, name string) string {
	if name == "" {
		own, err := os.Hostname()
		p.Require(err == nil, "hostname: is missing, and the machine's own cannot be read: %v", err)
		name = strings.ToLower(own)
	}
	p.Require(fleet.ValidHostname(name), "hostname: %q is not a host name", name)
	return name
}

func activationOf(p *settings.Problems, s file) Activation {
	a := s.Activation
	backends, modes := []string{"directory"}, []string{"", "enforce", "observe"}
	p.Require(slices.Contains(backends, a.Backend), "activation.backend: %q is not a backend; there is: %s", a.Backend, strings.Join(backends, ", "))
	p.Require(slices.Contains(modes, a.Mode), "activation.mode: %q is neither enforce nor observe", a.Mode)
	for _, needed := range []struct{ key, value string }{
		{"current_system", a.CurrentSystem}, {"profile", a.Profile}, {"store", a.Store},
	} {
		p.Require(needed.value != "" || a.Backend != "directory", "activation.%s: is missing; the directory backend needs it", needed.key)
	}
	return Activation{
		Backend: a.Backend, Observe: a.Mode == "observe", CurrentSystem: a.CurrentSystem,
		Profile: a.Profile, Store: a.Store, HealthChecks: a.HealthChecks,
	}
}
