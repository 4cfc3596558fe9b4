package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"nixfleet.dev/nixfleet/internal/agent/accept"
	"nixfleet.dev/nixfleet/internal/agent/activation"
	"nixfleet.dev/nixfleet/internal/agent/client"
	"nixfleet.dev/nixfleet/internal/agent/durable"
	"nixfleet.dev/nixfleet/internal/agent/enroll"
	"nixfleet.dev/nixfleet/internal/agent/heartbeat"
	"nixfleet.dev/nixfleet/internal/agent/journal"
	"nixfleet.dev/nixfleet/internal/agent/longpoll"
	"nixfleet.dev/nixfleet/internal/agent/manifestcache"
	"nixfleet.dev/nixfleet/internal/agent/outbound"
	"nixfleet.dev/nixfleet/internal/agent/reducer"
	"nixfleet.dev/nixfleet/internal/agent/trustfile"
	"nixfleet.dev/nixfleet/internal/clock"
)

// Options are what an agent has from the program that it runs in.
type Options struct {
	Logger  *slog.Logger // without the host, which the agent adds to every line
	Clock   clock.Clock
	Version string
	// Helper is the command that runs a detached switch: a program whose main calls
	// directory.HelperMain first. Empty is this very program.
	Helper []string
}

// Run is the whole life of an agent: it reads the journal, enrols where it must, and runs every worker
// until ctx ends, which takes under two seconds and returns nil. An error means that the agent cannot
// go on; starting it again is right. It may be called many times in one process, for different state
// folders.
func Run(ctx context.Context, c Config, o Options) error {
	a := &agent{c: c, o: o, log: o.Logger.With("host", c.Hostname), certified: make(chan struct{})}
	defer a.close()
	err := a.openMachine()
	if err == nil {
		err = a.run(ctx)
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// run runs every worker. Where those that need a control plane cannot be made, the reducer alone runs
// as long as the host may have to go back: from a release that spoilt the agent's own files, say.
func (a *agent) run(ctx context.Context) error {
	if err := a.openFleet(); err != nil {
		if !a.reducer.View().Busy() {
			return err
		}
		return supervise(ctx, []worker{
			{"reducer", a.reducer.Run},
			{"agent", func(ctx context.Context) error { return a.onceIdle(ctx, err) }},
		})
	}
	a.log.Info("agent runs", "version", a.o.Version, "journal", a.reducer.View().JournalID, "controlPlanes", a.c.ControlPlanes)
	return supervise(ctx, a.workers())
}

// Enroll gets this host its certificate by its token, unless it has a good one, and returns.
func Enroll(ctx context.Context, c Config, o Options) error {
	a := &agent{c: c, o: o, log: o.Logger.With("host", c.Hostname)}
	defer a.close()
	if err := a.connect(); err != nil {
		return err
	}
	return a.certificate.Ensure(ctx)
}

// agent is one agent's parts.
type agent struct {
	c   Config
	o   Options
	log *slog.Logger

	closers []io.Closer // in the order in which they were opened

	client      *client.Client
	certificate *enroll.Host
	certified   chan struct{} // closed once there is a certificate
	trust       *trustfile.File
	backend     activation.Backend
	bootID      string
	keeper      *accept.Keeper
	cache       *manifestcache.Cache
	setAside    *outbound.Folder
	reducer     *reducer.Reducer
	heartbeat   *heartbeat.Worker
	outbound    *outbound.Worker
	longpoll    *longpoll.Worker
}

func (a *agent) close() {
	for i := len(a.closers) - 1; i >= 0; i-- {
		if err := a.closers[i].Close(); err != nil {
			a.log.Warn("closing failed", "err", err)
		}
	}
}

func (a *agent) closing(c io.Closer) { a.closers = append(a.closers, c) }

// connect makes the client, and who looks after its certificate.
func (a *agent) connect() (err error) {
	a.client, err = client.New(client.Options{
		ControlPlanes: a.c.ControlPlanes, CA: a.c.TLS.CA, Cert: a.c.TLS.Cert, Key: a.c.TLS.Key,
		Version: a.o.Version, Clock: a.o.Clock, Logger: a.log,
	})
	if err != nil {
		return err
	}
	a.closing(a.client)
	a.certificate = enroll.New(enroll.Options{
		Hostname: a.c.Hostname, Cert: a.c.TLS.Cert, Key: a.c.TLS.Key, Token: a.c.TLS.EnrollmentToken,
		ErrorBackoff: a.c.ErrorBackoff, ControlPlane: a.client, Clock: a.o.Clock, Logger: a.log,
	})
	return nil
}

// openMachine makes what takes this host from one system to another. It needs no control plane, and
// nothing that says whom to believe. The journal is first: it holds the lock that keeps two agents out
// of one state folder.
func (a *agent) openMachine() error {
	j, replay, err := journal.Open(journal.Options{Dir: a.c.StateDir})
	if err != nil {
		return err
	}
	a.closing(j)
	if replay.SetAside != "" {
		a.log.Error("the journal was damaged; it is set aside and a new one begun", "file", replay.SetAside, "err", replay.Damage)
	}
	if a.backend, err = a.newBackend(); err != nil {
		return err
	}
	a.bootID = bootID()
	return a.openReducer(j, replay.Records)
}

// openReducer has the reducer go on from the journal. One that it cannot decode, since a newer agent
// wrote it before the host went back, say, is set aside, and a new one begins from what the machine shows.
func (a *agent) openReducer(j *journal.Journal, records [][]byte) (err error) {
	o := reducer.Options{
		Hostname: a.c.Hostname, BootID: a.bootID, Journal: j, Records: records,
		Backend: a.backend, Probes: a.newProbes(), Clock: a.o.Clock, Logger: a.log,
		Heartbeat: func(ctx context.Context) error { return a.reach(ctx, (*heartbeat.Worker).Beat) },
		Confirm:   func(ctx context.Context) error { return a.reach(ctx, (*heartbeat.Worker).Confirm) },
	}
	a.reducer, err = reducer.New(o)
	if !errors.Is(err, reducer.ErrUndecodable) {
		return err
	}
	file, asideErr := j.SetAside()
	if asideErr != nil {
		return errors.Join(err, asideErr)
	}
	a.log.Error("this agent cannot read the journal; it is set aside and a new one begun", "file", file, "err", err)
	o.Records = nil
	a.reducer, err = reducer.New(o)
	return err
}

// reach asks a control plane, where there is who can.
func (a *agent) reach(ctx context.Context, ask func(*heartbeat.Worker, context.Context) error) error {
	if a.heartbeat == nil {
		return errors.New("no control plane can be asked")
	}
	return ask(a.heartbeat, ctx)
}

// openFleet makes what deals with a control plane: whom to believe, the client, and the workers.
func (a *agent) openFleet() (err error) {
	if a.trust, err = trustfile.Open(a.c.TrustFile, a.log); err != nil {
		return err
	}
	if err := a.connect(); err != nil {
		return err
	}
	dir, err := durable.OpenDir(a.c.StateDir)
	if err != nil {
		return err
	}
	a.closing(dir)
	a.keeper, err = accept.Open(accept.Options{
		Dir: dir, Root: a.trust.Root, Hostname: a.c.Hostname, Channels: a.c.Channels, Clock: a.o.Clock, Logger: a.log,
	})
	if err != nil {
		return err
	}
	if a.cache, err = manifestcache.Open(a.c.StateDir); err != nil {
		return err
	}
	a.closing(a.cache)
	if a.setAside, err = outbound.OpenFolder(a.c.StateDir); err != nil {
		return err
	}
	a.closing(a.setAside)
	a.employ()
	return nil
}

// employ makes the workers that talk to the control plane.
func (a *agent) employ() {
	a.outbound = outbound.New(outbound.Options{
		ControlPlane: a.client, Reducer: a.reducer, SetAside: a.setAside,
		ErrorBackoff: a.c.ErrorBackoff, Clock: a.o.Clock, Logger: a.log,
	})
	a.heartbeat = heartbeat.New(heartbeat.Options{
		Hostname: a.c.Hostname, Version: a.o.Version, BootID: a.bootID, TrustSHA256: a.trust.SHA256, Uptime: uptime,
		Interval: a.c.HeartbeatInterval, ErrorBackoff: a.c.ErrorBackoff,
		ControlPlane: a.client, Reducer: a.reducer, Keeper: a.keeper, Machine: a.backend, Heard: a.outbound.Heard,
		Clock: a.o.Clock, Logger: a.log,
	})
	a.longpoll = longpoll.New(longpoll.Options{
		Hostname: a.c.Hostname, ErrorBackoff: a.c.ErrorBackoff, Observe: a.c.Activation.Observe, After: a.heartbeat.First(),
		ControlPlane: a.client, Reducer: a.reducer, Cache: a.cache, Keeper: a.keeper, Current: a.backend.Current,
		Resend: a.outbound.Resend, Between: a.heartbeat.Between,
		Clock: a.o.Clock, Logger: a.log,
	})
}

// workers lists what runs. The reducer waits for nobody: what was begun on this host goes on, and back
// where it must, whatever its certificate is like and whoever can be reached.
func (a *agent) workers() []worker {
	return []worker{
		{"reducer", a.reducer.Run},
		{"certificate", a.certify},
		{"heartbeat", a.onceCertified(a.heartbeat.Run)},
		{"longpoll", a.onceCertified(a.longpoll.Run)},
		{"outbound", a.onceCertified(a.outbound.Run)},
	}
}

// onceCertified has a worker wait until this host can show a certificate.
func (a *agent) onceCertified(run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-a.certified:
			return run(ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// certify gets this host its certificate, and then looks after it.
func (a *agent) certify(ctx context.Context) error {
	if err := a.certificate.Ensure(ctx); err != nil {
		return a.onceIdle(ctx, fmt.Errorf("this host has no certificate: %w", err))
	}
	close(a.certified)
	return a.certificate.Run(ctx)
}

// idlePause is between two looks at whether the host may still have to go back.
const idlePause = time.Second

// onceIdle returns err once the host has come to rest on one system.
func (a *agent) onceIdle(ctx context.Context, err error) error {
	if a.reducer.View().Busy() {
		a.log.Error("this agent cannot go on; it ends once what it has begun on this host is over", "err", err)
	}
	for a.reducer.View().Busy() {
		if err := a.o.Clock.Sleep(ctx, idlePause); err != nil {
			return err
		}
	}
	return err
}

var errUnknownBackend = errors.New("there is no such activation backend")
