package conference

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"plenum/bridge/packet"
	"plenum/bridge/receive"
)

// A pipe is one direction of a bad network: a narrow hop with a queue, then delay and loss.
type pipe struct {
	bps   float64 // 0 no limit
	queue time.Duration
	delay time.Duration
	loss  float64
	// For up to that long every two seconds nothing comes through, and then all at once: a busy machine's way, and a radio's.
	held time.Duration

	rnd    *rand.Rand
	free   time.Time
	flying []flying
	waited time.Duration // the longest, since it was set to 0
	lost   int
}

type flying struct {
	at time.Time
	b  []byte
}

func newPipe(seed uint64) *pipe { return &pipe{rnd: rand.New(rand.NewPCG(seed, 1))} }

func (p *pipe) send(b []byte, now time.Time) {
	if p.free.Before(now) {
		p.free = now
	}
	wait := p.free.Sub(now)
	if p.bps > 0 {
		if wait > p.queue {
			p.lost++
			return
		}
		p.free = p.free.Add(time.Duration(float64(len(b)+44) * 8 / p.bps * float64(time.Second)))
	}
	p.waited = max(p.waited, wait)
	if p.rnd.Float64() < p.loss {
		p.lost++
		return
	}
	at := p.free.Add(p.delay)
	if p.held > 0 {
		const every = 2 * time.Second
		n := at.UnixNano() / int64(every)
		r := rand.New(rand.NewPCG(uint64(n), 9))
		from := time.Unix(0, n*int64(every)).Add(time.Duration(r.Int64N(int64(every - p.held))))
		if end := from.Add(time.Duration(r.Int64N(int64(p.held)))); at.After(from) && at.Before(end) {
			at = end
		}
	}
	p.flying = append(p.flying, flying{at, slices.Clone(b)})
}

func (p *pipe) arrived(now time.Time) (out []flying) {
	n := 0
	for n < len(p.flying) && !p.flying[n].at.After(now) {
		n++
	}
	out, p.flying = p.flying[:n:n], p.flying[n:]
	return out
}

// A viewer is a receiver behind a network: it sends the feedback that a browser sends, and plays what it gets.
type viewer struct {
	*client
	down, up *pipe
	fb       *receive.Feedback
	fbAt     time.Time
	videos   map[SSRC]*screen
	rtxOf    map[SSRC]SSRC

	audioBytes, videoBytes, bytes int
	audio                         map[uint16]bool
	audioFrom, audioTo            uint16
	lostBefore                    int
}

// A screen plays one video stream in order, and counts how long it stands still.
type screen struct {
	unwrap  packet.Unwrapper
	packets map[int64]packet.RTP
	next    int64 // 0 before the first
	asked   map[int64]time.Time
	highest int64

	shown   time.Time
	frames  int
	keys    int
	height  int
	freezes []time.Duration // longer than 200 ms
	plis    int
	pliAt   time.Time
	maxGap  time.Duration
}

func (v *viewer) SendRTP(header, payload []byte) {
	v.down.send(append(slices.Clone(header), payload...), v.r.now)
}
func (v *viewer) SendRTCP(b []byte) { v.down.send(b, v.r.now) }

func (r *room) watch(id EndpointID, down, up *pipe) *viewer {
	v := &viewer{down: down, up: up, fb: receive.NewFeedback(r.now), videos: map[SSRC]*screen{}, rtxOf: map[SSRC]SSRC{}, audio: map[uint16]bool{}}
	v.client = r.joinWith(id, v, true)
	return v
}

