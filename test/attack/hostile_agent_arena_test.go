package attack

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane"
	"nixfleet.dev/nixfleet/internal/controlplane/store/sqlite"
	"nixfleet.dev/nixfleet/internal/lab"
	"nixfleet.dev/nixfleet/internal/operator"
	"nixfleet.dev/nixfleet/internal/release"
	"nixfleet.dev/nixfleet/internal/release/bootstrap"
	"nixfleet.dev/nixfleet/internal/rollout"
)

// The other half of this package: hosts that say what they like, in front of the real control plane
// with its real database, a published release repository and real sockets. The hosts are written by
// hand, on net/http or bare TLS.
//
// What must hold is the same for every attack: each request gets the contract's status and code, and
// nobody else is affected, which arena.over checks at the end: a well-behaved host of the same rollout
// converges, the log holds what hosts were acknowledged and nothing else, and the log alone, read by a
// new process, adds up to the same picture.

const (
	arenaDomain  = "fleet.example"
	arenaChannel = "stable"
	goodHost     = "good-01"
	evilHost     = "evil-01"
	// patience is how long anything may take that is to happen at once.
	patience = 20 * time.Second
)

// arena is a control plane with its fleet.
type arena struct {
	t      *testing.T
	layout bootstrap.Layout
	fleet  api.Fleet
	log    *lockedBuffer

	// Of the run that is on.
	address, metrics string
	operator         *operator.Client // with the certificate that the fleet was made with
	stop             func() error

	released int
	actors   []*actor
	recorded []rollout.Entry // the whole log, once it is over

	good *actor
}

// newArena starts a control plane whose fleet is the good host and those named, all on one channel, and
// publishes its first release. edit, where not nil, changes the fleet before.
func newArena(t *testing.T, edit func(*api.Fleet), hosts ...string) *arena {
	t.Helper()
	a := &arena{t: t, log: &lockedBuffer{}}
	var err error
	a.layout, err = bootstrap.Init(filepath.Join(t.TempDir(), "fleet"), bootstrap.InitOptions{
		TrustDomain: arenaDomain, ControlPlane: "https://127.0.0.1:8443", Now: now(),
	})
	a.must(err)
	a.must(os.WriteFile(a.layout.ControlPlaneConfig, fmt.Appendf(nil, arenaConfig, a.layout.ServerState, a.layout.TrustFile,
		arenaDomain, a.layout.ServerCert, a.layout.ServerKey, a.layout.ClientCA, a.layout.IssuerCert, a.layout.IssuerKey,
		a.layout.Repository), 0o600))
	a.fleet = arenaFleet(append(hosts, goodHost))
	if edit != nil {
		edit(&a.fleet)
	}
	a.publish()
	a.start()
	t.Cleanup(func() {
		if err := a.stop(); err != nil {
			t.Errorf("the control plane ended with %v", err)
		}
		if t.Failed() {
			t.Logf("the control plane's log:\n%s", a.log)
		}
	})
	a.good = a.actor(goodHost)
	a.opens()
	return a
}

const arenaConfig = `listen = "127.0.0.1:0"
metrics_listen = "127.0.0.1:0"
state_dir = %q
trust_file = %q
trust_domain = %q
shutdown_timeout = "1s"
[tls]
cert = %q
key = %q
client_ca = %q
[issuer]
ca_cert = %q
ca_key = %q
[source]
url = "file://%s"
poll_interval = "20ms"
`

// arenaFleet is a fleet of one wave that tolerates whatever becomes of a host, so that a liar does not
// end the rollout of the others, which it may (design/security.md).
func arenaFleet(hosts []string) api.Fleet {
	f := api.Fleet{
		SchemaVersion: api.SchemaVersion, Hosts: map[string]api.FleetHost{},
		Channels: map[string]api.FleetChannel{arenaChannel: {RolloutPolicy: "one", FreshnessWindow: api.Duration(24 * time.Hour)}},
		RolloutPolicies: map[string]api.Policy{"one": {
			Waves:           []api.Wave{{Selector: &api.Selector{All: true}}},
			OnHealthFailure: api.RollbackAndHalt,
			MaxFailures:     &api.Amount{Value: 100, Percent: true},
		}},
	}
	for _, name := range hosts {
		f.Hosts[name] = api.FleetHost{System: "x86_64-linux", Channel: arenaChannel, Tags: []string{"all"}}
	}
	return f
}

func (a *arena) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

// start runs the control plane, and returns once it is ready.
func (a *arena) start() {
	a.t.Helper()
	config, err := controlplane.Load(a.layout.ControlPlaneConfig)
	a.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan [2]string, 1), make(chan error, 1)
	go func() {
		done <- controlplane.Run(ctx, config, controlplane.Options{
			Logger: slog.New(slog.NewTextHandler(a.log, nil)), Clock: clock.System{}, Version: "test",
			Ready: func(address, metrics net.Addr) { ready <- [2]string{address.String(), metrics.String()} },
		})
	}()
	select {
	case addresses := <-ready:
		a.address, a.metrics = addresses[0], addresses[1]
	case err := <-done:
		a.t.Fatalf("the control plane did not start: %v\n%s", err, a.log)
	case <-time.After(patience):
		a.t.Fatalf("the control plane is not ready:\n%s", a.log)
	}
	a.operator, err = operator.New(operator.Context{
		ControlPlane: "https://" + a.address, CA: a.layout.CACert, Cert: a.layout.OperatorCert, Key: a.layout.OperatorKey,
	})
	a.must(err)
	a.stop = func() error {
		a.stop = func() error { return nil }
		a.operator.Close()
		cancel()
		return <-done
	}
}

