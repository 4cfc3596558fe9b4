package agent_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/internal/agent"
)

const whole = `
control_plane = ["https://a.fleet.example:8443/", "https://b.fleet.example"]
hostname = "web-01"
channels = ["stable"]
state_dir = "/state"
trust_file = "/trust.json"
heartbeat_interval = "20s"
error_backoff = "1s"
[tls]
ca = "/ca.pem"
cert = "/cert.pem"
key = "/key.pem"
enrollment_token = "/token"
[activation]
backend = "directory"
mode = "observe"
current_system = "/current"
profile = "/profile"
store = "/store"
health_checks = "/checks.json"
`

const least = `
control_plane = "https://cp.fleet.example:8443"
hostname = "web-01"
[tls]
ca = "/ca.pem"
[activation]
backend = "directory"
current_system = "/current"
profile = "/profile"
store = "/store"
`

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEverySettingIsRead(t *testing.T) {
	got, err := agent.Load(write(t, whole))
	if err != nil {
		t.Fatal(err)
	}
	want := agent.Config{
		ControlPlanes: []string{"https://a.fleet.example:8443", "https://b.fleet.example"}, Hostname: "web-01", Channels: []string{"stable"},
		StateDir: "/state", TrustFile: "/trust.json", HeartbeatInterval: 20 * time.Second, ErrorBackoff: time.Second,
		TLS: agent.TLS{CA: "/ca.pem", Cert: "/cert.pem", Key: "/key.pem", EnrollmentToken: "/token"},
		Activation: agent.Activation{
			Backend: "directory", Observe: true, CurrentSystem: "/current", Profile: "/profile", Store: "/store", HealthChecks: "/checks.json",
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsLeftOutHasADefault(t *testing.T) {
	got, err := agent.Load(write(t, least))
	if err != nil {
		t.Fatal(err)
	}
	want := agent.Config{
		ControlPlanes: []string{"https://cp.fleet.example:8443"}, Hostname: "web-01",
		StateDir: "/var/lib/nixfleet-agent", TrustFile: "/etc/nixfleet/trust.json", ErrorBackoff: 5 * time.Second,
		TLS:        agent.TLS{CA: "/ca.pem", Cert: "/var/lib/nixfleet-agent/host.pem", Key: "/var/lib/nixfleet-agent/host.key"},
		Activation: agent.Activation{Backend: "directory", CurrentSystem: "/current", Profile: "/profile", Store: "/store"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFlagsGoBeforeTheEnvironmentAndThatBeforeTheFile(t *testing.T) {
	t.Setenv("NIXFLEET_HOSTNAME", "web-02")
	t.Setenv("NIXFLEET_TLS_CERT", "/env.pem")
	t.Setenv("NIXFLEET_CONTROL_PLANE", "https://c.example, https://d.example")
	got, err := agent.LoadWith(write(t, whole), map[string]string{"hostname": "web-03", "activation-store": "/flag"})
	if err != nil {
		t.Fatal(err)
	}
	if got.Hostname != "web-03" || got.Activation.Store != "/flag" || got.TLS.Cert != "/env.pem" ||
		!slices.Equal(got.ControlPlanes, []string{"https://c.example", "https://d.example"}) || got.TLS.Key != "/key.pem" {
		t.Errorf("got %+v", got)
	}
}

func TestEveryProblemOfAConfigurationIsListed(t *testing.T) {
	_, err := agent.Load(write(t, `
control_plane = ["http://cp", 7]
hostname = "Web_01"
channels = ["Stable!"]
error_backoff = "5"
heartbeat_interval = "-1s"
hartbeat = "1s"
[tls]
certificate = "x"
[activation]
backend = "nixos2"
mode = "maybe"
`))
	wrong, ok := errors.AsType[*agent.ConfigError](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{
		`line 7: hartbeat`, `line 9: tls.certificate`, `"http://cp"`, `7 is not a string`, `"Web_01"`, `"Stable!"`,
		`error_backoff`, `heartbeat_interval`, `tls.ca`, `"nixos2"`, `"maybe"`,
	} {
		if !slices.ContainsFunc(wrong.Problems, func(p string) bool { return strings.Contains(p, want) }) {
			t.Errorf("nothing about %s", want)
		}
	}
	if t.Failed() {
		t.Log(err)
	}
}

func TestAFileThatIsNoTOMLSaysWhere(t *testing.T) {
	for _, text := range []string{"hostname = ", "hostname = 3\n", "[tls\n"} {
		if _, err := agent.Load(write(t, text)); err == nil || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := agent.Load(filepath.Join(t.TempDir(), "none.toml")); !strings.Contains(err.Error(), "no such file") {
		t.Errorf("an absent file: %v", err)
	}
}

func TestEverySettingHasAFlagOfItsOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range agent.Settings() {
		if seen[s.Name] || s.Usage == "" || strings.ContainsAny(s.Name, "._ ") {
			t.Errorf("setting %+v", s)
		}
		seen[s.Name] = true
	}
}
