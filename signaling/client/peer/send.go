package peer

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"

	"plenum/signaling/client/clip"
)

const (
	tick      = clip.AudioInterval
	srEvery   = time.Second
	history   = 256 // packets of a layer kept for retransmission, more than a second
	silent    = 127 // -dBov of silence (RFC 6464)
	maxLoops  = 15  // rounds of a clip before a key frame comes unasked
	catchUp   = 5   // frames sent at once after a stall; older ones are skipped
	unlimited = -1
)

// An Encoding is one layer's SSRC and that of its retransmissions.
type Encoding struct{ SSRC, RTX uint32 }

// A Picture is a video source to be sent, with one encoding for each of the lowest sizes.
type Picture struct {
	Name      string // of the source
	Colour    string // of clip.Colours
	Encodings []Encoding
	// PictureIDs sends VP8's own layer fields instead of the dependency descriptor.
	PictureIDs bool
	// Camera makes frames as large and as frequent as those of a camera: the pictures are the same, with bytes behind
	// them that no decoder looks at.
	Camera bool
}

// Sent counts what one peer sent.
type Sent struct {
	AudioPackets, VideoPackets, Bytes uint64
	Frames, KeyFrames                 uint64 // of all layers
	Retransmitted                     uint64
	KeyFrameRequests                  uint64 // PLI and FIR received
	Feedback                          uint64 // transport-wide feedback packets received
	Estimate                          int    // bit/s, of the way to the bridge; 0 when nobody estimates
}

// sender is the outgoing half, guarded by Peer.mu.
type sender struct {
	audio  *audioTrack
	videos []*videoTrack
	level  uint8
	adapt  *adaptation // nil: everything is sent at once
	fine   bool        // something needs a finer tick than audio
	twcc   uint16
	stats  Sent
	packet []byte // scratch
	desc   []byte
}

type audioTrack struct {
	ssrc   uint32
	seq    uint16
	ts     uint32
	frame  int
	next   time.Time
	report report
}

type videoTrack struct {
	Picture
	on        bool
	maxHeight int
	next      time.Time
	layers    []*layer
}

// A layer is one simulcast encoding.
type layer struct {
	Encoding
	clip     *clip.Video
	running  bool
	wantKey  bool
	position int // of the frame that was sent last
	rate     int // bit/s, of a camera
	loops    int
	seq      uint16
	rtxSeq   uint16
	tsBase   uint32
	started  time.Time // when timestamps began
	frame    uint16    // number in the dependency descriptor
	picture  uint16
	tl0      uint8
	report   report
	sent     [history]sentPacket
}

// report is what a sender report needs.
type report struct {
	packets, octets uint32
	ts              uint32    // of the last frame
	at              time.Time // when that was
	last            time.Time // report
}

// A sentPacket is kept for retransmission; frame is clip memory.
type sentPacket struct {
	seq    uint16
	ok     bool
	marker bool
	ts     uint32
	vp8    [8]byte
	vp8n   uint8
	ddn    uint8
	dd     [24]byte
	frame  []byte
}

// AddAudio begins to send audio on ssrc as soon as the peer is connected: silence until SetLevel.
func (p *Peer) AddAudio(ssrc uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out.audio = &audioTrack{ssrc: ssrc, seq: uint16(rand.Uint32()), ts: rand.Uint32()}
}

// SetLevel sets the level that audio claims to have, in -dBov (0 loudest). 127 sends silence, as a
// muted browser does; anything else sends the tone.
func (p *Peer) SetLevel(level uint8) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out.level = min(level, silent)
}

// AddVideo begins to send a picture as soon as the peer is connected.
func (p *Peer) AddVideo(v Picture) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := &videoTrack{Picture: v, on: true, maxHeight: unlimited}
	p.out.fine = p.out.fine || v.Camera
	sizes := clip.Videos(v.Colour)
	if sizes == nil {
		sizes = clip.Videos(clip.Colours[0])
	}
	for i, e := range v.Encodings {
		if i == len(sizes) {
			break
		}
		size := sizes[i]
		if len(v.Encodings) == 1 {
			size = sizes[len(sizes)-1]
		}
		t.layers = append(t.layers, &layer{
			Encoding: e, clip: size,
			seq: uint16(rand.Uint32()) >> 1, rtxSeq: uint16(rand.Uint32()) >> 1, tsBase: rand.Uint32(),
			picture: uint16(rand.Uint32()) & 0x7fff, tl0: uint8(rand.Uint32()),
		})
	}
	p.out.videos = append(p.out.videos, t)
}

