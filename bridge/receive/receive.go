// Package receive is what the bridge keeps about one incoming stream: which packets came, which are missing and
// to be asked for again, statistics for reports, a history to retransmit from, and what an endpoint is told about
// arrival times. It is pure: packets and times in, numbers and RTCP bytes out. One core goroutine owns each value.
package receive

import (
	"time"

	"plenum/bridge/packet"
)

const (
	window     = 1024 // sequence numbers that are remembered
	maxGap     = 100  // a larger jump is a new beginning, not loss
	maxMissing = 256
	nackEvery  = 150 * time.Millisecond // sooner where round trips are short, later where they are long
	nackSoon   = 40 * time.Millisecond
	nackSoons  = 3 // so many requests at that interval, the next ones twice as far apart, and so on
	nackTimes  = 10
)

// A Stream is one incoming media SSRC; what came by RTX counts as a packet of the stream that it repairs.
type Stream struct {
	SSRC  uint32
	Clock uint32 // Hz
	// Repair asks for what is missing (NACK).
	Repair bool

	unwrap  packet.Unwrapper
	started bool
	first   int64
	highest int64
	came    [window / 64]uint64
	missing []missing
	rtt     time.Duration // from a request to what it brings, smoothed; 0 unknown

	// for reports
	received      uint64 // without retransmissions
	priorExpected int64
	priorReceived uint64
	active        bool // since the last report
	transit       uint32
	jitter        uint32 // 28.4 fixed point, RFC 3550 §A.8
	sr            packet.SenderInfo
	srAt          time.Time
}

type missing struct {
	seq   int64
	tries int
	asked time.Time // first
	next  time.Time
}

// Arrive notes one packet and returns its unwrapped sequence number. ok is false for duplicates and for packets
// older than the window. repaired says that it came as a retransmission.
func (s *Stream) Arrive(seq uint16, timestamp uint32, repaired bool, now time.Time) (ext int64, ok bool) {
	if repaired && !s.started {
		return 0, false // RTX padding before the stream has begun
	}
	ext = s.unwrap.Unwrap(seq)
	if !repaired {
		s.statistics(timestamp, now)
	}
	switch {
	case !s.started:
		s.started, s.first, s.highest = true, ext, ext
		s.mark(ext)
		return ext, true
	case ext > s.highest:
		gap := ext - s.highest - 1
		for n := s.highest + 1; n < ext && n <= s.highest+window; n++ {
			s.unmark(n)
		}
		switch {
		case gap >= maxGap:
			s.missing = s.missing[:0]
		case s.Repair:
			for n := s.highest + 1; n < ext; n++ {
				s.miss(n, now)
			}
		}
		s.highest = ext
		s.mark(ext)
		return ext, true
	case ext <= s.highest-window || s.marked(ext):
		return ext, false
	}
	s.mark(ext)
	for i := range s.missing {
		if m := &s.missing[i]; m.seq == ext {
			if repaired && m.tries == 1 {
				s.repairedAfter(now.Sub(m.asked))
			}
			s.missing = append(s.missing[:i], s.missing[i+1:]...)
			break
		}
	}
	return ext, true
}

func (s *Stream) mark(n int64)        { s.came[n/64%(window/64)] |= 1 << (n & 63) }
func (s *Stream) unmark(n int64)      { s.came[n/64%(window/64)] &^= 1 << (n & 63) }
func (s *Stream) marked(n int64) bool { return s.came[n/64%(window/64)]&(1<<(n&63)) != 0 }

func (s *Stream) miss(n int64, now time.Time) {
	if len(s.missing) >= maxMissing {
		s.missing = append(s.missing[:0], s.missing[1:]...)
	}
	s.missing = append(s.missing, missing{seq: n, next: now})
}

func (s *Stream) repairedAfter(d time.Duration) {
	if s.rtt == 0 {
		s.rtt = d
	}
	d = min(d, time.Second)
	s.rtt += (d - s.rtt) / 4
}

