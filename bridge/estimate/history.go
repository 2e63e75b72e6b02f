package estimate

import "plenum/bridge/packet"

const (
	minHistory = 128
	maxHistory = 4096
	// deafHistory is as much as is remembered for a receiver of which nothing was heard yet.
	deafHistory = 512
	keepFor     = 2_000_000 // µs that a packet is to be remembered at least, as far as maxHistory allows
)

// A record is one packet that was sent.
type record struct {
	at    uint32 // µs since the beginning, wrapping after an hour
	size  uint16 // on the wire
	what  uint8  // Kind, and above it what is known of it
	burst uint8  // 1024 µs that it waits behind what we sent before it, at the estimated rate
}

func (r *record) kind() Kind         { return Kind(r.what & 3) }
func (r *record) state() uint8       { return r.what >> 2 }
func (r *record) become(state uint8) { r.what = r.what&3 | state<<2 }

// What is known of a packet.
const (
	unsent uint8 = iota
	underway
	lost
	received
)

// history remembers when what was sent, by transport-wide number.
type history struct {
	ring     []record
	next     int64 // number of the next packet
	reported int64 // one past the highest that feedback has told of
}

// add notes a packet and returns its number as it is sent. grow allows more than deafHistory.
func (h *history) add(n int, kind Kind, burst uint8, at micros, grow bool) uint16 {
	if h.ring == nil {
		h.ring = make([]record, minHistory)
		h.next, h.reported = 1, 1
	}
	r := &h.ring[h.next&int64(len(h.ring)-1)]
	if r.state() == underway && uint32(at)-r.at < keepFor && (grow && len(h.ring) < maxHistory || len(h.ring) < deafHistory) {
		h.grow()
		r = &h.ring[h.next&int64(len(h.ring)-1)]
	}
	*r = record{at: uint32(at), size: uint16(min(n, 1<<16-1)), what: uint8(kind) | underway<<2, burst: burst}
	h.next++
	return uint16(h.next - 1)
}

func (h *history) grow() {
	old := h.ring
	h.ring = make([]record, 2*len(old))
	for n := h.next - int64(len(old)); n < h.next; n++ {
		if n > 0 {
			h.ring[n&int64(len(h.ring)-1)] = old[n&int64(len(old)-1)]
		}
	}
}

// get returns the record of a number that is still remembered, else nil.
func (h *history) get(n int64) *record {
	if n >= h.next || n < 1 || n < h.next-int64(len(h.ring)) {
		return nil
	}
	r := &h.ring[n&int64(len(h.ring)-1)]
	if r.state() == unsent {
		return nil
	}
	return r
}

// unwrap finds the number that a feedback means, which is not after the last one sent.
func (h *history) unwrap(seq uint16) int64 { return packet.Nearest(h.next-1, seq) }

// since returns how long ago r was sent.
func (r *record) since(at micros) micros { return micros(int32(uint32(at) - r.at)) }
