package udp

import (
	"os"

	"golang.org/x/sys/unix"

	"plenum/bridge/packet"
)

// A Reader fills one Batch from sockets. One goroutine uses it.
type Reader struct {
	batch    *packet.Batch
	messages [packet.BatchSize]message
	vectors  [packet.BatchSize]unix.Iovec
	names    [packet.BatchSize]name
}

// NewReader returns a Reader that fills b; b must stay where it is.
func NewReader(b *packet.Batch) *Reader {
	r := &Reader{batch: b}
	for i := range r.messages {
		space := b.Bufs[i].Space()
		r.vectors[i].Base = &space[0]
		r.vectors[i].SetLen(len(space))
		h := &r.messages[i].header
		h.Name = (*byte)(ptr(&r.names[i]))
		h.Iov = &r.vectors[i]
		h.SetIovlen(1)
	}
	return r
}

// Read takes what waits at s, at most one batch, and returns how many datagrams that is: 0 when there is
// nothing. index becomes the socket of their paths. A datagram longer than packet.MaxBytes is left with
// empty Data. Arrival is for the caller to set. It does not block and does not allocate.
func (r *Reader) Read(s *Socket, index int) (int, error) {
	for i := range r.messages {
		r.messages[i].header.Namelen = name6Bytes
	}
	n, errno := mmsg(unix.SYS_RECVMMSG, s.fd, r.messages[:])
	r.batch.N = n
	switch errno {
	case 0:
	case unix.EAGAIN:
		return 0, nil
	default:
		return 0, os.NewSyscallError("recvmmsg", errno)
	}
	for i := range n {
		b := &r.batch.Bufs[i]
		b.Path = packet.Path{Socket: index, Remote: r.names[i].addrPort()}
		b.Data = b.Space()[:r.messages[i].bytes]
		if r.messages[i].header.Flags&unix.MSG_TRUNC != 0 {
			b.Data = b.Data[:0]
		}
	}
	return n, nil
}
