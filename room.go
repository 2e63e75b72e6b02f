package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"plenum/jobs"
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
	var root, output string
	c := &cobra.Command{
		Use:   "trace ROOM",
		Short: "Show who gets what in a room, over which ways, and why",
		Long: `Show for each person in a room what the way from the bridge carries, which pictures it has room for and
why not more, what is lost and what waits, and which layers the person sends; which bridge the room has, and
why that one. On a server host, and where NOMAD_ADDR names a Nomad, it asks all shards and bridges of the
cluster, elsewhere those of this machine, or whom --from names, at the addresses that only operators reach:
--metrics of a shard, --bridge-http of a bridge.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("--output %s: want text or json", output)
			}
			ctx, cancel := context.WithTimeout(c.Context(), 10*time.Second)
			defer cancel()
			if len(parts) == 0 {
				parts = everywhere(ctx, root)
			}
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
	c.Flags().StringArrayVar(&parts, "from", nil, "`URL` of a shard's metrics or of a bridge's private HTTP; repeatable")
	c.Flags().StringVar(&root, "root", "/", "folder that stands for / in every path")
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

// everywhere is where all shards and bridges of the cluster tell operators of themselves, or those of this machine.
func everywhere(ctx context.Context, root string) (parts []string) {
	if k, err := cluster(root); err == nil {
		for _, kind := range []string{jobs.Shard, jobs.Bridge} {
			all, err := k.List(ctx, kind)
			if err != nil {
				break
			}
			for _, i := range all {
				if i.Metrics != "" {
					parts = append(parts, strings.TrimSuffix(i.Metrics, "/metrics"))
				}
			}
		}
	}
	if len(parts) == 0 {
		parts = []string{"http://127.0.0.1:9711", "http://127.0.0.1:8080"}
	}
	return parts
}
