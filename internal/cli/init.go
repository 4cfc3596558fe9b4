package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"nixfleet.dev/nixfleet/internal/release/bootstrap"
	"nixfleet.dev/nixfleet/internal/ui"
)

func newInit(app *App) *cobra.Command {
	var opts bootstrap.InitOptions
	cmd := &cobra.Command{
		Use:   "init DIR",
		Short: "Make the keys, certificates and configurations of a new fleet",
		Long: "Makes everything of a new fleet in DIR, which must be missing or empty: a certificate authority, the\n" +
			"certificates of the control plane and of you, release and enrollment keys, trust.json, configurations,\n" +
			"and a fleet.json with one host. It works as it stands. Keep DIR to yourself: it is the root of the fleet.",
		Args: takesArgs,
		Example: examples("nixfleet init ./fleet --trust-domain fleet.example --control-plane https://cp.fleet.example:8443",
			"nixfleet init ./try --trust-domain try.example --control-plane https://localhost:8443"),
		RunE: func(_ *cobra.Command, args []string) error {
			opts.Now = app.Clock.Now()
			layout, err := bootstrap.Init(args[0], opts)
			if errors.Is(err, bootstrap.ErrOption) {
				return usageError{err}
			}
			if err != nil {
				return err
			}
			return app.print(layout, func(w io.Writer) error { return nextSteps(w, args[0], layout) })
		},
	}
	cmd.Flags().StringVar(&opts.TrustDomain, "trust-domain", "", "the name in every certificate of the fleet, such as fleet.example")
	cmd.Flags().StringVar(&opts.ControlPlane, "control-plane", "", "the URL by which hosts reach the control plane")
	required(cmd, "trust-domain", "control-plane")
	return app.addJSON(cmd)
}

// required marks flags that a command cannot do without.
func required(cmd *cobra.Command, flags ...string) {
	for _, flag := range flags {
		if err := cmd.MarkFlagRequired(flag); err != nil {
			panic(err) // the flag's name is a constant beside this call
		}
	}
}

func nextSteps(w io.Writer, dir string, l bootstrap.Layout) error {
	steps, err := l.FirstSteps()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, `%s %s is ready. README.txt there says what each file is, and how to add hosts.

To see it work:

  cd %s
%s
%s
`, ui.Bold("The fleet of"), l.TrustDomain, quotedPath(dir), steps,
		ui.Dim("Keep ca/ca.key and keys/ where only you can read them."))
	return err
}

// quotedPath writes a path so that a shell reads it back.
func quotedPath(path string) string {
	for _, r := range path {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9') && r != '.' && r != '_' && r != '-' && r != os.PathSeparator {
			return fmt.Sprintf("%q", path)
		}
	}
	return path
}
