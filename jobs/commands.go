package jobs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/signal"
	"strconv"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// An exit is an error with a status of its own, for scripts.
type exit struct {
	error
	status int
}

func (e exit) ExitCode() int { return e.status }
func (e exit) Unwrap() error { return e.error }

// Exit statuses of drains.
const (
	exitForced    = 2 // people were on it when the time was over
	exitCancelled = 3 // it goes on as before
)

func status(err error) error {
	switch {
	case errors.Is(err, ErrForced):
		return exit{err, exitForced}
	case errors.Is(err, ErrCancelled):
		return exit{err, exitCancelled}
	}
	return err
}

// A command is what they have in common.
type command struct {
	connect func(root string) (*Cluster, error)
	root    string
	output  string
}

// Commands are shard, bridge and edge. connect finds the cluster of the host whose root is given.
func Commands(connect func(root string) (*Cluster, error)) []*cobra.Command {
	return []*cobra.Command{shardCommand(connect), bridgeCommand(connect), edgeCommand(connect)}
}

// group makes a command with its verbs.
func (c *command) group(use, short string, verbs ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: use, Short: short}
	g.PersistentFlags().StringVar(&c.root, "root", "/", "folder that stands for / in every path")
	g.AddCommand(verbs...)
	return g
}

// add makes the verb that submits a job.
func (c *command) add(use, short, long string, spec func(ctx context.Context, cluster *Cluster, name, domain string) (Spec, error), flags func(*cobra.Command, *Spec)) *cobra.Command {
	var plan, restart bool
	var domain string
	var vars []string
	var given Spec
	var wait time.Duration
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.ExactArgs(1)}
	f := cmd.Flags()
	f.BoolVar(&plan, "plan", false, "say what would change and whom it hurts, and stop")
	f.BoolVar(&restart, "restart", false, "start it anew if the change needs that, also with people on it; shards and bridges are drained before")
	f.StringVar(&domain, "domain", "", "XMPP `DOMAIN` of the cluster; its first job fixes it")
	f.StringArrayVar(&vars, "var", nil, "`NAME=VALUE` of a variable of the job file, as memory=512; repeatable")
	f.DurationVar(&wait, "wait", time.Minute, "how long to wait until it serves")
	given.Vars = map[string]any{}
	if flags != nil {
		flags(cmd, &given)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		began, out := time.Now(), cmd.OutOrStdout()
		cluster, err := c.connect(c.root)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), wait)
		defer cancel()
		if domain, err = cluster.Domain(ctx, domain); err != nil {
			return err
		}
		s, err := spec(ctx, cluster, args[0], domain)
		for errors.Is(err, ErrNotYet) && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(250 * time.Millisecond):
				s, err = spec(ctx, cluster, args[0], domain)
			}
		}
		if err != nil {
			return err
		}
		for name, v := range given.Vars {
			s.Vars[name] = v
		}
		for _, v := range vars {
			if err := s.Set(v); err != nil {
				return err
			}
		}
		p, err := cluster.Plan(ctx, s)
		if err != nil {
			return err
		}
		p.Print(out)
		if plan {
			return nil
		}
		if p.hurts() {
			if !restart {
				return fmt.Errorf("%s: %w: --restart has that done now; or take what is new beside it, and drain this one then", p.Spec.ID(), ErrHurts)
			}
			if s.Kind != Edge {
				hup, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP)
				defer stop()
				if err := cluster.Drain(hup, s.ID(), Drain{Out: out}); err != nil {
					return status(err)
				}
				ctx, cancel = context.WithTimeout(cmd.Context(), wait) // people took their time
				defer cancel()
			}
		}
		i, err := cluster.Submit(ctx, p)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s serves on %s, after %v\n", i.Job, i.Host, time.Since(began).Round(100*time.Millisecond))
		return nil
	}
	return cmd
}

