package conference

import (
	"encoding/binary"
	"time"

	"plenum/bridge/codec"
	"plenum/bridge/estimate"
	"plenum/bridge/packet"
	"plenum/bridge/project"
)

// maxHeld is how many audio packets of one source may wait for a client to apply a map.
const maxHeld = 100

// ReceiveRTP takes one decrypted packet from the endpoint. It reads it once and puts it on its source's batch;
// b.Data is borrowed, and changed, until Flush returns.
func (e *Endpoint) ReceiveRTP(b *packet.Buf, now time.Time) {
	c := e.c
	e.heard, c.lastMedia = now, now
	e.packetsIn++
	e.bytesIn += uint64(len(b.Data))
	c.stats.PacketsIn++
	c.stats.BytesIn += uint64(len(b.Data))
	r, err := packet.ParseRTP(b.Data)
	if err != nil {
		c.stats.Malformed++
		return
	}
	ssrc := r.SSRC()
	if tcc := r.Extension(e.ext.TransportCC); len(tcc) == 2 {
		e.feedback.Arrive(binary.BigEndian.Uint16(tcc), ssrc, r.Marker(), now)
		if !e.fed && e.feedback.Due(now) {
			e.fed = true
			c.fed = append(c.fed, e)
		}
	}
	s, ok := e.streams[ssrc]
	if !ok {
		c.stats.Unsignalled++
		return
	}
	if s.source.kind == Audio {
		e.receiveAudio(s.source, &r, now)
	} else {
		e.receiveVideo(s, &r, now)
	}
}

func (e *Endpoint) receiveAudio(src *source, r *packet.RTP, now time.Time) {
	c := e.c
	f := &e.formats[r.PT()]
	if !f.known || e.muted[Audio] {
		return
	}
	enc := src.encodings[0]
	seq, ok := enc.stream.Arrive(r.Seq(), r.Timestamp(), false, now)
	if !ok {
		c.stats.Duplicates++
		return
	}
	enc.came, enc.active = now, true
	enc.rates[0][0].Add(len(r.Data)+estimate.Overhead, now)
	level, known := codec.AudioLevel(r.Extension(e.ext.AudioLevel))
	if known {
		c.speech.Observe(e.id, level, now)
	}
	// Silence passes for four packets; the rest is left out and the numbering closed up over it.
	if known && level == silence {
		src.silent++
		if src.silent > silentPackets {
			c.stats.Silence++
			src.leaveOut(seq)
			return
		}
	} else {
		src.silent = 0
		src.spoke = now
	}
	if known && len(c.order) > c.cfg.LoudestFrom && !c.loud.Loud(src, &src.score, level, now) && e.id != c.dominant && c.included[src.name] == 0 {
		c.stats.Quiet++
		src.leaveOut(seq)
		return
	}
	if seq <= src.cutAt {
		return // late, and its number is closed up
	}
	src.last = max(src.last, seq)
	p := src.push(c)
	*p = project.Packet{RTP: *r, Seq: seq - src.cut, Arrival: now, Capture: enc.stream.Capture(r.Timestamp())}
	p.Frame.Codec, p.Frame.Start = codec.Opus, true
	if f.codec == codec.RED {
		src.red.read(e, p)
	}
	src.newest = max(src.newest, p.Seq)
	if src.holding > 0 {
		src.held.Put(p.Seq, r, now)
	}
}

// leaveOut closes the numbering up over a packet that nobody gets.
func (src *source) leaveOut(seq int64) {
	if seq > src.last && seq > src.cutAt {
		src.cut += seq - max(src.last, src.cutAt)
		src.cutAt = seq
	}
}

func (e *Endpoint) receiveVideo(s stream, r *packet.RTP, now time.Time) {
	c, src := e.c, s.source
	enc := src.encodings[s.encoding]
	if e.muted[Video] {
		return
	}
	repaired := false
	if s.rtx {
		// RFC 4588: the original packet, behind its sequence number. Without a payload it is padding.
		f := &e.formats[r.PT()]
		if f.codec != codec.RTX || len(r.Payload) < 2 {
			return
		}
		marker := r.Data[1] & 0x80
		r.Data[1] = marker | f.rtx
		copy(r.Data[2:4], r.Payload[:2])
		binary.BigEndian.PutUint32(r.Data[8:], enc.SSRC)
		r.Payload = r.Payload[2:]
		repaired = true
	}
	f := &e.formats[r.PT()]
	if !f.known || f.codec == codec.RTX {
		return
	}
	if repaired && len(r.Payload) == 0 {
		return
	}
	seq, ok := enc.stream.Arrive(r.Seq(), r.Timestamp(), repaired, now)
	if !ok {
		c.stats.Duplicates++
		return
	}
	if enc.stream.Expecting() && !enc.nacked {
		enc.nacked = true
		c.nacks = append(c.nacks, nackTarget{e, enc})
	}
	if len(r.Payload) == 0 { // padding: nobody gets it
		for _, o := range src.takers {
			o.stream.Skip(s.encoding, seq)
		}
		return
	}
	p := src.push(c)
	*p = project.Packet{RTP: *r, Seq: seq, Encoding: s.encoding, Arrival: now, Capture: enc.stream.Capture(r.Timestamp())}
	enc.reader.Read(f.codec, r.Payload, r.Extension(e.ext.DependencyDescriptor), r.Timestamp(), &p.Frame)
	enc.rates[p.Frame.SID()][p.Frame.TID()].Add(len(r.Data)+estimate.Overhead, now)
	enc.history.Put(seq, r, now)
	enc.came = now
	if p.Frame.Key {
		src.keys.Came(s.encoding)
	}
	enc.described = p.Frame.Numbering == codec.ByDescriptor
	spatial := enc.spatial
	if enc.learn(&p.Frame, r.Marker()) || !enc.active {
		src.woken = src.woken || !enc.active || enc.spatial != spatial
		enc.active, c.stale = true, true
	}
}

