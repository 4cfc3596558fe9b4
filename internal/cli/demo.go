package cli

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"nixfleet.dev/nixfleet/internal/demo"
)

func newDemo(app *App) *cobra.Command {
	o := demo.Options{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a whole fleet on this machine: a good release, a bad one, the fix",
		Long: "Makes a fleet in a temporary folder and runs all of it in this process, over loopback sockets: a good\n" +
			"release in two waves, a bad one whose canaries roll themselves back, and the fix. Nothing outside the\n" +
			"folder is touched.",
		Args: noArgs,
		Example: examples("nixfleet demo", "nixfleet demo --hosts 100 --serve", "nixfleet demo --keep ./demo",
			"nixfleet demo --json | jq .steps"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			if o.Hosts < demo.MinHosts || o.Hosts > demo.MaxHosts {
				return usagef("--hosts is %d; a demo has %d to %d", o.Hosts, demo.MinHosts, demo.MaxHosts)
			}
			o.JSON, o.Version, o.Clock = app.asJSON, version(), app.Clock
			o.Stdout, o.Terminal, o.TerminalErr = app.Stdout, app.Terminal, app.TerminalErr
			o.Helper, o.Command = []string{self}, invocation(self)
			return demo.Run(cmd.Context(), o)
		},
	}
	cmd.Flags().IntVar(&o.Hosts, "hosts", 12, "how many hosts")
	cmd.Flags().StringVar(&o.Keep, "keep", "", "keep everything in this folder, which must be missing or empty")
	cmd.Flags().BoolVar(&o.Serve, "serve", false, "stay up afterwards, to look around")
	return app.addJSON(cmd)
}

// invocation is how the user can run this program again.
func invocation(self string) string {
	if strings.Contains(self, string(filepath.Separator)+"go-build") {
		return "go run ./cmd/nixfleet"
	}
	if strings.Contains(os.Args[0], string(filepath.Separator)) {
		return os.Args[0]
	}
	return "nixfleet"
}
