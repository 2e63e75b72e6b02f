// Package project turns one source into the one continuous RTP stream that one receiver sees, whatever encoding
// of the source is behind it at the moment, and whichever source: sequence numbers, timestamps, picture ids,
// frame numbers and template ids go on without a break.
//
// Everything that is rewritten differs from the input by an offset that holds for a run of input packets. A
// Stream keeps the runs; a packet is mapped by the run that its sequence number lies in, a NACK is mapped back
// by the run that its output number lies in. The output numbers of two runs never overlap, so no output number
// ever stands for two different packets.
package project

import (
	"math"
	"time"

	"plenum/bridge/codec"
	"plenum/bridge/packet"
)

const (
	maxRuns = 64
	// maxJump is how many packets may be missing at once; more than that is the sender beginning anew.
	maxJump = 1000
	// firstSeq is the first output number of video; audio keeps its sender's.
	firstSeq = 1<<16 + 1
	// maxSkew bounds how far capture times may disagree with times of arrival before they are not believed.
	maxSkew = 500 * time.Millisecond
	// AllLayers as a temporal layer is every one there is.
	AllLayers = codec.MaxTID
)

// A Packet is one packet of one source as it came in.
type Packet struct {
	RTP      packet.RTP
	Seq      int64 // unwrapped
	Encoding int
	Frame    codec.Frame
	Arrival  time.Time
	Capture  int64 // the sender's wall clock of the frame in microseconds; 0 unknown
	// Plain is the packet without redundant audio, of payload type PlainPT; nil where there is none, or we may not know.
	Plain   []byte
	PlainPT uint8
	Padded  bool // one byte of padding stands behind the payload, beyond the end of RTP.Data
}

// Offsets are what is added to the numbers of an input packet, and the layer (sid<<3|tid) that the receiver gets.
type Offsets struct {
	Timestamp uint32
	Picture   uint16
	TL0       uint8
	Frame     uint16
	Template  uint8
	Layer     uint8
}

// A run is a stretch of input packets of one encoding that share their offsets.
type run struct {
	first, last int64 // input numbers, inclusive; last is open (MaxInt64) in the newest run
	seq         int64 // output = input + seq
	encoding    int
	Offsets
}

// Output is how an accepted packet goes out.
type Output struct {
	Seq       uint16
	Timestamp uint32
	Offsets   Offsets
	Switched  bool // the first packet of another encoding, or after a pause
}

// A Stream is the projection of one source at a time. The zero value, with Clock set, forwards nothing until it
// has a target.
type Stream struct {
	Clock uint32 // of timestamps, Hz

	target, current int // encodings plus 1; 0 is none
	want            int // layer of the target, sid<<3|tid
	codec           codec.Codec

	runs    []run
	highest int64 // newest input number that the newest run has disposed of, forwarded or not
	started bool
	next    int64 // output number that follows, while current is none

	// the newest packet that went out
	timestamp uint32
	arrival   time.Time
	capture   int64
	from      int    // its encoding plus 1, 0 after a change of the source
	shift     uint32 // timestamp offset of that encoding
	picture   uint16
	tl0       uint8
	frame     uint16
	templates uint8 // template id that follows those in use

	// thinning
	spatial int    // how many spatial layers are being sent
	layer   int    // that passes, sid<<3|tid
	nested  bool   // the lowest spatial layer passes too
	decided uint32 // the frame that verdict is about, plus known
	verdict bool
	dropped uint32 // the frame that was last closed up, plus known
}

// known is added to the name of a frame, so that none is 0.
const known = 1 << 31

// SetTarget asks for an encoding, -1 for none, with a layer of it, which is sid<<3|tid: spatial layer sid with
// temporal layers up to tid. It takes effect at the next key frame of that encoding, or, within it, where the
// frames allow; none at once.
func (s *Stream) SetTarget(encoding, layer int) {
	s.target, s.want = encoding+1, layer
	if s.target == 0 {
		s.pause()
	}
}

// Target returns what SetTarget asked for.
func (s *Stream) Target() (encoding, layer int) { return s.target - 1, s.want }

// Current is the encoding that is being forwarded, -1 for none.
func (s *Stream) Current() int { return s.current - 1 }

// Waiting reports whether a key frame of the target is needed.
func (s *Stream) Waiting() bool {
	if s.target == 0 || s.current != s.target {
		return s.target != 0
	}
	sid, wanted := s.layer>>3, s.want>>3
	return wanted > sid || wanted < sid && !s.nested
}

// Drop gives up what is being forwarded, at once: nothing goes out until a key frame of the target.
func (s *Stream) Drop() { s.pause() }

