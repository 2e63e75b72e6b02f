package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"plenum/signaling/client/probe"
)

func probeCommand() *cobra.Command {
	var shard, bridge, domain string
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
			began := time.Now()
			var err error
			switch {
			case (shard == "") == (bridge == ""):
				return errors.New("say what to probe: --shard URL or --bridge URL")
			case shard != "":
				err = probe.Shard(ctx, shard, domain)
			default:
				err = probe.Bridge(ctx, bridge)
			}
			if err != nil {
				return fmt.Errorf("%s%s does not carry sound: %w", shard, bridge, err)
			}
			fmt.Fprintf(c.OutOrStdout(), "%s%s carries sound, after %v\n", shard, bridge, time.Since(began).Round(time.Millisecond))
			return nil
		},
	}
	c.Flags().StringVar(&shard, "shard", "", "`URL` of a shard, as http://10.77.0.3:8000")
	c.Flags().StringVar(&bridge, "bridge", "", "`URL` of a bridge's private HTTP, as http://10.77.0.4:8080")
	c.Flags().StringVar(&domain, "domain", "localhost", "XMPP `DOMAIN` of the shard")
	c.Flags().DurationVar(&limit, "timeout", 5*time.Second, "how long it may take")
	return c
}
