package fleet

import (
	"net/netip"
	"slices"
)

// Family is that of an address, "ipv4" or "ipv6"; empty for none, and for loopback, whose host has both.
func Family(a netip.Addr) string {
	switch a = a.Unmap(); {
	case !a.IsValid() || a.IsLoopback():
		return ""
	case a.Is4():
		return "ipv4"
	}
	return "ipv6"
}

// families are those by which a bridge offers itself to the public; where it has no public address, who uses it is in
// its network, and nothing is known. Bridges that say so in presence are believed instead.
func (v *vitals) families() (all []string) {
	for _, m := range v.media {
		if f := Family(m.Addr()); public(m.Addr()) && !slices.Contains(all, f) {
			all = append(all, f)
		}
	}
	return all
}

var shared = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598

func public(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !shared.Contains(a)
}
