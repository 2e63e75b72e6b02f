// Command limit is the least that a bridge can do for a packet: recvmmsg, open it once, and for each receiver a
// new header, one seal, one send. It knows no ICE, DTLS, RTCP, retransmission or statistics; keys and addresses
// come as one JSON document (Config) on standard input. What it costs is the floor that the bridge is measured
// against; benchmarks run it, nobody else does.
//
// It prints the address it listens on, forwards until standard input ends, and prints a Report.
package main

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Config says who is there and who gets what.
type Config struct {
	Listen netip.AddrPort // IPv4; port 0 picks one
	Mode   string         // "sendto", "sendmmsg" or "gso"
	Peers  []Peer
}

// A Peer is one address that sends, receives, or both.
type Peer struct {
	Addr    netip.AddrPort
	In, Out Key   // of what it sends, of what it gets
	From    []int // peers whose packets it gets
}

// A Key is a session key of AEAD_AES_128_GCM: 16 and 12 bytes.
type Key struct{ Key, Salt []byte }

// A Report is what a run did. The times are wall time in nanoseconds, whatever interrupted them included.
type Report struct {
	Reads, Received, Bad, Forwarded, Sends, Failed uint64
	Open, Seal, Send                               uint64
}

const (
	batch      = 64      // datagrams in a read, messages in a send
	maxBytes   = 1500    // of a datagram
	arenaBytes = 1 << 18 // what is sealed before it is sent
	tagBytes   = 16
	maxSegment = 64    // UDP_MAX_SEGMENTS
	maxGSO     = 64000 // bytes of one segmented send
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "limit:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	runtime.LockOSThread()
	d := json.NewDecoder(bufio.NewReader(in))
	var cfg Config
	if err := d.Decode(&cfg); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	f, err := newForwarder(cfg)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, f.local)
	go func() {
		_, _ = d.Token() // the end of standard input
		unix.Shutdown(f.fd, unix.SHUT_RD)
	}()
	if err := f.forward(); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(f.Report)
}

// A crypt opens or seals with one session key.
type crypt struct {
	aead  cipher.AEAD
	salt  [12]byte
	nonce [12]byte
}

