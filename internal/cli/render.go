package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/ui"
)

// waveBar is the width of a wave's bar in a table.
const waveBar = 24

// overview is what `nixfleet status` shows, and prints with --json.
type overview struct {
	Channels []api.Channel `json:"channels"`
	Rollouts []api.Rollout `json:"rollouts"` // the newest of each channel
	Hosts    hostCounts    `json:"hosts"`
	Trouble  []api.Host    `json:"trouble"` // hosts that someone should look at
}

// hostCounts counts hosts.
type hostCounts struct {
	Total     int                   `json:"total"`
	Reachable int                   `json:"reachable"`
	States    map[api.HostState]int `json:"states"`
}

// maxTrouble is how many hosts in trouble a status names.
const maxTrouble = 20

// troubled says whether someone should look at a host.
func troubled(h api.Host) bool {
	return failed(h) || refuses(h) || h.Overdue || h.Drifted || h.LastHeartbeatAt != nil && !h.Reachable
}

func failed(h api.Host) bool {
	return h.State == api.Failed || h.State == api.Reverted || h.State == api.Reverting
}

func refuses(h api.Host) bool { return h.LastRejection != nil && h.State == api.Pending }

func renderOverview(w io.Writer, o overview, now time.Time) error {
	if len(o.Rollouts) == 0 {
		fmt.Fprintln(w, "Nothing has been released to this fleet.")
	}
	for i, r := range o.Rollouts {
		if i > 0 {
			fmt.Fprintln(w)
		}
		renderRolloutHead(w, r, now)
		if err := renderWaves(w, r); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, "\n%s %d of %d reachable", ui.Bold("Hosts"), o.Hosts.Reachable, o.Hosts.Total)
	if counts := ui.Counts(o.Hosts.States); counts != "" {
		fmt.Fprintf(w, "; %s", counts)
	}
	fmt.Fprintln(w)
	for _, c := range o.Channels {
		if left := c.ExpiresAt.Sub(now); left < c.ExpiresAt.Sub(c.SignedAt)/4 {
			fmt.Fprintln(w, ui.Warn(expiry(c, left)))
		}
	}
	if len(o.Trouble) == 0 {
		return nil
	}
	fmt.Fprintf(w, "\n%s\n", ui.Bold("To look at"))
	var rows [][]string
	for _, h := range o.Trouble[:min(len(o.Trouble), maxTrouble)] {
		rows = append(rows, []string{"  " + h.Hostname, ui.Host(h.State), trouble(h, now)})
	}
	if err := ui.Table(w, []string{"  HOST", "STATE", "WHY"}, rows); err != nil {
		return err
	}
	if more := len(o.Trouble) - maxTrouble; more > 0 {
		fmt.Fprintf(w, "  and %d more: nixfleet host list\n", more)
	}
	return nil
}

func expiry(c api.Channel, left time.Duration) string {
	if left < 0 {
		return fmt.Sprintf("The signature of channel %s ran out %s ago: agents refuse it. Run `nixfleet release refresh`.", c.Channel, ui.Span(-left))
	}
	return fmt.Sprintf("The signature of channel %s runs out in %s. Run `nixfleet release refresh`.", c.Channel, ui.Span(left))
}

// trouble says in a few words why someone should look at h.
func trouble(h api.Host, now time.Time) string {
	switch {
	case failed(h) && h.LastFailure != nil:
		return fmt.Sprintf("%s %s ago: %s", h.LastFailure.Code, ui.Span(now.Sub(h.LastFailure.At)), detail(h.LastFailure))
	case refuses(h):
		return fmt.Sprintf("refused its dispatch, %s: %s", h.LastRejection.Code, detail(h.LastRejection))
	case h.LastHeartbeatAt != nil && !h.Reachable:
		return "not heard for " + ui.Span(now.Sub(*h.LastHeartbeatAt))
	case h.Drifted:
		return "runs " + ui.Closure(h.CurrentClosure) + ", which nobody gave it"
	case h.Overdue:
		return "is overdue"
	}
	return ""
}

// detail is a failure's, without the code that stands beside it.
func detail(f *api.Failure) string { return oneLine(strings.TrimPrefix(f.Detail, string(f.Code)+": ")) }

// oneLine keeps what a host reported on one short line without control characters.
func oneLine(s string) string {
	const most = 100
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if runes := []rune(s); len(runes) > most {
		s = string(runes[:most]) + "…"
	}
	return s
}

