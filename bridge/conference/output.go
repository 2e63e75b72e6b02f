package conference

import (
	"encoding/binary"
	"io"
	"slices"
	"strconv"
	"time"

	"plenum/bridge/codec"
	"plenum/bridge/estimate"
	"plenum/bridge/packet"
	"plenum/bridge/project"
	"plenum/bridge/receive"
)

// maxOutputs bounds how many SSRCs are remembered for a receiver without rewriting, whose numbering must go on
// when a source returns. Beyond it those that are not in use give way, the oldest first.
const maxOutputs = 2048

// An output is one stream to one receiver: an SSRC of the bridge's choice on which sources follow one another,
// or, without rewriting, the first SSRC of one source.
type output struct {
	e         *Endpoint
	kind      Kind
	ssrc, rtx SSRC
	mid       string
	source    *source // nil: free
	index     int     // among the source's takers
	name      string  // of the source that it has or had last
	owner     EndpointID
	stream    project.Stream
	rtxSeq    uint16
	key       uint32 // timestamp of the last key frame, if there was one
	keyed     bool
	repairs   *repairs  // nil until something is asked for again
	used      time.Time // last packet, or when it was given
	askAt     time.Time // until then no key frame is asked for only to change the spatial layer

	hold     time.Time // packets wait until then; zero is not holding
	holdFrom int64     // the first that waits

	packets, octets uint32 // sent since the beginning, payload octets, for sender reports
	reportDue       bool   // a sender report should follow the packet just sent
}

// newOutput makes a stream to e. ssrc 0 is chosen at random.
func (e *Endpoint) newOutput(kind Kind, ssrc, rtx SSRC) *output {
	o := &output{e: e, kind: kind, ssrc: ssrc, rtx: rtx}
	o.stream.Clock = 90000
	if kind == Audio {
		o.stream.Clock = 48000
	}
	if ssrc == 0 {
		o.ssrc = e.freshSSRC()
		e.outputs[o.ssrc] = o
		if kind == Video {
			o.rtx = e.freshSSRC()
		}
		if e.caps.MIDDemux && e.ext.MID != 0 {
			o.mid = [2]string{Audio: "a", Video: "v"}[kind] + strconv.Itoa(e.mids[kind])
			e.mids[kind]++
		}
	}
	e.outputs[o.ssrc] = o
	return o
}

// freshSSRC is a random SSRC that is not in use towards the endpoint.
func (e *Endpoint) freshSSRC() SSRC {
	for {
		var b [4]byte
		if _, err := io.ReadFull(e.c.cfg.Rand, b[:]); err != nil {
			panic("conference: no randomness: " + err.Error())
		}
		ssrc := binary.BigEndian.Uint32(b[:])
		if ssrc == 0 || e.outputs[ssrc] != nil || ssrc == e.c.cfg.AudioSSRC || ssrc == e.c.cfg.VideoSSRC {
			continue
		}
		if slices.ContainsFunc(e.slots[Video], func(o *output) bool { return o.rtx == ssrc }) {
			continue
		}
		return ssrc
	}
}

// bind gives the output to a source.
func (o *output) bind(src *source, now time.Time) {
	if o.source == src {
		return
	}
	o.unbind()
	o.stream.Takeover()
	o.source, o.name, o.owner, o.used = src, src.name, src.owner.id, now
	o.index = len(src.takers)
	src.takers = append(src.takers, o)
	o.e.gets[src] = o
}

// unbind takes the output from its source; numbering stays for the next one.
func (o *output) unbind() {
	src := o.source
	if src == nil {
		return
	}
	o.release()
	o.stream.SetTarget(-1, 0)
	last := len(src.takers) - 1
	src.takers[o.index] = src.takers[last]
	src.takers[o.index].index = o.index
	src.takers[last] = nil
	src.takers = src.takers[:last]
	delete(o.e.gets, src)
	o.source = nil
}

// retire forgets a slot for good: its SSRC is not used again.
func (o *output) retire() {
	o.e.slots[o.kind] = slices.DeleteFunc(o.e.slots[o.kind], func(x *output) bool { return x == o })
	delete(o.e.outputs, o.ssrc)
}

func (o *output) release() {
	if !o.hold.IsZero() {
		o.hold = time.Time{}
		if o.source.holding--; o.source.holding == 0 {
			o.source.held = receive.History{}
		}
	}
}

