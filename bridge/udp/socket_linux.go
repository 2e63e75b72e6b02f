package udp

import (
	"net/netip"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Socket is one bound UDP socket, not blocking.
type Socket struct {
	fd    int
	local netip.AddrPort
	gso   bool // UDP_SEGMENT is known to this kernel

	mu     sync.RWMutex // keeps fd open while SendTo uses it
	closed bool
}

func open(addr netip.AddrPort, shared bool) (*Socket, error) {
	family := unix.AF_INET
	if addr.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &Socket{fd: fd}
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			s.Close()
			return nil, os.NewSyscallError("IPV6_V6ONLY", err)
		}
	}
	if shared {
		if err := s.share(); err != nil {
			s.Close()
			return nil, err
		}
	}
	// The FORCE variants pass the system's limit and need CAP_NET_ADMIN; without it take what there is.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBytes) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBytes)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBytes) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBytes)
	}
	if err := unix.Bind(fd, sockaddr(addr)); err != nil {
		s.Close()
		if err == unix.EADDRINUSE {
			return nil, ErrInUse
		}
		return nil, os.NewSyscallError("bind", err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		s.Close()
		return nil, os.NewSyscallError("getsockname", err)
	}
	port := addr.Port()
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		port = uint16(sa.Port)
	case *unix.SockaddrInet6:
		port = uint16(sa.Port)
	}
	s.local = netip.AddrPortFrom(addr.Addr(), port)
	_, err = unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT)
	s.gso = err == nil
	return s, nil
}

// share lets further sockets bind to the same address. Linux allows it on a bound socket.
func (s *Socket) share() error {
	return os.NewSyscallError("SO_REUSEPORT", unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
}

// Local is the bound address.
func (s *Socket) Local() netip.AddrPort { return s.local }

// SendTo sends one datagram at once. Any goroutine may call it; it does not block.
func (s *Socket) SendTo(b []byte, to netip.AddrPort) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return ErrClosed
	}
	return os.NewSyscallError("sendto", unix.Sendto(s.fd, b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, sockaddr(to)))
}

// Drops is how many datagrams the kernel dropped because the receive buffer was full: the counter that
// SO_RXQ_OVFL reports, read from the socket so that no packet has to carry it.
func (s *Socket) Drops() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return 0
	}
	var info [9]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0
	}
	return uint64(info[8]) // SK_MEMINFO_DROPS
}

// ReceiveBuffer is the size of the receive buffer as granted, in bytes.
func (s *Socket) ReceiveBuffer() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return 0
	}
	n, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return 0
	}
	return n / 2 // the kernel doubles it for its own bookkeeping
}

// Close closes the socket. No Read or Flush may run or come after it.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return os.NewSyscallError("close", unix.Close(s.fd))
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// A name is room for either kind of socket address as the kernel lays it out.
type name struct {
	family uint16
	port   [2]byte // big endian
	data   [24]byte
}

const (
	name4Bytes = unix.SizeofSockaddrInet4
	name6Bytes = unix.SizeofSockaddrInet6
)

// set fills n and returns its length.
func (n *name) set(a netip.AddrPort) uint32 {
	n.port = [2]byte{byte(a.Port() >> 8), byte(a.Port())}
	if a.Addr().Is4() {
		n.family = unix.AF_INET
		ip := a.Addr().As4()
		copy(n.data[:4], ip[:])
		clear(n.data[4:12])
		return name4Bytes
	}
	n.family = unix.AF_INET6
	ip := a.Addr().As16()
	clear(n.data[:4]) // flow label
	copy(n.data[4:20], ip[:])
	clear(n.data[20:24]) // scope
	return name6Bytes
}

func (n *name) addrPort() netip.AddrPort {
	port := uint16(n.port[0])<<8 | uint16(n.port[1])
	switch n.family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(n.data[:4])), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(n.data[4:20])), port)
	}
	return netip.AddrPort{}
}

// A message is struct mmsghdr.
type message struct {
	header unix.Msghdr
	bytes  uint32
}

// mmsg calls recvmmsg or sendmmsg. Neither blocks, so the scheduler is not told: the call is work of this
// goroutine like any other.
func mmsg(call uintptr, fd int, m []message) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), 0
	}
}
