package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet.dev/nixfleet/internal/ui"
)

// print writes what a command found: value as JSON where --json was given, and otherwise what plain
// writes.
func (a *App) print(value any, plain func(w io.Writer) error) error {
	if !a.asJSON {
		return plain(a.Stdout)
	}
	data, err := json.Marshal(value, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		return fmt.Errorf("encoding the output: %w", err)
	}
	_, err = a.Stdout.Write(append(data, '\n'))
	return err
}

// warn writes warnings to stderr.
func (a *App) warn(warnings []string) {
	for _, warning := range warnings {
		fmt.Fprintln(a.Stderr, ui.Warn("warning:")+" "+warning)
	}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// parseTime reads a time of a flag: RFC 3339, or "now" and "" for now.
func parseTime(flag, s string, now time.Time) (time.Time, error) {
	if s == "" || s == "now" {
		return now, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, usagef("--%s %q is not a time such as 2026-11-23T08:00:00Z", flag, s)
	}
	return t.UTC(), nil
}

// examples indents a command's examples as cobra shows them.
func examples(lines ...string) string { return "  " + strings.Join(lines, "\n  ") }
