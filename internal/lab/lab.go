package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/operator"
	"nixfleet.dev/nixfleet/internal/release"
	"nixfleet.dev/nixfleet/internal/release/bootstrap"
)

// Channel is the only channel of a lab's fleet.
const Channel = "stable"

const trustDomain = "demo.nixfleet.example"

// Options says what fleet to make. Zero values have the defaults named here.
type Options struct {
	Dir      string // of everything; there and empty
	Hosts    int
	Canaries int     // a quarter of the hosts, at least 1 and at most 10
	Base     Version // what every machine runs at first
	Clock    clock.Clock

	CanarySoak       time.Duration       // of wave 0
	Soak             time.Duration       // of wave 1
	ProbeInterval    time.Duration       // 1 s
	FailureThreshold time.Duration       // how long a probe fails before the host goes back
	OnHealthFailure  api.OnHealthFailure // rollback-and-halt

	// HeartbeatInterval is fixed for every agent where it is set; otherwise the control plane says it.
	HeartbeatInterval time.Duration
}

// Lab is a fleet. Its methods are called from one goroutine at a time.
type Lab struct {
	Machines []Machine
	options  Options
	layout   bootstrap.Layout
	appURL   string
	apps     *http.Server
	served   chan struct{}
}

// New makes the fleet in o.Dir and serves its machines' web services until Close.
func New(ctx context.Context, o Options) (*Lab, error) {
	if o.Canaries == 0 {
		o.Canaries = min(max(1, o.Hosts/4), 10)
	}
	if o.ProbeInterval == 0 {
		o.ProbeInterval = time.Second
	}
	if o.OnHealthFailure == "" {
		o.OnHealthFailure = api.RollbackAndHalt
	}
	l := &Lab{options: o, Machines: machinesOf(o.Dir, o.Hosts, o.Canaries)}
	if err := l.serveApps(ctx); err != nil {
		return nil, err
	}
	if err := l.lay(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Close ends the machines' web services.
func (l *Lab) Close() error {
	err := l.apps.Close()
	<-l.served
	return err
}

// Canaries is how many machines are canaries.
func (l *Lab) Canaries() int { return l.options.Canaries }

// Store is the folder of closures, for all machines.
func (l *Lab) Store() string { return filepath.Join(l.options.Dir, "store") }

// Layout says where the fleet's keys, certificates and configurations are.
func (l *Lab) Layout() bootstrap.Layout { return l.layout }

// ControlPlane is the control plane's URL.
func (l *Lab) ControlPlane() string { return l.layout.ControlPlane }

// ControlPlaneConfig is the path of control-plane.toml.
func (l *Lab) ControlPlaneConfig() string { return l.layout.ControlPlaneConfig }

// ControlPlaneState is the control plane's state_dir.
func (l *Lab) ControlPlaneState() string { return l.layout.ServerState }

// OperatorConfig is the path of the operator's config.toml.
func (l *Lab) OperatorConfig() string { return l.layout.OperatorConfig }

// Operator is the operator's context.
func (l *Lab) Operator() operator.Context {
	return operator.Context{ControlPlane: l.layout.ControlPlane, CA: l.layout.CACert, Cert: l.layout.OperatorCert, Key: l.layout.OperatorKey}
}

// lay makes the fleet's files, and the machines, each of which runs the base version and has a token
// to enrol by.
func (l *Lab) lay(ctx context.Context) error {
	ports, err := freePorts(ctx, 2)
	if err != nil {
		return err
	}
	now := l.options.Clock.Now()
	l.layout, err = bootstrap.Init(filepath.Join(l.options.Dir, "fleet"), bootstrap.InitOptions{
		TrustDomain: trustDomain, ControlPlane: "https://" + ports[0], Now: now,
	})
	if err != nil {
		return err
	}
	if err := write(l.layout.ControlPlaneConfig, fmt.Sprintf(controlPlaneConfig, ports[0], ports[1], l.layout.ServerState,
		l.layout.TrustFile, trustDomain, l.layout.ServerCert, l.layout.ServerKey, l.layout.ClientCA,
		l.layout.IssuerCert, l.layout.IssuerKey, l.layout.Repository)); err != nil {
		return err
	}
	if err := l.Build(l.options.Base); err != nil {
		return err
	}
	for _, m := range l.Machines {
		if err := l.install(m, l.options.Base); err != nil {
			return err
		}
		token, err := l.layout.MintToken(m.Name, now)
		if err != nil {
			return err
		}
		if err := write(m.token(), string(token)); err != nil {
			return err
		}
		if err := write(m.Config(), fmt.Sprintf(agentConfig, l.layout.ControlPlane, m.Name, m.StateDir(), l.layout.TrustFile,
			l.heartbeats(), l.layout.CACert, m.token(), l.Store(), m.CurrentSystem(), m.Profile())); err != nil {
			return err
		}
	}
	return nil
}

const controlPlaneConfig = `listen = %q
metrics_listen = %q
state_dir = %q
trust_file = %q
trust_domain = %q
[tls]
cert = %q
key = %q
client_ca = %q
[issuer]
ca_cert = %q
ca_key = %q
[source]
url = "file://%s"
poll_interval = "500ms"
`

const agentConfig = `control_plane = %q
hostname = %q
state_dir = %q
trust_file = %q
error_backoff = "200ms"
%s[tls]
ca = %q
enrollment_token = %q
[activation]
backend = "directory"
store = %q
current_system = %q
profile = %q
`

func (l *Lab) heartbeats() string {
	if l.options.HeartbeatInterval == 0 {
		return ""
	}
	return fmt.Sprintf("heartbeat_interval = %q\n", l.options.HeartbeatInterval)
}

func (m Machine) token() string { return filepath.Join(m.Dir, "enrollment-token.json") }

// freePorts returns addresses on the loopback that nothing listens on.
func freePorts(ctx context.Context, n int) ([]string, error) {
	var addresses []string
	for range n {
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("looking for a free port: %w", err)
		}
		defer listener.Close() // only once all are found, so that they differ
		addresses = append(addresses, listener.Addr().String())
	}
	return addresses, nil
}

func write(path, content string) error { return os.WriteFile(path, []byte(content), 0o600) }

// Release signs and publishes v, as CI would with nixfleet release create, and returns the rollout's
// id. Its commit is made from v's number, so a number is released once.
func (l *Lab) Release(ctx context.Context, v Version) (string, error) {
	document, err := json.Marshal(l.fleet(v), json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		return "", err
	}
	if err := write(l.layout.FleetFile, string(document)+"\n"); err != nil {
		return "", err
	}
	options, err := l.layout.Release(l.options.Clock.Now())
	if err != nil {
		return "", err
	}
	report, err := release.Create(ctx, release.CreateOptions{Options: options, Fleet: document, FleetName: l.layout.FleetFile})
	if err != nil {
		return "", fmt.Errorf("releasing %s: %w", v.Number, err)
	}
	return report.Channels[0].RolloutID, nil
}

// fleet declares every machine on v: the canaries first, then the rest.
func (l *Lab) fleet(v Version) api.Fleet {
	commit := sha256.Sum256([]byte(v.Number))
	threshold := api.Duration(l.options.FailureThreshold)
	activation, confirm := api.Duration(2*time.Minute), api.Duration(time.Minute)
	hosts := map[string]api.FleetHost{}
	for _, m := range l.Machines {
		tags := []string{"web"}
		if m.Canary {
			tags = append(tags, "canary")
		}
		hosts[m.Name] = api.FleetHost{System: "x86_64-linux", Channel: Channel, Tags: tags, Closure: m.Closure(v)}
	}
	return api.Fleet{
		SchemaVersion: api.SchemaVersion, Commit: hex.EncodeToString(commit[:20]), Hosts: hosts,
		Channels: map[string]api.FleetChannel{Channel: {RolloutPolicy: "canary", FreshnessWindow: api.Duration(24 * time.Hour)}},
		RolloutPolicies: map[string]api.Policy{"canary": {
			Waves: []api.Wave{
				{Selector: &api.Selector{Tags: []string{"canary"}}, Soak: api.Duration(l.options.CanarySoak)},
				{Selector: &api.Selector{All: true}, Soak: api.Duration(l.options.Soak)},
			},
			OnHealthFailure: l.options.OnHealthFailure, FailureThreshold: &threshold,
			ActivationTimeout: &activation, ConfirmTimeout: &confirm,
		}},
	}
}

// ClearEnvironment takes every NIXFLEET_* variable out of this process's environment: in a lab only
// its own configuration counts.
func ClearEnvironment() error {
	var errs []error
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "NIXFLEET_") {
			errs = append(errs, os.Unsetenv(name))
		}
	}
	return errors.Join(errs...)
}
