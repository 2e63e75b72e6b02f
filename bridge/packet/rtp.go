package packet

import (
	"encoding/binary"
	"errors"
)

// ErrMalformed is returned for bytes that are no RTP or RTCP packet.
var ErrMalformed = errors.New("packet: malformed")

const (
	headerBytes = 12

	oneByteProfile = 0xBEDE // RFC 8285 §4.2
	twoByteProfile = 0x1000 // RFC 8285 §4.3; the low four bits are for the application
)

// IsRTCP tells RTCP from RTP on one port (RFC 5761 §4). b is the datagram, already known to be one of them.
func IsRTCP(b []byte) bool { return len(b) > 1 && b[1] >= 192 && b[1] <= 223 }

// IsRTP reports whether a datagram is RTP or RTCP and not STUN, DTLS or TURN (RFC 7983 §7).
func IsRTP(b []byte) bool { return len(b) >= 8 && b[0]>>6 == 2 }

// RTP is a view of one clear RTP packet. It borrows the bytes that it was parsed from.
type RTP struct {
	Data    []byte // the whole packet
	Header  []byte // up to the payload; shares memory with Data
	Payload []byte // without padding; shares memory with Data
	ext     []byte // the body of the header extension
	profile uint16 // of ext; 0 without one that we can read
}

// ParseRTP reads the header of b. Everything is checked here: the views returned later are inside b.
func ParseRTP(b []byte) (RTP, error) {
	if len(b) < headerBytes || b[0]>>6 != 2 {
		return RTP{}, ErrMalformed
	}
	r := RTP{Data: b}
	at := headerBytes + 4*int(b[0]&0x0f)
	if b[0]&0x10 != 0 {
		if len(b) < at+4 {
			return RTP{}, ErrMalformed
		}
		profile, n := binary.BigEndian.Uint16(b[at:]), 4*int(binary.BigEndian.Uint16(b[at+2:]))
		at += 4
		if len(b) < at+n {
			return RTP{}, ErrMalformed
		}
		if profile == oneByteProfile || profile&0xfff0 == twoByteProfile {
			r.ext, r.profile = b[at:at+n:at+n], profile
		}
		at += n
	}
	end := len(b)
	if at > end {
		return RTP{}, ErrMalformed
	}
	if b[0]&0x20 != 0 {
		pad := 0
		if end > at {
			pad = int(b[end-1])
		}
		if pad == 0 || at+pad > end {
			return RTP{}, ErrMalformed
		}
		end -= pad
	}
	r.Header, r.Payload = b[:at:at], b[at:end:end]
	return r, nil
}

func (r RTP) PT() uint8         { return r.Data[1] & 0x7f }
func (r RTP) Marker() bool      { return r.Data[1]&0x80 != 0 }
func (r RTP) Seq() uint16       { return binary.BigEndian.Uint16(r.Data[2:]) }
func (r RTP) Timestamp() uint32 { return binary.BigEndian.Uint32(r.Data[4:]) }
func (r RTP) SSRC() uint32      { return binary.BigEndian.Uint32(r.Data[8:]) }

// Extension returns the value of the header extension element with that id, or nil; id 0 is never there.
func (r RTP) Extension(id uint8) []byte {
	if id == 0 || r.profile == 0 {
		return nil
	}
	b := r.ext
	if r.profile == oneByteProfile {
		for len(b) > 0 {
			head := b[0]
			if head == 0 { // padding
				b = b[1:]
				continue
			}
			n := int(head&0x0f) + 1
			if head>>4 == 15 || len(b) < 1+n { // 15 ends the list
				return nil
			}
			if head>>4 == id {
				return b[1 : 1+n : 1+n]
			}
			b = b[1+n:]
		}
		return nil
	}
	for len(b) > 0 {
		if b[0] == 0 {
			b = b[1:]
			continue
		}
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return nil
		}
		n := int(b[1])
		if b[0] == id {
			return b[2 : 2+n : 2+n]
		}
		b = b[2+n:]
	}
	return nil
}

// A Header is an outgoing RTP header under construction.
type Header struct {
	PT        uint8
	Marker    bool
	Seq       uint16
	Timestamp uint32
	SSRC      uint32
}

// Append appends the fixed header, without extensions; see Extensions.
func (h Header) Append(dst []byte) []byte {
	pt := h.PT & 0x7f
	if h.Marker {
		pt |= 0x80
	}
	return append(dst, 0x80, pt, byte(h.Seq>>8), byte(h.Seq),
		byte(h.Timestamp>>24), byte(h.Timestamp>>16), byte(h.Timestamp>>8), byte(h.Timestamp),
		byte(h.SSRC>>24), byte(h.SSRC>>16), byte(h.SSRC>>8), byte(h.SSRC))
}

// Extensions writes the extension elements of an outgoing header. Begin it when the fixed header ends the
// slice, add the elements, end it.
type Extensions struct {
	at   int // where the extension begins
	wide bool
}

// BeginExtensions starts a header extension at the end of h, which begins with a fixed RTP header. wide asks
// for the two-byte form, which elements of more than 16 bytes, of none, or with an id above 14 need.
func BeginExtensions(h []byte, wide bool) ([]byte, Extensions) {
	x := Extensions{at: len(h), wide: wide}
	if wide {
		return append(h, twoByteProfile>>8, twoByteProfile&0xff, 0, 0), x
	}
	return append(h, oneByteProfile>>8, oneByteProfile&0xff, 0, 0), x
}

// Fits reports whether an element can be written in the one-byte form (RFC 8285 §4.2).
func Fits(id uint8, n int) bool { return id <= 14 && n >= 1 && n <= 16 }

// Add starts an element of n bytes and returns the header with them zeroed at its end.
func (x Extensions) Add(h []byte, id uint8, n int) []byte {
	if x.wide {
		h = append(h, id, byte(n))
	} else {
		h = append(h, id<<4|byte(n-1))
	}
	for range n {
		h = append(h, 0)
	}
	return h
}

// End pads the extension and sets its length; an empty one is taken away again.
func (x Extensions) End(h []byte, header int) []byte {
	if len(h) == x.at+4 {
		return h[:x.at]
	}
	for (len(h)-x.at)&3 != 0 {
		h = append(h, 0)
	}
	binary.BigEndian.PutUint16(h[x.at+2:], uint16((len(h)-x.at-4)/4))
	h[header] |= 0x10
	return h
}
