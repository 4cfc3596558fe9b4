package bootstrap

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
)

//go:embed templates
var templateFiles embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{"q": strconv.Quote}).ParseFS(templateFiles, "templates/*"))

// ports of a control plane whose URL names none, and of its metrics.
const (
	defaultPort = "443"
	metricsPort = "9443"
)

// FirstSteps is the commands that show the example at work, a line each, to be run in Dir.
func (l Layout) FirstSteps() (string, error) {
	var text strings.Builder
	err := templates.ExecuteTemplate(&text, "steps.txt", map[string]any{"Host": l.Host(ExampleHost)})
	return text.String(), err
}

func (w *writer) configurations() error {
	values := map[string]any{
		"Layout": w.layout, "Host": w.layout.Host(ExampleHost), "Closure": exampleClosure,
		"Listen": listenAddress(w.server), "Metrics": metricsAddress(w.server),
		"Source": (&url.URL{Scheme: "file", Path: filepath.ToSlash(w.layout.Repository)}).String(),
	}
	l := w.layout
	for path, name := range map[string]string{
		l.FleetFile: "fleet.json", l.ControlPlaneConfig: "control-plane.toml", l.AgentConfig: "agent.toml",
		l.OperatorConfig: "config.toml", filepath.Join(l.Dir, "README.txt"): "README.txt",
	} {
		var text bytes.Buffer
		if err := templates.ExecuteTemplate(&text, name, values); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
		if err := writePrivate(path, text.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// listenAddress is where a control plane listens that is reached by u: on this machine's loopback only
// if that is what the URL names.
func listenAddress(u *url.URL) string {
	host := u.Hostname()
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		if ip == nil {
			host = "127.0.0.1"
		}
		return net.JoinHostPort(host, portOf(u))
	}
	return net.JoinHostPort("0.0.0.0", portOf(u))
}

func metricsAddress(u *url.URL) string {
	port := metricsPort
	if portOf(u) == port {
		port = "9444"
	}
	return net.JoinHostPort("127.0.0.1", port)
}

func portOf(u *url.URL) string {
	if port := u.Port(); port != "" {
		return port
	}
	return defaultPort
}

// exampleClosure is what the example's host runs: a folder of the directory backend.
var exampleClosure = closureName("nixfleet-example-1")

// closureName makes a name like a store path's of what it is the name of.
func closureName(name string) string {
	const alphabet = "0123456789abcdfghijklmnpqrsvwxyz"
	sum := sha256.Sum256([]byte(name))
	for i, b := range sum {
		sum[i] = alphabet[int(b)%len(alphabet)]
	}
	return string(sum[:]) + "-" + name
}

// example writes the closure of the example's host.
func (w *writer) example() error {
	bin := filepath.Join(w.layout.Store, exampleClosure, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return fmt.Errorf("making the example's closure: %w", err)
	}
	script := "#!/bin/sh\n# A NixOS system starts and stops its services here. This one only says so.\necho \"switching to " + exampleClosure + "\"\n"
	return writeNew(filepath.Join(bin, "switch-to-configuration"), []byte(script), 0o755)
}
