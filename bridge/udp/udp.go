// Package udp moves datagrams between sockets and the batches of package packet, many per system call:
// recvmmsg in, sendmmsg with UDP_SEGMENT out, and one epoll instance per core to wait on. It knows nothing
// about what a datagram means. Linux has the real implementation; elsewhere a plain one over the standard
// library keeps the bridge usable for development.
//
// A set of sockets shares one address, one socket per core. The kernel spreads incoming datagrams over
// them by 4-tuple; any of them may send.
package udp

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrInUse is returned by Listen when the address is taken, most likely by another bridge.
var ErrInUse = errors.New("address in use (is another bridge running?)")

// ErrClosed is returned by SendTo after Close.
var ErrClosed = errors.New("socket closed")

const (
	// receiveBytes is the size asked for a socket's receive buffer: about 70 ms of a full gigabit.
	receiveBytes = 10 << 20
	// sendBytes is the size asked for a socket's send buffer: one frame to some hundred receivers.
	sendBytes = 4 << 20
)

// Counters of one Sender, since its creation. The goroutine that flushes owns them.
type Counters struct {
	Datagrams uint64 // handed to the kernel
	Bytes     uint64
	Messages  uint64 // sends as the kernel saw them: less than Datagrams where segmentation worked
	Refused   uint64 // segmented sends that were repeated plain
	Failed    uint64 // datagrams that the kernel refused (unreachable, forbidden)
	Full      uint64 // datagrams dropped because the send buffer was full
}

// Listen binds n sockets to addr, one per core. The first bind is exclusive, so that a second process on
// the same port is an error and never silently shares the traffic; only then is the port shared among
// the n sockets. Port 0 picks one.
func Listen(addr netip.AddrPort, n int) ([]*Socket, error) {
	sockets := make([]*Socket, 0, n)
	for range n {
		s, err := open(addr, len(sockets) > 0)
		if err != nil {
			for _, s := range sockets {
				s.Close()
			}
			return nil, fmt.Errorf("udp %s: %w", addr, err)
		}
		sockets = append(sockets, s)
		if n > 1 && len(sockets) == 1 {
			addr = s.Local()
			if err := s.share(); err != nil {
				s.Close()
				return nil, fmt.Errorf("udp %s: share port: %w", addr, err)
			}
		}
	}
	return sockets, nil
}
