package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"plenum/signaling/trace"
)

// roomCommand holds what operators ask about one room.
func roomCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "room",
		Short: "Look into a room",
	}
	c.AddCommand(roomTraceCommand(), roomPinCommand(), roomListCommand())
	return c
}

func roomTraceCommand() *cobra.Command {
	var parts []string
	var output string
	c := &cobra.Command{
		Use:   "trace ROOM",
		Short: "Show who gets what in a room, over which ways, and why",
		Long: `Show for each person in a room what the way from the bridge carries, which pictures it has room for and
why not more, what is lost and what waits, and which layers the person sends. It asks shards and bridges at
the addresses that only operators reach: --metrics of a shard, --bridge-http of a bridge.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("--output %s: want text or json", output)
			}
			ctx, cancel := context.WithTimeout(c.Context(), 10*time.Second)
			defer cancel()
			v, err := trace.Fetch(ctx, args[0], parts)
			if err != nil {
				return fmt.Errorf("%w; --from names the shards and bridges to ask, now %q", err, parts)
			}
			if output == "json" {
				e := json.NewEncoder(c.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(v)
			}
			return v.Print(c.OutOrStdout())
		},
	}
	c.Flags().StringArrayVar(&parts, "from", []string{"http://127.0.0.1:9711", "http://127.0.0.1:8080"}, "`URL` of a shard's metrics or of a bridge's private HTTP; repeatable")
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}
