package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/spf13/cobra"
)

// dnsLife is how long resolvers keep a record, seconds: as long as an edge that has died is asked for nothing.
const dnsLife = 60

// An Edge is one that answers callers.
type Edge struct {
	Host    string     `json:"host"`
	Region  string     `json:"region"`
	Address netip.Addr `json:"address"`
}

func dnsCommand(release string) *cobra.Command {
	c := &Command{Release: release}
	var hook string
	var watch bool
	cmd := &cobra.Command{Use: "dns NAME", Short: "Print the DNS records of the edges that are alive", Args: cobra.ExactArgs(1),
		Long: `Print the DNS records of the edges that are alive: NAME with the addresses of all, and REGION.NAME with those of
each region. With --hook they are given to a program whenever they change, on its standard input; so an edge
that dies is withdrawn. While no edge is alive, or nobody can tell, nothing is changed.`}
	c.common(cmd, false)
	cmd.Flags().StringVar(&hook, "hook", "", "program that puts the records into your DNS, such as a script with nsupdate")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "again whenever they change")
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return c.DNS(cmd.Context(), args[0], hook, watch) }
	return cmd
}

// DNS prints the records or hands them on, once or whenever they change.
func (c *Command) DNS(ctx context.Context, name, hook string, watch bool) error {
	w, err := newWork(c.Root)
	if err != nil {
		return err
	}
	if !w.joined() {
		return errors.New("this host is in no cluster: plenum init or plenum join TOKEN")
	}
	told := ""
	for {
		edges, err := w.edges(ctx)
		records := zone(name, edges)
		switch {
		case err == nil && len(edges) == 0:
			err = errors.New("no edge is alive: the records stay as they are (plenum edge add REGION)")
		case err == nil && records != told:
			if err = c.hand(ctx, hook, records, edges); err == nil {
				told = records
			}
		}
		if !watch {
			return err
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "plenum dns:", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(2 * time.Second):
		}
	}
}

// hand prints the records, or gives them to the hook.
func (c *Command) hand(ctx context.Context, hook, records string, edges []Edge) error {
	switch {
	case hook != "":
		cmd := exec.CommandContext(ctx, hook)
		cmd.Stdin, cmd.Stdout = strings.NewReader(records), c.Out
		var complaint bytes.Buffer
		cmd.Stderr = &complaint
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w: %s", hook, err, bytes.TrimSpace(complaint.Bytes()))
		}
		return nil
	case c.JSON:
		return c.json(edges)
	}
	_, err := fmt.Fprint(c.Out, records)
	return err
}

// edges are those whose checks pass, by host.
func (w *work) edges(ctx context.Context) ([]Edge, error) {
	client, err := consulClient(w.answer.Consul.Token)
	if err != nil {
		return nil, err
	}
	entries, _, err := client.Health().Service("plenum-edge", "", true, (&consul.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("the catalog does not answer: %w", plain(err))
	}
	var all []Edge
	for _, e := range entries {
		if a, err := netip.ParseAddr(e.Service.Meta["public_ip"]); err == nil {
			all = append(all, Edge{e.Node.Node, e.Service.Meta["region"], a.Unmap()})
		}
	}
	slices.SortFunc(all, func(a, b Edge) int { return a.Address.Compare(b.Address) })
	return all, nil
}

// zone is the records of edges as a zone file has them (RFC 1035, section 5), in an order that does not change by itself.
func zone(name string, edges []Edge) string {
	name = strings.TrimSuffix(name, ".") + "."
	var lines []string
	for _, e := range edges {
		kind := "AAAA"
		if e.Address.Is4() {
			kind = "A"
		}
		for _, n := range []string{name, e.Region + "." + name} {
			lines = append(lines, fmt.Sprintf("%s %d IN %s %s\n", n, dnsLife, kind, e.Address))
		}
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "")
}
