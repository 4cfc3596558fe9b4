package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"nixfleet.dev/nixfleet/internal/agent"
	"nixfleet.dev/nixfleet/internal/controlplane"
	"nixfleet.dev/nixfleet/internal/lab"
	"nixfleet.dev/nixfleet/internal/operator"
)

// start makes the fleet and starts its control plane and agents; it returns once every host has been
// heard. The context that it returns ends when any part of the fleet ends by itself.
func (d *demo) start(ctx context.Context) (context.Context, error) {
	d.screen.begin("A fleet from nothing", "A CA, release and enrollment keys, trust.json, a release repository, a control "+
		"plane on SQLite, and an agent a host that enrols itself with a one-time token and holds a long poll open "+
		"over mutual TLS. Nothing ever connects to a host.")
	if err := os.MkdirAll(filepath.Join(d.dir, "logs"), 0o700); err != nil {
		return ctx, err
	}
	var err error
	d.lab, err = lab.New(ctx, lab.Options{
		Dir: d.dir, Hosts: d.Hosts, Clock: d.Clock,
		Base:             lab.Version{Number: "26.11.0"},
		CanarySoak:       3 * time.Second,
		Soak:             2 * time.Second,
		ProbeInterval:    500 * time.Millisecond,
		FailureThreshold: time.Second,
	})
	if err != nil {
		return ctx, fmt.Errorf("making the fleet: %w", err)
	}
	ctx, d.cancel = context.WithCancelCause(ctx)
	if err := d.startControlPlane(ctx); err != nil {
		return ctx, err
	}
	if err := d.startAgents(ctx); err != nil {
		return ctx, err
	}
	if d.client, err = operator.New(d.lab.Operator()); err != nil {
		return ctx, err
	}
	if err := d.awaitHosts(ctx); err != nil {
		return ctx, fmt.Errorf("waiting for the hosts to enrol: %w", err)
	}
	d.screen.end(true, fmt.Sprintf("%d hosts enrolled with the control plane at %s", d.Hosts, d.lab.ControlPlane()))
	return ctx, nil
}

// work runs part under ctx. A part that ends by itself ends the whole demo.
func (d *demo) work(ctx context.Context, name string, part func(context.Context) error) {
	d.workers.Go(func() {
		err := part(ctx)
		if ctx.Err() == nil {
			d.cancel(fmt.Errorf("%s ended: %w", name, errors.Join(err, errEndedByItself)))
		}
	})
}

var errEndedByItself = errors.New("it was not told to; its log says more")

func (d *demo) startControlPlane(ctx context.Context) error {
	logger, err := d.logger("control-plane.log")
	if err != nil {
		return err
	}
	config, err := controlplane.Load(d.lab.ControlPlaneConfig())
	if err != nil {
		return err
	}
	ready := make(chan struct{})
	d.work(ctx, "the control plane", func(ctx context.Context) error {
		return controlplane.Run(ctx, config, controlplane.Options{
			Logger: logger, Clock: d.Clock, Version: d.Version, Ready: func(_, _ net.Addr) { close(ready) },
		})
	})
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (d *demo) startAgents(ctx context.Context) error {
	for _, m := range d.lab.Machines {
		logger, err := d.logger("agent-" + m.Name + ".log")
		if err != nil {
			return err
		}
		config, err := agent.Load(m.Config())
		if err != nil {
			return err
		}
		d.work(ctx, "the agent of "+m.Name, func(ctx context.Context) error {
			return agent.Run(ctx, config, agent.Options{Logger: logger, Clock: d.Clock, Version: d.Version, Helper: d.Helper})
		})
	}
	return nil
}

// awaitHosts returns once every host's first heartbeat is there.
func (d *demo) awaitHosts(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, d.stepTimeout(), fmt.Errorf("no end within %s", d.stepTimeout()))
	defer cancel()
	for {
		heard := 0
		for h, err := range d.client.Hosts(ctx, operator.HostFilter{}) {
			if err != nil {
				return err
			}
			if h.LastHeartbeatAt != nil {
				heard++
			}
		}
		if heard == d.Hosts {
			return nil
		}
		if err := d.Clock.Sleep(ctx, 150*time.Millisecond); err != nil {
			return err
		}
	}
}

// stop ends every part and waits for it.
func (d *demo) stop() error {
	if d.cancel != nil {
		d.cancel(context.Canceled)
	}
	d.workers.Wait()
	if d.client != nil {
		d.client.Close()
	}
	var errs []error
	if d.lab != nil {
		d.awaitScripts()
		errs = append(errs, d.lab.Close())
	}
	for _, f := range d.logs {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// awaitScripts waits for activation scripts to end: they are detached from their agents, so that an agent
// can be replaced by its own switch, and would go on writing to a folder that is to be removed.
func (d *demo) awaitScripts() {
	running := func(m lab.Machine) bool {
		switches, err := m.Switches()
		return err == nil && len(switches) > 0 && !switches[len(switches)-1].Finished
	}
	for range 10 * switchTakes / scriptPoll {
		if !slices.ContainsFunc(d.lab.Machines, running) {
			return
		}
		_ = d.Clock.Sleep(context.Background(), scriptPoll) // its context does not end
	}
}

const scriptPoll = 50 * time.Millisecond
