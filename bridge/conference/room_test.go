package conference

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"plenum/bridge/allocate"
	"plenum/bridge/codec"
	"plenum/bridge/packet"
)

// A room is a conference with scripted clients and a clock of its own.
type room struct {
	t      testing.TB
	c      *Conference
	now    time.Time
	frames int
	log    []string // events, "to what"
	maps   map[EndpointID]map[SSRC]Mapping
	bufs   []*packet.Buf // lent until flush
	all    []*client
}

func newRoom(t testing.TB) *room {
	r := &room{t: t, now: time.Unix(1_700_000_000, 0), maps: map[EndpointID]map[SSRC]Mapping{}}
	r.c = New(Config{Events: r, AudioSSRC: 1, VideoSSRC: 2, Rand: rand.NewChaCha8([32]byte{1})}, r.now)
	return r
}

func (r *room) note(format string, args ...any) { r.log = append(r.log, fmt.Sprintf(format, args...)) }

func (r *room) VideoSourcesMap(to EndpointID, m []Mapping) { r.mapped("video", to, m) }
func (r *room) AudioSourcesMap(to EndpointID, m []Mapping) { r.mapped("audio", to, m) }
func (r *room) mapped(kind string, to EndpointID, m []Mapping) {
	if r.maps[to] == nil {
		r.maps[to] = map[SSRC]Mapping{}
	}
	for _, x := range m {
		r.maps[to][x.SSRC] = x
		r.note("%s maps %s %s %s", to, kind, x.Source, x.MID)
	}
}
func (r *room) ForwardedSources(to EndpointID, names []string) { r.note("%s forwarded %v", to, names) }
func (r *room) SenderSourceConstraints(to EndpointID, source string, h int) {
	r.note("%s send %s %d", to, source, h)
}
func (r *room) DominantSpeaker(to EndpointID, s EndpointID, previous []EndpointID, silence bool) {
	r.note("%s speaker %s %v", to, s, previous)
}
func (r *room) Connectivity(to, e EndpointID, active bool) { r.note("%s sees %s %v", to, e, active) }

// take returns the events since the last take that begin with prefix.
func (r *room) take(prefix string) (out []string) {
	for _, l := range r.log {
		if len(l) >= len(prefix) && l[:len(prefix)] == prefix {
			out = append(out, l)
		}
	}
	r.log = nil
	return out
}

// pass lets time go by in ticks as the core would.
func (r *room) pass(d time.Duration) {
	end := r.now.Add(d)
	for {
		next := r.c.Tick(r.now)
		if !next.After(r.now) {
			r.t.Fatalf("the next tick is at %v, now is %v", next, r.now)
		}
		if next.After(end) {
			r.now = end
			return
		}
		r.now = next
	}
}

func (r *room) flush() {
	r.c.Flush(r.now)
	for _, b := range r.bufs { // a lifetime bug shows
		for i := range b.Space() {
			b.Space()[i] = 0xdd
		}
	}
	r.bufs = r.bufs[:0]
}

const (
	ptOpus, ptVP8, ptRTX                     = 111, 100, 96
	extLevel, extTime, extTCC, extMID, extDD = 1, 3, 5, 10, 11
)

func offer() Media {
	return Media{
		PayloadTypes: []PayloadType{{PT: ptOpus, Codec: "opus", Clockrate: 48000}, {PT: ptVP8, Codec: "VP8", Clockrate: 90000}, {PT: ptRTX, Codec: "rtx", Clockrate: 90000, RTXFor: ptVP8}},
		Extensions:   Extensions{AudioLevel: extLevel, AbsSendTime: extTime, TransportCC: extTCC, MID: extMID, DependencyDescriptor: extDD},
	}
}

// A client sends three simulcast encodings of one camera and a microphone, and keeps what it gets.
type client struct {
	r    *room
	id   EndpointID
	e    *Endpoint
	base SSRC // audio base, video base+1..3, their RTX base+11..13

	seq      [4]uint16 // audio, then encodings
	ts       [4]uint32
	frameNo  [3]uint16
	n        [3]int
	tcc      uint16
	pictures bool // number by picture id, not by descriptor
	picture  [3]uint16
	tl0      [3]uint8
	sent     map[SSRC][][]byte // media as sent
	alter    func(p []byte)    // changes video before it is sent; may be nil

	plis int // answered
	rtp  []got
	// Probes before video; not among rtp.
	padding []got
	rtcp    [][]byte
}

