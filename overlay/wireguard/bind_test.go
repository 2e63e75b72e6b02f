package wireguard

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"plenum/overlay/netlab"
)

// TestBind sends to hosts of either family by turns. wireguard-go's own Bind, once it has sent to IPv4, sends to IPv6
// addresses of which it has taken the end from another.
func TestBind(t *testing.T) {
	lab := netlab.New(t)
	sw := lab.Switch("net", netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64"))
	from := lab.Host("from")
	lab.Link(from, sw, netlab.LinkConfig{})
	b := newBind()
	if err := from.Do(func() error { _, _, err := b.Open(0); return err }); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var sinks []net.PacketConn
	var ends []conn.Endpoint
	for i := range 3 {
		h := lab.Host(fmt.Sprint("to-", i))
		lab.Link(h, sw, netlab.LinkConfig{})
		for _, a := range h.Addrs() {
			at := netip.AddrPortFrom(a, 9000).String()
			sink, err := h.ListenPacket("udp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer sink.Close()
			end, err := b.ParseEndpoint(at)
			if err != nil {
				t.Fatal(err)
			}
			sinks, ends = append(sinks, sink), append(ends, end)
		}
	}
	if len(ends) != 6 {
		t.Fatalf("%d addresses", len(ends))
	}
	const rounds = 20
	for range rounds {
		for _, end := range ends {
			if err := b.Send([][]byte{[]byte("hello")}, end); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, sink := range sinks {
		for n := range rounds {
			_ = sink.SetReadDeadline(time.Now().Add(2 * time.Second))
			if _, _, err := sink.ReadFrom(make([]byte, 10)); err != nil {
				t.Errorf("%d of %d packets came to %s: %v", n, rounds, ends[i].DstToString(), err)
				break
			}
		}
	}
}