func (o *output) mapping() Mapping {
	m := Mapping{Source: o.name, Owner: o.owner, SSRC: o.ssrc, RTX: o.rtx, MID: o.mid}
	if o.kind == Video {
		m.VideoType = o.source.label
	}
	return m
}

// slot returns the output on which receiver e gets src, nil when there is none to be had. fresh says that the
// client has to be told. With steal it may be taken from a source that the receiver does not want any more.
func (e *Endpoint) slot(src *source, steal bool, now time.Time) (o *output, fresh bool) {
	if o := e.gets[src]; o != nil {
		return o, false
	}
	if !e.caps.Rewriting {
		return e.original(src, now), false
	}
	slots := e.slots[src.kind]
	limit := e.c.cfg.AudioSlots
	if src.kind == Video {
		limit = e.c.cfg.VideoSlots
	}
	var free, eldest *output
	for _, o := range slots {
		switch {
		case o.source == nil && o.name == src.name:
			o.bind(src, now) // it comes back to where it was
			return o, true
		case len(slots) < limit || !steal:
		case o.source == nil:
			free = older(free, o)
		case src.kind == Video && e.wants[o.source] == 0, src.kind == Audio && now.Sub(o.used) > time.Second:
			eldest = older(eldest, o)
		}
	}
	switch {
	case len(slots) < limit:
		o = e.newOutput(src.kind, 0, 0)
		e.slots[src.kind] = append(slots, o)
	case free != nil:
		o = free
	case eldest != nil:
		o = eldest
		if src.kind == Audio {
			o.source.stale = true // it has to look for another slot
		}
	default:
		return nil, false
	}
	o.bind(src, now)
	return o, true
}

func older(a, b *output) *output {
	if a == nil || b.used.Before(a.used) {
		return b
	}
	return a
}

// original returns the output of a receiver without rewriting: the source's own first SSRC.
func (e *Endpoint) original(src *source, now time.Time) *output {
	first := src.encodings[0]
	o := e.outputs[first.SSRC]
	if o == nil {
		if len(e.outputs) >= maxOutputs && !e.forgetOutputs() {
			return nil
		}
		o = e.newOutput(src.kind, first.SSRC, first.RTX)
	}
	if o.source != nil && o.source != src || o.kind != src.kind {
		return nil // another participant has the same SSRC
	}
	o.bind(src, now)
	return o
}

// forgetOutputs makes room for new sources by forgetting old ones. It reports whether there is some.
func (e *Endpoint) forgetOutputs() bool {
	var idle []*output
	for _, o := range e.outputs {
		if o.source == nil {
			idle = append(idle, o)
		}
	}
	slices.SortFunc(idle, func(a, b *output) int { return a.used.Compare(b.used) })
	for _, o := range idle[:min(len(idle), maxOutputs/4)] {
		delete(e.outputs, o.ssrc)
	}
	return len(idle) > 0
}

// send offers one packet to the output's projection and sends it when it passes.
func (o *output) send(p *project.Packet) {
	var out project.Output
	if !o.stream.Accept(p, &out) {
		return
	}
	if out.Switched {
		o.reportDue = true
	}
	project.Rewrite(p.RTP.Payload, &p.Frame, out.Offsets)
	h := packet.Header{
		PT: p.RTP.PT(), Marker: p.RTP.Marker() || project.Ends(&p.Frame, out.Offsets), Seq: out.Seq, Timestamp: out.Timestamp, SSRC: o.ssrc,
	}
	header, tag := o.header(h, &p.RTP, &p.Frame, out.Offsets)
	payload := p.RTP.Payload
	if p.Plain != nil && !o.e.redundant(p) {
		payload, header[1] = p.Plain, header[1]&0x80|p.PlainPT
		o.e.c.stats.Stripped++
	}
	if p.Padded {
		header[0] |= 0x20
		payload = p.RTP.Data[len(p.RTP.Header) : len(p.RTP.Data)+1]
	}
	o.count(len(header), len(payload))
	o.used = p.Arrival
	if p.Frame.Key {
		o.key, o.keyed = out.Timestamp, true
	}
	tag.key = o.keyed && o.key == out.Timestamp
	o.e.transmit(header, payload, tag, p.Arrival)
}