// Takeover says that another source follows on the same output stream.
func (s *Stream) Takeover() {
	s.pause()
	s.target, s.from, s.capture = 0, 0, 0
	s.runs = s.runs[:0]
}

// Accept decides whether p goes out, and as what. Each packet is to be offered once: duplicates are gone before.
func (s *Stream) Accept(p *Packet, out *Output) bool {
	if s.target == 0 {
		return false
	}
	encoding := p.Encoding + 1
	if encoding == s.current {
		if p.Frame.Codec == s.codec || p.Seq < s.highest {
			return s.forward(p, out)
		}
		s.pause() // another codec on the same SSRC begins with a key frame too
	}
	if encoding == s.target && entry(&p.Frame) && !s.belongs(p) {
		s.begin(p)
		if s.forward(p, out) {
			out.Switched = true
			return true
		}
		return false
	}
	return s.late(p, out)
}

// entry reports whether a receiver can begin with this packet: with a key frame, or with any frame of a codec of
// which we do not know them.
func entry(f *codec.Frame) bool {
	switch f.Codec {
	case codec.VP8, codec.VP9, codec.H264, codec.AV1:
		return f.Key
	}
	return f.Key || f.Start && f.Numbering == codec.Plain
}

// pause ends the newest run.
func (s *Stream) pause() {
	if s.current == 0 {
		return
	}
	newest := &s.runs[len(s.runs)-1]
	s.next = s.highest + 1 + newest.seq
	if newest.first > s.highest {
		s.runs = s.runs[:len(s.runs)-1]
	} else {
		newest.last = s.highest
	}
	s.current = 0
}

// begin starts a run at p, a key frame of the target.
func (s *Stream) begin(p *Packet) {
	s.pause()
	r := run{first: p.Seq, last: math.MaxInt64, encoding: p.Encoding}
	switch {
	case s.started:
		r.seq = s.next - p.Seq
		r.Timestamp = s.advance(p) - p.RTP.Timestamp()
	case p.Frame.Codec == codec.Opus || p.Frame.Codec == codec.RED:
		// keeps its numbers
	default:
		r.seq = firstSeq - p.Seq
	}
	if f := &p.Frame; s.started {
		r.Picture, r.TL0 = s.picture+1-f.Picture.ID, s.tl0+1-f.Picture.TL0
		r.Frame, r.Template = s.frame+1-f.Descriptor.Frame, s.templates-f.Descriptor.TemplateOffset
	}
	s.push(r)
	s.started = true
	s.highest = p.Seq - 1
	s.current, s.codec, s.from, s.shift = p.Encoding+1, p.Frame.Codec, p.Encoding+1, r.Timestamp
	s.spatial, s.layer, s.decided, s.dropped = codec.MaxSpatial, s.limit(), 0, 0
	s.runs[len(s.runs)-1].Layer = uint8(s.layer)
}

// advance returns the output timestamp of p, which follows on a change of the encoding: as much later as its
// capture, or else its arrival, is later, and always later.
func (s *Stream) advance(p *Packet) uint32 {
	if s.from == p.Encoding+1 { // the same clock, which ran on
		if t := p.RTP.Timestamp() + s.shift; int32(t-s.timestamp) > 0 {
			return t
		}
	}
	elapsed := p.Arrival.Sub(s.arrival)
	if p.Capture != 0 && s.capture != 0 {
		if c := time.Duration(p.Capture-s.capture) * time.Microsecond; (c - elapsed).Abs() < maxSkew {
			elapsed = c
		}
	}
	ticks := int64(elapsed) / 1000 * int64(s.Clock) / 1e6
	return s.timestamp + uint32(max(ticks, int64(s.Clock/1000)))
}

func (s *Stream) push(r run) {
	if len(s.runs) == maxRuns {
		s.runs = s.runs[:copy(s.runs, s.runs[maxRuns/2:])]
	}
	s.runs = append(s.runs, r)
}

