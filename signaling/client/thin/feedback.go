package thin

import "encoding/binary"

// arrivals are the transport-wide sequence numbers that came since the last feedback, as RTCP wants them
// (draft-holmer-rmcat-transport-wide-cc-extensions-01).
type arrivals struct {
	started bool
	next    uint16 // the number after the last that was reported
	count   uint8  // of feedback packets
	// ticks[i] is when number next+i came, in units of 250 µs plus 1; 0: it did not.
	ticks []int64
}

// maxArrivals bounds what one feedback packet describes.
const maxArrivals = 1000

// add notes the arrival of a number, in microseconds of any clock.
func (a *arrivals) add(seq uint16, micros int64) {
	if !a.started {
		a.started, a.next = true, seq
	}
	at := int(int16(seq - a.next))
	if at < 0 || at >= maxArrivals {
		if at >= maxArrivals { // too far: begin anew
			a.next, a.ticks, at = seq, a.ticks[:0], 0
		} else {
			return
		}
	}
	for len(a.ticks) <= at {
		a.ticks = append(a.ticks, 0)
	}
	a.ticks[at] = micros/250 + 1
}

// feedback appends one packet about what came, and forgets it; nothing when nothing came.
func (a *arrivals) feedback(dst []byte, sender, media uint32) []byte {
	if len(a.ticks) == 0 {
		return dst
	}
	n := len(a.ticks)
	// The reference is the first arrival, in units of 64 ms.
	var reference int64
	for _, t := range a.ticks {
		if t != 0 {
			reference = (t - 1) / 256
			break
		}
	}
	start := len(dst)
	dst = append(dst, 0x8f, 205, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, sender)
	dst = binary.BigEndian.AppendUint32(dst, media)
	dst = binary.BigEndian.AppendUint16(dst, a.next)
	dst = binary.BigEndian.AppendUint16(dst, uint16(n))
	dst = binary.BigEndian.AppendUint32(dst, uint32(reference&0xffffff)<<8|uint32(a.count))
	// Status chunks of seven two-bit symbols: 0 missing, 1 a small delta, 2 a large one.
	last := reference * 256
	var chunk uint16
	for i := range (n + 6) / 7 * 7 {
		symbol := uint16(0)
		if i < n && a.ticks[i] != 0 {
			d := a.ticks[i] - 1 - last
			last = a.ticks[i] - 1
			symbol = 1
			if d < 0 || d > 255 {
				symbol = 2
			}
		}
		chunk = chunk<<2 | symbol
		if i%7 == 6 {
			dst = binary.BigEndian.AppendUint16(dst, 0xc000|chunk)
			chunk = 0
		}
	}
	last = reference * 256
	for _, t := range a.ticks {
		if t == 0 {
			continue
		}
		d := t - 1 - last
		last = t - 1
		if d < 0 || d > 255 {
			dst = binary.BigEndian.AppendUint16(dst, uint16(int16(max(-32768, min(d, 32767)))))
		} else {
			dst = append(dst, byte(d))
		}
	}
	for (len(dst)-start)%4 != 0 {
		dst = append(dst, 0)
	}
	binary.BigEndian.PutUint16(dst[start+2:], uint16((len(dst)-start)/4-1))
	a.count++
	a.next += uint16(n)
	a.ticks = a.ticks[:0]
	return dst
}
