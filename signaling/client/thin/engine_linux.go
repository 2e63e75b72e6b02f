package thin

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/gorilla/websocket"
	"github.com/pion/dtls/v3"
	"github.com/pion/stun/v3"
	"golang.org/x/sys/unix"
)

// Config of an Engine. The zero value works.
type Config struct {
	// From is the address of the participants' sockets; the default is 127.0.0.1.
	From netip.Addr
	// CPU is the processor that both threads keep to; negative is any.
	CPU int
	// Nice is the priority of both threads; 0 leaves it.
	Nice int
	// Drain is how often sockets are looked at: 5 ms.
	Drain time.Duration
	// Feedback is how often a receiver sends transport-wide feedback: 100 ms.
	Feedback time.Duration
	// GRO takes runs of segments whole, so that nobody cuts them up: as if the card of the sender did.
	GRO bool
}

// An Engine drives participants. Its methods may be called from any goroutine.
type Engine struct {
	cfg Config
	id  *identity

	publishing sync.Mutex // held by the publishing thread while it works
	tracks     []*track
	late       time.Duration // by how much a frame was late at most

	receiving sync.Mutex // held by the receiving thread while it works
	all       []*Participant
	audio     *hdrhistogram.Histogram // µs
	video     *hdrhistogram.Histogram
	reader    *reader
	drainAt   time.Time
	scratch   []byte
	sealed    []byte
}

const (
	reportEvery = time.Second
	// behind is how far a track may be behind before it skips frames.
	behind = time.Second
)

// New returns an engine; Run makes it move.
func New(cfg Config) (*Engine, error) {
	if !cfg.From.IsValid() {
		cfg.From = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if cfg.Drain <= 0 {
		cfg.Drain = 5 * time.Millisecond
	}
	if cfg.Feedback <= 0 {
		cfg.Feedback = 100 * time.Millisecond
	}
	id, err := newIdentity(time.Now())
	if err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, id: id, reader: newReader(cfg.GRO), scratch: make([]byte, 0, 8192), sealed: make([]byte, 0, 8192)}
	e.audio, e.video = histogram(), histogram()
	return e, nil
}

func histogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, 60_000_000, 2) }

// Run publishes and receives until ctx ends, and then closes all participants.
func (e *Engine) Run(ctx context.Context) {
	var both sync.WaitGroup
	both.Go(func() { e.thread(ctx, e.publish) })
	both.Go(func() { e.thread(ctx, e.receive) })
	both.Wait()
	e.receiving.Lock()
	all := e.all
	e.receiving.Unlock()
	for _, p := range all {
		p.Close()
	}
}

// thread runs step on a thread of its own, whenever it wants to.
func (e *Engine) thread(ctx context.Context, step func(now time.Time) (next time.Time)) {
	runtime.LockOSThread() // and never unlocked: the thread, with its priority, ends with the goroutine
	if e.cfg.CPU >= 0 {
		var set unix.CPUSet
		set.Set(e.cfg.CPU)
		_ = unix.SchedSetaffinity(0, &set)
	}
	if e.cfg.Nice != 0 {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, e.cfg.Nice)
	}
	for ctx.Err() == nil {
		next := step(time.Now())
		if d := time.Until(next); d > 0 {
			t := unix.NsecToTimespec(int64(d))
			_ = unix.Nanosleep(&t, nil)
		}
	}
}

// publish sends what is due.
func (e *Engine) publish(now time.Time) (next time.Time) {
	e.publishing.Lock()
	defer e.publishing.Unlock()
	next = now.Add(10 * time.Millisecond)
	var scratch [2048]byte
	for _, t := range e.tracks {
		if !now.Before(t.due) {
			late := now.Sub(t.due)
			e.late = max(e.late, late)
			if late > behind {
				t.due = now
			}
			t.produce(now, scratch[:])
			t.due = t.due.Add(t.every)
		}
		if t.due.Before(next) {
			next = t.due
		}
	}
	return next
}

// receive looks at all sockets from time to time, and at those whose owner has something to say each millisecond:
// receivers report when they like, which is a large part of the wake-ups of a bridge.
func (e *Engine) receive(now time.Time) (next time.Time) {
	e.receiving.Lock()
	defer e.receiving.Unlock()
	all := !now.Before(e.drainAt)
	if all {
		e.drainAt = now.Add(e.cfg.Drain)
	}
	for _, p := range e.all {
		if due := p.due(now); all || due {
			e.reader.read(p.socket, p.taker)
			if due {
				p.tick(now)
			}
		}
	}
	return now.Add(time.Millisecond)
}

