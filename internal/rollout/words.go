package rollout

import (
	"fmt"
	"time"
)

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func isAre(n int) string {
	if n == 1 {
		return "1 is"
	}
	return fmt.Sprintf("%d are", n)
}

// ago writes how long ago t was.
func ago(t, now time.Time) string {
	d := now.Sub(t).Round(time.Second)
	if d < 0 {
		d = 0
	}
	return d.String()
}

// sinceWords says for how long a host has not been heard.
func (f *Fleet) sinceWords(h *host, now time.Time) string {
	since := f.silentSince(h)
	if since.IsZero() {
		return "so far"
	}
	return "for " + ago(since, now)
}

// words says in plain words what a gate waits for.
func (f *Fleet) words(m *member, b block, now time.Time) string { return string(b.gate) }
