//go:build linux

package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
)

// pingEvery is how often Ping asks.
const pingEvery = 50 * time.Millisecond

var pings atomic.Uint32

// Ping asks addr from the host until it answers, and returns how long the answered question took. It returns an error
// when ctx ends first.
func (h *Host) Ping(ctx context.Context, addr netip.Addr) (time.Duration, error) {
	network, request, reply := "ip4:icmp", byte(8), byte(0) // RFC 792
	if addr.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129 // RFC 4443, section 4
	}
	c, err := h.Dial(ctx, network, addr.String())
	if err != nil {
		return 0, fmt.Errorf("%s: ping %s: %w", h.name, addr, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	id := uint16(pings.Add(1)) // answers to another Ping come to every raw socket of the host
	sent := make(map[uint16]time.Time)
	buf := make([]byte, 1500)
	for seq := uint16(0); ctx.Err() == nil; seq++ {
		msg := binary.BigEndian.AppendUint16([]byte{request, 0, 0, 0}, id)
		msg = binary.BigEndian.AppendUint16(msg, seq)
		binary.BigEndian.PutUint16(msg[2:], checksum(msg)) // the kernel does it again for IPv6
		sent[seq] = time.Now()
		c.Write(msg) // refused while there is no way
		c.SetReadDeadline(time.Now().Add(pingEvery))
		for ctx.Err() == nil {
			n, _, err := c.(*net.IPConn).ReadFrom(buf) // without the IPv4 header, which Read leaves
			if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
				break
			}
			if err != nil || n < 8 || buf[0] != reply || binary.BigEndian.Uint16(buf[4:]) != id {
				continue
			}
			if t, ok := sent[binary.BigEndian.Uint16(buf[6:])]; ok {
				return time.Since(t), nil
			}
		}
	}
	return 0, fmt.Errorf("%s: ping %s: %w", h.name, addr, ctx.Err())
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
