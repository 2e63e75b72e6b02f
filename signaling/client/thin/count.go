package thin

import (
	"encoding/binary"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// openEvery is how many packets of a stream go by for one that is opened. It is prime, so that it does not
// always meet the same packet of a frame.
const openEvery = 29

// A Count is what a set of participants has received since the last Reset.
type Count struct {
	Packets, Bytes uint64 // media, headers included
	Lost           uint64 // by sequence numbers, never less than zero for a stream
	Audio, Video   Delay
	Opened, Bad    uint64        // packets that were opened; those of them that did not authenticate
	Streams        int           // SSRCs that got something
	Senders        int           // participants that published
	Sent           uint64        // packets published
	Late           time.Duration // of the frame that was published latest: the load itself was too slow
	Dropped        uint64        // at the sockets of the participants, among the lost: likewise
}

// Delay is from the moment before a packet was sealed by its publisher to its arrival at a receiver's socket.
type Delay struct{ P50, P99, Max time.Duration }

func delay(h *hdrhistogram.Histogram) Delay {
	return Delay{
		time.Duration(h.ValueAtQuantile(50)) * time.Microsecond,
		time.Duration(h.ValueAtQuantile(99)) * time.Microsecond,
		time.Duration(h.Max()) * time.Microsecond,
	}
}

// A stream is one SSRC as a participant receives it.
type stream struct {
	started         bool
	highest         uint64 // unwrapped, from 1<<16 on
	base            uint64 // the one before the first that counts
	packets, bytes  uint64 // since base
	opened, bad     uint64
	skip            int
	fresh           bool // something has come since the last receiver report
	first           uint64
	total, previous uint64 // received ever, and as of the last report
	expected        uint64
}

// arrive counts a packet and returns its index, which is that of SRTP too.
func (s *stream) arrive(seq uint16, bytes int) (index uint64) {
	if !s.started {
		s.started = true
		s.highest = 1<<16 | uint64(seq)
		s.base, s.first = s.highest-1, s.highest
	}
	index = s.highest + uint64(int64(int16(seq-uint16(s.highest))))
	s.highest = max(s.highest, index)
	s.packets++
	s.total++
	s.bytes += uint64(bytes)
	s.fresh = true
	return index - 1<<16
}

func (s *stream) lost() uint64 {
	if want := s.highest - s.base; want > s.packets {
		return want - s.packets
	}
	return 0
}

func (s *stream) reset() {
	s.base, s.packets, s.bytes, s.opened, s.bad = s.highest, 0, 0, 0, 0
}

// report appends the stream's block of a receiver report (RFC 3550 §6.4.1).
func (s *stream) report(dst []byte, ssrc uint32) []byte {
	expected := s.highest - s.first + 1
	lost := max(0, int64(expected)-int64(s.total))
	fraction := int64(0)
	if interval := int64(expected - s.expected); interval > 0 {
		fraction = max(0, interval-int64(s.total-s.previous)) * 256 / interval
	}
	s.expected, s.previous, s.fresh = expected, s.total, false
	dst = binary.BigEndian.AppendUint32(dst, ssrc)
	dst = binary.BigEndian.AppendUint32(dst, uint32(min(fraction, 255))<<24|uint32(min(lost, 0x7fffff)))
	dst = binary.BigEndian.AppendUint32(dst, uint32(s.highest-1<<16))
	return append(dst, make([]byte, 12)...) // jitter, and no sender report is kept
}
