package udp

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"plenum/bridge/packet"
)

const (
	maxMessages = 64
	maxVectors  = 512
	// maxSegments and maxSegmented bound one UDP_SEGMENT send: UDP_MAX_SEGMENTS, and what fits a UDP length.
	maxSegments  = 64
	maxSegmented = 64000
	// maxPlain bounds the table of destinations that take no segmented sends.
	maxPlain = 4096
)

var controlBytes = unix.CmsgSpace(2)

// A Sender flushes outboxes. One goroutine uses it, because what a send is made of lives here.
type Sender struct {
	Counters

	messages [maxMessages]message
	vectors  [maxVectors]unix.Iovec
	names    [maxMessages]name
	controls [maxMessages][32]byte
	counts   [maxMessages]int // datagrams in each message

	plain   map[netip.Addr]struct{} // destinations that refused a segmented send
	noGSO   map[*Socket]struct{}    // sockets whose device refused one
	stalled bool                    // a full send buffer was waited for once in this flush
}

// NewSender returns a Sender.
func NewSender() *Sender {
	s := &Sender{plain: make(map[netip.Addr]struct{}), noGSO: make(map[*Socket]struct{})}
	for i := range s.messages {
		c := &s.controls[i]
		h := (*unix.Cmsghdr)(unsafe.Pointer(c))
		h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		h.SetLen(unix.CmsgLen(2))
	}
	return s
}

// Flush sends all of out in order and resets it. A path's socket is an index into sockets. Runs of equal
// size on one path, the last possibly shorter, become one send that the kernel or the card cuts up. A
// send that fails is counted and dropped; nothing blocks but a full send buffer, for 2 ms once. It does not
// allocate.
func (s *Sender) Flush(out *packet.Outbox, sockets []*Socket) {
	s.stalled = false
	d := out.Datagrams
	for len(d) > 0 {
		d = d[s.round(d, sockets):]
	}
	out.Reset()
}

// round builds and sends as many messages as fit, all of one socket, and returns how many datagrams it took.
func (s *Sender) round(d []packet.Datagram, sockets []*Socket) (taken int) {
	socket := sockets[d[0].Path.Socket]
	segment := socket.gso
	if segment && len(s.noGSO) > 0 {
		_, no := s.noGSO[socket]
		segment = !no
	}
	messages, vectors := 0, 0
	for taken < len(d) && messages < maxMessages && vectors < maxVectors && d[taken].Path.Socket == d[0].Path.Socket {
		n := 1
		if segment {
			n = s.run(d[taken:])
		}
		v := s.fill(messages, vectors, d[taken:taken+n])
		if v < 0 {
			break // no vectors left for this run; there is at least one message before it
		}
		vectors += v
		s.counts[messages] = n
		messages++
		taken += n
	}
	s.send(socket, d[:taken], messages)
	return taken
}

// run is how many datagrams at the head of d can go as one segmented send.
func (s *Sender) run(d []packet.Datagram) int {
	size, total := len(d[0].Data), len(d[0].Data)
	n := 1
	for n < len(d) && n < maxSegments && d[n].Path == d[0].Path && len(d[n].Data) <= size && total+size <= maxSegmented {
		total += len(d[n].Data)
		n++
		if len(d[n-1].Data) < size {
			break
		}
	}
	if n > 1 && len(s.plain) > 0 {
		if _, no := s.plain[d[0].Path.Remote.Addr()]; no {
			return 1
		}
	}
	return n
}

// fill makes message m of the datagrams, with vectors from index v on, and returns how many it used, or -1.
// Datagrams that lie next to each other in the arena share a vector.
func (s *Sender) fill(m, v int, d []packet.Datagram) int {
	used := 0
	var end unsafe.Pointer
	for i := range d {
		b := d[i].Data
		at := unsafe.Pointer(unsafe.SliceData(b))
		if used > 0 && at == end {
			vec := &s.vectors[v+used-1]
			vec.SetLen(int(vec.Len) + len(b))
		} else {
			if v+used == maxVectors {
				return -1
			}
			vec := &s.vectors[v+used]
			vec.Base = (*byte)(at)
			vec.SetLen(len(b))
			used++
		}
		end = unsafe.Add(at, len(b))
	}
	h := &s.messages[m].header
	h.Name = (*byte)(ptr(&s.names[m]))
	h.Namelen = s.names[m].set(d[0].Path.Remote)
	h.Iov = &s.vectors[v]
	h.SetIovlen(used)
	h.Control = nil
	h.SetControllen(0)
	if len(d) > 1 {
		c := &s.controls[m]
		binary.NativeEndian.PutUint16(c[unix.CmsgLen(0):], uint16(len(d[0].Data)))
		h.Control = &c[0]
		h.SetControllen(controlBytes)
	}
	return used
}

func (s *Sender) send(socket *Socket, d []packet.Datagram, messages int) {
	for m := 0; m < messages; {
		n, errno := mmsg(unix.SYS_SENDMMSG, socket.fd, s.messages[m:messages])
		for range n {
			s.sent(d[:s.counts[m]])
			d = d[s.counts[m]:]
			m++
		}
		if errno == 0 {
			continue
		}
		// The error is that of the first message that was not sent.
		head := d[:s.counts[m]]
		switch {
		case errno == unix.EAGAIN || errno == unix.ENOBUFS:
			if !s.stalled {
				s.stalled = true
				fds := [1]unix.PollFd{{Fd: int32(socket.fd), Events: unix.POLLOUT}}
				if n, _ := unix.Poll(fds[:], 2); n > 0 {
					continue
				}
			}
			s.Full += uint64(len(head))
		case len(head) > 1 && (errno == unix.EIO || errno == unix.EINVAL || errno == unix.EMSGSIZE):
			s.refuse(socket, head[0].Path.Remote.Addr(), errno)
			for i := range head {
				s.sendPlain(socket, head[i:i+1])
			}
		default:
			s.Failed += uint64(len(head))
		}
		d = d[len(head):]
		m++
	}
}

// refuse remembers where segmentation does not work: EIO comes from the device (no checksum offload),
// the others from the path (a segment larger than its MTU).
func (s *Sender) refuse(socket *Socket, to netip.Addr, errno syscall.Errno) {
	s.Refused++
	if errno == unix.EIO {
		s.noGSO[socket] = struct{}{}
		return
	}
	if len(s.plain) >= maxPlain {
		clear(s.plain)
	}
	s.plain[to] = struct{}{}
}

// sendPlain sends one datagram by itself. It is for the rare repeat, and uses no scratch of send.
func (s *Sender) sendPlain(socket *Socket, d []packet.Datagram) {
	if err := socket.SendTo(d[0].Data, d[0].Path.Remote); err != nil {
		s.Failed++
		return
	}
	s.sent(d)
}

func (s *Sender) sent(d []packet.Datagram) {
	s.Messages++
	s.Datagrams += uint64(len(d))
	for i := range d {
		s.Bytes += uint64(len(d[i].Data))
	}
}

func ptr(n *name) unsafe.Pointer { return unsafe.Pointer(n) }
