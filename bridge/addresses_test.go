package bridge

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestChoose(t *testing.T) {
	h := func(link, addr string) hostAddress { return hostAddress{addr: netip.MustParseAddr(addr), link: link} }
	temporary, stale := h("eth0", "2001:db8::abcd"), h("eth0", "2001:db8::dead")
	temporary.temporary, stale.stale = true, true
	lo := []hostAddress{h("lo", "127.0.0.1"), h("lo", "::1")}
	for _, test := range []struct {
		name     string
		list     []hostAddress
		loopback bool
		want     string
	}{
		{"plain", []hostAddress{lo[0], lo[1], h("eth0", "192.0.2.2"), h("eth0", "fd00::2"), h("eth0", "fe80::1")}, false, "[192.0.2.2 fd00::2]"},
		{"with loopback", []hostAddress{lo[0], lo[1], h("eth0", "192.0.2.2")}, true, "[192.0.2.2 127.0.0.1]"},
		{"only loopback", lo, false, "[127.0.0.1]"},
		{"nothing", nil, false, "[127.0.0.1]"},
		{"virtual", []hostAddress{
			h("docker0", "172.17.0.1"), h("br-0a1b2c3d4e5f", "172.18.0.1"), h("veth12", "10.1.1.1"), h("wg0", "10.2.0.1"),
			h("nebula1", "10.3.0.1"), h("tailscale0", "100.64.0.1"), h("br0", "198.51.100.4"),
		}, false, "[198.51.100.4]"},
		{"fleeting", []hostAddress{h("eth0", "2001:db8::1"), temporary, stale}, false, "[2001:db8::1]"},
		{"twice, mapped", []hostAddress{h("eth0", "192.0.2.2"), h("eth1", "::ffff:192.0.2.2")}, false, "[192.0.2.2]"},
		{"link-local only", []hostAddress{lo[0], h("eth0", "169.254.1.1"), h("eth0", "fe80::1")}, false, "[127.0.0.1]"},
	} {
		if got := fmt.Sprint(choose(test.list, test.loopback)); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}

func TestHostAddresses(t *testing.T) {
	list, err := hostAddresses(false)
	if err != nil || len(list) == 0 {
		t.Fatalf("%v, %v", list, err)
	}
	for _, a := range list {
		if a.IsLinkLocalUnicast() || a.IsUnspecified() || a.IsMulticast() {
			t.Errorf("%v is no address for media", a)
		}
	}
}

func TestParseInet6(t *testing.T) {
	a, flags, ok := parseInet6("fd000000000000000000000000000002 04 40 00 82     eth0")
	if !ok || a != netip.MustParseAddr("fd00::2") || flags != 0x82 {
		t.Errorf("%v %#x %v", a, flags, ok)
	}
	for _, bad := range []string{"", "fd00 1 2 3 4 5", "zz000000000000000000000000000002 04 40 00 82 eth0", "fd000000000000000000000000000002 04 40 00 xx eth0"} {
		if _, _, ok := parseInet6(bad); ok {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestCandidates(t *testing.T) {
	p := netip.MustParseAddrPort
	local := []netip.AddrPort{p("192.0.2.2:10000"), p("[fd00::2]:10000"), p("127.0.0.1:10000")}
	list := candidatesOf(local, []netip.AddrPort{p("203.0.113.1:0"), p("[2001:db8::1]:4000"), p("192.0.2.2:10000")})
	var got []string
	for i, c := range list {
		got = append(got, fmt.Sprintf("%s %v %v", c.Type, c.Addr, c.Related.IsValid()))
		if i > 0 && c.Priority >= list[i-1].Priority {
			t.Errorf("candidate %d has a priority of %d after %d", i, c.Priority, list[i-1].Priority)
		}
	}
	want := "[host 192.0.2.2:10000 false host [fd00::2]:10000 false host 127.0.0.1:10000 false srflx 203.0.113.1:10000 true srflx [2001:db8::1]:4000 true]"
	if fmt.Sprint(got) != want {
		t.Errorf("%s\nwant %s", fmt.Sprint(got), want)
	}
}

// TestFamilies: who has a public address of one family only says so; who has none says nothing.
func TestFamilies(t *testing.T) {
	for want, addresses := range map[string][]string{
		"":          {"10.0.0.1:1", "[fd00::1]:1", "127.0.0.1:1"},
		"ipv4":      {"[fd00::1]:1", "192.0.2.1:1"},
		"ipv6":      {"100.64.0.7:1", "192.168.1.2:1", "[2001:470::1]:1"},
		"ipv4,ipv6": {"[2001:470::1]:1", "192.0.2.1:1"},
	} {
		var list []candidate
		for _, a := range addresses {
			list = append(list, candidate{Addr: netip.MustParseAddrPort(a)})
		}
		if got := families(list); got != want {
			t.Errorf("%v: %q, want %q", addresses, got, want)
		}
	}
}
