package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"plenum/signaling/client/probe"
)

func probeCommand() *cobra.Command {
	var shards []string
	var bridge, domain string
	var limit time.Duration
	c := &cobra.Command{
		Use:   "probe --shard URL | --bridge URL",
		Short: "Find out whether people can talk",
		Long: `Find out whether people can talk: two participants join, and each has to hear the other. The exit
status is 0 when they do and 1 when not.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), limit)
			defer cancel()
			began, what := time.Now(), strings.Join(append(shards, bridge), " ")
			var err error
			switch {
			case (len(shards) == 0) == (bridge == "") || len(shards) > 2:
				return errors.New("say what to probe: --shard URL, two of them at most, or --bridge URL")
			case len(shards) > 0:
				err = probe.Shard(ctx, domain, shards...)
			default:
				err = probe.Bridge(ctx, bridge)
			}
			if err != nil {
				return fmt.Errorf("%s does not carry sound: %w", strings.TrimSpace(what), err)
			}
			fmt.Fprintf(c.OutOrStdout(), "%s carries sound, after %v\n", strings.TrimSpace(what), time.Since(began).Round(time.Millisecond))
			return nil
		},
	}
	c.Flags().StringArrayVar(&shards, "shard", nil, "`URL` of a shard or an edge, as http://10.77.0.3:8000; given twice, one participant comes by each")
	c.Flags().StringVar(&bridge, "bridge", "", "`URL` of a bridge's private HTTP, as http://10.77.0.4:8080")
	c.Flags().StringVar(&domain, "domain", "localhost", "XMPP `DOMAIN` of the shard")
	c.Flags().DurationVar(&limit, "timeout", 5*time.Second, "how long it may take")
	return c
}
