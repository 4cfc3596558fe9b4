// Command nixfleet releases, watches and operates a fleet.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"nixfleet.dev/nixfleet/internal/agent/activation/directory"
	"nixfleet.dev/nixfleet/internal/cli"
)

func main() {
	if directory.HelperMain(os.Args) { // the demo's hosts switch by it
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	code := cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
