package peer

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pion/interceptor/pkg/twcc"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"

	"plenum/signaling/client/clip"
)

// Kind is audio or video.
type Kind uint8

// The kinds of sources.
const (
	Audio Kind = iota + 1
	Video
)

// A Source says whose media an SSRC carries from now on.
type Source struct {
	Kind      Kind
	Name      string // "a1b2c3d4-v0"
	Owner     string // endpoint, or "jvb"
	SSRC, RTX uint32
	VideoType string // as signalled
}

// Received is what has arrived of one source. Sources are counted by name over all SSRCs and peers.
type Received struct {
	Source    Source
	Packets   uint64
	Bytes     uint64 // of RTP payload
	Lost      uint64 // never arrived, for video: given up
	Recovered uint64 // arrived by retransmission
	Late      uint64 // duplicates and packets that had been given up
	Padding   uint64 // packets without payload
	Unmapped  uint64 // packets that came before their SSRC was announced

	Frames    uint64 // video frames that a decoder would show
	Broken    uint64 // complete video frames that it would not, for want of a key frame
	KeyFrames uint64
	Width     int    // of the last key frame
	Height    int    //
	Colour    string // of the last key frame, when it is one of clip's pictures

	Level  uint8         // last audio level, -dBov
	Jitter time.Duration // RFC 3550 section 6.4.1

	FirstPacket, LastPacket time.Time
	FirstFrame, LastFrame   time.Time
	// MaxGap is the longest time between two frames (video) or packets (audio).
	MaxGap time.Duration
	// Freezes are gaps between frames of more than 200 ms, Frozen what they lasted, all of it.
	Freezes uint64
	Frozen  time.Duration
	// Heard is how much sound should have been played, MadeUp how much of it a listener's device had to make up,
	// because packets were lost or late.
	Heard, MadeUp time.Duration
}

// frozenAfter is the time between two frames from which on people see that the picture stands.
const frozenAfter = 200 * time.Millisecond

// A Ledger counts what a participant receives. It outlives its peers: a participant that is moved to
// another bridge goes on counting, and the move is a gap. The zero value is ready to use.
type Ledger struct {
	mu      sync.Mutex
	sources map[string]*Received
}

// Snapshot returns copies of all records, ordered by source name.
func (l *Ledger) Snapshot() []Received {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Received, 0, len(l.sources))
	for _, r := range l.sources {
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b Received) int { return strings.Compare(a.Source.Name, b.Source.Name) })
	return out
}

// Restart begins to look for the longest gap anew.
func (l *Ledger) Restart() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.sources {
		r.MaxGap = 0
	}
}

// Source returns the record of one source; zero when nothing is known of it.
func (l *Ledger) Source(name string) Received {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.sources[name]; r != nil {
		return *r
	}
	return Received{}
}

func (l *Ledger) recordLocked(s Source) *Received {
	if l.sources == nil {
		l.sources = map[string]*Received{}
	}
	r := l.sources[s.Name]
	if r == nil {
		r = &Received{}
		l.sources[s.Name] = r
	}
	r.Source = s
	return r
}

// maxStreams bounds what a hostile bridge can make us keep.
const maxStreams = 4096

// receiver is the incoming half, guarded by Config.Ledger.mu.
type receiver struct {
	ssrc     uint32 // of our feedback
	streams  map[uint32]*stream
	arrivals *twcc.Recorder
	tcc      bool // arrivals has something to tell
	tccLast  time.Time
	reports  time.Time // last receiver reports
	tccSent  uint64
	nacks    uint64
	plis     uint64
}

// A stream is one SSRC.
type stream struct {
	ssrc  uint32
	kind  Kind
	of    *stream // for RTX: the stream that it repairs
	rec   *Received
	mine  Received // counts until the SSRC is announced
	clock int64    // Hz

	started  bool
	first    int64
	highest  int64 // unwrapped sequence number
	received int64
	priorExp int64
	priorRec int64
	lastTS   uint32
	lastAt   time.Time
	jitter   float64 // in units of clock
	srNTP    uint32  // middle bits of the last sender report
	srAt     time.Time

	video *reorder // nil for audio
	sound playout
}

