//go:build linux

package netlab

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// A NATKind says what a NAT does to UDP, in the words of RFC 4787. TCP is masqueraded by all kinds but NoNAT.
type NATKind int

const (
	// NoNAT forwards and changes nothing; hosts outside get a route to the subnet inside.
	NoNAT NATKind = iota
	// FullCone maps an address and port inside to one port outside, whoever it talks to, and lets anybody in by it.
	FullCone
	// RestrictedCone maps as FullCone does, and lets in what comes from an address that was sent to.
	RestrictedCone
	// PortRestrictedCone maps as FullCone does, and lets in what comes from an address and port that was sent to.
	PortRestrictedCone
	// Symmetric maps anew for every address and port that is sent to, to a random port, and lets nothing else in.
	Symmetric
)

func (k NATKind) String() string {
	switch k {
	case NoNAT:
		return "none"
	case FullCone:
		return "full cone"
	case RestrictedCone:
		return "restricted cone"
	case PortRestrictedCone:
		return "port-restricted cone"
	case Symmetric:
		return "symmetric"
	}
	return fmt.Sprintf("NATKind(%d)", int(k))
}

// NATConfig says what kind of box stands between two subnets.
type NATConfig struct {
	Kind NATKind
	// Prefixes are the subnets inside. Without any there is a private IPv4 subnet, and for NoNAT one of each family
	// that the switch outside speaks. An IPv6 subnet is routed, not translated: behind any kind but NoNAT a firewall
	// lets in only what answers.
	Prefixes []netip.Prefix
	// Hairpin lets hosts inside reach each other by the outer address. It is for FullCone.
	Hairpin bool
	// Timeout forgets UDP mappings that were not used for so long; zero is the kernel's 30 s for what was never
	// answered and 120 s otherwise. Whole seconds.
	Timeout time.Duration
	// Uplink is the cable outside.
	Uplink LinkConfig
}

// A NAT is a host that forwards between the switch outside, its first link, and the switch inside, its second.
type NAT struct {
	*Host
	Inside  *Switch // where the hosts behind it are linked
	Outside *Link   // its cable to the world
	cfg     NATConfig
}

// NAT adds a box between the switch outside and a new one inside. Hosts linked to the switch inside have it as their
// default route.
func (l *Lab) NAT(name string, outside *Switch, cfg NATConfig) *NAT {
	l.t.Helper()
	if len(cfg.Prefixes) == 0 {
		cfg.Prefixes = []netip.Prefix{l.privatePrefix()}
		if cfg.Kind == NoNAT {
			cfg.Prefixes = nil
			for _, p := range l.publicPrefixes() {
				if outside.speaks(p.Addr()) {
					cfg.Prefixes = append(cfg.Prefixes, p)
				}
			}
		}
	}
	n := &NAT{Host: l.Host(name), cfg: cfg, Inside: l.Switch(name+"-inside", cfg.Prefixes...)}
	n.Outside = l.Link(n.Host, outside, cfg.Uplink)
	l.Link(n.Host, n.Inside, LinkConfig{})
	n.Sysctl("net.ipv4.ip_forward", "1")
	n.Sysctl("net.ipv6.conf.all.forwarding", "1")
	for _, in := range n.links[1].addrs {
		n.Inside.gateways = append(n.Inside.gateways, in.Addr())
		out := n.outer(in.Addr())
		if in.Addr().Is4() && cfg.Kind != NoNAT || !out.IsValid() {
			continue
		}
		r := route{to: in, via: out}
		outside.routes = append(outside.routes, r)
		for _, e := range outside.ends {
			if e.host != n.Host {
				l.must(e.addRoute(r), "%s: route to %s", e.host.name, r.to)
			}
		}
	}
	if cfg.Kind != NoNAT {
		n.Nft(n.rules())
	}
	if cfg.Timeout > 0 {
		s := fmt.Sprint(n.timeout())
		n.Sysctl("net.netfilter.nf_conntrack_udp_timeout", s)
		n.Sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", s)
	}
	return n
}

// Router adds a host that forwards between two subnets: a NAT of the kind that is none, between two switches that
// exist. Hosts on either get a route to the other.
func (l *Lab) Router(name string, a, b *Switch) *Host {
	l.t.Helper()
	h := l.Host(name)
	h.Sysctl("net.ipv4.ip_forward", "1")
	h.Sysctl("net.ipv6.conf.all.forwarding", "1")
	l.Link(h, a, LinkConfig{})
	l.Link(h, b, LinkConfig{})
	for i, sw := range []*Switch{a, b} {
		for _, far := range h.links[1-i].addrs {
			for _, near := range h.links[i].addrs {
				if near.Addr().Is4() != far.Addr().Is4() {
					continue
				}
				r := route{to: far, via: near.Addr()}
				sw.routes = append(sw.routes, r)
				for _, e := range sw.ends {
					if e.host != h {
						l.must(e.addRoute(r), "%s: route to %s", e.host.name, r.to)
					}
				}
			}
		}
	}
	return h
}

func (s *Switch) speaks(a netip.Addr) bool {
	for _, p := range s.prefixes {
		if p.Addr().Is4() == a.Is4() {
			return true
		}
	}
	return false
}