// step lets the viewer take and send what is due.
func (v *viewer) step() {
	now := v.r.now
	for _, f := range v.up.arrived(now) {
		v.e.ReceiveRTCP(f.b, now)
	}
	for _, f := range v.down.arrived(now) {
		if packet.IsRTCP(f.b) {
			continue
		}
		r, err := packet.ParseRTP(f.b)
		if err != nil {
			v.r.t.Fatalf("malformed: %x", f.b)
		}
		v.bytes += len(f.b) + 44
		if x := r.Extension(extTCC); len(x) == 2 {
			v.fb.Arrive(binary.BigEndian.Uint16(x), r.SSRC(), r.Marker(), f.at)
		}
		switch r.PT() {
		case ptOpus:
			v.audioBytes += len(f.b)
			if len(v.audio) == 0 {
				v.audioFrom = r.Seq()
			}
			v.audio[r.Seq()] = true
			v.audioTo = r.Seq()
		case ptVP8:
			if r.SSRC() != v.r.c.cfg.VideoSSRC {
				v.videoBytes += len(f.b)
				v.video(r, r.Seq(), r.SSRC(), r.Payload)
			}
		case ptRTX:
			for ssrc, m := range v.r.maps[v.id] {
				if m.RTX == r.SSRC() && len(r.Payload) > 2 {
					v.video(r, binary.BigEndian.Uint16(r.Payload), ssrc, r.Payload[2:])
				}
			}
		}
	}
	for _, s := range v.videos {
		v.play(s)
	}
	if now.Sub(v.fbAt) >= 50*time.Millisecond {
		v.fbAt = now
		for v.fb.Pending() {
			if b := v.fb.Append(nil, 9, now); len(b) > 0 {
				v.up.send(b, now)
			}
		}
	}
}

func (v *viewer) video(r packet.RTP, seq uint16, ssrc SSRC, payload []byte) {
	s := v.videos[ssrc]
	if s == nil {
		s = &screen{packets: map[int64]packet.RTP{}, asked: map[int64]time.Time{}}
		v.videos[ssrc] = s
	}
	n := s.unwrap.Unwrap(seq)
	if n < s.next {
		return
	}
	r.Payload = payload
	s.packets[n] = r
	for i := s.highest + 1; i < n && s.highest > 0; i++ {
		if i >= s.next {
			s.asked[i] = time.Time{}
		}
	}
	s.highest = max(s.highest, n)
	delete(s.asked, n)
}

// play shows complete frames in order, and asks for what is missing.
func (v *viewer) play(s *screen) {
	now := v.r.now
	var missing []uint16
	for n, at := range s.asked {
		if now.Sub(at) > 110*time.Millisecond {
			missing = append(missing, uint16(n))
			s.asked[n] = now
		}
	}
	if len(missing) > 0 {
		slices.SortFunc(missing, func(a, b uint16) int { return int(int16(a - b)) })
		for _, ssrc := range v.ssrcs(s) {
			v.up.send(packet.AppendNACK(nil, 9, ssrc, missing), now)
		}
	}
	for {
		end, ok := s.complete()
		if !ok {
			break
		}
		for i := s.next; i <= end; i++ {
			delete(s.packets, i)
		}
		if gap := now.Sub(s.shown); !s.shown.IsZero() {
			s.maxGap = max(s.maxGap, gap)
			if gap > 200*time.Millisecond {
				s.freezes = append(s.freezes, gap)
			}
		}
		s.next, s.shown = end+1, now
		s.frames++
	}
	if !s.shown.IsZero() && now.Sub(s.shown) > 600*time.Millisecond && len(s.packets) > 0 && now.Sub(s.pliAt) > 300*time.Millisecond {
		// Given up: from the next key frame on.
		s.pliAt = now
		s.plis++
		for _, ssrc := range v.ssrcs(s) {
			v.up.send(packet.AppendPLI(nil, 9, ssrc), now)
		}
	}
}

func (v *viewer) ssrcs(s *screen) (out []SSRC) {
	for ssrc, x := range v.videos {
		if x == s {
			out = append(out, ssrc)
		}
	}
	return out
}

// complete finds the frame at next or, where something of that is missing, the next whole key frame, as a decoder does.
func (s *screen) complete() (end int64, ok bool) {
	if s.next != 0 {
		if end, ok := s.frame(s.next); ok {
			return end, true
		}
	}
	first := int64(0)
	for n, r := range s.packets {
		if r.Payload[0]&0x10 != 0 && r.Payload[1]&1 == 0 && (first == 0 || n < first) && n > s.next {
			if _, ok := s.frame(n); ok {
				first = n
			}
		}
	}
	if first == 0 {
		return 0, false
	}
	s.next = first
	for n := range s.packets {
		if n < first {
			delete(s.packets, n)
		}
	}
	for n := range s.asked {
		if n < first {
			delete(s.asked, n)
		}
	}
	return s.frame(s.next)
}

