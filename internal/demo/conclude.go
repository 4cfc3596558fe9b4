package demo

import (
	"fmt"
	"strconv"
	"strings"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/ui"
)

// conclude prints what happened, where the files are and what to try next.
func (d *demo) conclude(r Result) {
	say := d.screen.say
	say("\n%s", ui.Bold("What happened"))
	digits := len(strconv.Itoa(r.Hosts))
	for _, s := range r.Steps {
		state := ui.Rollout(s.State) + strings.Repeat(" ", len(api.RolloutConverged)-min(len(s.State), len(api.RolloutConverged)))
		say("  %-5s %s  %s", s.Name, state, ui.Dim(fmt.Sprintf("%*d converged  %*d reverted  %*d untouched",
			digits, s.Converged, digits, s.Reverted, digits, s.Untouched)))
	}
	say("%s", explain("Counted on the hosts, by each one's own current-system link, not by what the control plane says."))
	if !r.OK {
		say("\n%s the fleet did not end as it should; everything it wrote is in %s", ui.Bad("✗"), d.dir)
		return
	}
	if d.Keep != "" || d.Serve {
		say("\n%s\n  %s", ui.Bold("Where it all is"), d.dir)
		say("%s", ui.Dim("  fleet/  keys, trust, configuration, releases, the control plane's database\n"+
			"  hosts/  one folder a host, with its agent's state\n"+
			"  store/  closures\n"+
			"  logs/   of every part"))
	}
	config := "--config " + d.lab.OperatorConfig()
	if d.Serve {
		bad := r.Steps[1].RolloutID
		say("\n%s %s", ui.Bold("Still running."), "Try in another terminal, and end it here with Ctrl-C:")
		say("  %s status %s", d.Command, config)
		say("  %s why %s %s", d.Command, d.lab.Machines[0].Name, config)
		say("  %s rollout show %s %s", d.Command, bad, config)
		return
	}
	say("\n%s", ui.Bold("What to try next"))
	for _, try := range [][2]string{
		{"demo --serve", "the same, and stay up to look around"},
		{"demo --hosts 100", "a larger fleet"},
		{"demo --keep ./demo", "keep every file, to read"},
		{"init --help", "start a fleet of your own"},
	} {
		say("  %s %-19s %s", d.Command, try[0], ui.Dim(try[1]))
	}
}
