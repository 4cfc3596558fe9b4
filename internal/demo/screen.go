package demo

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"charm.land/lipgloss/v2"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/ui"
)

// barWidth is the width of a wave's bar in characters, and textWidth that of explanations.
const (
	barWidth  = 36
	textWidth = 78
)

// screen shows the demo as it runs. Its methods are called from one goroutine.
type screen interface {
	begin(title, what string)       // a step starts, and what it shows
	waves(r api.Rollout)            // how the step's rollout stands
	end(ok bool, outcome string)    // the step is over
	say(format string, args ...any) // lines of their own
	close()
}

// silent is the screen of --json where standard error is no terminal.
type silent struct{}

func (silent) begin(string, string) {}
func (silent) waves(api.Rollout)    {}
func (silent) end(bool, string)     {}
func (silent) say(string, ...any)   {}
func (silent) close()               {}

// plain writes one line for each thing worth knowing: for logs and pipes.
type plain struct {
	out     io.Writer
	clock   clock.Clock
	began   time.Time
	printed []string // a line a wave
}

func (p *plain) begin(title, what string) {
	p.began, p.printed = p.clock.Now(), nil
	fmt.Fprintf(p.out, "\n%s\n%s\n", ui.Bold(title), explain(what))
}

func (p *plain) waves(r api.Rollout) {
	lines := waveLines(r)
	for i, line := range lines {
		if i >= len(p.printed) || p.printed[i] != line {
			fmt.Fprintln(p.out, line)
		}
	}
	p.printed = lines
}

func (p *plain) end(ok bool, outcome string) {
	fmt.Fprintln(p.out, verdict(ok, outcome, p.clock.Now().Sub(p.began)))
}

func (p *plain) say(format string, args ...any) { fmt.Fprintf(p.out, format+"\n", args...) }
func (p *plain) close()                         {}

// explain wraps a step's explanation.
func explain(what string) string {
	var lines []string
	for line := range strings.Lines(lipgloss.Wrap(what, textWidth, "")) {
		lines = append(lines, ui.Dim("  "+strings.TrimRight(line, " \n")))
	}
	return strings.Join(lines, "\n")
}

func verdict(ok bool, outcome string, took time.Duration) string {
	mark := ui.Good("✓")
	if !ok {
		mark = ui.Bad("✗")
	}
	return fmt.Sprintf("  %s %s %s", mark, outcome, ui.Dim(fmt.Sprintf("(%.1f s)", took.Seconds())))
}

// waveLines draws a bar a wave.
func waveLines(r api.Rollout) []string {
	var lines []string
	for _, w := range r.Waves {
		name := "the rest"
		if w.Index == 0 {
			name = "canaries"
		}
		lines = append(lines, fmt.Sprintf("  wave %d %s  %s  %s", w.Index, ui.Dim(name), ui.Bar(w.Counts, barWidth), ui.Counts(w.Counts)))
	}
	return lines
}

// live redraws the running step in place; what is over scrolls up.
type live struct {
	clock clock.Clock
	stop  context.CancelFunc
	done  chan struct{}

	mu      sync.Mutex
	screen  *ui.Live
	running bool
	began   time.Time
	rollout api.Rollout
	frame   int
}

// redraw is how often the running step is drawn again.
const redraw = 100 * time.Millisecond

func newLive(ctx context.Context, out *os.File, clk clock.Clock) *live {
	ctx, stop := context.WithCancel(ctx)
	l := &live{screen: ui.NewLive(out), clock: clk, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for clk.Sleep(ctx, redraw) == nil {
			l.change(func() { l.frame++ }, "")
		}
	}()
	return l
}

// change changes what is shown, with text printed above it for good.
func (l *live) change(f func(), text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	l.screen.Draw(text, l.lines())
}

var frames = []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}

// lines draws the running step.
func (l *live) lines() []string {
	if !l.running {
		return nil
	}
	state := "working"
	if l.rollout.State != "" {
		state = ui.Rollout(l.rollout.State)
	}
	return append(waveLines(l.rollout), fmt.Sprintf("  %s %s %s", frames[l.frame%len(frames)], state,
		ui.Dim(fmt.Sprintf("%.1f s", l.clock.Now().Sub(l.began).Seconds()))))
}

func (l *live) begin(title, what string) {
	l.change(func() { l.running, l.began, l.rollout = true, l.clock.Now(), api.Rollout{} },
		"\n"+ui.Bold(title)+"\n"+explain(what)+"\n")
}

func (l *live) waves(r api.Rollout) { l.change(func() { l.rollout = r }, "") }

func (l *live) end(ok bool, outcome string) {
	lines := append(waveLines(l.rollout), verdict(ok, outcome, l.clock.Now().Sub(l.began)))
	l.change(func() { l.running = false }, strings.Join(lines, "\n")+"\n")
}

func (l *live) say(format string, args ...any) {
	l.change(func() {}, fmt.Sprintf(format+"\n", args...))
}

func (l *live) close() {
	l.stop()
	<-l.done
	l.change(func() { l.running = false }, "")
}
