package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExitCodesAndWhereThingsArePrinted(t *testing.T) {
	wrong := filepath.Join(t.TempDir(), "agent.toml")
	if err := os.WriteFile(wrong, []byte("hostname = \"web-01\"\nnonsense = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string // what each must have; "" means that it is empty
	}{
		{"", exitUsage, "", "Commands:"},
		{"--help", exitDone, "nixfleet-agent COMMAND", ""},
		{"--version", exitDone, "nixfleet-agent", ""},
		{"run --help", exitDone, "--tls-enrollment-token", ""},
		{"enroll --help", exitDone, "Examples:\n  nixfleet-agent enroll", ""},
		{"walk", exitUsage, "", `there is no command "walk"`},
		{"run --walk", exitUsage, "", "-walk"},
		{"run fast", exitUsage, "", `"fast" is not a flag`},
		{"run --log-level loud", exitUsage, "", "none of debug"},
		{"run --config /nonexistent/agent.toml", exitFailed, "", "no such file"},
		{"run --config " + wrong, exitFailed, "", "line 2: nonsense: there is no such key"},
		{"enroll --config " + wrong + " --hostname web_01", exitFailed, "", `hostname: "web_01" is not a host name`},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), strings.Fields(c.args), &stdout, &stderr)
		if code != c.code || !has(&stdout, c.stdout) || !has(&stderr, c.stderr) {
			t.Errorf("nixfleet-agent %s: exit %d, want %d\nstdout: %s\nstderr: %s", c.args, code, c.code, &stdout, &stderr)
		}
	}
}

func has(b *bytes.Buffer, want string) bool {
	if want == "" {
		return b.Len() == 0
	}
	return strings.Contains(b.String(), want)
}
