//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Node is what a link ends at: a *Host, a *NAT or a *Switch.
type Node interface{ node() *Host }

func (h *Host) node() *Host   { return h }
func (s *Switch) node() *Host { return nil }

// A Switch joins the links that end at it, and is a subnet: hosts get their addresses from its prefixes.
type Switch struct {
	lab      *Lab
	name     string
	bridge   netlink.Link
	prefixes []netip.Prefix
	taken    map[netip.Addr]bool
	ends     []*end
	gateways []netip.Addr // default routes of hosts that are linked
	routes   []route      // further routes of hosts that are linked
}

type route struct {
	to  netip.Prefix
	via netip.Addr
}

// Switch adds a switch with the given prefixes, one per address family that it speaks; without any it gets one of each
// family. An IPv6-only subnet is a switch with one IPv6 prefix.
func (l *Lab) Switch(name string, prefixes ...netip.Prefix) *Switch {
	l.t.Helper()
	if len(prefixes) == 0 {
		prefixes = l.publicPrefixes()
	}
	l.devices++
	s := &Switch{lab: l, name: name, prefixes: prefixes, taken: make(map[netip.Addr]bool)}
	bridge, err := l.addBridge(l.device("s", l.devices))
	l.must(err, "switch %s", name)
	s.bridge = bridge
	l.switches = append(l.switches, s)
	return s
}

func (l *Lab) addBridge(name string) (netlink.Link, error) {
	snoop := false
	b := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs(), MulticastSnooping: &snoop}
	b.Name = name
	if err := l.nl.LinkAdd(b); err != nil {
		return nil, err
	}
	return b, l.nl.LinkSetUp(b)
}

// Prefixes returns the subnets of the switch.
func (s *Switch) Prefixes() []netip.Prefix { return s.prefixes }

// Name returns the name of the switch.
func (s *Switch) Name() string { return s.name }

// free returns the switch's next unused address in the prefix.
func (s *Switch) free(p netip.Prefix) netip.Addr {
	for a := p.Masked().Addr().Next(); p.Contains(a); a = a.Next() {
		if !s.taken[a] {
			return a
		}
	}
	s.lab.t.Fatalf("netlab: switch %s: %s is full", s.name, p)
	return netip.Addr{}
}

// LinkConfig says how a link is when it is new. The zero value is a cable as fast as the kernel.
type LinkConfig struct {
	// Rate limits each direction, by the kernel (tbf). Zero is no limit.
	Rate Bitrate
	// MTU of the devices at both ends, in bytes; zero is 1500. A path that swallows what is larger than it admits has
	// Impairment.MTU.
	MTU int
	// Addrs are the addresses of the hosts at the ends, first host first; one per host and prefix, or none, for the
	// next free of each prefix.
	Addrs []netip.Addr
}

// A Link is a cable between two hosts or between a host and a switch. Its device on the host is eth0 for the host's
// first link, then eth1 and so on.
//
//	host           the lab's namespace of cables
//	eth0 ═════════ p ── switch                       plain
//	eth0 ═════════ p ── bridge ── q ═══ r ── switch  with a rate: tbf on p towards the host, on q away from it
//	eth0 ═════════ p ~~ engines ~ q ═══ r ── switch  impaired: two engines in this process, one per direction
//
// A link between two hosts is a switch with two ports, of which the first is the one that is limited or impaired.
type Link struct {
	lab  *Lab
	ends []*end // one per host
}

// An end is a link's port at a host.
type end struct {
	link *Link
	host *Host
	sw   *Switch
	name string // of the device on the host
	id   int
	mtu  int

	addrs []netip.Prefix

	eth, p, q, r netlink.Link // q and r are nil while the link is plain; eth is in the host, the rest in lab.wire
	mini         netlink.Link // the bridge between p and q while there is a rate, nil otherwise

	mu   sync.Mutex
	rate Bitrate
	away Impairment // of what the host sends
	to   Impairment // of what the host gets
	fwd  *forwarder // nil unless impaired
	last [2]Stats   // of the forwarder that was there before
	down bool
}

// Link joins a and b, of which one at least is a host, and gives the hosts addresses. Between two hosts it makes a
// subnet of its own.
func (l *Lab) Link(a, b Node, cfg LinkConfig) *Link {
	l.t.Helper()
	k := &Link{lab: l}
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	ha, hb := a.node(), b.node()
	switch {
	case ha != nil && hb != nil:
		sw := l.Switch(ha.name + "-" + hb.name)
		l.attach(k, ha, sw, &cfg)
		rate := cfg.Rate
		cfg.Rate = 0 // the first end does it for both directions
		l.attach(k, hb, sw, &cfg)
		cfg.Rate = rate
	case ha != nil:
		l.attach(k, ha, b.(*Switch), &cfg)
	case hb != nil:
		l.attach(k, hb, a.(*Switch), &cfg)
	default:
		l.t.Fatalf("netlab: a link between two switches; use a Router between their subnets")
	}
	l.links = append(l.links, k)
	return k
}

