package ui

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/charmbracelet/x/ansi"
	"github.com/charmbracelet/x/term"
)

// narrow is the width of a terminal that does not say how wide it is, in characters.
const narrow = 80

// Live is a block of lines at the end of a terminal that is drawn again in place; what is printed goes
// above it for good. Two escape sequences that every terminal has do it: a framework for whole-screen
// programs would take the terminal over (docs/adr/0003-redraw-by-hand.md). It is not safe for
// concurrent use.
type Live struct {
	out   *os.File
	paint io.Writer
	drawn int
}

// NewLive returns a Live on a terminal, with nothing drawn.
func NewLive(out *os.File) *Live { return &Live{out: out, paint: Writer(out)} }

// Draw prints text, which is "" or ends in a line feed, and draws block below it in place of the last
// one. Lines of the block are cut at the terminal's width. A terminal that went away shows nothing.
func (l *Live) Draw(text string, block []string) {
	width, height, err := term.GetSize(l.out.Fd())
	if err != nil || width <= 0 {
		width, height = narrow, len(block)+1
	}
	if len(block) >= height { // what has scrolled away cannot be drawn again
		block = block[:max(0, height-1)]
	}
	var b strings.Builder
	if l.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r\x1b[J", l.drawn) // up, and clear from there
	}
	b.WriteString(text)
	for _, line := range block {
		b.WriteString(ansi.Truncate(line, width-1, "…") + "\n")
	}
	l.drawn = len(block)
	_, _ = io.WriteString(l.paint, b.String())
}
