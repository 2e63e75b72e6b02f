package bridge

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/webrtc/v3"
	"go.uber.org/goleak"

	"plenum/bridge/packet"
	"plenum/bridge/transport"
)

// startMedia runs a media on loopback until the test ends, and checks that nothing is left of it.
func startMedia(t *testing.T, cores int, cfg mediaConfig) *media {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	cfg.Addresses = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	cfg.Cores = cores
	m, err := newMedia(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("media:", err)
		}
		goleak.VerifyNone(t, ignore)
	})
	return m
}

// An echo is a conference that sends each RTP packet back to its sender under another SSRC.
type echo struct {
	mu      sync.Mutex
	panicOn byte // first payload byte
	flushes int
	ticks   int
}

func (e *echo) Flush(time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.flushes++
}

func (e *echo) Tick(now time.Time) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ticks++
	return now.Add(50 * time.Millisecond)
}

// A tap is an endpoint that tells of what comes, and echoes RTP.
type tap struct {
	room      *echo
	leg       *peer
	rtp       chan []byte
	rtcp      chan []byte
	connected chan struct{}
	heard     chan struct{}
}

func newTap(room *echo, leg *peer) *tap {
	return &tap{room, leg, make(chan []byte, 1024), make(chan []byte, 1024), make(chan struct{}, 1), make(chan struct{}, 1)}
}

const echoSSRC = 0x0ec40000

func (x *tap) ReceiveRTP(b *packet.Buf, _ time.Time) {
	if x.room.panicOn != 0 && len(b.Data) > 12 && b.Data[12] == x.room.panicOn {
		panic("as asked")
	}
	select {
	case x.rtp <- append([]byte(nil), b.Data...):
	default:
	}
	h := append([]byte(nil), b.Data[:12]...)
	binary.BigEndian.PutUint32(h[8:], echoSSRC)
	h[0] &= 0xc0
	x.leg.SendRTP(h, b.Data[12:])
}

func (x *tap) ReceiveRTCP(b []byte, _ time.Time) {
	select {
	case x.rtcp <- append([]byte(nil), b...):
	default:
	}
}

func (x *tap) Heard(time.Time) {
	select {
	case x.heard <- struct{}{}:
	default:
	}
}

func (x *tap) Connected(time.Time) { x.connected <- struct{}{} }

func (x *tap) Moved(time.Time) {}

// A client is a browser stand-in: an independent WebRTC stack that answers the bridge's offer.
type client struct {
	*webrtc.PeerConnection
	track   *webrtc.TrackLocalStaticRTP
	remote  chan *webrtc.TrackRemote
	channel *webrtc.DataChannel
	opened  chan struct{}
	message chan string
}

func newClient(t *testing.T) *client { return newClientAs(t, webrtc.DTLSRoleClient) }

func newClientAs(t *testing.T, role webrtc.DTLSRole) *client {
	t.Helper()
	var engine webrtc.SettingEngine
	if err := engine.SetAnsweringDTLSRole(role); err != nil {
		t.Fatal(err)
	}
	engine.SetIncludeLoopbackCandidate(true)
	engine.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4})
	engine.SetInterfaceFilter(func(name string) bool { return name == "lo" })
	media := new(webrtc.MediaEngine)
	if err := media.RegisterDefaultCodecs(); err != nil {
		t.Fatal(err)
	}
	api := webrtc.NewAPI(webrtc.WithSettingEngine(engine), webrtc.WithMediaEngine(media))
	pc, err := api.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	c := &client{PeerConnection: pc, remote: make(chan *webrtc.TrackRemote, 8), opened: make(chan struct{}), message: make(chan string, 64)}
	t.Cleanup(func() { pc.Close() })
	c.track, err = webrtc.NewTrackLocalStaticRTP(webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus}, "a", "a")
	if err != nil {
		t.Fatal(err)
	}
	pc.OnTrack(func(tr *webrtc.TrackRemote, _ *webrtc.RTPReceiver) { c.remote <- tr })
	return c
}

// join answers the bridge's description and returns what the bridge is to be told.
func (c *client) join(t *testing.T, d description, controlling bool) remote {
	t.Helper()
	if _, err := c.AddTrack(c.track); err != nil {
		t.Fatal(err)
	}
	var err error
	c.channel, err = c.CreateDataChannel("JVB data channel", nil)
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	c.channel.OnOpen(func() { once.Do(func() { close(c.opened) }) })
	c.channel.OnMessage(func(m webrtc.DataChannelMessage) { c.message <- string(m.Data) })
	return c.answer(t, d, controlling)
}

