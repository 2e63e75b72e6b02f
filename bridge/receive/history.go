package receive

import (
	"time"

	"plenum/bridge/packet"
)

const (
	historyPackets  = 512
	historySpan     = time.Second // the ring grows until it holds that much
	minHistoryBytes = 16 << 10
	maxHistoryBytes = 512 << 10
)

// A History keeps copies of the last packets of one encoding, to answer NACKs from: at most 512 packets and
// 512 KiB, usually about a second. It takes no memory before the first Put. The zero value is ready to use.
type History struct {
	entries []entry // by sequence number modulo historyPackets
	ring    []byte
	head    int   // where the next packet goes
	lap     int32 // how often head went round
	lapped  time.Time
}

type entry struct {
	seq    int64 // 0 is none
	at     int32
	header uint16
	size   uint16 // header and payload
	lap    int32
}

// Put stores a packet, without its padding, under its unwrapped sequence number.
func (h *History) Put(seq int64, r *packet.RTP, now time.Time) {
	if h.entries == nil {
		h.entries = make([]entry, historyPackets)
		h.ring = make([]byte, minHistoryBytes)
		h.lapped = now
	}
	n := len(r.Header) + len(r.Payload)
	if h.head+n > len(h.ring) {
		if now.Sub(h.lapped) < historySpan && len(h.ring) < maxHistoryBytes {
			ring := make([]byte, 2*len(h.ring))
			copy(ring, h.ring)
			h.ring = ring
		} else {
			h.head = 0
			h.lap++
			h.lapped = now
		}
	}
	copy(h.ring[h.head:], r.Header)
	copy(h.ring[h.head+len(r.Header):], r.Payload)
	h.ring[h.head] &^= 0x20 // padding
	h.entries[seq%historyPackets] = entry{seq: seq, at: int32(h.head), header: uint16(len(r.Header)), size: uint16(n), lap: h.lap}
	h.head += n
}

// Get returns a stored packet, or false. The packet is valid until the next Put.
func (h *History) Get(seq int64) (r packet.RTP, ok bool) {
	if h.entries == nil || seq < 0 {
		return r, false
	}
	e := &h.entries[seq%historyPackets]
	if e.seq != seq || e.size == 0 {
		return r, false
	}
	if e.lap != h.lap && (e.lap != h.lap-1 || int(e.at) < h.head) {
		return r, false // overwritten
	}
	r, err := packet.ParseRTP(h.ring[e.at : int(e.at)+int(e.size)])
	return r, err == nil
}
