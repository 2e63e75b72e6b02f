//go:build linux

package netlab

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
)

// cuts are the one-way partitions between hosts, as a table of the packet filter of the lab's switches. Two hosts on one
// switch are cut by port, whatever the addresses; others by their addresses, wherever those appear. Neighbours may still
// ask for each other's hardware address: without that the way that is open would close as soon as a cache forgets.
type cuts struct {
	lab    *Lab
	loaded bool
	made   map[[2]*Host][]string // the elements that a cut added: "SET { ELEMENT }"
	users  map[string]int        // how many cuts have an element
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

// Cut stops everything that from sends to to; the other direction goes on. A host behind a NAT is cut from hosts
// outside by what its own link shows, so its neighbours behind the same NAT are not; two hosts behind two NATs show
// each other nothing but the NATs, so cut these.
func (l *Lab) Cut(from, to Node) {
	l.t.Helper()
	l.must(l.cuts.cut(from.node(), to.node()), "cut")
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
	l.must(l.cuts.heal(a.node(), b.node()), "heal")
	l.must(l.cuts.heal(b.node(), a.node()), "heal")
}

func (c *cuts) cut(from, to *Host) error {
	if from == nil || to == nil || from == to {
		return fmt.Errorf("a cut is between two hosts")
	}
	pair := [2]*Host{from, to}
	if c.made[pair] != nil {
		return nil
	}
	var elements []string
	for _, f := range from.links {
		for _, t := range to.links {
			if f.sw != t.sw {
				continue
			}
			for _, in := range []byte("pr") { // r is the port's device while the link is limited or impaired
				for _, out := range []byte("pr") {
					elements = append(elements, fmt.Sprintf("ports { %q . %q }", fmt.Sprint(string(in), f.id), fmt.Sprint(string(out), t.id)))
				}
			}
		}
	}
	for _, f := range from.Addrs() {
		for _, t := range to.Addrs() {
			if f.Is4() == t.Is4() {
				elements = append(elements, fmt.Sprintf("%s { %s . %s }", family(f), f, t))
			}
		}
	}
	var script strings.Builder
	if !c.loaded {
		script.WriteString(cutTable)
	}
	for _, e := range elements {
		if c.users[e] == 0 {
			fmt.Fprintf(&script, "add element bridge netlab %s\n", e)
		}
	}
	if err := c.nft(script.String()); err != nil {
		return err
	}
	if !c.loaded {
		c.loaded, c.made, c.users = true, make(map[[2]*Host][]string), make(map[string]int)
	}
	for _, e := range elements {
		c.users[e]++
	}
	c.made[pair] = elements
	return nil
}

func (c *cuts) heal(from, to *Host) error {
	pair := [2]*Host{from, to}
	var script strings.Builder
	for _, e := range c.made[pair] {
		if c.users[e]--; c.users[e] == 0 {
			delete(c.users, e)
			fmt.Fprintf(&script, "delete element bridge netlab %s\n", e)
		}
	}
	delete(c.made, pair)
	return c.nft(script.String())
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

func family(a netip.Addr) string {
	if a.Is4() {
		return "four"
	}
	return "six"
}
