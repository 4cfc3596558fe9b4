// Command nixfleet-agent makes a host what its signed release says, and reports what became of it.
//
// It uses the standard library's flags: what runs as root on every host links as little as it can.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"nixfleet.dev/nixfleet/internal/agent"
	"nixfleet.dev/nixfleet/internal/agent/activation/directory"
	"nixfleet.dev/nixfleet/internal/clock"
)

// Exit codes (design/wire.md, Command lines).
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	if directory.HelperMain(os.Args) {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// command is one subcommand.
type command struct {
	name, short, long string
	example           string
	run               func(context.Context, agent.Config, agent.Options) error
}

var commands = []command{
	{
		name: "run", short: "Run the agent until SIGINT or SIGTERM",
		long: "Run the agent until SIGINT or SIGTERM. A host without a certificate enrols first, by the token\n" +
			"that the configuration names.",
		example: "nixfleet-agent run --config /etc/nixfleet/agent.toml",
		run:     agent.Run,
	},
	{
		name: "enroll", short: "Get this host its certificate, and end",
		long: "Get this host its certificate by its enrollment token, and end. The key is made here and never\n" +
			"leaves the host. A host that has a good certificate is left as it is.",
		example: "nixfleet-agent enroll --config /etc/nixfleet/agent.toml --tls-enrollment-token ./web-01.token",
		run:     agent.Enroll,
	},
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		usage(stderr)
		return exitUsage
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		usage(stdout)
		return exitDone
	case "version", "-version", "--version":
		fmt.Fprintln(stdout, "nixfleet-agent", version())
		return exitDone
	}
	for _, c := range commands {
		if c.name == args[0] {
			return c.main(ctx, args[1:], stdout, stderr)
		}
	}
	fmt.Fprintf(stderr, "nixfleet-agent: there is no command %q\n\n", args[0])
	usage(stderr)
	return exitUsage
}

func usage(w io.Writer) {
	fmt.Fprint(w, "Make a host what its signed release says, and report what became of it.\n\nUsage:\n  nixfleet-agent COMMAND [flags]\n\nCommands:\n")
	for _, c := range commands {
		fmt.Fprintf(w, "  %-9s %s\n", c.name, c.short)
	}
	fmt.Fprint(w, "  version   Print the version\n\nnixfleet-agent COMMAND --help says more.\n")
}

// main parses a subcommand's flags and runs it.
func (c command) main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet(c.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	config := flags.String("config", agent.DefaultConfig, "configuration file")
	level := flags.String("log-level", "info", "least level of what is logged: debug, info, warn or error")
	for _, s := range agent.Settings() {
		flags.String(s.Name, "", s.Usage)
	}
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		c.help(stdout, flags)
		return exitDone
	}
	var least slog.Level
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("%q is not a flag", flags.Arg(0))
	}
	if err == nil && least.UnmarshalText([]byte(*level)) != nil {
		err = fmt.Errorf("--log-level %q is none of debug, info, warn and error", *level)
	}
	if err != nil {
		fmt.Fprintf(stderr, "nixfleet-agent %s: %v; --help lists the flags\n", c.name, err)
		return exitUsage
	}
	if err := c.start(ctx, *config, given(flags), least, stderr); err != nil {
		fmt.Fprintf(stderr, "nixfleet-agent %s: %v\n", c.name, err)
		return exitFailed
	}
	return exitDone
}

// given returns the settings that flags were given for.
func given(flags *flag.FlagSet) map[string]string {
	values := map[string]string{}
	flags.Visit(func(f *flag.Flag) { values[f.Name] = f.Value.String() })
	delete(values, "config")
	delete(values, "log-level")
	return values
}

func (c command) start(ctx context.Context, config string, flags map[string]string, least slog.Level, stderr io.Writer) error {
	loaded, err := agent.LoadWith(config, flags)
	if err != nil {
		return err
	}
	return c.run(ctx, loaded, agent.Options{
		Logger: slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: least})), Clock: clock.System{}, Version: version(),
	})
}

func (c command) help(w io.Writer, flags *flag.FlagSet) {
	fmt.Fprintf(w, "%s\n\nUsage:\n  nixfleet-agent %s [flags]\n\nExamples:\n  %s\n\nFlags go before NIXFLEET_* variables ([tls] cert is NIXFLEET_TLS_CERT), and those before the file.\n\nFlags:\n", c.long, c.name, c.example)
	flags.VisitAll(func(f *flag.Flag) {
		fmt.Fprintf(w, "  --%-28s %s", f.Name, f.Usage)
		if f.DefValue != "" {
			fmt.Fprintf(w, " (default %s)", f.DefValue)
		}
		fmt.Fprintln(w)
	})
}

// version is that of the module, as the build recorded it.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
