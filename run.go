package main

import (
	"flag"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"plenum/agent"
	"plenum/overlay"
	"plenum/overlay/nebula"
	"plenum/overlay/wireguard"
)

// runCommand holds what units and Nomad start; people have other commands.
func runCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "run",
		Short: "Run one part of a host, as units and Nomad do",
	}
	logger := func(level, format string) (*slog.Logger, error) { return newLogger(os.Stderr, level, format) }
	c.AddCommand(agent.RunCommand(version(), logger), runOverlayCommand(), runSignalingCommand(), runBridgeCommand(), runEdgeCommand())
	return c
}

func runOverlayCommand() *cobra.Command {
	o := overlay.Options{Backends: map[string]func(*slog.Logger) overlay.Backend{"nebula": nebula.New, "wireguard": wireguard.New}}
	var level, format string
	c := &cobra.Command{
		Use:   "overlay",
		Short: "Own this host's two encrypted networks",
		Long: `Own the devices of this host's two encrypted networks, control and media, as
/var/lib/plenum/overlay.json says. SIGHUP makes it read that file again; GET /status on
/run/plenum/overlay.sock tells how it is. When it ends, the devices stay, silent.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			log, err := newLogger(os.Stderr, level, format)
			if err != nil {
				return err
			}
			o.Log = log
			return overlay.Run(c.Context(), o)
		},
	}
	own := flag.NewFlagSet("overlay", flag.ContinueOnError)
	o.Flags(own)
	c.Flags().AddGoFlagSet(own)
	c.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	c.Flags().StringVar(&format, "log-format", "text", "text or json")
	return c
}
