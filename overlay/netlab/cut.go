//go:build linux

package netlab

import (
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"strings"
)

// cuts are the one-way partitions between hosts, as a table of the packet filter of the lab's switches. Two hosts on one
// switch are cut by port, whatever the addresses; others by their addresses, wherever those appear. Neighbours may still
// ask for each other's hardware address: without that the way that is open would close as soon as a cache forgets.
type cuts struct {
	lab   *Lab
	made  map[[2]*Host][]string // the elements of each cut: "SET { ELEMENT }"; nil until there is a first
	users map[string]int        // how many cuts have an element
}

const cutTable = `table bridge netlab {
	set ports { typeof iifname . oifname; }
	set four { type ipv4_addr . ipv4_addr; }
	set six { type ipv6_addr . ipv6_addr; }
	chain forward {
		type filter hook forward priority 0; policy accept;
		ether type arp accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		iifname . oifname @ports drop
		ip saddr . ip daddr @four drop
		ip6 saddr . ip6 daddr @six drop
	}
}
`

// Cut stops everything that from sends to to; the other direction goes on. It holds when addresses change and links are
// added. A host behind a NAT is cut from hosts outside by what its own link shows, so its neighbours behind the same NAT
// are not; two hosts behind two NATs show each other nothing but the NATs, so cut these.
func (l *Lab) Cut(from, to Node) {
	l.t.Helper()
	pair := [2]*Host{from.node(), to.node()}
	if pair[0] == nil || pair[1] == nil || pair[0] == pair[1] {
		l.t.Fatalf("netlab: a cut is between two hosts")
	}
	l.must(l.cuts.set(pair, elements(pair[0], pair[1])), "cut")
}

// Partition stops everything between a and b, both ways. Both still reach others, and others them.
func (l *Lab) Partition(a, b Node) {
	l.t.Helper()
	l.Cut(a, b)
	l.Cut(b, a)
}

// Heal undoes Cut and Partition between a and b, in both directions.
func (l *Lab) Heal(a, b Node) {
	l.t.Helper()
	l.must(l.cuts.set([2]*Host{a.node(), b.node()}, nil), "heal")
	l.must(l.cuts.set([2]*Host{b.node(), a.node()}, nil), "heal")
}

// elements returns what the filter has to know to keep from's packets from to.
func elements(from, to *Host) (all []string) {
	for _, f := range from.links {
		for _, t := range to.links {
			if f.sw != t.sw {
				continue
			}
			for _, in := range "pr" { // r is the port's device while the link is limited or impaired
				for _, out := range "pr" {
					all = append(all, fmt.Sprintf(`ports { "%c%d" . "%c%d" }`, in, f.id, out, t.id))
				}
			}
		}
	}
	for _, f := range from.Addrs() {
		for _, t := range to.Addrs() {
			if f.Is4() == t.Is4() {
				all = append(all, fmt.Sprintf("%s { %s . %s }", family(f), f, t))
			}
		}
	}
	return all
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "four"
	}
	return "six"
}

// set replaces the elements of a cut, in one transaction of the filter; without any the cut is healed.
func (c *cuts) set(pair [2]*Host, elements []string) error {
	if c.made == nil {
		if elements == nil {
			return nil
		}
		if err := c.nft(cutTable); err != nil {
			return err
		}
		c.made, c.users = make(map[[2]*Host][]string), make(map[string]int)
	}
	before := maps.Clone(c.users)
	for _, e := range elements {
		c.users[e]++
	}
	for _, e := range c.made[pair] {
		c.users[e]--
	}
	var script strings.Builder
	for e, n := range c.users {
		if n > 0 && before[e] == 0 {
			fmt.Fprintf(&script, "add element bridge netlab %s\n", e)
		} else if n == 0 {
			fmt.Fprintf(&script, "delete element bridge netlab %s\n", e)
			delete(c.users, e)
		}
	}
	if c.made[pair] = elements; elements == nil {
		delete(c.made, pair)
	}
	return c.nft(script.String())
}

// refresh makes the cuts hold for the links and addresses that the hosts have now.
func (c *cuts) refresh() error {
	for pair := range c.made {
		if err := c.set(pair, elements(pair[0], pair[1])); err != nil {
			return err
		}
	}
	return nil
}

func (c *cuts) nft(script string) error {
	if script == "" {
		return nil
	}
	return within(c.lab.wire, func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	})
}
