// Package ui is how the command line and the demo look: colours of states, bars of waves, tables and
// spans of time. It only makes strings and writers; it never reads input. Colours go away by
// themselves where the output is no terminal or NO_COLOR is set.
package ui

import (
	"fmt"
	"image/color"
	"io"
	"os"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/colorprofile"
	"github.com/charmbracelet/x/term"

	"nixfleet.dev/nixfleet/api"
)

// Writer returns w with what its terminal cannot show (or NO_COLOR forbids) taken out of the styles.
func Writer(w io.Writer) io.Writer { return colorprofile.NewWriter(w, os.Environ()) }

// Terminal returns the terminal that w writes to, if it is one that can be redrawn, and otherwise nil.
func Terminal(w io.Writer) *os.File {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(f.Fd()) || os.Getenv("TERM") == "dumb" || os.Getenv("TERM") == "" {
		return nil
	}
	return f
}

var (
	green  = lipgloss.Color("#2da44e")
	blue   = lipgloss.Color("#3b82f6")
	amber  = lipgloss.Color("#d29922")
	red    = lipgloss.Color("#e5534b")
	violet = lipgloss.Color("#a371f7")
	grey   = lipgloss.Color("#8b949e")
)

// look is how one state is drawn: its colour, and the character of its part of a bar, which tells
// states apart where there are no colours.
type look struct {
	color color.Color
	cell  string
}

var hostLooks = map[api.HostState]look{
	api.Idle:           {grey, "·"},
	api.Pending:        {grey, "·"},
	api.Activating:     {blue, "▒"},
	api.Deferred:       {violet, "▒"},
	api.Soaking:        {amber, "▓"},
	api.HostConverged:  {green, "█"},
	api.Reverting:      {red, "◂"},
	api.Reverted:       {red, "◀"},
	api.Failed:         {red, "✗"},
	api.HostSuperseded: {grey, "-"},
	api.Skipped:        {grey, "/"},
}

var rolloutColors = map[api.RolloutState]color.Color{
	api.RolloutWaiting:     grey,
	api.RolloutActive:      blue,
	api.RolloutPaused:      amber,
	api.RolloutHalted:      red,
	api.RolloutRollingBack: red,
	api.RolloutRolledBack:  red,
	api.RolloutConverged:   green,
	api.RolloutCancelled:   grey,
	api.RolloutSuperseded:  grey,
}

// Host styles a host's state.
func Host(s api.HostState) string { return paint(hostLooks[s].color, string(s)) }

// Rollout styles a rollout's state.
func Rollout(s api.RolloutState) string { return paint(rolloutColors[s], string(s)) }

// Good, Bad and Warn style short verdicts; Dim what matters less, Bold what matters more.
func Good(s string) string { return paint(green, s) }

// Bad styles what went wrong.
func Bad(s string) string { return paint(red, s) }

// Warn styles what needs a look.
func Warn(s string) string { return paint(amber, s) }

// Dim styles what matters less.
func Dim(s string) string { return paint(grey, s) }

// Bold styles what matters more.
func Bold(s string) string { return lipgloss.NewStyle().Bold(true).Render(s) }

func paint(c color.Color, s string) string {
	if c == nil || s == "" {
		return s
	}
	return lipgloss.NewStyle().Foreground(c).Render(s)
}

// barOrder is the order of a bar's parts: what is done on the left, what has not begun on the right.
var barOrder = []api.HostState{
	api.HostConverged, api.Deferred, api.Soaking, api.Activating, api.Reverting, api.Reverted, api.Failed,
	api.Skipped, api.HostSuperseded, api.Pending, api.Idle,
}

// Bar draws how many hosts are in which state, width characters wide: every state that any host is in
// has at least one character.
func Bar(counts map[api.HostState]int, width int) string {
	total := 0
	for _, n := range counts {
		total += n
	}
	if total == 0 {
		return Dim(strings.Repeat("·", width))
	}
	cells := shares(counts, total, width)
	var b strings.Builder
	for i, state := range barOrder {
		look := hostLooks[state]
		b.WriteString(paint(look.color, strings.Repeat(look.cell, cells[i])))
	}
	return b.String()
}

// shares cuts width into the parts of barOrder by largest remainder, none that counts below one.
func shares(counts map[api.HostState]int, total, width int) []int {
	cells := make([]int, len(barOrder))
	used := 0
	for i, state := range barOrder {
		if n := counts[state]; n > 0 {
			cells[i] = max(1, n*width/total)
			used += cells[i]
		}
	}
	for used != width {
		best := -1
		for i, state := range barOrder {
			want := counts[state]*width - cells[i]*total
			switch {
			case counts[state] == 0 || used > width && cells[i] <= 1:
			case best < 0, used < width && want > counts[barOrder[best]]*width-cells[best]*total,
				used > width && want < counts[barOrder[best]]*width-cells[best]*total:
				best = i
			}
		}
		if best < 0 {
			break
		}
		if used < width {
			cells[best], used = cells[best]+1, used+1
		} else {
			cells[best], used = cells[best]-1, used-1
		}
	}
	return cells
}

// Counts writes the numbers behind a bar: "3 Converged, 1 Soaking".
func Counts(counts map[api.HostState]int) string {
	var parts []string
	for _, state := range barOrder {
		if n := counts[state]; n > 0 {
			parts = append(parts, paint(hostLooks[state].color, fmt.Sprintf("%d %s", n, state)))
		}
	}
	return strings.Join(parts, ", ")
}

// Table writes rows under headers in columns that line up; no lines around them.
func Table(w io.Writer, headers []string, rows [][]string) error {
	widths := make([]int, len(headers))
	for i, h := range headers {
		widths[i] = lipgloss.Width(h)
	}
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], lipgloss.Width(cell))
		}
	}
	styled := make([]string, len(headers))
	for i, h := range headers {
		styled[i] = Dim(h)
	}
	for _, row := range append([][]string{styled}, rows...) {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-lipgloss.Width(cell)+2))
			}
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(line.String(), " ")); err != nil {
			return err
		}
	}
	return nil
}

// Span writes a duration as people say it, to two units: "4m12s", "3h5m", "2d4h".
func Span(d time.Duration) string {
	switch d = d.Round(time.Second); {
	case d < 0:
		return "-" + Span(-d)
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	}
}

// Closure shortens a closure for a column: the first eight characters of the hash, and the name.
func Closure(closure string) string {
	if hash, name, ok := strings.Cut(closure, "-"); ok && len(hash) == 32 {
		return hash[:8] + "…-" + name
	}
	return closure
}

// Ref shortens a ref to twelve characters.
func Ref(ref string) string {
	if len(ref) > 12 {
		return ref[:12]
	}
	return ref
}