// Map announces sources. An SSRC that carried another source before carries the new one from now on.
func (p *Peer) Map(sources ...Source) {
	l := p.cfg.Ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, src := range sources {
		s := p.streamLocked(src.SSRC, src.Kind)
		if s == nil {
			return
		}
		rec := l.recordLocked(src)
		if s.rec == &s.mine { // what came too early belongs to it
			rec.Unmapped += s.mine.Packets
			rec.Packets += s.mine.Packets
			rec.Bytes += s.mine.Bytes
		}
		s.rec = rec
		if src.RTX != 0 {
			if rtx := p.streamLocked(src.RTX, src.Kind); rtx != nil {
				rtx.of = s
			}
		}
	}
}

// streamLocked returns the stream of an SSRC, made when new; nil when there are too many.
func (p *Peer) streamLocked(ssrc uint32, kind Kind) *stream {
	s := p.in.streams[ssrc]
	if s == nil {
		if len(p.in.streams) >= maxStreams {
			return nil
		}
		s = &stream{ssrc: ssrc, kind: kind, clock: 48000}
		s.rec = &s.mine
		if kind == Video {
			s.clock, s.video = 90000, newReorder()
		}
		p.in.streams[ssrc] = s
	}
	return s
}

// receiveRTP opens and counts one packet. b is reused after it returns.
func (p *Peer) receiveRTP(b []byte) {
	now := time.Now()
	var h rtp.Header
	clear, err := p.opened.DecryptRTP(b[:0:0], b, &h)
	if err != nil {
		return // replayed or forged: as if it had not arrived
	}
	n := 12 + 4*int(b[0]&15)
	if h.Extension {
		n += 4 + 4*int(uint16(b[n+2])<<8|uint16(b[n+3]))
	}
	payload := clear[n:]
	if h.Padding && len(payload) > 0 {
		payload = payload[:max(0, len(payload)-int(payload[len(payload)-1]))]
	}
	l := p.cfg.Ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	m := &p.cfg.Media
	if e := h.GetExtension(m.TransportCC); m.TransportCC != 0 && len(e) >= 2 {
		p.in.arrivals.Record(h.SSRC, uint16(e[0])<<8|uint16(e[1]), now.UnixMicro())
		p.in.tcc = true
	}
	kind := Audio
	name, isVideo := m.Video[h.PayloadType]
	_, isRTX := m.RTX[h.PayloadType]
	if isVideo || isRTX {
		kind = Video
	}
	s := p.streamLocked(h.SSRC, kind)
	if s == nil {
		return
	}
	if isRTX {
		if s.of == nil || s.of.video == nil || len(payload) < 2 {
			s.rec.Padding++
			return
		}
		h.SequenceNumber = uint16(payload[0])<<8 | uint16(payload[1])
		original := m.Video[m.RTX[h.PayloadType]]
		s.of.video.repair(s.of.rec, h.SequenceNumber, inspect(&h, m, original, payload[2:]), now)
		return
	}
	s.count(&h, len(payload), now)
	if s.video != nil {
		s.video.add(s.rec, h.SequenceNumber, inspect(&h, m, name, payload), now)
	} else if e := h.GetExtension(m.AudioLevel); m.AudioLevel != 0 && len(e) > 0 {
		s.rec.Level = e[0] & silent
	}
}

