package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/release"
	"nixfleet.dev/nixfleet/internal/ui"
)

func newRelease(app *App) *cobra.Command {
	return group("release", "Sign releases of a fleet and publish them (CI)",
		newReleaseCreate(app), newReleaseRefresh(app), newReleaseSign(app), newReleasePublish(app), newReleaseRevoke(app))
}

// releaseJob is the flags of every command that changes a release repository.
type releaseJob struct {
	keyring
	repo             string
	draft            string
	discardUntrusted bool
}

func (j *releaseJob) flags(cmd *cobra.Command) {
	j.keyring.flags(cmd)
	cmd.Flags().StringVar(&j.repo, "repo", "", "the release repository: a directory, or its file:// URL")
	cmd.Flags().StringVar(&j.draft, "draft", "", "keep the release in this directory for others to sign, instead of publishing it")
	noEnv(cmd, "draft")
	required(cmd, "repo")
}

func (j *releaseJob) options(app *App) (release.Options, error) {
	signers, root, err := j.load()
	if err != nil {
		return release.Options{}, err
	}
	if strings.HasPrefix(j.repo, "http://") || strings.HasPrefix(j.repo, "https://") {
		return release.Options{}, usagef("%s is not written to over the network: publish to a directory, and copy from there", j.repo)
	}
	return release.Options{
		Repo: j.repo, Root: root, Signers: signers, Now: app.Clock.Now(), DraftDir: j.draft, DiscardUntrusted: j.discardUntrusted,
	}, nil
}

func newReleaseCreate(app *App) *cobra.Command {
	var job releaseJob
	var opts release.CreateOptions
	var policies []string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Release a fleet: one signed manifest for each channel",
		Long: "Reads a fleet, makes the manifest of each channel, signs all of it and publishes it, whole or not at\n" +
			"all. Channels that are not released keep what they have; a channel that the fleet no longer has is\n" +
			"cancelled. A commit is released once in a channel: to go back, make a new commit.",
		Args: noArgs,
		Example: examples("nixfleet release create --fleet fleet.json --repo ./releases --commit $(git rev-parse HEAD) --key keys/release.pem",
			"nixfleet release create --fleet fleet.json --repo ./releases --channel stable --rollout-policy stable=urgent --key keys/release.pem",
			"nixfleet release create --fleet fleet.json --repo ./releases --key alice.pem --trust trust.json --draft ./draft"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			common, err := job.options(app)
			if err != nil {
				return err
			}
			opts.Options = common
			if opts.Policies, err = parsePolicies(policies); err != nil {
				return err
			}
			if opts.Fleet, err = app.readFleet(opts.FleetName); err != nil {
				return err
			}
			report, err := release.Create(cmd.Context(), opts)
			if errors.Is(err, release.ErrNoCommit) {
				err = usagef("%w: --commit $(git rev-parse HEAD)", err)
			}
			return app.released(report, err)
		},
	}
	job.flags(cmd)
	cmd.Flags().StringVar(&opts.FleetName, "fleet", "", "fleet.json, or - for standard input")
	cmd.Flags().StringVar(&opts.Commit, "commit", "", "what the channels will point at: 7 to 64 hex digits (default the fleet's commit)")
	cmd.Flags().StringArrayVar(&opts.Channels, "channel", nil, "release this channel only; give it again for each (default all)")
	cmd.Flags().StringArrayVar(&policies, "rollout-policy", nil, "CHANNEL=POLICY: roll this release out by another policy of the fleet")
	cmd.Flags().StringVar(&opts.Cache, "require-cache", "", "the http(s):// URL of a binary cache that must have every closure")
	cmd.Flags().BoolVar(&opts.CarryMissing, "carry-missing", false, "hosts that are missing, or have no closure, keep what was released last for them")
	cmd.Flags().BoolVar(&job.discardUntrusted, "discard-untrusted", false, "replace what the repository holds but trust.json no longer verifies, after a key was stolen")
	required(cmd, "fleet")
	return app.addJSON(cmd)
}