func (l *Lab) attach(k *Link, h *Host, sw *Switch, cfg *LinkConfig) {
	l.t.Helper()
	l.devices++
	e := &end{link: k, host: h, sw: sw, name: fmt.Sprintf("eth%d", len(h.links)), id: l.devices, mtu: cfg.MTU, rate: cfg.Rate}
	veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: e.name, PeerNamespace: netlink.NsFd(h.ns)}
	veth.Name, veth.MTU = l.device("p", e.id), cfg.MTU
	err := l.nl.LinkAdd(veth)
	if err == nil {
		e.p, err = l.nl.LinkByName(veth.Name)
	}
	if err == nil {
		e.eth, err = h.nl.LinkByName(e.name)
	}
	if err == nil {
		err = errors.Join(h.nl.LinkSetMTU(e.eth, cfg.MTU), l.nl.LinkSetUp(e.p), h.nl.LinkSetUp(e.eth))
	}
	l.must(err, "link of %s to %s", h.name, sw.name)
	k.ends = append(k.ends, e)
	h.links = append(h.links, e)
	sw.ends = append(sw.ends, e)
	e.mu.Lock()
	err = e.applyLocked()
	e.mu.Unlock()
	l.must(errors.Join(err, settle(h.nl, e.eth), settle(l.nl, e.p)), "link of %s to %s", h.name, sw.name)
	for i, prefix := range sw.prefixes {
		addr := netip.Addr{}
		if len(cfg.Addrs) > 0 {
			addr, cfg.Addrs = cfg.Addrs[0], cfg.Addrs[1:]
		} else {
			addr = sw.free(prefix)
		}
		e.addrs = append(e.addrs, netip.Prefix{})
		l.must(e.setAddr(i, netip.PrefixFrom(addr, prefix.Bits())), "%s: address %s", h.name, addr)
	}
	for _, gw := range sw.gateways {
		l.must(e.addRoute(route{via: gw}), "%s: route by %s", h.name, gw)
	}
	for _, r := range sw.routes {
		l.must(e.addRoute(r), "%s: route by %s", h.name, r.via)
	}
	l.must(l.cuts.refresh(), "cuts of %s", h.name)
}

// settle waits until the device is known to have a carrier. The kernel notices on its own time, and until then drops
// what is sent: the first question for an address, which is then not asked again for a second.
func settle(nl *netlink.Handle, dev netlink.Link) error {
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		now, err := nl.LinkByIndex(dev.Attrs().Index)
		if err != nil {
			return err
		}
		if now.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%s has no carrier", dev.Attrs().Name)
		}
	}
}

// setAddr replaces the end's i-th address.
func (e *end) setAddr(i int, addr netip.Prefix) error {
	if old := e.addrs[i]; old.IsValid() {
		if err := e.host.nl.AddrDel(e.eth, ipAddr(old)); err != nil {
			return err
		}
		delete(e.sw.taken, old.Addr())
	}
	e.sw.taken[addr.Addr()] = true
	e.addrs[i] = addr
	if err := e.host.nl.AddrAdd(e.eth, ipAddr(addr)); err != nil {
		return err
	}
	return e.answering()
}

// answering waits until every address of the end is in use: the kernel looks for duplicates of IPv6 addresses, or gets
// round to not looking, and only then joins their groups. With IFA_F_NODAD they would not be marked until then.
func (e *end) answering() error {
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		all, err := e.host.nl.AddrList(e.eth, netlink.FAMILY_V6)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(all, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 }) {
			return nil
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%s: addresses stay tentative: %v", e.name, all)
		}
	}
}

func ipAddr(p netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: ipNet(p)}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// addRoute adds a route by a neighbour on this link, unless the host is that neighbour; without a prefix it is the
// default route.
func (e *end) addRoute(r route) error {
	for _, p := range e.addrs {
		if p.Addr() == r.via {
			return nil
		}
	}
	n := &netlink.Route{LinkIndex: e.eth.Attrs().Index, Gw: r.via.AsSlice()}
	if r.to.IsValid() {
		n.Dst = ipNet(r.to.Masked())
	} else if r.via.Is4() {
		n.Dst = ipNet(netip.MustParsePrefix("0.0.0.0/0"))
	} else {
		n.Dst = ipNet(netip.MustParsePrefix("::/0"))
	}
	return e.host.nl.RouteReplace(n)
}

