package agent

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/activation"
	"nixfleet.dev/nixfleet/internal/agent/activation/directory"
	"nixfleet.dev/nixfleet/internal/agent/probe"
	"nixfleet.dev/nixfleet/internal/agent/reducer"
)

// newBackend makes the configured backend.
func (a *agent) newBackend() (activation.Backend, error) {
	settings := a.c.Activation
	if settings.Backend != "directory" {
		return nil, fmt.Errorf("%w: %q", errUnknownBackend, settings.Backend)
	}
	return directory.New(directory.Options{
		StateDir: a.c.StateDir, Store: settings.Store, Profile: settings.Profile,
		CurrentSystem: settings.CurrentSystem, HealthChecks: settings.HealthChecks,
		Helper: a.o.Helper, Clock: a.o.Clock,
	})
}

// probes is internal/agent/probe as the reducer wants it.
type probes struct{ runner *probe.Runner }

func (a *agent) newProbes() reducer.Probes {
	return probes{probe.NewRunner(a.o.Clock)}
}

func (p probes) Load(path string) (api.HealthChecks, error) { return probe.Load(path) }

func (p probes) Run(ctx context.Context, set api.HealthChecks, report func(reducer.ProbeRun)) error {
	return p.runner.Run(ctx, set, func(r probe.Result) {
		report(reducer.ProbeRun{Probe: r.Probe, At: r.At, Status: r.Status, Reason: r.Reason, SubResults: r.SubResults})
	})
}

// unknownBoot is the id where the system has none: every start is then taken for the same boot.
const unknownBoot = "unknown"

// bootID tells one boot of the machine from the next.
func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return unknownBoot
	}
	return strings.TrimSpace(string(data))
}

// uptime is how long the machine has been up, 0 where the system does not say.
func uptime() time.Duration {
	data, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(data), " ")
	seconds, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return time.Duration(seconds * float64(time.Second))
}
