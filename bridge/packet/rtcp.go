package packet

import "encoding/binary"

// RTCP packet types (RFC 3550, RFC 4585, RFC 3611).
const (
	TypeSR   = 200
	TypeRR   = 201
	TypeSDES = 202
	TypeBYE  = 203
	TypeRTPF = 205 // transport layer feedback
	TypePSF  = 206 // payload-specific feedback

	FormatNACK        = 1  // of TypeRTPF (RFC 4585 §6.2.1)
	FormatTransportCC = 15 // of TypeRTPF
	FormatPLI         = 1  // of TypePSF (RFC 4585 §6.3.1)
	FormatFIR         = 4  // of TypePSF (RFC 5104 §4.3.1)
	FormatREMB        = 15 // of TypePSF
)

// RTCP is a view of one packet of a compound.
type RTCP struct {
	Type   uint8
	Format uint8  // the count or feedback format in the first byte
	Body   []byte // after the first four bytes, without padding
}

// NextRTCP cuts the first packet off a compound, or off reduced-size RTCP (RFC 5506). ok is false at its end
// and at bytes that are no RTCP.
func NextRTCP(b []byte) (p RTCP, rest []byte, ok bool) {
	if len(b) < 4 || b[0]>>6 != 2 {
		return RTCP{}, nil, false
	}
	n := 4 + 4*int(binary.BigEndian.Uint16(b[2:]))
	if n > len(b) {
		return RTCP{}, nil, false
	}
	body := b[4:n:n]
	if b[0]&0x20 != 0 {
		if len(body) == 0 || int(body[len(body)-1]) > len(body) || body[len(body)-1] == 0 {
			return RTCP{}, nil, false
		}
		body = body[:len(body)-int(body[len(body)-1])]
	}
	return RTCP{Type: b[1], Format: b[0] & 0x1f, Body: body}, b[n:], true
}

// Sender is the SSRC that every packet of the types above begins with; 0 when it is not there.
func (p RTCP) Sender() uint32 { return p.word(0) }

// Media is the SSRC that feedback is about.
func (p RTCP) Media() uint32 { return p.word(4) }

func (p RTCP) word(at int) uint32 {
	if len(p.Body) < at+4 {
		return 0
	}
	return binary.BigEndian.Uint32(p.Body[at:])
}

// A SenderInfo is the part of a sender report that describes its stream (RFC 3550 §6.4.1).
type SenderInfo struct {
	SSRC            uint32
	NTP             uint64 // 32.32 fixed point seconds since 1900
	Timestamp       uint32
	Packets, Octets uint32
}

// SenderInfo reads a sender report.
func (p RTCP) SenderInfo() (s SenderInfo, ok bool) {
	if p.Type != TypeSR || len(p.Body) < 24 {
		return s, false
	}
	return SenderInfo{
		SSRC: p.word(0), NTP: uint64(p.word(4))<<32 | uint64(p.word(8)),
		Timestamp: p.word(12), Packets: p.word(16), Octets: p.word(20),
	}, true
}

// A Report is one reception report block (RFC 3550 §6.4.1).
type Report struct {
	SSRC         uint32
	FractionLost uint8
	Lost         int32 // cumulative; 24 bits on the wire
	Highest      uint32
	Jitter       uint32 // timestamp units
	LastSR, DLSR uint32
}

// Reports calls f for each reception report block of a sender or receiver report.
func (p RTCP) Reports(f func(Report)) {
	b := p.Body
	switch {
	case p.Type == TypeSR && len(b) >= 24:
		b = b[24:]
	case p.Type == TypeRR && len(b) >= 4:
		b = b[4:]
	default:
		return
	}
	for n := int(p.Format); n > 0 && len(b) >= 24; n, b = n-1, b[24:] {
		lost := int32(binary.BigEndian.Uint32(b[4:])<<8) >> 8
		f(Report{
			SSRC: binary.BigEndian.Uint32(b), FractionLost: b[4], Lost: lost,
			Highest: binary.BigEndian.Uint32(b[8:]), Jitter: binary.BigEndian.Uint32(b[12:]),
			LastSR: binary.BigEndian.Uint32(b[16:]), DLSR: binary.BigEndian.Uint32(b[20:]),
		})
	}
}

