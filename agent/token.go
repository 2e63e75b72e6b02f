package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"plenum/agent/host"
	"plenum/agent/join"
	"plenum/agent/pki"
)

// admin is the join service of this server host, for root.
func (c *Command) admin() (join.Admin, error) {
	h, err := host.Open(c.Root)
	return join.Admin{Socket: h.Path("run/plenum/join.sock")}, err
}

// server makes a command that asks the join service of this host.
func server(release string, cmd *cobra.Command, do func(ctx context.Context, c *Command, a join.Admin, who string, args []string) error) *cobra.Command {
	c := &Command{Release: release}
	c.common(cmd, false)
	who := cmd.Flags().String("admin", os.Getenv("PLENUM_ADMIN"), "who you are among the cluster's admins, for its audit log (PLENUM_ADMIN)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		a, err := c.admin()
		if err != nil {
			return err
		}
		return do(cmd.Context(), c, a, *who, args)
	}
	return cmd
}

// table prints rows under a head.
func (c *Command) table(head string, rows [][]string) error {
	t := tabwriter.NewWriter(c.Out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, strings.ReplaceAll(head, " ", "\t"))
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}

func (c *Command) json(v any) error {
	_, err := c.Out.Write(append(marshal(v), '\n'))
	return err
}

func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04")
}

func tokenCommand(release string) *cobra.Command {
	root := &cobra.Command{Use: "token", Short: "Make, list and revoke join tokens (on a server host)"}
	var q join.TokenRequest
	create := server(release, &cobra.Command{Use: "create --region REGION --roles bridge,shard", Short: "Make a join token for one host", Args: cobra.NoArgs},
		func(ctx context.Context, c *Command, a join.Admin, who string, _ []string) error {
			q.Admin = who
			t, err := a.TokenCreate(ctx, q)
			switch {
			case err != nil:
				return err
			case c.JSON:
				return c.json(t)
			}
			c.say("%s", t.Text)
			fmt.Fprintf(os.Stderr, "for one host as %s in %s, until %s. There: plenum join TOKEN\n", strings.Join(t.Roles, ", "), t.Region, when(t.Expires))
			return nil
		})
	create.Flags().StringVar(&q.Region, "region", "", "region of the host")
	create.Flags().StringSliceVar(&q.Roles, "roles", []string{join.RoleBridge}, "server, edge, shard, bridge, recorder")
	create.Flags().DurationVar(&q.TTL, "ttl", time.Hour, "how long it may be used")
	list := server(release, &cobra.Command{Use: "list", Short: "List tokens", Args: cobra.NoArgs},
		func(ctx context.Context, c *Command, a join.Admin, _ string, _ []string) error {
			all, err := a.Tokens(ctx)
			if err != nil || c.JSON {
				return orJSON(c, all, err)
			}
			var rows [][]string
			for _, t := range all {
				rows = append(rows, []string{t.ID, t.State, t.Region, strings.Join(t.Roles, ","), t.Admin, when(t.Expires), t.Host})
			}
			return c.table("ID STATE REGION ROLES ADMIN EXPIRES HOST", rows)
		})
	revoke := server(release, &cobra.Command{Use: "revoke ID", Short: "Make a token useless; a host that has used it stays", Args: cobra.ExactArgs(1)},
		func(ctx context.Context, c *Command, a join.Admin, who string, args []string) error {
			if err := a.TokenRevoke(ctx, args[0], who); err != nil {
				return err
			}
			c.say("token %s is revoked", args[0])
			return nil
		})
	root.AddCommand(create, list, revoke)
	return root
}

func orJSON(c *Command, v any, err error) error {
	if err != nil {
		return err
	}
	return c.json(v)
}

func hostCommand(release string) *cobra.Command {
	root := &cobra.Command{Use: "host", Short: "List and revoke hosts (on a server host)"}
	list := server(release, &cobra.Command{Use: "list", Short: "List hosts, those that were put out too", Args: cobra.NoArgs},
		func(ctx context.Context, c *Command, a join.Admin, _ string, _ []string) error {
			all, err := a.Hosts(ctx)
			if err != nil || c.JSON {
				return orJSON(c, all, err)
			}
			var rows [][]string
			for _, h := range all {
				rows = append(rows, []string{h.Host, h.State, h.Region, strings.Join(h.Roles, ","), h.Release, h.Control.String(), h.Media.String(), h.Admin, when(h.Joined), when(h.Expires)})
			}
			return c.table("HOST STATE REGION ROLES RELEASE CONTROL MEDIA ADMIN JOINED CERTIFICATE", rows)
		})
	var force bool
	revoke := server(release, &cobra.Command{Use: "revoke HOST", Short: "Put a host out, at once and everywhere", Args: cobra.ExactArgs(1),
		Long: `Put a host out: its certificates are blocked and its tunnels closed on every host, its tokens and its
Nomad node are gone, its name and addresses are free. It works with Vault sealed, too.`},
		func(ctx context.Context, c *Command, a join.Admin, who string, args []string) error {
			if err := a.Revoke(ctx, args[0], who, force); err != nil {
				return err
			}
			c.say("%s is revoked", args[0])
			return nil
		})
	revoke.Flags().BoolVar(&force, "force", false, "put out even a server without which the others have no majority")
	root.AddCommand(list, revoke)
	return root
}

