package overlay

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"plenum/overlay/guard"
)

// listen opens the overlay's own socket on a plane: bound to its device, never fragmented, never told by the
// kernel what the path can carry, since that is what it is there to find out.
func listen(ctx context.Context, device string, a netip.Addr) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		e := c.Control(func(fd uintptr) {
			if err = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, device); err != nil {
				return
			}
			if a.Is6() {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
			}
		})
		if err == nil {
			err = e
		}
		return err
	}}
	c, err := lc.ListenPacket(ctx, "udp", netip.AddrPortFrom(a, Port).String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// underlayMTU is what the kernel believes the way to a on the underlay carries: the link's MTU, or less when a
// router has said so. 0 is unknown.
func underlayMTU(a netip.Addr) int {
	routes, err := netlink.RouteGet(a.AsSlice())
	if err != nil || len(routes) == 0 {
		return 0
	}
	if routes[0].MTU > 0 {
		return routes[0].MTU
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return 0
	}
	return link.Attrs().MTU
}

// fits is the largest packet of a tunnel that an underlay of mtu carries in one piece: both backends add a
// header of 16 bytes and a tag of 16 to UDP and IP, and WireGuard fills up to a multiple of 16.
func fits(mtu int, underlay netip.Addr) int {
	ip := 28
	if underlay.Is6() {
		ip = 48
	}
	return (mtu - ip - 32) &^ 15
}

// routeMTU makes the kernel use mtu towards one peer of a plane; an mtu of 0 takes the route away again.
func routeMTU(device string, own, peer netip.Addr, mtu int) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: single(peer), Src: own.AsSlice(), MTU: mtu,
		Scope: netlink.SCOPE_LINK, Protocol: guard.Protocol, Table: unix.RT_TABLE_MAIN}
	if own.Is6() {
		r.Scope = netlink.SCOPE_UNIVERSE
	}
	if mtu == 0 {
		err := netlink.RouteDel(r)
		if err == unix.ESRCH {
			err = nil
		}
		return err
	}
	return netlink.RouteReplace(r)
}

func single(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// clearRoutes removes the routes that routeMTU made in an earlier life.
func clearRoutes(device string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{LinkIndex: link.Attrs().Index, Protocol: guard.Protocol},
			netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if err := netlink.RouteDel(&r); err != nil && err != unix.ESRCH {
				return err
			}
		}
	}
	return nil
}

// localAddrs are the addresses of this host outside of both overlays.
func localAddrs(devices ...string) map[netip.Addr]bool {
	all := map[netip.Addr]bool{}
	interfaces, err := net.Interfaces()
	if err != nil {
		return all
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback != 0 || strings.HasPrefix(i.Name, "plenum-") {
			continue
		}
		skip := false
		for _, d := range devices {
			skip = skip || d == i.Name
		}
		addrs, err := i.Addrs()
		if err != nil || skip {
			continue
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok {
					all[ip.Unmap()] = true
				}
			}
		}
	}
	return all
}
