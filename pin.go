package main

import (
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"plenum/signaling"
	"plenum/signaling/rooms"
)

// ledgerOptions say where a cluster keeps who owns a room.
type ledgerOptions struct{ consul, roomKey, domain string }

func (o *ledgerOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.consul, "consul", "http://127.0.0.1:8500", "`URL` of a Consul agent")
	f.StringVar(&o.roomKey, "room-key", os.Getenv("PLENUM_SIGNALING_ROOM_KEY"), "`SECRET` of the cluster (default: PLENUM_SIGNALING_ROOM_KEY)")
	f.StringVar(&o.domain, "domain", "localhost", "XMPP `DOMAIN` of the shards")
	c.Flags().Lookup("room-key").DefValue = "" // not in the help
}

func (o *ledgerOptions) open() (*rooms.Ledger, error) {
	if o.roomKey == "" {
		return nil, fmt.Errorf("--room-key SECRET is missing: rooms have no names in Consul without it")
	}
	return rooms.OpenLedger(o.consul, []byte(o.roomKey))
}

func roomPinCommand() *cobra.Command {
	var o ledgerOptions
	var plan, remove bool
	c := &cobra.Command{
		Use:   "pin ROOM [SHARD]",
		Short: "Have a room open on a shard, from its next opening on",
		Long: `Have a room open on a shard, from its next opening on: one that is open stays where it is until it is empty
or its shard is drained. A shard that is not there is no obstacle: the room opens elsewhere.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if (len(args) == 2) == remove {
				return fmt.Errorf("name a SHARD, or say --remove")
			}
			ledger, err := o.open()
			if err != nil {
				return err
			}
			room, err := signaling.Address(o.domain, args[0])
			if err != nil {
				return err
			}
			e, err := ledger.Entry(c.Context(), room)
			if err != nil {
				return err
			}
			shard := append(args, "")[1]
			out := c.OutOrStdout()
			if e.Session != "" {
				fmt.Fprintf(out, "%s is open on %s and stays there until it is empty\n", args[0], e.Record.Name)
			}
			if e.Pin == shard {
				fmt.Fprintln(out, "nothing to change")
				return nil
			}
			from, to := e.Pin, shard
			if from == "" {
				from = "any shard"
			}
			if to == "" {
				to = "any shard"
			}
			fmt.Fprintf(out, "%s: %s → %s\n", args[0], from, to)
			if plan {
				return nil
			}
			return ledger.Pin(c.Context(), room, shard)
		},
	}
	o.flags(c)
	c.Flags().BoolVar(&plan, "plan", false, "say what would change, and change nothing")
	c.Flags().BoolVar(&remove, "remove", false, "let the room open anywhere again")
	return c
}

func roomListCommand() *cobra.Command {
	var o ledgerOptions
	var output string
	c := &cobra.Command{
		Use:   "list",
		Short: "List rooms by owner; they have no names in Consul, only keys",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("--output %s: want text or json", output)
			}
			ledger, err := rooms.OpenLedger(o.consul, nil)
			if err != nil {
				return err
			}
			all, err := ledger.Rooms(c.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				e := json.NewEncoder(c.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(all)
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ROOM\tSHARD\tTOKEN\tPIN")
			for _, r := range all {
				owner := r.Shard
				if !r.Held {
					owner = "-"
				}
				fmt.Fprintf(w, "%.12s\t%s\t%d\t%s\n", r.Key, owner, r.Token, r.Pin)
			}
			return w.Flush()
		},
	}
	c.Flags().StringVar(&o.consul, "consul", "http://127.0.0.1:8500", "`URL` of a Consul agent")
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}
