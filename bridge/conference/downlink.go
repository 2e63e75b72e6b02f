package conference

import (
	"encoding/binary"
	"math"
	"slices"
	"time"

	"plenum/bridge/codec"
	"plenum/bridge/estimate"
	"plenum/bridge/pace"
	"plenum/bridge/packet"
	"plenum/bridge/receive"
)

const (
	paceTick = 5 * time.Millisecond
	// followEvery bounds how often layers are chosen anew because somebody's way has changed.
	followEvery = 10 * time.Millisecond
	// Bursts go out faster than the estimate by paceFactor. Where no queue has been seen of late it is calmFactor, or a share
	// of what earlier bursts have shown of the path: the estimate is never much more than what is wanted.
	paceFactor = 1.5
	calmFactor = 2.5
	burstShare = 0.75
	// firstLimit is for the moment in which an estimate is still to come, in bits per second.
	firstLimit = 2_500_000
	firstFor   = time.Second

	// A budget goes down at once, and up when it has been higher by raiseBy for raiseAfter; in the first settleFor of
	// a connection without waiting.
	raiseBy    = 1.05
	raiseAfter = time.Second
	settleFor  = 2 * time.Second
	// What had to be taken back within regretIn is tried again later and later, at most maxRaise; not so after calm.
	regretIn = 6 * time.Second
	maxRaise = 16 * time.Second
	calm     = 40 * time.Second
)

// downlink is the way to one receiver: what it carries, and how it is used.
type downlink struct {
	est    *estimate.Estimator // nil before the connection
	since  time.Time
	pace   pace.Pacer
	listed bool // among those that the conference paces

	beside receive.Rate // audio and retransmissions, on the wire
	limit  int64        // for video, bits per second
	used   int64        // of limit, when layers were chosen last
	taken  int64        // by the video that was chosen
	ideal  int64        // by all video that is wanted

	rising  time.Time     // since when the budget is higher than the limit
	lowest  int64         // in that time
	queued  bool          // waits for allocation
	raised  time.Time     // when the limit last went up
	lossy   time.Time     // when it last lost so much that redundant audio helps
	patient time.Duration // for how long it must be higher before it goes up; 0 is raiseAfter
	changes uint64

	padding uint16 // number of the last padding packet on the bridge's own SSRC
	repeat  uint16 // what was repeated last to probe, counted
}

// begin starts with a new connection.
func (d *downlink) begin(spare *pace.Spare, now time.Time) {
	d.pace.Spare = spare
	if d.est == nil {
		d.est, d.since, d.limit = estimate.New(now), now, estimate.Unlimited
	}
}

// A tag is what transmit needs to know of a packet beside its bytes.
type tag struct {
	at     uint16 // where in the header the transport-wide number goes; 0 none
	kind   estimate.Kind
	repair bool
	key    bool // part of a key frame
}

func (t tag) pack() uint32 {
	v := uint32(t.at) | uint32(t.kind)<<16
	if t.repair {
		v |= 1 << 24
	}
	return v
}

func unpack(v uint32) tag {
	return tag{at: uint16(v), kind: estimate.Kind(v >> 16), repair: v>>24 != 0}
}

// transmit sends a packet to the endpoint, or queues it when it is part of a burst that its way cannot take. Both slices
// are borrowed.
func (e *Endpoint) transmit(header, payload []byte, t tag, now time.Time) {
	d := &e.down
	n := len(header) + len(payload)
	if t.kind == estimate.Audio || t.repair {
		d.beside.Add(n+estimate.Overhead, now)
	}
	// Key frames and repairs are bursts, and what follows them in order; anything else goes straight out.
	waiting, _ := d.pace.Waiting()
	if !d.pace.Pass(n, t.kind == estimate.Audio || waiting == 0 && !t.key && !t.repair, now) {
		d.pace.Put(header, payload, t.pack())
		e.c.stats.Paced++
		e.release(now)
		e.list()
		return
	}
	e.emit(header, payload, t, now)
}

// release sends what is due of what waits.
func (e *Endpoint) release(now time.Time) {
	for it, ok := e.down.pace.Next(now); ok; it, ok = e.down.pace.Next(now) {
		e.emit(it.Header, it.Payload, unpack(it.Tag), now)
	}
}

// emit gives a packet its transport-wide number and sends it.
func (e *Endpoint) emit(header, payload []byte, t tag, now time.Time) {
	if t.at != 0 {
		seq := e.down.est.Sent(len(header)+len(payload), t.kind, now)
		binary.BigEndian.PutUint16(header[t.at:], seq)
	}
	e.leg.SendRTP(header, payload)
}

// list has the conference call work every few milliseconds.
func (e *Endpoint) list() {
	if !e.down.listed {
		e.down.listed = true
		e.c.paced = append(e.c.paced, e)
	}
}

// paceAll sends what is due to those who have something to be paced.
func (c *Conference) paceAll(now time.Time) {
	kept := c.paced[:0]
	for _, e := range c.paced {
		if c.endpoints[e.id] == e && e.work(now) {
			kept = append(kept, e)
		} else {
			e.down.listed = false
		}
	}
	clear(c.paced[len(kept):])
	c.paced = kept
}

// work sends what is due of the queue and of a probe, and reports whether there is more to come.
func (e *Endpoint) work(now time.Time) bool {
	e.release(now)
	waiting, _ := e.down.pace.Waiting()
	return e.probe(now) || waiting > 0
}