// NACKs returns the entries of a NACK, four bytes each, to be read with NACKEntry.
func (p RTCP) NACKs() []byte {
	if p.Type != TypeRTPF || p.Format != FormatNACK || len(p.Body) < 8 {
		return nil
	}
	return p.Body[8 : len(p.Body)&^3]
}

// NACKEntry cuts the first entry off: a sequence number, and a mask of the 16 that follow it.
func NACKEntry(b []byte) (seq, mask uint16, rest []byte) {
	return binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), b[4:]
}

// FIRs calls f for each media SSRC that a full intra request is about.
func (p RTCP) FIRs(f func(ssrc uint32)) {
	if p.Type != TypePSF || p.Format != FormatFIR || len(p.Body) < 8 {
		return
	}
	for b := p.Body[8:]; len(b) >= 8; b = b[8:] {
		f(binary.BigEndian.Uint32(b))
	}
}

// REMB reads a receiver's estimate in bits per second (draft-alvestrand-rmcat-remb-03 §2.2).
func (p RTCP) REMB() (bps uint64, ok bool) {
	if p.Type != TypePSF || p.Format != FormatREMB || len(p.Body) < 16 || string(p.Body[8:12]) != "REMB" {
		return 0, false
	}
	word := p.word(12)
	exponent, mantissa := word>>18&0x3f, uint64(word&0x3ffff)
	if exponent > 64-18 {
		return 1<<64 - 1, true
	}
	return mantissa << exponent, true
}

// AppendPLI appends a picture loss indication.
func AppendPLI(dst []byte, sender, media uint32) []byte {
	dst = append(dst, 0x80|FormatPLI, TypePSF, 0, 2)
	dst = binary.BigEndian.AppendUint32(dst, sender)
	return binary.BigEndian.AppendUint32(dst, media)
}

// AppendNACK appends a NACK for the given sequence numbers, which must ascend (modulo wrapping).
func AppendNACK(dst []byte, sender, media uint32, seqs []uint16) []byte {
	at := len(dst)
	dst = append(dst, 0x80|FormatNACK, TypeRTPF, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, sender)
	dst = binary.BigEndian.AppendUint32(dst, media)
	for i := 0; i < len(seqs); {
		first, mask := seqs[i], uint16(0)
		for i++; i < len(seqs) && seqs[i]-first <= 16 && seqs[i] != first; i++ {
			mask |= 1 << (seqs[i] - first - 1)
		}
		dst = append(dst, byte(first>>8), byte(first), byte(mask>>8), byte(mask))
	}
	binary.BigEndian.PutUint16(dst[at+2:], uint16((len(dst)-at)/4-1))
	return dst
}

// AppendSR appends a sender report without report blocks.
func AppendSR(dst []byte, s SenderInfo) []byte {
	dst = append(dst, 0x80, TypeSR, 0, 6)
	dst = binary.BigEndian.AppendUint32(dst, s.SSRC)
	dst = binary.BigEndian.AppendUint64(dst, s.NTP)
	dst = binary.BigEndian.AppendUint32(dst, s.Timestamp)
	dst = binary.BigEndian.AppendUint32(dst, s.Packets)
	return binary.BigEndian.AppendUint32(dst, s.Octets)
}

// MaxReports is how many blocks fit one receiver report.
const MaxReports = 31

// AppendRR appends a receiver report with at most MaxReports blocks.
func AppendRR(dst []byte, sender uint32, reports []Report) []byte {
	reports = reports[:min(len(reports), MaxReports)]
	dst = append(dst, 0x80|byte(len(reports)), TypeRR, 0, byte(1+6*len(reports)))
	dst = binary.BigEndian.AppendUint32(dst, sender)
	for _, r := range reports {
		dst = binary.BigEndian.AppendUint32(dst, r.SSRC)
		lost := uint32(min(max(r.Lost, -1<<23), 1<<23-1)) & 0xffffff
		dst = binary.BigEndian.AppendUint32(dst, uint32(r.FractionLost)<<24|lost)
		dst = binary.BigEndian.AppendUint32(dst, r.Highest)
		dst = binary.BigEndian.AppendUint32(dst, r.Jitter)
		dst = binary.BigEndian.AppendUint32(dst, r.LastSR)
		dst = binary.BigEndian.AppendUint32(dst, r.DLSR)
	}
	return dst
}