func adminCommand(release string) *cobra.Command {
	root := &cobra.Command{Use: "admin", Short: "List, add and remove the people who run the cluster (on a server host)"}
	list := server(release, &cobra.Command{Use: "list", Short: "List admins", Args: cobra.NoArgs},
		func(ctx context.Context, c *Command, a join.Admin, _ string, _ []string) error {
			all, err := a.Admins(ctx)
			if err != nil || c.JSON {
				return orJSON(c, all, err)
			}
			var rows [][]string
			for _, p := range all {
				rows = append(rows, []string{p.Name, when(p.Added), p.By, p.Recipient})
			}
			return c.table("NAME ADDED BY KEY", rows)
		})
	add := server(release, &cobra.Command{Use: "add NAME=age1…", Short: "Add an admin; prints their tokens, encrypted to their key", Args: cobra.ExactArgs(1)},
		func(ctx context.Context, c *Command, a join.Admin, who string, args []string) error {
			name, key, ok := strings.Cut(args[0], "=")
			if !ok {
				return fmt.Errorf("%q is not NAME=age1…", args[0])
			}
			p, err := a.AdminAdd(ctx, name, key, who)
			if err != nil || c.JSON {
				return orJSON(c, p, err)
			}
			c.say("%s", p.Bundle)
			return nil
		})
	remove := server(release, &cobra.Command{Use: "rm NAME", Short: "Take an admin's tokens away", Args: cobra.ExactArgs(1)},
		func(ctx context.Context, c *Command, a join.Admin, who string, args []string) error {
			if err := a.AdminRemove(ctx, args[0], who); err != nil {
				return err
			}
			c.say("%s is no admin any more; old backups stay readable with their key", args[0])
			return nil
		})
	root.AddCommand(list, add, remove)
	return root
}

func caCommand(release string) *cobra.Command {
	root := &cobra.Command{Use: "ca", Short: "Rotate the cluster's keys (on a server host)"}
	var force bool
	var shares []string
	rotate := server(release, &cobra.Command{Use: "rotate trust|issue|retire|gossip", Short: "Take the rotation of all CAs one stage on", Args: cobra.ExactArgs(1),
		Long: `Rotate the CAs in three stages, so that no two hosts ever lose each other: trust makes new ones and has
every host believe both; issue signs by the new ones; retire forgets the old ones. Hosts hear of each stage
within half a minute and renew; the next one waits until all have. gossip changes Consul's gossip key at once.`},
		func(ctx context.Context, c *Command, a join.Admin, who string, args []string) error {
			stage := pki.Stage(args[0])
			switch i := slices.Index(stages, stage); {
			case stage == "gossip":
				if err := a.RotateGossip(ctx, who); err != nil {
					return err
				}
				c.say("the gossip key is another")
				return nil
			case i < 0:
				return fmt.Errorf("%q is none of trust, issue, retire, gossip", stage)
			case i > 0 && !force:
				if err := c.renewed(ctx, a); err != nil {
					return err
				}
			}
			if err := a.RotateCA(ctx, stage, who, force, shares...); err != nil {
				return err
			}
			c.say("%s", map[pki.Stage]string{pki.StageTrust: "new CAs are made, and hosts begin to believe both. Next: plenum ca rotate issue",
				pki.StageIssue: "certificates come from the new CAs. Next: plenum ca rotate retire", pki.StageRetire: "the old CAs are forgotten"}[stage])
			return nil
		})
	status := server(release, &cobra.Command{Use: "status", Short: "Show how far a rotation of the CAs is, and whom it waits for", Args: cobra.NoArgs},
		func(ctx context.Context, c *Command, a join.Admin, _ string, _ []string) error {
			s, err := a.Status(ctx)
			if err != nil || c.JSON {
				return orJSON(c, s, err)
			}
			if s.Sealed {
				return errors.New("nobody knows while Vault is sealed: plenum unseal")
			}
			c.say("generation %d, stage %s; hosts that have not renewed since: %s", s.Generation, cmp.Or(s.Stage, "none"), cmp.Or(strings.Join(s.Late, ", "), "none"))
			return nil
		})
	rotate.Flags().BoolVar(&force, "force", false, "go on though hosts have not renewed; they come back by their host keys")
	rotate.Flags().StringArrayVar(&shares, "share", nil, "a share of Vault's key, where people hold it; three times")
	root.AddCommand(rotate, status)
	return root
}

var stages = []pki.Stage{pki.StageTrust, pki.StageIssue, pki.StageRetire}

// renewed waits until every host has renewed since the last stage of a rotation.
func (c *Command) renewed(ctx context.Context, a join.Admin) error {
	said := ""
	for {
		s, err := a.Status(ctx)
		if err != nil || len(s.Late) == 0 {
			return err
		}
		if late := strings.Join(s.Late, ", "); late != said {
			c.say("waiting for %s to renew; who is off comes back by its host key: --force does not wait", late)
			said = late
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
}

func unsealCommand(release string) *cobra.Command {
	c := &Command{Release: release}
	cmd := &cobra.Command{Use: "unseal [SHARE]", Short: "Open this server's Vault, by its file or by a share", Args: cobra.MaximumNArgs(1)}
	c.common(cmd, false)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		w, err := newWork(c.Root)
		if err != nil {
			return err
		}
		if !w.is(join.RoleServer) {
			return errors.New("there is no Vault here: it runs on server hosts")
		}
		v, err := pki.New(w.pki())
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), patience)
		defer cancel()
		switch err := v.Unseal(ctx, args...); {
		case errors.Is(err, pki.ErrShares) && len(args) > 0: // each of several people gives one
			c.say("%v", err)
			return nil
		case err != nil:
			return err
		}
		c.say("Vault is open")
		return nil
	}
	return cmd
}
