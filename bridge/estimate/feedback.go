package estimate

import (
	"encoding/binary"
	"time"
)

// maxCount bounds the packets that one feedback is about. Those that receivers send are about hundreds.
const maxCount = 8192

// Feedback takes the body of a transport-wide feedback (draft-holmer-rmcat-transport-wide-cc-extensions-01 §3.1), as
// packet.RTCP has it: from the sender's SSRC on. It reports false for what is malformed or about packets that were never
// sent, which changes nothing. It does not allocate.
func (e *Estimator) Feedback(body []byte, now time.Time) bool {
	f, ok := parse(body)
	if ok {
		f.first = e.history.unwrap(f.base)
		ok = e.history.ring != nil && f.first >= 1 && f.first+int64(f.count) <= e.history.next
	}
	if !ok {
		e.stats.Bogus++
		return false
	}
	at := e.micros(now)
	e.heard, e.oldest = true, 0
	if e.silent > 0 {
		e.returned(now)
	} else if gap := f.first - e.history.reported; gap > 0 {
		e.missed(f.first)
	}
	clock := e.clock.unwrap(f.reference)
	var newest *record
	deltas := f.deltas
	for n := f.first; f.next(); n++ {
		r := e.history.get(n)
		if f.symbol == 0 {
			if r != nil && r.state() == underway {
				r.become(lost)
				if e.seen[r.kind()] && n >= e.fresh { // else the receiver may not know the number in packets of that kind
					e.loss.add(true)
				}
			}
			continue
		}
		var d int64
		if f.symbol == 1 {
			d, deltas = int64(deltas[0]), deltas[1:]
		} else {
			d, deltas = int64(int16(binary.BigEndian.Uint16(deltas))), deltas[2:]
		}
		clock += d * 250
		if r == nil || r.state() == received {
			continue
		}
		e.receivedAt(n, r, clock, at)
		newest = r
	}
	if end := f.first + int64(f.count); end > e.history.reported {
		e.history.reported = end
	}
	if newest != nil {
		rtt := newest.since(at)
		if e.rtt == 0 {
			e.rtt = rtt
		}
		e.rtt += (rtt - e.rtt) / 8
	}
	e.delay.flush()
	e.learned(at)
	return true
}

// receivedAt notes that packet n arrived, at the receiver's time.
func (e *Estimator) receivedAt(n int64, r *record, arrival, at micros) {
	if r.state() == lost {
		if e.seen[r.kind()] {
			e.loss.undo()
		}
	} else {
		e.loss.add(false)
	}
	late := r.state() == lost || n < e.history.reported
	r.become(received)
	k := r.kind()
	e.seen[k] = true
	if k < Padding {
		e.deaf[k] = 0
	}
	e.arrived.add(int(r.size), arrival)
	e.probes.received(n, int(r.size), arrival)
	if !late && n >= e.fresh { // what was overtaken, or went another way, says nothing of a queue
		e.delay.add(at-r.since(at), arrival, micros(r.burst)<<burstShift)
		e.trains.add(n, r, arrival)
	}
}

// missed accounts for packets of which a lost feedback told: they have arrived as others have.
func (e *Estimator) missed(until int64) {
	share := 1 - e.loss.recent
	for n := max(e.history.reported, until-maxCount); n < until; n++ {
		if r := e.history.get(n); r != nil && r.state() == underway {
			e.arrived.late(int(float64(r.size) * share))
		}
	}
}

// A report is a feedback while it is being read.
type report struct {
	base      uint16
	count     int
	reference uint32 // 24 bits, of 64 ms
	chunks    []byte
	deltas    []byte

	first  int64
	symbol uint8 // of the packet that next went to

	left  int // packets
	chunk uint16
	n     int // symbols that are left in chunk
}

// parse checks the whole of a feedback, so that reading it cannot fail.
func parse(b []byte) (f report, ok bool) {
	if len(b) < 16 {
		return f, false
	}
	f.base, f.count = binary.BigEndian.Uint16(b[8:]), int(binary.BigEndian.Uint16(b[10:]))
	f.reference = binary.BigEndian.Uint32(b[12:]) >> 8
	f.chunks, f.left = b[16:], f.count
	if f.count == 0 || f.count > maxCount {
		return f, false
	}
	check := f
	need := 0
	for check.next() {
		switch check.symbol {
		case 1:
			need++
		case 2:
			need += 2
		case 3:
			return f, false
		}
	}
	if check.left > 0 || len(check.chunks) < need {
		return f, false
	}
	f.deltas = check.chunks
	return f, true
}

// next goes to the next packet; false at the end, or when the chunks end too early.
func (f *report) next() bool {
	if f.left == 0 {
		return false
	}
	if f.n == 0 {
		if len(f.chunks) < 2 {
			return false
		}
		f.chunk, f.chunks = binary.BigEndian.Uint16(f.chunks), f.chunks[2:]
		switch f.chunk >> 14 {
		case 2:
			f.n = 14
		case 3:
			f.n = 7
		default:
			f.n = int(f.chunk & 0x1fff)
			if f.n == 0 {
				return false
			}
		}
	}
	f.n--
	f.left--
	switch f.chunk >> 14 {
	case 2:
		f.symbol = uint8(f.chunk >> f.n & 1)
	case 3:
		f.symbol = uint8(f.chunk >> (2 * f.n) & 3)
	default:
		f.symbol = uint8(f.chunk >> 13 & 3)
	}
	return true
}

// arrivalClock continues the receiver's 24 bits of 64 ms.
type arrivalClock struct {
	last    int64
	started bool
}

func (c *arrivalClock) unwrap(reference uint32) micros {
	if !c.started {
		c.started, c.last = true, int64(reference)
	}
	c.last += int64(int32((reference-uint32(c.last))<<8) >> 8)
	return c.last * 64_000
}