// outer returns the NAT's outer address of the family of a, or the zero address.
func (n *NAT) outer(a netip.Addr) netip.Addr {
	for _, p := range n.links[0].addrs {
		if p.Addr().Is4() == a.Is4() {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// rules returns the packet filter of the box.
//
// Linux's own masquerading keeps the port when it can and else takes a random one, which is neither cone nor symmetric
// when two hosts inside use one port. Here a hash of the inner address and port chooses the outer port of all cones, and
// a map remembers what it stands for.
//
// What is not let in is dropped before it is recorded, for a recorded stray packet would take the port pair that a host
// inside is about to use, and so turn hole punching into luck.
func (n *NAT) rules() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line(`table ip nat {`)
	line(`	map cone { type inet_service : ipv4_addr . inet_service; size 65535; flags dynamic,timeout; timeout %ds; }`, n.timeout())
	line(`	set sent { type ipv4_addr . inet_service . ipv4_addr; size 65535; flags dynamic,timeout; timeout %ds; }`, n.timeout())
	line(`	map forwards { type inet_proto . inet_service : ipv4_addr . inet_service; }`)
	line(`	chain prerouting {`)
	line(`		type nat hook prerouting priority dstnat;`)
	line(`		ip daddr OUT dnat ip to meta l4proto . th dport map @forwards`)
	if n.cfg.Kind == FullCone || n.cfg.Kind == RestrictedCone {
		line(`		ip daddr OUT meta l4proto udp ct mark set 1`) // what no person has forwarded
		if !n.cfg.Hairpin {
			line(`		iifname "eth1" return`)
		}
		line(`		ip daddr OUT meta l4proto udp dnat ip to udp dport map @cone`)
	}
	line(`	}`)
	line(`	chain remember {`)
	line(`		type filter hook forward priority filter - 1;`)
	line(`		iifname "eth1" meta l4proto udp update @cone { PORT : ip saddr . udp sport }`)
	line(`		iifname "eth1" meta l4proto udp update @sent { ip saddr . udp sport . ip daddr }`)
	if n.cfg.Kind == RestrictedCone {
		line(`		iifname "eth0" ct mark 1 ct state new ip daddr . udp dport . ip saddr != @sent drop`)
	}
	line(`	}`)
	line(`	chain postrouting {`)
	line(`		type nat hook postrouting priority srcnat;`)
	if n.cfg.Kind == Symmetric {
		line(`		oifname "eth0" meta l4proto udp masquerade to :10000-59999 fully-random`)
	} else {
		line(`		oifname "eth0" meta l4proto udp snat ip to OUT : PORT`)
	}
	if n.cfg.Hairpin { // what turns round must look as if it came from outside, or the answer goes the short way
		line(`		ip saddr IN oifname "eth1" meta l4proto udp ct status dnat snat ip to OUT : PORT`)
	}
	line(`		oifname "eth0" masquerade`)
	line(`	}`)
	line(`}`)
	line(`table inet firewall {`)
	line(`	chain input {`)
	line(`		type filter hook input priority filter; policy drop;`)
	line(`		iifname { "lo", "eth1" } accept`)
	line(`		ct state established,related accept`)
	line(`		meta l4proto { icmp, ipv6-icmp } accept`)
	line(`	}`)
	line(`	chain forward {`)
	line(`		type filter hook forward priority filter; policy drop;`)
	line(`		iifname "eth1" accept`)
	line(`		ct state established,related accept`)
	line(`		ct status dnat accept`)
	line(`	}`)
	line(`}`)
	return strings.NewReplacer("OUT", n.Addr().String(), "IN", n.links[1].addrs[0].Masked().String(),
		"PORT", "jhash ip saddr . udp sport mod 50000 seed 0x9e37 offset 10000").Replace(b.String())
}

// timeout returns the life of what a cone remembers, in seconds.
func (n *NAT) timeout() int {
	if n.cfg.Timeout > 0 {
		return int(max(n.cfg.Timeout, time.Second) / time.Second)
	}
	return 600
}

// Addr returns the NAT's outer address, which hosts outside see.
func (n *NAT) Addr() netip.Addr { return n.outer(netip.IPv4Unspecified()) }

// Forward maps a port of the NAT's outer address to a port of a host inside, as a person does in the box's web page.
// The protocol is "udp" or "tcp".
func (n *NAT) Forward(protocol string, port uint16, to *Host, toPort uint16) {
	n.lab.t.Helper()
	for _, e := range to.links {
		if e.sw == n.Inside && e.addrs[0].Addr().Is4() {
			n.Nft(fmt.Sprintf("add element ip nat forwards { %s . %d : %s . %d }\n", protocol, port, e.addrs[0].Addr(), toPort))
			return
		}
	}
	n.lab.t.Fatalf("netlab: host %s is not behind %s", to.name, n.name)
}

// Forget drops every mapping, as a box does that restarts.
func (n *NAT) Forget() {
	n.lab.t.Helper()
	n.Nft("flush map ip nat cone\nflush set ip nat sent\n")
	n.lab.must(n.nl.ConntrackTableFlush(netlink.ConntrackTable), "%s: forget", n.name)
}