// end returns the link's end at the host.
func (k *Link) end(h *Host) *end {
	for _, e := range k.ends {
		if e.host == h {
			return e
		}
	}
	k.lab.t.Helper()
	k.lab.t.Fatalf("netlab: the link does not end at host %s", h.name)
	return nil
}

// Interface returns the name of the link's device on the host.
func (k *Link) Interface(n Node) string { k.lab.t.Helper(); return k.end(n.node()).name }

// Addr returns the host's address on the link, IPv4 where there is one.
func (k *Link) Addr(n Node) netip.Addr {
	k.lab.t.Helper()
	return k.end(n.node()).addrs[0].Addr()
}

// Addrs returns the host's addresses on the link with their prefixes, in the order of the switch's prefixes.
func (k *Link) Addrs(n Node) []netip.Prefix {
	k.lab.t.Helper()
	return append([]netip.Prefix(nil), k.end(n.node()).addrs...)
}

// Renumber gives the host the next free addresses on the link instead of those it has, as a provider does every night,
// and puts back the routes that the kernel dropped with them.
func (k *Link) Renumber(n Node) {
	k.lab.t.Helper()
	e := k.end(n.node())
	for i, p := range e.addrs {
		k.lab.must(e.setAddr(i, netip.PrefixFrom(e.sw.free(e.sw.prefixes[i]), p.Bits())), "%s: new address", e.host.name)
	}
	for _, gw := range e.sw.gateways {
		k.lab.must(e.addRoute(route{via: gw}), "%s: route by %s", e.host.name, gw)
	}
	for _, r := range e.sw.routes {
		k.lab.must(e.addRoute(r), "%s: route by %s", e.host.name, r.via)
	}
	k.lab.must(k.lab.cuts.refresh(), "cuts of %s", e.host.name)
}

// Down pulls the cable: the hosts at its ends lose the carrier.
func (k *Link) Down() { k.lab.t.Helper(); k.carrier(true) }

// Up plugs it in again.
func (k *Link) Up() { k.lab.t.Helper(); k.carrier(false) }

func (k *Link) carrier(down bool) {
	k.lab.t.Helper()
	for _, e := range k.ends {
		set := k.lab.nl.LinkSetUp
		if down {
			set = k.lab.nl.LinkSetDown
		}
		e.mu.Lock()
		e.down = down
		err := set(e.p)
		e.mu.Unlock()
		if err == nil && !down {
			err = errors.Join(settle(e.host.nl, e.eth), settle(k.lab.nl, e.p), e.answering())
		}
		k.lab.must(err, "cable of %s", e.host.name)
	}
}

// SetRate limits each direction from now on; zero takes the limit away. What waits in the queues may be lost.
func (k *Link) SetRate(rate Bitrate) {
	k.lab.t.Helper()
	e := k.ends[0]
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rate = rate
	k.lab.must(e.applyLocked(), "rate of %s's link", e.host.name)
}

// Impair makes both directions as bad as imp says, from now on; the zero Impairment heals. The second direction is
// seeded differently. By which neighbours find each other (ARP, neighbour discovery) is delayed as all else is, but not
// lost: so a flow's packets have the numbers that the seed goes by, and the first does not wait a second for nothing.
// Impair may be called while traffic flows; what is in flight arrives as it was due, except when the
// link was perfect before or is afterwards: then it may be lost.
func (k *Link) Impair(imp Impairment) {
	k.lab.t.Helper()
	back := imp
	if imp.harmful() {
		back.Seed = imp.Seed ^ 0x9e3779b97f4a7c15
	}
	k.impair(imp, back)
}

// ImpairFrom impairs only what the host sends over the link.
func (k *Link) ImpairFrom(n Node, imp Impairment) { k.lab.t.Helper(); k.impairOne(n, imp, true) }

// ImpairTo impairs only what the host gets over the link.
func (k *Link) ImpairTo(n Node, imp Impairment) { k.lab.t.Helper(); k.impairOne(n, imp, false) }

func (k *Link) impairOne(n Node, imp Impairment, away bool) {
	k.lab.t.Helper()
	e := k.ends[0]
	if k.end(n.node()) != e {
		away = !away // the other host's sending is the first one's receiving
	}
	e.mu.Lock()
	a, t := e.away, e.to
	e.mu.Unlock()
	if away {
		a = imp
	} else {
		t = imp
	}
	k.impair(a, t)
}

func (k *Link) impair(away, to Impairment) {
	k.lab.t.Helper()
	e := k.ends[0]
	k.lab.must(errors.Join(away.Validate(), to.Validate()), "impairment of %s's link", e.host.name)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.away, e.to = away, to
	k.lab.must(e.applyLocked(), "impairment of %s's link", e.host.name)
}