func newCrypt(k Key) (*crypt, error) {
	if len(k.Key) == 0 {
		return nil, nil
	}
	block, err := aes.NewCipher(k.Key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil || len(k.Salt) != 12 {
		return nil, errors.Join(err, errors.New("a salt has 12 bytes"))
	}
	return &crypt{aead: aead, salt: [12]byte(k.Salt)}, nil
}

// number is the nonce of one packet (RFC 7714 §8.1).
func (c *crypt) number(ssrc, roc uint32, seq uint16) []byte {
	n := &c.nonce
	*n = c.salt
	binary.BigEndian.PutUint32(n[2:], binary.BigEndian.Uint32(n[2:])^ssrc)
	binary.BigEndian.PutUint32(n[6:], binary.BigEndian.Uint32(n[6:])^roc)
	binary.BigEndian.PutUint16(n[10:], binary.BigEndian.Uint16(n[10:])^seq)
	return n[:]
}

// A sender is a peer whose packets are forwarded.
type sender struct {
	*crypt
	takers []*receiver
	rocs   map[uint32]*counter
	batch  []clear
}

// A counter follows the sequence numbers of one SSRC.
type counter struct {
	roc  uint32
	last uint16
}

func (c *counter) of(seq uint16) uint32 {
	if int16(seq-c.last) > 0 {
		if seq < c.last {
			c.roc++
		}
		c.last = seq
	} else if seq > c.last {
		return c.roc - 1
	}
	return c.roc
}

// A clear packet, opened in place.
type clear struct {
	header, payload []byte
	roc             uint32
}

type receiver struct {
	*crypt
	name unix.RawSockaddrInet4
}

type message struct {
	unix.Msghdr
	bytes uint32
	_     uint32
}

type forwarder struct {
	Report
	fd      int
	local   netip.AddrPort
	gso     bool
	plain   bool // sendto
	senders map[uint64]*sender
	active  []*sender

	in        [batch]message
	inVectors [batch]unix.Iovec
	names     [batch]unix.RawSockaddrInet4
	space     [batch][maxBytes]byte

	arena      []byte
	out        [batch]message
	outVectors [batch]unix.Iovec
	controls   [batch][unix.SizeofCmsghdr + 8]byte
	waiting    int
	size       int // of the segments of the last message
	count      int // segments in it
	open       bool
}

func newForwarder(cfg Config) (*forwarder, error) {
	f := &forwarder{senders: map[uint64]*sender{}, arena: make([]byte, 0, arenaBytes)}
	switch cfg.Mode {
	case "sendto":
		f.plain = true
	case "sendmmsg":
	case "gso":
		f.gso = true
	default:
		return nil, fmt.Errorf("mode %q is none of sendto, sendmmsg, gso", cfg.Mode)
	}
	all := make([]*sender, len(cfg.Peers))
	for i, p := range cfg.Peers {
		in, err := newCrypt(p.In)
		if err != nil {
			return nil, fmt.Errorf("peer %d: %w", i, err)
		}
		if in != nil {
			all[i] = &sender{crypt: in, rocs: map[uint32]*counter{}}
			f.senders[key(inet4(p.Addr))] = all[i]
		}
	}
	for i, p := range cfg.Peers {
		out, err := newCrypt(p.Out)
		if err != nil {
			return nil, fmt.Errorf("peer %d: %w", i, err)
		}
		for _, from := range p.From {
			if from < 0 || from >= len(all) || all[from] == nil || out == nil {
				return nil, fmt.Errorf("peer %d cannot get anything from %d", i, from)
			}
			all[from].takers = append(all[from].takers, &receiver{out, inet4(p.Addr)})
		}
	}
	for i := range f.in {
		f.inVectors[i].Base = &f.space[i][0]
		f.inVectors[i].SetLen(maxBytes)
		f.in[i].Name = (*byte)(unsafe.Pointer(&f.names[i]))
		f.in[i].Namelen = unix.SizeofSockaddrInet4
		f.in[i].Iov = &f.inVectors[i]
		f.in[i].SetIovlen(1)
		c := (*unix.Cmsghdr)(unsafe.Pointer(&f.controls[i]))
		c.Level, c.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		c.SetLen(unix.CmsgLen(2))
		f.out[i].Iov = &f.outVectors[i]
		f.out[i].SetIovlen(1)
		f.out[i].Namelen = unix.SizeofSockaddrInet4
	}
	return f, f.listen(cfg.Listen)
}

func (f *forwarder) listen(at netip.AddrPort) (err error) {
	if f.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	for _, o := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(f.fd, unix.SOL_SOCKET, o[0], 10<<20) != nil {
			_ = unix.SetsockoptInt(f.fd, unix.SOL_SOCKET, o[1], 10<<20)
		}
	}
	if err = unix.Bind(f.fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err != nil {
		return fmt.Errorf("%v: %w", at, err)
	}
	name, err := unix.Getsockname(f.fd)
	if err != nil {
		return err
	}
	f.local = netip.AddrPortFrom(at.Addr(), uint16(name.(*unix.SockaddrInet4).Port))
	return nil
}

func inet4(a netip.AddrPort) unix.RawSockaddrInet4 {
	n := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Addr().As4()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&n.Port))[:], a.Port())
	return n
}

func key(n unix.RawSockaddrInet4) uint64 {
	return uint64(binary.BigEndian.Uint32(n.Addr[:]))<<16 | uint64(n.Port)
}

// forward is the loop. It ends when the socket is shut down.
func (f *forwarder) forward() error {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(f.fd), uintptr(unsafe.Pointer(&f.in)), batch, unix.MSG_WAITFORONE, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return os.NewSyscallError("recvmmsg", errno)
		}
		start := time.Now()
		f.Reads++
		for i := range int(n) {
			if f.in[i].bytes == 0 && f.in[i].Namelen == 0 {
				return nil
			}
			f.receive(f.space[i][:f.in[i].bytes], key(f.names[i]))
			f.in[i].Namelen = unix.SizeofSockaddrInet4
		}
		opened := time.Now()
		f.Open += uint64(opened.Sub(start))
		for _, s := range f.active {
			for _, r := range s.takers {
				for i := range s.batch {
					f.seal(r, &s.batch[i])
				}
				f.open = false
			}
			s.batch = s.batch[:0]
		}
		f.active = f.active[:0]
		f.flush()
		f.Seal += uint64(time.Since(opened)) // flush has taken off what sending took
	}
}