// readFleet reads the fleet that a flag names.
func (a *App) readFleet(name string) ([]byte, error) {
	if flakeArgument(name) {
		return nil, usagef("--fleet %s: evaluating Nix is not part of this build of nixfleet; evaluate it to a file first: nix eval --json %s > fleet.json", name, name)
	}
	if name == "-" {
		return readAll("standard input", a.Stdin)
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("reading the fleet: %w", err)
	}
	defer file.Close()
	return readAll(name, file)
}

// readAll reads a file up to the cap of the largest artifact that comes in one.
func readAll(name string, r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, api.MaxHosts+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if len(data) > api.MaxHosts {
		return nil, fmt.Errorf("reading %s: it is over %d bytes", name, api.MaxHosts)
	}
	return data, nil
}

func parsePolicies(list []string) (map[string]string, error) {
	policies := map[string]string{}
	for _, item := range list {
		channel, policy, found := strings.Cut(item, "=")
		if !found || channel == "" || policy == "" {
			return nil, usagef("--rollout-policy %q is not CHANNEL=POLICY", item)
		}
		if _, twice := policies[channel]; twice {
			return nil, usagef("--rollout-policy names channel %s twice", channel)
		}
		policies[channel] = policy
	}
	return policies, nil
}

func newReleaseRefresh(app *App) *cobra.Command {
	var job releaseJob
	var channels []string
	cmd := &cobra.Command{
		Use:   "refresh",
		Short: "Sign what is published again, so that it stays fresh",
		Long:  "Signs what is published again, from a timer of CI. Nothing changes but signedAt and the signatures.",
		Args:  noArgs,
		Example: examples("nixfleet release refresh --repo ./releases --key keys/release.pem",
			"nixfleet release refresh --repo ./releases --channel stable --key old.pem --key new.pem --trust trust.json"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			common, err := job.options(app)
			if err != nil {
				return err
			}
			return app.released(release.Refresh(cmd.Context(), release.RefreshOptions{Options: common, Channels: channels}))
		},
	}
	job.flags(cmd)
	cmd.Flags().StringArrayVar(&channels, "channel", nil, "refresh this channel only; give it again for each (default all)")
	return app.addJSON(cmd)
}

func newReleaseSign(app *App) *cobra.Command {
	var keys keyring
	cmd := &cobra.Command{
		Use:   "sign DRAFT",
		Short: "Add your signature to a release that several people sign",
		Long: "Adds signatures to a draft that create, refresh or revoke kept with --draft. When its parts have all that\n" +
			"trust.json asks for, the index is signed, which names them; whoever signed before signs once more.",
		Args:    takesArgs,
		Example: examples("nixfleet release sign ./draft --key bob.pem --trust trust.json"),
		RunE: func(_ *cobra.Command, args []string) error {
			signers, root, err := keys.load()
			if err != nil {
				return err
			}
			return app.released(release.Sign(release.Options{Root: root, Signers: signers, Now: app.Clock.Now(), DraftDir: args[0]}))
		},
	}
	keys.flags(cmd)
	return app.addJSON(cmd)
}

func newReleasePublish(app *App) *cobra.Command {
	var keys keyring
	var repo string
	cmd := &cobra.Command{
		Use:     "publish DRAFT",
		Short:   "Publish a draft that everyone has signed",
		Args:    takesArgs,
		Example: examples("nixfleet release publish ./draft --repo ./releases --trust trust.json"),
		RunE: func(cmd *cobra.Command, args []string) error {
			root, err := keys.root()
			if err != nil {
				return err
			}
			return app.released(release.Publish(cmd.Context(), release.Options{Repo: repo, Root: root, Now: app.Clock.Now(), DraftDir: args[0]}))
		},
	}
	keys.trustFlag(cmd, "what readers trust")
	cmd.Flags().StringVar(&repo, "repo", "", "the release repository: a directory, or its file:// URL")
	required(cmd, "repo", "trust")
	return app.addJSON(cmd)
}

