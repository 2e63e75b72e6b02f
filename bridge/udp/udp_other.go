//go:build !linux

package udp

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"plenum/bridge/packet"
)

// A Socket is one bound UDP socket. A goroutine of its own, which Close ends, reads ahead of the core.
type Socket struct {
	conn  *net.UDPConn
	local netip.AddrPort
	queue chan *packet.Buf // what has been read; the reader waits when it is full, as a kernel buffer would not
	free  sync.Pool
	done  chan struct{}

	mu   sync.Mutex
	wake func() // set by the Poller that watches it
}

func open(addr netip.AddrPort, shared bool) (*Socket, error) {
	if shared {
		return nil, errors.New("more than one socket per address needs Linux: use one core")
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, ErrInUse
	}
	if err != nil {
		return nil, err
	}
	_ = conn.SetReadBuffer(receiveBytes)
	_ = conn.SetWriteBuffer(sendBytes)
	port := uint16(conn.LocalAddr().(*net.UDPAddr).Port)
	s := &Socket{
		conn: conn, local: netip.AddrPortFrom(addr.Addr(), port),
		queue: make(chan *packet.Buf, 4*packet.BatchSize), done: make(chan struct{}),
		free: sync.Pool{New: func() any { return new(packet.Buf) }},
	}
	go s.read()
	return s, nil
}

func (s *Socket) share() error { return nil }

func (s *Socket) read() {
	defer close(s.done)
	defer close(s.queue)
	for {
		b := s.free.Get().(*packet.Buf)
		n, from, err := s.conn.ReadFromUDPAddrPort(b.Space())
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		b.Path.Remote = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		b.Data = b.Space()[:n]
		s.queue <- b
		s.mu.Lock()
		wake := s.wake
		s.mu.Unlock()
		if wake != nil {
			wake()
		}
	}
}

// Local is the bound address.
func (s *Socket) Local() netip.AddrPort { return s.local }

// SendTo sends one datagram at once. Any goroutine may call it.
func (s *Socket) SendTo(b []byte, to netip.AddrPort) error {
	_, err := s.conn.WriteToUDPAddrPort(b, to)
	if errors.Is(err, net.ErrClosed) {
		return ErrClosed
	}
	return err
}

// Drops is not known here.
func (s *Socket) Drops() uint64 { return 0 }

// ReceiveBuffer is not known here.
func (s *Socket) ReceiveBuffer() int { return 0 }

// Close closes the socket and ends its goroutine.
func (s *Socket) Close() error {
	err := s.conn.Close()
	for range s.queue { // lets a reader that waits go on to see the end
	}
	<-s.done
	return err
}

// A Reader fills one Batch from sockets. One goroutine uses it.
type Reader struct{ batch *packet.Batch }

// NewReader returns a Reader that fills b.
func NewReader(b *packet.Batch) *Reader { return &Reader{b} }

// Read takes what waits at s, at most one batch. index becomes the socket of their paths.
func (r *Reader) Read(s *Socket, index int) (int, error) {
	r.batch.N = 0
	for r.batch.N < packet.BatchSize {
		select {
		case in, ok := <-s.queue:
			if !ok {
				return r.batch.N, nil
			}
			b := &r.batch.Bufs[r.batch.N]
			b.Path = packet.Path{Socket: index, Remote: in.Path.Remote}
			b.Data = b.Space()[:copy(b.Space(), in.Data)]
			s.free.Put(in)
			r.batch.N++
		default:
			return r.batch.N, nil
		}
	}
	return r.batch.N, nil
}

// A Sender flushes outboxes. One goroutine uses it.
type Sender struct{ Counters }

// NewSender returns a Sender.
func NewSender() *Sender { return new(Sender) }

// Flush sends all of out in order and resets it. A path's socket is an index into sockets.
func (s *Sender) Flush(out *packet.Outbox, sockets []*Socket) {
	for _, d := range out.Datagrams {
		if err := sockets[d.Path.Socket].SendTo(d.Data, d.Path.Remote); err != nil {
			s.Failed++
			continue
		}
		s.Datagrams++
		s.Messages++
		s.Bytes += uint64(len(d.Data))
	}
	out.Reset()
}

// A Poller waits until a socket has datagrams, somebody calls Wake, or time is up.
type Poller struct {
	sockets []*Socket
	woken   chan struct{}
	ready   []int
}

// NewPoller watches the sockets.
func NewPoller(sockets []*Socket) (*Poller, error) {
	p := &Poller{sockets: sockets, woken: make(chan struct{}, 1)}
	for _, s := range sockets {
		s.mu.Lock()
		s.wake = p.Wake
		s.mu.Unlock()
	}
	return p, nil
}

// Wait blocks for at most d and returns the indexes of the sockets that have something to read.
func (p *Poller) Wait(d time.Duration) ([]int, error) {
	if !p.scan() {
		t := time.NewTimer(d)
		select {
		case <-p.woken:
		case <-t.C:
		}
		t.Stop()
		p.scan()
	}
	return p.ready, nil
}

func (p *Poller) scan() bool {
	p.ready = p.ready[:0]
	for i, s := range p.sockets {
		if len(s.queue) > 0 {
			p.ready = append(p.ready, i)
		}
	}
	return len(p.ready) > 0
}

// Wake ends the current or the next Wait. Any goroutine may call it.
func (p *Poller) Wake() {
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

// Close releases nothing here.
func (p *Poller) Close() error { return nil }

// Split is not possible here.
func Split([]*Socket) ([]*Socket, error) { return nil, errors.ErrUnsupported }

// Watch is for sockets that Split has opened.
func (p *Poller) Watch(*Socket, int, bool) error { return errors.ErrUnsupported }
