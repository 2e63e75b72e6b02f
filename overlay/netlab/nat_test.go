//go:build linux

package netlab_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plenum/overlay/netlab"
)

// A socket is a UDP socket of a host, with the answers that the tests need.
type socket struct {
	t *testing.T
	c net.PacketConn
}

func open(t *testing.T, h *netlab.Host, address string) socket {
	t.Helper()
	c, err := h.ListenPacket("udp4", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return socket{t, c}
}

func (s socket) send(to netip.AddrPort) {
	s.t.Helper()
	if _, err := s.c.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(to)); err != nil {
		s.t.Error(err)
	}
}

// from returns who sent the next packet, or the zero address when nothing comes.
func (s socket) from(patience time.Duration) netip.AddrPort {
	s.t.Helper()
	s.c.SetReadDeadline(time.Now().Add(patience))
	_, from, err := s.c.ReadFrom(make([]byte, 64))
	if err != nil {
		return netip.AddrPort{}
	}
	return from.(*net.UDPAddr).AddrPort()
}

// TestNAT sends from behind each kind of NAT to two hosts outside, which then try to come in.
func TestNAT(t *testing.T) {
	const patience, believe = 5 * time.Second, 200 * time.Millisecond
	for _, c := range []struct {
		kind netlab.NATKind
		// one mapping for all; and who may send to it: a stranger, another port of a known address, the port known.
		cone, stranger, port bool
	}{
		{netlab.FullCone, true, true, true},
		{netlab.RestrictedCone, true, false, true},
		{netlab.PortRestrictedCone, true, false, false},
		{netlab.Symmetric, false, false, false},
	} {
		t.Run(c.kind.String(), func(t *testing.T) {
			t.Parallel()
			lab := netlab.New(t)
			wan := lab.Switch("wan")
			x, y, in, in2 := lab.Host("x"), lab.Host("y"), lab.Host("in"), lab.Host("in2")
			lab.Link(x, wan, netlab.LinkConfig{})
			lab.Link(y, wan, netlab.LinkConfig{})
			cfg := netlab.NATConfig{Kind: c.kind, Hairpin: c.kind == netlab.FullCone}
			if c.kind == netlab.PortRestrictedCone {
				cfg.Timeout = 2 * time.Second
			}
			nat := lab.NAT("nat", wan, cfg)
			lab.Link(in, nat.Inside, netlab.LinkConfig{})
			lab.Link(in2, nat.Inside, netlab.LinkConfig{})

			s, s2 := open(t, in, ":4242"), open(t, in2, ":4242")
			x1, x2, y1 := open(t, x, ":1000"), open(t, x, ":2000"), open(t, y, ":1000")
			addr := func(h *netlab.Host, port uint16) netip.AddrPort { return netip.AddrPortFrom(h.Addr(), port) }

			y1.send(netip.AddrPortFrom(nat.Addr(), 4242)) // a stray packet that must not get in the way of what follows
			s.send(addr(x, 1000))
			mapped := x1.from(patience)
			if mapped.Addr() != nat.Addr() {
				t.Fatalf("x sees %v, want the address of the NAT, %v", mapped, nat.Addr())
			}
			s2.send(addr(x, 1000))
			if other := x1.from(patience); !other.IsValid() || other == mapped {
				t.Errorf("two hosts inside are seen as %v and %v", mapped, other)
			}
			x1.send(mapped)
			if got := s.from(patience); got != addr(x, 1000) {
				t.Errorf("the answer comes from %v", got)
			}
			y1.send(mapped)
			if got := s.from(believe); got.IsValid() != c.stranger {
				t.Errorf("a stranger's packet arrives: %v", got.IsValid())
			}
			x2.send(mapped)
			if got := s.from(believe); got.IsValid() != c.port {
				t.Errorf("a packet from another port arrives: %v", got.IsValid())
			}
			s.send(addr(y, 1000))
			if got := y1.from(patience); (got == mapped) != c.cone {
				t.Errorf("y sees %v, x saw %v", got, mapped)
			}
			if c.kind == netlab.FullCone {
				s2.send(mapped)
				if got := s.from(patience); got.Addr() != nat.Addr() {
					t.Errorf("hairpin: a neighbour is seen as %v", got)
				}
				nat.Forget()
				y1.send(mapped)
				if got := s.from(believe); got.IsValid() {
					t.Error("forgotten, yet a packet comes in")
				}
			}
			if cfg.Timeout > 0 {
				s.send(addr(x, 1000))
				x1.from(patience)
				time.Sleep(cfg.Timeout + 500*time.Millisecond)
				x1.send(mapped)
				if got := s.from(believe); got.IsValid() {
					t.Errorf("a packet comes in after %v of silence", cfg.Timeout)
				}
			}
			nat.Forward("udp", 5242, in2, 4242)
			y1.send(netip.AddrPortFrom(nat.Addr(), 5242))
			if got := s2.from(patience); got != addr(y, 1000) {
				t.Errorf("by the forwarded port: %v", got)
			}
			if _, err := in.Ping(soon(t), x.Addr()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRouters(t *testing.T) {
	lab := netlab.New(t)
	left, right, six := lab.Switch("left"), lab.Switch("right"), lab.Switch("six", netip.MustParsePrefix("2001:db8:6::/64"))
	a, b, c, d := lab.Host("a"), lab.Host("b"), lab.Host("c"), lab.Host("d")
	lab.Link(a, left, netlab.LinkConfig{})
	lab.Router("r", left, right)
	lab.Link(b, right, netlab.LinkConfig{})
	lab.Router("r6", right, six)
	cable := lab.Link(c, six, netlab.LinkConfig{})
	plain := lab.NAT("plain", right, netlab.NATConfig{})
	lab.Link(d, plain.Inside, netlab.LinkConfig{})
	reaches(t, a, b)
	if n := len(c.Addrs()); n != 1 || !c.Addr().Is6() {
		t.Errorf("c has %v, want one IPv6 address", c.Addrs())
	}
	reaches(t, b, c)
	reaches(t, d, b)
	reaches(t, b, d)
	lab.Partition(a, b) // not on one switch
	unreachable(t, a, b)
	reaches(t, d, b)
	lab.Heal(b, a)
	reaches(t, a, b)
	lab.Partition(b, c)
	cable.Renumber(c)
	unreachable(t, b, c)
	lab.Heal(b, c)
	reaches(t, b, c)
}

// TestCarrierNAT: a home behind a provider's NAT, with a PPPoE line, and a neighbour in the same home.
func TestCarrierNAT(t *testing.T) {
	lab := netlab.New(t)
	wan := lab.Switch("wan")
	a, d, e := lab.Host("a"), lab.Host("d"), lab.Host("e")
	lab.Link(a, wan, netlab.LinkConfig{})
	carrier := lab.NAT("carrier", wan, netlab.NATConfig{Kind: netlab.Symmetric})
	home := lab.NAT("home", carrier.Inside, netlab.NATConfig{Kind: netlab.PortRestrictedCone, Uplink: netlab.LinkConfig{MTU: 1492}})
	lab.Link(d, home.Inside, netlab.LinkConfig{})
	lab.Link(e, home.Inside, netlab.LinkConfig{})
	v4 := func(h *netlab.Host) netip.AddrPort { return netip.AddrPortFrom(h.Addr(), 9) }
	s, far := open(t, d, ":9"), open(t, a, ":9")
	s.send(v4(a))
	from := far.from(5 * time.Second)
	if from.Addr() != carrier.Addr() {
		t.Fatalf("a sees %v, want the carrier's %v", from, carrier.Addr())
	}
	far.send(from)
	if got := s.from(5 * time.Second); got != v4(a) {
		t.Errorf("the answer comes from %v", got)
	}

	// The home's box says what the line admits; the host then knows.
	raw, _ := s.c.(*net.UDPConn).SyscallConn()
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	to := net.UDPAddrFromAddrPort(v4(a))
	var err error
	for ctx := soon(t); err == nil && ctx.Err() == nil; time.Sleep(time.Millisecond) {
		_, err = s.c.WriteTo(make([]byte, 1500-28), to)
	}
	if !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("1500 bytes over a line of 1492: %v", err)
	}
	if _, err := s.c.WriteTo(make([]byte, 1492-28), to); err != nil {
		t.Errorf("1492 bytes: %v", err)
	}
	if !far.from(5 * time.Second).IsValid() {
		t.Error("1492 bytes do not arrive")
	}

	lab.Partition(d, a)
	if _, err := d.Ping(shortly(t), a.Addr()); err == nil {
		t.Error("d reaches a though they are cut")
	}
	if _, err := e.Ping(soon(t), a.Addr()); err != nil {
		t.Errorf("the neighbour of one who is cut from a: %v", err)
	}
}