// answer answers a description of the bridge, the first or that of a restart.
func (c *client) answer(t *testing.T, d description, controlling bool) remote {
	t.Helper()
	var sdp strings.Builder
	fmt.Fprintf(&sdp, "v=0\r\no=- 1 2 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\n")
	if controlling {
		fmt.Fprintf(&sdp, "a=ice-lite\r\n") // the way to have this client control
	}
	for i, m := range []string{"audio 9 UDP/TLS/RTP/SAVPF 111", "application 9 UDP/DTLS/SCTP webrtc-datachannel"} {
		fmt.Fprintf(&sdp, "m=%s\r\nc=IN IP4 0.0.0.0\r\na=mid:%d\r\na=ice-ufrag:%s\r\na=ice-pwd:%s\r\na=fingerprint:%s %s\r\na=setup:%s\r\n",
			m, i, d.Ufrag, d.Pwd, d.Fingerprint.Hash, d.Fingerprint.Value, d.Setup)
		if i == 0 {
			fmt.Fprintf(&sdp, "a=rtcp-mux\r\na=sendrecv\r\na=rtpmap:111 opus/48000/2\r\na=ssrc:%d cname:x\r\na=ssrc:%d msid:e e\r\n", echoSSRC, echoSSRC)
			for _, k := range d.Candidates {
				fmt.Fprintf(&sdp, "a=candidate:%s 1 udp %d %s %d typ host\r\n", k.Foundation, k.Priority, k.Addr.Addr(), k.Addr.Port())
			}
		} else {
			fmt.Fprintf(&sdp, "a=sctp-port:5000\r\na=max-message-size:262144\r\n")
		}
	}
	if err := c.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: sdp.String()}); err != nil {
		t.Fatal(err)
	}
	answer, err := c.CreateAnswer(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetLocalDescription(answer); err != nil {
		t.Fatal(err)
	}
	r := remote{Generation: d.Generation}
	for line := range strings.Lines(answer.SDP) {
		line = strings.TrimSpace(line)
		if v, ok := strings.CutPrefix(line, "a=ice-ufrag:"); ok {
			r.Ufrag = v
		} else if v, ok := strings.CutPrefix(line, "a=ice-pwd:"); ok {
			r.Pwd = v
		} else if v, ok := strings.CutPrefix(line, "a=setup:"); ok {
			r.Setup = v
		} else if v, ok := strings.CutPrefix(line, "a=fingerprint:"); ok {
			hash, value, _ := strings.Cut(v, " ")
			r.Fingerprints = []transport.Fingerprint{{Hash: hash, Value: value}}
		}
	}
	return r
}

func wait[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("no " + what)
		panic("unreachable")
	}
}

func (c *client) send(t *testing.T, seq uint16, payload []byte) {
	t.Helper()
	b := []byte{0x80, 111, byte(seq >> 8), byte(seq), 0, 0, 0, byte(seq), 0, 0, 0, 0}
	if _, err := c.track.Write(append(b, payload...)); err != nil {
		t.Error(err)
	}
}

