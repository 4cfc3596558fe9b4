package cli

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"nixfleet.dev/nixfleet/internal/release"
	"nixfleet.dev/nixfleet/internal/trust"
	"nixfleet.dev/nixfleet/internal/ui"
)

func newVerify(app *App) *cobra.Command {
	return group("verify", "Check signed files as a host or a control plane would",
		newVerifyManifest(app), newVerifyFleet(app), newVerifyRepo(app))
}

// verification is the flags of every verify command.
type verification struct {
	keyring
	at string
}

func (v *verification) flags(cmd *cobra.Command) {
	v.trustFlag(cmd, "what to trust")
	cmd.Flags().StringVar(&v.at, "at", "", "check as of this time, such as 2026-11-23T08:00:00Z (default now)")
	noEnv(cmd, "at")
}

func (v *verification) inputs(app *App) (*trust.Root, time.Time, error) {
	now, err := parseTime("at", v.at, app.Clock.Now())
	if err != nil {
		return nil, now, err
	}
	if v.trustFile == "" {
		return nil, now, usagef("say what to trust: --trust trust.json")
	}
	root, err := v.root()
	return root, now, err
}

const verifyExits = "\n\nExit code 0: good. 3: not good, for the reasons that are printed; \"state\" of --json tells stale (rightly\n" +
	"signed, but too old or from the future) from invalid. 1: it could not be checked."

func newVerifyManifest(app *App) *cobra.Command {
	var v verification
	var hosts string
	cmd := &cobra.Command{
		Use:   "manifest PATH",
		Short: "Check a rollout manifest: signatures, shape, age",
		Long:  "Checks the envelope of a rollout manifest as a host would, and hosts.jsonl against it where that is given." + verifyExits,
		Args:  takesArgs,
		Example: examples("nixfleet verify manifest manifest.dsse.json --trust trust.json",
			"nixfleet verify manifest manifest.dsse.json --hosts hosts.jsonl --trust trust.json --at 2026-11-23T08:00:00Z"),
		RunE: func(_ *cobra.Command, args []string) error {
			root, now, err := v.inputs(app)
			if err != nil {
				return err
			}
			envelope, err := readFile(args[0])
			if err != nil {
				return err
			}
			var lines []byte
			if hosts != "" {
				if lines, err = readFile(hosts); err != nil {
					return err
				}
			}
			return app.verdict(release.VerifyManifest(root, envelope, lines, now))
		},
	}
	v.flags(cmd)
	cmd.Flags().StringVar(&hosts, "hosts", "", "the hosts.jsonl that belongs to it")
	noEnv(cmd, "hosts")
	return app.addJSON(cmd)
}

func newVerifyFleet(app *App) *cobra.Command {
	var v verification
	var unsigned bool
	cmd := &cobra.Command{
		Use:   "fleet PATH",
		Short: "Check a fleet: signatures, and everything that it declares",
		Long:  "Checks the envelope of a fleet, and everything that it declares. With --unsigned it checks a fleet.json,\nas release create would: for pull requests." + verifyExits,
		Args:  takesArgs,
		Example: examples("nixfleet verify fleet fleet.dsse.json --trust trust.json",
			"nixfleet verify fleet fleet.json --unsigned"),
		RunE: func(_ *cobra.Command, args []string) error {
			if unsigned {
				data, err := app.readFleet(args[0])
				if err != nil {
					return err
				}
				return app.verdict(release.CheckFleet(args[0], data))
			}
			root, now, err := v.inputs(app)
			if err != nil {
				return err
			}
			data, err := readFile(args[0])
			if err != nil {
				return err
			}
			return app.verdict(release.VerifyFleet(root, data, now))
		},
	}
	v.flags(cmd)
	cmd.Flags().BoolVar(&unsigned, "unsigned", false, "it is a fleet.json that nobody signed")
	noEnv(cmd, "unsigned")
	return app.addJSON(cmd)
}

func newVerifyRepo(app *App) *cobra.Command {
	var v verification
	cmd := &cobra.Command{
		Use:   "repo PATH",
		Short: "Check a release repository down to the last object",
		Long:  "Checks the index of a release repository, and every object that it names, as a control plane would.\nPATH is a directory or its file:// URL." + verifyExits,
		Args:  takesArgs,
		Example: examples("nixfleet verify repo ./releases --trust trust.json",
			"nixfleet verify repo ./releases --trust trust.json --at 2026-12-24T18:00:00Z --json"),
		RunE: func(_ *cobra.Command, args []string) error {
			root, now, err := v.inputs(app)
			if err != nil {
				return err
			}
			repo, err := release.OpenRepo(args[0])
			if err != nil {
				return err
			}
			defer repo.Close()
			verdict, err := release.VerifyRepo(repo, root, now)
			if err != nil {
				return err
			}
			return app.verdict(verdict)
		},
	}
	v.flags(cmd)
	return app.addJSON(cmd)
}

func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return readAll(path, file)
}

// verdict prints what was found; the exit code says whether it is good (docs/adr/0010-verify-exits-3.md).
func (a *App) verdict(v release.Verdict) error {
	if !a.asJSON {
		a.warn(v.Warnings)
	}
	if err := a.print(v, func(w io.Writer) error { return renderVerdict(w, v) }); err != nil {
		return err
	}
	if v.State == release.Good {
		return nil
	}
	return notInState{errSilent}
}

func renderVerdict(w io.Writer, v release.Verdict) error {
	fmt.Fprintf(w, "%s: %s\n", v.What, styledState(v.State))
	for _, f := range v.Findings {
		fmt.Fprintf(w, "  %s\n", f.Detail)
	}
	if v.SignedAt != nil {
		fmt.Fprintf(w, "  signed at %s", stamp(*v.SignedAt))
		if v.FreshUntil != nil {
			fmt.Fprintf(w, ", fresh until %s", stamp(*v.FreshUntil))
		}
		fmt.Fprintln(w)
	}
	if len(v.Channels) == 0 {
		return nil
	}
	rows := [][]string{}
	for _, c := range v.Channels {
		rows = append(rows, []string{c.Channel, styledState(c.State), c.RolloutID, fmt.Sprint(c.Sequence), fmt.Sprint(c.Hosts), stamp(c.FreshUntil)})
	}
	fmt.Fprintln(w)
	return ui.Table(w, []string{"CHANNEL", "STATE", "ROLLOUT", "SEQUENCE", "HOSTS", "FRESH UNTIL"}, rows)
}

func styledState(s release.State) string {
	switch s {
	case release.Good:
		return ui.Good(string(s))
	case release.Stale:
		return ui.Warn(string(s))
	}
	return ui.Bad(string(s))
}