// A Participant is one socket with what it sends and gets.
type Participant struct {
	e      *Engine
	socket socket
	out    *crypt // SRTP; the publishing thread's from the first track on
	pipe   *pipe
	taker  func([]byte, int64) // take, as a value that is made once
	ready  chan struct{}       // closed when ICE has a pair

	// What the goroutine that joins sets.
	dtls    *dtls.Conn
	channel *websocket.Conn
	reads   sync.WaitGroup

	// The receiving thread owns what follows, under Engine.receiving.
	agent     agent
	tracks    []*track
	in        *crypt
	rtcpOut   *crypt
	rtcpIn    *crypt
	remote    netip.AddrPort
	streams   map[uint32]*stream
	ignore    map[uint32]bool // SSRCs of the bridge's own
	arrivals  arrivals
	fedAt     time.Time
	reportAt  time.Time
	feedback  bool
	closed    bool
	ssrc      uint32 // of reports
	vp8       byte   // payload type
	transport uint16
	dropped   uint64 // at the socket before the last Reset
}

// NewParticipant opens a socket. Nothing is sent until a bridge or Keys says where to.
func (e *Engine) NewParticipant() (*Participant, error) {
	s, err := open(e.cfg.From, e.cfg.GRO)
	if err != nil {
		return nil, err
	}
	var b [4]byte
	_, _ = rand.Read(b[:])
	now := time.Now()
	p := &Participant{
		e: e, socket: s, agent: newAgent(), ready: make(chan struct{}), streams: map[uint32]*stream{}, ignore: map[uint32]bool{},
		ssrc: binary.BigEndian.Uint32(b[:]) | 1, vp8: vp8PT,
	}
	// Receivers report at their own times.
	p.fedAt = now.Add(mathrand.N(e.cfg.Feedback))
	p.reportAt = now.Add(mathrand.N(reportEvery))
	p.taker = p.take
	p.pipe = newPipe(net.UDPAddrFromAddrPort(s.local), s.send)
	e.receiving.Lock()
	e.all = append(e.all, p)
	e.receiving.Unlock()
	return p, nil
}

// Local is the address of the participant's socket.
func (p *Participant) Local() netip.AddrPort { return p.socket.local }

// Keys makes a participant of a program without signaling: it sends to remote at once, gets no feedback and gives
// none.
func (p *Participant) Keys(remote netip.AddrPort, out, in Key) error {
	o, err := newCrypt(out)
	if err != nil {
		return err
	}
	i, err := newCrypt(in)
	if err != nil {
		return err
	}
	p.e.receiving.Lock()
	defer p.e.receiving.Unlock()
	p.out, p.in, p.remote = o, i, remote
	return p.socket.connect(remote)
}

// A Remote is whom a participant connects to by ICE and DTLS.
type Remote struct {
	Addr        netip.AddrPort
	Ufrag, Pwd  string
	Fingerprint string // of SHA-256
	Controlling bool   // we lead, as who offers does
	VP8         uint8  // payload type in both directions; 0 is what a bridge of ours negotiates
}

// Credentials are what the other side must be told of us: ICE's, and the fingerprint of the certificate (SHA-256) with
// which we are the DTLS client.
func (p *Participant) Credentials() (ufrag, pwd, fingerprint string) {
	return p.agent.ufrag, p.agent.pwd, p.e.id.fingerprint
}

// Connect runs ICE and DTLS towards r. Publish may follow.
func (p *Participant) Connect(ctx context.Context, r Remote) error {
	p.e.receiving.Lock()
	err := p.socket.connect(r.Addr)
	p.remote, p.agent.remoteUfrag, p.agent.remotePwd, p.agent.controlling = r.Addr, r.Ufrag, r.Pwd, r.Controlling
	if r.VP8 != 0 {
		p.vp8 = r.VP8
	}
	p.e.receiving.Unlock()
	if err != nil {
		return err
	}
	select {
	case <-p.ready:
	case <-ctx.Done():
		return fmt.Errorf("ice: %w", ctx.Err())
	}
	conn, out, in, err := handshake(ctx, p.pipe, p.e.id, r.Fingerprint)
	if err != nil {
		return err
	}
	p.dtls = conn // media goes beside it
	var c [4]*crypt
	for i, k := range [4]Key{out[0], in[0], out[1], in[1]} {
		if c[i], err = newCrypt(k); err != nil {
			return err
		}
	}
	p.e.receiving.Lock()
	defer p.e.receiving.Unlock()
	p.out, p.in, p.rtcpOut, p.rtcpIn, p.feedback = c[0], c[1], c[2], c[3], true
	return nil
}

