package receive

import (
	"encoding/binary"
	"time"

	"plenum/bridge/packet"
)

const (
	feedbackEvery  = 100 * time.Millisecond
	feedbackFrame  = 20 * time.Millisecond // at the end of a frame
	feedbackWindow = 1024                  // packets
	maxFeedback    = 400                   // packets in one message
	tick           = 250 * time.Microsecond
	reference      = 256 // ticks: 64 ms
)

// Feedback tells a sender when its packets arrived (draft-holmer-rmcat-transport-wide-cc-extensions-01), over
// all its streams. Make it with NewFeedback.
type Feedback struct {
	base     time.Time
	unwrap   packet.Unwrapper
	arrivals []int64 // ticks since base plus 1, by sequence number; 0 did not come; nil before the first packet
	first    int64   // the first that is not reported
	end      int64   // one past the highest
	media    uint32
	sent     time.Time
	count    uint8
	frame    bool // a frame ended since the last message
}

// NewFeedback begins at now.
func NewFeedback(now time.Time) *Feedback {
	return &Feedback{base: now.Add(-time.Second), sent: now}
}

// Arrive notes the packet with transport-wide number seq.
func (f *Feedback) Arrive(seq uint16, ssrc uint32, marker bool, now time.Time) {
	n := f.unwrap.Unwrap(seq)
	switch {
	case f.end == 0:
		f.first, f.end = n, n
		f.arrivals = make([]int64, feedbackWindow) // those who only receive need none
	case n <= f.end-feedbackWindow:
		return
	case n < f.first:
		f.first = n // late: report again from here on
	}
	if n >= f.end {
		for i := max(f.end, n-feedbackWindow+1); i < n; i++ {
			f.arrivals[i%feedbackWindow] = 0
		}
		f.end = n + 1
		f.first = max(f.first, f.end-feedbackWindow)
	} else if f.arrivals[n%feedbackWindow] != 0 {
		return
	}
	f.arrivals[n%feedbackWindow] = int64(now.Sub(f.base)/tick) + 1
	f.media = ssrc
	f.frame = f.frame || marker
}

// Due reports whether a message is to be sent: every 100 ms, or after 20 ms when a frame has ended.
func (f *Feedback) Due(now time.Time) bool {
	if f.first >= f.end {
		return false
	}
	since := now.Sub(f.sent)
	return since >= feedbackEvery || f.frame && since >= feedbackFrame || f.end-f.first >= maxFeedback
}

// Append appends one message about what is not reported yet; call it until Pending is false.
func (f *Feedback) Append(dst []byte, sender uint32, now time.Time) []byte {
	f.sent, f.frame = now, false
	came := f.first
	for came < f.end && f.arrivals[came%feedbackWindow] == 0 {
		came++
	}
	if came >= f.end {
		f.first = f.end
		return dst
	}
	f.first = max(f.first, came-maxFeedback/2)
	start := len(dst)
	refs := (f.arrivals[came%feedbackWindow] - 1) / reference
	dst = append(dst, 0x80|packet.FormatTransportCC, packet.TypeRTPF, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, sender)
	dst = binary.BigEndian.AppendUint32(dst, f.media)
	dst = binary.BigEndian.AppendUint16(dst, uint16(f.first))
	dst = append(dst, 0, 0, byte(refs>>16), byte(refs>>8), byte(refs), f.count)
	f.count++

	var symbols [maxFeedback]uint8
	n, last := 0, refs*reference
	for f.first+int64(n) < f.end && n < maxFeedback {
		if a := f.arrivals[(f.first+int64(n))%feedbackWindow]; a != 0 {
			d := a - 1 - last
			if d != int64(int16(d)) {
				break // further apart than a delta can say
			}
			symbols[n] = 2
			if d >= 0 && d <= 255 {
				symbols[n] = 1
			}
			last = a - 1
		}
		n++
	}
	binary.BigEndian.PutUint16(dst[start+14:], uint16(n))
	for i := 0; i < n; {
		run := 1
		for i+run < n && symbols[i+run] == symbols[i] {
			run++
		}
		if run >= 7 || i+run == n {
			dst = append(dst, symbols[i]<<5|byte(run>>8), byte(run))
			i += run
			continue
		}
		chunk := uint16(3) << 14 // vector of seven two-bit symbols
		for j := range 7 {
			if i+j < n {
				chunk |= uint16(symbols[i+j]) << (12 - 2*j)
			}
		}
		dst = binary.BigEndian.AppendUint16(dst, chunk)
		i += min(7, n-i)
	}
	last = refs * reference
	for i := range n {
		a := f.arrivals[(f.first+int64(i))%feedbackWindow]
		switch symbols[i] {
		case 1:
			dst = append(dst, byte(a-1-last))
			last = a - 1
		case 2:
			dst = binary.BigEndian.AppendUint16(dst, uint16(a-1-last))
			last = a - 1
		}
	}
	if pad := -(len(dst) - start) & 3; pad > 0 {
		for range pad - 1 {
			dst = append(dst, 0)
		}
		dst = append(dst, byte(pad))
		dst[start] |= 0x20
	}
	binary.BigEndian.PutUint16(dst[start+2:], uint16((len(dst)-start)/4-1))
	f.first += int64(n)
	return dst
}

// Pending reports whether something is not reported yet.
func (f *Feedback) Pending() bool { return f.first < f.end }
