package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"nixfleet.dev/nixfleet/api"
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
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/trust"
)

// Options are what an agent has from the program that it runs in.
type Options struct {
	Logger  *slog.Logger
	Clock   clock.Clock
	Version string
	// Helper is the command that runs a detached switch: a program whose main calls
	// directory.HelperMain first. Empty is this very program.
	Helper []string
}

// Run is the whole life of an agent: it enrols where it must, reads the journal, and runs every worker
// until ctx ends, which takes under two seconds and returns nil. An error means that the agent cannot
// go on; starting it again is right. It may be called many times in one process, for different state
// folders.
func Run(ctx context.Context, c Config, o Options) error {
	a := &agent{c: c, o: o, log: o.Logger.With("host", c.Hostname)}
	defer a.close()
	err := a.open(ctx)
	if err == nil {
		a.log.Info("agent runs", "version", o.Version, "journal", a.reducer.View().JournalID, "controlPlanes", c.ControlPlanes)
		err = supervise(ctx, a.workers())
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
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
	root        *trust.Root
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

// open makes every part, in the order in which they need one another.
func (a *agent) open(ctx context.Context) error {
	if err := a.believe(); err != nil {
		return err
	}
	if err := a.connect(); err != nil {
		return err
	}
	if err := a.certificate.Ensure(ctx); err != nil {
		return fmt.Errorf("this host has no certificate: %w", err)
	}
	if err := a.openState(); err != nil {
		return err
	}
	a.employ()
	return nil
}

// believe reads trust.json, without which no agent starts.
func (a *agent) believe() error {
	data, err := os.ReadFile(a.c.TrustFile)
	if err != nil {
		return fmt.Errorf("read the trust file: %w", err)
	}
	if len(data) > api.MaxTrust {
		return fmt.Errorf("read the trust file: it is over %d bytes", api.MaxTrust)
	}
	a.root, err = trust.ParseRoot(a.c.TrustFile, data)
	return err
}

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

// openState opens everything in the state folder. The journal is first: it holds the lock that keeps
// two agents out of one folder.
func (a *agent) openState() error {
	j, replay, err := journal.Open(journal.Options{Dir: a.c.StateDir})
	if err != nil {
		return err
	}
	a.closing(j)
	if replay.SetAside != "" {
		a.log.Error("the journal was damaged; it is set aside and a new one begun", "file", replay.SetAside, "err", replay.Damage)
	}
	dir, err := durable.OpenDir(a.c.StateDir)
	if err != nil {
		return err
	}
	a.closing(dir)
	a.keeper, err = accept.Open(accept.Options{
		Dir: dir, Root: a.root, Hostname: a.c.Hostname, Channels: a.c.Channels, Clock: a.o.Clock, Logger: a.log,
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
	if a.backend, err = a.newBackend(); err != nil {
		return err
	}
	a.bootID = bootID()
	a.reducer, err = reducer.New(reducer.Options{
		Hostname: a.c.Hostname, BootID: a.bootID, Journal: j, Records: replay.Records,
		Backend: a.backend, Probes: a.newProbes(), Clock: a.o.Clock, Logger: a.log,
		Heartbeat: func(ctx context.Context) error { return a.heartbeat.Beat(ctx) },
		Confirm:   func(ctx context.Context) error { return a.heartbeat.Confirm(ctx) },
	})
	return err
}

// employ makes the workers that talk to the control plane.
func (a *agent) employ() {
	a.outbound = outbound.New(outbound.Options{
		ControlPlane: a.client, Reducer: a.reducer, SetAside: a.setAside,
		ErrorBackoff: a.c.ErrorBackoff, Clock: a.o.Clock, Logger: a.log,
	})
	a.heartbeat = heartbeat.New(heartbeat.Options{
		Hostname: a.c.Hostname, Version: a.o.Version, BootID: a.bootID, TrustSHA256: a.root.SHA256(), Uptime: uptime,
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

func (a *agent) workers() []worker {
	return []worker{
		{"reducer", a.reducer.Run},
		{"heartbeat", a.heartbeat.Run},
		{"longpoll", a.longpoll.Run},
		{"outbound", a.outbound.Run},
		{"certificate", a.certificate.Run},
	}
}

var errUnknownBackend = errors.New("there is no such activation backend")