// forward handles a packet of the current encoding.
func (s *Stream) forward(p *Packet, out *Output) bool {
	if p.Seq <= s.highest {
		return s.late(p, out)
	}
	newest := &s.runs[len(s.runs)-1]
	if gap := p.Seq - s.highest - 1; gap > maxJump {
		s.skip(p.Seq-1, true)
		newest = &s.runs[len(s.runs)-1]
	}
	if !s.passes(&p.Frame) {
		s.drop(p)
		return false
	}
	if newest.Layer>>3 != uint8(s.layer>>3) {
		newest = s.relayer(p.Seq)
	}
	s.highest = p.Seq
	s.place(p, newest, out)
	s.timestamp, s.arrival, s.capture, s.shift = out.Timestamp, p.Arrival, p.Capture, newest.Timestamp
	f := &p.Frame
	if f.Picture.IDAt != 0 {
		s.picture = f.Picture.ID + newest.Picture
	}
	if f.Picture.TL0At != 0 {
		s.tl0 = f.Picture.TL0 + newest.TL0
	}
	if f.Numbering == codec.ByDescriptor {
		s.frame = f.Descriptor.Frame + newest.Frame
		if f.Descriptor.HasStructure {
			s.templates = (f.Descriptor.TemplateOffset + newest.Template + f.Descriptor.Templates) & 63
		}
	}
	return true
}

// late handles a packet that is not at the head: it goes out if a run has a place for it.
func (s *Stream) late(p *Packet, out *Output) bool {
	r := s.find(p)
	if r == nil || p.Encoding+1 == s.current && !s.passes(&p.Frame) {
		return false
	}
	s.place(p, r, out)
	return true
}

func (s *Stream) find(p *Packet) *run {
	for i := len(s.runs) - 1; i >= 0; i-- {
		r := &s.runs[i]
		if r.encoding == p.Encoding && r.first <= p.Seq && p.Seq <= r.last {
			if r.last == math.MaxInt64 && p.Seq > s.highest {
				return nil
			}
			return r
		}
	}
	return nil
}

// belongs reports whether p is a latecomer of a run.
func (s *Stream) belongs(p *Packet) bool { return s.find(p) != nil }

func (s *Stream) place(p *Packet, r *run, out *Output) {
	*out = Output{Seq: uint16(p.Seq + r.seq), Timestamp: p.RTP.Timestamp() + r.Timestamp, Offsets: r.Offsets}
}

// relayer has the newest run begin anew at a packet from which on another spatial layer is the highest.
func (s *Stream) relayer(first int64) *run {
	newest := &s.runs[len(s.runs)-1]
	if newest.first <= s.highest {
		r := *newest
		newest.last, r.first = first-1, first
		s.push(r)
		newest = &s.runs[len(s.runs)-1]
	}
	newest.Layer = uint8(s.layer)
	return newest
}

// limit is the layer that may pass now; a receiver that waits for a smaller picture gets the base of this one.
func (s *Stream) limit() int {
	switch {
	case s.target == s.current:
		return s.want
	case s.target < s.current:
		return s.layer &^ 7
	}
	return s.layer&^7 | s.want&7
}

// passes decides whether a frame of the current encoding goes out, one verdict for all packets of a frame.
// A frame may be left out when nothing that goes out depends on it.
func (s *Stream) passes(f *codec.Frame) bool {
	if f.Numbering == codec.Plain {
		return true
	}
	id := name(f)
	switch {
	case id == s.decided:
		return s.verdict
	case s.decided != 0 && !s.newer(f):
		if f.Numbering == codec.ByPicture {
			return int(f.Picture.TID) <= s.layer
		}
		return f.Present.Has(s.layer)
	}
	if f.Spatial != 0 {
		s.spatial = int(f.Spatial)
	}
	limit := s.limit()
	if f.Numbering == codec.ByPicture {
		tid := int(f.Picture.TID)
		switch {
		case f.Key || limit < s.layer:
			s.layer = limit & 7
		case limit > s.layer && tid == s.layer+1 && f.Picture.Sync:
			s.layer = tid
		}
		s.decided, s.verdict = id, tid <= s.layer
		return s.verdict
	}
	if f.Key || limit != s.layer {
		if limit>>3 >= s.spatial { // there is less than was asked for
			limit = (s.spatial-1)<<3 | limit&7
		}
		if f.Key {
			s.layer = limit
		} else {
			s.change(f, limit)
		}
	}
	s.decided, s.verdict = id, f.Present.Has(s.layer)
	if s.layer > codec.MaxTID && !f.Key && f.SID() == 0 {
		s.nested = s.verdict
	}
	return s.verdict
}

// change goes towards another layer as far as the frame, which is not a key frame, allows.
func (s *Stream) change(f *codec.Frame, limit int) {
	sid, tid := s.layer>>3, s.layer&7
	switch {
	case limit>>3 == sid && limit&7 < tid: // its frames do not depend on higher layers
		s.layer = limit
	case f.Present.Has(s.layer): // it can be decoded
		for t := limit & 7; t >= 0; t-- {
			to := limit&^7 | t
			if limit>>3 == sid && t <= tid {
				break
			}
			if f.Switch.Has(to) {
				s.layer = to
				break
			}
		}
	}
}