func (s *screen) frame(n int64) (end int64, ok bool) {
	key, height := false, 0
	for i := n; ; i++ {
		r, ok := s.packets[i]
		if !ok {
			return 0, false
		}
		if i == n && r.Payload[0]&0x10 != 0 && len(r.Payload) > 10 && r.Payload[1]&1 == 0 {
			key, height = true, int(r.Payload[9])|int(r.Payload[10])<<8
		}
		if r.Marker() {
			if key {
				s.keys++
				s.height = height
			}
			return i, true
		}
	}
}

// lostAudio counts what did not come of audio.
func (v *viewer) lostAudio() int { return int(v.audioTo-v.audioFrom) + 1 - len(v.audio) }

// A sender sends three encodings of those bit rates, 30 frames a second, key frames when asked and at the beginning.
type sender struct {
	*client
	rates  []float64
	frames int
	rnd    *rand.Rand
	at     time.Time
}

// play runs the conference for d: a camera and a microphone at alice, viewers behind networks.
func (r *room) play(d time.Duration, cam *sender, viewers ...*viewer) {
	for end := r.now.Add(d); r.now.Before(end); {
		if r.frames%4 == 0 {
			cam.audio(30)
		}
		if !r.now.Before(cam.at) {
			cam.at = cam.at.Add(33333 * time.Microsecond)
			if cam.at.Before(r.now) {
				cam.at = r.now
			}
			key := cam.answersPLI() || cam.frames == 0
			cam.frames++
			n := r.frames
			for enc, bps := range cam.rates {
				bytes := bps / 8 / 30 * (0.8 + 0.4*cam.rnd.Float64())
				if key {
					bytes *= 6
				}
				packets := max(int(bytes)/1050+1, 1)
				for i := range packets {
					cam.send(cam.videoPacket(enc, i == 0, i == packets-1, key, int(bytes)/packets))
				}
			}
			r.frames = n
		}
		r.flush()
		r.frames++
		r.pass(5 * time.Millisecond)
		for _, v := range viewers {
			v.step()
		}
	}
}

func (r *room) camera(id EndpointID) *sender {
	return &sender{client: r.join(id), rates: []float64{150e3, 450e3, 1500e3}, rnd: rand.New(rand.NewPCG(3, 4)), at: r.now}
}

// look is what was seen since the last look.
type look struct {
	height    int
	frames    int
	freezes   int // of more than 200 ms
	longest   time.Duration
	wait      time.Duration // in the queue of the narrow hop
	mbps      float64
	lostAudio int
}

// look sums up the last d.
func (v *viewer) look(t *testing.T, what string, d time.Duration) (l look) {
	t.Helper()
	l.mbps, l.wait = float64(v.bytes)*8/d.Seconds()/1e6, v.down.waited
	for _, s := range v.videos {
		l.height, l.frames, l.longest, l.freezes = s.height, l.frames+s.frames, max(l.longest, s.maxGap), l.freezes+len(s.freezes)
		s.freezes, s.maxGap, s.frames = nil, 0, 0
	}
	lost := v.lostAudio()
	l.lostAudio, v.lostBefore = lost-v.lostBefore, lost
	v.bytes, v.down.waited = 0, 0
	var st EndpointStats
	for _, e := range v.r.c.Snapshot(v.r.now).Details {
		if e.ID == v.id {
			st = e
		}
	}
	t.Logf("%-10s %+v; estimate %.2f, %d changes, cuts %d+%d, probes %d of %d", what, l, float64(st.Estimate.Bitrate)/1e6, st.Changes,
		st.Estimate.Cuts, st.Estimate.LossCuts, st.Estimate.Found, st.Estimate.Probes)
	return l
}

// opened begins a call of alice, who sends, and bob behind p, and lets the data channel take its time.
func opened(t *testing.T, p pipe) (*room, *sender, *viewer) {
	r := newRoom(t)
	cam := r.camera("alice")
	down, up := newPipe(1), newPipe(2)
	p.rnd = down.rnd
	*down = p
	up.delay = p.delay
	v := r.watch("bob", down, up)
	r.play(400*time.Millisecond, cam, v)
	v.e.SetConstraints(want(720), r.now)
	return r, cam, v
}

