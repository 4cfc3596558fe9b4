package cli

import (
	"context"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/operator"
	"nixfleet.dev/nixfleet/internal/ui"
)

// client returns the client of the chosen context's control plane.
func (a *App) client() (*operator.Client, error) {
	c, err := a.Context()
	if err != nil {
		return nil, err
	}
	return operator.New(c)
}

// collect gathers a list; nil becomes an empty one, for JSON.
func collect[T any](all iter.Seq2[T, error]) ([]T, error) {
	items := []T{}
	for item, err := range all {
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, nil
}

// reading returns the RunE of a command that asks the control plane for something and prints it.
func reading[T any](app *App, ask func(ctx context.Context, c *operator.Client, args []string) (T, error), plain func(w io.Writer, v T) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := app.client()
		if err != nil {
			return err
		}
		defer c.Close()
		v, err := ask(cmd.Context(), c, args)
		if err != nil {
			return err
		}
		return app.print(v, func(w io.Writer) error { return plain(w, v) })
	}
}

func newWhy(app *App) *cobra.Command {
	return app.addJSON(&cobra.Command{
		Use:   "why HOST|ROLLOUT",
		Short: "Say why a host, or a rollout, is where it is",
		Long:  "Shows every gate between a host and its turn, with its verdict and since when; of a rollout, what blocks it.",
		Args:  takesArgs,
		Example: examples("nixfleet why web-01", "nixfleet why stable@0a1b2c3d4e5f",
			"nixfleet why web-01 --json | jq '.gates[] | select(.pass | not)'"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.Contains(args[0], "@") {
				if err := rolloutArgument(args[0]); err != nil {
					return err
				}
				return reading(app, oneRollout, func(w io.Writer, r api.Rollout) error { return renderRolloutWhy(w, r, app.Clock.Now()) })(cmd, args)
			}
			if err := hostArgument(args[0]); err != nil {
				return fmt.Errorf("%w; a rollout is named CHANNEL@REF", err)
			}
			return reading(app, func(ctx context.Context, c *operator.Client, args []string) (api.Why, error) {
				y, err := c.Why(ctx, args[0])
				return y, hint(err, api.CodeNotFound, "nixfleet host list shows them; a rollout is named CHANNEL@REF")
			}, func(w io.Writer, y api.Why) error { return renderWhy(w, y, app.Clock.Now()) })(cmd, args)
		},
	})
}

