package udp

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"plenum/bridge/packet"
)

// Where segmentation is refused, everything still arrives, and it is not tried again there.
func TestRefused(t *testing.T) {
	from, to := listen(t, loopbacks[0], 1), listen(t, loopbacks[0], 1)
	s := NewSender()
	s.refuse(from[0], to[0].Local().Addr(), unix.EINVAL)
	var out packet.Outbox
	for i := range 10 {
		put(&out, packet.Path{Remote: to[0].Local()}, 1000, i)
	}
	s.Flush(&out, from)
	if s.Messages != 10 || s.Datagrams != 10 {
		t.Errorf("%+v", s.Counters)
	}
	s = NewSender()
	s.refuse(from[0], netip.Addr{}, unix.EIO)
	for i := range 10 {
		put(&out, packet.Path{Remote: to[0].Local()}, 1000, i)
	}
	s.Flush(&out, from)
	if s.Messages != 10 {
		t.Errorf("%+v", s.Counters)
	}
}

// A segment that does not fit the route's MTU is refused by the kernel itself; the datagrams go out plain.
func TestSegmentTooLarge(t *testing.T) {
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		addrs, _ := l.Addrs()
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if !ok || n.IP.To4() == nil || l.MTU > 1500 || l.Flags&net.FlagUp == 0 {
				continue
			}
			local, _ := netip.AddrFromSlice(n.IP.To4())
			from := listen(t, netip.AddrPortFrom(local, 0).String(), 1)
			if !from[0].gso {
				t.Skip("no segmentation here")
			}
			to := netip.AddrPortFrom(local.Next(), 9) // a neighbour; whether it exists does not matter
			s := NewSender()
			var out packet.Outbox
			for i := range 4 {
				put(&out, packet.Path{Remote: to}, l.MTU-20, i)
			}
			s.Flush(&out, from)
			if s.Refused != 1 || s.Datagrams+s.Failed != 4 || s.Messages != s.Datagrams {
				t.Errorf("%s: %+v", l.Name, s.Counters)
			}
			t.Logf("%s: %+v", l.Name, s.Counters)
			return
		}
	}
	t.Skip("no link with a small MTU")
}
