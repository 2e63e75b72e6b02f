package thin

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	receiveBytes = 4 << 20
	maxBytes     = 1500
	batchSize    = 64
	// With UDP_GRO one datagram may hold a run of segments.
	groBytes = 64 << 10
	groBatch = 8
)

// A socket is one participant's, connected to its bridge once that is known.
type socket struct {
	fd    int
	local netip.AddrPort
}

func open(from netip.Addr, gro bool) (socket, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return socket{}, os.NewSyscallError("socket", err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBytes) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBytes)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	if err == nil && gro {
		err = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: from.As4()})
	}
	var name unix.Sockaddr
	if err == nil {
		name, err = unix.Getsockname(fd)
	}
	if err != nil {
		unix.Close(fd)
		return socket{}, fmt.Errorf("socket of a participant: %w", err)
	}
	return socket{fd, netip.AddrPortFrom(from, uint16(name.(*unix.SockaddrInet4).Port))}, nil
}

func (s socket) connect(to netip.AddrPort) error {
	return os.NewSyscallError("connect", unix.Connect(s.fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}))
}

// send sends one datagram; what the kernel refuses is lost, as on a network.
func (s socket) send(b []byte) {
	if len(b) > 0 {
		_, _, _ = unix.RawSyscall6(unix.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	}
}

// drops is how many datagrams found the receive buffer full.
func (s socket) drops() uint64 {
	var info [9]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0
	}
	return uint64(info[8])
}

func (s socket) close() { unix.Close(s.fd) }

type message struct {
	unix.Msghdr
	bytes uint32
	_     uint32
}

// A reader takes what waits at sockets, one after the other.
type reader struct {
	messages []message
	vectors  []unix.Iovec
	controls [][64]byte
	space    [][]byte
}

func newReader(gro bool) *reader {
	n, size := batchSize, maxBytes
	if gro {
		n, size = groBatch, groBytes
	}
	r := &reader{make([]message, n), make([]unix.Iovec, n), make([][64]byte, n), make([][]byte, n)}
	for i := range n {
		r.space[i] = make([]byte, size)
		r.vectors[i].Base = &r.space[i][0]
		r.vectors[i].SetLen(size)
		r.messages[i].Iov = &r.vectors[i]
		r.messages[i].SetIovlen(1)
		r.messages[i].Control = &r.controls[i][0]
	}
	return r
}

// read calls f for each datagram that waits, with the time of its arrival in nanoseconds since 1970.
func (r *reader) read(s socket, f func(b []byte, arrival int64)) {
	for {
		for i := range r.messages {
			r.messages[i].SetControllen(len(r.controls[i]))
		}
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&r.messages[0])), uintptr(len(r.messages)), unix.MSG_DONTWAIT, 0, 0)
		if errno != 0 {
			return
		}
		for i := range int(n) {
			b := r.space[i][:r.messages[i].bytes]
			arrival, segment := ancillary(r.controls[i][:r.messages[i].Controllen])
			if segment == 0 {
				segment = len(b)
			}
			for len(b) > 0 {
				one := b[:min(segment, len(b))]
				b = b[len(one):]
				f(one, arrival)
			}
		}
		if int(n) < len(r.messages) {
			return
		}
	}
}

// ancillary finds the time stamp and the segment size of UDP_GRO, 0 without.
func ancillary(b []byte) (arrival int64, segment int) {
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		if h.Len < unix.SizeofCmsghdr || h.Len > uint64(len(b)) {
			break
		}
		data := b[unix.CmsgLen(0):h.Len]
		switch {
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_TIMESTAMPNS && len(data) >= 16:
			arrival = int64(binary.NativeEndian.Uint64(data))*1e9 + int64(binary.NativeEndian.Uint64(data[8:]))
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			segment = int(binary.NativeEndian.Uint32(data))
		}
		b = b[min(len(b), (int(h.Len)+7)&^7):]
	}
	return arrival, segment
}
