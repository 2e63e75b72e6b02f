// Command plenum runs Jitsi-compatible video conferencing: signaling shards, media bridges and the web
// client in one static binary.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"plenum/agent"
	"plenum/jobs"
)

func main() { os.Exit(run()) }

// run executes the command line and returns the exit status.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := command().ExecuteContext(ctx)
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "plenum:", err)
		var coded interface{ ExitCode() int }
		if errors.As(err, &coded) {
			return coded.ExitCode()
		}
		return 1
	}
	return 0
}

// command is the table of all commands.
func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "plenum",
		Short:         "Video conferencing for communities, compatible with Jitsi",
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(devCommand(), runCommand(), roomCommand(), probeCommand())
	root.AddCommand(agent.CommandsWith(version(), carried)...)
	root.AddCommand(jobs.Commands(cluster)...)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w; %s --help lists the flags", err, c.CommandPath())
	})
	return root
}

// release is set by the linker for packages; a build from a checkout says its commit.
var release string

func version() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "0.1-" + s.Value[:12]
		}
	}
	return "0.1-dev"
}