// probe sends padding while the estimator finds out whether there is room for more. It reports whether it goes on.
func (e *Endpoint) probe(now time.Time) bool {
	d := &e.down
	if d.est == nil || e.ext.TransportCC == 0 || !d.est.Probing(now) {
		return false
	}
	for n := d.est.Padding(now); n > 0; {
		sent := e.pad(n, now)
		if sent == 0 {
			return false
		}
		n -= sent
		e.c.stats.Probing += uint64(sent)
	}
	return true
}

// pad sends one packet for the sake of its bytes: something of what was sent lately, once more, or else only padding on
// the bridge's own SSRC.
func (e *Endpoint) pad(n int, now time.Time) int {
	if e.down.est.Known() {
		for _, o := range e.slots[Video] {
			if sent := o.again(now); sent > 0 {
				return sent
			}
		}
	}
	pt, ok := e.videoFormat()
	if !ok {
		return 0
	}
	d := &e.down
	d.padding++
	h := packet.Header{PT: pt, Seq: d.padding, SSRC: e.c.cfg.VideoSSRC}
	b, x := packet.BeginExtensions(h.Append(e.c.scratch.header[:0]), false)
	b = x.Add(b, e.ext.TransportCC, 2)
	t := tag{at: uint16(len(b) - 2), kind: estimate.Padding}
	b = x.End(b, 0)
	b[0] |= 0x20
	size := min(max(n-len(b), 1), 255)
	payload := e.c.scratch.payload[:size]
	clear(payload)
	payload[size-1] = byte(size)
	e.counted(b, payload)
	e.emit(b, payload, t, now)
	return len(b) + size
}

// videoFormat is a payload type on which the endpoint expects video.
func (e *Endpoint) videoFormat() (pt uint8, ok bool) {
	for i := range e.formats {
		switch f := &e.formats[i]; f.codec {
		case codec.VP8, codec.VP9, codec.H264, codec.AV1:
			return uint8(i), true
		}
	}
	return 0, false
}

// SetCeiling bounds what each receiver gets, in bits per second, whatever its path carries; sound is not held back. 0 is no
// bound.
func (c *Conference) SetCeiling(bps int64, now time.Time) {
	c.ceiling = bps
	for _, e := range c.order {
		e.rebudget(now)
	}
}

// budget is what video may take now.
func (e *Endpoint) budget(now time.Time) int64 {
	b := e.share(now)
	if top := e.c.ceiling; top > 0 {
		b = min(b, max(top-e.down.beside.BPS(now), 0))
	}
	return b
}

// share is what of the path video may take.
func (e *Endpoint) share(now time.Time) int64 {
	est := e.down.est
	switch {
	case est == nil:
		return estimate.Unlimited
	case !est.Known():
		if e.ext.TransportCC != 0 && now.Sub(e.down.since) < firstFor {
			return firstLimit
		}
		return estimate.Unlimited
	}
	return max(est.Budget()-e.down.beside.BPS(now), 0)
}

// rebudget follows the estimate after feedback: allocation is done anew when what was chosen does not fit any more, and
// when there has been room for more for a while.
func (e *Endpoint) rebudget(now time.Time) {
	d := &e.down
	if d.est == nil {
		return
	}
	if bps := d.est.Bitrate(); bps != estimate.Unlimited {
		rate := paceFactor * float64(bps)
		switch burst := d.est.Burst(); {
		case !d.est.Calm():
		case burst > 0:
			rate = max(rate, burstShare*float64(burst))
		default:
			rate = calmFactor * float64(bps)
		}
		d.pace.Limit(int64(rate))
	}
	b := e.budget(now)
	switch {
	case b <= d.limit || d.limit == estimate.Unlimited:
		d.rising = time.Time{}
		was := d.limit
		d.limit = b
		if d.taken <= b && (was != estimate.Unlimited || d.ideal <= b) || float64(b) > 0.97*float64(d.used) {
			return
		}
		if now.Sub(d.raised) < regretIn {
			d.patient = min(2*max(d.patient, raiseAfter), maxRaise)
			d.raised = time.Time{}
		}
	case float64(b) < raiseBy*float64(d.limit):
		d.rising = time.Time{}
		return
	default:
		if d.rising.IsZero() {
			d.rising, d.lowest = now, math.MaxInt64
		}
		d.lowest = min(d.lowest, b)
		if now.Sub(d.raised) > calm && now.Sub(d.rising) > regretIn {
			d.patient = 0
		}
		if now.Sub(d.rising) < max(d.patient, raiseAfter) && now.Sub(d.since) > settleFor {
			return
		}
		d.rising = time.Time{}
		enough := d.limit >= d.ideal
		d.limit = d.lowest
		if enough {
			return
		}
		d.raised = now
	}
	if !d.queued {
		d.queued = true
		e.c.rebudget = append(e.c.rebudget, e)
	}
}

// tickDownlink looks every now and then whether to probe, and whether anything is still heard of the way.
func (e *Endpoint) tickDownlink(now time.Time) {
	d := &e.down
	before := d.est.Bitrate()
	d.est.Tick(now)
	if d.est.Bitrate() != before || d.limit == firstLimit && !d.est.Known() {
		e.rebudget(now)
	}
	if !d.listed && e.connected && e.probe(now) {
		e.list()
	}
}

// follow chooses layers anew for those whose way has changed.
func (c *Conference) follow(now time.Time) {
	if len(c.rebudget) == 0 || now.Sub(c.followed) < followEvery {
		return
	}
	c.followed = now
	for _, e := range c.rebudget {
		e.down.queued = false
	}
	c.rebudget = slices.DeleteFunc(c.rebudget, func(e *Endpoint) bool { return c.endpoints[e.id] != e })
	c.allocate(c.rebudget, now)
	clear(c.rebudget)
	c.rebudget = c.rebudget[:0]
}