// leave makes a verb that empties an instance, and does more then.
func (c *command) leave(use, short, long, kind string, do func(ctx context.Context, cluster *Cluster, job string, d Drain) error) *cobra.Command {
	var d Drain
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.ExactArgs(1)}
	cmd.Flags().DurationVar(&d.Deadline, "deadline", 0, "how long to wait for people; 0 is as long as it takes")
	if kind == Shard {
		cmd.Flags().BoolVar(&d.Force, "force", false, "although no other shard takes its rooms: they stay until their people leave")
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cluster, err := c.connect(c.root)
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP) // a lost terminal is a Ctrl-C
		defer stop()
		d.Out = cmd.OutOrStdout()
		return status(do(ctx, cluster, kind+"-"+args[0], d))
	}
	return cmd
}

// drain makes the verb that empties an instance and leaves it running.
func (c *command) drain(use, short, long, kind string) *cobra.Command {
	var back bool
	cmd := c.leave(use, short, fmt.Sprintf(drainLong, long), kind, func(ctx context.Context, cluster *Cluster, job string, d Drain) error {
		if back {
			return cluster.Undrain(ctx, job)
		}
		return cluster.Drain(ctx, job, d)
	})
	cmd.Flags().BoolVar(&back, "cancel", false, "take a drain back")
	return cmd
}

// list makes the verb that lists.
func (c *command) list(kind, head string, row func(Instance) string) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List them with whom they serve", Args: cobra.NoArgs}
	cmd.Flags().StringVarP(&c.output, "output", "o", "text", "text or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if c.output != "text" && c.output != "json" {
			return fmt.Errorf("--output %s: want text or json", c.output)
		}
		cluster, err := c.connect(c.root)
		if err != nil {
			return err
		}
		all, err := cluster.List(cmd.Context(), kind)
		if err != nil {
			return err
		}
		if c.output == "json" {
			e := json.NewEncoder(cmd.OutOrStdout())
			e.SetIndent("", "  ")
			return e.Encode(all)
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, head+"\tRELEASE\tAGE\tSTATE")
		for _, i := range all {
			since := "-"
			if !i.Since.IsZero() {
				since = age(time.Since(i.Since))
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", row(i), cmp.Or(i.Release, "-"), since, cmp.Or(i.Why, i.Load.Drain, "serves"))
		}
		return w.Flush()
	}
	return cmd
}

// age is how long something runs, in its two largest units at most.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < time.Hour:
		return strconv.Itoa(int(d.Minutes())) + "m"
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}

const drainLong = `%s The exit status is 0 when nobody is left, 2 when the
deadline came before, 3 when it was taken back, by Ctrl-C or because no other shard is left, and 1 for everything else.`

func shardCommand(connect func(string) (*Cluster, error)) *cobra.Command {
	c := &command{connect: connect}
	var region string
	add := c.add("add NAME --region REGION", "Add a shard, or change it",
		`Add a shard, or change it. Edges find it by themselves, and give it its share of new rooms bit by bit.`,
		func(ctx context.Context, cluster *Cluster, name, domain string) (Spec, error) {
			if region == "" {
				return Spec{}, errors.New("--region REGION is missing: where the shard is to be")
			}
			return cluster.ShardSpec(ctx, name, region, domain)
		}, func(cmd *cobra.Command, _ *Spec) {
			cmd.Flags().StringVar(&region, "region", "", "`REGION` that it serves")
		})
	return c.group("shard", "Run signaling shards",
		add,
		c.drain("drain NAME", "Have a shard give its rooms to others, one by one",
			`Have a shard give its rooms to others, one by one; people stay in their calls.`, Shard),
		c.leave("rm NAME", "Drain a shard and remove it",
			fmt.Sprintf(drainLong, `Drain a shard, stop it and remove its job. At the deadline it is stopped with whoever is on it.`), Shard,
			func(ctx context.Context, cluster *Cluster, job string, d Drain) error {
				return cluster.Remove(ctx, job, d, false)
			}),
		c.list(Shard, "SHARD\tREGION\tHOST\tROOMS\tPEOPLE\tBRIDGES", func(i Instance) string {
			return fmt.Sprintf("%s\t%s\t%s\t%d\t%d\t%d", i.Name, i.Region, i.Host, i.Load.Rooms, i.Load.People, i.Load.Bridges)
		}))
}

