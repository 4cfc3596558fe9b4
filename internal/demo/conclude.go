package demo

import (
	"fmt"

	"nixfleet.dev/nixfleet/internal/ui"
)

// conclude prints what happened, where the files are and what to try next.
func (d *demo) conclude(r Result) {
	say := d.screen.say
	say("\n%s", ui.Bold("What happened"))
	for _, s := range r.Steps {
		say("  %-5s %s  %s", s.Name, ui.Rollout(s.State), ui.Dim(fmt.Sprintf(
			"%d converged, %d reverted, %d untouched", s.Converged, s.Reverted, s.Untouched)))
	}
	say("%s", ui.Dim("  Counted on the hosts, by each one's own current-system link, not by what the control plane says."))
	if !r.OK {
		say("\n%s the fleet did not end as it should; everything it wrote is in %s", ui.Bad("✗"), d.dir)
		return
	}
	if d.Keep != "" || d.Serve {
		say("\n%s\n  %s", ui.Bold("Where it all is"), d.dir)
		say("%s", ui.Dim("  fleet/  keys, trust, configuration, what was released, the control plane's database\n"+
			"  hosts/  one folder a host, with its agent's state    store/  closures    logs/  of every part"))
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
	say("  %s demo --serve              %s", d.Command, ui.Dim("the same, and stay up to look around"))
	say("  %s demo --hosts 100          %s", d.Command, ui.Dim("a larger fleet"))
	say("  %s demo --keep ./demo        %s", d.Command, ui.Dim("keep every file it makes, to read"))
	say("  %s init ./fleet --help       %s", d.Command, ui.Dim("start a fleet of your own"))
}
