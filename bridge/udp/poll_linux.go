package udp

import (
	"encoding/binary"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A Poller waits until a socket has datagrams, somebody calls Wake, or time is up: what one core sleeps in.
type Poller struct {
	epoll, event int
	woken        atomic.Bool // a wake-up is on its way and not yet seen
	events       []unix.EpollEvent
	ready        []int
}

// NewPoller watches the sockets.
func NewPoller(sockets []*Socket) (*Poller, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	event, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(epoll)
		return nil, os.NewSyscallError("eventfd", err)
	}
	p := &Poller{
		epoll: epoll, event: event,
		events: make([]unix.EpollEvent, len(sockets)+1),
		ready:  make([]int, 0, len(sockets)),
	}
	add := func(fd, mark int) error {
		return unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(mark)})
	}
	err = add(event, -1)
	for i, s := range sockets {
		if err == nil {
			err = add(s.fd, i)
		}
	}
	if err != nil {
		p.Close()
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	return p, nil
}

// Wait blocks for at most d, rounded up to a millisecond, and returns the indexes of the sockets that have
// something to read, valid until the next Wait. A Wake before or during Wait ends it.
func (p *Poller) Wait(d time.Duration) ([]int, error) {
	p.ready = p.ready[:0]
	ms := int(max(0, (d+time.Millisecond-1)/time.Millisecond))
	n, err := unix.EpollWait(p.epoll, p.events, ms)
	if err != nil {
		if err == unix.EINTR {
			return p.ready, nil
		}
		return nil, os.NewSyscallError("epoll_wait", err)
	}
	for _, e := range p.events[:n] {
		if e.Fd >= 0 {
			p.ready = append(p.ready, int(e.Fd))
			continue
		}
		var b [8]byte
		_, _ = unix.Read(p.event, b[:])
		p.woken.Store(false)
	}
	return p.ready, nil
}

// Wake ends the current or the next Wait. Any goroutine may call it; repeated calls cost nothing.
func (p *Poller) Wake() {
	if p.woken.Swap(true) {
		return
	}
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], 1)
	_, _ = unix.Write(p.event, b[:])
}

// Close releases the descriptors. Nobody may wait or wake any more.
func (p *Poller) Close() error {
	unix.Close(p.event)
	return os.NewSyscallError("close", unix.Close(p.epoll))
}
