package demo

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
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
	program *tea.Program
	done    chan struct{}
	clock   clock.Clock
	began   time.Time
	last    api.Rollout
}

func newLive(ctx context.Context, out *os.File, clk clock.Clock) *live {
	l := &live{done: make(chan struct{}), clock: clk}
	l.program = tea.NewProgram(liveModel{clock: clk}, tea.WithContext(ctx), tea.WithOutput(out), tea.WithInput(nil), tea.WithoutSignalHandler())
	go func() {
		defer close(l.done)
		_, _ = l.program.Run() // it ends with ctx or by Quit; a terminal that went away ends it too
	}()
	return l
}

func (l *live) begin(title, what string) {
	l.began, l.last = l.clock.Now(), api.Rollout{}
	l.say("\n%s\n%s", ui.Bold(title), explain(what))
	l.program.Send(stepMsg{began: l.began, running: true})
}

func (l *live) waves(r api.Rollout) {
	l.last = r
	l.program.Send(r)
}

func (l *live) end(ok bool, outcome string) {
	l.program.Send(stepMsg{})
	for _, line := range waveLines(l.last) {
		l.say("%s", line)
	}
	l.say("%s", verdict(ok, outcome, l.clock.Now().Sub(l.began)))
}

func (l *live) say(format string, args ...any) { l.program.Println(fmt.Sprintf(format, args...)) }

func (l *live) close() {
	l.program.Quit()
	<-l.done
}

// stepMsg starts or ends the running step.
type stepMsg struct {
	began   time.Time
	running bool
}

type tickMsg struct{}

func tick() tea.Cmd {
	return tea.Tick(100*time.Millisecond, func(time.Time) tea.Msg { return tickMsg{} })
}

// liveModel is what is redrawn: the bars of the running step, and how long it has run.
type liveModel struct {
	clock   clock.Clock
	step    stepMsg
	rollout api.Rollout
	frame   int
}

func (m liveModel) Init() tea.Cmd { return tick() }

func (m liveModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tickMsg:
		m.frame++
		return m, tick()
	case stepMsg:
		m.step, m.rollout = msg, api.Rollout{}
	case api.Rollout:
		m.rollout = msg
	}
	return m, nil
}

var frames = []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}

func (m liveModel) View() tea.View {
	if !m.step.running {
		return tea.NewView("")
	}
	var b strings.Builder
	for _, line := range waveLines(m.rollout) {
		b.WriteString(line + "\n")
	}
	state := "working"
	if m.rollout.State != "" {
		state = ui.Rollout(m.rollout.State)
	}
	fmt.Fprintf(&b, "  %s %s %s", frames[m.frame%len(frames)], state,
		ui.Dim(fmt.Sprintf("%.1f s", m.clock.Now().Sub(m.step.began).Seconds())))
	return tea.NewView(b.String())
}