// Stats returns what the impairment did to what the link's first host sent and got, since the link was impaired.
func (k *Link) Stats() (sent, got Stats) {
	e := k.ends[0]
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fwd != nil {
		return e.fwd.stats()
	}
	return e.last[0], e.last[1]
}

// applyLocked makes the devices what rate and impairment ask for. The caller holds e.mu.
func (e *end) applyLocked() error {
	impaired := e.away.harmful() || e.to.harmful()
	if impaired && e.fwd != nil {
		e.fwd.set(e.limited(e.away), e.limited(e.to))
		return nil
	}
	l := e.link.lab
	if !impaired && e.fwd != nil {
		e.fwd.close()
		e.last[0], e.last[1] = e.fwd.stats()
		e.fwd = nil
		if err := errors.Join(offload(e.host.ns, e.name, true), offload(l.wire, e.r.Attrs().Name, true)); err != nil {
			return err
		}
	}
	if !impaired && e.rate == 0 { // plain
		if e.q != nil {
			if err := l.nl.LinkDel(e.q); err != nil {
				return err
			}
			e.q, e.r = nil, nil
		}
		if err := errors.Join(e.dropMini(), shape(l.nl, e.p, 0, e.mtu)); err != nil {
			return err
		}
		return l.nl.LinkSetMaster(e.p, e.sw.bridge)
	}
	if e.q == nil {
		veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: l.device("r", e.id)}
		veth.Name, veth.MTU = l.device("q", e.id), e.mtu
		if err := l.nl.LinkAdd(veth); err != nil {
			return err
		}
		var errQ, errR error
		e.q, errQ = l.nl.LinkByName(veth.Name)
		e.r, errR = l.nl.LinkByName(veth.PeerName)
		if err := errors.Join(errQ, errR); err != nil {
			return err
		}
		err := errors.Join(l.nl.LinkSetMTU(e.r, e.mtu), l.nl.LinkSetNoMaster(e.p), l.nl.LinkSetMaster(e.r, e.sw.bridge),
			l.nl.LinkSetUp(e.q), l.nl.LinkSetUp(e.r), settle(l.nl, e.q), settle(l.nl, e.r))
		if err != nil {
			return err
		}
	}
	if !impaired {
		if e.mini == nil {
			mini, err := l.addBridge(l.device("m", e.id))
			if err != nil {
				return err
			}
			e.mini = mini
		}
		return errors.Join(l.nl.LinkSetMaster(e.p, e.mini), l.nl.LinkSetMaster(e.q, e.mini),
			shape(l.nl, e.p, e.rate, e.mtu), shape(l.nl, e.q, e.rate, e.mtu))
	}
	// The engines see what the cable would carry: frames of at most the MTU with their checksums filled in. So the
	// senders on the other ends of p and q may leave neither segmentation nor checksums to the devices.
	err := errors.Join(l.nl.LinkSetNoMaster(e.p), l.nl.LinkSetNoMaster(e.q), e.dropMini(),
		shape(l.nl, e.p, 0, e.mtu), shape(l.nl, e.q, 0, e.mtu),
		offload(e.host.ns, e.name, false), offload(l.wire, e.r.Attrs().Name, false))
	if err != nil {
		return err
	}
	fwd, err := startForwarder(l.wire, e.p.Attrs().Index, e.q.Attrs().Index, e.limited(e.away), e.limited(e.to))
	if err != nil {
		return err
	}
	e.fwd = fwd
	l.background(fwd.close)
	return nil
}

func (e *end) dropMini() error {
	if e.mini == nil {
		return nil
	}
	err := e.link.lab.nl.LinkDel(e.mini)
	e.mini = nil
	return err
}

// limited returns imp with the link's rate where it has none of its own.
func (e *end) limited(imp Impairment) Impairment {
	if imp.Rate == 0 {
		imp.Rate = e.rate
	}
	return imp
}

// shape puts a token bucket of 100 ms before the device, or takes it away when the rate is zero.
func shape(nl *netlink.Handle, dev netlink.Link, rate Bitrate, mtu int) error {
	attrs := netlink.QdiscAttrs{LinkIndex: dev.Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0)}
	tbf := &netlink.Tbf{QdiscAttrs: attrs}
	if rate == 0 {
		err := nl.QdiscDel(tbf)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) { // there was none
			return nil
		}
		return err
	}
	bytes := uint64(rate) / 8
	burst := uint32(max(bytes/200, uint64(2*(mtu+18)))) // 5 ms, and never so small that a full frame does not fit
	tbf.Rate = bytes
	tbf.Buffer = netlink.Xmittime(bytes, burst)
	tbf.Limit = uint32(bytes/10) + burst
	return nl.QdiscReplace(tbf)
}
