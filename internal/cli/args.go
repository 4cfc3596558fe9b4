package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"nixfleet.dev/nixfleet/internal/fleet"
	"nixfleet.dev/nixfleet/internal/manifest"
)

// noArgs and takesArgs say what a command line should have been, in the command's own words.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no argument, and was given %q", cmd.CommandPath(), args[0])
	}
	return nil
}

// takesArgs wants one argument for each word of the command's use line; with more, at least those.
func takesArgs(cmd *cobra.Command, args []string) error {
	_, names, _ := strings.Cut(cmd.Use, " ")
	want := strings.Fields(names)
	more := strings.HasSuffix(names, "...")
	if len(args) == len(want) || more && len(args) > len(want) {
		return nil
	}
	return usagef("%s needs %s, and was given %s", cmd.CommandPath(), names, counted(len(args), "argument"))
}

// counted writes a number of things: "1 host", "2 hosts".
func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// hostArgument checks an argument that names a host.
func hostArgument(name string) error {
	if !fleet.ValidHostname(name) {
		return usagef("%q is not a host name; nixfleet host list shows them", name)
	}
	return nil
}

// rolloutArgument checks an argument that names a rollout.
func rolloutArgument(id string) error {
	if _, _, err := manifest.ParseID(id); err != nil {
		return usagef("%q is not a rollout id such as stable@0a1b2c3d; nixfleet rollout list shows them", id)
	}
	return nil
}