// oneRollout returns a rollout by its id, or by the beginning of one: a status shows refs cut short.
func oneRollout(ctx context.Context, c *operator.Client, args []string) (api.Rollout, error) {
	id := args[0]
	if err := rolloutArgument(id); err != nil {
		return api.Rollout{}, err
	}
	r, unknown := c.Rollout(ctx, id)
	if !operator.IsCode(unknown, api.CodeUnknownRollout) {
		return r, unknown
	}
	var found []api.Rollout
	for r, err := range c.Rollouts(ctx) {
		if err != nil {
			return r, err
		}
		if strings.HasPrefix(r.RolloutID, id) {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 0:
		return r, hint(unknown, api.CodeUnknownRollout, "nixfleet rollout list shows those there are")
	case 1:
		return found[0], nil
	}
	return r, usagef("%s is the beginning of %d rollouts, such as %s and %s", id, len(found), found[0].RolloutID, found[1].RolloutID)
}

// hint adds what to do to an answer of the control plane with that code.
func hint(err error, code api.Code, what string) error {
	if operator.IsCode(err, code) {
		return fmt.Errorf("%w; %s", err, what)
	}
	return err
}

// hostStates is what --state takes: every state that a host can be in.
var hostStates = []api.HostState{
	api.Idle, api.Pending, api.Activating, api.Deferred, api.Soaking, api.HostConverged, api.Failed,
	api.Reverting, api.Reverted, api.Skipped, api.HostSuperseded,
}

func newHost(app *App) *cobra.Command {
	var f operator.HostFilter
	list := &cobra.Command{
		Use:     "list",
		Short:   "List hosts",
		Args:    noArgs,
		Example: examples("nixfleet host list", "nixfleet host list --channel stable --state Failed", "nixfleet host list --tag web --json"),
		RunE: reading(app, func(ctx context.Context, c *operator.Client, _ []string) ([]api.Host, error) {
			if f.State != "" && !slices.Contains(hostStates, api.HostState(f.State)) {
				return nil, usagef("--state %q is none of %q", f.State, hostStates)
			}
			return collect(c.Hosts(ctx, f))
		}, func(w io.Writer, hosts []api.Host) error {
			if len(hosts) == 0 {
				fmt.Fprintln(app.Stderr, "No host matches.")
				return nil
			}
			return renderHosts(w, hosts, app.Clock.Now())
		}),
	}
	list.Flags().StringVar(&f.Channel, "channel", "", "only hosts of this channel")
	list.Flags().StringVar(&f.State, "state", "", "only hosts in this state, such as Failed")
	list.Flags().StringVar(&f.Tag, "tag", "", "only hosts with this tag")
	list.Flags().StringVar(&f.Query, "match", "", "only hosts whose name has this in it")
	show := &cobra.Command{
		Use:     "show HOST",
		Short:   "Show one host: what it runs, its rollout, its probes",
		Args:    takesArgs,
		Example: examples("nixfleet host show web-01", "nixfleet host show web-01 --json"),
		RunE: reading(app, func(ctx context.Context, c *operator.Client, args []string) (api.Host, error) {
			if err := hostArgument(args[0]); err != nil {
				return api.Host{}, err
			}
			h, err := c.Host(ctx, args[0])
			return h, hint(err, api.CodeNotFound, "nixfleet host list shows them")
		}, func(w io.Writer, h api.Host) error { return renderHost(w, h, app.Clock.Now()) }),
	}
	return group("host", "Look at hosts", app.addJSON(list), app.addJSON(show))
}

func newRollout(app *App) *cobra.Command {
	list := &cobra.Command{
		Use:     "list",
		Short:   "List rollouts, the newest first",
		Args:    noArgs,
		Example: examples("nixfleet rollout list", "nixfleet rollout list --json"),
		RunE: reading(app, func(ctx context.Context, c *operator.Client, _ []string) ([]api.Rollout, error) {
			return collect(c.Rollouts(ctx))
		}, func(w io.Writer, rollouts []api.Rollout) error { return renderRollouts(w, rollouts, app.Clock.Now()) }),
	}
	show := &cobra.Command{
		Use:     "show ROLLOUT",
		Short:   "Show one rollout: its state and its waves",
		Args:    takesArgs,
		Example: examples("nixfleet rollout show stable@0a1b2c3d4e5f", "nixfleet rollout show stable@0a1b2c3d4e5f --json"),
		RunE: reading(app, oneRollout, func(w io.Writer, r api.Rollout) error {
			return renderRollout(w, r, app.Clock.Now())
		}),
	}
	return group("rollout", "Look at rollouts", app.addJSON(list), app.addJSON(show))
}

func newChannel(app *App) *cobra.Command {
	list := &cobra.Command{
		Use:     "list",
		Short:   "List channels: what each is at, and for how long its signature is fresh",
		Args:    noArgs,
		Example: examples("nixfleet channel list", "nixfleet channel list --json"),
		RunE: reading(app, func(ctx context.Context, c *operator.Client, _ []string) ([]api.Channel, error) {
			return collect(c.Channels(ctx))
		}, func(w io.Writer, channels []api.Channel) error { return renderChannels(w, channels, app.Clock.Now()) }),
	}
	return group("channel", "Look at channels", app.addJSON(list))
}

func newStatus(app *App) *cobra.Command {
	var watch bool
	show := func(w io.Writer, o overview) error { return renderOverview(w, o, app.Clock.Now()) }
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show the fleet: its rollouts, its hosts, and what someone should look at",
		Args:    noArgs,
		Example: examples("nixfleet status", "nixfleet status --watch", "nixfleet status --json | jq .trouble"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if watch {
				return app.watch(cmd.Context(), show)
			}
			return reading(app, look, show)(cmd, args)
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "keep showing it until interrupted")
	return app.addJSON(cmd)
}

// watchEvery is how often a watched status is asked for.
const watchEvery = 2 * time.Second

// watch shows the status again and again, in place, until ctx ends. A control plane that cannot be
// reached for a while is said and waited for.
func (a *App) watch(ctx context.Context, show func(io.Writer, overview) error) error {
	if a.Terminal == nil || a.asJSON {
		return usagef("--watch draws on a terminal; without one, ask for the status again, with --json perhaps")
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	screen := ui.NewLive(a.Terminal)
	for {
		var text strings.Builder
		o, err := look(ctx, c, nil)
		if err == nil {
			err = show(&text, o)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			fmt.Fprintf(&text, "%s %v\n", ui.Bad("cannot tell:"), err)
		}
		screen.Draw("", strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n"))
		if a.Clock.Sleep(ctx, watchEvery) != nil {
			return nil
		}
	}
}

// look asks for everything that a status shows.
func look(ctx context.Context, c *operator.Client, _ []string) (overview, error) {
	o := overview{Rollouts: []api.Rollout{}, Trouble: []api.Host{}, Hosts: hostCounts{States: map[api.HostState]int{}}}
	var err error
	if o.Channels, err = collect(c.Channels(ctx)); err != nil {
		return o, err
	}
	for _, channel := range o.Channels {
		if channel.RolloutID == "" {
			continue
		}
		r, err := c.Rollout(ctx, channel.RolloutID)
		if err != nil {
			return o, fmt.Errorf("rollout %s of channel %s: %w", channel.RolloutID, channel.Channel, err)
		}
		o.Rollouts = append(o.Rollouts, r)
	}
	for h, err := range c.Hosts(ctx, operator.HostFilter{}) {
		if err != nil {
			return o, err
		}
		o.Hosts.Total++
		o.Hosts.States[h.State]++
		if h.Reachable {
			o.Hosts.Reachable++
		}
		if troubled(h) {
			o.Trouble = append(o.Trouble, h)
		}
	}
	return o, nil
}