// TestNetworks has a call over each network: what is seen and heard in the first seconds and after.
func TestNetworks(t *testing.T) {
	const ms = time.Millisecond
	for _, n := range []struct {
		name    string
		pipe    pipe
		height  int // in the end
		freezes int // in twenty seconds
		audio   int // packets lost in twenty seconds
		wait    time.Duration
	}{
		{"good", pipe{delay: 5 * ms}, 720, 0, 0, 0},
		{"600 kbit/s", pipe{bps: 600e3, queue: time.Second, delay: 20 * ms}, 180, 0, 0, 130 * ms},
		{"1 Mbit/s", pipe{bps: 1e6, queue: 300 * ms, delay: 20 * ms}, 360, 0, 0, 130 * ms},
		{"3 Mbit/s", pipe{bps: 3e6, queue: 300 * ms, delay: 20 * ms}, 720, 0, 0, 130 * ms},
		{"1.5 Mbit/s and 2 % loss", pipe{bps: 1.5e6, queue: 300 * ms, delay: 50 * ms, loss: 0.02}, 360, 0, 40, 130 * ms},
		{"2.5 Mbit/s and 10 % loss", pipe{bps: 2.5e6, queue: 300 * ms, delay: 30 * ms, loss: 0.10}, 720, 15, 150, 130 * ms},
		{"satellite", pipe{bps: 3e6, queue: 300 * ms, delay: 300 * ms}, 720, 0, 0, 130 * ms},
	} {
		t.Run(n.name, func(t *testing.T) {
			r, cam, v := opened(t, n.pipe)
			r.play(5*time.Second, cam, v)
			if l := v.look(t, "at first", 5*time.Second); l.frames < 100 || n.pipe.loss == 0 && l.lostAudio > 0 || l.wait > n.wait+50*ms {
				t.Error("a bad beginning")
			}
			r.play(10*time.Second, cam, v)
			v.look(t, "then", 10*time.Second)
			r.play(20*time.Second, cam, v)
			l := v.look(t, "later", 20*time.Second)
			if l.height != n.height || l.freezes > n.freezes || l.wait > n.wait || l.lostAudio > n.audio || l.frames < 590 {
				t.Error("not what this network allows")
			}
		})
	}
}

// TestHeldUp: on a path that loses some, and now and then holds up what it carries, pictures never stand for much longer than
// that takes and a repair.
func TestHeldUp(t *testing.T) {
	const ms = time.Millisecond
	r, cam, v := opened(t, pipe{bps: 1.5e6, queue: 200 * ms, delay: 50 * ms, loss: 0.02, held: 200 * ms})
	r.play(10*time.Second, cam, v)
	v.look(t, "at first", 10*time.Second)
	r.play(60*time.Second, cam, v)
	if l := v.look(t, "later", time.Minute); l.longest > 350*ms || l.freezes > 6 || l.frames < 1750 || l.wait > 150*ms {
		t.Fail()
	}
}

// TestNarrowing is ladder step 26 with all that belongs to it: 3, then 0.6, then 3 Mbit/s, with a long queue and with a
// short one, which drops what does not fit.
func TestNarrowing(t *testing.T) {
	for _, queue := range []time.Duration{2 * time.Second, 200 * time.Millisecond} {
		r, cam, v := opened(t, pipe{bps: 3e6, queue: queue, delay: 25 * time.Millisecond})
		r.play(10*time.Second, cam, v)
		if l := v.look(t, "3", 10*time.Second); l.height != 720 {
			t.Error("not in full size")
		}
		v.down.bps = 600e3
		r.play(3*time.Second, cam, v)
		if l := v.look(t, "0.6", 3*time.Second); l.frames < 30 || l.lostAudio > 15 {
			t.Error("too hard a landing")
		}
		r.play(10*time.Second, cam, v)
		if l := v.look(t, "0.6", 10*time.Second); l.wait > 200*time.Millisecond || l.height == 720 || l.frames < 280 || l.lostAudio > 0 {
			t.Error("after three seconds it has not settled")
		}
		v.down.bps = 3e6
		r.play(20*time.Second, cam, v)
		if l := v.look(t, "3", 20*time.Second); l.height != 720 || l.freezes > 0 {
			t.Error("not in full size after twenty seconds")
		}
	}
}
