package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/ui"
)

// Exit codes (design/wire.md).
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitNotState = 3 // the thing is not in the state that was asked for
)

// App is what every command works with.
type App struct {
	Stdin  io.Reader
	Stdout io.Writer // what was asked for
	Stderr io.Writer // everything else: warnings, progress, errors
	Clock  clock.Clock

	// Terminal is the terminal that Stdout goes to, nil where it goes elsewhere; TerminalErr is Stderr's.
	Terminal, TerminalErr *os.File

	configFile  string // --config
	contextName string // --context
	asJSON      bool   // --json
	running     bool   // a command's own code has begun: its errors are no usage errors
}

// Main runs one command line, without the program's name, and returns its exit code.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	app := &App{
		Stdin: stdin, Stdout: ui.Writer(stdout), Stderr: ui.Writer(stderr), Clock: clock.System{},
		Terminal: ui.Terminal(stdout), TerminalErr: ui.Terminal(stderr),
	}
	root := NewRoot(app)
	root.SetArgs(args)
	return app.exit(root.ExecuteContext(ctx))
}

// NewRoot returns the nixfleet command with all commands below it.
func NewRoot(app *App) *cobra.Command {
	root := &cobra.Command{
		Use:   "nixfleet",
		Short: "Roll signed systems out to a fleet",
		Long: "nixfleet rolls signed systems out to a fleet: CI signs what each host should run, a control plane\n" +
			"says when it is a host's turn, and every host checks the signature itself before it acts.\n\n" +
			"Every flag that takes one value can also be set by the environment: --trust by NIXFLEET_TRUST.",
		Version:           version(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: app.fromEnvironment,
	}
	root.SetIn(app.Stdin)
	root.SetOut(app.Stdout)
	root.SetErr(app.Stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.PersistentFlags().StringVar(&app.configFile, "config", "", "the operator's configuration (default ~/.config/nixfleet/config.toml)")
	root.PersistentFlags().StringVar(&app.contextName, "context", defaultContext, "which context of the configuration to use")
	root.AddCommand(
		newDemo(app), newStatus(app), newWhy(app), newHost(app), newRollout(app), newChannel(app),
		newInit(app), newRelease(app), newVerify(app), newToken(app), newCert(app), newConfig(app),
	)
	app.wrap(root)
	return root
}

// version is what this binary was built from, as the Go toolchain recorded it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

// wrap makes the commands below cmd say where usage ends and work begins, and groups name their commands.
func (a *App) wrap(cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			a.running = true
			return run(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		a.wrap(sub)
	}
}

// group returns a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("%s has no command %q", cmd.CommandPath(), args[0])
			}
			return usagef("%s needs a command", cmd.CommandPath())
		},
	}
	cmd.AddCommand(commands...)
	return cmd
}

// addJSON gives a command that prints data the --json flag.
func (a *App) addJSON(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&a.asJSON, "json", false, "print one JSON value instead of text")
	return cmd
}

// notFromEnv marks a flag that no environment variable sets.
const notFromEnv = "not-from-env"

func noEnv(cmd *cobra.Command, flag string) {
	if err := cmd.Flags().SetAnnotation(flag, notFromEnv, nil); err != nil {
		panic(err) // the flag's name is a constant beside this call
	}
}

// fromEnvironment gives flags that were left out the value of their NIXFLEET_* variable: scalars only.
func (a *App) fromEnvironment(cmd *cobra.Command, _ []string) error {
	var errs []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		_, list := f.Value.(pflag.SliceValue)
		_, never := f.Annotations[notFromEnv]
		if f.Changed || list || never || f.Name == "help" || f.Name == "version" {
			return
		}
		name := envName(f.Name)
		if value, set := os.LookupEnv(name); set && value != "" {
			if err := cmd.Flags().Set(f.Name, value); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
	})
	if err := errors.Join(errs...); err != nil {
		return usageError{err}
	}
	return nil
}

func envName(flag string) string {
	return "NIXFLEET_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// usageError is the error of a command line that makes no sense: exit 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// notInState is the error of something that is not in the state asked for: exit 3.
type notInState struct{ error }

func (e notInState) Unwrap() error { return e.error }

// silent is an error whose explanation was printed already.
var errSilent = errors.New("")

// exit prints an error and returns the exit code that it means.
func (a *App) exit(err error) int {
	if err == nil {
		return exitDone
	}
	code := exitFailed
	if _, usage := errors.AsType[usageError](err); usage || !a.running {
		code = exitUsage
	} else if _, state := errors.AsType[notInState](err); state {
		code = exitNotState
	}
	if !errors.Is(err, errSilent) {
		fmt.Fprintln(a.Stderr, ui.Bad("nixfleet:")+" "+err.Error())
	}
	if code == exitUsage {
		fmt.Fprintln(a.Stderr, "Run it with --help to see how it is used.")
	}
	return code
}