// closure is what a host runs after the nth release, or before the first for 0.
func closure(name string, n int) string {
	return lab.Machine{Name: name}.Closure(lab.Version{Number: fmt.Sprint(n)})
}

// release publishes a new release of the whole fleet, and waits until it is under way.
func (a *arena) release() string {
	a.t.Helper()
	a.publish()
	return a.opens()
}

func (a *arena) publish() {
	a.t.Helper()
	a.released++
	a.fleet.Commit = fmt.Sprintf("%040x", 0xabc0000+a.released)
	for name, h := range a.fleet.Hosts {
		h.Closure = closure(name, a.released)
		a.fleet.Hosts[name] = h
	}
	document, err := json.Marshal(a.fleet)
	a.must(err)
	options, err := a.layout.Release(now())
	a.must(err)
	_, err = release.Create(a.t.Context(), release.CreateOptions{Options: options, Fleet: document, FleetName: "fleet.json"})
	a.must(err)
}

// opens waits until the newest rollout is Active, and returns its id.
func (a *arena) opens() string {
	a.t.Helper()
	id := a.current()
	a.eventually("the release is adopted and opens", func() bool {
		r, err := a.operator.Rollout(a.t.Context(), id)
		return err == nil && r.State == api.RolloutActive
	})
	return id
}

// current is the id of the newest rollout.
func (a *arena) current() string { return arenaChannel + "@" + a.fleet.Commit }

// revoke publishes additions to the revocations.
func (a *arena) revoke(o release.RevokeOptions) {
	a.t.Helper()
	options, err := a.layout.Release(now())
	a.must(err)
	o.Options, o.Reason = options, "stolen"
	_, err = release.Revoke(a.t.Context(), o)
	a.must(err)
}

// host is what operators see of a host.
func (a *arena) host(name string) api.Host {
	a.t.Helper()
	h, err := a.operator.Host(a.t.Context(), name)
	a.must(err)
	return h
}

// eventually asks until it is told true.
func (a *arena) eventually(what string, is func() bool) {
	a.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-deadline.C:
			a.t.Fatalf("not within %s: %s", patience, what)
		case <-tick.C:
		}
	}
}

// over ends an attack: it checks that nothing came of it but what hosts may say of themselves.
func (a *arena) over() {
	a.t.Helper()
	a.good.converge(a.current())
	before := a.picture()
	if err := a.stop(); err != nil {
		a.t.Fatalf("the control plane ended with %v", err)
	}
	a.checkLog()
	a.forgetSnapshots()
	a.start()
	if diff := cmp.Diff(before, a.picture()); diff != "" {
		a.t.Errorf("the log adds up to something else than was seen:\n%s", diff)
	}
	for line := range strings.Lines(a.log.String()) {
		if strings.Contains(line, "level=ERROR") {
			a.t.Errorf("the control plane complained: %s", line)
		}
	}
}

// picture is all that operators see, but for when hosts were last heard.
func (a *arena) picture() (all struct {
	Hosts    []api.Host
	Rollouts []api.Rollout
	Channels []api.Channel
}) {
	a.t.Helper()
	c := a.operator
	for h, err := range c.Hosts(a.t.Context(), operator.HostFilter{}) {
		a.must(err)
		h.LastHeartbeatAt, h.Reachable = nil, false
		all.Hosts = append(all.Hosts, h)
	}
	for r, err := range c.Rollouts(a.t.Context()) {
		a.must(err)
		all.Rollouts = append(all.Rollouts, r)
	}
	for ch, err := range c.Channels(a.t.Context()) {
		a.must(err)
		all.Channels = append(all.Channels, ch)
	}
	return all
}

// checkLog compares the log with what each host was acknowledged. The control plane is stopped.
func (a *arena) checkLog() {
	a.t.Helper()
	a.recorded = a.entries()
	recorded := map[string][]said{}
	for _, e := range a.recorded {
		if event, ok := e.Body.(rollout.HostEvent); ok {
			recorded[e.Hostname] = append(recorded[e.Hostname], said{
				event.JournalID, e.RolloutID, event.Event.Seq, event.Event.Kind, event.Refused,
			})
		}
	}
	for _, h := range a.actors {
		got, want := recorded[h.name], h.acknowledged
		delete(recorded, h.name)
		for _, list := range [][]said{got, want} {
			slices.SortStableFunc(list, func(a, b said) int { return strings.Compare(a.Journal+a.Rollout, b.Journal+b.Rollout) })
		}
		if diff := cmp.Diff(want, got); diff != "" {
			a.t.Errorf("the log of %s is not what it was acknowledged (-acknowledged +log):\n%s", h.name, diff)
		}
	}
	for name, list := range recorded {
		a.t.Errorf("the log has events of %s, which sent none: %v", name, list)
	}
}

// entries reads the whole log from the database of a control plane that is stopped.
func (a *arena) entries() []rollout.Entry {
	a.t.Helper()
	db, err := sqlite.Open(a.t.Context(), a.layout.ServerState, clock.System{})
	a.must(err)
	defer func() { a.must(db.Close()) }()
	var all []rollout.Entry
	for e, err := range db.Entries(a.t.Context(), 0) {
		a.must(err)
		body, err := rollout.DecodeBody(rollout.Kind(e.Kind), e.Body)
		a.must(err)
		all = append(all, rollout.Entry{LogSeq: e.Seq, RolloutID: e.RolloutID, Hostname: e.Hostname, Body: body})
	}
	return all
}

// forgetSnapshots has the next start read the log from its beginning.
func (a *arena) forgetSnapshots() {
	a.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(a.layout.ServerState, sqlite.File))
	a.must(err)
	defer func() { a.must(db.Close()) }()
	_, err = db.ExecContext(a.t.Context(), "DELETE FROM snapshots")
	a.must(err)
}
