//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// RelayConfig says between whom a Relay stands, and how bad it is.
type RelayConfig struct {
	// Listen is where clients send to; the zero value is 127.0.0.1, or ::1 when the target is IPv6, and any port.
	Listen netip.AddrPort
	// Target is who gets what clients send. It sees each client at a port of its own.
	Target netip.AddrPort
	// Up is done to what clients send, Down to what they get. All clients share one path.
	Up, Down Impairment
}

// A Relay is a bad network without namespaces or privileges: a UDP relay in this process, with one Engine per direction.
// One goroutine carries several hundred Mbit/s of media. Its methods may be used from any goroutine.
type Relay struct {
	target unix.Sockaddr
	listen int
	local  netip.AddrPort
	wake   wakeup
	done   chan struct{}
	once   sync.Once

	mu       sync.Mutex
	up, down *Engine

	// Of the goroutine.
	byAddr  map[netip.AddrPort]int // index into clients
	clients []client
}

type client struct {
	addr unix.Sockaddr
	fd   int // connected to the target
}

// maxClients bounds the sockets of a relay; what further addresses send is ignored.
const maxClients = 512

// NewRelay starts a relay that runs until Close.
func NewRelay(cfg RelayConfig) (*Relay, error) {
	if err := errors.Join(cfg.Up.Validate(), cfg.Down.Validate()); err != nil {
		return nil, err
	}
	cfg.Target = netip.AddrPortFrom(cfg.Target.Addr().Unmap(), cfg.Target.Port())
	overhead := 28
	if cfg.Target.Addr().Is6() {
		overhead = 48
	}
	if !cfg.Listen.IsValid() {
		loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if cfg.Target.Addr().Is6() {
			loopback = netip.IPv6Loopback()
		}
		cfg.Listen = netip.AddrPortFrom(loopback, 0)
	}
	now := time.Now()
	r := &Relay{
		target: sockaddr(cfg.Target), done: make(chan struct{}), byAddr: make(map[netip.AddrPort]int),
		up: NewEngine(cfg.Up, overhead, now), down: NewEngine(cfg.Down, overhead, now),
	}
	var err error
	if r.listen, err = udpSocket(cfg.Listen); err != nil {
		return nil, fmt.Errorf("relay %s: %w", cfg.Listen, err)
	}
	if err = unix.Bind(r.listen, sockaddr(cfg.Listen)); err == nil {
		var local unix.Sockaddr
		if local, err = unix.Getsockname(r.listen); err == nil {
			r.local = addrPort(local)
			r.wake, err = newWakeup()
		}
	}
	if err != nil {
		unix.Close(r.listen)
		return nil, fmt.Errorf("relay %s: %w", cfg.Listen, err)
	}
	go r.run()
	return r, nil
}

// Addr returns where clients send to.
func (r *Relay) Addr() netip.AddrPort { return r.local }

// Impair changes what happens from now on. It returns an error, and changes nothing, when a value is out of range.
func (r *Relay) Impair(up, down Impairment) error {
	if err := errors.Join(up.Validate(), down.Validate()); err != nil {
		return err
	}
	r.mu.Lock()
	now := time.Now()
	r.up.Set(up, now)
	r.down.Set(down, now)
	r.mu.Unlock()
	r.wake.set()
	return nil
}

// Stats returns the counters of both directions.
func (r *Relay) Stats() (up, down Stats) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.up.Stats(), r.down.Stats()
}

// Backlog returns how long a packet would wait now for its turn in each direction.
func (r *Relay) Backlog() (up, down time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	return r.up.Backlog(now), r.down.Backlog(now)
}

// Close ends the relay; what is inside is lost.
func (r *Relay) Close() error {
	r.once.Do(func() {
		r.wake.end()
		<-r.done
		unix.Close(r.listen)
		for _, c := range r.clients {
			unix.Close(c.fd)
		}
		r.wake.close()
	})
	return nil
}

func (r *Relay) run() {
	defer close(r.done)
	punctual()
	buf := make([]byte, 1<<16)
	var fds []unix.PollFd
	for {
		if len(fds) != len(r.clients)+2 {
			fds = append(fds[:0], unix.PollFd{Fd: int32(r.listen), Events: unix.POLLIN})
			for _, c := range r.clients {
				fds = append(fds, unix.PollFd{Fd: int32(c.fd), Events: unix.POLLIN})
			}
			fds = append(fds, unix.PollFd{Fd: int32(r.wake.fd), Events: unix.POLLIN})
		}
		r.mu.Lock()
		next := r.turn(buf)
		r.mu.Unlock()
		if wait(fds, next) {
			r.wake.drain()
		}
		if r.wake.ended() {
			return
		}
	}
}

// turn reads what is there, sends what is due, and returns when there is more to send.
func (r *Relay) turn(buf []byte) time.Time {
	now := time.Now()
	for range burst {
		n, from, err := unix.Recvfrom(r.listen, buf, 0)
		if err != nil { // nothing left, or an earlier packet was refused
			break
		}
		if i, ok := r.client(from); ok {
			r.up.Push(now, buf[:n], i)
		}
	}
	for i, c := range r.clients {
		for range burst {
			n, err := unix.Read(c.fd, buf)
			if err != nil {
				break
			}
			r.down.Push(now, buf[:n], i)
		}
	}
	now = time.Now()
	for {
		data, i, ok := r.up.Pop(now)
		if !ok {
			break
		}
		unix.Write(r.clients[i].fd, data) // what is refused is lost, as on any path
	}
	for {
		data, i, ok := r.down.Pop(now)
		if !ok {
			break
		}
		unix.Sendto(r.listen, data, 0, r.clients[i].addr)
	}
	return earlier(r.up.Next(), r.down.Next())
}

// client returns the index of the client at the address, a new one where it is new.
func (r *Relay) client(from unix.Sockaddr) (int, bool) {
	addr := addrPort(from)
	if i, ok := r.byAddr[addr]; ok {
		return i, true
	}
	if len(r.clients) == maxClients {
		return 0, false
	}
	fd, err := udpSocket(addrPort(r.target))
	if err != nil {
		return 0, false
	}
	if err := unix.Connect(fd, r.target); err != nil {
		unix.Close(fd)
		return 0, false
	}
	r.byAddr[addr] = len(r.clients)
	r.clients = append(r.clients, client{addr: from, fd: fd})
	return len(r.clients) - 1, true
}

// socketBytes of buffer hold what comes while the relay's thread does not run.
const socketBytes = 4 << 20

// udpSocket returns a socket for the family of addr.
func udpSocket(addr netip.AddrPort) (int, error) {
	domain := unix.AF_INET
	if addr.Addr().Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	for opt, forced := range map[int]int{unix.SO_RCVBUF: unix.SO_RCVBUFFORCE, unix.SO_SNDBUF: unix.SO_SNDBUFFORCE} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, forced, socketBytes) != nil { // no root: what the limit allows
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, socketBytes)
		}
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPort(s unix.Sockaddr) netip.AddrPort {
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr), uint16(s.Port))
	}
	return netip.AddrPort{}
}
