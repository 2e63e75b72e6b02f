package transport

import (
	"net"
	"sync/atomic"
	"time"

	"github.com/pion/transport/v5/packetio"

	"plenum/bridge/packet"
)

const (
	// What may wait for the DTLS stack: early datagrams until the peer's fingerprint is known, and bursts later.
	pipeDatagrams = 128
	pipeBytes     = 128 << 10
)

// A pipe is the socket that DTLS believes to have: in come the datagrams that the core put aside, out goes
// whatever the path is at that moment. put and setPath are the core's, the rest is the DTLS stack's.
type pipe struct {
	in   *packetio.Buffer
	path atomic.Pointer[packet.Path]
	send func(packet.Path, []byte)
}

func newPipe(send func(packet.Path, []byte)) *pipe {
	p := &pipe{in: packetio.NewBuffer(), send: send}
	p.in.SetLimitCount(pipeDatagrams)
	p.in.SetLimitSize(pipeBytes)
	return p
}

// put copies one datagram in; false when there is no room. It does not block.
func (p *pipe) put(b []byte) bool {
	_, err := p.in.Write(b, nil)
	return err == nil
}

func (p *pipe) setPath(path packet.Path) { p.path.Store(&path) }

// nowhere stands for the peer's address, which may change and is none of DTLS's business.
var nowhere = &net.UDPAddr{IP: net.IPv4zero, Port: 9}

func (p *pipe) ReadFrom(b []byte) (int, net.Addr, error) {
	n, _, err := p.in.Read(b, nil)
	return n, nowhere, err
}

// WriteTo drops when there is no path, as a network would.
func (p *pipe) WriteTo(b []byte, _ net.Addr) (int, error) {
	if path := p.path.Load(); path != nil {
		p.send(*path, b)
	}
	return len(b), nil
}

func (p *pipe) Close() error                      { return p.in.Close() }
func (p *pipe) LocalAddr() net.Addr               { return nowhere }
func (p *pipe) SetReadDeadline(t time.Time) error { return p.in.SetReadDeadline(t) }
func (p *pipe) SetWriteDeadline(time.Time) error  { return nil }
func (p *pipe) SetDeadline(t time.Time) error     { return p.in.SetReadDeadline(t) }