// again is how long to wait after so many requests for one packet.
func (s *Stream) again(tries int) time.Duration {
	if s.rtt == 0 {
		return nackEvery
	}
	once := max(s.rtt+s.rtt/4+10*time.Millisecond, nackSoon)
	return max(once, min(once<<max(tries-nackSoons, 0), nackEvery))
}

// Missing appends the sequence numbers that are to be asked for now: each at once, then when an answer should have come,
// which is after 150 ms until that is known, ten times in all.
func (s *Stream) Missing(dst []uint16, now time.Time) []uint16 {
	kept := s.missing[:0]
	for _, m := range s.missing {
		if !now.Before(m.next) {
			dst = append(dst, uint16(m.seq))
			if m.tries++; m.tries == 1 {
				m.asked = now
			}
			m.next = now.Add(s.again(m.tries))
		}
		if m.tries < nackTimes {
			kept = append(kept, m)
		}
	}
	s.missing = kept
	return dst
}

// Expecting reports whether Missing may have something, now or later.
func (s *Stream) Expecting() bool { return len(s.missing) > 0 }

func (s *Stream) statistics(timestamp uint32, now time.Time) {
	s.active = true
	s.received++
	if s.Clock == 0 {
		return
	}
	arrival := uint32(now.Unix())*s.Clock + uint32(uint64(now.Nanosecond())*uint64(s.Clock)/1e9)
	transit := arrival - timestamp
	if s.received > 1 {
		d := int32(transit - s.transit)
		if d < 0 {
			d = -d
		}
		if uint32(d) < 10*s.Clock { // else the timestamps began anew
			s.jitter += uint32(d) - (s.jitter+8)>>4
		}
	}
	s.transit = transit
}

// SenderReport notes a sender report of the stream.
func (s *Stream) SenderReport(sr packet.SenderInfo, now time.Time) { s.sr, s.srAt = sr, now }

// LastSR returns the last sender report and when it came; ok is false before the first.
func (s *Stream) LastSR() (sr packet.SenderInfo, at time.Time, ok bool) {
	return s.sr, s.srAt, !s.srAt.IsZero()
}

// Capture returns the sender's wall clock for a timestamp, in microseconds since 1900, or 0 when unknown.
func (s *Stream) Capture(timestamp uint32) int64 {
	if s.srAt.IsZero() || s.sr.NTP == 0 || s.Clock == 0 {
		return 0
	}
	micros := int64(s.sr.NTP>>32)*1e6 + int64(s.sr.NTP&0xffffffff*1e6>>32)
	return micros + int64(int32(timestamp-s.sr.Timestamp))*1e6/int64(s.Clock)
}

// Report returns the reception report since the last one (RFC 3550 §6.4.1, §A.3); ok is false if nothing came.
func (s *Stream) Report(now time.Time) (r packet.Report, ok bool) {
	if !s.active {
		return r, false
	}
	s.active = false
	expected := s.highest - s.first + 1
	r = packet.Report{SSRC: s.SSRC, Highest: uint32(s.highest - 1<<16), Jitter: s.jitter >> 4}
	r.Lost = int32(min(max(expected-int64(s.received), -1<<23), 1<<23-1))
	de, dr := expected-s.priorExpected, int64(s.received-s.priorReceived)
	if lost := de - dr; de > 0 && lost > 0 {
		r.FractionLost = uint8(min(lost<<8/de, 255))
	}
	s.priorExpected, s.priorReceived = expected, s.received
	if !s.srAt.IsZero() {
		r.LastSR = uint32(s.sr.NTP >> 16)
		r.DLSR = uint32(now.Sub(s.srAt) * 65536 / time.Second)
	}
	return r, true
}

// Counts returns how many packets were expected and how many came, retransmissions aside.
func (s *Stream) Counts() (expected, received uint64) {
	if !s.started {
		return 0, 0
	}
	return uint64(s.highest - s.first + 1), s.received
}