// Close ends the participant.
func (p *Participant) Close() {
	if p.channel != nil {
		p.channel.Close()
	}
	p.reads.Wait()
	if p.dtls != nil {
		p.dtls.Close()
	}
	p.e.publishing.Lock()
	var rest []*track
	for _, t := range p.e.tracks {
		if t.p != p {
			rest = append(rest, t)
		}
	}
	p.e.tracks = rest
	p.e.publishing.Unlock()
	p.e.receiving.Lock()
	defer p.e.receiving.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	p.pipe.Close()
	p.socket.close()
	var others []*Participant
	for _, q := range p.e.all {
		if q != p {
			others = append(others, q)
		}
	}
	p.e.all = others
}

// ErrNotConnected is returned by Publish before there are keys.
var ErrNotConnected = errors.New("participant is not connected")

// Publish begins to send, at a moment that the seed chooses.
func (p *Participant) Publish(what Publish) error {
	p.e.receiving.Lock()
	defer p.e.receiving.Unlock()
	if p.out == nil {
		return ErrNotConnected
	}
	r := mathrand.New(mathrand.NewPCG(what.Seed, 0x7468696e))
	now := time.Now()
	var tracks []*track
	add := func(t *track) {
		t.p, t.bare, t.rand, t.tcc = p, what.Bare, r, &p.transport
		t.seq, t.timestampStart = uint64(r.Uint32()&0x3fff), r.Uint32()
		t.begin = now
		t.due = now.Add(time.Duration(r.Int64N(int64(t.every))))
		tracks = append(tracks, t)
	}
	if what.Audio {
		add(&track{ssrc: p.AudioSSRC(), pt: opusPT, clock: 48000, bytes: 120, fixed: what.AudioBytes, every: 20 * time.Millisecond})
	}
	if what.Video > 0 {
		if what.Width == 0 {
			what.Width, what.Height = 1280, 720
		}
		if what.FPS == 0 {
			what.FPS = 30
		}
		t := &track{
			video: true, ssrc: p.VideoSSRC(), pt: p.vp8, clock: 90000, bytes: what.Video / 8 / what.FPS,
			every: time.Second / time.Duration(what.FPS), width: what.Width, height: what.Height,
		}
		t.key.Store(true)
		add(t)
	}
	p.tracks = append(p.tracks, tracks...)
	p.e.publishing.Lock()
	defer p.e.publishing.Unlock()
	p.e.tracks = append(p.e.tracks, tracks...)
	return nil
}

// AudioSSRC, VideoSSRC and RetransmitSSRC are what the participant sends with.
func (p *Participant) AudioSSRC() uint32      { return p.ssrc&^3 | 1 }
func (p *Participant) VideoSSRC() uint32      { return p.ssrc&^3 | 2 }
func (p *Participant) RetransmitSSRC() uint32 { return p.ssrc&^3 | 3 }

// take handles one datagram.
func (p *Participant) take(b []byte, arrival int64) {
	if len(b) < 4 {
		return
	}
	switch first := b[0]; {
	case first < 4:
		from := &stun.XORMappedAddress{IP: p.remote.Addr().AsSlice(), Port: int(p.remote.Port())}
		nominated := p.agent.nominated
		if answer := p.agent.handle(b, from); answer != nil {
			p.socket.send(answer)
		}
		if !nominated && p.agent.nominated {
			close(p.ready)
		}
	case first >= 20 && first < 64:
		p.pipe.put(b)
	case first>>6 != 2:
	case b[1]&0x7f >= 64 && b[1]&0x7f < 96:
		if p.rtcpIn != nil {
			p.control(p.rtcpIn.openRTCP(b))
		}
	default:
		p.media(b, arrival)
	}
}