func TestCall(t *testing.T) {
	for _, role := range []webrtc.DTLSRole{webrtc.DTLSRoleClient, webrtc.DTLSRoleServer} { // of the client
		for _, controlling := range []bool{true, false} {
			t.Run(fmt.Sprintf("dtls %v, controlling %v", role, controlling), func(t *testing.T) {
				m := startMedia(t, 2, mediaConfig{})
				core := m.leastLoaded()
				room := new(echo)
				core.attach(room)
				states := make(chan transport.State, 16)
				messages := make(chan string, 16)
				channel := make(chan bool, 4)
				p, err := m.newPeer(core, peerConfig{
					Controlling: controlling, SCTP: true, Conference: room,
					OnState:   func(s transport.State, err error) { states <- s },
					OnMessage: func(b []byte) { messages <- string(b) },
					OnChannel: func(open bool) { channel <- open },
				})
				if err != nil {
					t.Fatal(err)
				}
				x := newTap(room, p)
				p.attach(x)
				c := newClientAs(t, role)
				began := time.Now()
				r := c.join(t, p.describe(), !controlling)
				if err := p.setRemote(r); err != nil {
					t.Fatal(err)
				}
				wait(t, "keys", x.connected)
				t.Log("connected after", time.Since(began))
				for s := range states {
					if s == transport.Connected {
						break
					}
				}
				stop := make(chan struct{})
				var sender sync.WaitGroup
				sender.Go(func() {
					for seq := uint16(1); ; seq++ {
						select {
						case <-stop:
							return
						case <-time.After(5 * time.Millisecond):
							c.send(t, seq, []byte("hello"))
						}
					}
				})
				defer sender.Wait()
				defer close(stop)
				got := wait(t, "RTP at the bridge", x.rtp)
				if string(got[len(got)-5:]) != "hello" {
					t.Errorf("payload %q", got)
				}
				wait(t, "liveness", x.heard)
				track := wait(t, "track at the client", c.remote)
				pkt, _, err := track.ReadRTP()
				if err != nil || string(pkt.Payload) != "hello" || pkt.SSRC != echoSSRC {
					t.Errorf("echo %v, %v", pkt, err)
				}
				wait(t, "open channel at the client", c.opened)
				if !wait(t, "open channel at the bridge", channel) {
					t.Error("channel closed")
				}
				if err := c.channel.SendText("up"); err != nil {
					t.Error(err)
				}
				if s := wait(t, "message", messages); s != "up" {
					t.Errorf("message %q", s)
				}
				if err := p.sendMessage([]byte("down")); err != nil {
					t.Error(err)
				}
				if s := wait(t, "answer", c.message); s != "down" {
					t.Errorf("answer %q", s)
				}
				long := strings.Repeat("x", 65_000) // more than one read; the client sends no longer ones
				if err := c.channel.SendText(long); err != nil {
					t.Error(err)
				}
				if s := wait(t, "long message", messages); s != long {
					t.Errorf("long message of %d bytes", len(s))
				}
				room.mu.Lock()
				if room.flushes == 0 || room.ticks == 0 {
					t.Errorf("%d flushes, %d ticks", room.flushes, room.ticks)
				}
				room.mu.Unlock()
			})
		}
	}
}

// inCore runs f on the core and waits for it.
func inCore(t *testing.T, c *core, f func()) {
	t.Helper()
	done := make(chan struct{})
	if !c.do(func(time.Time) { f(); close(done) }) {
		t.Fatal("core has stopped")
	}
	wait(t, "turn on the core", done)
}

func TestWrongPasswordAndFingerprint(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(*remote)
		ok    func(transport.State, error) bool
	}{
		{"fingerprint", func(r *remote) {
			v := []byte(r.Fingerprints[0].Value)
			v[0] ^= 1
			r.Fingerprints[0].Value = string(v)
		}, func(s transport.State, err error) bool { return s == transport.Failed && err != nil }},
		{"none", func(*remote) {}, func(s transport.State, _ error) bool { return s == transport.Connected }},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := startMedia(t, 1, mediaConfig{})
			room := new(echo)
			m.cores[0].attach(room)
			type report struct {
				s   transport.State
				err error
			}
			reports := make(chan report, 16)
			p, err := m.newPeer(m.cores[0], peerConfig{
				Controlling: true, SCTP: true, Conference: room,
				OnState: func(s transport.State, err error) { reports <- report{s, err} },
			})
			if err != nil {
				t.Fatal(err)
			}
			x := newTap(room, p)
			p.attach(x)
			c := newClient(t)
			r := c.join(t, p.describe(), false)
			test.spoil(&r)
			if err := p.setRemote(r); err != nil {
				t.Fatal(err)
			}
			for {
				v := wait(t, "final state", reports)
				if v.s == transport.Connected || v.s == transport.Failed {
					if !test.ok(v.s, v.err) {
						t.Errorf("%v, %v", v.s, v.err)
					}
					if v.s == transport.Failed {
						t.Log(v.err)
					}
					break
				}
			}
		})
	}
}

