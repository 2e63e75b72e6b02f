//go:build linux

package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A forwarder carries Ethernet frames between two devices of one namespace, through an Engine per direction. One
// goroutine, on a thread of its own, reads both packet sockets and sends what is due.
type forwarder struct {
	fds  [2]int // packet sockets; what is read from i goes through engine i and out at 1−i
	wake wakeup
	done chan struct{}

	mu      sync.Mutex
	engines [2]*Engine

	once sync.Once
}

// ethernetOverhead is what an Engine adds to a frame's length to get the IP packet's.
const ethernetOverhead = -14

// frameBytes holds any frame, one that the kernel has not yet segmented included.
const frameBytes = 1<<16 + 64

// burst is how many packets are read before those that are due get their turn.
const burst = 256

func startForwarder(ns netns.NsHandle, p, q int, away, to Impairment) (f *forwarder, err error) {
	f = &forwarder{done: make(chan struct{})}
	err = within(ns, func() error {
		for i, index := range []int{p, q} {
			fd, err := packetSocket(index, true)
			if err != nil {
				return err
			}
			f.fds[i] = fd
		}
		return nil
	})
	if err == nil {
		f.wake, err = newWakeup()
	}
	if err != nil {
		for _, fd := range f.fds {
			if fd > 0 {
				unix.Close(fd)
			}
		}
		return nil, err
	}
	now := time.Now()
	f.engines = [2]*Engine{NewEngine(away, ethernetOverhead, now), NewEngine(to, ethernetOverhead, now)}
	go f.run()
	return f, nil
}

func (f *forwarder) set(away, to Impairment) {
	f.mu.Lock()
	now := time.Now()
	f.engines[0].Set(away, now)
	f.engines[1].Set(to, now)
	f.mu.Unlock()
	f.wake.set()
}

func (f *forwarder) stats() (away, to Stats) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.engines[0].Stats(), f.engines[1].Stats()
}

// close ends the goroutine and waits for it. What is inside is lost.
func (f *forwarder) close() {
	f.once.Do(func() {
		f.wake.end()
		<-f.done
		unix.Close(f.fds[0])
		unix.Close(f.fds[1])
		f.wake.close()
	})
}

func (f *forwarder) run() {
	defer close(f.done)
	punctual()
	buf := make([]byte, frameBytes)
	fds := []unix.PollFd{{Fd: int32(f.fds[0]), Events: unix.POLLIN}, {Fd: int32(f.fds[1]), Events: unix.POLLIN},
		{Fd: int32(f.wake.fd), Events: unix.POLLIN}}
	for {
		f.mu.Lock()
		for i := range 2 {
			now := time.Now()
			for range burst {
				n, err := unix.Read(f.fds[i], buf)
				if err != nil { // nothing left, or the cable was pulled
					break
				}
				if neighbourly(buf[:n]) {
					f.engines[i].Carry(now, buf[:n], 0)
				} else {
					f.engines[i].Push(now, buf[:n], 0)
				}
			}
		}
		now := time.Now()
		var next time.Time
		for i, e := range f.engines {
			for {
				frame, _, ok := e.Pop(now)
				if !ok {
					break
				}
				unix.Write(f.fds[1-i], frame) // refused while the cable is out: lost, as on a cable
			}
			next = earlier(next, e.Next())
		}
		f.mu.Unlock()
		if wait(fds, next) {
			f.wake.drain()
		}
		if f.wake.ended() {
			return
		}
	}
}

// neighbourly reports whether a frame is one of those by which neighbours find each other: ARP, and of ICMPv6 multicast
// listeners (RFC 3810) and neighbour discovery (RFC 4861). The kernel sends them when it pleases, so they may not shift
// the numbers of a test's packets; and losing one costs a second that says nothing about the path.
func neighbourly(frame []byte) bool {
	if len(frame) < 14 {
		return false
	}
	const header = 14 + 40 // Ethernet, IPv6
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_ARP:
		return true
	case unix.ETH_P_IPV6:
		next, at := byte(0), header
		if len(frame) > header+8 {
			if next = frame[14+6]; next == unix.IPPROTO_HOPOPTS { // the router alert of multicast listeners, 8 bytes
				next, at = frame[header], header+8
			}
		}
		if next != unix.IPPROTO_ICMPV6 {
			return false
		}
		kind := frame[at]
		return kind >= 130 && kind <= 137 || kind == 143
	}
	return false
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// wait sleeps until a descriptor has something or the time has come; the zero time is never. It reports whether the
// last descriptor has something.
func wait(fds []unix.PollFd, until time.Time) bool {
	var ts *unix.Timespec
	if !until.IsZero() {
		t := unix.NsecToTimespec(max(time.Until(until), 0).Nanoseconds())
		ts = &t
	}
	n, err := unix.Ppoll(fds, ts, nil)
	return err == nil && n > 0 && fds[len(fds)-1].Revents != 0
}

// punctual gives the goroutine a thread for itself, which ends with it: its sleeps end when they should instead of 50 µs
// later and, as root, also while the machine is busy with what the test is about.
func punctual() {
	runtime.LockOSThread()
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -15)
}

// A wakeup ends a poll from another goroutine.
type wakeup struct {
	fd   int
	stop chan struct{}
}

func newWakeup() (wakeup, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	return wakeup{fd: fd, stop: make(chan struct{})}, err
}

func (w wakeup) set() {
	one := [8]byte{1}
	unix.Write(w.fd, one[:])
}

func (w wakeup) drain() {
	var b [8]byte
	unix.Read(w.fd, b[:])
}

func (w wakeup) end()   { close(w.stop); w.set() }
func (w wakeup) close() { unix.Close(w.fd) }

func (w wakeup) ended() bool {
	select {
	case <-w.stop:
		return true
	default:
		return false
	}
}

// packetSocket opens a socket for the frames of one device in this thread's namespace, of both directions or only of
// those that come in.
func packetSocket(index int, incoming bool) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("packet socket: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
	if incoming {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1))
	}
	all := binary.BigEndian.Uint16([]byte{0, unix.ETH_P_ALL}) // in network order on any machine, see packet(7)
	err = errors.Join(err, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: hostOrder(all), Ifindex: index}))
	if err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("packet socket: %w", err)
	}
	return fd, nil
}

// hostOrder returns the number whose bytes in memory are v in network order: htons.
func hostOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// offload says whether the device may be left to fill in checksums and, as that needs the former, to segment. It is
// what ethtool -K DEVICE tx on|off does.
func offload(ns netns.NsHandle, device string, on bool) error {
	const stxcsum = 0x17 // ETHTOOL_STXCSUM
	value := struct{ cmd, data uint32 }{cmd: stxcsum}
	if on {
		value.data = 1
	}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // of the union in struct ifreq
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	return within(ns, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
		if errno != 0 {
			return fmt.Errorf("offload of %s: %w", device, errno)
		}
		return nil
	})
}
