package probe

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/strictjson"
)

// Bounds of what a health-checks.json may ask for.
const (
	maxFile     = 1 << 20
	maxName     = 128
	maxArgument = 64
	minInterval = 100 * time.Millisecond
	maxInterval = 24 * time.Hour
	maxTimeout  = 10 * time.Minute
)

// defaultTimeout is that of an evidence probe that names none; for all other kinds it is required.
const defaultTimeout = 10 * time.Second

// Load reads health-checks.json. A file that is absent is the empty set; one that cannot be read, or
// asks for what makes no sense, is an error that lists every problem: to the caller a health failure.
func Load(path string) (api.HealthChecks, error) {
	data, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return api.HealthChecks{SchemaVersion: api.SchemaVersion}, nil
	}
	if err != nil {
		return api.HealthChecks{}, fmt.Errorf("reading the health checks: %w", err)
	}
	return Parse(path, data)
}

func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// Parse reads the bytes of a health-checks.json, which what names in errors, and fills defaults in.
func Parse(what string, data []byte) (api.HealthChecks, error) {
	set, err := strictjson.Decode[api.HealthChecks](what, data, maxFile)
	if err != nil {
		return api.HealthChecks{}, err
	}
	if set.SchemaVersion != api.SchemaVersion {
		return api.HealthChecks{}, fmt.Errorf("%s: schemaVersion: is %d; only %d is known", what, set.SchemaVersion, api.SchemaVersion)
	}
	if len(set.Probes) > api.MaxProbes {
		return api.HealthChecks{}, fmt.Errorf("%s: probes: there are %d; at most %d are allowed", what, len(set.Probes), api.MaxProbes)
	}
	var problems []error
	names := map[string]bool{}
	for i := range set.Probes {
		p := &set.Probes[i]
		fillIn(p)
		for _, problem := range check(*p) {
			problems = append(problems, fmt.Errorf("%s: probes.%d.%s", what, i, problem))
		}
		if names[p.Name] {
			problems = append(problems, fmt.Errorf("%s: probes.%d.name: %q is there twice", what, i, p.Name))
		}
		names[p.Name] = true
	}
	if len(problems) > 0 {
		return api.HealthChecks{}, errors.Join(problems...)
	}
	return set, nil
}

func fillIn(p *api.Probe) {
	if p.Kind == api.ProbeHTTP && p.ExpectStatus == 0 {
		p.ExpectStatus = 200
	}
	if p.Kind == api.ProbeEvidence && p.Timeout == 0 {
		p.Timeout = api.Duration(defaultTimeout)
	}
}

// check returns every problem of a probe, each as "field: reason".
func check(p api.Probe) (problems []string) {
	refuse := func(field, reason string, args ...any) {
		problems = append(problems, field+": "+fmt.Sprintf(reason, args...))
	}
	if p.Name == "" || len(p.Name) > maxName || !utf8.ValidString(p.Name) || strings.ContainsFunc(p.Name, unicode.IsControl) {
		refuse("name", "is not a name of at most %d printable bytes", maxName)
	}
	switch p.Mode {
	case api.ModeEnforce, api.ModeObserve, api.ModeDisabled:
	default:
		refuse("mode", "is none of enforce, observe and disabled")
	}
	if d := p.Interval.Std(); d < minInterval || d > maxInterval {
		refuse("interval", "is not between %v and %v", minInterval, maxInterval)
	}
	if d := p.Timeout.Std(); d <= 0 || d > maxTimeout {
		refuse("timeout", "is not above 0 and at most %v", maxTimeout)
	}
	switch p.Kind {
	case api.ProbeHTTP:
		if u, err := url.Parse(p.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			refuse("url", "is not an http or https URL")
		}
		if p.ExpectStatus < 100 || p.ExpectStatus > 599 {
			refuse("expectStatus", "is not between 100 and 599")
		}
	case api.ProbeTCP:
		if !validAddress(p.Address) {
			refuse("address", "is not a host and port such as 127.0.0.1:22")
		}
	case api.ProbeExec:
		if len(p.Command) == 0 || len(p.Command) > maxArgument || p.Command[0] == "" {
			refuse("command", "is not a program and at most %d arguments", maxArgument-1)
		}
		if p.ExpectExitCode < 0 || p.ExpectExitCode > 255 {
			refuse("expectExitCode", "is not between 0 and 255")
		}
	case api.ProbeSystemd:
		if p.MaxFailedUnits < 0 {
			refuse("maxFailedUnits", "is negative")
		}
	case api.ProbeEvidence:
		if p.Path == "" || p.Framework == "" {
			refuse("path", "is required for evidence, and a framework")
		}
	default:
		refuse("kind", "is none of http, tcp, exec, systemd and evidence")
	}
	return problems
}

func validAddress(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	n, err := strconv.Atoi(port)
	return err == nil && n > 0 && n < 1<<16
}
