// Command nixfleet-control-plane routes signed intent to the hosts of a fleet.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane"
)

// Exit codes (design/wire.md, Command lines).
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := command().ExecuteContext(ctx)
	stop()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "nixfleet-control-plane:", err)
	if errors.As(err, new(*failed)) {
		os.Exit(exitFailed)
	}
	os.Exit(exitUsage)
}

// failed is an error of the work itself; any other is one of how it was asked for.
type failed struct{ error }

func (f *failed) Unwrap() error { return f.error }

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "nixfleet-control-plane",
		Short:         "Route signed intent to the hosts of a fleet",
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(serve())
	return root
}

func serve() *cobra.Command {
	var config, level string
	flags := map[string]*string{}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve agents and operators until SIGINT or SIGTERM",
		Long: "Serve agents and operators until SIGINT or SIGTERM.\n\n" +
			"Settings come from flags, then from NIXFLEET_* variables ([tls] cert is NIXFLEET_TLS_CERT), then\n" +
			"from the configuration file. Certificates, CAs and trust.json are read again when they change.",
		Example: "  nixfleet-control-plane serve --config /etc/nixfleet/control-plane.toml\n" +
			"  NIXFLEET_LISTEN=127.0.0.1:8443 nixfleet-control-plane serve --config control-plane.toml --log-level debug",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var min slog.Level
			if err := min.UnmarshalText([]byte(level)); err != nil {
				return fmt.Errorf("--log-level %q is none of debug, info, warn and error", level)
			}
			given := map[string]string{}
			for name, value := range flags {
				if cmd.Flags().Changed(name) {
					given[name] = *value
				}
			}
			c, err := controlplane.LoadWith(config, given)
			if err != nil {
				return &failed{err}
			}
			err = controlplane.Run(cmd.Context(), c, controlplane.Options{
				Logger: slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: min})), Clock: clock.System{}, Version: version(),
			})
			if err != nil {
				return &failed{err}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&config, "config", controlplane.DefaultConfig, "configuration file")
	cmd.Flags().StringVar(&level, "log-level", "info", "least level of what is logged: debug, info, warn or error")
	for _, setting := range controlplane.Settings() {
		flags[setting.Name] = cmd.Flags().String(setting.Name, "", setting.Usage)
	}
	return cmd
}

// version is that of the module, as the build recorded it.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