// header builds an outgoing header in the conference's scratch, and says where its transport-wide number goes.
func (o *output) header(h packet.Header, in *packet.RTP, f *codec.Frame, off project.Offsets) ([]byte, tag) {
	e := o.e
	b := h.Append(e.c.scratch.header[:0])
	var descriptor []byte
	if f.Numbering == codec.ByDescriptor && e.ext.DependencyDescriptor != 0 {
		descriptor = in.Extension(o.source.owner.ext.DependencyDescriptor)
		if f.Descriptor.HasStructure {
			descriptor = e.c.scratch.masks.of(descriptor, off.Layer)
		}
	}
	b, x := packet.BeginExtensions(b, len(descriptor) > 16)
	if o.kind == Audio {
		if level := in.Extension(o.source.owner.ext.AudioLevel); len(level) == 1 && e.ext.AudioLevel != 0 {
			b = x.Add(b, e.ext.AudioLevel, 1)
			b[len(b)-1] = level[0]
		}
	} else {
		if len(descriptor) >= 3 {
			b = x.Add(b, e.ext.DependencyDescriptor, len(descriptor))
			d := b[len(b)-len(descriptor):]
			copy(d, descriptor)
			codec.RewriteDescriptor(d, off.Frame, off.Template)
		}
	}
	t := tag{kind: estimate.Kind(o.kind)}
	if id := e.ext.TransportCC; id != 0 && e.down.est != nil && (o.kind == Video || e.down.est.Mentions(estimate.Audio)) {
		b = x.Add(b, id, 2)
		t.at = uint16(len(b) - 2)
	}
	if o.mid != "" {
		b = x.Add(b, e.ext.MID, len(o.mid))
		copy(b[len(b)-len(o.mid):], o.mid)
	}
	return x.End(b, 0), t
}

func (o *output) count(header, payload int) {
	o.packets++
	o.octets += uint32(payload)
	n := uint64(header + payload)
	o.e.packetsOut++
	o.e.bytesOut += n
	o.e.c.stats.PacketsOut++
	o.e.c.stats.BytesOut += n
}

const (
	// The retransmissions that a receiver can get in a burst, and per second: NACKs may not be used to amplify.
	rtxBurst  = 512
	rtxPerSec = 2048
)

// repairs remembers what was retransmitted when, so that requests for what is on its way bring nothing more.
type repairs [64]struct {
	seq uint16
	at  time.Time
}

// due reports whether seq may be sent again, and takes it as sent.
func (r *repairs) due(seq uint16, pause time.Duration, now time.Time) bool {
	x := &r[seq%uint16(len(r))]
	if x.seq == seq && now.Sub(x.at) < pause {
		return false
	}
	x.seq, x.at = seq, now
	return true
}

// repairPause is how long a retransmission is under way, so that another is asked for in vain. The estimator's round trip
// includes the pause before its feedback.
func (e *Endpoint) repairPause() time.Duration {
	if e.down.est == nil {
		return minRepairPause
	}
	return min(max(e.down.est.RTT()/2, minRepairPause), maxRepairPause)
}

// mayRepair reports whether n bytes may be retransmitted: repairing what a full queue has dropped must not keep it full.
func (e *Endpoint) mayRepair(n int, now time.Time) bool {
	est := e.down.est
	if est == nil || !est.Known() {
		return true
	}
	rate := float64(est.Bitrate()) / 8 * repairShare
	e.repairRoom = min(e.repairRoom+rate*min(now.Sub(e.repairedAt), time.Second).Seconds(), max(rate/2, minRepairBurst))
	e.repairedAt = now
	if e.repairRoom < 0 {
		return false
	}
	e.repairRoom -= float64(n)
	return true
}

const (
	repairShare    = 0.35   // of the estimate
	minRepairBurst = 12_000 // bytes
)

const (
	minRepairPause = 10 * time.Millisecond
	maxRepairPause = 100 * time.Millisecond
)

// resend answers a NACK of one output number (RFC 4588). Without an RTX format or SSRC nothing is sent: the same
// number must not be sealed over other bytes, and the header extensions would differ.
func (o *output) resend(seq uint16, now time.Time) {
	e := o.e
	if o.source == nil || o.rtx == 0 || e.rtxBudget <= 0 {
		return
	}
	if o.repairs == nil {
		o.repairs = new(repairs)
	}
	if !o.repairs.due(seq, e.repairPause(), now) {
		e.c.stats.RetransmitRepeated++
		return
	}
	header, payload, tag := o.copyOf(seq)
	if header == nil {
		e.c.stats.RetransmitMissed++
		return
	}
	if !e.mayRepair(len(header)+len(payload), now) {
		e.c.stats.RetransmitMissed++
		return
	}
	for copies := e.repairCopies(); copies > 0 && header != nil; copies-- {
		e.rtxBudget--
		e.c.stats.Retransmitted++
		tag.repair = true
		e.counted(header, payload)
		e.transmit(header, payload, tag, now)
		if copies > 1 {
			header, payload, tag = o.copyOf(seq)
		}
	}
}

