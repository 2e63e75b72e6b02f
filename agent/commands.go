package agent

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// Commands are the agent's part of the command table, for who knows nothing of what hosts carry.
func Commands(release string) []*cobra.Command { return CommandsWith(release, nil) }

// CommandsWith are the same, where somebody does.
func CommandsWith(release string, carried Carried) []*cobra.Command {
	all := []*cobra.Command{initCommand(release), joinCommand(release), leaveCommand(release), doctorCommand(release), statusCommand(release, carried),
		tokenCommand(release), hostCommand(release), adminCommand(release), caCommand(release), unsealCommand(release), backupCommand(release), restoreCommand(release), rebootCommand(release), dnsCommand(release)}
	finish(all...)
	return all
}

// finish gives commands what all of them have: how one is used, where it is used wrongly, and an exit status of its own
// where it is interrupted.
func finish(all ...*cobra.Command) {
	for _, c := range all {
		finish(c.Commands()...)
		if check := c.Args; check != nil {
			c.Args = func(c *cobra.Command, args []string) error {
				if check(c, args) != nil {
					return fmt.Errorf("usage: %s; %s --help says more", c.UseLine(), c.CommandPath())
				}
				return nil
			}
		}
		if run := c.RunE; run != nil {
			c.RunE = func(c *cobra.Command, args []string) error {
				err := run(c, args)
				if c.Context().Err() != nil && errors.Is(err, context.Canceled) {
					return interrupted{c.CommandPath(), err}
				}
				return err
			}
		}
	}
}

// interrupted is a command that somebody stopped. What it had done stays, and it goes on when it is run again.
type interrupted struct {
	command string
	err     error
}

func (i interrupted) Error() string {
	if text, more := strings.CutSuffix(i.err.Error(), ": "+context.Canceled.Error()); more {
		return "interrupted: " + text
	}
	return "interrupted: " + i.command + " goes on where it was when it is run again"
}

// ExitCode is what shells say of a program that an interrupt has ended.
func (interrupted) ExitCode() int { return 130 }

// common registers the flags that commands which change a host have.
func (c *Command) common(cmd *cobra.Command, plan bool) {
	f := cmd.Flags()
	f.StringVar(&c.Root, "root", "/", "folder that stands for / in every path")
	if plan {
		f.BoolVar(&c.Plan, "plan", false, "say what would be done, and why, and stop")
	}
	f.VarP((*output)(c), "output", "o", "text or json")
	cmd.PreRun = func(*cobra.Command, []string) { c.Out = cmd.OutOrStdout() }
}

// output is the flag -o.
type output Command

func (o *output) Set(s string) error {
	if s != "text" && s != "json" {
		return fmt.Errorf("%q is neither text nor json", s)
	}
	o.JSON = s == "json"
	return nil
}
func (o *output) Type() string { return "format" }
func (o *output) String() string {
	if o.JSON {
		return "json"
	}
	return "text"
}

// hostFlags are what a host says of itself; the function puts them over what plenum.hcl says.
func hostFlags(cmd *cobra.Command) func(*Config) {
	var given Config
	f := cmd.Flags()
	f.StringVar(&given.Host, "host", "", "name of this host in the cluster (default: the machine's)")
	f.StringVar(&given.Address, "address", "", "stable address of this host for other hosts (default: that of the default route)")
	f.StringSliceVar(&given.Public, "public", nil, "addresses under which clients reach this host, where interfaces do not tell")
	f.IntVar(&given.UplinkMbit, "uplink-mbit", 0, "rate of the slowest link on the way out; 0 is unknown")
	return func(c *Config) {
		c.Host, c.Address = cmp.Or(given.Host, c.Host), cmp.Or(given.Address, c.Address)
		c.UplinkMbit = cmp.Or(given.UplinkMbit, c.UplinkMbit)
		if len(given.Public) > 0 {
			c.Public = given.Public
		}
	}
}