func renderRolloutHead(w io.Writer, r api.Rollout, now time.Time) {
	fmt.Fprintf(w, "%s  %s", ui.Bold(r.Channel+"@"+ui.Ref(r.Ref)), ui.Rollout(r.State))
	switch {
	case r.EndedAt != nil && r.OpenedAt != nil:
		fmt.Fprintf(w, "  %s", ui.Dim("after "+ui.Span(r.EndedAt.Sub(*r.OpenedAt))+", "+ui.Span(now.Sub(*r.EndedAt))+" ago"))
	case r.OpenedAt != nil:
		fmt.Fprintf(w, "  %s", ui.Dim("for "+ui.Span(now.Sub(*r.OpenedAt))))
	}
	fmt.Fprintln(w)
	if r.HaltReason != "" {
		fmt.Fprintf(w, "  %s\n", ui.Bad(r.HaltReason))
	}
	for _, b := range r.Blocks {
		if !b.Pass && (r.HaltReason == "" || !strings.Contains(b.Reason, r.HaltReason)) { // said above
			fmt.Fprintf(w, "  %s: %s\n", b.Gate, b.Reason)
		}
	}
}

func renderWaves(w io.Writer, r api.Rollout) error {
	for _, wave := range r.Waves {
		open := "open"
		if !wave.Open {
			open = "to come"
		}
		if _, err := fmt.Fprintf(w, "  wave %d  %s  %-7s  %s\n", wave.Index, ui.Bar(wave.Counts, waveBar), open, ui.Counts(wave.Counts)); err != nil {
			return err
		}
	}
	return nil
}

func renderHosts(w io.Writer, hosts []api.Host, now time.Time) error {
	rows := make([][]string, 0, len(hosts))
	for _, h := range hosts {
		rows = append(rows, []string{
			h.Hostname, h.Channel, ui.Host(h.State), strconv.Itoa(h.Wave), ui.Closure(h.CurrentClosure), heard(h, now), marks(h),
		})
	}
	return ui.Table(w, []string{"HOST", "CHANNEL", "STATE", "WAVE", "RUNS", "HEARD", ""}, rows)
}

func heard(h api.Host, now time.Time) string {
	switch {
	case h.LastHeartbeatAt == nil:
		return ui.Dim("never")
	case !h.Reachable:
		return ui.Warn(ui.Span(now.Sub(*h.LastHeartbeatAt)) + " ago")
	}
	return ui.Span(now.Sub(*h.LastHeartbeatAt)) + " ago"
}

// marks names what else is to know of a host.
func marks(h api.Host) string {
	var all []string
	for _, m := range []struct {
		is   bool
		what string
	}{
		{h.Overdue, ui.Bad("overdue")}, {h.Drifted, ui.Warn("drifted")}, {!h.Declared, ui.Dim("not declared")},
		{len(h.RebootPending) > 0, ui.Warn("reboot pending")}, {h.Attempt > 1, ui.Dim(fmt.Sprintf("attempt %d", h.Attempt))},
		{refuses(h), ui.Warn("refuses")},
	} {
		if m.is {
			all = append(all, m.what)
		}
	}
	return strings.Join(all, ", ")
}

