package ui

import (
	"strings"
	"testing"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
	"pgregory.net/rapid"

	"nixfleet.dev/nixfleet/api"
)

func TestBarIsAsWideAsAskedAndShowsEveryState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		counts := map[api.HostState]int{}
		states := 0
		for _, state := range barOrder {
			if counts[state] = rapid.OneOf(rapid.Just(0), rapid.IntRange(0, 5000)).Draw(t, string(state)); counts[state] > 0 {
				states++
			}
		}
		width := rapid.IntRange(len(barOrder), 80).Draw(t, "width")
		bar := Bar(counts, width)
		if got := lipgloss.Width(bar); got != width {
			t.Fatalf("a bar of %d is %d wide", width, got)
		}
		for _, state := range barOrder {
			if counts[state] > 0 && !strings.Contains(bar, hostLooks[state].cell) {
				t.Fatalf("%s is not in %q", state, bar)
			}
		}
	})
}

func TestSpanReadsAsPeopleSayIt(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 4*time.Minute + 12*time.Second: "4m12s", 185 * time.Minute: "3h5m", 52 * time.Hour: "2d4h", -time.Second: "-1s",
	} {
		if got := Span(d); got != want {
			t.Errorf("%v reads %q, want %q", d, got, want)
		}
	}
}

func TestTableLinesColumnsUp(t *testing.T) {
	var b strings.Builder
	if err := Table(&b, []string{"A", "B"}, [][]string{{Good("long one"), "x"}, {"s", "y"}}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(ansi.Strip(b.String())), "\n")
	for i, want := range []string{"B", "x", "y"} {
		if !strings.HasSuffix(lines[i], want) || lipgloss.Width(lines[i]) != len("long one")+3 {
			t.Errorf("line %d is %q", i, lines[i])
		}
	}
}