// A conference that panics is dropped and reported, and its neighbour goes on.
func TestPanic(t *testing.T) {
	dropped := make(chan room, 1)
	m := startMedia(t, 1, mediaConfig{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), OnPanic: func(cf room, _ any) { dropped <- cf }})
	bad, good := &echo{panicOn: '!'}, new(echo)
	var taps []*tap
	var clients []*client
	for _, room := range []*echo{bad, good} {
		m.cores[0].attach(room)
		p, err := m.newPeer(m.cores[0], peerConfig{Controlling: true, Conference: room})
		if err != nil {
			t.Fatal(err)
		}
		x := newTap(room, p)
		p.attach(x)
		c := newClient(t)
		if err := p.setRemote(c.join(t, p.describe(), false)); err != nil {
			t.Fatal(err)
		}
		wait(t, "keys", x.connected)
		taps, clients = append(taps, x), append(clients, c)
	}
	for seq := uint16(0); ; seq++ {
		clients[0].send(t, seq, []byte("!"))
		select {
		case cf := <-dropped:
			if cf != room(bad) {
				t.Error("the wrong conference was dropped")
			}
		case <-time.After(10 * time.Millisecond):
			if seq > 500 {
				t.Fatal("no panic reported")
			}
			continue
		}
		break
	}
	if _, peers := m.routes.size(); peers != 1 {
		t.Errorf("%d peers are left", peers)
	}
	for seq := uint16(0); len(taps[1].rtp) == 0; seq++ {
		clients[1].send(t, seq, []byte("fine"))
		time.Sleep(5 * time.Millisecond)
		if seq > 500 {
			t.Fatal("the other conference is dead")
		}
	}
	m.cores[0].do(func(time.Time) { panic("in a letter") })
	if cf := wait(t, "report", dropped); cf != nil {
		t.Error("a letter of nobody dropped a conference")
	}
	inCore(t, m.cores[0], func() {})
}