// Enable starts and stops a picture, as unmuting and muting does.
func (p *Peer) Enable(name string, on bool) {
	p.withVideo(name, func(t *videoTrack) { t.on = on })
}

// Constrain limits the layers sent to those of at most maxHeight: 0 stops the picture, -1 is no limit.
// The lowest layer is sent for any positive height.
func (p *Peer) Constrain(name string, maxHeight int) {
	p.withVideo(name, func(t *videoTrack) { t.maxHeight = maxHeight })
}

func (p *Peer) withVideo(name string, f func(*videoTrack)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.out.videos {
		if t.Name == name {
			f(t)
		}
	}
}

// Sent returns what was sent so far.
func (p *Peer) Sent() Sent {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.out.stats
	if a := p.out.adapt; a != nil {
		s.Estimate = a.bwe.GetTargetBitrate()
	}
	return s
}

// pace sends media and feedback until ctx ends.
func (p *Peer) pace(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for fine := false; ; {
		if p.step(time.Now()) && !fine {
			fine = true
			ticker.Reset(fineTick)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// step does everything that is due at now. It reports whether there is something to do every few milliseconds.
func (p *Peer) step(now time.Time) (fine bool) {
	p.mu.Lock()
	fine = p.out.fine
	if a := p.out.audio; a != nil && p.cfg.Media.Opus != 0 {
		for n := due(&a.next, now, clip.AudioInterval); n > 0; n-- {
			p.sendAudioLocked(a, now)
		}
	}
	for _, t := range p.out.videos {
		if p.cfg.Media.VP8 == 0 {
			break
		}
		interval := clip.FrameInterval
		if t.Camera {
			interval = cameraInterval
		}
		if due(&t.next, now, interval) > 0 { // a camera does not catch up
			p.sendPictureLocked(t, now)
		}
	}
	if a := p.out.adapt; a != nil {
		for _, q := range a.due(now) {
			p.sealLocked(&q.header, q.payload)
		}
	}
	reports := p.senderReportsLocked(now)
	p.mu.Unlock()
	for _, r := range append(reports, p.feedback(now)...) {
		p.sendRTCP(r)
	}
	return fine
}

// due returns how many intervals have passed since next, and moves it on.
func due(next *time.Time, now time.Time, interval time.Duration) int {
	if next.IsZero() {
		*next = now
	}
	n := 0
	for ; !next.After(now); n++ {
		*next = next.Add(interval)
	}
	return min(n, catchUp)
}

func (p *Peer) sendAudioLocked(a *audioTrack, now time.Time) {
	payload := clip.Silence
	if p.out.level < silent {
		payload = clip.Tone(a.frame)
	}
	a.frame++
	a.seq++
	a.ts += 960
	h := rtp.Header{Version: 2, PayloadType: p.cfg.Media.Opus, SequenceNumber: a.seq, Timestamp: a.ts, SSRC: a.ssrc}
	p.extendLocked(&h, p.cfg.Media.AudioLevel, []byte{0x80 | p.out.level})
	a.report.count(len(payload), a.ts, now)
	p.out.stats.AudioPackets++
	p.sealLocked(&h, payload)
}

// sendPictureLocked sends one frame of every layer that is wanted.
func (p *Peer) sendPictureLocked(t *videoTrack, now time.Time) {
	if t.Camera {
		p.rateLocked(t)
	}
	for i, l := range t.layers {
		if t.Camera && l.rate == 0 {
			l.running = false
			continue
		}
		wanted := t.on && t.maxHeight != 0 && (i == 0 || t.maxHeight < 0 || l.clip.Height <= t.maxHeight)
		if !wanted {
			l.running = false
			continue
		}
		p.sendFrameLocked(t, l, now)
	}
}

// rateLocked gives the layers their bit rates.
func (p *Peer) rateLocked(t *videoTrack) {
	total := -1
	if a := p.out.adapt; a != nil {
		total = a.bwe.GetTargetBitrate()
	}
	on := make([]bool, len(t.layers))
	for i, l := range t.layers {
		on[i] = l.running
	}
	for i, rate := range cameraRate(total, on) {
		t.layers[i].rate = rate
	}
}

func (p *Peer) sendFrameLocked(t *videoTrack, l *layer, now time.Time) {
	next := l.clip.Next(l.position)
	if next == 1 && l.position != 0 {
		l.loops++
	}
	if !l.running || l.wantKey || l.loops >= maxLoops {
		next, l.loops = 0, 0
		p.out.stats.KeyFrames++
	}
	l.running, l.wantKey, l.position = true, false, next
	if l.started.IsZero() {
		l.started = now
	}
	temporal := clip.Temporal(next)
	l.frame++
	l.picture = (l.picture + 1) & 0x7fff
	if temporal == 0 {
		l.tl0++
	}
	p.out.stats.Frames++
	ts := l.tsBase + uint32(now.Sub(l.started)*90/time.Millisecond)
	frame := l.clip.Frames[next]
	if t.Camera {
		if more := cameraSize(l.rate, temporal, next == 0) - len(frame); more > 0 {
			frame = append(frame[:len(frame):len(frame)], make([]byte, more)...)
		}
	}
	for offset := 0; offset < len(frame); {
		end := min(offset+maxVideoPayload, len(frame))
		if parts := (len(frame) - offset + maxVideoPayload - 1) / maxVideoPayload; t.Camera {
			end = offset + (len(frame)-offset)/parts // in equal parts, as browsers do
		}
		l.seq++
		s := &l.sent[int(l.seq)%history]
		*s = sentPacket{seq: l.seq, ok: true, marker: end == len(frame), ts: ts, frame: frame[offset:end]}
		vp8 := vp8Descriptor{start: offset == 0, discard: temporal == 2}
		if t.PictureIDs || p.cfg.Media.Descriptor == 0 {
			vp8.extended, vp8.pictureID, vp8.tl0 = true, l.picture, l.tl0
			vp8.temporal, vp8.sync = uint8(temporal), temporal > 0 && next%4 != 3
		} else {
			dd := descriptor{start: offset == 0, end: s.marker, template: template(next), frame: l.frame}
			if offset == 0 && next == 0 {
				dd.width, dd.height = l.clip.Width, l.clip.Height
			}
			s.ddn = uint8(len(dd.append(s.dd[:0])))
		}
		s.vp8n = uint8(len(vp8.append(s.vp8[:0])))
		l.report.count(len(s.frame)+int(s.vp8n), ts, now)
		p.out.stats.VideoPackets++
		p.sendVideoLocked(s, p.cfg.Media.VP8, l.SSRC, l.seq, nil, now)
		offset = end
	}
}

// sendVideoLocked sends a packet of the history, with osn in front when it is a retransmission.
func (p *Peer) sendVideoLocked(s *sentPacket, pt uint8, ssrc uint32, seq uint16, osn []byte, now time.Time) {
	h := rtp.Header{Version: 2, Marker: s.marker, PayloadType: pt, SequenceNumber: seq, Timestamp: s.ts, SSRC: ssrc}
	if s.ddn > 16 { // only the two-byte form holds it (RFC 8285 section 4.3)
		h.Extension, h.ExtensionProfile = true, rtp.ExtensionProfileTwoByte
	}
	p.extendLocked(&h, p.cfg.Media.AbsSendTime, absSendTime(now))
	p.extendLocked(&h, p.cfg.Media.Descriptor, s.dd[:s.ddn])
	payload := append(p.out.desc[:0], osn...)
	payload = append(payload, s.vp8[:s.vp8n]...)
	payload = append(payload, s.frame...)
	p.out.desc = payload
	if a := p.out.adapt; a != nil {
		a.queue = append(a.queue, pacedPacket{h, append([]byte(nil), payload...)})
		return
	}
	p.sealLocked(&h, payload)
}

// extendLocked adds an extension unless it is not negotiated or empty.
func (p *Peer) extendLocked(h *rtp.Header, id uint8, value []byte) {
	if id != 0 && len(value) > 0 {
		_ = h.SetExtension(id, value) // ids and sizes are checked when Media is made
	}
}

func absSendTime(now time.Time) []byte {
	// 6.18 fixed point seconds.
	t := (uint64(now.Unix())<<18 | uint64(now.Nanosecond())<<18/uint64(time.Second)) & 0xffffff
	return []byte{byte(t >> 16), byte(t >> 8), byte(t)}
}

// sealLocked numbers, encrypts and sends a packet.
func (p *Peer) sealLocked(h *rtp.Header, payload []byte) {
	if p.sealed == nil {
		return
	}
	if id := p.cfg.Media.TransportCC; id != 0 {
		p.out.twcc++
		p.extendLocked(h, id, []byte{byte(p.out.twcc >> 8), byte(p.out.twcc)})
		if a := p.out.adapt; a != nil {
			a.send(h, payload, id, p.writeLocked)
			return
		}
	}
	p.writeLocked(h, payload)
}

// writeLocked encrypts and sends a packet.
func (p *Peer) writeLocked(h *rtp.Header, payload []byte) {
	size := h.MarshalSize()
	clear := append(p.out.packet[:0], make([]byte, size)...)
	if _, err := h.MarshalTo(clear); err != nil {
		return
	}
	clear = append(clear, payload...)
	b, err := p.sealed.EncryptRTP(clear, clear, h)
	p.out.packet = b
	if err != nil {
		p.cfg.Log.Debug("seal", "err", err)
		return
	}
	p.out.stats.Bytes += uint64(len(b))
	_, _ = p.conn.Write(b) // loss is a network's right
}

// sendRTCP encrypts and sends a compound packet.
func (p *Peer) sendRTCP(packets []rtcp.Packet) {
	b, err := rtcp.Marshal(packets)
	if err != nil {
		p.cfg.Log.Debug("rtcp", "err", err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sealed == nil {
		return
	}
	if b, err = p.sealed.EncryptRTCP(nil, b, nil); err == nil {
		_, _ = p.conn.Write(b)
	}
}

func (r *report) count(octets int, ts uint32, now time.Time) {
	r.packets++
	r.octets += uint32(octets)
	r.ts, r.at = ts, now
}

// senderReportsLocked returns the sender reports that are due, one compound each.
func (p *Peer) senderReportsLocked(now time.Time) [][]rtcp.Packet {
	var out [][]rtcp.Packet
	add := func(r *report, ssrc uint32, clock int64) {
		if r.packets == 0 || now.Sub(r.last) < srEvery || now.Sub(r.at) > srEvery {
			return
		}
		r.last = now
		out = append(out, []rtcp.Packet{&rtcp.SenderReport{
			SSRC: ssrc, NTPTime: ntp(now), PacketCount: r.packets, OctetCount: r.octets,
			RTPTime: r.ts + uint32(now.Sub(r.at)*time.Duration(clock)/time.Second),
		}})
	}
	if a := p.out.audio; a != nil {
		add(&a.report, a.ssrc, 48000)
	}
	for _, t := range p.out.videos {
		for _, l := range t.layers {
			add(&l.report, l.SSRC, 90000)
		}
	}
	return out
}

// ntp returns a moment in NTP's 32.32 format.
func ntp(t time.Time) uint64 {
	const epoch = 2208988800
	return uint64(t.Unix()+epoch)<<32 | uint64(t.Nanosecond())<<32/uint64(time.Second)
}

// keyFrameLocked asks a layer for a key frame with its next picture.
func (p *Peer) keyFrameLocked(ssrc uint32) {
	p.out.stats.KeyFrameRequests++
	for _, t := range p.out.videos {
		for _, l := range t.layers {
			if l.SSRC == ssrc {
				l.wantKey = true
			}
		}
	}
}

// retransmitLocked answers a NACK on the RTX SSRC (RFC 4588).
func (p *Peer) retransmitLocked(ssrc uint32, seqs []uint16, now time.Time) {
	var pt uint8
	for rtx, of := range p.cfg.Media.RTX {
		if of == p.cfg.Media.VP8 {
			pt = rtx
		}
	}
	if pt == 0 {
		return
	}
	for _, t := range p.out.videos {
		for _, l := range t.layers {
			if l.SSRC != ssrc || l.RTX == 0 {
				continue
			}
			for _, seq := range seqs {
				if s := &l.sent[int(seq)%history]; s.ok && s.seq == seq {
					l.rtxSeq++
					p.out.stats.Retransmitted++
					p.sendVideoLocked(s, pt, l.RTX, l.rtxSeq, []byte{byte(seq >> 8), byte(seq)}, now)
				}
			}
		}
	}
}