type got struct {
	r  packet.RTP
	at time.Time
}

func (c *client) SendRTP(header, payload []byte) {
	r, err := packet.ParseRTP(append(slices.Clone(header), payload...))
	if err != nil {
		c.r.t.Fatalf("malformed: %x", header)
	}
	if r.SSRC() == c.r.c.cfg.VideoSSRC {
		c.padding = append(c.padding, got{r, c.r.now})
		return
	}
	c.rtp = append(c.rtp, got{r, c.r.now})
}
func (c *client) SendRTCP(b []byte) { c.rtcp = append(c.rtcp, slices.Clone(b)) }

func (r *room) join(id EndpointID) *client { return r.joinWith(id, nil, true) }

func (r *room) joinWith(id EndpointID, leg Leg, rewriting bool) *client {
	c := r.enter(id, leg, Capabilities{Rewriting: rewriting})
	c.e.Connected(r.now)
	c.e.ChannelOpened(r.now)
	return c
}

func (r *room) enter(id EndpointID, leg Leg, caps Capabilities) *client {
	c := &client{r: r, id: id, base: SSRC(1000 * (len(r.all) + 1)), sent: map[SSRC][][]byte{}}
	if leg == nil {
		leg = c
	}
	for i := range c.seq {
		c.seq[i], c.ts[i] = uint16(65530+1000*i), 0xfffff000+uint32(i)<<28
	}
	r.all = append(r.all, c)
	c.e = r.c.AddEndpoint(id, leg, caps, r.now)
	c.e.SetMedia(offer())
	c.e.SetSources(c.sources(), r.now)
	return c
}

func (c *client) sources() []Source {
	return []Source{
		{Name: string(c.id) + "-a0", Kind: Audio, Encodings: []Encoding{{SSRC: c.base}}},
		{Name: string(c.id) + "-v0", Kind: Video, VideoType: "camera", Encodings: []Encoding{
			{c.base + 1, c.base + 11}, {c.base + 2, c.base + 12}, {c.base + 3, c.base + 13}}},
	}
}

func want(height int) allocate.Request {
	return allocate.Request{Default: &allocate.Constraint{MaxHeight: height}}
}

// The descriptor of Chromium's VP8, as recorded; template of each temporal layer.
var (
	structure, _ = hex.DecodeString("c000018002044eaaaf2860414d34538a0940404fc02cc0")
	templates    = func() (out [3]uint8) {
		var r codec.DescriptorReader
		var f codec.Frame
		d := &f.Descriptor
		if err := r.Read(structure, &f); err != nil {
			panic(err)
		}
		for t := range d.Templates {
			if err := r.Read([]byte{t, 0, 0}, &f); err == nil && d.FDiffs > 0 {
				out[d.TID] = t
			}
		}
		return out
	}()
	sizes = [3][2]byte{{180, 0}, {360 & 255, 360 >> 8}, {720 & 255, 720 >> 8}}
)

// videoPacket makes the next packet of an encoding.
func (c *client) videoPacket(enc int, first, last, key bool, size int) []byte {
	var b packet.Buf
	c.compose(&b, enc, first, last, key, size)
	return b.Data
}

// write makes the next packet of an encoding without allocating.
func (c *client) write(b *packet.Buf, enc int, first, last bool) {
	c.compose(b, enc, first, last, false, 1042)
}

