package wireguard

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// bind is wireguard-go's own Bind, but for one path: once it has sent to an IPv4 address it mangles IPv6 ones
// (StdNetBind.Send copies sixteen bytes into a pooled slice that was cut to four). From then on packets for
// IPv6 leave by the same socket without its help, in batches but not coalesced.
type bind struct {
	conn.Bind
	four atomic.Bool // has sent to IPv4

	mu       sync.Mutex
	six      *ipv6.PacketConn // a duplicate of its IPv6 socket
	messages []ipv6.Message
}

func newBind() conn.Bind { return &bind{Bind: conn.NewDefaultBind()} }

// Open implements conn.Bind.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	receive, port, err := b.Bind.Open(port)
	if err != nil {
		return nil, 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.six = duplicate(port)
	return receive, port, nil
}

// Close implements conn.Bind.
func (b *bind) Close() error {
	b.mu.Lock()
	if b.six != nil {
		b.six.Close()
		b.six = nil
	}
	b.mu.Unlock()
	return b.Bind.Close()
}

// Send implements conn.Bind.
func (b *bind) Send(packets [][]byte, to conn.Endpoint) error {
	if !to.DstIP().Is6() {
		if !b.four.Load() {
			b.four.Store(true)
		}
		return b.Bind.Send(packets, to)
	}
	if !b.four.Load() {
		return b.Bind.Send(packets, to)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.six == nil {
		return unix.EAFNOSUPPORT
	}
	at, err := netip.ParseAddrPort(to.DstToString())
	if err != nil {
		return err
	}
	address := net.UDPAddrFromAddrPort(at)
	for len(b.messages) < len(packets) {
		b.messages = append(b.messages, ipv6.Message{Buffers: make([][]byte, 1)})
	}
	for i, p := range packets {
		b.messages[i].Buffers[0], b.messages[i].Addr = p, address
	}
	for rest := b.messages[:len(packets)]; len(rest) > 0; {
		n, err := b.six.WriteBatch(rest, 0)
		if err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// duplicate finds this process's IPv6 socket on port, which the library keeps to itself.
func duplicate(port uint16) *ipv6.PacketConn {
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	for _, f := range files {
		fd, err := strconv.Atoi(f.Name())
		if err != nil {
			continue
		}
		name, err := unix.Getsockname(fd)
		if a, ok := name.(*unix.SockaddrInet6); err != nil || !ok || a.Port != int(port) {
			continue
		}
		if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_DGRAM {
			continue
		}
		copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil
		}
		file := os.NewFile(uintptr(copied), "udp6")
		c, err := net.FilePacketConn(file)
		file.Close()
		if err != nil {
			return nil
		}
		return ipv6.NewPacketConn(c)
	}
	return nil
}