func renderHost(w io.Writer, h api.Host, now time.Time) error {
	rows := [][2]string{
		{"host", ui.Bold(h.Hostname)}, {"channel", h.Channel}, {"tags", strings.Join(h.Tags, ", ")},
		{"state", strings.TrimSuffix(ui.Host(h.State)+"  "+marks(h), "  ")}, {"rollout", h.RolloutID},
		{"wave", strconv.Itoa(h.Wave)}, {"runs", h.CurrentClosure}, {"boots", h.BootClosure},
		{"target", h.TargetClosure}, {"previous", h.PreviousClosure}, {"heard", heard(h, now)}, {"agent", oneLine(h.AgentVersion)},
		{"trust.json", ui.Ref(oneLine(h.TrustSHA256))},
	}
	if h.SoakEndsAt != nil && h.State == api.Soaking {
		rows = append(rows, [2]string{"soaks for", ui.Span(h.SoakEndsAt.Sub(now))})
	}
	if len(h.RebootPending) > 0 {
		rows = append(rows, [2]string{"reboot for", oneLine(strings.Join(h.RebootPending, ", "))})
	}
	for _, last := range []struct {
		what string
		*api.Failure
	}{{"failure", h.LastFailure}, {"rejection", h.LastRejection}} {
		if f := last.Failure; f != nil {
			rows = append(rows, [2]string{last.what, fmt.Sprintf("%s  %s", ui.Bad(string(f.Code)), ui.Dim(ui.Span(now.Sub(f.At))+" ago"))})
			rows = append(rows, [2]string{"", detail(f)})
		}
	}
	for _, row := range rows {
		if row[1] != "" {
			fmt.Fprintf(w, "%s%s\n", ui.Dim(fmt.Sprintf("%-12s", row[0])), row[1])
		}
	}
	if len(h.Probes) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	probes := make([][]string, 0, len(h.Probes))
	for _, p := range h.Probes {
		status := ui.Dim("not run")
		switch p.Status {
		case api.ProbePass:
			status = ui.Good("pass")
		case api.ProbeFail:
			status = ui.Bad("fail")
		}
		probes = append(probes, []string{oneLine(p.Name), oneLine(p.Kind), p.Mode, status, oneLine(p.FailureReason)})
	}
	return ui.Table(w, []string{"PROBE", "KIND", "MODE", "STATUS", ""}, probes)
}

func renderWhy(w io.Writer, y api.Why, now time.Time) error {
	fmt.Fprintf(w, "%s is %s: %s\n", ui.Bold(y.Hostname), ui.Host(y.State), y.Summary)
	if len(y.Gates) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	return ui.Table(w, []string{"", "GATE", "SINCE", ""}, gateRows(y.Gates, now))
}

func gateRows(gates []api.GateVerdict, now time.Time) [][]string {
	rows := make([][]string, 0, len(gates))
	for _, g := range gates {
		mark := ui.Good("✓")
		if !g.Pass {
			mark = ui.Bad("✗")
		}
		since := ""
		if g.Since != nil {
			since = ui.Span(now.Sub(*g.Since))
		}
		rows = append(rows, []string{mark, g.Gate, since, g.Reason})
	}
	return rows
}

func renderRollouts(w io.Writer, rollouts []api.Rollout, now time.Time) error {
	rows := make([][]string, 0, len(rollouts))
	for _, r := range rollouts {
		opened := ui.Dim("not open")
		if r.OpenedAt != nil {
			opened = ui.Span(now.Sub(*r.OpenedAt)) + " ago"
		}
		total := map[api.HostState]int{}
		for _, wave := range r.Waves {
			for state, n := range wave.Counts {
				total[state] += n
			}
		}
		rows = append(rows, []string{r.RolloutID, ui.Rollout(r.State), opened, ui.Bar(total, waveBar), ui.Counts(total)})
	}
	return ui.Table(w, []string{"ROLLOUT", "STATE", "OPENED", "HOSTS", ""}, rows)
}

func renderRollout(w io.Writer, r api.Rollout, now time.Time) error {
	renderRolloutHead(w, r, now)
	fmt.Fprintf(w, "%s%s\n%s%s\n%s%d\n%s%d\n\n", ui.Dim("  rollout   "), r.RolloutID, ui.Dim("  policy    "), r.PolicyName,
		ui.Dim("  sequence  "), r.Sequence, ui.Dim("  failures  "), r.Failed)
	return renderWaves(w, r)
}

// renderRolloutWhy says what a rollout waits for.
func renderRolloutWhy(w io.Writer, r api.Rollout, now time.Time) error {
	renderRolloutHead(w, r, now)
	if len(r.Blocks) == 0 && r.HaltReason == "" {
		fmt.Fprintln(w, "  nothing blocks it")
	}
	return renderWaves(w, r)
}

func renderChannels(w io.Writer, channels []api.Channel, now time.Time) error {
	rows := make([][]string, 0, len(channels))
	for _, c := range channels {
		left := ui.Span(c.ExpiresAt.Sub(now))
		if c.ExpiresAt.Before(now) {
			left = ui.Bad("ran out")
		}
		rows = append(rows, []string{c.Channel, ui.Ref(c.Ref), ui.Rollout(c.State), ui.Span(now.Sub(c.SignedAt)) + " ago", left, strconv.Itoa(len(c.Quarantine))})
	}
	return ui.Table(w, []string{"CHANNEL", "REF", "STATE", "SIGNED", "FRESH FOR", "QUARANTINED"}, rows)
}