func (c *client) compose(b *packet.Buf, enc int, first, last, key bool, size int) {
	if key && first {
		c.n[enc] = 0
	}
	tid := [4]uint8{0, 2, 1, 2}[c.n[enc]%4]
	if first && tid == 0 {
		c.tl0[enc]++
	}
	c.tcc++
	h := packet.Header{PT: ptVP8, Marker: last, Seq: c.seq[enc+1], Timestamp: c.ts[enc+1], SSRC: c.base + 1 + SSRC(enc)}
	p, x := packet.BeginExtensions(h.Append(b.Space()[:0]), key && first && !c.pictures)
	p = x.Add(p, extTime, 3)
	p = x.Add(p, extTCC, 2)
	binary.BigEndian.PutUint16(p[len(p)-2:], c.tcc)
	if !c.pictures {
		n := 3
		if key && first {
			n = len(structure)
		}
		p = x.Add(p, extDD, n)
		d := p[len(p)-n:]
		if n > 3 {
			copy(d, structure)
		} else {
			d[0] = templates[tid]
		}
		d[0] &= 0x3f
		if first {
			d[0] |= 0x80
		}
		if last {
			d[0] |= 0x40
		}
		binary.BigEndian.PutUint16(d[1:], c.frameNo[enc])
	}
	p = x.End(p, 0)
	end := len(p) + size
	start := byte(0)
	if first {
		start = 0x10
	}
	if c.pictures {
		sync := byte(0)
		if tid > 0 && c.n[enc] < 4 {
			sync = 0x20
		}
		p = append(p, 0x80|start, 0xe0, 0x80|byte(c.picture[enc]>>8)&0x7f, byte(c.picture[enc]), c.tl0[enc], tid<<6|sync)
	} else {
		p = append(p, start)
	}
	if key && first {
		p = append(p, 0xd0, 0x12, 0, 0x9d, 1, 0x2a, 0, 5, sizes[enc][0], sizes[enc][1])
	} else {
		p = append(p, 0xb1)
	}
	for i := 0; len(p) < end; i++ {
		p = append(p, byte(c.seq[enc+1])+byte(i))
	}
	b.Data = p
	c.seq[enc+1]++
	if last {
		c.ts[enc+1] += 3000
		c.frameNo[enc]++
		c.picture[enc]++
		c.n[enc]++
	}
}

// frame sends a whole frame of one encoding.
func (c *client) frame(enc, packets int, key bool) {
	for _, p := range c.makeFrame(enc, packets, key) {
		c.send(p)
	}
	c.r.frames++
}

func (c *client) makeFrame(enc, packets int, key bool) (out [][]byte) {
	for i := range packets {
		out = append(out, c.videoPacket(enc, i == 0, i == packets-1, key, 300))
	}
	return out
}

func (c *client) send(p []byte) {
	r, err := packet.ParseRTP(p)
	if err != nil {
		c.r.t.Fatal(err)
	}
	if c.alter != nil && r.PT() == ptVP8 {
		c.alter(p)
	}
	c.sent[r.SSRC()] = append(c.sent[r.SSRC()], slices.Clone(p))
	b := &packet.Buf{}
	b.Data = append(b.Space()[:0], p...)
	c.r.bufs = append(c.r.bufs, b)
	c.e.ReceiveRTP(b, c.r.now)
}

func (c *client) audioPacket(level byte, size int) []byte {
	var b packet.Buf
	c.composeAudio(&b, level, size)
	return b.Data
}

func (c *client) writeAudio(b *packet.Buf, level byte) { c.composeAudio(b, level, 200) }

func (c *client) composeAudio(b *packet.Buf, level byte, size int) {
	c.tcc++
	p, x := packet.BeginExtensions(packet.Header{PT: ptOpus, Seq: c.seq[0], Timestamp: c.ts[0], SSRC: c.base}.Append(b.Space()[:0]), false)
	p = x.Add(p, extTCC, 2)
	binary.BigEndian.PutUint16(p[len(p)-2:], c.tcc)
	p = x.Add(p, extLevel, 1)
	p[len(p)-1] = 0x80 | level
	p = x.End(p, 0)
	for i := range size {
		p = append(p, byte(c.seq[0])+byte(i))
	}
	b.Data = p
	c.seq[0]++
	c.ts[0] += 960
}

func (c *client) audio(level byte) { c.send(c.audioPacket(level, 60)) }

// on returns what the client got of a source, and forgets nothing.
func (c *client) on(source string) (out []got) {
	for _, g := range c.rtp {
		if m, ok := c.r.maps[c.id][g.r.SSRC()]; ok && m.Source == source {
			out = append(out, g)
		}
	}
	return out
}

// rtcpOf returns the packets of one type and format that the client got.
func (c *client) rtcpOf(typ, format uint8) (out []packet.RTCP) {
	for _, b := range c.rtcp {
		for {
			p, rest, ok := packet.NextRTCP(b)
			if !ok {
				break
			}
			if p.Type == typ && (p.Format == format || typ < 205) {
				out = append(out, p)
			}
			b = rest
		}
	}
	return out
}