// push makes room for one more packet in the source's batch.
func (src *source) push(c *Conference) *project.Packet {
	if len(src.batch) == 0 {
		c.pending = append(c.pending, src)
	}
	n := len(src.batch)
	if n < cap(src.batch) {
		src.batch = src.batch[:n+1]
	} else {
		src.batch = append(src.batch, project.Packet{})
	}
	return &src.batch[n]
}

// Flush fans out what arrived since the last Flush: source by source, to each receiver that takes the source,
// all its packets. Buffers lent to ReceiveRTP are free after it.
func (c *Conference) Flush(now time.Time) {
	if c.stale {
		c.wake(now)
	}
	if c.stale || c.next > 0 {
		c.reallocate(now)
	}
	c.follow(now)
	for _, src := range c.pending {
		if src.kind == Audio {
			if src.stale {
				c.findListeners(src, now)
			}
			c.fanOut(src, now)
		}
	}
	for _, src := range c.pending {
		if src.kind == Video {
			c.fanOut(src, now)
			c.askKey(src, now)
		}
	}
	clear(c.pending) // whoever leaves is to be collected
	c.pending = c.pending[:0]
	for _, n := range c.nacks {
		n.enc.nacked = false
		c.nack(n.owner, n.enc, now)
	}
	clear(c.nacks)
	c.nacks = c.nacks[:0]
	for _, e := range c.fed {
		e.fed = false
		c.sendFeedback(e, now)
	}
	clear(c.fed)
	c.fed = c.fed[:0]
}

// fanOut sends a source's batch to everybody who takes it.
func (c *Conference) fanOut(src *source, now time.Time) {
	if src.kind == Video {
		level(src.batch)
		c.scratch.masks.reset()
	}
	for _, o := range src.takers {
		if !o.hold.IsZero() {
			c.unhold(o, now)
			continue
		}
		for i := range src.batch {
			o.send(&src.batch[i])
		}
		if o.reportDue {
			o.report(now)
		}
	}
	src.batch = src.batch[:0]
}

// findListeners gives the receivers that are not among the takers of an audio source an output, announced
// before its first packet. Silence needs none.
func (c *Conference) findListeners(src *source, now time.Time) {
	if src.silent > 0 {
		return
	}
	src.stale = false
	for _, e := range c.order {
		if !e.hears(src) {
			continue
		}
		if !e.ready() {
			continue // Connected and ChannelOpened make the source stale again
		}
		o, fresh := e.slot(src, true, now)
		if o == nil {
			src.stale = true
			continue
		}
		if fresh {
			e.tell(Audio, append(c.scratch.mappings[:0], o.mapping()))
			if o.packets == 0 {
				o.hold, o.holdFrom = now.Add(c.cfg.AudioHold), src.batch[0].Seq
				src.holding++
			}
		}
		o.stream.SetTarget(0, project.AllLayers)
	}
	if src.holding > 0 {
		for i := range src.batch {
			src.held.Put(src.batch[i].Seq, &src.batch[i].RTP, now)
		}
	}
}

// unhold sends what waits for o when its time has come: all of it is in the source's history, in order.
func (c *Conference) unhold(o *output, now time.Time) {
	if now.Before(o.hold) {
		return
	}
	src := o.source
	enc := src.encodings[0]
	for seq := max(o.holdFrom, src.newest-maxHeld); seq <= src.newest; seq++ {
		if r, ok := src.held.Get(seq); ok {
			p := project.Packet{RTP: r, Seq: seq, Arrival: now, Capture: enc.stream.Capture(r.Timestamp())}
			p.Frame.Codec, p.Frame.Start = codec.Opus, true
			if src.owner.formats[r.PT()].codec == codec.RED {
				src.red.read(src.owner, &p)
			}
			o.send(&p)
		}
	}
	o.release()
	if o.reportDue {
		o.report(now)
	}
}

// askKey asks a source's sender for a key frame when somebody needs one and the pace allows it.
func (c *Conference) askKey(src *source, now time.Time) {
	if i, ok := src.keys.Due(now); ok {
		c.stats.PLIsOut++
		src.owner.leg.SendRTCP(packet.AppendPLI(c.scratch.rtcp[:0], c.cfg.VideoSSRC, src.encodings[min(i, len(src.encodings)-1)].SSRC))
	}
}

func (c *Conference) nack(e *Endpoint, enc *encoding, now time.Time) {
	c.scratch.seqs = enc.stream.Missing(c.scratch.seqs[:0], now)
	if len(c.scratch.seqs) == 0 {
		return
	}
	c.stats.NACKsOut += uint64(len(c.scratch.seqs))
	e.leg.SendRTCP(packet.AppendNACK(c.scratch.rtcp[:0], c.cfg.VideoSSRC, enc.SSRC, c.scratch.seqs))
}
