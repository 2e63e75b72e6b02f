package peer

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/transport/v2"
	"github.com/pion/transport/v2/stdnet"
)

// A Network is a participant's access to UDP, with its faults. The zero value is a perfect network. It
// works on datagrams below ICE, so checks, handshakes and media suffer alike. One Network may serve
// several peers after each other; its methods may be called at any time from any goroutine.
type Network struct {
	// Detour, if set before use, names the address that stands in for another: packets for the one go to the other, and
	// what comes from there seems to come from the first. It must answer the same for the same, and differently for
	// different ones.
	Detour func(netip.AddrPort) netip.AddrPort

	cut   atomic.Bool
	up    atomic.Uint64 // loss towards the bridge, as a threshold for a random 64-bit number
	down  atomic.Uint64
	delay atomic.Int64 // towards the bridge, nanoseconds
}

// Cut drops everything in both directions until it is called with false.
func (n *Network) Cut(cut bool) { n.cut.Store(cut) }

// Lose drops this share (0…1) of the datagrams sent and received.
func (n *Network) Lose(up, down float64) {
	n.up.Store(threshold(up))
	n.down.Store(threshold(down))
}

// Delay holds datagrams to the bridge back for d, in order; round trips grow by d. What is under way
// when d changes keeps its place.
func (n *Network) Delay(d time.Duration) { n.delay.Store(int64(d)) }

func threshold(p float64) uint64 {
	switch {
	case p <= 0:
		return 0
	case p >= 1:
		return ^uint64(0)
	}
	return uint64(p * (1 << 63) * 2)
}

func (n *Network) drops(share *atomic.Uint64) bool {
	if n.cut.Load() {
		return true
	}
	t := share.Load()
	return t != 0 && rand.Uint64() <= t
}

// network adapts a Network to what pion/ice asks for. All interfaces of the host are listed once per
// process: a hundred participants would otherwise ask the kernel at every start.
type network struct {
	transport.Net
	faults *Network
}

var hostNet = sync.OnceValues(func() (transport.Net, error) { return stdnet.NewNet() })

func newNetwork(faults *Network) (*network, error) {
	host, err := hostNet()
	if err != nil {
		return nil, err
	}
	return &network{host, faults}, nil
}

func (n *network) ListenUDP(network string, laddr *net.UDPAddr) (transport.UDPConn, error) {
	c, err := n.Net.ListenUDP(network, laddr)
	if err != nil {
		return nil, err
	}
	return &faultyConn{UDPConn: c, net: n.faults}, nil
}

// A faultyConn applies the faults to one socket. pion/ice uses ReadFrom and WriteTo only.
type faultyConn struct {
	transport.UDPConn
	net *Network

	mu     sync.Mutex
	queue  []delayed
	timer  *time.Timer // set while the queue is not empty
	closed bool
	detour map[netip.AddrPort]*net.UDPAddr // to where packets for an address go
	direct sync.Map                        // netip.AddrPort of a detour → net.Addr that it stands for
}

type delayed struct {
	due  time.Time
	data []byte
	to   net.Addr
}

func (c *faultyConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := c.UDPConn.ReadFrom(b)
		if err != nil || !c.net.drops(&c.net.down) {
			if c.net.Detour != nil && err == nil {
				from = c.behind(from)
			}
			return n, from, err
		}
	}
}

func (c *faultyConn) WriteTo(b []byte, to net.Addr) (int, error) {
	if c.net.drops(&c.net.up) {
		return len(b), nil
	}
	d := time.Duration(c.net.delay.Load())
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.net.Detour != nil {
		to = c.aroundLocked(to)
	}
	if d == 0 && len(c.queue) == 0 {
		return c.UDPConn.WriteTo(b, to)
	}
	if c.closed {
		return 0, net.ErrClosed
	}
	c.queue = append(c.queue, delayed{time.Now().Add(d), append([]byte(nil), b...), to})
	if c.timer == nil {
		c.timer = time.AfterFunc(d, c.flush)
	}
	return len(b), nil
}

// aroundLocked returns where packets for an address go.
func (c *faultyConn) aroundLocked(to net.Addr) net.Addr {
	addr := to.(*net.UDPAddr).AddrPort()
	if c.detour == nil {
		c.detour = map[netip.AddrPort]*net.UDPAddr{}
	}
	way := c.detour[addr]
	if way == nil {
		stand := c.net.Detour(netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()))
		way = net.UDPAddrFromAddrPort(stand)
		c.detour[addr] = way
		c.direct.Store(stand, to)
	}
	return way
}

// behind returns for whom an address stands.
func (c *faultyConn) behind(from net.Addr) net.Addr {
	a := from.(*net.UDPAddr).AddrPort()
	if to, ok := c.direct.Load(netip.AddrPortFrom(a.Addr().Unmap(), a.Port())); ok {
		return to.(net.Addr)
	}
	return from
}

// flush sends what is due, in order.
func (c *faultyConn) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for len(c.queue) > 0 && !c.closed {
		if wait := c.queue[0].due.Sub(now); wait > 0 {
			c.timer.Reset(wait)
			return
		}
		_, _ = c.UDPConn.WriteTo(c.queue[0].data, c.queue[0].to) // as on any network, loss is silent
		c.queue[0] = delayed{}
		c.queue = c.queue[1:]
	}
	c.queue, c.timer = nil, nil
}

func (c *faultyConn) Close() error {
	c.mu.Lock()
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
	}
	c.mu.Unlock()
	return c.UDPConn.Close()
}