// Garbage reaches nobody, costs no memory and hurts no call.
func TestGarbage(t *testing.T) {
	m := startMedia(t, 2, mediaConfig{})
	room := new(echo)
	c := m.leastLoaded()
	c.attach(room)
	p, err := m.newPeer(c, peerConfig{Controlling: true, SCTP: true, Conference: room})
	if err != nil {
		t.Fatal(err)
	}
	x := newTap(room, p)
	p.attach(x)
	cl := newClient(t)
	if err := p.setRemote(cl.join(t, p.describe(), false)); err != nil {
		t.Fatal(err)
	}
	wait(t, "keys", x.connected)
	paths, peers := m.routes.size()

	conn, err := net.Dial("udp", m.local[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := 0
	for i := range 20_000 {
		b := make([]byte, 1+i%1400)
		for j := range b {
			b[j] = byte(i * (j + 7) >> 3)
		}
		b[0] = []byte{0, 1, 20, 22, 63, 128, 144, 191, 200, 255}[i%10]
		if i%10 == 0 && len(b) > 60 { // a binding request for the peer, with a wrong password
			copy(b, []byte{0, 1, byte((len(b) - 20) >> 8), byte(len(b) - 20), 0x21, 0x12, 0xa4, 0x42})
			name := p.name + ":x"
			copy(b[20:], []byte{0, 6, 0, byte(len(name))})
			copy(b[24:], name)
		}
		if n, err := conn.Write(b); err == nil && n > 0 {
			sent++
		}
	}
	seen := func() (n uint64) {
		for _, c := range m.cores {
			inCore(t, c, func() { n += c.Received })
		}
		return n
	}
	for end := time.Now().Add(10 * time.Second); seen()+m.stats().SocketDrops < uint64(sent); {
		if time.Now().After(end) {
			t.Fatalf("%d of %d seen", seen(), sent)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if a, b := m.routes.size(); a != paths || b != peers {
		t.Errorf("routes grew from %d, %d to %d, %d", paths, peers, a, b)
	}
	for len(x.rtp) > 0 {
		<-x.rtp
	}
	for seq := uint16(1); len(x.rtp) == 0; seq++ {
		cl.send(t, seq, []byte("still here"))
		time.Sleep(5 * time.Millisecond)
		if seq > 1000 {
			t.Fatal("the call is dead")
		}
	}
}

// The client starts DTLS before the bridge has been told anything about it; that is kept and answered.
func TestEarlyDTLS(t *testing.T) {
	m := startMedia(t, 1, mediaConfig{})
	room := new(echo)
	p, err := m.newPeer(m.cores[0], peerConfig{SCTP: true, Conference: room})
	if err != nil {
		t.Fatal(err)
	}
	x := newTap(room, p)
	p.attach(x)
	r := newClient(t).join(t, p.describe(), true) // it controls, so that it goes ahead by itself
	for end, started := time.Now().Add(10*time.Second), false; !started; {
		inCore(t, m.cores[0], func() { started = p.t.Counters.DTLS > 0 })
		if time.Now().After(end) {
			t.Fatal("the client does not begin")
		}
	}
	began := time.Now()
	if err := p.setRemote(r); err != nil {
		t.Fatal(err)
	}
	wait(t, "keys", x.connected)
	if d := time.Since(began); d > 250*time.Millisecond {
		t.Errorf("connected %v after the description: the early hello was lost", d)
	}
}

// Many join at once, on one port, over two cores.
func TestManyJoin(t *testing.T) {
	m := startMedia(t, 2, mediaConfig{})
	room := new(echo)
	core := m.leastLoaded()
	core.attach(room)
	var joins sync.WaitGroup
	for range 30 {
		p, err := m.newPeer(core, peerConfig{Controlling: true, SCTP: true, Conference: room})
		if err != nil {
			t.Fatal(err)
		}
		x := newTap(room, p)
		p.attach(x)
		c := newClient(t)
		r := c.join(t, p.describe(), false)
		joins.Go(func() {
			if err := p.setRemote(r); err != nil {
				t.Error(err)
			}
			select {
			case <-x.connected:
			case <-time.After(20 * time.Second):
				t.Error("one was left behind")
			}
		})
	}
	joins.Wait()
	var handed uint64
	for _, c := range m.cores {
		inCore(t, c, func() { handed += c.HandedOver })
	}
	if handed == 0 {
		t.Error("no packet changed cores, so that was not tested")
	}
	if _, peers := m.routes.size(); peers != 30 {
		t.Errorf("%d peers", peers)
	}
	inCore(t, core, func() {
		for p := range core.peers {
			p.close()
		}
	})
	inCore(t, core, func() {})
	if paths, peers := m.routes.size(); peers != 0 || paths != 0 {
		t.Errorf("%d paths and %d peers are left", paths, peers)
	}
}

// Finding a packet's peer and taking it to another core costs no allocation.
func TestCoreAllocations(t *testing.T) {
	m, err := newMedia(mediaConfig{Addresses: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, Cores: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	c := m.cores[0]
	p := &peer{m: m, core: m.cores[1]}
	m.routes.claim(pathAt(1), p, true)
	b := &c.batch.Bufs[0]
	b.Path = pathAt(1)
	b.Data = b.Space()[:1200]
	b.Data[0] = 0x80
	if runtime.GOOS != "linux" {
		t.Skip("one core only")
	}
	c.handOver(p.core, p, b)
	n := testing.AllocsPerRun(1000, func() {
		c.lastPeer = nil
		q := c.route(b)
		if q != p {
			t.Fatal("no route")
		}
		c.handOver(q.core, q, b)
		m.cores[1].rings[0].Load().advance(1)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestMailbox(t *testing.T) {
	var b mailbox
	woken := 0
	b.wake = func() { woken++ }
	var got []int
	for i := range 5 {
		if !b.post(letter{f: func(time.Time) { got = append(got, i) }}) {
			t.Fatal("refused")
		}
		if i == 2 {
			l, _ := b.take()
			l.f(time.Time{})
		}
	}
	for l, ok := b.take(); ok; l, ok = b.take() {
		l.f(time.Time{})
	}
	if fmt.Sprint(got) != "[0 1 2 3 4]" || woken != 5 || !b.empty() {
		t.Errorf("order %v, %d wake-ups, empty %v", got, woken, b.empty())
	}
	b.close()
	if b.post(letter{}) {
		t.Error("closed mailbox took a letter")
	}
}

func TestRing(t *testing.T) {
	r := new(ring)
	p := new(peer)
	var b packet.Buf
	for i := range ringSlots + 3 {
		b.Data = b.Space()[:2]
		b.Data[0], b.Data[1] = byte(i>>8), byte(i)
		if ok := r.push(p, &b); ok != (i < ringSlots) {
			t.Fatalf("push %d: %v", i, ok)
		}
	}
	if n := r.waiting(); n != ringSlots {
		t.Fatalf("%d wait", n)
	}
	for i := range ringSlots {
		if s := r.peek(0); int(s.buf.Data[0])<<8|int(s.buf.Data[1]) != i || s.peer != p {
			t.Fatalf("slot %d has %x", i, s.buf.Data)
		}
		r.advance(1)
	}
	if r.waiting() != 0 || !r.push(p, &b) {
		t.Error("an emptied ring takes nothing")
	}
}
