package guard

import (
	"errors"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// applyRoutes adds the unreachable routes that are missing and removes those of earlier prefixes.
func applyRoutes(planes []Plane) error {
	have, err := ownRoutes()
	if err != nil {
		return err
	}
	want := map[netip.Prefix]bool{}
	for _, p := range planes {
		want[p.Prefix] = true
		if !have[p.Prefix] {
			if err := netlink.RouteAdd(unreachable(p.Prefix)); err != nil && !errors.Is(err, unix.EEXIST) {
				return err
			}
		}
	}
	for p := range have {
		if !want[p] {
			if err := netlink.RouteDel(unreachable(p)); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

func unreachable(p netip.Prefix) *netlink.Route {
	return &netlink.Route{
		Dst:      &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
		Type:     unix.RTN_UNREACHABLE,
		Protocol: Protocol,
		Priority: metric,
		Table:    unix.RT_TABLE_MAIN,
	}
}

// ownRoutes are the prefixes of our unreachable routes.
func ownRoutes() (map[netip.Prefix]bool, error) {
	filter := &netlink.Route{Protocol: Protocol, Type: unix.RTN_UNREACHABLE, Table: unix.RT_TABLE_MAIN}
	all := map[netip.Prefix]bool{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TYPE|netlink.RT_FILTER_TABLE)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, err
		}
		for _, r := range routes {
			if r.Dst == nil {
				continue
			}
			a, _ := netip.AddrFromSlice(r.Dst.IP)
			bits, _ := r.Dst.Mask.Size()
			all[netip.PrefixFrom(a.Unmap(), bits)] = true
		}
	}
	return all, nil
}
