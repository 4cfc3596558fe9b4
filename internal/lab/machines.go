// Package lab is a fleet on one machine: hosts that are folders, closures that are folders with a real
// activation script, a release repository, and the configurations of a control plane and of every
// agent. The demo shows it, the integration tests break it. It starts no agent and no control plane;
// what it says of a machine comes from that machine's own links and logs, never from nixfleet.
package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
)

// Machine is one host: the folder that stands for its disk.
type Machine struct {
	Name   string
	Canary bool
	Dir    string
}

// Version is one release of the software that the fleet runs.
type Version struct {
	Number string        // in a closure's name: "26.11.1"
	Broken bool          // its service answers that it is not healthy
	Fails  bool          // its activation script exits 1
	Switch time.Duration // how long its activation script takes
}

// CurrentSystem is the link to the closure that the machine runs.
func (m Machine) CurrentSystem() string { return filepath.Join(m.Dir, "current-system") }

// Profile is the link to the closure that the machine would boot.
func (m Machine) Profile() string { return filepath.Join(m.Dir, "profile") }

// StateDir is the agent's state_dir.
func (m Machine) StateDir() string { return filepath.Join(m.Dir, "agent") }

// Config is the path of the machine's agent.toml.
func (m Machine) Config() string { return filepath.Join(m.Dir, "agent.toml") }

func (m Machine) switchLog() string { return filepath.Join(m.Dir, "switches.log") }

// Closure is the base name of v's store path for the machine.
func (m Machine) Closure(v Version) string {
	const alphabet = "0123456789abcdfghijklmnpqrsvwxyz" // of Nix's base 32
	name := "nixos-system-" + m.Name + "-" + v.Number
	sum := sha256.Sum256([]byte(name))
	hash := make([]byte, 32)
	for i := range hash {
		hash[i] = alphabet[sum[i]%32]
	}
	return string(hash) + "-" + name
}

// Running returns the closure that the machine's own link says it runs.
func (m Machine) Running() (string, error) {
	target, err := os.Readlink(m.CurrentSystem())
	return filepath.Base(target), err
}

// Switch is one run of an activation script, as the script itself wrote it down.
type Switch struct {
	Closure  string
	Finished bool
}

// ErrOverlap is returned by Switches for a machine on which two activation scripts ran at once.
var ErrOverlap = errors.New("two activation scripts ran at once")

// Switches returns every run of an activation script on the machine, oldest first.
func (m Machine) Switches() ([]Switch, error) {
	data, err := os.ReadFile(m.switchLog())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Switch
	running := map[string]bool{} // pids of scripts that have begun and not ended
	for line := range strings.Lines(string(data)) {
		var what, closure, pid string
		if _, err := fmt.Sscan(line, &what, &closure, &pid); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", m.switchLog(), line, err)
		}
		switch what {
		case "start":
			if len(running) > 0 {
				return nil, fmt.Errorf("%s: %s: %w", m.Name, closure, ErrOverlap)
			}
			running[pid] = true
			all = append(all, Switch{Closure: closure})
		case "done":
			delete(running, pid)
			all[len(all)-1].Finished = true
		}
	}
	return all, nil
}

// switchScript is what every closure has as bin/switch-to-configuration, as a NixOS system does: its
// arguments are how long it takes, in seconds, and its exit code.
const switchScript = `#!/bin/sh
# Makes the machine run this folder. A real system restarts its services here.
name=$(basename "$(dirname "$(dirname "$0")")")
log=$(dirname "$NIXFLEET_CURRENT_SYSTEM")/switches.log
echo "start $name $$" >>"$log"
sleep %.2f
echo "done $name $$" >>"$log"
exit %d
`

// machinesOf lays n machines out below dir; the first canaries of them are canaries.
func machinesOf(dir string, n, canaries int) []Machine {
	digits := max(2, len(fmt.Sprint(n)))
	machines := make([]Machine, n)
	for i := range machines {
		name := fmt.Sprintf("web-%0*d", digits, i+1)
		machines[i] = Machine{Name: name, Canary: i < canaries, Dir: filepath.Join(dir, "hosts", name)}
	}
	return machines
}

// install makes the machine run and boot v, as an installer would have.
func (l *Lab) install(m Machine, v Version) error {
	if err := os.MkdirAll(m.StateDir(), 0o700); err != nil {
		return err
	}
	for _, link := range []string{m.CurrentSystem(), m.Profile()} {
		if err := os.Symlink(filepath.Join(l.Store(), m.Closure(v)), link); err != nil {
			return err
		}
	}
	return nil
}

// Build puts v's closure for every machine into the store, as a build farm and a cache would.
func (l *Lab) Build(v Version) error {
	health, exit := "ok\n", 0
	if v.Broken {
		health = "cannot connect to the database\n"
	}
	if v.Fails {
		exit = 1
	}
	for _, m := range l.Machines {
		checks, err := json.Marshal(api.HealthChecks{SchemaVersion: api.SchemaVersion, Probes: []api.Probe{{
			Name: "web", Kind: api.ProbeHTTP, Mode: api.ModeEnforce, Interval: api.Duration(l.options.ProbeInterval),
			Timeout: api.Duration(2 * time.Second), URL: l.appURL + "/" + m.Name + "/health", ExpectStatus: http.StatusOK,
		}}})
		if err != nil {
			return err
		}
		for _, file := range []struct {
			name, content string
			mode          fs.FileMode
		}{
			{"bin/switch-to-configuration", fmt.Sprintf(switchScript, v.Switch.Seconds(), exit), 0o755},
			{"etc/nixfleet/health-checks.json", string(checks) + "\n", 0o644},
			{"app/health", health, 0o644},
		} {
			path := filepath.Join(l.Store(), m.Closure(v), file.name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(path, []byte(file.content), file.mode); err != nil {
				return err
			}
		}
	}
	return nil
}

// serveApps starts the web service of all machines: each answers as the system it runs makes it answer.
func (l *Lab) serveApps(ctx context.Context) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listening for the machines' web services: %w", err)
	}
	l.appURL = "http://" + listener.Addr().String()
	byName := map[string]Machine{}
	for _, m := range l.Machines {
		byName[m.Name] = m
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{host}/health", func(w http.ResponseWriter, r *http.Request) {
		m, ok := byName[r.PathValue("host")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		health, err := os.ReadFile(filepath.Join(m.CurrentSystem(), "app", "health"))
		if err != nil || strings.TrimSpace(string(health)) != "ok" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = w.Write(health)
	})
	l.apps = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	l.served = make(chan struct{})
	go func() {
		defer close(l.served)
		_ = l.apps.Serve(listener) // until Close
	}()
	return nil
}