func bridgeCommand(connect func(string) (*Cluster, error)) *cobra.Command {
	c := &command{connect: connect}
	var advertise []string
	var uplink int
	var url string
	add := c.add("add HOST", "Run a bridge on a host, or change it", `Run a bridge on a host, or change it. Every shard uses it.`,
		func(ctx context.Context, cluster *Cluster, name, domain string) (Spec, error) {
			s, err := cluster.BridgeSpec(ctx, name, domain)
			if err == nil && len(advertise) > 0 {
				s.Vars["advertise"] = advertise
			}
			if err == nil && uplink > 0 {
				s.Vars["uplink"] = uplink
			}
			if err == nil && url != "" {
				s.Vars["ws_url"] = url
			}
			return s, err
		}, func(cmd *cobra.Command, _ *Spec) {
			f := cmd.Flags()
			f.StringArrayVar(&advertise, "advertise", nil, "`PUBLIC[:PORT]` by which clients reach a host behind NAT; repeatable")
			f.IntVar(&uplink, "uplink", 0, "`MBIT` per second that it may send; 0 is no limit")
			f.StringVar(&url, "ws-url", "", "`URL` of the edges, as wss://meet.example, for the channel by WebSocket")
		})
	wake := &cobra.Command{Use: "wake HOST", Short: "Start a parked bridge again", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		cluster, err := c.connect(c.root)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
		defer cancel()
		i, err := cluster.Wake(ctx, Bridge, args[0])
		if err == nil {
			fmt.Fprintf(cmd.OutOrStdout(), "%s serves on %s\n", i.Job, i.Host)
		}
		return err
	}}
	return c.group("bridge", "Run media bridges", add,
		c.drain("drain HOST", "Give a bridge no new conferences, and wait until its people have left",
			`Give a bridge no new conferences, and wait until its people have left.`, Bridge),
		c.leave("park HOST", "Drain a bridge and stop it, to be woken again",
			fmt.Sprintf(drainLong, `Drain a bridge and stop it. plenum bridge wake starts it again.`), Bridge,
			func(ctx context.Context, cluster *Cluster, job string, d Drain) error {
				return cluster.Remove(ctx, job, d, true)
			}),
		wake,
		c.list(Bridge, "BRIDGE\tREGION\tHOST\tROOMS\tPEOPLE\tMBIT/S\tSTRESS\tSHARDS", func(i Instance) string {
			return fmt.Sprintf("%s\t%s\t%s\t%d\t%d\t%.1f\t%.2f\t%d", i.Name, i.Region, i.Host, i.Load.Rooms, i.Load.People, i.Load.Mbit, i.Load.Stress, i.Load.Shards)
		}))
}

func edgeCommand(connect func(string) (*Cluster, error)) *cobra.Command {
	c := &command{connect: connect}
	var names []string
	var email string
	var http, https int
	add := c.add("add REGION", "Run an edge on each edge host of a region, or change them",
		`Run an edge, HAProxy and what feeds it, on each host of a region that has the role edge.`,
		func(ctx context.Context, cluster *Cluster, name, domain string) (Spec, error) {
			s, err := cluster.EdgeSpec(ctx, name, domain)
			if err != nil {
				return s, err
			}
			if len(names) == 0 && https != 0 {
				names = []string{domain}
			}
			s.Vars["names"], s.Vars["email"], s.Vars["http"], s.Vars["https"] = names, email, http, https
			return s, nil
		}, func(cmd *cobra.Command, _ *Spec) {
			f := cmd.Flags()
			f.StringArrayVar(&names, "name", nil, "DNS `NAME` that certificates are for; repeatable (default: the cluster's domain)")
			f.StringVar(&email, "email", "", "`ADDRESS` that the certificate authority may write to")
			f.IntVar(&http, "http", 80, "`PORT` of plain HTTP")
			f.IntVar(&https, "https", 443, "`PORT` of HTTPS; 0 serves everything by plain HTTP")
		})
	return c.group("edge", "Run the edges of a region", add,
		c.list(Edge, "EDGES\tREGION\tHOST", func(i Instance) string { return fmt.Sprintf("%s\t%s\t%s", i.Name, i.Region, i.Host) }))
}