func (p *Participant) media(b []byte, arrival int64) {
	h := headerBytes(b)
	if h == 0 || len(b) < h+tagBytes {
		return
	}
	if seq, ok := transportSeq(b, h); ok && p.feedback {
		p.arrivals.add(seq, arrival/1000)
	}
	pt := b[1] & 0x7f
	ssrc := binary.BigEndian.Uint32(b[8:])
	if pt != opusPT && pt != p.vp8 || p.ignore[ssrc] {
		return
	}
	s := p.streams[ssrc]
	if s == nil {
		s = &stream{skip: mathrand.IntN(openEvery)}
		p.streams[ssrc] = s
	}
	index := s.arrive(binary.BigEndian.Uint16(b[2:]), len(b))
	if s.skip--; s.skip >= 0 || p.in == nil {
		return
	}
	s.skip = openEvery - 1
	s.opened++
	padded := b[0]&0x20 != 0
	clear, err := p.in.openRTP(b, h, index)
	if err != nil {
		s.bad++
		return
	}
	if padded && len(clear) > 0 {
		clear = clear[:max(0, len(clear)-int(clear[len(clear)-1]))]
	}
	if len(clear) < stampBytes {
		return
	}
	stamp := int64(binary.BigEndian.Uint64(clear[len(clear)-stampBytes:]))
	micros := max(0, (arrival-stamp)/1000)
	if pt == opusPT {
		_ = p.e.audio.RecordValue(micros)
	} else {
		_ = p.e.video.RecordValue(micros)
	}
}

// control reads what the bridge asks for: key frames.
func (p *Participant) control(b []byte) {
	for len(b) >= 4 {
		n := 4 * (int(binary.BigEndian.Uint16(b[2:])) + 1)
		if n > len(b) {
			return
		}
		if b[1] == 206 && (b[0]&31 == 1 || b[0]&31 == 4) {
			for _, t := range p.tracks {
				t.key.Store(true)
			}
		}
		b = b[n:]
	}
}

// due reports whether tick has something to do.
func (p *Participant) due(now time.Time) bool {
	return p.agent.due(now) || p.feedback && (!now.Before(p.fedAt) || !now.Before(p.reportAt))
}

// tick sends what is due by time.
func (p *Participant) tick(now time.Time) {
	if check := p.agent.check(now); check != nil {
		p.socket.send(check)
	}
	if !p.feedback {
		return
	}
	if !now.Before(p.fedAt) {
		p.fedAt = p.fedAt.Add(p.e.cfg.Feedback)
		if b := p.arrivals.feedback(p.e.scratch[:0], p.ssrc, p.anyStream()); len(b) > 0 {
			p.socket.send(p.rtcpOut.sealRTCP(p.e.sealed[:0], b))
		}
	}
	if !now.Before(p.reportAt) {
		p.reportAt = p.reportAt.Add(reportEvery)
		b := append(p.e.scratch[:0], 0x80, 201, 0, 0)
		b = binary.BigEndian.AppendUint32(b, p.ssrc)
		for ssrc, s := range p.streams {
			if s.fresh && b[0]&31 < 31 {
				b = s.report(b, ssrc)
				b[0]++
			}
		}
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)/4-1))
		p.socket.send(p.rtcpOut.sealRTCP(p.e.sealed[:0], b))
		for _, t := range p.tracks {
			p.socket.send(p.rtcpOut.sealRTCP(p.e.sealed[:0], t.report(p.e.scratch[:0], now)))
		}
	}
}

func (p *Participant) anyStream() uint32 {
	for ssrc := range p.streams {
		return ssrc
	}
	return 0
}

// Reset begins to count anew.
func (e *Engine) Reset() {
	e.publishing.Lock()
	e.late = 0
	for _, t := range e.tracks {
		t.counted = t.packets.Load()
	}
	e.publishing.Unlock()
	e.receiving.Lock()
	defer e.receiving.Unlock()
	e.audio.Reset()
	e.video.Reset()
	for _, p := range e.all {
		p.dropped = p.socket.drops()
		for _, s := range p.streams {
			s.reset()
		}
	}
}

// Count says what came since the last Reset.
func (e *Engine) Count() Count {
	var c Count
	e.publishing.Lock()
	c.Late = e.late
	for _, t := range e.tracks {
		c.Sent += t.packets.Load() - t.counted
	}
	e.publishing.Unlock()
	e.receiving.Lock()
	defer e.receiving.Unlock()
	for _, p := range e.all {
		if len(p.tracks) > 0 {
			c.Senders++
		}
		c.Dropped += p.socket.drops() - p.dropped
		for _, s := range p.streams {
			c.Packets += s.packets
			c.Bytes += s.bytes
			c.Lost += s.lost()
			c.Opened += s.opened
			c.Bad += s.bad
			if s.packets > 0 {
				c.Streams++
			}
		}
	}
	c.Audio, c.Video = delay(e.audio), delay(e.video)
	return c
}
