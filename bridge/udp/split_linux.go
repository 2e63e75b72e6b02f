package udp

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Split opens one more socket for each of an address's and has the kernel bring RTCP there (RFC 5761 §4), so that
// its readers need not be woken by reports: a hundred receivers send a thousand a second. What belongs to one SSRC
// goes to one socket, and keeps its order. Without an error all of the address's sockets are as before but for that.
func Split(media []*Socket) (feedback []*Socket, err error) {
	defer func() {
		if err == nil {
			return
		}
		for _, s := range feedback {
			s.Close()
		}
		feedback = nil
		if len(media) == 1 {
			_ = unix.SetsockoptInt(media[0].fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 0)
		}
	}()
	if err := media[0].share(); err != nil {
		return nil, err
	}
	for range media {
		s, err := open(media[0].Local(), true)
		if err != nil {
			return feedback, err
		}
		feedback = append(feedback, s)
	}
	n := uint32(len(media))
	const second, fromRTCP, ssrc = 1, 4, 8 // offsets into the datagram
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: second},
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: 192, Jf: 5},
		{Code: unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K, K: 223, Jt: 4},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: fromRTCP},
		{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: n},
		{Code: unix.BPF_ALU | unix.BPF_ADD | unix.BPF_K, K: n},
		{Code: unix.BPF_RET | unix.BPF_A},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: ssrc},
		{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: n},
		{Code: unix.BPF_RET | unix.BPF_A},
	}
	f := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(media[0].fd), unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
		uintptr(unsafe.Pointer(&f)), unsafe.Sizeof(f), 0)
	runtime.KeepAlive(program)
	if errno != 0 {
		return feedback, os.NewSyscallError("SO_ATTACH_REUSEPORT_CBPF", errno)
	}
	return feedback, nil
}

// Watch says whether socket i, by its index in what NewPoller got, ends a Wait.
func (p *Poller) Watch(s *Socket, i int, on bool) error {
	e := unix.EpollEvent{Fd: int32(i)}
	if on {
		e.Events = unix.EPOLLIN
	}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.epoll, unix.EPOLL_CTL_MOD, s.fd, &e))
}