// count does the bookkeeping that audio and video share (RFC 3550 appendix A).
func (s *stream) count(h *rtp.Header, payload int, now time.Time) {
	r := s.rec
	seq := s.highest + int64(int16(h.SequenceNumber-uint16(s.highest)))
	if !s.started {
		seq = int64(h.SequenceNumber)
		s.started, s.first, s.highest = true, seq, seq-1
	} else {
		d := float64(now.Sub(s.lastAt))*float64(s.clock)/float64(time.Second) - float64(int32(h.Timestamp-s.lastTS))
		s.jitter += (max(d, -d) - s.jitter) / 16
		r.Jitter = time.Duration(s.jitter * float64(time.Second) / float64(s.clock))
	}
	s.lastTS, s.lastAt = h.Timestamp, now
	if s.kind == Audio {
		heard, made := s.sound.expected, s.sound.made
		if seq > s.highest {
			s.sound.arrive(h.Timestamp, s.clock, seq-s.highest-1, now)
		} else {
			s.sound.recover(h.Timestamp, s.clock, now)
		}
		r.Heard += s.sound.expected - heard
		r.MadeUp += s.sound.made - made
	}
	if seq > s.highest {
		if s.kind == Audio {
			r.Lost += uint64(seq - s.highest - 1)
		}
		s.highest = seq
	} else if s.kind == Audio {
		if r.Lost > 0 { // late, or a second copy; telling them apart is video's business
			r.Lost--
		}
		r.Late++
	}
	s.received++
	r.Packets++
	r.Bytes += uint64(payload)
	if payload == 0 {
		r.Padding++
	}
	if r.FirstPacket.IsZero() {
		r.FirstPacket = now
	} else if s.kind == Audio {
		r.MaxGap = max(r.MaxGap, now.Sub(r.LastPacket))
	}
	r.LastPacket = now
}

// inspect finds out what a packet means for its frame.
func inspect(h *rtp.Header, m *Media, codec string, payload []byte) part {
	pt := part{ts: h.Timestamp, marker: h.Marker, empty: len(payload) == 0}
	if pt.empty {
		return pt
	}
	var dd []byte
	if m.Descriptor != 0 {
		dd = h.GetExtension(m.Descriptor)
	}
	if codec == "vp8" {
		frame, start, ok := parseVP8(payload)
		pt.start = ok && start
		if pt.start {
			pt.width, pt.height, pt.key = vp8Size(frame)
			if v := clip.Recognise(frame); pt.key && v != nil {
				pt.colour = v.Colour
			}
		}
		return pt
	}
	if len(dd) >= 3 { // the structure comes with key frames
		pt.start = dd[0]&0x80 != 0
		pt.key = pt.start && len(dd) > 3 && dd[3]&0x80 != 0
	}
	return pt
}

// receiveRTCP opens a compound packet and acts on it.
func (p *Peer) receiveRTCP(b []byte) {
	clear, err := p.opened.DecryptRTCP(nil, b, nil)
	if err != nil {
		return
	}
	packets, err := rtcp.Unmarshal(clear)
	if err != nil {
		return
	}
	now := time.Now()
	for _, packet := range packets {
		switch r := packet.(type) {
		case *rtcp.SenderReport:
			p.cfg.Ledger.mu.Lock()
			if s := p.in.streams[r.SSRC]; s != nil {
				s.srNTP, s.srAt = uint32(r.NTPTime>>16), now
			}
			p.cfg.Ledger.mu.Unlock()
		case *rtcp.PictureLossIndication:
			p.mu.Lock()
			p.keyFrameLocked(r.MediaSSRC)
			p.mu.Unlock()
		case *rtcp.FullIntraRequest:
			p.mu.Lock()
			for _, f := range r.FIR {
				p.keyFrameLocked(f.SSRC)
			}
			p.mu.Unlock()
		case *rtcp.TransportLayerNack:
			var seqs []uint16
			for _, n := range r.Nacks {
				seqs = append(seqs, n.PacketList()...)
			}
			p.mu.Lock()
			p.retransmitLocked(r.MediaSSRC, seqs, now)
			p.mu.Unlock()
		case *rtcp.TransportLayerCC:
			p.mu.Lock()
			p.out.stats.Feedback++
			if a := p.out.adapt; a != nil {
				a.feedback([]rtcp.Packet{r})
			}
			p.mu.Unlock()
		}
	}
}