func newReleaseRevoke(app *App) *cobra.Command {
	var job releaseJob
	var opts release.RevokeOptions
	var before string
	cmd := &cobra.Command{
		Use:   "revoke",
		Short: "Revoke certificates of hosts and operators, and enrollment tokens",
		Long: "Adds to the revocations of the repository and publishes them. A host or operator can be issued a new\n" +
			"certificate afterwards; what is revoked stays revoked.",
		Args: noArgs,
		Example: examples("nixfleet release revoke --repo ./releases --host web-09 --reason stolen --key keys/release.pem",
			"nixfleet release revoke --repo ./releases --operator bob --reason left --key keys/release.pem",
			"nixfleet release revoke --repo ./releases --token 6f1c0d… --key keys/release.pem"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			common, err := job.options(app)
			if err != nil {
				return err
			}
			opts.Options = common
			if opts.Before, err = parseTime("before", before, common.Now); err != nil {
				return err
			}
			if err := opts.Check(); err != nil {
				return usageError{err}
			}
			return app.released(release.Revoke(cmd.Context(), opts))
		},
	}
	job.flags(cmd)
	cmd.Flags().StringArrayVar(&opts.Hosts, "host", nil, "revoke the certificates of this host; give it again for each")
	cmd.Flags().StringArrayVar(&opts.Operators, "operator", nil, "revoke the certificates of this operator; give it again for each")
	cmd.Flags().StringArrayVar(&opts.Tokens, "token", nil, "revoke the enrollment token with this nonce; give it again for each")
	cmd.Flags().StringVar(&before, "before", "", "revoke certificates issued before this time (default now)")
	cmd.Flags().StringVar(&opts.Reason, "reason", "", "why, for those who read the list later")
	return app.addJSON(cmd)
}

// released prints what a job on a repository did.
func (a *App) released(report release.Report, err error) error {
	a.warn(report.Warnings)
	if err != nil {
		return describe(err)
	}
	return a.print(report, func(w io.Writer) error { return renderReport(w, report) })
}

// describe adds to an error what the person can do, where that is not in it.
func describe(err error) error {
	if _, unsigned := errors.AsType[*release.UnsignedError](err); unsigned {
		return fmt.Errorf("%w\nwhere others must sign too, keep the release with --draft DIR, and use release sign and release publish", err)
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("interrupted: %w", err)
	}
	return err
}

func renderReport(w io.Writer, r release.Report) error {
	if r.Published {
		fmt.Fprintf(w, "Published to %s: sequence %d, signed at %s.\n", r.Repository, r.Sequence, stamp(r.SignedAt))
	} else {
		fmt.Fprintf(w, "Kept in %s: sequence %d, signed at %s.\n", r.Draft, r.Sequence, stamp(r.SignedAt))
	}
	if c := r.Revoked; c != nil {
		fmt.Fprintf(w, "Revoked now: certificates of %d hosts and %d operators, and %d tokens.\n", c.Hosts, c.Operators, c.Tokens)
	}
	rows := [][]string{}
	for _, c := range r.Channels {
		rows = append(rows, []string{c.Channel, change(c.Change), c.RolloutID, fmt.Sprint(c.Hosts), fmt.Sprint(c.Waves), c.Policy})
	}
	if len(rows) > 0 {
		fmt.Fprintln(w)
		if err := ui.Table(w, []string{"CHANNEL", "CHANGE", "ROLLOUT", "HOSTS", "WAVES", "POLICY"}, rows); err != nil {
			return err
		}
	}
	if r.Published {
		return nil
	}
	if len(r.Missing) == 0 {
		_, err := fmt.Fprintf(w, "\nIt has every signature. Publish it: nixfleet release publish %s --repo REPO --trust trust.json\n", r.Draft)
		return err
	}
	fmt.Fprintf(w, "\nBefore it can be published (nixfleet release sign %s --key FILE):\n", r.Draft)
	for _, missing := range r.Missing {
		fmt.Fprintln(w, "  "+missing)
	}
	return nil
}

func change(s string) string {
	switch s {
	case release.Released, release.Refreshed:
		return ui.Good(s)
	case release.Removed:
		return ui.Warn(s)
	}
	return ui.Dim(s)
}