func (f *forwarder) receive(b []byte, from uint64) {
	s := f.senders[from]
	if s == nil || len(b) < 12+tagBytes || b[0]>>6 != 2 {
		f.Bad++
		return
	}
	h := 12 + 4*int(b[0]&15)
	if b[0]&0x10 != 0 && len(b) >= h+4 {
		h += 4 + 4*int(binary.BigEndian.Uint16(b[h+2:]))
	}
	if len(b) < h+tagBytes {
		f.Bad++
		return
	}
	ssrc, seq := binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint16(b[2:])
	c := s.rocs[ssrc]
	if c == nil {
		c = &counter{last: seq}
		s.rocs[ssrc] = c
	}
	roc := c.of(seq)
	payload, err := s.aead.Open(b[h:h], s.number(ssrc, roc, seq), b[h:], b[:h])
	if err != nil {
		f.Bad++
		return
	}
	f.Received++
	if len(s.batch) == 0 {
		f.active = append(f.active, s)
	}
	s.batch = append(s.batch, clear{b[:h], payload, roc})
}

// newSSRC is added to each SSRC, so that the header that goes out is not the one that came.
const newSSRC = 1000

func (f *forwarder) seal(r *receiver, p *clear) {
	n := len(p.header) + len(p.payload) + tagBytes
	join := f.gso && f.open && n <= f.size && f.count < maxSegment && f.size*f.count+n <= maxGSO
	if !join && f.waiting == batch || cap(f.arena)-len(f.arena) < n {
		f.flush()
		join = false
	}
	at := len(f.arena)
	b := append(f.arena, p.header...)
	ssrc := binary.BigEndian.Uint32(p.header[8:]) + newSSRC
	binary.BigEndian.PutUint32(b[at+8:], ssrc)
	f.arena = r.aead.Seal(b, r.number(ssrc, p.roc, binary.BigEndian.Uint16(p.header[2:])), p.payload, b[at:])
	f.Forwarded++
	if join {
		f.count++
		f.outVectors[f.waiting-1].SetLen(int(f.outVectors[f.waiting-1].Len) + n)
		m := &f.out[f.waiting-1]
		c := &f.controls[f.waiting-1]
		binary.NativeEndian.PutUint16(c[unix.CmsgLen(0):], uint16(f.size))
		m.Control = &c[0]
		m.SetControllen(unix.CmsgSpace(2))
		f.open = n == f.size
		return
	}
	m := &f.out[f.waiting]
	m.Name = (*byte)(unsafe.Pointer(&r.name))
	m.Control = nil
	m.SetControllen(0)
	f.outVectors[f.waiting].Base = &f.arena[at]
	f.outVectors[f.waiting].SetLen(n)
	f.waiting++
	f.size, f.count, f.open = n, 1, true
}

// flush sends what waits.
func (f *forwarder) flush() {
	start := time.Now()
	for i := 0; i < f.waiting; {
		var n uintptr
		var errno unix.Errno
		if f.plain {
			m := &f.out[i]
			_, _, errno = unix.RawSyscall6(unix.SYS_SENDTO, uintptr(f.fd), uintptr(unsafe.Pointer(m.Iov.Base)), uintptr(m.Iov.Len),
				unix.MSG_NOSIGNAL, uintptr(unsafe.Pointer(m.Name)), unix.SizeofSockaddrInet4)
			n = 1
		} else {
			n, _, errno = unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(f.fd), uintptr(unsafe.Pointer(&f.out[i])), uintptr(f.waiting-i), unix.MSG_NOSIGNAL, 0, 0)
		}
		f.Sends++
		switch errno {
		case 0:
			i += int(n)
		case unix.EINTR:
		default:
			f.Failed++
			i++
		}
	}
	f.waiting, f.open = 0, false
	f.arena = f.arena[:0]
	took := uint64(time.Since(start))
	f.Send += took
	f.Seal -= took
}