func initCommand(release string) *cobra.Command {
	c := &Command{Release: release}
	f := Founding{}
	var control, media, unseal, hostLife, serverLife string
	cmd := &cobra.Command{
		Use:   "init --cluster NAME --region REGION",
		Short: "Make this host the first of a new cluster",
		Long: `Make this host the first of a new cluster: Vault and its CAs, both encrypted networks, Consul, Nomad and
the join service. The plan is printed by --plan; a second run changes nothing. Killed and run again it
goes on.`,
		Args: cobra.NoArgs,
	}
	c.common(cmd, true)
	set := hostFlags(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.Cluster, "cluster", "", "name of the cluster (default plenum)")
	fl.StringVar(&f.Region, "region", "", "region of this host, such as ber")
	fl.StringSliceVar(&f.Roles, "roles", nil, "what this host does (default server,edge,shard,bridge)")
	fl.StringSliceVar(&f.Admins, "admin", nil, "NAME=age1…: the first admins; backups and the break-glass key are for their eyes")
	fl.StringVar(&control, "control", "", "prefix of the control network (default "+DefaultControl.String()+")")
	fl.StringVar(&media, "media", "", "prefix of the media network (default "+DefaultMedia.String()+")")
	fl.StringVar(&c.Binaries, "binaries", "", "folder with plenum, consul, nomad and vault")
	fl.StringVar(&unseal, "unseal", "", "file: Vault is opened by a file that root alone reads; shamir: by people")
	fl.StringVar(&hostLife, "host-life", "", "life of host certificates (default 336h)")
	fl.StringVar(&serverLife, "server-life", "", "life of server certificates (default 2160h)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		for _, p := range []struct {
			flag, text string
			to         *netip.Prefix
		}{{"--control", control, &f.Control}, {"--media", media, &f.Media}} {
			if p.text == "" {
				continue
			}
			var err error
			if *p.to, err = netip.ParsePrefix(p.text); err != nil {
				return fmt.Errorf("%s %q is no prefix such as %s", p.flag, p.text, DefaultControl)
			}
		}
		return c.Init(cmd.Context(), f, func(cfg *Config) {
			set(cfg)
			cfg.Unseal, cfg.HostLife, cfg.ServerLife = cmp.Or(unseal, cfg.Unseal), cmp.Or(hostLife, cfg.HostLife), cmp.Or(serverLife, cfg.ServerLife)
		})
	}
	return cmd
}

func joinCommand(release string) *cobra.Command {
	c := &Command{Release: release}
	cmd := &cobra.Command{
		Use:   "join TOKEN",
		Short: "Make this host a part of a cluster",
		Long: `Make this host a part of the cluster that TOKEN is of (plenum token create on a server makes one). Keys are
made here and stay here; nothing is sent before the join service has proved itself. A second run changes
nothing. Killed and run again it goes on. "-" reads the token from standard input; without one it is taken
from PLENUM_TOKEN.`,
		Args: cobra.ArbitraryArgs, // a token that was pasted with white space in it
	}
	c.common(cmd, true)
	set := hostFlags(cmd)
	cmd.Flags().StringVar(&c.Binaries, "binaries", "", "folder with plenum, consul and nomad; otherwise the join service sends them")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		text, err := tokenArgument(cmd, args)
		if err != nil {
			return err
		}
		return c.Join(cmd.Context(), text, set)
	}
	return cmd
}

// tokenArgument is the token of the command line, of standard input or of the environment. White space in it does not
// matter.
func tokenArgument(cmd *cobra.Command, args []string) (string, error) {
	switch {
	case len(args) == 0:
		return os.Getenv("PLENUM_TOKEN"), nil
	case args[0] != "-":
		return strings.Join(args, ""), nil
	}
	b, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), 8<<10))
	if err != nil {
		return "", fmt.Errorf("standard input: %w", err)
	}
	return string(b), nil
}

func leaveCommand(release string) *cobra.Command {
	c := &Command{Release: release}
	var force bool
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Take this host out of its cluster and remove what plenum made here",
		Args:  cobra.NoArgs,
	}
	c.common(cmd, true)
	cmd.Flags().BoolVar(&force, "force", false, "leave though the cluster does not answer")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return c.Leave(cmd.Context(), force) }
	return cmd
}

func doctorCommand(release string) *cobra.Command {
	c := &Command{Release: release}
	var fix bool
	cmd := &cobra.Command{
		Use:   "doctor [TOKEN]",
		Short: "Look at what this host needs, before it joins and after",
		Args:  cobra.ArbitraryArgs,
	}
	c.common(cmd, false)
	cmd.Flags().BoolVar(&fix, "fix", false, "repair what can be taken back")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		text, err := tokenArgument(cmd, args)
		if err != nil {
			return err
		}
		return c.Doctor(cmd.Context(), fix, text)
	}
	return cmd
}

// RunCommand is plenum run agent. logger makes the logger that the command line asks for.
func RunCommand(release string, logger func(level, format string) (*slog.Logger, error)) *cobra.Command {
	o := Options{Release: release}
	var level, format string
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Keep this host what it should be",
		Long: `Keep this host what its cluster says it should be: observe, plan, apply, every few seconds; renew
certificates, register the host, and on server hosts run the join service. What it started goes on without it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Log, err = logger(level, format); err != nil {
				return err
			}
			return Run(cmd.Context(), o)
		},
	}
	own := flag.NewFlagSet("agent", flag.ContinueOnError)
	o.Flags(own)
	cmd.Flags().AddGoFlagSet(own)
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().StringVar(&format, "log-format", "text", "text or json")
	return cmd
}