// repairCopies is how often a packet is sent again at once: twice where the path loses some whatever is sent, for a repair
// that is lost too costs a visible pause.
func (e *Endpoint) repairCopies() int {
	if est := e.down.est; est != nil && est.Known() && !est.Congested() {
		if own := est.OwnLoss(); own > 0.005 && own < 0.05 { // more would cost too much of the way
			return 2
		}
	}
	return 1
}

// again sends something of what went out lately once more, for a probe, and returns how long it is; 0 when there is
// nothing.
func (o *output) again(now time.Time) int {
	if o.source == nil || o.rtx == 0 || o.packets == 0 || now.Sub(o.used) > time.Second {
		return 0
	}
	o.e.down.repeat++
	header, payload, tag := o.copyOf(o.stream.Newest() - o.e.down.repeat%16)
	if header == nil {
		return 0
	}
	tag.kind = estimate.Padding
	o.e.counted(header, payload)
	o.e.emit(header, payload, tag, now)
	return len(header) + len(payload)
}

// copyOf makes the retransmission of one output number (RFC 4588), in the conference's scratch; nil when it cannot.
func (o *output) copyOf(seq uint16) (header, payload []byte, t tag) {
	e, src := o.e, o.source
	encoding, in, off, ok := o.stream.Source(seq)
	if !ok {
		return nil, nil, t
	}
	if current := o.stream.Current(); current >= 0 && current != encoding && e.down.est != nil && e.down.est.Congested() {
		return nil, nil, t // what came before the key frame of another encoding can be done without
	}
	r, ok := src.encodings[encoding].history.Get(in)
	if !ok {
		return nil, nil, t
	}
	format := e.formats[r.PT()]
	if format.rtx == 0 || len(r.Payload)+2 > len(e.c.scratch.payload) {
		return nil, nil, t
	}
	b := append(e.c.scratch.payload[:0], byte(seq>>8), byte(seq))
	b = append(b, r.Payload...)
	f := &e.c.scratch.frame
	src.encodings[encoding].reader.Again(format.codec, b[2:], r.Extension(src.owner.ext.DependencyDescriptor), f)
	project.Rewrite(b[2:], f, off)
	e.c.scratch.masks.reset()
	o.rtxSeq++
	h := packet.Header{
		PT: format.rtx, Marker: r.Marker() || project.Ends(f, off), Seq: o.rtxSeq, Timestamp: r.Timestamp() + off.Timestamp, SSRC: o.rtx,
	}
	header, t = o.header(h, &r, f, off)
	return header, b, t
}

// counted counts a packet to the endpoint that no stream of media counts.
func (e *Endpoint) counted(header, payload []byte) {
	n := uint64(len(header) + len(payload))
	e.packetsOut++
	e.bytesOut += n
	e.c.stats.PacketsOut++
	e.c.stats.BytesOut += n
}

// report sends a sender report: the last one of the encoding that is forwarded, mapped and brought up to now.
func (o *output) report(now time.Time) {
	o.reportDue = false
	if o.source == nil || o.packets == 0 {
		return
	}
	current := o.stream.Current()
	if current < 0 {
		return
	}
	enc := o.source.encodings[current]
	sr, at, ok := enc.stream.LastSR()
	if !ok {
		return
	}
	ts, ok := o.stream.MapTimestamp(current, sr.Timestamp)
	if !ok {
		return
	}
	elapsed := now.Sub(at)
	sr.NTP += uint64(elapsed/time.Second)<<32 + uint64(elapsed%time.Second)<<32/uint64(time.Second)
	ts += uint32(int64(elapsed/time.Microsecond) * int64(o.stream.Clock) / 1e6)
	sr.SSRC, sr.Timestamp, sr.Packets, sr.Octets = o.ssrc, ts, o.packets, o.octets
	o.e.leg.SendRTCP(packet.AppendSR(o.e.c.scratch.rtcp[:0], sr))
}
