package bridge

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// A candidate is one of our addresses as a description names it.
type candidate struct {
	Addr       netip.AddrPort
	Type       string         // "host", or "srflx" for an advertised one
	Related    netip.AddrPort // of srflx: the local address behind it
	Priority   uint32
	Foundation string
}

// candidatesOf makes the candidates of bound sockets and of advertised public addresses (RFC 8445 §5.1.2).
func candidatesOf(local, advertise []netip.AddrPort) []candidate {
	var list []candidate
	add := func(a, related netip.AddrPort, kind string, preference int) {
		i := len(list)
		list = append(list, candidate{
			Addr: a, Type: kind, Related: related, Foundation: strconv.Itoa(i + 1),
			Priority: uint32(preference)<<24 | uint32(0xffff-i)<<8 | 255,
		})
	}
	for _, a := range local {
		add(a, netip.AddrPort{}, "host", 126)
	}
	for _, a := range advertise {
		i := slices.IndexFunc(local, func(l netip.AddrPort) bool {
			return l.Addr().Is4() == a.Addr().Is4() && (!l.Addr().IsLoopback() || len(local) == 1)
		})
		if i < 0 {
			i = 0
		}
		if a.Port() == 0 {
			a = netip.AddrPortFrom(a.Addr(), local[i].Port())
		}
		if !slices.Contains(local, a) {
			add(a, local[i], "srflx", 100)
		}
	}
	return list
}

// families are those by which the public reaches candidates, "ipv4,ipv6" or one of them. It is empty when none is public:
// then people are in the same network, and come by what they know.
func families(list []candidate) string {
	var all []string
	for _, f := range []struct {
		name string
		is4  bool
	}{{"ipv4", true}, {"ipv6", false}} {
		if slices.ContainsFunc(list, func(c candidate) bool {
			a := c.Addr.Addr().Unmap()
			return a.Is4() == f.is4 && a.IsGlobalUnicast() && !a.IsPrivate() && !shared.Contains(a)
		}) {
			all = append(all, f.name)
		}
	}
	return strings.Join(all, ",")
}

var shared = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598: DS-Lite and its like

// hostAddress is one address of the host with what decides about its use.
type hostAddress struct {
	addr      netip.Addr
	link      string // name of the interface
	temporary bool   // IPv6 privacy address
	stale     bool   // deprecated, tentative or duplicate IPv6 address
}

// virtual are the beginnings of names of interfaces that no client reaches: overlays, containers, virtual
// machines. A bridge under another name ("br0") may carry the host's own address and counts as real.
var virtual = []string{
	"docker", "br-", "veth", "virbr", "vnet", "cni", "flannel", "cali", "podman", "lxc", "lxd", "kube", "nodelocaldns",
	"wg", "nebula", "plenum", "tun", "tap", "tailscale", "zt", "utun", "ifb", "dummy", "awdl", "llw",
}

// choose picks the addresses to use for media: all but those of virtual links, link-local ones, and
// IPv6 addresses that will not last. Loopback is for hosts that have nothing else, or on request, and comes last.
func choose(list []hostAddress, loopback bool) []netip.Addr {
	var out, lo []netip.Addr
	for _, h := range list {
		a := h.addr.Unmap()
		switch {
		case a.IsLoopback():
			if a.Is4() {
				lo = append(lo, a)
			}
		case h.temporary, h.stale, !a.IsGlobalUnicast(), a.IsLinkLocalUnicast(), isVirtual(h.link):
		case !slices.Contains(out, a):
			out = append(out, a)
		}
	}
	if len(out) == 0 || loopback {
		if len(lo) == 0 {
			lo = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
		}
		out = append(out, lo[0])
	}
	return out
}

func isVirtual(link string) bool {
	return slices.ContainsFunc(virtual, func(p string) bool { return strings.HasPrefix(link, p) })
}

// hostAddresses are the addresses of this host that media uses.
func hostAddresses(loopback bool) ([]netip.Addr, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("addresses of this host: %w", err)
	}
	flags := inet6Flags()
	var list []hostAddress
	for _, l := range links {
		if l.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := l.Addrs()
		if err != nil {
			continue // the interface has just gone
		}
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			ip, ok := netip.AddrFromSlice(n.IP)
			if !ok {
				continue
			}
			ip = ip.Unmap()
			f := flags[ip]
			list = append(list, hostAddress{
				addr: ip, link: l.Name,
				temporary: f&0x01 != 0,             // IFA_F_TEMPORARY
				stale:     f&(0x08|0x20|0x40) != 0, // DADFAILED, DEPRECATED, TENTATIVE
			})
		}
	}
	return choose(list, loopback), nil
}

// inet6Flags are the kernel's flags of IPv6 addresses; empty where there is no such file.
func inet6Flags() map[netip.Addr]uint64 {
	f, err := os.Open("/proc/net/if_inet6")
	if err != nil {
		return nil
	}
	defer f.Close()
	flags := make(map[netip.Addr]uint64)
	for s := bufio.NewScanner(f); s.Scan(); {
		if a, v, ok := parseInet6(s.Text()); ok {
			flags[a] = v
		}
	}
	return flags
}

// parseInet6 reads one line of /proc/net/if_inet6: address, index, prefix length, scope, flags, name; in hex.
func parseInet6(line string) (netip.Addr, uint64, bool) {
	f := strings.Fields(line)
	if len(f) < 6 || len(f[0]) != 32 {
		return netip.Addr{}, 0, false
	}
	var b [16]byte
	for i := range b {
		v, err := strconv.ParseUint(f[0][2*i:2*i+2], 16, 8)
		if err != nil {
			return netip.Addr{}, 0, false
		}
		b[i] = byte(v)
	}
	v, err := strconv.ParseUint(f[4], 16, 64)
	if err != nil {
		return netip.Addr{}, 0, false
	}
	return netip.AddrFrom16(b), v, true
}