// name is that of the frame, plus known.
func name(f *codec.Frame) uint32 {
	switch f.Numbering {
	case codec.ByDescriptor:
		return known | uint32(f.Descriptor.Frame)
	case codec.ByPicture, codec.ByLayers:
		return known | uint32(f.Picture.SID)<<16 | uint32(f.Picture.ID)
	}
	return 0
}

// newer reports whether f comes after the frame that was decided last.
func (s *Stream) newer(f *codec.Frame) bool {
	last := uint16(s.decided)
	if f.Numbering == codec.ByDescriptor {
		return packet.Newer(f.Descriptor.Frame, last)
	}
	if f.Picture.ID == last {
		return f.Picture.SID > uint8(s.decided>>16&0x7f)
	}
	return newerPicture(f.Picture, last)
}

func newerPicture(p codec.Picture, than uint16) bool {
	if p.Wide {
		return (p.ID-than)&0x7fff < 0x4000
	}
	return (p.ID-than)&0x7f < 0x40
}

// drop leaves p, which is at the head, out and closes the gap.
func (s *Stream) drop(p *Packet) {
	id := name(&p.Frame)
	same := id != 0 && id == s.dropped
	newest := s.skip(p.Seq, same)
	if !same && p.Frame.Picture.IDAt != 0 && p.Frame.Codec == codec.VP8 { // VP9's name each other by difference
		newest.Picture--
	}
	s.dropped = id
}

// skip closes the numbers up to last, which is at the head: all that nothing went out for, if whole, else only
// last, so that what is missing before it stays visible and may still come. It returns the newest run.
func (s *Stream) skip(last int64, whole bool) *run {
	newest := &s.runs[len(s.runs)-1]
	from := last
	if whole {
		from = s.highest + 1
	}
	if newest.first >= from { // nothing has gone out under it
		newest.first = last + 1
		newest.seq -= last + 1 - from
	} else {
		r := *newest
		newest.last = from - 1
		r.first, r.seq = last+1, r.seq-(last+1-from)
		s.push(r)
		newest = &s.runs[len(s.runs)-1]
	}
	s.highest = last
	return newest
}

// Skip says that the packet of the current encoding with that number will never come, because it was dropped on
// purpose, as padding is.
func (s *Stream) Skip(encoding int, seq int64) {
	if encoding+1 == s.current && seq > s.highest {
		s.skip(seq, false)
	}
}

// Source maps an output number back to the packet that went out, or would have gone out, under it.
func (s *Stream) Source(seq uint16) (encoding int, in int64, o Offsets, ok bool) {
	if len(s.runs) == 0 {
		return 0, 0, o, false
	}
	n := packet.Nearest(s.highestOut(), seq)
	for i := len(s.runs) - 1; i >= 0; i-- {
		r := &s.runs[i]
		last := r.last
		if last == math.MaxInt64 {
			last = s.highest
		}
		if in = n - r.seq; r.first <= in && in <= last {
			return r.encoding, in, r.Offsets, true
		}
	}
	return 0, 0, o, false
}

// Newest is the highest output number so far.
func (s *Stream) Newest() uint16 { return uint16(s.highestOut()) }

func (s *Stream) highestOut() int64 {
	if s.current == 0 {
		return s.next - 1
	}
	return s.highest + s.runs[len(s.runs)-1].seq
}

// MapTimestamp maps a timestamp of an encoding, from its sender report; ok is false unless that encoding is the
// one being forwarded.
func (s *Stream) MapTimestamp(encoding int, timestamp uint32) (out uint32, ok bool) {
	if s.current == 0 || s.current != encoding+1 {
		return 0, false
	}
	return timestamp + s.runs[len(s.runs)-1].Timestamp, true
}

// Rewrite changes the numbers inside a packet that goes out with o: the picture of its payload, in place. It
// takes every byte from the picture as parsed, so that several receivers can share the payload one by one.
func Rewrite(payload []byte, f *codec.Frame, o Offsets) {
	if f.Picture.IDAt|f.Picture.TL0At != 0 {
		codec.RewritePicture(payload, &f.Picture, f.Picture.ID+o.Picture, f.Picture.TL0+o.TL0)
	}
}

// Ends reports whether a packet is the last of its picture for a receiver of o.Layer: it carries the marker then,
// which the sender gave to a higher layer.
func Ends(f *codec.Frame, o Offsets) bool {
	return f.End && f.SID() == int(o.Layer>>3) && f.Numbering != codec.Plain
}
